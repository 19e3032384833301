//! What a pass counted, as metrics.

use std::fmt::Error;

use k8s_openapi::jiff::Timestamp;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder};
use prometheus_client::metrics::MetricType;
use skyhook_crds::lease::DrainState;
use skyhook_crds::package;
use skyhook_crds::stage::{Stage, State, Status};
use skyhook_fleet::plan::tallies::leases::{BlockerKind, LeasePhase};
use skyhook_fleet::plan::{CompartmentCounts, Fleet, SkyhookCounts};

use super::Pass;
use super::progress::Progress;

/// Whose names a metric has.
#[derive(Clone, Copy)]
struct Names {
    prefix: &'static str,
    /// The label with the name of the Skyhook.
    object: &'static str,
}

const OURS: Names = Names {
    prefix: "skyhook",
    object: "skyhook_name",
};

const NODEWRIGHT: Names = Names {
    prefix: "nodewright",
    object: "nodewright_name",
};

const STATUSES: [Status; 8] = [
    Status::Unknown,
    Status::Complete,
    Status::Blocked,
    Status::Waiting,
    Status::Disabled,
    Status::Paused,
    Status::InProgress,
    Status::Erroring,
];

const STATES: [State; 5] = [
    State::Complete,
    State::InProgress,
    State::Skipped,
    State::Erroring,
    State::Unknown,
];

const DRAINS: [(DrainState, &str); 3] = [
    (DrainState::Waiting, "Waiting"),
    (DrainState::Draining, "Draining"),
    (DrainState::Drained, "Drained"),
];

/// Writes everything that a pass counted.
pub(super) fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    pass: &Pass,
    progress: &Progress,
    now: Timestamp,
    with_nodewright: bool,
) -> Result<(), Error> {
    let families = [OURS, NODEWRIGHT];
    for names in families.iter().take(if with_nodewright { 2 } else { 1 }) {
        statuses(encoder, *names, &pass.fleet)?;
        packages(encoder, *names, &pass.fleet)?;
        rollouts(encoder, *names, &pass.fleet)?;
    }
    times(encoder, &pass.fleet, progress, now)?;
    leases(encoder, &pass.fleet, now)?;
    slots(encoder, &pass.fleet)?;
    own(encoder, pass)
}

/// Samples of one metric.
struct Gauge<'e>(MetricEncoder<'e>);

impl Gauge<'_> {
    fn count(&mut self, labels: &impl EncodeLabelSet, value: usize) -> Result<(), Error> {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.encode_family(labels)?.encode_gauge(&value)
    }

    fn number(&mut self, labels: &impl EncodeLabelSet, value: i32) -> Result<(), Error> {
        let value = i64::from(value);
        self.0.encode_family(labels)?.encode_gauge(&value)
    }

    fn seconds(&mut self, labels: &impl EncodeLabelSet, value: f64) -> Result<(), Error> {
        self.0.encode_family(labels)?.encode_gauge(&value)
    }
}

fn gauge<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<Gauge<'e>, Error> {
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    Ok(Gauge(metric))
}

fn statuses(encoder: &mut DescriptorEncoder<'_>, names: Names, fleet: &Fleet) -> Result<(), Error> {
    let name = format!("{}_status", names.prefix);
    let mut all = gauge(encoder, &name, "1 for the status that the Skyhook has.")?;
    for (skyhook, counts) in &fleet.skyhooks {
        for status in STATUSES {
            let labels = [
                (names.object, skyhook.as_str()),
                ("status", status.as_str()),
            ];
            all.count(&labels, usize::from(counts.status == status))?;
        }
    }
    let name = format!("{}_node_status_count", names.prefix);
    let mut all = gauge(encoder, &name, "Nodes of the Skyhook by status.")?;
    for (skyhook, counts) in &fleet.skyhooks {
        for status in STATUSES {
            let labels = [
                (names.object, skyhook.as_str()),
                ("status", status.as_str()),
            ];
            let nodes = counts.by_status.get(&status).copied();
            all.count(&labels, nodes.unwrap_or_default())?;
        }
    }
    let name = format!("{}_node_target_count", names.prefix);
    let mut all = gauge(encoder, &name, "Nodes that the Skyhook selects.")?;
    for (skyhook, counts) in &fleet.skyhooks {
        all.count(&[(names.object, skyhook.as_str())], counts.nodes)?;
    }
    Ok(())
}

fn packages(encoder: &mut DescriptorEncoder<'_>, names: Names, fleet: &Fleet) -> Result<(), Error> {
    let all = || {
        fleet.skyhooks.iter().flat_map(move |(skyhook, counts)| {
            counts.packages.iter().map(move |(key, counts)| {
                let name = package::name_of(key);
                let version = key.split_once('|').map_or("", |(_, version)| version);
                let labels = [
                    (names.object, skyhook.as_str()),
                    ("package_name", name),
                    ("package_version", version),
                ];
                (labels, counts)
            })
        })
    };
    let name = format!("{}_package_state_count", names.prefix);
    let mut states = gauge(encoder, &name, "Nodes by state of the package there.")?;
    for (labels, counts) in all() {
        for state in STATES {
            let nodes = counts.by_state.get(&state).copied();
            states.count(
                &(labels, [("state", state.as_str())]),
                nodes.unwrap_or_default(),
            )?;
        }
    }
    let name = format!("{}_package_stage_count", names.prefix);
    let mut stages = gauge(encoder, &name, "Nodes by stage of the package there.")?;
    for (labels, counts) in all() {
        for stage in Stage::ALL {
            let nodes = counts.by_stage.get(&stage).copied();
            stages.count(
                &(labels, [("stage", stage.as_str())]),
                nodes.unwrap_or_default(),
            )?;
        }
    }
    let name = format!("{}_package_restarts_count", names.prefix);
    let help = "How often the package was tried again, over all nodes.";
    let mut restarts = gauge(encoder, &name, help)?;
    for (labels, counts) in all() {
        let times = usize::try_from(counts.restarts).unwrap_or(usize::MAX);
        restarts.count(&labels, times)?;
    }
    Ok(())
}

/// Labels of a compartment.
type Place<'a> = [(&'static str, &'a str); 4];

fn compartments<'a>(
    names: Names,
    fleet: &'a Fleet,
) -> impl Iterator<Item = (Place<'a>, &'a CompartmentCounts)> {
    fleet.skyhooks.iter().flat_map(move |(skyhook, counts)| {
        counts.compartments.iter().map(move |(name, one)| {
            let labels = [
                (names.object, skyhook.as_str()),
                ("policy_name", counts.policy.as_str()),
                ("compartment_name", name.as_str()),
                ("strategy", one.strategy),
            ];
            (labels, one)
        })
    })
}

/// Name without prefix, help and value of a metric of compartments.
type OfCompartment = (&'static str, &'static str, fn(&CompartmentCounts) -> i32);

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn rollouts(encoder: &mut DescriptorEncoder<'_>, names: Names, fleet: &Fleet) -> Result<(), Error> {
    let table: [OfCompartment; 8] = [
        ("matched_nodes", "Nodes of the compartment.", |one| {
            number(one.matched)
        }),
        (
            "ceiling",
            "Nodes of the compartment that may be worked on at once.",
            |one| number(one.ceiling),
        ),
        (
            "in_progress",
            "Nodes of the compartment that are worked on, or have failed.",
            |one| number(one.in_progress),
        ),
        ("completed", "Complete nodes of the compartment.", |one| {
            number(one.complete)
        }),
        (
            "progress_percent",
            "Complete nodes, in percent of those of the compartment.",
            |one| number((one.complete * 100).checked_div(one.matched).unwrap_or(100)),
        ),
        ("current_batch", "Number of the batch.", |one| {
            one.batches.current
        }),
        ("consecutive_failures", "Failed batches in a row.", |one| {
            one.batches.consecutive_failures
        }),
        (
            "should_stop",
            "1 if the compartment has stopped after batches that failed.",
            |one| i32::from(one.batches.should_stop),
        ),
    ];
    for (name, help, value) in table {
        let name = format!("{}_rollout_{name}", names.prefix);
        let mut metric = gauge(encoder, &name, help)?;
        for (labels, one) in compartments(names, fleet) {
            metric.number(&labels, value(one))?;
        }
    }
    Ok(())
}

/// Seconds from `since` to `now`, to the second.
fn age(since: Timestamp, now: Timestamp) -> f64 {
    let seconds = (now.as_second() - since.as_second()).max(0);
    u32::try_from(seconds).map_or(f64::from(u32::MAX), f64::from)
}

fn is_over(counts: &SkyhookCounts) -> bool {
    counts.status == Status::Complete
}

fn times(
    encoder: &mut DescriptorEncoder<'_>,
    fleet: &Fleet,
    progress: &Progress,
    now: Timestamp,
) -> Result<(), Error> {
    let help = "Time since the Skyhook got its status.";
    let mut all = gauge(encoder, "skyhook_status_seconds", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        if let Some(since) = counts.since.or_else(|| progress.since(skyhook)) {
            let status = counts.status.as_str();
            let labels = [("skyhook_name", skyhook.as_str()), ("status", status)];
            all.seconds(&labels, age(since, now))?;
        }
    }
    let help = "Time since a node became complete or a package came to the end of a stage, while nodes are left.";
    let mut all = gauge(encoder, "skyhook_progress_seconds", help)?;
    let under_way = fleet.skyhooks.iter().filter(|(_, counts)| !is_over(counts));
    for (skyhook, _) in under_way {
        if let Some(moved) = progress.moved(skyhook) {
            all.seconds(&[("skyhook_name", skyhook.as_str())], age(moved, now))?;
        }
    }
    let help = "Nodes of the Skyhook by why they do not move.";
    let mut all = gauge(encoder, "skyhook_node_reason_count", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        for (reason, nodes) in &counts.by_reason {
            let reason = reason.to_string();
            let labels = [("skyhook_name", skyhook.as_str()), ("reason", &reason)];
            all.count(&labels, *nodes)?;
        }
    }
    let help = "Package versions that are not told apart, because a Skyhook has too many.";
    let mut all = gauge(encoder, "skyhook_package_versions_omitted", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        let labels = [("skyhook_name", skyhook.as_str())];
        all.count(&labels, counts.packages_omitted)?;
    }
    Ok(())
}

fn leases(encoder: &mut DescriptorEncoder<'_>, fleet: &Fleet, now: Timestamp) -> Result<(), Error> {
    let help = "Interruption leases of the Skyhook by phase.";
    let mut all = gauge(encoder, "skyhook_lease_count", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        for phase in LeasePhase::ALL {
            let labels = [
                ("skyhook_name", skyhook.as_str()),
                ("phase", phase.as_str()),
            ];
            let found = counts.leases.by_phase.get(&phase);
            all.count(&labels, found.map_or(0, |found| found.0))?;
        }
    }
    let help = "Time that the lease which is in the phase for the longest time makes no step.";
    let mut all = gauge(encoder, "skyhook_lease_phase_seconds", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        for (phase, (_, since)) in &counts.leases.by_phase {
            if let Some(since) = since {
                let labels = [
                    ("skyhook_name", skyhook.as_str()),
                    ("phase", phase.as_str()),
                ];
                all.seconds(&labels, age(*since, now))?;
            }
        }
    }
    let help = "Leases that cannot be decoded, and count against every budget.";
    let mut all = gauge(encoder, "skyhook_leases_unreadable", help)?;
    all.count(&NONE, fleet.leases_unreadable)?;
    let help = "Nodes that drain for the Skyhook, by state of the drain.";
    let mut all = gauge(encoder, "skyhook_drain_count", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        for (state, word) in DRAINS {
            let labels = [("skyhook_name", skyhook.as_str()), ("state", word)];
            let nodes = counts.leases.by_drain.get(&state).copied();
            all.count(&labels, nodes.unwrap_or_default())?;
        }
    }
    let help = "Nodes whose drain is held up, by what does it.";
    let mut all = gauge(encoder, "skyhook_drain_blocked_count", help)?;
    for (skyhook, counts) in &fleet.skyhooks {
        for kind in BlockerKind::ALL {
            let labels = [("skyhook_name", skyhook.as_str()), ("cause", kind.as_str())];
            let nodes = counts.leases.by_blocker.get(&kind).copied();
            all.count(&labels, nodes.unwrap_or_default())?;
        }
    }
    Ok(())
}

const NONE: [(&str, &str); 0] = [];

fn slots(encoder: &mut DescriptorEncoder<'_>, fleet: &Fleet) -> Result<(), Error> {
    let help = "Slots of the compartment that leases take.";
    let mut all = gauge(encoder, "skyhook_slots_used", help)?;
    for (labels, one) in compartments(OURS, fleet) {
        all.count(&labels, one.used)?;
    }
    let help = "Slots of the compartment that no lease takes.";
    let mut all = gauge(encoder, "skyhook_slots_free", help)?;
    for (labels, one) in compartments(OURS, fleet) {
        all.count(&labels, one.ceiling.saturating_sub(one.used))?;
    }
    let help = "Slots that leases take, over all Skyhooks.";
    let mut all = gauge(encoder, "skyhook_cluster_slots_used", help)?;
    all.count(&NONE, fleet.slots_used)?;
    if let Some(slots) = fleet.slots {
        let help = "Slots that no lease takes, over all Skyhooks.";
        let mut all = gauge(encoder, "skyhook_cluster_slots_free", help)?;
        all.count(&NONE, slots.saturating_sub(fleet.slots_used))?;
    }
    Ok(())
}

fn own(encoder: &mut DescriptorEncoder<'_>, pass: &Pass) -> Result<(), Error> {
    let help = "Writes and look-ups that are decided and wait: for a slot, after a refusal, or because they would repeat what somebody undoes.";
    let mut all = gauge(encoder, "skyhook_effects_held_back", help)?;
    let held = pass.held_back;
    for (cause, count) in [
        ("queued", held.queued),
        ("refused", held.refused),
        ("repeated", held.repeated),
    ] {
        all.count(&[("cause", cause)], count)?;
    }
    let help = "Time for which a watch has not delivered a write of this replica; after 5 seconds it goes on without.";
    let mut all = gauge(encoder, "skyhook_watch_lag_seconds", help)?;
    all.seconds(&NONE, pass.lag.as_secs_f64())
}
