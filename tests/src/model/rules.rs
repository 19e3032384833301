//! The shipped rules, asked about modelled objects: each is spelled out as the real API object, and
//! [`skyhook_crds::lease::protocol`] judges that. Answers are kept, because the same lease is asked about in many states.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use skyhook_crds::installed::{self, CordonRecord, PackageStates, Stamp};
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{
    Drain, Granted, InterruptionLease, InterruptionLeaseSpec, InterruptionLeaseStatus, NodeRef,
    PackageReport, SkyhookRef, Stop,
};
use skyhook_crds::package::{PackageStatus, Uninstall};
use skyhook_crds::revision::{self, RevisionData};
use skyhook_crds::{Package, Stage, State as PackageState, names};

use super::hash::FastHash;
use super::state::{Content, Cordon, INSTALLS, Lease, Mark, REVISIONS, UNINSTALLS, Uid};

pub const SKYHOOK: &str = "sample";
pub const SKYHOOK_UID: &str = "skyhook";
pub const PACKAGE: &str = "something";

/// What the shipped rules say about a lease.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    pub duty: AgentDuty,
    pub may_run_disruptive: bool,
    pub may_retract_drained: bool,
    pub offers_drained: bool,
    pub wants_drain: bool,
}

thread_local! {
    static VERDICTS: RefCell<HashMap<(Lease, u8), Verdict, FastHash>> = RefCell::default();
    static FOREIGN: RefCell<HashMap<(Lease, u8), bool, FastHash>> = RefCell::default();
}

/// Whether what the lease says is of another machine than this.
#[must_use]
pub fn is_of_another_machine(lease: &Lease, machine: u8) -> bool {
    FOREIGN.with_borrow_mut(|known| {
        *known.entry((*lease, machine)).or_insert_with(|| {
            protocol::is_of_another_host(&real_lease(0, lease), &format!("id-{machine}"), "")
        })
    })
}

/// Judges a lease, for the agent of the Node with this UID.
#[must_use]
pub fn judge(lease: &Lease, node_uid: u8) -> Verdict {
    VERDICTS.with_borrow_mut(|known| {
        *known.entry((*lease, node_uid)).or_insert_with(|| {
            let real = real_lease(0, lease);
            let node_uid = self::node_uid(0, node_uid);
            Verdict {
                duty: protocol::agent_duty(&real, &node_uid),
                may_run_disruptive: protocol::may_run_disruptive(&real, &node_uid),
                may_retract_drained: protocol::may_retract_drained(&real),
                offers_drained: protocol::offers_drained(&real),
                wants_drain: protocol::wants_drain(&real),
            }
        })
    })
}

#[must_use]
pub fn node_name(node: usize) -> String {
    format!("node-{node}")
}

#[must_use]
pub fn node_uid(node: usize, uid: u8) -> String {
    format!("node-{node}-{uid}")
}

#[must_use]
pub fn lease_uid(node: usize, uid: Uid) -> String {
    if uid == 0 {
        String::new()
    } else {
        format!("lease-{node}-{uid}")
    }
}

/// The number in a UID or another made-up name.
#[must_use]
pub fn number(name: &str) -> u8 {
    name.rsplit('-')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or_default()
}

/// The one package in a revision.
#[must_use]
pub fn revision_data(revision: u8) -> RevisionData {
    let package = serde_json::from_value::<Package>(serde_json::json!({
        "name": PACKAGE,
        "version": version(revision),
        "image": "example.com/something",
    }));
    let packages = package.map(|mut package| {
        package.uninstall = uninstall(revision);
        (PACKAGE.to_owned(), package)
    });
    RevisionData::new(packages.into_iter().collect(), false, BTreeSet::new())
}

/// The package's version in a revision.
#[must_use]
pub fn version(revision: u8) -> String {
    format!("1.{}.0", revision.min(INSTALLS))
}

/// The package's `uninstall` in a revision.
#[must_use]
pub fn uninstall(revision: u8) -> Option<Uninstall> {
    (revision >= INSTALLS).then_some(Uninstall {
        enabled: true,
        apply: revision == UNINSTALLS,
    })
}

/// The revision of this name.
#[must_use]
pub fn revision(name: &str) -> u8 {
    let mut all = REVISIONS.into_iter();
    all.find(|revision| revision_name(*revision) == name)
        .unwrap_or_default()
}

#[must_use]
pub fn revision_name(revision: u8) -> String {
    revision::name(SKYHOOK, SKYHOOK_UID, &revision_data(revision))
}

/// The package states that stand for a content.
#[must_use]
pub fn states(content: Content) -> PackageStates {
    if content == Content::NOTHING {
        return PackageStates::new();
    }
    let revision = (content.0 - 1) / 2;
    let complete = content == Content::complete(revision);
    let status = PackageStatus {
        name: PACKAGE.to_owned(),
        version: version(revision),
        image: "example.com/something".to_owned(),
        container_sha: None,
        stage: if complete {
            Stage::PostInterrupt
        } else if revision == UNINSTALLS {
            Stage::UninstallInterrupt
        } else {
            Stage::Config
        },
        state: if complete {
            PackageState::Complete
        } else {
            PackageState::InProgress
        },
        restarts: 0,
    };
    [(format!("{PACKAGE}|{}", status.version), status)].into()
}

/// The reverse of [`states`].
#[must_use]
pub fn content(states: &PackageStates) -> Option<Content> {
    Content::ALL
        .into_iter()
        .find(|content| self::states(*content) == *states)
}

#[must_use]
pub fn stamp(node: usize, mark: &Mark) -> Stamp {
    let has_result = mark.lease != 0;
    let number = |n: u8| {
        if has_result {
            format!("id-{n}")
        } else {
            String::new()
        }
    };
    Stamp {
        epoch: String::new(),
        format: 0,
        lease: lease_uid(node, mark.lease),
        revision: if has_result {
            revision_name(mark.revision)
        } else {
            String::new()
        },
        boot_id: number(mark.boot),
        machine_id: number(mark.machine),
        host_id: String::new(),
        reboots: Default::default(),
        node_machine_id: number(mark.node_machine),
        granted: lease_uid(node, mark.granted),
        was_ready: mark.was_ready,
        // The model takes nothing over, and leaves nothing behind.
        settled: false,
        left_behind: Default::default(),
        // The model's drains have no deadline.
        drain_timed_out: String::new(),
        states: mark.states.map(digest).unwrap_or_default(),
        entries: mark
            .states
            .filter(|_| mark.granted != 0)
            .map(|content| installed::digests(&states(content))),
        // The model does not number its nodes.
        order: None,
        picked: String::new(),
    }
}

/// The reverse of [`stamp`].
#[must_use]
pub fn mark(stamp: &Stamp) -> Mark {
    Mark {
        lease: number(&stamp.lease),
        revision: revision(&stamp.revision),
        boot: number(&stamp.boot_id),
        machine: number(&stamp.machine_id),
        node_machine: number(&stamp.node_machine_id),
        granted: number(&stamp.granted),
        was_ready: stamp.was_ready,
        states: Content::ALL
            .into_iter()
            .find(|c| digest(*c) == stamp.states || rendered(*c) == stamp.states),
    }
}

/// The annotation's value for a content; a Node with nothing on it carries none.
#[must_use]
pub fn annotation(content: Content) -> Option<String> {
    (content != Content::NOTHING).then(|| installed::render_states(&states(content)))
}

/// An empty record is as good as none.
fn rendered(content: Content) -> String {
    installed::states_digest(&installed::render_states(&states(content)))
}

fn digest(content: Content) -> String {
    installed::states_digest(&annotation(content).unwrap_or_default())
}

#[must_use]
pub fn cordon_record(node: usize, cordon: &Cordon) -> CordonRecord {
    CordonRecord {
        was_unschedulable: cordon.was_unschedulable,
        owners: [(SKYHOOK.to_owned(), lease_uid(node, cordon.owner))].into(),
        ..CordonRecord::default()
    }
}

/// The API object that a modelled lease stands for.
#[must_use]
pub fn real_lease(node: usize, lease: &Lease) -> InterruptionLease {
    let uid = lease_uid(node, lease.uid);
    let time = || Time(Timestamp::UNIX_EPOCH);
    let mark = lease.result.map(|(lease, machine)| Mark {
        lease,
        machine,
        ..Mark::default()
    });
    let spec = InterruptionLeaseSpec {
        node: NodeRef {
            name: node_name(node),
            uid: node_uid(node, lease.node_uid),
        },
        skyhook: SkyhookRef {
            name: SKYHOOK.to_owned(),
            uid: SKYHOOK_UID.to_owned(),
            generation: i64::from(lease.revision),
        },
        revision: revision_name(lease.revision),
        installed: states(lease.installed),
        stamp: mark.map(|mark| stamp(node, &mark)),
        granted: lease.granted.then(Granted::default),
        drain: Drain {
            state: lease.drain,
            ..Drain::default()
        },
        stop: lease.stop.map(|reason| Stop {
            reason,
            since: String::new(),
            revision: None,
            message: String::new(),
        }),
        ..InterruptionLeaseSpec::default()
    };
    let mut real = InterruptionLease::new(&node_name(node), spec);
    let forced = [(names::FORCE_RELEASE.to_owned(), uid.clone())];
    real.metadata = ObjectMeta {
        name: Some(node_name(node)),
        annotations: lease.forced.then(|| forced.into()),
        deletion_timestamp: lease.deleting.then(time),
        finalizers: Some(vec![names::LEASE_FINALIZER.to_owned()]),
        resource_version: Some("1".to_owned()),
        uid: Some(uid),
        ..ObjectMeta::default()
    };
    real.status = lease.phase.map(|phase| InterruptionLeaseStatus {
        phase: Some(phase),
        needs_drain: Some(lease.needs_drain),
        boot_id: format!("id-{}", lease.boot),
        machine_id: format!("id-{}", lease.machine),
        format: skyhook_crds::lease::FORMAT,
        packages: states(lease.packages)
            .into_iter()
            .map(|(k, s)| (k, report(s)))
            .collect(),
        ..InterruptionLeaseStatus::default()
    });
    real
}

fn report(status: PackageStatus) -> PackageReport {
    PackageReport {
        pending: false,
        left_behind: false,
        name: status.name,
        version: status.version,
        image: status.image,
        container_sha: status.container_sha,
        stage: status.stage,
        state: status.state,
        restarts: status.restarts,
        image_digest: None,
        lacks: String::new(),
        message: String::new(),
        since: None,
    }
}
