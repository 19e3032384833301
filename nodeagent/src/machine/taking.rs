//! Decides how an agent that works on no lease takes the next one. Has no side effects, like [`super::step`].

use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::protocol::{self, AgentDuty};

use super::retry::{self, API};

/// What the agent does with the lease of its node while it does not work on a lease.
///
/// ```text
/// Idle             ── a lease names a Node that is not known ───────────────────► FindingNode
/// FindingNode      ── the Node is read ─────────────────────────────────────────► Idle
/// Idle             ── the lease is granted, or its agent has lost its journal ──► Accepting
/// Accepting        ── accepted, and all is read ────────────────────────────────► Idle, and the machine starts
/// Idle             ── the lease was finished by an earlier agent ───────────────► RefreshingStatus
/// RefreshingStatus ── the status is true of this host ──────────────────────────► Idle
/// Accepting        ── refused, or no answer ────────────────────────────────────► Waiting
/// RefreshingStatus ── refused, or no answer ────────────────────────────────────► Waiting
/// any              ── the journal cannot be written ────────────────────────────► Waiting
/// Waiting          ── its time has come ────────────────────────────────────────► Idle
/// ```
///
/// In every state other than `Idle`, a new lease has to wait until that state ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taking {
    Idle {
        /// Number of failed attempts in a row.
        failures: u32,
    },
    /// The Node is read, because a lease names a Node with this UID.
    FindingNode { for_uid: String },
    /// The lease with this UID is accepted, and the revision and the Node are read.
    Accepting { uid: String, failures: u32 },
    /// The status of a lease that an earlier agent finished is updated.
    RefreshingStatus { uid: String, failures: u32 },
    /// An attempt failed. The next attempt is at this time, in Unix milliseconds.
    Waiting { until: i64, failures: u32 },
}

impl Default for Taking {
    fn default() -> Self {
        Self::Idle { failures: 0 }
    }
}

/// The state [`Taking`], and the UID of the Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taker {
    pub taking: Taking,
    /// UID of the Node when it was last read.
    pub node_uid: Option<String>,
    /// The Node's UID in the lease for which the Node was last read. The Node is read once for each such UID.
    pub asked_for: Option<String>,
}

/// What happened to the lease that is taken, or to what is read for it.
#[derive(Clone, Copy, Debug)]
pub enum TakingEvent<'a> {
    /// The latest version of the lease. The agent works on no lease.
    Seen(&'a InterruptionLease),
    NodeFound {
        uid: &'a str,
    },
    /// The lease is accepted, and the revision and the Node are read.
    Taken,
    /// The lease has changed, or the journal cannot be written. The next attempt is soon.
    Hindered,
    /// The API refuses the call, or does not answer.
    Failed,
    /// The status of the finished lease is correct for this host.
    Refreshed,
    Ticked,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    FindNode,
    /// Take the lease: `accept` when no agent has accepted it yet.
    Take {
        accept: bool,
    },
    RefreshStatus,
    /// Send the lease again as [`TakingEvent::Seen`].
    Look,
}

impl Taker {
    /// Processes one event. `node` is the name of the Node: delays depend on it, so that not all nodes retry at the
    /// same moment.
    pub fn step(&mut self, event: TakingEvent<'_>, now: i64, node: &str) -> Option<Action> {
        match event {
            TakingEvent::Seen(lease) => return self.seen(lease, now),
            TakingEvent::NodeFound { uid } => {
                self.node_uid = Some(uid.to_owned());
                self.taking = Taking::default();
                return Some(Action::Look);
            }
            TakingEvent::Taken | TakingEvent::Refreshed => self.taking = Taking::default(),
            TakingEvent::Hindered => self.wait(1, self.failures(), now, node),
            TakingEvent::Failed => {
                let failures = self.failures().saturating_add(1);
                self.wait(failures, failures, now, node);
            }
            TakingEvent::Ticked => {
                if let Taking::Waiting { until, failures } = self.taking
                    && retry::is_due(until, now)
                {
                    self.taking = Taking::Idle { failures };
                    return Some(Action::Look);
                }
            }
        }
        None
    }

    /// When [`TakingEvent::Ticked`] is due, in Unix milliseconds.
    #[must_use]
    pub fn wake_at(&self, now: i64) -> Option<i64> {
        match self.taking {
            Taking::Waiting { until, .. } => Some(retry::wake_at(until, now)),
            Taking::Idle { .. }
            | Taking::FindingNode { .. }
            | Taking::Accepting { .. }
            | Taking::RefreshingStatus { .. } => None,
        }
    }

    fn seen(&mut self, lease: &InterruptionLease, now: i64) -> Option<Action> {
        let failures = match self.taking {
            Taking::Idle { failures } => failures,
            Taking::Waiting { until, failures } if retry::is_due(until, now) => failures,
            Taking::Waiting { .. }
            | Taking::FindingNode { .. }
            | Taking::Accepting { .. }
            | Taking::RefreshingStatus { .. } => return None,
        };
        let named = &lease.spec.node.uid;
        if self.node_uid.as_ref() != Some(named) {
            if self.asked_for.as_ref() == Some(named) {
                return None;
            }
            self.asked_for = Some(named.clone());
            self.taking = Taking::FindingNode {
                for_uid: named.clone(),
            };
            return Some(Action::FindNode);
        }
        let uid = lease.metadata.uid.clone().unwrap_or_default();
        let (taking, action) = match protocol::agent_duty(lease, named) {
            AgentDuty::Ignore(_) => return None,
            AgentDuty::Finished => (
                Taking::RefreshingStatus { uid, failures },
                Action::RefreshStatus,
            ),
            AgentDuty::Accept => (
                Taking::Accepting { uid, failures },
                Action::Take { accept: true },
            ),
            // The lease was accepted by an agent whose journal is lost.
            AgentDuty::Work | AgentDuty::Hold | AgentDuty::Stop(_) => (
                Taking::Accepting { uid, failures },
                Action::Take { accept: false },
            ),
        };
        self.taking = taking;
        Some(action)
    }

    fn failures(&self) -> u32 {
        match self.taking {
            Taking::FindingNode { .. } => 0,
            Taking::Idle { failures }
            | Taking::Accepting { failures, .. }
            | Taking::RefreshingStatus { failures, .. }
            | Taking::Waiting { failures, .. } => failures,
        }
    }

    /// Waits with the delay of `like` failures, and remembers `failures` failures.
    fn wait(&mut self, like: u32, failures: u32, now: i64, node: &str) {
        self.taking = Taking::Waiting {
            until: now + API.delay_ms(like, node),
            failures,
        };
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skyhook_crds::lease::{InterruptionLeaseSpec, Phase, StopReason};

    use super::*;

    const NOW: i64 = 1_000_000;

    #[derive(Clone, Copy)]
    struct Lease {
        node: &'static str,
        granted: bool,
        phase: Option<Phase>,
        stop: Option<StopReason>,
    }

    const GRANTED: Lease = Lease {
        node: "n",
        granted: true,
        phase: None,
        stop: None,
    };

    impl Lease {
        fn real(self) -> InterruptionLease {
            let mut spec = json!({
                "node": { "name": "worker-1", "uid": self.node },
                "skyhook": { "name": "s", "uid": "u" },
                "revision": "r",
            });
            if self.granted {
                spec["granted"] = json!({ "by": "c", "at": "" });
            }
            if let Some(reason) = self.stop {
                spec["stop"] = json!({ "reason": reason, "since": "" });
            }
            let mut real = InterruptionLease::new("worker-1", InterruptionLeaseSpec::default());
            real.spec = serde_json::from_value(spec).unwrap();
            real.metadata.uid = Some("lease".into());
            real.status = self
                .phase
                .map(|phase| serde_json::from_value(json!({ "phase": phase })).unwrap());
            real
        }
    }

    fn taker(taking: Taking) -> Taker {
        Taker {
            taking,
            node_uid: Some("n".into()),
            asked_for: Some("n".into()),
        }
    }

    fn accepting(failures: u32) -> Taking {
        Taking::Accepting {
            uid: "lease".into(),
            failures,
        }
    }

    fn refreshing(failures: u32) -> Taking {
        Taking::RefreshingStatus {
            uid: "lease".into(),
            failures,
        }
    }

    #[test]
    fn a_lease_is_taken_by_what_it_says() {
        let phase = |phase| Lease {
            phase: Some(phase),
            ..GRANTED
        };
        let idle = Taking::default;
        for (name, lease, want, taking) in [
            (
                "granted",
                GRANTED,
                Some(Action::Take { accept: true }),
                accepting(0),
            ),
            (
                "not granted",
                Lease {
                    granted: false,
                    ..GRANTED
                },
                None,
                idle(),
            ),
            (
                "withdrawn",
                Lease {
                    stop: Some(StopReason::Deleted),
                    ..GRANTED
                },
                None,
                idle(),
            ),
            (
                "accepted before",
                phase(Phase::Running),
                Some(Action::Take { accept: false }),
                accepting(0),
            ),
            (
                "accepted before and stopped",
                Lease {
                    stop: Some(StopReason::Paused),
                    ..phase(Phase::Running)
                },
                Some(Action::Take { accept: false }),
                accepting(0),
            ),
            (
                "finished",
                phase(Phase::Complete),
                Some(Action::RefreshStatus),
                refreshing(0),
            ),
        ] {
            let mut taker = taker(idle());
            let action = taker.step(TakingEvent::Seen(&lease.real()), NOW, "worker-1");
            assert_eq!((action, taker.taking), (want, taking), "{name}");
        }
    }

    #[test]
    fn the_node_is_read_once_for_each_uid_that_a_lease_names() {
        let mut taker = Taker::default();
        let seen = |taker: &mut Taker, node| {
            let lease = Lease { node, ..GRANTED };
            taker.step(TakingEvent::Seen(&lease.real()), NOW, "worker-1")
        };
        assert_eq!(seen(&mut taker, "n"), Some(Action::FindNode));
        assert_eq!(seen(&mut taker, "n"), None, "it is under way");
        let found = taker.step(TakingEvent::NodeFound { uid: "n" }, NOW, "worker-1");
        assert_eq!(found, Some(Action::Look));
        assert_eq!(seen(&mut taker, "n"), Some(Action::Take { accept: true }));
        taker.step(TakingEvent::Taken, NOW, "worker-1");
        // A lease for another Node of the same name: the Node is read again, once.
        assert_eq!(seen(&mut taker, "m"), Some(Action::FindNode));
        taker.step(TakingEvent::NodeFound { uid: "n" }, NOW, "worker-1");
        assert_eq!(seen(&mut taker, "m"), None);
        assert_eq!(seen(&mut taker, "n"), Some(Action::Take { accept: true }));
    }

    #[test]
    fn what_fails_is_tried_ever_less_often() {
        let delay = |failures| API.delay_ms(failures, "worker-1");
        for (name, from, input, wait, failures) in [
            ("first", accepting(0), TakingEvent::Failed, delay(1), 1),
            ("third", accepting(2), TakingEvent::Failed, delay(3), 3),
            (
                "changed meanwhile",
                accepting(2),
                TakingEvent::Hindered,
                delay(1),
                2,
            ),
            (
                "no room for the journal",
                Taking::default(),
                TakingEvent::Hindered,
                delay(1),
                0,
            ),
            ("finished", refreshing(1), TakingEvent::Failed, delay(2), 2),
        ] {
            let mut taker = taker(from);
            assert_eq!(taker.step(input, NOW, "worker-1"), None, "{name}");
            let until = NOW + wait;
            assert_eq!(taker.taking, Taking::Waiting { until, failures }, "{name}");
            assert_eq!(taker.wake_at(NOW), Some(until), "{name}");
            // Until then nothing is done, whatever is seen.
            let lease = GRANTED.real();
            assert_eq!(
                taker.step(TakingEvent::Seen(&lease), until - 1, "worker-1"),
                None
            );
            assert_eq!(taker.step(TakingEvent::Ticked, until - 1, "worker-1"), None);
            let ticked = taker.step(TakingEvent::Ticked, until, "worker-1");
            assert_eq!(ticked, Some(Action::Look), "{name}");
            taker.step(TakingEvent::Seen(&lease), until, "worker-1");
            assert_eq!(taker.taking, accepting(failures), "{name}: it remembers");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_delays_nothing() {
        let mut taker = taker(Taking::Waiting {
            until: NOW,
            failures: 3,
        });
        let long_ago = NOW - 86_400_000;
        assert_eq!(taker.wake_at(long_ago), Some(long_ago));
        let ticked = taker.step(TakingEvent::Ticked, long_ago, "worker-1");
        assert_eq!(ticked, Some(Action::Look));
    }

    #[test]
    fn what_went_well_is_forgotten() {
        for (from, input) in [
            (accepting(5), TakingEvent::Taken),
            (refreshing(5), TakingEvent::Refreshed),
        ] {
            let mut taker = taker(from);
            assert_eq!(taker.step(input, NOW, "worker-1"), None);
            assert_eq!(taker.taking, Taking::default());
            assert_eq!(taker.wake_at(NOW), None);
        }
    }
}
