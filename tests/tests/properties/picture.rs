//! Arbitrary pictures of a cluster: every state that an object can be in, possible together or not.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use skyhook_crds::installed::{CordonRecord, Stamp, states_digest};
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::names;
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_fleet::effect::{AsOf, Effect, NodePatch};
use skyhook_fleet::index::{Change, Index, Kind};
use skyhook_fleet::settings::Settings;

use super::MONO;

pub(super) const NAMES: [&str; 2] = ["alpha", "beta"];
const VERSION: &str = "1.0.0";

/// One Node and what stands on it.
#[derive(Clone, Debug)]
pub(super) struct ANode {
    control_plane: bool,
    ready: bool,
    unschedulable: bool,
    tier: bool,
    ignored: bool,
    tainted: bool,
    /// Per Skyhook: the record, who stamped it, and whether it was edited since.
    records: [(u8, u8, bool); 2],
    /// Per Skyhook: no cordon, one of this lease, one of another.
    cordons: [u8; 2],
    was_unschedulable: bool,
    lease: Option<ALease>,
    /// The create of a lease is under way for this Skyhook.
    creating: Option<usize>,
    busy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ALease {
    /// One of ours, or one that is gone.
    skyhook: usize,
    right_node: bool,
    right_revision: bool,
    granted: bool,
    phase: u8,
    needs_drain: bool,
    drain: u8,
    stop: u8,
    deleting: bool,
    malformed: bool,
    package: u8,
    busy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ASkyhook {
    pub(super) there: bool,
    deleting: bool,
    paused: bool,
    disabled: bool,
    invalid: bool,
    adopted: bool,
    selects: bool,
    interrupts: bool,
    priority: i32,
    budget: u8,
    pub(super) revision_there: bool,
    has_status: bool,
    /// It names a DeploymentPolicy.
    policy: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Picture {
    nodes: Vec<ANode>,
    skyhooks: Vec<ASkyhook>,
    cap: Option<usize>,
}

pub(super) fn a_lease() -> impl Strategy<Value = ALease> {
    let shape = (
        0..3_usize,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.8),
        any::<bool>(),
    );
    let state = (0..9_u8, any::<bool>(), 0..4_u8, 0..8_u8);
    let rest = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.05),
        0..4_u8,
        prop::bool::weighted(0.1),
    );
    (shape, state, rest).prop_map(
        |(
            (skyhook, right_node, right_revision, granted),
            (phase, needs_drain, drain, stop),
            (deleting, malformed, package, busy),
        )| ALease {
            skyhook,
            right_node,
            right_revision,
            granted,
            phase,
            needs_drain,
            drain,
            stop,
            deleting,
            malformed,
            package,
            busy,
        },
    )
}

pub(super) fn a_node() -> impl Strategy<Value = ANode> {
    let flags = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
    );
    let record = || (0..5_u8, 0..5_u8, prop::bool::weighted(0.2));
    let records = (record(), record());
    let cordons = (0..3_u8, 0..3_u8, any::<bool>());
    let lease = prop::option::weighted(0.5, a_lease());
    let creating = prop::option::weighted(0.1, 0..2_usize);
    (
        flags,
        records,
        cordons,
        lease,
        creating,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(
                (control_plane, ready, unschedulable, tier, ignored, tainted),
                records,
                cordons,
                lease,
                creating,
                busy,
            )| ANode {
                control_plane,
                ready,
                unschedulable,
                tier,
                ignored,
                tainted,
                records: [records.0, records.1],
                cordons: [cordons.0, cordons.1],
                was_unschedulable: cordons.2,
                lease,
                creating,
                busy,
            },
        )
}

pub(super) fn a_skyhook() -> impl Strategy<Value = ASkyhook> {
    let often = || prop::bool::weighted(0.9);
    let seldom = || prop::bool::weighted(0.1);
    let life = (often(), seldom(), seldom(), seldom(), seldom(), often());
    let spec = (
        any::<bool>(),
        any::<bool>(),
        1..3_i32,
        0..6_u8,
        often(),
        any::<bool>(),
        seldom(),
    );
    (life, spec).prop_map(
        |(
            (there, deleting, paused, disabled, invalid, adopted),
            (selects, interrupts, priority, budget, revision_there, has_status, policy),
        )| {
            ASkyhook {
                there,
                deleting,
                paused,
                disabled,
                invalid,
                adopted,
                selects,
                interrupts,
                priority,
                budget,
                revision_there,
                has_status,
                policy,
            }
        },
    )
}

pub(super) fn a_picture() -> impl Strategy<Value = Picture> {
    (
        prop::collection::vec(a_node(), 0..5),
        prop::collection::vec(a_skyhook(), 2),
        prop::option::of(0..4_usize),
    )
        .prop_map(|(nodes, skyhooks, cap)| Picture {
            nodes,
            skyhooks,
            cap,
        })
}

fn package(skyhook: &ASkyhook) -> Value {
    let mut package = json!({ "version": VERSION, "image": "example.com/one" });
    if skyhook.interrupts {
        package["interrupt"] = json!({ "type": "reboot" });
    }
    if skyhook.invalid {
        package["dependsOn"] = json!({ "one": VERSION });
    }
    package
}

pub(super) fn skyhook_object(at: usize, skyhook: &ASkyhook) -> Value {
    let name = NAMES[at];
    let mut metadata = json!({
        "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7", "generation": 3, "annotations": {},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    });
    if skyhook.adopted {
        metadata["finalizers"] = json!([names::SKYHOOK_FINALIZER]);
    }
    if skyhook.deleting {
        metadata["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    for (annotation, set) in [
        (names::PAUSE, skyhook.paused),
        (names::DISABLE, skyhook.disabled),
    ] {
        if set {
            metadata["annotations"][annotation] = json!("true");
        }
    }
    let mut spec = json!({ "priority": skyhook.priority, "packages": { "one": package(skyhook) } });
    if skyhook.selects {
        spec["nodeSelectors"] = json!({ "matchLabels": { "tier": "a" } });
    }
    match skyhook.budget {
        0 => spec["interruptionBudget"] = json!({ "count": 0 }),
        1 => spec["interruptionBudget"] = json!({ "count": 1 }),
        2 => spec["interruptionBudget"] = json!({ "percent": 50 }),
        3 => spec["interruptionBudget"] = json!({ "count": 3, "countUnavailable": true }),
        _ => {}
    }
    if skyhook.policy {
        spec["deploymentPolicy"] = json!("tuned");
    }
    if skyhook.interrupts {
        spec["drain"] = json!({ "timeout": "90s" });
    }
    let mut object = json!({ "metadata": metadata, "spec": spec });
    if skyhook.has_status {
        object["status"] =
            json!({ "status": "in_progress", "observedGeneration": 2, "completeNodes": "0/1" });
    }
    object
}

fn states(record: u8) -> Option<String> {
    let (stage, state) = match record {
        0 => return None,
        1 => return Some("{".to_owned()),
        2 => ("apply", "in_progress"),
        3 => ("config", "complete"),
        _ => ("config", "erroring"),
    };
    let entry = json!({ "name": "one", "version": VERSION, "image": "example.com/one", "stage": stage, "state": state });
    Some(json!({ format!("one|{VERSION}"): entry }).to_string())
}

pub(super) fn node_object(name: &str, node: &ANode, revisions: &[String]) -> Value {
    let mut annotations = json!({});
    let lease_uid = format!("lease-{name}");
    let mut owners = CordonRecord {
        was_unschedulable: node.was_unschedulable,
        ..CordonRecord::default()
    };
    for (at, skyhook) in NAMES.iter().enumerate() {
        let (record, stamped, edited) = node.records[at];
        let states = states(record);
        if let Some(states) = &states {
            annotations[names::node_state(skyhook)] = json!(states);
        }
        let mut stamp = Stamp {
            states: states_digest(states.as_deref().unwrap_or_default()),
            ..Stamp::default()
        };
        if edited {
            stamp.states = "another".to_owned();
        }
        match stamped {
            1 => stamp.granted.clone_from(&lease_uid),
            2 => stamp.lease.clone_from(&lease_uid),
            3 => stamp.lease = "another".to_owned(),
            _ => {}
        }
        if matches!(stamped, 2 | 3) {
            stamp.revision = revisions.get(at).cloned().unwrap_or_default();
            "boot".clone_into(&mut stamp.epoch);
        }
        if stamped > 0 {
            annotations[names::stamp(skyhook)] = json!(stamp.render());
        }
        let owner = match node.cordons[at] {
            0 => continue,
            1 => lease_uid.clone(),
            _ => "another".to_owned(),
        };
        owners.owners.insert((*skyhook).to_owned(), owner);
    }
    if !owners.owners.is_empty() {
        annotations[names::CORDON_OWNERS] = json!(owners.render());
    }
    let mut labels = json!({ "tier": if node.tier { "a" } else { "b" } });
    if node.control_plane {
        labels[names::CONTROL_PLANE] = json!("");
    }
    if node.ignored {
        labels[names::IGNORE] = json!("true");
    }
    let taints = if node.tainted {
        json!([{ "key": "special", "effect": "NoSchedule" }])
    } else {
        json!([])
    };
    json!({
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "resourceVersion": "9", "labels": labels, "annotations": annotations,
        },
        "spec": { "unschedulable": node.unschedulable, "taints": taints },
        "status": {
            "nodeInfo": { "bootID": "boot" },
            "conditions": [{ "type": "Ready", "status": if node.ready { "True" } else { "False" } }],
        },
    })
}

pub(super) fn lease_object(name: &str, lease: &ALease, revisions: &[String]) -> Value {
    let skyhook = NAMES.get(lease.skyhook).unwrap_or(&"gone");
    let mut metadata = json!({
        "name": name, "uid": format!("lease-{name}"), "resourceVersion": "8", "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names::LEASE_FINALIZER],
    });
    if lease.deleting {
        metadata["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    let drain = ["NotRequested", "Waiting", "Draining", "Drained"][usize::from(lease.drain) % 4];
    let revision = revisions
        .get(lease.skyhook)
        .filter(|_| lease.right_revision);
    let mut spec = json!({
        "node": { "name": name, "uid": if lease.right_node { format!("uid-{name}") } else { "another".to_owned() } },
        "skyhook": { "name": skyhook, "uid": format!("uid-{skyhook}") },
        "revision": revision.cloned().unwrap_or_else(|| "another".to_owned()),
        "drain": {
            "state": drain,
            "since": "2026-01-01T00:00:00Z",
        },
    });
    if lease.granted {
        spec["granted"] = json!({ "by": "x", "at": "2026-01-01T00:00:00Z" });
    }
    let reasons = [
        "NewRevision",
        "Paused",
        "Disabled",
        "Deleted",
        "Edited",
        "DrainTimedOut",
    ];
    if let Some(reason) = reasons.get(usize::from(lease.stop)) {
        spec["stop"] = json!({ "reason": reason, "since": "2026-01-01T00:00:00Z" });
    }
    let phases = [
        "Accepted",
        "Preparing",
        "AwaitingDrain",
        "Running",
        "Erroring",
        "Complete",
        "Stopped",
    ];
    let mut object = json!({ "metadata": metadata, "spec": spec });
    if let Some(phase) = phases.get(usize::from(lease.phase)) {
        let packages: Value = states(lease.package + 1)
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(json!({}));
        object["status"] = json!({
            "phase": phase, "needsDrain": lease.needs_drain, "bootID": "boot", "machineID": "m", "packages": packages,
        });
    }
    if lease.malformed {
        object["spec"]["node"] = json!(1);
    }
    object
}

pub(super) fn wire<T: serde::de::DeserializeOwned>(object: Value) -> Box<T> {
    Box::new(serde_json::from_value(object).expect("the object was built to be readable"))
}

pub(super) fn index(picture: &Picture) -> Index {
    let mut index = Index::default();
    for (at, skyhook) in picture.skyhooks.iter().enumerate().filter(|(_, s)| s.there) {
        index.apply(Change::Skyhook(wire(skyhook_object(at, skyhook))), MONO);
    }
    let revisions: Vec<String> = NAMES
        .iter()
        .map(|name| {
            let checked = index
                .picture()
                .skyhooks()
                .get(*name)
                .and_then(|s| s.checked.as_ref().ok());
            checked.map(|c| c.revision.clone()).unwrap_or_default()
        })
        .collect();
    for (at, skyhook) in picture.skyhooks.iter().enumerate() {
        let checked = index
            .picture()
            .skyhooks()
            .get(NAMES[at])
            .and_then(|s| s.checked.as_ref().ok());
        if let Some(checked) = checked.filter(|_| skyhook.revision_there) {
            let object = json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {
                    "name": checked.revision, "uid": "r", "resourceVersion": "5",
                    "ownerReferences": [{ "apiVersion": "x", "kind": "Skyhook", "name": NAMES[at], "uid": format!("uid-{}", NAMES[at]) }],
                },
                "revision": 1,
                "data": checked.data,
            });
            index.apply(Change::Revision(wire(object)), MONO);
        }
    }
    for (at, node) in picture.nodes.iter().enumerate() {
        let name = format!("worker-{at}");
        index.apply(
            Change::Node(wire(node_object(&name, node, &revisions))),
            MONO,
        );
        if let Some(lease) = &node.lease {
            index.apply(
                Change::Lease(wire(lease_object(&name, lease, &revisions))),
                Duration::ZERO,
            );
            if lease.busy {
                index.begins(&Effect::GrantLease {
                    node: name.clone(),
                    at: version(),
                });
            }
        } else if let Some(skyhook) = node.creating {
            let mut spec = InterruptionLeaseSpec::default();
            spec.skyhook.uid = format!("uid-{}", NAMES[skyhook]);
            let reserve = Effect::ReserveLease {
                node: name.clone(),
                spec: Box::new(spec),
            };
            index.begins(&reserve);
            index.ends(&reserve);
        }
        if node.busy {
            index.begins(&Effect::PatchNode {
                node: name,
                at: version(),
                patch: NodePatch::default(),
                why: BTreeSet::new(),
            });
        }
    }
    for kind in [
        Kind::Node,
        Kind::Skyhook,
        Kind::Lease,
        Kind::Revision,
        Kind::Policy,
    ] {
        index.apply(Change::Synced(kind), MONO);
    }
    index
}

fn version() -> AsOf {
    AsOf {
        uid: "u".to_owned(),
        resource_version: "1".to_owned(),
    }
}

/// A Skyhook of the picture once its status is written.
pub(super) fn with_status(picture: &Picture, name: &str, status: &SkyhookStatus) -> Change {
    let at = usize::from(name != NAMES[0]);
    let mut object = skyhook_object(at, &picture.skyhooks[at]);
    object["status"] = json!(status);
    Change::Skyhook(wire(object))
}

pub(super) fn settings(picture: &Picture) -> Settings {
    Settings {
        max_concurrent_nodes: picture.cap,
        ..Settings::default()
    }
}
