//! Facts about Skyhooks.

mod deletion;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skyhook_crds::names;
use skyhook_crds::revision::{self, RevisionData};
use skyhook_crds::skyhook::{CheckedSkyhook, SkyhookSpec, SkyhookStatus};

use super::{NodeFact, TaintDuty, Wants, WireSkyhook};
pub use deletion::{Deletion, Goal, Keeps};

/// A Skyhook.
#[derive(Clone, Debug)]
pub struct SkyhookFact {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    pub generation: i64,
    pub deleting: bool,
    /// While it is being deleted: the nodes that still have a package that has to be uninstalled before.
    pub deletion: Deletion,
    pub finalizers: Vec<String>,
    pub annotations: BTreeMap<String, String>,
    pub spec: Arc<SkyhookSpec>,
    /// The checked spec with its revision, or why the spec is not valid. A Skyhook whose spec is not valid is *parked*:
    /// it is not rolled out. While it is being deleted, the revision is the one that uninstalls: see [`Goal`].
    pub checked: Result<Arc<Checked>, String>,
    /// Selects the nodes that a parked Skyhook is for. `None` when the Skyhook is not parked, or when its selector
    /// cannot be read either.
    pub(crate) parked_over: Option<Wants>,
    /// Selects the nodes that the Skyhook is for. `None` when its spec is not valid.
    pub(crate) selector: Option<Wants>,
    /// Which nodes have to keep the runtime-required taint for it.
    pub taint: TaintDuty,
    pub status: Option<SkyhookStatus>,
}

/// A spec that can be rolled out.
#[derive(Clone, Debug)]
pub struct Checked {
    pub spec: CheckedSkyhook,
    /// Name of the revision that holds `data`.
    pub revision: String,
    pub data: RevisionData,
}

impl SkyhookFact {
    /// The slim copy of a Skyhook.
    #[must_use]
    pub fn new(object: WireSkyhook) -> Self {
        let metadata = object.metadata;
        let name = metadata.name.unwrap_or_default();
        let uid = metadata.uid.unwrap_or_default();
        let taint = TaintDuty::read(&object.spec);
        let decoded: Result<SkyhookSpec, String> =
            serde_json::from_value(object.spec).map_err(|e| format!("spec cannot be read: {e}"));
        let checked = decoded.as_ref().map_err(Clone::clone).and_then(|spec| {
            let checked = spec.check(&name).map_err(|e| e.to_string())?;
            let data = if metadata.deletion_timestamp.is_some() {
                deletion::revision(&checked, spec.serial, BTreeSet::new())
            } else {
                RevisionData::new(checked.packages.clone(), spec.serial, BTreeSet::new())
            };
            let revision = revision::name(&name, &uid, &data);
            Ok(Arc::new(Checked {
                spec: checked,
                revision,
                data,
            }))
        });
        let parked_over = match (&checked, &decoded) {
            (Err(_), Ok(spec)) => spec.node_selector().ok().map(Wants::from),
            (Ok(_), _) | (_, Err(_)) => None,
        };
        let selector = checked.as_ref().ok().map(|c| c.spec.node_selector.clone());
        Self {
            parked_over,
            selector: selector.map(Wants::from),
            resource_version: metadata.resource_version.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            deletion: Deletion::default(),
            finalizers: metadata.finalizers.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
            spec: Arc::new(decoded.unwrap_or_default()),
            checked,
            taint,
            status: serde_json::from_value(object.status).ok(),
            name,
            uid,
        }
    }

    /// Takes over the packages of earlier revisions that stay on hosts although the spec does not have them any more. Returns
    /// true if this changes the revision.
    pub(crate) fn leave_behind(&mut self, mut names: BTreeSet<String>) -> bool {
        let Ok(checked) = &self.checked else {
            return false;
        };
        let data = &checked.data;
        let data = if self.deleting {
            deletion::revision(&checked.spec, data.serial, names)
        } else {
            names.retain(|name| !data.packages.contains_key(name));
            RevisionData::new(data.packages.clone(), data.serial, names)
        };
        if data == checked.data {
            return false;
        }
        self.checked = Ok(Arc::new(Checked {
            spec: checked.spec.clone(),
            revision: revision::name(&self.name, &self.uid, &data),
            data,
        }));
        true
    }

    /// True when the Skyhook has our finalizer, so that it is not gone before its leases and cordons are.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        let mut finalizers = self.finalizers.iter();
        finalizers.any(|finalizer| finalizer == names::SKYHOOK_FINALIZER)
    }

    /// The keys of the packages' configuration that changed last, as NVIDIA Skyhook noted them in the status.
    #[must_use]
    pub fn config_updates(&self) -> &BTreeMap<String, Vec<String>> {
        static NONE: BTreeMap<String, Vec<String>> = BTreeMap::new();
        self.status
            .as_ref()
            .map_or(&NONE, |status| &status.config_updates)
    }

    /// True when the annotation asks for a pause.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.annotations
            .get(names::PAUSE)
            .is_some_and(|value| value == "true")
    }

    /// True when the annotation takes the Skyhook out of the roll-out.
    #[must_use]
    pub fn is_disabled(&self) -> bool {
        self.annotations
            .get(names::DISABLE)
            .is_some_and(|value| value == "true")
    }

    /// True when the Skyhook is parked and is for this node. Nobody can tell then whether the node is complete, so
    /// Skyhooks that come later on the node wait.
    #[must_use]
    pub fn is_parked_over(&self, node: &NodeFact) -> bool {
        self.parked_over
            .as_ref()
            .is_some_and(|selector| node.labels.are_selected(selector) && node.is_host())
    }

    /// True when the Skyhook selects the node. A parked Skyhook selects no node, and no Skyhook selects what is not a host.
    /// While it is being deleted, it also selects the nodes on which something has to be uninstalled.
    #[must_use]
    pub fn selects(&self, node: &NodeFact) -> bool {
        (self.means(node) || self.deletion.keeps(&node.name).is_some()) && node.is_host()
    }

    /// True when the Skyhook would select the node if it were a host.
    #[must_use]
    pub fn leaves_out(&self, node: &NodeFact) -> bool {
        self.means(node) && !node.is_host()
    }

    fn means(&self, node: &NodeFact) -> bool {
        self.selector
            .as_ref()
            .is_some_and(|selector| node.labels.are_selected(selector))
    }

    /// True when the node has to keep the runtime-required taint until the Skyhook is complete there.
    #[must_use]
    pub fn requires(&self, node: &NodeFact) -> bool {
        !self.deleting && self.taint.covers(node)
    }

    /// True when the Skyhook wants new nodes like this one to be tainted before anything else.
    #[must_use]
    pub fn taints_new(&self, node: &NodeFact) -> bool {
        self.taint.auto && self.requires(node)
    }

    /// True when nobody can tell which nodes have to keep the runtime-required taint for the Skyhook.
    #[must_use]
    pub const fn requires_unknown(&self) -> bool {
        !self.deleting && self.taint.is_unreadable()
    }
}
