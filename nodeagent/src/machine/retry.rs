//! When something that failed is tried again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use skyhook_oci::RetryClass;

/// Delays between attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first.
    pub first_ms: i64,
    pub longest_ms: i64,
}

/// Steps, images and interrupts.
pub const STEP: Backoff = Backoff {
    first_ms: 10_000,
    longest_ms: LONGEST_MS,
};
/// Images that can only be pulled when somebody has done something.
const TERMINAL: Backoff = Backoff {
    first_ms: 10_000,
    longest_ms: 4 * 3_600_000,
};
/// Calls to the API.
pub const API: Backoff = Backoff {
    first_ms: 500,
    longest_ms: 30_000,
};
/// Writes of the status: what they say is not lost when they come late.
pub const REPORT: Backoff = Backoff {
    first_ms: 2_000,
    longest_ms: 60_000,
};

/// What may succeed by itself never waits longer than this.
const LONGEST_MS: i64 = 300_000;
/// A registry is not believed that it wants to be left alone for longer than this.
const LONGEST_ASKED_FOR_MS: i64 = 24 * 3_600_000;

/// True when the time `at` has come. Also true when `at` is further away than the longest delay: then the clock was
/// set back since `at` was written.
#[must_use]
pub fn is_due(at: i64, now: i64) -> bool {
    is_due_after(LONGEST_MS, at, now)
}

/// As [`is_due`], of what was given this delay.
#[must_use]
pub fn is_due_after(delay_ms: i64, at: i64, now: i64) -> bool {
    at <= now || at > now + delay_ms
}

/// When to wake up for what is due at `at`: now, when it was due before the clock was set back.
#[must_use]
pub fn wake_at(at: i64, now: i64) -> i64 {
    if is_due(at, now) { now } else { at }
}

/// Milliseconds until the next attempt after so many failures in a row, the last of this class. What is not there, or is
/// refused, is tried ever more seldom, down to once in four hours: it may be put there a minute after it was asked for, but
/// a wrong tag stays wrong. A registry that says when to come back is obeyed.
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

/// True for a delay that people wonder about.
#[must_use]
pub fn is_long(delay_ms: i64) -> bool {
    delay_ms > LONGEST_MS
}

/// As [`Backoff::delay_ms`], of [`STEP`].
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
        // In a month of a wrong tag.
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
