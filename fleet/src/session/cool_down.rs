//! How long a node is left alone after a lease, by how the lease ended.

use std::time::Duration;

use skyhook_crds::lease::protocol;
use skyhook_crds::lease::{InterruptionLease, Phase, StopReason};
use skyhook_crds::revision;

use crate::clocks::{Backoff, Mono};
use crate::index::Index;
use crate::picture::Picture;
use crate::plan::reason::{ReasonCode, Withdrawal};
use crate::plan::standing;
use crate::settings::Settings;

/// The first back-off after a result that left work over. Each further one is twice as long, up to [`LONGEST`].
const MISMATCH: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(3600);

/// The back-off of a node that has joined lately and whose agent has not accepted its lease.
const NOT_YET_THERE: Duration = Duration::from_secs(15);

/// The back-off of a node whose lease is withdrawn now.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only agents that do not answer"
)]
pub(super) fn after_withdrawal(why: Withdrawal, settings: &Settings, now: Mono) -> Option<Backoff> {
    let (after, message) = match why {
        Withdrawal::AgentNotResponding => (
            settings.agent_backoff,
            "the node's agent did not accept the lease in time: is its pod running there?",
        ),
        Withdrawal::AgentNotYetThere => (
            NOT_YET_THERE.min(settings.agent_backoff),
            "the node has joined lately and its agent has not accepted the lease: it is tried again soon",
        ),
        _ => return None,
    };
    Some(Backoff {
        skyhook: None,
        until: now + after,
        code: ReasonCode::AgentNotResponding,
        message,
    })
}

/// The back-off of a node whose lease is released now.
pub(super) fn after(
    index: &mut Index,
    settings: &Settings,
    node: &str,
    now: Mono,
) -> Option<Backoff> {
    let fact = index.picture.leases().get(node)?;
    let lease = fact.lease.as_deref().ok()?;
    let skyhook = lease.spec.skyhook.name.clone();
    let stop = lease.spec.stop.as_ref().map(|stop| stop.reason);
    if stop == Some(StopReason::DrainTimedOut) {
        return Some(Backoff {
            skyhook: None,
            until: now + settings.drain_cool_down,
            code: ReasonCode::DrainTimedOut,
            message: standing::DRAIN_TIMED_OUT,
        });
    }
    if stop == Some(StopReason::AgentTooOld) {
        return Some(Backoff {
            skyhook: Some(skyhook),
            until: now + settings.agent_backoff,
            code: ReasonCode::AgentTooOld,
            message: "the node's agent is too old for this Skyhook: upgrade the agents; the node is tried again later",
        });
    }
    let left_over = leaves_work(&index.picture, lease)?;
    let uid = fact.uid.clone();
    let count = index.judged(node, &skyhook, &uid, left_over);
    let doublings = count.checked_sub(1)?;
    let after = MISMATCH.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
    Some(Backoff {
        skyhook: Some(skyhook),
        until: now + after.min(LONGEST),
        code: ReasonCode::ResultDoesNotMatch,
        message: "the agent said that all packages are complete, and its result does not say so; the node is tried again \
                  later",
    })
}

/// Whether the result of a lease that completed the wanted revision leaves work over; `None` for any other lease, and when
/// somebody has edited the Node's record since.
fn leaves_work(picture: &Picture, lease: &InterruptionLease) -> Option<bool> {
    let node = picture.nodes().get(&lease.spec.node.name)?;
    let skyhook = picture.skyhooks().get(&lease.spec.skyhook.name)?;
    let checked = skyhook.checked.as_ref().ok()?;
    let states = node.record(&skyhook.name).states.as_ref().ok()?;
    let packages = lease.status.iter().flat_map(|status| &status.packages);
    let reported = packages.filter(|(_, report)| !report.pending);
    let is_same = reported
        .map(|(key, report)| (key.clone(), report.status()))
        .eq(states
            .iter()
            .map(|(key, status)| (key.clone(), status.clone())));
    let is_meant = node.uid == lease.spec.node.uid
        && skyhook.uid == lease.spec.skyhook.uid
        && checked.revision == lease.spec.revision
        && protocol::phase(lease) == Some(Phase::Complete)
        && is_same;
    let work = standing::outstanding(picture, skyhook, checked, node).ok()?;
    is_meant.then_some(!revision::is_idle(&work))
}
