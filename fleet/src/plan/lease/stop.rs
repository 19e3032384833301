//! Orders to stop while an agent works, orders to go on after a pause, and the deletion of leases that are given up.

use std::time::Duration;

use skyhook_crds::lease::{InterruptionLease, StopReason};

use super::LeaseCase;
use crate::clocks::Mono;
use crate::effect::Effect;
use crate::facts::{Goal, LeaseFact, NodeFact, SkyhookFact};
use crate::plan::{Draft, View, drain};

/// gracefulShutdown of a package that sets none.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);
/// How long an agent has to stop, in addition to the longest grace period of its packages.
const ABANDON_AFTER: Duration = Duration::from_secs(60);

/// What the decision about an order to stop depends on.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Why the agent should stop now, if it should.
    wanted: Option<StopReason>,
    /// The reason to stop that the lease carries now.
    current: Option<StopReason>,
    /// The Skyhook now asks for another revision than the one that the order to stop names.
    is_another_revision: bool,
    /// The drain's state or start time has to be reset before the pause may end.
    is_to_be_taken_back: bool,
    /// Nobody waits for the result of the lease.
    given_up: bool,
}

/// What to write about stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StopOrder {
    /// Write nothing.
    Keep,
    /// Tell the agent to stop.
    Order(StopReason),
    /// The agent stops already for a new revision. Tell it that there is a still newer one.
    Further(StopReason),
    /// Tell the agent to go on.
    Resume,
    /// Reset the drain: what was true before the pause may have changed.
    TakeBack,
    /// Wait for the agent to stop until its time is over. Then delete the lease without its result.
    Abandon,
}

/// Decides what to write about stopping.
fn decide(asked: Asked) -> StopOrder {
    match (asked.wanted, asked.current) {
        (None, Some(StopReason::Paused)) if asked.is_to_be_taken_back => StopOrder::TakeBack,
        (None, Some(StopReason::Paused)) => StopOrder::Resume,
        (Some(wanted), None) => StopOrder::Order(wanted),
        (Some(wanted), Some(StopReason::Paused)) if wanted != StopReason::Paused => {
            StopOrder::Order(wanted)
        }
        // The agent ends running steps by comparison with the revision in the order. With a still newer revision, it
        // may have to end one more step.
        (Some(wanted), Some(current)) if wanted == current && asked.is_another_revision => {
            StopOrder::Further(wanted)
        }
        // Nothing is written during a pause.
        (None, None) | (Some(_), Some(StopReason::Paused)) => StopOrder::Keep,
        // Any other order stays: the agent may have obeyed it already.
        (_, Some(_)) if asked.given_up => StopOrder::Abandon,
        (_, Some(_)) => StopOrder::Keep,
    }
}

/// True when the Skyhook does not select the node any more. Nobody can tell while its spec is not valid.
pub(super) fn is_left_out(skyhook: &SkyhookFact, node: &NodeFact) -> bool {
    skyhook.checked.is_ok() && !skyhook.selects(node)
}

impl LeaseCase<'_> {
    /// The reason to stop that the lease carries now, if any.
    pub(super) fn stop_ordered(&self) -> Option<StopReason> {
        self.lease.spec.stop.as_ref().map(|stop| stop.reason)
    }

    /// Tells the agent to stop, or to go on after a pause.
    pub(super) fn order_stop(&self, node: &NodeFact, draft: &mut Draft<'_>) {
        let wanted = match self.skyhook {
            None => Some(StopReason::Deleted),
            Some(_) if self.record(node).is_edited() => Some(StopReason::Edited),
            Some(skyhook) => self
                .reason_to_stop(node, skyhook)
                .or_else(|| {
                    self.view
                        .picture
                        .is_agent_too_old(self.lease)
                        .then_some(StopReason::AgentTooOld)
                })
                .or_else(|| self.drain_timed_out(skyhook, draft)),
        };
        let revision = self.stored_revision(wanted);
        let told = self.lease.spec.stop.as_ref();
        let told = told.and_then(|stop| stop.revision.as_ref());
        let take_back = drain::take_back(self.view, self.fact, self.lease);
        let asked = Asked {
            wanted,
            current: self.stop_ordered(),
            is_another_revision: revision.is_some() && revision.as_ref() != told,
            is_to_be_taken_back: take_back.is_some(),
            given_up: self.view.picture.is_given_up(self.lease),
        };
        match decide(asked) {
            StopOrder::Keep => {}
            StopOrder::Order(reason) | StopOrder::Further(reason) => {
                self.write_stop(Some(reason), revision, draft);
            }
            StopOrder::Resume => self.write_stop(None, None, draft),
            StopOrder::TakeBack => {
                if let Some(take_back) = take_back {
                    draft.push(take_back);
                }
            }
            StopOrder::Abandon if self.batch.may_release => self.abandon(draft),
            // A failure must be kept in the state of the roll-out before the lease goes.
            StopOrder::Abandon => {}
        }
    }

    fn write_stop(
        &self,
        stop: Option<StopReason>,
        revision: Option<String>,
        draft: &mut Draft<'_>,
    ) {
        let is_left = self.skyhook.is_some_and(|skyhook| !skyhook.deleting);
        let message = if stop == Some(StopReason::Deleted) && is_left {
            "the Skyhook no longer selects the node"
        } else {
            ""
        };
        draft.push(Effect::StopLease {
            node: self.fact.node.clone(),
            at: self.at(),
            stop,
            revision,
            message,
        });
    }

    /// Why the Skyhook does not want the node worked on under this lease.
    pub(super) fn reason_to_stop(
        &self,
        node: &NodeFact,
        skyhook: &SkyhookFact,
    ) -> Option<StopReason> {
        if skyhook.goal() == Goal::Nothing || is_left_out(skyhook, node) {
            return Some(StopReason::Deleted);
        }
        if skyhook.is_disabled() {
            return Some(StopReason::Disabled);
        }
        // A pause goes before a new revision: lease, slot and cordon stay until the pause ends.
        if skyhook.is_paused() {
            return Some(StopReason::Paused);
        }
        // A spec that is not valid counts as a new revision as well, so that a parked Skyhook keeps no slot.
        let checked = skyhook.checked.as_ref().ok();
        let same = checked.is_some_and(|checked| checked.revision == self.lease.spec.revision);
        (!same).then_some(StopReason::NewRevision)
    }

    /// The revision that an order to stop names, once its ControllerRevision exists. `None` for any other reason to
    /// stop.
    fn stored_revision(&self, stop: Option<StopReason>) -> Option<String> {
        let checked = self.skyhook?.checked.as_ref().ok()?;
        let revisions = self.view.picture.revisions();
        let is_stored = revisions.contains_key(&checked.revision);
        (stop == Some(StopReason::NewRevision) && is_stored).then(|| checked.revision.clone())
    }

    fn drain_timed_out(&self, skyhook: &SkyhookFact, draft: &mut Draft<'_>) -> Option<StopReason> {
        let checked = skyhook.checked.as_ref().ok()?;
        let deadline = drain::deadline(self.view, self.lease, checked)?;
        if deadline <= self.view.now.mono {
            return Some(StopReason::DrainTimedOut);
        }
        draft.wake_at(deadline);
        None
    }

    /// Deletes the lease without its result once the agent's time to stop is over. So neither an agent that does not
    /// stop nor a node that does not come back can block the deletion of a Skyhook.
    pub(super) fn abandon(&self, draft: &mut Draft<'_>) {
        let Some(deadline) = abandoned_at(self.view, self.fact, self.lease) else {
            return;
        };
        if deadline <= self.view.now.mono {
            draft.push(Effect::AbandonLease {
                node: self.fact.node.clone(),
                at: self.at(),
            });
        } else {
            draft.wake_at(deadline);
        }
    }
}

/// When the agent's time to stop is over under a lease that is given up; `None` for any other lease.
pub(in crate::plan) fn abandoned_at(
    view: &View<'_>,
    fact: &LeaseFact,
    lease: &InterruptionLease,
) -> Option<Mono> {
    let given_up = view.clocks.lease(&fact.node)?.given_up?;
    let revision = view.picture.revisions().get(&lease.spec.revision);
    let data = revision.and_then(|revision| revision.data.as_ref());
    let grace = data
        .iter()
        .flat_map(|data| data.packages.values())
        .filter_map(|package| package.graceful_shutdown.as_ref()?.value().ok())
        .fold(DEFAULT_GRACE, Duration::max);
    Some(given_up + grace + ABANDON_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use StopReason::{Deleted, Disabled, DrainTimedOut, Edited, NewRevision, Paused};

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn what_is_written_about_stopping() {
        let asked = Asked {
            wanted: None,
            current: None,
            is_another_revision: false,
            is_to_be_taken_back: false,
            given_up: false,
        };
        let of = |wanted, current| Asked {
            wanted,
            current,
            ..asked
        };
        for (name, asked, want) in [
            ("nothing is the matter", asked, StopOrder::Keep),
            (
                "there is a reason",
                of(Some(Edited), None),
                StopOrder::Order(Edited),
            ),
            (
                "a pause begins",
                of(Some(Paused), None),
                StopOrder::Order(Paused),
            ),
            (
                "it goes on",
                of(Some(Paused), Some(Paused)),
                StopOrder::Keep,
            ),
            ("it is over", of(None, Some(Paused)), StopOrder::Resume),
            (
                "it is over, and the node was drained before",
                Asked {
                    is_to_be_taken_back: true,
                    ..of(None, Some(Paused))
                },
                StopOrder::TakeBack,
            ),
            (
                "something worse comes in a pause",
                of(Some(Deleted), Some(Paused)),
                StopOrder::Order(Deleted),
            ),
            (
                "even when nobody waits for it",
                Asked {
                    given_up: true,
                    ..of(Some(Disabled), Some(Paused))
                },
                StopOrder::Order(Disabled),
            ),
            (
                "an order stands when its reason is gone",
                of(None, Some(DrainTimedOut)),
                StopOrder::Keep,
            ),
            (
                "and when another reason comes",
                of(Some(Deleted), Some(NewRevision)),
                StopOrder::Keep,
            ),
            (
                "and a pause is not one",
                of(Some(Paused), Some(NewRevision)),
                StopOrder::Keep,
            ),
            (
                "a revision came after the one that it stops for",
                Asked {
                    is_another_revision: true,
                    ..of(Some(NewRevision), Some(NewRevision))
                },
                StopOrder::Further(NewRevision),
            ),
            (
                "it stops, and is not waited for",
                Asked {
                    given_up: true,
                    ..of(Some(Deleted), Some(Deleted))
                },
                StopOrder::Abandon,
            ),
            (
                "also when it was to stop for another reason",
                Asked {
                    given_up: true,
                    ..of(Some(Deleted), Some(NewRevision))
                },
                StopOrder::Abandon,
            ),
            (
                "it is given up and was not told yet",
                Asked {
                    given_up: true,
                    ..of(Some(Deleted), None)
                },
                StopOrder::Order(Deleted),
            ),
        ] {
            assert_eq!(decide(asked), want, "{name}");
        }
    }
}
