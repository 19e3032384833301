//! From times in Unix milliseconds, which the journal keeps, to instants, which the event loop sleeps until.

use std::time::Duration;

use tokio::time::Instant;

/// The instant of `at`, both in Unix milliseconds; now, when it is past. How far away a time may be before it must be from
/// before the clock was set back is different for each thing that is waited for: whoever gives the time looks at that.
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
