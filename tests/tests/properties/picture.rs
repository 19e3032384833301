//! Arbitrary pictures of a cluster: every state that an object can be in, possible together or not.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::skyhook::SkyhookStatus;
use skyhook_fleet::effect::{AsOf, Effect, NodePatch};
use skyhook_fleet::index::{Change, Index, Kind, Mono};
use skyhook_fleet::settings::Settings;

use super::MONO;

#[path = "objects.rs"]
mod objects;
#[path = "policies.rs"]
mod policies;
pub(super) use objects::{lease_object, node_object, skyhook_object};
pub(super) use policies::{policy_object, rollout_object};

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
    taint: ATaint,
    /// Per Skyhook: the record, who stamped it, and whether it was edited since.
    records: [(u8, u8, bool); 2],
    /// Per Skyhook: what another implementation has left: nothing, a record of NodeWright (complete, in the middle, not
    /// readable), its cordon alone, or a record of an early version of NVIDIA Skyhook (with a version, and without).
    foreign: [u8; 2],
    /// Per Skyhook: no cordon, one of this lease, one of another.
    cordons: [u8; 2],
    was_unschedulable: bool,
    lease: Option<ALease>,
    /// The create of a lease is under way for this Skyhook.
    creating: Option<usize>,
    busy: bool,
}

/// What a Node says about the runtime-required taint.
#[derive(Clone, Debug)]
pub(super) struct ATaint {
    /// None, the configured one, the one of NodeWright, both, one of an earlier setting, or one with another effect.
    kind: u8,
    /// Whether we have put it there: no word, yes, no longer, and NodeWright has.
    mark: u8,
    /// No annotation of ours is there.
    new: bool,
    windows: bool,
    /// It was cordoned when the taint was taken off.
    cordoned: bool,
    /// What keeps autoscalers off: nothing, ours, somebody's, ours that somebody changed, and ours that somebody removed.
    protects: u8,
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
    /// Whether the agent reports no epoch, that of before, or that of now.
    epoch: u8,
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
    required: bool,
    auto: bool,
    cordon_after: bool,
    /// Nobody can tell which nodes it is for.
    unreadable: bool,
    /// Later ones wait until it is complete on all of its nodes.
    all: bool,
    /// How its nodes are drained.
    drains: u8,
}

#[derive(Clone, Debug)]
pub(super) struct Picture {
    nodes: Vec<ANode>,
    skyhooks: Vec<ASkyhook>,
    cap: Option<usize>,
    policy: Option<u8>,
    rollouts: [Option<u8>; 2],
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
        0..3_u8,
    );
    (shape, state, rest).prop_map(
        |(
            (skyhook, right_node, right_revision, granted),
            (phase, needs_drain, drain, stop),
            (deleting, malformed, package, busy, epoch),
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
            epoch,
        },
    )
}

fn a_taint() -> impl Strategy<Value = ATaint> {
    (
        prop_oneof![Just(0), 0..6_u8],
        0..4_u8,
        prop::bool::weighted(0.3),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        prop_oneof![Just(0), 0..5_u8],
    )
        .prop_map(|(kind, mark, new, windows, cordoned, protects)| ATaint {
            kind,
            mark,
            new,
            windows,
            cordoned,
            protects,
        })
}

pub(super) fn a_node() -> impl Strategy<Value = ANode> {
    let flags = (
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.9),
        any::<bool>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.1),
        a_taint(),
    );
    let record = || (0..5_u8, 0..5_u8, prop::bool::weighted(0.2));
    let records = (record(), record());
    let cordons = (0..3_u8, 0..3_u8, any::<bool>());
    let foreign = || prop_oneof![2 => Just(0), 1 => 0..7_u8];
    let lease = prop::option::weighted(0.5, a_lease());
    let creating = prop::option::weighted(0.1, 0..2_usize);
    (
        flags,
        records,
        (foreign(), foreign()),
        cordons,
        lease,
        creating,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(
                (control_plane, ready, unschedulable, tier, ignored, tainted, taint),
                records,
                foreign,
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
                taint,
                records: [records.0, records.1],
                foreign: [foreign.0, foreign.1],
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
        prop::bool::weighted(0.3),
        0..4_u8,
    );
    let taint = (any::<bool>(), any::<bool>(), any::<bool>(), seldom());
    (life, spec, taint).prop_map(
        |(
            (there, deleting, paused, disabled, invalid, adopted),
            (
                selects,
                interrupts,
                priority,
                budget,
                revision_there,
                has_status,
                policy,
                all,
                drains,
            ),
            (required, auto, cordon_after, unreadable),
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
                required,
                auto,
                cordon_after,
                unreadable,
                all,
                drains,
            }
        },
    )
}

pub(super) fn a_picture() -> impl Strategy<Value = Picture> {
    (
        prop::collection::vec(a_node(), 0..5),
        prop::collection::vec(a_skyhook(), 2),
        prop::option::of(0..4_usize),
        prop::option::of(0..5_u8),
        [prop::option::of(any::<u8>()), prop::option::of(any::<u8>())],
    )
        .prop_map(|(nodes, skyhooks, cap, policy, rollouts)| Picture {
            nodes,
            skyhooks,
            cap,
            policy,
            rollouts,
        })
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
                Mono::ZERO,
            );
            if lease.busy {
                index.begins(&Effect::GrantLease {
                    node: name.clone(),
                    at: version(),
                    batch: None,
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
    pace(&mut index, picture);
    index
}

/// Adds the policy and the states of roll-outs, and ends all lists.
fn pace(index: &mut Index, picture: &Picture) {
    if let Some(form) = picture.policy {
        index.apply(Change::Policy(wire(policy_object(form))), MONO);
    }
    for (at, form) in picture.rollouts.iter().enumerate() {
        if let Some(form) = form {
            index.apply(Change::Rollout(wire(rollout_object(at, *form))), MONO);
        }
    }
    for kind in Kind::ALL {
        index.apply(Change::Synced(kind), MONO);
    }
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
