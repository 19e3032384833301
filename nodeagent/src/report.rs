//! The lease's status, computed from the progress.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use skyhook_crds::lease::{
    FORMAT, InterruptionLeaseStatus, PackageReport, Parked, Phase, StopReason, protocol,
};
use skyhook_crds::{Stage, State};

use crate::machine::progress::{ImageState, Shown, WaveAt, time};
use crate::machine::{Doing, Entry, Permit, Progress, plan, room, wave};
use crate::text;

/// Facts about the host that are part of the status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub boot_id: String,
    /// ID of the last boot that Skyhook did not ask for.
    pub epoch: String,
    pub machine_id: String,
    /// Random ID on the host's disk.
    pub host_id: String,
    pub agent_version: String,
    /// Bytes on the host's disk that belonged to Skyhook when the lease was taken.
    pub disk_bytes: Option<i64>,
}

/// The status for a progress. `generation` is the lease's generation.
#[must_use]
pub fn status(p: &Progress, host: &HostFacts, generation: i64) -> InterruptionLeaseStatus {
    let pending = plan::pending_interrupts(p);
    let phase = phase(p);
    let shown = shown(p);
    InterruptionLeaseStatus {
        format: FORMAT,
        observed_generation: generation,
        phase: Some(phase),
        begun: p.begun,
        needs_drain: needs_drain(p),
        needs_drain_reason: text::joined(
            &pending
                .iter()
                .map(|(name, interrupt)| format!("{name}: {}", wave::describe(interrupt)))
                .collect::<Vec<_>>(),
        ),
        boot_id: host.boot_id.clone(),
        machine_id: host.machine_id.clone(),
        host_id: host.host_id.clone(),
        epoch: host.epoch.clone(),
        reboots: p.reboots.clone(),
        parked: parked(p),
        waits_for: text::message(&wave::waits_for(p).unwrap_or_default()),
        disk_bytes: host.disk_bytes,
        agent_version: host.agent_version.clone(),
        packages: packages(p),
        package: shown.map(|e| e.name.clone()),
        stage: shown.map(|e| e.stage),
        state: shown.map(|e| e.state),
        since: (!p.shown.since.is_empty()).then(|| p.shown.since.clone()),
        message: text::message(&message(p, phase, shown)),
    }
}

/// The status that a finished lease of an earlier agent should have; `None` if it has this status already. Its boot ID
/// must be that of the current boot, because the coordinator waits until the Node reports the same boot ID. If another
/// host wrote the status, nothing is installed on this host.
#[must_use]
pub fn finished(
    reported: &InterruptionLeaseStatus,
    host: &HostFacts,
) -> Option<InterruptionLeaseStatus> {
    let foreign = protocol::is_other_host(
        (&reported.machine_id, &reported.host_id),
        (&host.machine_id, &host.host_id),
    );
    let wanted = if foreign {
        InterruptionLeaseStatus {
            format: FORMAT,
            observed_generation: reported.observed_generation,
            phase: Some(Phase::Stopped),
            boot_id: host.boot_id.clone(),
            machine_id: host.machine_id.clone(),
            host_id: host.host_id.clone(),
            epoch: host.epoch.clone(),
            reboots: reported.reboots.clone(),
            agent_version: host.agent_version.clone(),
            since: reported.since.clone(),
            message: "the Node is another machine now, or its disk was replaced: nothing is installed on it"
                .to_owned(),
            ..InterruptionLeaseStatus::default()
        }
    } else {
        let epoch = if reported.boot_id == host.boot_id {
            &reported.epoch
        } else {
            &host.epoch
        };
        InterruptionLeaseStatus {
            boot_id: host.boot_id.clone(),
            epoch: epoch.clone(),
            ..reported.clone()
        }
    };
    (wanted != *reported).then_some(wanted)
}

/// The first package that has given up, if there is one.
fn parked(p: &Progress) -> Option<Parked> {
    p.entries.values().find_map(|entry| match entry.doing {
        Doing::GaveUp { at, .. } => Some(Parked {
            package: entry.name.clone(),
            version: entry.version.clone(),
            stage: entry.stage,
            attempts: i32::try_from(entry.attempts).unwrap_or(i32::MAX),
            since: time(at),
            message: entry.message.clone(),
        }),
        Doing::Idle
        | Doing::Preparing { .. }
        | Doing::Ready(_)
        | Doing::Step(_)
        | Doing::Retry { .. } => None,
    })
}

/// Updates `since`. Must be called after every change of the progress.
pub fn mark_since(p: &mut Progress, now: i64) {
    let what = match shown(p) {
        Some(e) => format!("{:?} {} {} {}", phase(p), e.key(), e.stage, e.state),
        None => format!("{:?}", phase(p)),
    };
    if p.shown.what != what {
        p.shown = Shown {
            what,
            since: time(now),
        };
    }
}

/// All packages in the progress, as they are reported in the status.
#[must_use]
pub fn packages(p: &Progress) -> BTreeMap<String, PackageReport> {
    p.entries
        .iter()
        .map(|(key, e)| {
            let report = PackageReport {
                name: e.name.clone(),
                version: e.version.clone(),
                image: e.image.clone(),
                container_sha: e.container_sha.clone(),
                stage: e.stage,
                state: e.state,
                restarts: e.restarts,
                pending: e.is_pending(),
                left_behind: plan::is_left_behind(p, e),
                image_digest: e.image_digest.clone(),
                lacks: room::of(p, e).cloned().unwrap_or_default(),
                message: e.message.clone(),
                since: (!e.since.is_empty()).then(|| e.since.clone()),
            };
            (key.clone(), report)
        })
        .collect()
}

/// Whether the node must be drained. `None` until the images of all packages with an interrupt are pulled: a node is
/// not drained for a package whose image cannot be pulled. While a package has given up, the node is drained only if it
/// was drained before.
fn needs_drain(p: &Progress) -> Option<bool> {
    if p.too_old.is_some() {
        return None;
    }
    if p.has_given_up() && p.permit != Permit::Granted {
        return Some(false);
    }
    let pending = plan::pending_interrupts(p);
    let at_hand = p
        .entries
        .values()
        .filter(|e| pending.contains_key(&e.name) && plan::is_worked_on(p, e))
        .all(|e| e.image_state == ImageState::Ready || e.stage == Stage::UninstallInterrupt);
    if pending.is_empty() && p.permit != Permit::Granted {
        Some(false)
    } else {
        (at_hand || p.permit == Permit::Granted).then_some(true)
    }
}

/// The phase. With the permit, the phase stays `Running` until the end: any other phase would allow the coordinator to
/// revoke `Drained` in the middle of a wave.
fn phase(p: &Progress) -> Phase {
    if let Some(ended) = p.ended {
        return ended;
    }
    if p.permit == Permit::Granted {
        return Phase::Running;
    }
    if p.hindrance().is_some() {
        return Phase::Erroring;
    }
    let mut there = p.entries.values().filter(|e| plan::is_worked_on(p, e));
    if there.any(|e| e.state == State::Erroring) {
        return Phase::Erroring;
    }
    let pending = plan::pending_interrupts(p);
    if !pending.is_empty() && needs_drain(p) == Some(true) {
        return Phase::AwaitingDrain;
    }
    let started = p.entries.values().any(|e| match &e.doing {
        Doing::Preparing { .. } | Doing::Step(_) | Doing::Ready(_) => true,
        Doing::Idle | Doing::Retry { .. } | Doing::GaveUp { .. } => false,
    });
    if pending.is_empty() && started {
        Phase::Running
    } else {
        Phase::Preparing
    }
}

/// The package that the status shows: a failing package or, if there is none, a running package or else a waiting
/// package.
fn shown(p: &Progress) -> Option<&Entry> {
    p.entries
        .values()
        .filter(|e| !e.is_done() && plan::is_worked_on(p, e))
        .min_by_key(|e| {
            let running = match e.doing {
                Doing::Preparing { .. } | Doing::Step(_) | Doing::Ready(_) => 1,
                Doing::Idle | Doing::Retry { .. } | Doing::GaveUp { .. } => 2,
            };
            if e.state == State::Erroring {
                0
            } else {
                running
            }
        })
}

fn message(p: &Progress, phase: Phase, shown: Option<&Entry>) -> String {
    let stop = p
        .stop
        .map(|s| format!("stopped: {}", why_stopped(s.reason)));
    match phase {
        Phase::Complete => "all packages are complete".to_owned(),
        Phase::Stopped => stop.unwrap_or_else(|| "stopped".to_owned()),
        Phase::Accepted
        | Phase::Preparing
        | Phase::AwaitingDrain
        | Phase::Running
        | Phase::Erroring
        | Phase::Unknown => {
            if let Some(stop) = stop {
                return format!("{stop}. Waiting for the running step to end");
            }
            if p.held {
                return "paused".to_owned();
            }
            if let Some(problem) = p.hindrance() {
                return problem.clone();
            }
            if let Some(waits) = wave::waits_for(p) {
                return waits;
            }
            if let Some(WaveAt::Interrupting {
                owner, interrupt, ..
            }) = p.wave.as_ref().map(|w| &w.at)
            {
                return match p.entries.get(owner).map(|e| e.message.as_str()) {
                    Some(message) if !message.is_empty() => message.to_owned(),
                    Some(_) | None => wave::describe(interrupt),
                };
            }
            match shown {
                Some(e) if !e.message.is_empty() => {
                    format!("{} {}: {}", e.name, e.version, e.message)
                }
                Some(e) => format!("{} {}: {}", e.name, e.version, e.stage),
                None => String::new(),
            }
        }
    }
}

/// Why a lease is stopped, for messages.
const fn why_stopped(reason: StopReason) -> &'static str {
    match reason {
        StopReason::NewRevision => "the Skyhook was changed",
        StopReason::Paused => "the Skyhook is paused",
        StopReason::Disabled => "the Skyhook is disabled",
        StopReason::Deleted => {
            "the Skyhook was deleted or no longer selects the node, or this lease was deleted"
        }
        StopReason::Edited => "the record of the Node was edited",
        StopReason::DrainTimedOut => "the node could not be drained in time",
        StopReason::AgentTooOld => "it needs a newer agent",
        StopReason::Unknown => "for a reason that this agent does not know",
    }
}

/// The JSON merge patch that turns `old` into `new`; `None` if they are equal.
#[must_use]
pub fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (old, new) if old == new => None,
        (Value::Object(old), Value::Object(new)) => {
            let gone = old.keys().filter(|key| !new.contains_key(*key));
            let mut patch: Map<String, Value> =
                gone.map(|key| (key.clone(), Value::Null)).collect();
            for (key, value) in new {
                let before = old.get(key).unwrap_or(&Value::Null);
                if let Some(change) = merge_diff(before, value) {
                    patch.insert(key.clone(), change);
                }
            }
            Some(Value::Object(patch))
        }
        (_, new) => Some(new.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn that_a_step_has_begun_is_reported_unless_nobody_knows() {
        for begun in [None, Some(false), Some(true)] {
            let progress = Progress {
                begun,
                ..Progress::default()
            };
            let status = status(&progress, &HostFacts::default(), 1);
            assert_eq!(status.begun, begun);
        }
    }

    #[test]
    fn finished_leases_are_kept_true() {
        let facts = |machine: &str, boot: &str| HostFacts {
            boot_id: boot.to_owned(),
            machine_id: machine.to_owned(),
            agent_version: "1".to_owned(),
            ..HostFacts::default()
        };
        let reported: InterruptionLeaseStatus = serde_json::from_value(json!({
            "phase": "Complete", "bootID": "b", "machineID": "m", "agentVersion": "0", "needsDrain": true,
            "packages": { "a|1": { "name": "a", "version": "1", "image": "r/a", "stage": "config", "state": "complete" } },
        }))
        .expect("a status");
        for (name, host, want) in [
            ("nothing changed", facts("m", "b"), None),
            (
                "booted since",
                facts("m", "c"),
                Some((Phase::Complete, "c", "m", 1)),
            ),
            (
                "another machine",
                facts("n", "c"),
                Some((Phase::Stopped, "c", "n", 0)),
            ),
        ] {
            let wanted = finished(&reported, &host);
            let short = wanted.as_ref().map(|w| {
                let phase = w.phase.expect("finished");
                (phase, &*w.boot_id, &*w.machine_id, w.packages.len())
            });
            assert_eq!(short, want, "{name}");
            let again = wanted.and_then(|w| finished(&w, &host));
            assert_eq!(again, None, "{name}: said twice");
        }
    }

    #[test]
    fn merge_patches() {
        for (name, old, new, want) in [
            ("equal", json!({"a": 1}), json!({"a": 1}), None),
            (
                "removed, changed and added",
                json!({"a": 1, "b": {"x": 1, "y": 2}, "c": [1]}),
                json!({"b": {"x": 2, "y": 2}, "c": [2], "d": true}),
                Some(json!({"a": null, "b": {"x": 2}, "c": [2], "d": true})),
            ),
            (
                "from nothing",
                json!(null),
                json!({"a": {"b": 1}}),
                Some(json!({"a": {"b": 1}})),
            ),
        ] {
            assert_eq!(merge_diff(&old, &new), want, "{name}");
        }
    }
}
