//! Delays before the agent retries something that failed.

use std::time::Duration;

use sha2::{Digest, Sha256};
use skyhook_oci::RetryClass;

/// Range of the delays between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first_ms: i64,
    pub longest_ms: i64,
}

/// For steps, images and interrupts.
pub const STEP: Backoff = Backoff {
    first_ms: 10_000,
    longest_ms: LONGEST_MS,
};
/// For images that can be pulled only after a user has changed something.
const TERMINAL: Backoff = Backoff {
    first_ms: 10_000,
    longest_ms: 4 * 3_600_000,
};
/// For calls to the API.
pub const API: Backoff = Backoff {
    first_ms: 500,
    longest_ms: 30_000,
};
/// For writes of the lease's status. Nothing is lost when such a write is late.
pub const REPORT: Backoff = Backoff {
    first_ms: 2_000,
    longest_ms: 60_000,
};

/// The longest delay for anything that may succeed without help.
const LONGEST_MS: i64 = 300_000;
/// The longest delay that a registry can ask for (`Retry-After`).
const LONGEST_ASKED_FOR_MS: i64 = 24 * 3_600_000;

/// True when the time `at` has come. Also true when `at` is further away than the longest delay: then the clock was
/// set back since `at` was written.
#[must_use]
pub fn is_due(at: i64, now: i64) -> bool {
    is_due_after(LONGEST_MS, at, now)
}

/// As [`is_due`], for a time that was set with this delay.
#[must_use]
pub fn is_due_after(delay_ms: i64, at: i64, now: i64) -> bool {
    at <= now || at > now + delay_ms
}

/// When to wake up for the time `at`. Returns `now` if `at` is too far in the future because the clock was set back.
#[must_use]
pub fn wake_at(at: i64, now: i64) -> i64 {
    if is_due(at, now) { now } else { at }
}

/// Milliseconds until the next attempt, after `failures` failures in a row; `class` is the class of the last one.
///
/// Terminal failures (the image does not exist, or the registry refuses access) get longer and longer delays, up to
/// four hours. The first delays are short, because the image may be pushed a minute after the first attempt. If the
/// registry says when to come back, the agent waits at least that long.
#[must_use]
pub fn delay_of_class_ms(class: RetryClass, failures: u32, what: &str) -> i64 {
    match class {
        RetryClass::Transient => delay_ms(failures, what),
        RetryClass::Terminal => TERMINAL.delay_ms(failures, what),
        RetryClass::After(wait) => {
            let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
            delay_ms(failures, what).max(wait.min(LONGEST_ASKED_FOR_MS))
        }
    }
}

/// True for a delay that is so long that the message must explain it.
#[must_use]
pub fn is_long(delay_ms: i64) -> bool {
    delay_ms > LONGEST_MS
}

/// As [`Backoff::delay_ms`] for [`STEP`].
#[must_use]
pub fn delay_ms(failures: u32, what: &str) -> i64 {
    STEP.delay_ms(failures, what)
}

impl Backoff {
    /// Milliseconds until the next attempt, after `failures` failed ones in a row (at least one). The delay doubles up
    /// to the longest. A jitter that depends on `what` makes each delay up to a fifth shorter, so that nodes do not
    /// retry at the same moment.
    #[must_use]
    pub fn delay_ms(self, failures: u32, what: &str) -> i64 {
        let doublings = failures.saturating_sub(1).min(16);
        let full = (self.first_ms << doublings).min(self.longest_ms);
        full - full / 5 * i64::from(random(failures, what)) / i64::from(u16::MAX)
    }

    /// The same as a duration.
    #[must_use]
    pub fn delay(self, failures: u32, what: &str) -> Duration {
        let ms = u64::try_from(self.delay_ms(failures, what)).unwrap_or(0);
        Duration::from_millis(ms)
    }
}

fn random(failures: u32, what: &str) -> u16 {
    let mut hash = Sha256::new();
    hash.update(what.as_bytes());
    hash.update(failures.to_le_bytes());
    let digest = hash.finalize();
    u16::from_le_bytes([digest[0], digest[1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_seconds_doubling_to_five_minutes() {
        for (failures, full) in [
            (1, 10_000),
            (2, 20_000),
            (3, 40_000),
            (4, 80_000),
            (5, 160_000),
            (6, 300_000),
            (7, 300_000),
            (u32::MAX, 300_000),
        ] {
            let delay = delay_ms(failures, "a|1");
            assert!(
                (full * 4 / 5..=full).contains(&delay),
                "{failures}: {delay}"
            );
        }
    }

    #[test]
    fn what_somebody_has_to_mend_is_tried_ever_more_seldom_and_registries_are_obeyed() {
        let seconds = |seconds| RetryClass::After(std::time::Duration::from_secs(seconds));
        for (class, failures, full) in [
            (RetryClass::Transient, 20, 300_000),
            (RetryClass::Terminal, 1, 10_000),
            (RetryClass::Terminal, 6, 320_000),
            (RetryClass::Terminal, 11, 10_240_000),
            (RetryClass::Terminal, 12, 14_400_000),
            (RetryClass::Terminal, u32::MAX, 14_400_000),
            (seconds(1), 3, 40_000),
        ] {
            let delay = delay_of_class_ms(class, failures, "a|1");
            assert!(
                (full * 4 / 5..=full).contains(&delay),
                "{class:?} {failures}: {delay}"
            );
        }
        for (asked, want) in [(3600, 3_600_000), (u64::MAX, 86_400_000)] {
            assert_eq!(delay_of_class_ms(seconds(asked), 1, "a|1"), want);
        }
        // The number of attempts in a month with a wrong tag.
        let month = 30 * 86_400_000;
        let attempts = (1..)
            .scan(0, |at, failures| {
                *at += delay_of_class_ms(RetryClass::Terminal, failures, "a|1");
                (*at < month).then_some(())
            })
            .count();
        assert!(attempts < 250, "{attempts}");
    }

    #[test]
    fn a_clock_that_is_set_back_delays_nothing() {
        for (at, now, want) in [
            (1_000, 1_000, true),
            (1_001, 1_000, false),
            (301_000, 1_000, false),
            (301_001, 1_000, true),
            (86_400_000, 1_000, true),
            (i64::MAX, 1_000, true),
        ] {
            assert_eq!(is_due(at, now), want, "{at} at {now}");
        }
    }

    #[test]
    fn hosts_do_not_retry_in_step() {
        assert_ne!(delay_ms(3, "node-1 a|1"), delay_ms(3, "node-2 a|1"));
    }
}
