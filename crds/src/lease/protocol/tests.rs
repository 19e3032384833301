use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::installed::Stamp;
use crate::lease::{Drain, Granted, InterruptionLeaseSpec, InterruptionLeaseStatus, NodeRef, Stop};

const NODE: &str = "node-uid";

struct Given(InterruptionLease);

impl Given {
    fn granted() -> Self {
        let mut lease = InterruptionLease::new(
            "worker-1",
            InterruptionLeaseSpec {
                node: NodeRef {
                    name: "worker-1".into(),
                    uid: NODE.into(),
                },
                granted: Some(Granted::default()),
                ..InterruptionLeaseSpec::default()
            },
        );
        lease.metadata.uid = Some("lease-uid".into());
        Self(lease)
    }

    fn phase(mut self, phase: Phase) -> Self {
        self.0
            .status
            .get_or_insert_with(InterruptionLeaseStatus::default)
            .phase = Some(phase);
        self
    }

    fn needs_drain(mut self) -> Self {
        self.0
            .status
            .get_or_insert_with(InterruptionLeaseStatus::default)
            .needs_drain = Some(true);
        self
    }

    fn stop(mut self, reason: StopReason) -> Self {
        self.0.spec.stop = Some(Stop {
            reason,
            since: String::new(),
            revision: None,
            message: String::new(),
        });
        self
    }

    fn deleting(mut self) -> Self {
        self.0.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
        self
    }

    fn drained(mut self) -> Self {
        self.0.spec.drain = Drain {
            state: DrainState::Drained,
            ..Drain::default()
        };
        self
    }
}

#[test]
fn a_reason_to_stop_of_a_newer_version_stops_the_agent() {
    let spec = serde_json::json!({
        "node": { "name": "worker-1", "uid": "n" }, "skyhook": { "name": "s", "uid": "s" }, "revision": "r",
        "stop": { "reason": "MoonIsFull", "since": "t" },
    });
    let spec: InterruptionLeaseSpec = serde_json::from_value(spec).unwrap();
    assert_eq!(spec.stop.unwrap().reason, StopReason::Unknown);
    let told = Given::granted()
        .phase(Phase::Running)
        .stop(StopReason::Unknown);
    assert_eq!(
        agent_duty(&told.0, NODE),
        AgentDuty::Stop(StopReason::Unknown)
    );
}

#[test]
fn duty_of_the_agent() {
    let mut reserved = Given::granted();
    reserved.0.spec.granted = None;
    for (name, given, want) in [
        (
            "reserved only",
            reserved,
            AgentDuty::Ignore(IgnoreReason::NotGranted),
        ),
        ("granted", Given::granted(), AgentDuty::Accept),
        (
            "withdrawn",
            Given::granted().deleting(),
            AgentDuty::Ignore(IgnoreReason::Withdrawn),
        ),
        (
            "stopped before",
            Given::granted().stop(StopReason::Paused),
            AgentDuty::Ignore(IgnoreReason::Withdrawn),
        ),
        (
            "accepted",
            Given::granted().phase(Phase::Accepted),
            AgentDuty::Work,
        ),
        (
            "paused",
            Given::granted()
                .phase(Phase::Running)
                .stop(StopReason::Paused),
            AgentDuty::Hold,
        ),
        (
            "new revision",
            Given::granted()
                .phase(Phase::Preparing)
                .stop(StopReason::NewRevision),
            AgentDuty::Stop(StopReason::NewRevision),
        ),
        (
            "a phase of a later agent",
            Given::granted().phase(Phase::Unknown),
            AgentDuty::Work,
        ),
        (
            "a stop of a later coordinator",
            Given::granted()
                .phase(Phase::Running)
                .stop(StopReason::Unknown),
            AgentDuty::Stop(StopReason::Unknown),
        ),
        (
            "deleted while paused",
            Given::granted()
                .phase(Phase::Running)
                .stop(StopReason::Paused)
                .deleting(),
            AgentDuty::Stop(StopReason::Deleted),
        ),
        (
            "complete",
            Given::granted().phase(Phase::Complete),
            AgentDuty::Finished,
        ),
        (
            "complete and deleted",
            Given::granted().phase(Phase::Complete).deleting(),
            AgentDuty::Finished,
        ),
    ] {
        assert_eq!(agent_duty(&given.0, NODE), want, "{name}");
        assert_eq!(
            agent_duty(&given.0, "another"),
            AgentDuty::Ignore(IgnoreReason::OtherNode),
            "{name}, node replaced under the same name"
        );
    }
}

#[test]
fn nothing_disruptive_without_drained() {
    let accepted = || Given::granted().phase(Phase::AwaitingDrain);
    assert!(!may_run_disruptive(&accepted().0, NODE));
    assert!(may_run_disruptive(&accepted().drained().0, NODE));
    assert!(!may_run_disruptive(
        &accepted().drained().deleting().0,
        NODE
    ));
    assert!(!may_run_disruptive(
        &accepted().drained().stop(StopReason::DrainTimedOut).0,
        NODE
    ));
    assert!(!may_run_disruptive(&accepted().drained().0, "another"));
    assert!(
        !may_run_disruptive(&Given::granted().drained().0, NODE),
        "not accepted"
    );
}

#[test]
fn drained_is_taken_back_only_before_the_agent_took_it() {
    assert!(may_retract_drained(
        &Given::granted().phase(Phase::AwaitingDrain).drained().0
    ));
    assert!(!may_retract_drained(
        &Given::granted().phase(Phase::Running).drained().0
    ));
}

#[test]
fn a_drain_starts_when_the_agent_asks() {
    assert!(
        !wants_drain(&Given::granted().needs_drain().0),
        "not accepted"
    );
    assert!(wants_drain(
        &Given::granted().needs_drain().phase(Phase::Preparing).0
    ));
    assert!(
        !wants_drain(&Given::granted().phase(Phase::Preparing).0),
        "not asked"
    );
    assert!(!wants_drain(
        &Given::granted().needs_drain().phase(Phase::Running).0
    ));
    assert!(!wants_drain(
        &Given::granted()
            .needs_drain()
            .phase(Phase::AwaitingDrain)
            .deleting()
            .0
    ));
}

#[test]
fn a_result_is_taken_when_the_node_is_back() {
    let reported = |phase| {
        let mut lease = Given::granted().phase(phase).0;
        lease.status.as_mut().expect("set above").boot_id = "boot-2".into();
        lease
    };
    let node = NodeFacts {
        uid: NODE,
        boot_id: "boot-2",
        ready: true,
        was_ready: true,
        result_of: None,
    };
    for (name, phase, node, want) in [
        ("working", Phase::Running, node, ResultDuty::NotYet),
        ("done", Phase::Complete, node, ResultDuty::Take),
        ("stopped", Phase::Stopped, node, ResultDuty::Take),
        (
            "kubelet is behind",
            Phase::Complete,
            NodeFacts {
                boot_id: "boot-1",
                ..node
            },
            ResultDuty::AwaitBoot,
        ),
        (
            "not ready yet",
            Phase::Complete,
            NodeFacts {
                ready: false,
                ..node
            },
            ResultDuty::AwaitReady,
        ),
        (
            "never was ready",
            Phase::Complete,
            NodeFacts {
                ready: false,
                was_ready: false,
                ..node
            },
            ResultDuty::Take,
        ),
        (
            "on record",
            Phase::Complete,
            NodeFacts {
                result_of: Some("lease-uid"),
                ..node
            },
            ResultDuty::Recorded,
        ),
        (
            "another's result",
            Phase::Complete,
            NodeFacts {
                result_of: Some("older"),
                ..node
            },
            ResultDuty::Take,
        ),
    ] {
        assert_eq!(result_duty(&reported(phase), &node), want, "{name}");
    }
}

#[test]
fn a_slot_is_released_only_for_a_reason() {
    let node = NodeFacts {
        uid: NODE,
        boot_id: "b",
        ready: true,
        was_ready: true,
        result_of: None,
    };
    let recorded = NodeFacts {
        result_of: Some("lease-uid"),
        ..node
    };
    let running = || Given::granted().phase(Phase::Running);
    let mut forced = running().0;
    forced.metadata.annotations =
        Some([(names::FORCE_RELEASE.to_owned(), "lease-uid".to_owned())].into());
    let mut forced_for_another = running().0;
    forced_for_another.metadata.annotations =
        Some([(names::FORCE_RELEASE.to_owned(), "older".to_owned())].into());
    for (name, lease, node, want) in [
        (
            "never accepted",
            Given::granted().0,
            Some(&node),
            Some(ReleaseReason::NeverAccepted),
        ),
        ("running", running().0, Some(&node), None),
        (
            "too old, and not stopped yet",
            running().stop(StopReason::AgentTooOld).0,
            Some(&node),
            None,
        ),
        (
            "too old, and nothing was done",
            Given::granted()
                .phase(Phase::Stopped)
                .stop(StopReason::AgentTooOld)
                .0,
            Some(&node),
            Some(ReleaseReason::NothingDone),
        ),
        (
            "recorded",
            running().0,
            Some(&recorded),
            Some(ReleaseReason::ResultRecorded),
        ),
        (
            "node gone",
            running().0,
            None,
            Some(ReleaseReason::NodeGone),
        ),
        ("forced", forced, Some(&node), Some(ReleaseReason::Forced)),
        (
            "forced for another lease",
            forced_for_another,
            Some(&node),
            None,
        ),
    ] {
        assert_eq!(release_reason(&lease, node), want, "{name}");
    }
}

fn stamp(machine: &str, host: &str) -> Stamp {
    Stamp {
        lease: "earlier".into(),
        machine_id: machine.into(),
        host_id: host.into(),
        ..Stamp::default()
    }
}

#[test]
fn a_record_of_another_host_is_told_by_either_id() {
    for (name, recorded, reported, here, want) in [
        ("nothing is known", None, None, ("m", "h"), false),
        (
            "the same",
            Some(("m", "h")),
            Some(("m", "h")),
            ("m", "h"),
            false,
        ),
        ("another machine", Some(("x", "h")), None, ("m", "h"), true),
        (
            "its disk was written anew",
            Some(("m", "x")),
            None,
            ("m", "h"),
            true,
        ),
        (
            "recorded before hosts had an ID",
            Some(("m", "")),
            None,
            ("m", "h"),
            false,
        ),
        (
            "a host that cannot say",
            Some(("m", "x")),
            None,
            ("m", ""),
            false,
        ),
        (
            "another machine reported",
            None,
            Some(("x", "h")),
            ("m", "h"),
            true,
        ),
        (
            "reported before its disk was lost",
            None,
            Some(("m", "x")),
            ("m", "h"),
            true,
        ),
    ] {
        let mut lease = Given::granted().0;
        lease.spec.stamp = recorded.map(|(machine, host)| stamp(machine, host));
        lease.status = reported.map(|(machine, host)| InterruptionLeaseStatus {
            phase: Some(Phase::Running),
            machine_id: machine.to_owned(),
            host_id: host.to_owned(),
            ..InterruptionLeaseStatus::default()
        });
        assert_eq!(is_of_another_host(&lease, here.0, here.1), want, "{name}");
    }
}

#[test]
fn the_higher_count_of_reboots_is_believed() {
    let counts = |pairs: &[(&str, u32)]| -> BTreeMap<String, u32> {
        pairs
            .iter()
            .map(|(key, count)| ((*key).to_owned(), *count))
            .collect()
    };
    let mut lease = Given::granted().phase(Phase::Running).0;
    assert_eq!(known_reboots(&lease), counts(&[]));
    lease.spec.stamp = Some(Stamp {
        reboots: counts(&[("aa|1", 2), ("bb|1", 1)]),
        ..Stamp::default()
    });
    assert_eq!(known_reboots(&lease), counts(&[("aa|1", 2), ("bb|1", 1)]));
    if let Some(status) = &mut lease.status {
        status.reboots = counts(&[("aa|1", 1), ("bb|1", 3), ("cc|1", 1)]);
    }
    assert_eq!(
        known_reboots(&lease),
        counts(&[("aa|1", 2), ("bb|1", 3), ("cc|1", 1)])
    );
}

#[test]
fn a_drain_ends_when_the_agent_says_that_it_needs_none() {
    let declines = |phase, needs_drain| {
        let mut lease = Given::granted().phase(phase).drained();
        lease.0.status.as_mut().expect("set above").needs_drain = needs_drain;
        lease
    };
    let no = Some(false);
    for (name, given, want) in [
        ("it says so", declines(Phase::Erroring, no), true),
        (
            "it does not know yet",
            declines(Phase::Preparing, None),
            false,
        ),
        (
            "it needs one",
            declines(Phase::AwaitingDrain, Some(true)),
            false,
        ),
        (
            "it has just accepted the lease",
            declines(Phase::Accepted, no),
            false,
        ),
        (
            "it has taken the drain",
            declines(Phase::Running, no),
            false,
        ),
        ("it has ended", declines(Phase::Complete, no), false),
        (
            "it is told to stop",
            declines(Phase::Erroring, no).stop(StopReason::Edited),
            false,
        ),
    ] {
        assert_eq!(declines_drain(&given.0), want, "{name}");
    }
}
