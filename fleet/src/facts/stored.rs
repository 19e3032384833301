//! What decisions need of revisions, policies and the states of roll-outs.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use skyhook_crds::DeploymentPolicySpec;
use skyhook_crds::names;
use skyhook_crds::policy::CheckedPolicy;
use skyhook_crds::revision::RevisionData;
use skyhook_crds::rollout::{self, RolloutStateSpec};

use super::{WirePolicy, WireRollout};

/// A revision.
#[derive(Clone, Debug)]
pub struct RevisionFact {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// Name of its Skyhook.
    pub skyhook: String,
    /// UID of the Skyhook that it was written for. Another one of the same name may exist now.
    pub owner: String,
    /// An owner reference names the Skyhook, as earlier versions wrote it: the revision goes with it.
    pub goes_with_owner: bool,
    pub number: i64,
    pub data: Option<Arc<RevisionData>>,
}

impl RevisionFact {
    /// The slim copy of a `ControllerRevision`.
    #[must_use]
    pub fn new(object: ControllerRevision) -> Self {
        let metadata = object.metadata;
        let owners = metadata.owner_references.unwrap_or_default();
        let owner = owners.into_iter().find(|owner| owner.kind == "Skyhook");
        let goes_with_owner = owner.is_some();
        let mut annotations = metadata.annotations.unwrap_or_default();
        let mut labels = metadata.labels.unwrap_or_default();
        let (skyhook, uid) = owner.map_or_else(Default::default, |owner| (owner.name, owner.uid));
        Self {
            name: metadata.name.unwrap_or_default(),
            uid: metadata.uid.unwrap_or_default(),
            resource_version: metadata.resource_version.unwrap_or_default(),
            skyhook: labels.remove(names::REVISION_OF).unwrap_or(skyhook),
            owner: annotations.remove(names::WRITTEN_FOR).unwrap_or(uid),
            goes_with_owner,
            number: object.revision,
            data: object
                .data
                .and_then(|data| RevisionData::read(data.0).ok())
                .map(Arc::new),
        }
    }
}

/// A DeploymentPolicy.
#[derive(Clone, Debug)]
pub struct PolicyFact {
    pub name: String,
    pub spec: Result<DeploymentPolicySpec, String>,
    /// The checked spec, or everything that is wrong with it.
    pub checked: Result<Arc<CheckedPolicy>, String>,
}

impl PolicyFact {
    /// The slim copy of a DeploymentPolicy.
    #[must_use]
    pub fn new(object: WirePolicy) -> Self {
        let spec: Result<DeploymentPolicySpec, String> =
            serde_json::from_value(object.spec).map_err(|e| format!("spec cannot be read: {e}"));
        let checked = spec.as_ref().map_err(Clone::clone).and_then(|spec| {
            let checked = spec.check().map_err(|errors| errors.to_string())?;
            Ok(Arc::new(checked))
        });
        Self {
            name: object.metadata.name.unwrap_or_default(),
            spec,
            checked,
        }
    }
}

/// Where a roll-out in batches stands.
#[derive(Clone, Debug)]
pub struct RolloutFact {
    /// Name of the Skyhook that it is about.
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// UID of the Skyhook that it is about.
    pub owner: String,
    /// An owner reference names the Skyhook: the state goes with it.
    pub goes_with_owner: bool,
    /// The state, or why it cannot be used: a newer version wrote it, or it cannot be read. It is not written over then.
    pub spec: Result<Arc<RolloutStateSpec>, String>,
}

impl RolloutFact {
    /// The slim copy of a `RolloutState`.
    #[must_use]
    pub fn new(object: WireRollout) -> Self {
        let owners = object.metadata.owner_references.unwrap_or_default();
        let owner = owners.into_iter().find(|owner| owner.kind == "Skyhook");
        let mut annotations = object.metadata.annotations.unwrap_or_default();
        let written_for = annotations.remove(names::WRITTEN_FOR);
        let format = object
            .spec
            .get("format")
            .and_then(serde_json::Value::as_i64);
        let spec = match format {
            Some(format) if format > i64::from(rollout::FORMAT) => Err(format!(
                "a newer version wrote it (form {format}, this one knows {}): upgrade the coordinator",
                rollout::FORMAT
            )),
            Some(_) | None => serde_json::from_value(object.spec)
                .map(Arc::new)
                .map_err(|e| format!("spec cannot be read: {e}")),
        };
        Self {
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
            goes_with_owner: owner.is_some(),
            owner: owner
                .map(|owner| owner.uid)
                .or(written_for)
                .unwrap_or_default(),
            spec,
        }
    }
}
