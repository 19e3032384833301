//! The drain of a node: cordon it, wait for pods that must not be interrupted, evict the others, and name the pods that
//! are in the way. A drain is a state and not a procedure: every pass derives the next write from the last list of
//! pods.

mod marks;

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{BlockCause, Blocker, Drain, DrainState, InterruptionLease};

use super::cause::Cause;
use super::ledger::Ledger;
use super::{Draft, View, cordon, seconds, version};
use crate::clocks::{DrainWatch, EvictionTry, LeaseClock, Mono};
use crate::effect::{Effect, Target};
use crate::facts::{Checked, LeaseFact, NodeFact};
use crate::pods::{self, PodFact, RefusedBy, Rules, Verdict};
use crate::settings::Settings;
pub(in crate::plan) use marks::{awaited, marks};

/// How often the pods of a draining node are listed. The node is drained when two lists, at least this far apart, show
/// no pod that has to leave: the scheduler may still bind a pod while the first list is taken.
const SURVEY: Duration = Duration::from_secs(1);
/// A list older than this is not used. It is from the time before a pause, or before the coordinator was away.
const FRESH: Duration = Duration::from_secs(15);
/// While pods are left, lists come from the API server's watch cache (`resourceVersion=0`), which is cheap with every
/// version of Kubernetes. A consistent list reads the pods of the whole cluster from etcd before Kubernetes 1.31, and
/// later where `ConsistentListFromCache` is off or etcd is older than 3.4.31 and 3.5.13. So only three kinds of lists
/// are consistent: the first list of a drain; lists that are to prove that no pod is left; and, because a watch cache
/// may be stuck, one list each time that this long has passed.
const CACHED: Duration = Duration::from_secs(30);
/// How often pods are listed when the drain takes long, and after it has ended.
const SLOW_SURVEY: Duration = Duration::from_secs(5);
/// A drain older than this takes long.
const LONG: Duration = Duration::from_secs(60);
/// The smallest difference between two times.
const INSTANT: Duration = Duration::from_nanos(1);
/// How many blockers are named. The others are only counted.
const MAX_BLOCKERS: usize = 10;

/// Decides the next write for the drain under one accepted lease.
pub(super) fn carry_on(
    view: &View<'_>,
    ledger: &Ledger<'_>,
    fact: &LeaseFact,
    lease: &InterruptionLease,
    node: &NodeFact,
    checked: &Checked,
    draft: &mut Draft<'_>,
) {
    if protocol::declines_drain(lease) {
        return end(fact, lease, node, draft);
    }
    if !protocol::wants_drain(lease) {
        return;
    }
    if deadline(view, lease, checked).is_some_and(|at| at <= view.now.mono) {
        return;
    }
    let skyhook = &lease.spec.skyhook.name;
    if !cordon::is_held(node, skyhook, &fact.uid) {
        let patch = cordon::take(&draft.so_far(node), skyhook, &fact.uid);
        draft.patch(node, patch, Cause::Cordon);
        return;
    }
    let watch = view.clocks.drain(&node.name, &fact.uid);
    let current = &lease.spec.drain;
    let rules = rules(checked, view.settings, node);
    survey_when_due(view, fact, lease, node, watch, &rules, draft);
    let Some(watch) = watch.filter(|watch| view.now.mono <= watch.last.at + FRESH) else {
        return;
    };
    draft.holds_until(watch.last.at + FRESH + INSTANT);
    let left = left(&watch.last.pods, &rules);
    // Hours may have passed since the lease was reserved. Another control-plane node may not be Ready any more.
    let weakened = ledger.control_plane_not_ready(node);
    let waiting = left.iter().any(|(_, verdict)| *verdict == Verdict::WaitFor);
    let state = if waiting {
        DrainState::Waiting
    } else if left.is_empty() && weakened.is_none() && is_confirmed(watch, &rules) {
        DrainState::Drained
    } else {
        DrainState::Draining
    };
    if state == DrainState::Draining {
        evict(view, fact, node, checked, watch, &left, draft);
    }
    let (mut blockers, more) = blockers(&left, watch, &current.blockers, waiting);
    blockers.extend(weakened.map(|other| Blocker {
        pod: format!("node/{other}"),
        reason: "another control-plane node, is not Ready".to_owned(),
        cause: None,
    }));
    let wanted = Drain {
        state,
        since: None,
        blockers,
        more,
    };
    write(view, fact, current, wanted, draft);
}

/// Ends a drain that the agent does not need any more, because a package has used up its attempts before the host was
/// touched. The lease says so first: an agent that takes the drain meanwhile finds a newer lease. Then the cordon is given
/// back.
fn end(fact: &LeaseFact, lease: &InterruptionLease, node: &NodeFact, draft: &mut Draft<'_>) {
    let skyhook = lease.spec.skyhook.name.as_str();
    if lease.spec.drain.state != DrainState::NotRequested {
        draft.push(Effect::SetDrain {
            node: fact.node.clone(),
            at: version(&fact.uid, &fact.resource_version),
            drain: Drain::default(),
        });
    } else if cordon::is_held(node, skyhook, &fact.uid) {
        let patch = cordon::give_back(&draft.so_far(node), [skyhook]);
        draft.patch(node, patch, Cause::CordonNotNeeded);
    }
}

/// When the drain's deadline is, in time since the process started; `None` while it has none.
#[must_use]
pub fn deadline(view: &View<'_>, lease: &InterruptionLease, checked: &Checked) -> Option<Mono> {
    let timeout = checked.spec.drain.timeout?;
    let drain = &lease.spec.drain;
    if drain.state != DrainState::Draining {
        return None;
    }
    let deadline = view.now.mono + timeout.saturating_sub(age(view, lease)?);
    // Time in a pause does not count: after a pause the whole timeout is available again.
    let clock = view.clocks.lease(&lease.spec.node.name);
    let resumed = clock.and_then(|clock| clock.resumed);
    Some(resumed.map_or(deadline, |at| deadline.max(at + timeout)))
}

/// How long the drain is in its present state.
fn age(view: &View<'_>, lease: &InterruptionLease) -> Option<Duration> {
    let since = lease.spec.drain.since.as_deref()?.parse().ok()?;
    let clock = view.clocks.lease(&lease.spec.node.name);
    Some(view.age(since, clock.and_then(LeaseClock::drain_seen)))
}

/// The rules about which pods have to leave a node, for one Skyhook.
fn rules<'a>(checked: &'a Checked, settings: &'a Settings, node: &NodeFact) -> Rules<'a> {
    Rules {
        wait_for: checked.spec.pods_to_wait_for.as_ref(),
        options: &checked.spec.drain,
        namespace: &settings.namespace,
        node_ready: node.ready,
    }
}

/// True when the last list of a node's pods shows one that has to leave.
pub(crate) fn shows_a_pod(
    watch: &DrainWatch,
    checked: &Checked,
    settings: &Settings,
    node: &NodeFact,
) -> bool {
    !left(&watch.last.pods, &rules(checked, settings, node)).is_empty()
}

/// Pods that keep the node from being drained.
fn left<'a>(pods: &'a [PodFact], rules: &Rules<'_>) -> Vec<(&'a PodFact, Verdict)> {
    pods.iter()
        .map(|pod| (pod, pods::judge(pod, rules)))
        .filter(|(_, verdict)| *verdict != Verdict::Stays)
        .collect()
}

/// True when the last two lists are consistent and far enough apart, and the list before the last one shows no pod that
/// has to leave either.
fn is_confirmed(watch: &DrainWatch, rules: &Rules<'_>) -> bool {
    let last = &watch.last;
    watch.previous.as_ref().is_some_and(|before| {
        let apart = before.at + SURVEY <= last.at && last.at <= before.at + FRESH;
        apart && before.consistent && last.consistent && left(&before.pods, rules).is_empty()
    })
}

fn survey_when_due(
    view: &View<'_>,
    fact: &LeaseFact,
    lease: &InterruptionLease,
    node: &NodeFact,
    watch: Option<&DrainWatch>,
    rules: &Rules<'_>,
    draft: &mut Draft<'_>,
) {
    let age = age(view, lease).unwrap_or_default();
    if age <= LONG {
        draft.holds_until(view.now.mono + (LONG - age) + INSTANT);
    }
    let pace = if age > LONG || lease.spec.drain.state == DrainState::Drained {
        SLOW_SURVEY
    } else {
        SURVEY
    };
    let next = watch.map(|watch| next_survey(watch, pace, rules));
    match next {
        Some((at, _)) if at > view.now.mono => draft.wake_at(at),
        Some(_) | None => {
            let is_due = |at: Mono| at + CACHED <= view.now.mono;
            let consistent_at = watch.and_then(|watch| watch.consistent_at);
            if let Some(at) = consistent_at.filter(|at| !is_due(*at)) {
                draft.holds_until(at + CACHED);
            }
            draft.push(Effect::SurveyPods {
                node: node.name.clone(),
                lease_uid: fact.uid.clone(),
                consistent: next.is_none_or(|(_, is_quiet)| is_quiet)
                    || consistent_at.is_none_or(is_due),
            });
        }
    }
}

/// When pods are listed next, and whether the last list was quiet: it showed no pod that has to leave. A quiet list
/// from the watch cache is followed by a consistent list at once.
fn next_survey(watch: &DrainWatch, pace: Duration, rules: &Rules<'_>) -> (Mono, bool) {
    let last = &watch.last;
    let is_quiet = left(&last.pods, rules).is_empty();
    let pace = if is_quiet && !last.consistent {
        Duration::ZERO
    } else {
        pace
    };
    (last.at + pace, is_quiet)
}

fn evict(
    view: &View<'_>,
    fact: &LeaseFact,
    node: &NodeFact,
    checked: &Checked,
    watch: &DrainWatch,
    left: &[(&PodFact, Verdict)],
    draft: &mut Draft<'_>,
) {
    for (pod, _) in left
        .iter()
        .filter(|(_, verdict)| *verdict == Verdict::Evict)
    {
        if let Some(next) = watch.evictions.get(&pod.uid).map(EvictionTry::next)
            && next > view.now.mono
        {
            draft.wake_at(next);
            continue;
        }
        draft.push(Effect::EvictPod {
            node: node.name.clone(),
            lease_uid: fact.uid.clone(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            pod_uid: pod.uid.clone(),
            grace_period: checked.spec.drain.grace_period,
            by_deletion: checked.spec.drain.disable_eviction,
        });
    }
}

/// The first blockers, and how many more there are. Those that an administrator has to act on come first, so that none of
/// the nodes that they block is overlooked.
fn blockers(
    left: &[(&PodFact, Verdict)],
    watch: &DrainWatch,
    current: &[Blocker],
    waiting: bool,
) -> (Vec<Blocker>, i32) {
    let mut blockers: Vec<Blocker> = left
        .iter()
        .filter(|(_, verdict)| !waiting || *verdict == Verdict::WaitFor)
        .map(|(pod, verdict)| {
            not_asked_yet(pod, verdict, watch, current).unwrap_or_else(|| Blocker {
                pod: pod.path(),
                reason: reason(pod, verdict, watch),
                cause: cause(pod, verdict, watch),
            })
        })
        .collect();
    let ends_by_itself = |blocker: &Blocker| !blocker.cause.is_some_and(BlockCause::blocks);
    blockers.sort_by(|a, b| (ends_by_itself(a), a).cmp(&(ends_by_itself(b), b)));
    let more = blockers.len().saturating_sub(MAX_BLOCKERS);
    blockers.truncate(MAX_BLOCKERS);
    (blockers, i32::try_from(more).unwrap_or(i32::MAX))
}

/// What the lease says of a pod that a budget keeps, until this replica has an answer of its own. Another one may have led
/// before.
fn not_asked_yet(
    pod: &PodFact,
    verdict: &Verdict,
    watch: &DrainWatch,
    current: &[Blocker],
) -> Option<Blocker> {
    if *verdict != Verdict::Evict || watch.evictions.contains_key(&pod.uid) {
        return None;
    }
    let by_budget = Some(BlockCause::PodDisruptionBudget);
    let mut kept = current.iter().filter(|one| one.cause == by_budget);
    kept.find(|one| one.pod == pod.path()).cloned()
}

fn reason(pod: &PodFact, verdict: &Verdict, watch: &DrainWatch) -> String {
    match verdict {
        Verdict::WaitFor => {
            "matches podNonInterruptLabels: waiting until it has finished".to_owned()
        }
        Verdict::Leaving => "is terminating".to_owned(),
        Verdict::Refused(BlockCause::EmptyDirData) => {
            "it would lose its emptyDir: set spec.drainConfig.deleteEmptyDirData, or delete it"
                .to_owned()
        }
        Verdict::Refused(_) => {
            "no controller will replace it: set spec.drainConfig.force, or delete it".to_owned()
        }
        Verdict::Evict | Verdict::Stays => watch
            .evictions
            .get(&pod.uid)
            .and_then(|tried| tried.problem.as_ref())
            .map_or("is being evicted", |refusal| &refusal.text)
            .to_owned(),
    }
}

/// What keeps a pod that has to leave, if it is one of the causes with a name.
fn cause(pod: &PodFact, verdict: &Verdict, watch: &DrainWatch) -> Option<BlockCause> {
    match verdict {
        Verdict::WaitFor => Some(BlockCause::NonInterruptLabels),
        Verdict::Refused(cause) => Some(*cause),
        Verdict::Leaving | Verdict::Stays => None,
        Verdict::Evict => {
            let refusal = watch.evictions.get(&pod.uid)?.problem.as_ref()?;
            (refusal.by == RefusedBy::DisruptionBudget).then_some(BlockCause::PodDisruptionBudget)
        }
    }
}

/// The write that must come before a pause ends, if any. `Drained` from before the pause is taken back, because pods
/// may have come since. A drain that was under way gets a new start time, because time in the pause does not count. The
/// start time is stored in the lease, so that a later leader knows it too. `Drained` stays if the agent has already
/// taken it.
pub(super) fn take_back(
    view: &View<'_>,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> Option<Effect> {
    let drain = &lease.spec.drain;
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let paused = lease.spec.stop.as_ref().and_then(|stop| time(&stop.since));
    let began = drain.since.as_deref().and_then(time);
    let is_from_before =
        drain.state == DrainState::Draining && began.zip(paused).is_some_and(|(b, p)| b < p);
    // Never earlier than the pause, even if the clocks of two replicas differ: an earlier time would be reset in every
    // pass.
    let since = paused.map_or(view.now.wall, |paused| paused.max(view.now.wall));
    (protocol::offers_drained(lease) || is_from_before).then(|| Effect::SetDrain {
        node: fact.node.clone(),
        at: version(&fact.uid, &fact.resource_version),
        drain: Drain {
            state: DrainState::Draining,
            since: Some(seconds(since)),
            blockers: Vec::new(),
            more: 0,
        },
    })
}

/// Writes the state of the drain. A change of the blockers alone is written at most once per second. `Drained` may be
/// taken back only while the agent has not taken it; `wants_drain` has checked this.
fn write(view: &View<'_>, fact: &LeaseFact, current: &Drain, wanted: Drain, draft: &mut Draft<'_>) {
    let turns = current.state != wanted.state;
    if !turns && (&current.blockers, current.more) == (&wanted.blockers, wanted.more) {
        return;
    }
    if !turns && draft.is_too_soon(&Target::Lease(fact.node.clone())) {
        return;
    }
    let since = if turns {
        Some(seconds(view.now.wall))
    } else {
        current.since.clone()
    };
    draft.push(Effect::SetDrain {
        node: fact.node.clone(),
        at: version(&fact.uid, &fact.resource_version),
        drain: Drain { since, ..wanted },
    });
}

#[cfg(test)]
mod tests;
