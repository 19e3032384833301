//! When the next pass may begin. Changes are collected for a moment, so that a burst of changes costs one pass. Passes
//! take at most a twentieth of the time on average, also in a large cluster. After a quiet time a few passes may follow
//! each other without a pause, so that an edit of a Skyhook has its first effects at once.

use std::time::Duration;

use skyhook_fleet::index::Mono;

/// Changes are collected for this long before the next pass.
const SHORTEST: Duration = Duration::from_millis(2);

/// Further changes do not delay a pass for longer than this.
const LONGEST: Duration = Duration::from_millis(50);

/// Each pass has to be followed by a pause that is this many times as long as the pass.
const SHARE: u32 = 20;

/// How long passes may take together before the pauses that they owe must be made.
const CREDIT: Duration = Duration::from_millis(250);

/// The pauses that past passes owe.
#[derive(Debug, Default)]
pub struct Debounce {
    /// The time at which all pauses are made, if no further pass comes.
    even_at: Mono,
}

impl Debounce {
    /// Notes a pass.
    pub fn passed(&mut self, began: Mono, ended: Mono) {
        let owed = ended.since(began) * SHARE;
        self.even_at = self.even_at.max(ended) + owed;
    }

    /// How long changes are collected from now on.
    #[must_use]
    pub fn pause(&self, now: Mono) -> Duration {
        SHORTEST.max(self.owed(now))
    }

    /// True when a pass has to begin although changes still come. `since` is when the first of these changes came.
    #[must_use]
    pub fn is_overdue(&self, since: Mono, now: Mono) -> bool {
        self.owed(now).is_zero() && now.since(since) >= LONGEST
    }

    /// The pauses that must be made before the next pass.
    fn owed(&self, now: Mono) -> Duration {
        self.even_at.since(now).saturating_sub(CREDIT * SHARE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Mono = Mono::from_secs(60);

    /// Changes come all the time, and each pass takes so many milliseconds. Says when the passes of ten minutes begin,
    /// in milliseconds.
    fn passes(debounce: &mut Debounce, took: u64) -> Vec<u64> {
        let mut now = MINUTE;
        let mut began = Vec::new();
        while now < MINUTE + Duration::from_secs(600) {
            // No change delays the pass any further once its pause is made.
            now += debounce.pause(now).max(LONGEST);
            began.push(u64::try_from(now.since(MINUTE).as_millis()).unwrap_or_default());
            let ended = now + Duration::from_millis(took);
            debounce.passed(now, ended);
            now = ended;
        }
        began
    }

    #[test]
    fn the_first_passes_after_a_quiet_time_follow_each_other() {
        let mut debounce = Debounce::default();
        let began = passes(&mut debounce, 60);
        assert_eq!(began[..5], [50, 160, 270, 380, 490]);
        // The first pass ended after 110 ms. The five owe 6 s, of which 5 s are credit.
        assert_eq!(began[5], 110 + 6_000 - 5_000);
        assert_eq!(began[6] - began[5], 1_200);
        let later = MINUTE + Duration::from_secs(3_600);
        assert_eq!(debounce.pause(later), SHORTEST, "after a quiet hour");
    }

    #[test]
    fn passes_take_a_twentieth_of_the_time_in_the_long_run() {
        for took in [1, 20, 60, 300] {
            let began = passes(&mut Debounce::default(), took);
            let all = took * u64::try_from(began.len()).unwrap_or_default();
            // One pass ends before any pause is owed, and one begins at the end.
            assert!(all <= 600_000 / 20 + 250 + 2 * took, "{took} ms: {all} ms");
        }
    }

    #[test]
    fn a_pass_is_overdue_when_changes_do_not_end() {
        let mut debounce = Debounce::default();
        let after = |millis| MINUTE + Duration::from_millis(millis);
        assert!(!debounce.is_overdue(MINUTE, after(49)));
        assert!(debounce.is_overdue(MINUTE, after(50)));
        debounce.passed(MINUTE, after(300));
        assert!(
            !debounce.is_overdue(after(300), after(1_299)),
            "a pause is owed"
        );
        assert!(debounce.is_overdue(after(300), after(1_300)));
    }
}
