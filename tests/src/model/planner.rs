//! The shipped coordinator's decisions: a modelled picture is spelled out as its real index, the real planner plans over
//! it, the real guard checks every effect, and what the model knows of the effects is read back.
//!
//! Resource versions are left to the model, so a picture is judged once however often and under whatever versions it
//! comes back.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use skyhook_crds::installed::{self, CordonRecord, Stamp};
use skyhook_crds::lease::{DrainState, InterruptionLeaseSpec, StopReason};
use skyhook_crds::names;
use skyhook_fleet::effect::{Effect, NodePatch};
use skyhook_fleet::facts::{
    WireLease, WireNode, WireNodeInfo, WireNodeSpec, WireNodeStatus, WireSkyhook,
};
use skyhook_fleet::guard;
use skyhook_fleet::index::{Change, Index, Kind, Mono};
use skyhook_fleet::plan::{self, Now};
use skyhook_fleet::settings::Settings;

use super::hash::FastHash;
use super::rules;
use super::state::{
    Content, Cordon, INSTALLS, Lease, MAX_NODES, Mark, Node, REVISIONS, Skyhook, UNINSTALLS, Uid,
};

/// What a coordinator decides from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Picture {
    pub nodes: [Node; MAX_NODES],
    pub leases: [Option<Lease>; MAX_NODES],
    pub skyhook: Skyhook,
    pub creating: [bool; MAX_NODES],
    /// Nodes that something outside the roll-out keeps off: a label, a taint, an agent that did not respond.
    pub blocked: [bool; MAX_NODES],
    pub count: u8,
    pub budget: u8,
    /// Nobody can tell which of two revisions came later.
    pub unordered: bool,
}

/// A write of a coordinator. Those to a lease are meant for the one with `uid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Write {
    Reserve {
        node: u8,
        lease: Lease,
    },
    Grant {
        node: u8,
        uid: Uid,
    },
    Stop {
        node: u8,
        uid: Uid,
        reason: Option<StopReason>,
    },
    Drain {
        node: u8,
        uid: Uid,
        state: DrainState,
    },
    /// Also when the agent did not accept in time.
    Withdraw {
        node: u8,
        uid: Uid,
        late: bool,
    },
    Release {
        node: u8,
        uid: Uid,
    },
    /// After a live GET has shown that no Node with this UID exists.
    ReleaseOfGoneNode {
        node: u8,
        uid: Uid,
        node_uid: u8,
    },
    Node {
        node: u8,
        change: NodeChange,
    },
    ReleaseSkyhook,
}

/// Changes to a Node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NodeChange {
    pub record: Option<Content>,
    /// `Some(None)` removes it.
    pub mark: Option<Option<Mark>>,
    /// `Some(None)` removes it.
    pub cordon: Option<Option<Cordon>>,
    pub unschedulable: Option<bool>,
}

struct Memory {
    settings: Settings,
    plans: HashMap<Picture, Rc<[Write]>, FastHash>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory {
        settings: Settings::default(),
        plans: HashMap::default(),
    });
}

/// What the coordinator writes next, given the picture.
#[must_use]
pub fn plan(picture: &Picture) -> Rc<[Write]> {
    MEMORY.with_borrow_mut(|memory| {
        if let Some(known) = memory.plans.get(picture) {
            return Rc::clone(known);
        }
        let index = index(picture);
        let mut writes = decide(&index, &memory.settings, Mono::ZERO, false);
        let in_vain = Mono::after(memory.settings.accept_timeout);
        for write in decide(&index, &memory.settings, in_vain, true) {
            let elsewhere = writes.iter().any(|w| match (w, &write) {
                (Write::Withdraw { node: a, .. }, Write::Withdraw { node: b, .. }) => a == b,
                _ => false,
            });
            if matches!(write, Write::Withdraw { .. }) && !elsewhere {
                writes.push(write);
            }
        }
        let writes: Rc<[Write]> = writes.into();
        memory.plans.insert(picture.clone(), Rc::clone(&writes));
        writes
    })
}

fn decide(index: &Index, settings: &Settings, mono: Mono, late: bool) -> Vec<Write> {
    let now = Now {
        mono,
        wall: Timestamp::UNIX_EPOCH,
    };
    let plan = plan::plan(&index.view(settings, now));
    plan.effects
        .iter()
        .filter(|effect| guard::check(index, settings, effect).is_ok())
        .filter_map(|effect| read(effect, late))
        .collect()
}

/// The part of an effect that the model knows.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "other effects write what the model leaves out"
)]
fn read(effect: &Effect, late: bool) -> Option<Write> {
    let node = |name: &str| rules::number(name);
    let write = match effect {
        Effect::ReserveLease { node: name, spec } => Write::Reserve {
            node: node(name),
            lease: Lease {
                node_uid: rules::number(&spec.node.uid),
                revision: rules::revision(&spec.revision),
                installed: rules::content(&spec.installed)?,
                result: spec
                    .stamp
                    .as_ref()
                    .filter(|stamp| stamp.has_result())
                    .map(|stamp| {
                        (
                            rules::number(&stamp.lease),
                            rules::number(&stamp.machine_id),
                        )
                    }),
                ..Lease::default()
            },
        },
        Effect::GrantLease { node: name, at, .. } => Write::Grant {
            node: node(name),
            uid: rules::number(&at.uid),
        },
        Effect::StopLease {
            node: name,
            at,
            stop,
            ..
        } => Write::Stop {
            node: node(name),
            uid: rules::number(&at.uid),
            reason: *stop,
        },
        Effect::SetDrain {
            node: name,
            at,
            drain,
        } => Write::Drain {
            node: node(name),
            uid: rules::number(&at.uid),
            state: drain.state,
        },
        Effect::WithdrawLease { node: name, at, .. } => Write::Withdraw {
            node: node(name),
            uid: rules::number(&at.uid),
            late,
        },
        Effect::ReleaseLease { node: name, at } => Write::Release {
            node: node(name),
            uid: rules::number(&at.uid),
        },
        Effect::ReleaseLeaseOfGoneNode {
            node: name,
            at,
            node_uid,
        } => Write::ReleaseOfGoneNode {
            node: node(name),
            uid: rules::number(&at.uid),
            node_uid: rules::number(node_uid),
        },
        Effect::PatchNode {
            node: name, patch, ..
        } => {
            let change = change(patch);
            if change == NodeChange::default() {
                return None;
            }
            Write::Node {
                node: node(name),
                change,
            }
        }
        Effect::ReleaseSkyhook { .. } => Write::ReleaseSkyhook,
        _ => return None,
    };
    Some(write)
}

fn change(patch: &NodePatch) -> NodeChange {
    let value = |key: &str| patch.annotations.get(key);
    NodeChange {
        record: value(&names::node_state(rules::SKYHOOK)).and_then(|states| {
            rules::content(&installed::parse_states("", states.as_deref(), false).ok()?)
        }),
        mark: value(&names::stamp(rules::SKYHOOK))
            .map(|stamp| Stamp::parse(stamp.as_deref()).map(|stamp| rules::mark(&stamp))),
        cordon: value(names::CORDON_OWNERS).map(|record| {
            let record = CordonRecord::parse(record.as_deref());
            record.owners.get(rules::SKYHOOK).map(|owner| Cordon {
                owner: rules::number(owner),
                was_unschedulable: record.was_unschedulable,
            })
        }),
        unschedulable: patch.unschedulable,
    }
}

fn index(picture: &Picture) -> Index {
    let mut index = Index::default();
    for kind in [
        Kind::Node,
        Kind::Skyhook,
        Kind::Lease,
        Kind::Revision,
        Kind::Policy,
    ] {
        index.apply(Change::Synced(kind), Mono::ZERO);
    }
    for (number, node) in picture.nodes.iter().enumerate().take(picture.count.into()) {
        let node = wire_node(number, node, picture.blocked[number]);
        index.apply(Change::Node(Box::new(node)), Mono::ZERO);
    }
    for (number, lease) in picture.leases.iter().enumerate() {
        if let Some(lease) = lease {
            index.apply(
                Change::Lease(Box::new(wire_lease(number, lease))),
                Mono::ZERO,
            );
        }
        // Set by hand, as it stands: a lease that is seen ends it.
        if picture.creating[number] && number < picture.count.into() {
            let mut spec = InterruptionLeaseSpec::default();
            rules::SKYHOOK_UID.clone_into(&mut spec.skyhook.uid);
            let reserve = Effect::ReserveLease {
                node: rules::node_name(number),
                spec: Box::new(spec),
            };
            index.begins(&reserve);
            index.ends(&reserve);
        }
    }
    if !picture.skyhook.gone {
        let skyhook = wire_skyhook(&picture.skyhook, picture.budget);
        index.apply(Change::Skyhook(Box::new(skyhook)), Mono::ZERO);
    }
    let uninstalls = picture.skyhook.revision >= INSTALLS;
    for revision in REVISIONS
        .into_iter()
        .filter(|r| (*r >= INSTALLS) == uninstalls)
    {
        index.apply(
            Change::Revision(Box::new(wire_revision(revision, picture))),
            Mono::ZERO,
        );
    }
    index
}

fn wire_node(number: usize, node: &Node, blocked: bool) -> WireNode {
    let mut annotations = BTreeMap::new();
    if let Some(states) = rules::annotation(node.record) {
        annotations.insert(names::node_state(rules::SKYHOOK), states);
    }
    if let Some(mark) = &node.mark {
        annotations.insert(
            names::stamp(rules::SKYHOOK),
            rules::stamp(number, mark).render(),
        );
    }
    if let Some(cordon) = &node.cordon {
        let record = rules::cordon_record(number, cordon);
        annotations.insert(names::CORDON_OWNERS.to_owned(), record.render());
    }
    let ready = if node.ready { "True" } else { "False" };
    WireNode {
        metadata: ObjectMeta {
            annotations: Some(annotations),
            labels: blocked.then(|| [(names::IGNORE.to_owned(), "true".to_owned())].into()),
            name: Some(rules::node_name(number)),
            resource_version: Some("1".to_owned()),
            uid: Some(rules::node_uid(number, node.uid)),
            ..ObjectMeta::default()
        },
        spec: WireNodeSpec {
            unschedulable: Some(node.unschedulable),
            ..WireNodeSpec::default()
        },
        status: WireNodeStatus {
            conditions: serde_json::from_value(json!([{ "type": "Ready", "status": ready }]))
                .unwrap_or_default(),
            node_info: WireNodeInfo {
                boot_id: format!("id-{}", node.boot),
                machine_id: format!("id-{}", node.machine),
            },
        },
    }
}

fn wire_lease(number: usize, lease: &Lease) -> WireLease {
    let real = rules::real_lease(number, lease);
    WireLease {
        metadata: real.metadata,
        spec: serde_json::to_value(real.spec).unwrap_or_default(),
        status: serde_json::to_value(real.status).unwrap_or_default(),
        ..WireLease::default()
    }
}

fn wire_skyhook(skyhook: &Skyhook, budget: u8) -> WireSkyhook {
    let annotations = [
        (skyhook.disabled, names::DISABLE),
        (skyhook.paused, names::PAUSE),
    ];
    let annotations = annotations
        .into_iter()
        .filter(|(is_set, _)| *is_set)
        .map(|(_, key)| (key.to_owned(), "true".to_owned()));
    WireSkyhook {
        metadata: ObjectMeta {
            annotations: Some(annotations.collect()),
            name: Some(rules::SKYHOOK.to_owned()),
            uid: Some(rules::SKYHOOK_UID.to_owned()),
            generation: Some(i64::from(skyhook.revision)),
            resource_version: Some("1".to_owned()),
            finalizers: Some(vec![names::SKYHOOK_FINALIZER.to_owned()]),
            deletion_timestamp: skyhook.deleting.then_some(Time(Timestamp::UNIX_EPOCH)),
            ..ObjectMeta::default()
        },
        spec: json!({
            "interruptionBudget": { "count": budget },
            "packages": { rules::PACKAGE: {
                "version": rules::version(skyhook.revision),
                "image": "example.com/something",
                "uninstall": rules::uninstall(skyhook.revision),
            } },
        }),
        ..WireSkyhook::default()
    }
}

fn wire_revision(revision: u8, picture: &Picture) -> ControllerRevision {
    // An uninstall that is called off leads back to the revision before, which gets the highest number then.
    let called_off = picture.skyhook.revision == INSTALLS && !picture.skyhook.deleting;
    let number = match revision {
        UNINSTALLS if called_off => 1,
        _ if picture.unordered => 0,
        _ => i64::from(revision),
    };
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(rules::revision_name(revision)),
            uid: Some(format!("revision-{revision}")),
            resource_version: Some("1".to_owned()),
            labels: Some([(names::REVISION_OF.to_owned(), rules::SKYHOOK.to_owned())].into()),
            annotations: Some(
                [(names::WRITTEN_FOR.to_owned(), rules::SKYHOOK_UID.to_owned())].into(),
            ),
            ..ObjectMeta::default()
        },
        data: serde_json::to_value(rules::revision_data(revision))
            .ok()
            .map(RawExtension),
        revision: number,
    }
}
