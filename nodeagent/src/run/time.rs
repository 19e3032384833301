//! Converts times in Unix milliseconds, which are in the journal, to instants, until which the event loop sleeps.

use std::time::Duration;

use tokio::time::Instant;

/// Converts `at`, a time in Unix milliseconds, to an instant. A time that is past becomes now. The caller has to recognise
/// a time that is too far away because the clock was set back: each kind of wait has its own limit.
pub(super) fn instant(at: i64, now: i64) -> Instant {
    let left = at.saturating_sub(now).max(0);
    Instant::now() + Duration::from_millis(left.unsigned_abs())
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
