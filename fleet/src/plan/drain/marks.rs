//! What a Node says about its drain for a Skyhook: since when it drains, and which pods are in the way.

use serde::Serialize;
use skyhook_crds::lease::{BlockCause, Blocker, DrainState, InterruptionLease};
use skyhook_crds::names;

use crate::effect::NodePatch;

/// A pod that keeps its node from being drained, in the form that NodeWright gives it.
#[derive(Serialize)]
struct Blocked<'a> {
    namespace: &'a str,
    name: &'a str,
    reason: &'static str,
    detail: &'a str,
}

/// The annotations about the drain under a lease. Without a lease, and while no drain is under way, both are removed. A
/// Skyhook whose name is too long for an annotation goes without it.
pub(in crate::plan) fn marks(skyhook: &str, lease: Option<&InterruptionLease>) -> NodePatch {
    let drain = lease.map(|lease| &lease.spec.drain);
    let drain = drain.filter(|drain| drain.state == DrainState::Draining);
    let since = drain.and_then(|drain| drain.since.clone());
    let pods: Vec<Blocked<'_>> = lease
        .into_iter()
        .flat_map(|lease| lease.spec.drain.blocking())
        .map(|(blocker, cause)| {
            let (namespace, name) = blocker.pod.split_once('/').unwrap_or(("", &blocker.pod));
            Blocked {
                namespace,
                name,
                reason: cause.as_str(),
                detail: &blocker.reason,
            }
        })
        .collect();
    let pods = Some(pods).filter(|pods| !pods.is_empty());
    let pods = pods.and_then(|pods| serde_json::to_string(&pods).ok());
    let all = [
        (names::drain_start(skyhook), since),
        (names::drain_blocked(skyhook), pods),
    ];
    all.into_iter()
        .filter_map(|(key, value)| Some((key?, value)))
        .fold(NodePatch::default(), |patch, (key, value)| {
            patch.annotation(&key, value)
        })
}

/// Pods that must not be interrupted, for which the drain under the lease waits.
pub(in crate::plan) fn awaited(lease: &InterruptionLease) -> impl Iterator<Item = &Blocker> {
    let drain = &lease.spec.drain;
    let blockers = drain.blockers.iter();
    let awaited = Some(BlockCause::NonInterruptLabels);
    blockers.filter(move |one| drain.state == DrainState::Waiting && one.cause == awaited)
}
