//! Converts times in Unix milliseconds, which are in the journal, to instants, until which the event loop sleeps. Also has
//! the times of the garbage collection and of the looks for deleted Skyhooks.

use std::time::Duration;

use tokio::time::Instant;

use crate::journal::LOOK_MS;
use crate::machine::retry::Backoff;

/// Converts `at`, a time in Unix milliseconds, to an instant. A time that is past becomes now. The caller has to recognise
/// a time that is too far away because the clock was set back: each kind of wait has its own limit.
pub(super) fn instant(at: i64, now: i64) -> Instant {
    let left = at.saturating_sub(now).max(0);
    Instant::now() + Duration::from_millis(left.unsigned_abs())
}

/// How long after its start an agent collects garbage. The agents of a cluster are started together, and each asks the
/// API for revisions: a jitter of a fifth spreads the requests.
const FIRST_SWEEP: Backoff = Backoff {
    first_ms: 5 * 60_000,
    longest_ms: 5 * 60_000,
};
/// How long after that it collects garbage again, with the same jitter.
const SWEEP: Backoff = Backoff {
    first_ms: 24 * 3_600_000,
    longest_ms: 24 * 3_600_000,
};

/// How long after its start, and after each look, an agent looks for what it remembers of deleted Skyhooks.
const LOOK: Backoff = Backoff {
    first_ms: LOOK_MS,
    longest_ms: LOOK_MS,
};

/// When the agent of the node `node` looks for deleted Skyhooks again.
pub(super) fn next_look(node: &str) -> Instant {
    Instant::now() + LOOK.delay(1, node)
}

/// When the agent of the node `node` collects garbage for the first time.
pub(super) fn first_sweep(node: &str) -> Instant {
    Instant::now() + FIRST_SWEEP.delay(1, node)
}

/// When it collects garbage again.
pub(super) fn next_sweep(node: &str) -> Instant {
    Instant::now() + SWEEP.delay(1, node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_due_in_hours_is_not_due_now() {
        let hours = 4 * 3_600_000;
        for (at, left) in [
            (1_000 + hours, Duration::from_secs(4 * 3_600)),
            (1_000, Duration::ZERO),
            (0, Duration::ZERO),
            (i64::MIN, Duration::ZERO),
        ] {
            assert_eq!(instant(at, 1_000), Instant::now() + left, "{at}");
        }
    }
}
