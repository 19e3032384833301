//! Decides whether and when a failed request is sent again within a pull.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use crate::chain;
use crate::config::{RetryClass, Timeouts};
use crate::progress::{PullEvent, PullProgress};
use crate::registry::RegistryError;

/// The longest pause between two tries. A registry may ask for a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Counts the tries of one request.
#[derive(Debug)]
pub(super) struct Retry<'a> {
    timeouts: &'a Timeouts,
    what: String,
    progress: PullProgress,
    tries: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(timeouts: &'a Timeouts, what: String, progress: PullProgress) -> Self {
        Self {
            timeouts,
            what,
            progress,
            tries: 0,
        }
    }

    pub(super) fn start_over(&mut self) {
        self.tries = 0;
    }

    /// Waits until the next try, or returns the error if there is no further try.
    pub(super) async fn after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.tries += 1;
        let jitter = RandomState::new().hash_one(self.tries);
        match pause(error.retry_class(), self.tries, self.timeouts, jitter) {
            None => Err(error),
            Some(pause) => {
                let after_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                let reason = chain(&error);
                tracing::debug!(what = self.what, reason, after_ms, "retrying");
                self.progress.say(PullEvent::Retrying {
                    what: self.what.clone(),
                    reason,
                    after_ms,
                });
                tokio::time::sleep(pause).await;
                Ok(())
            }
        }
    }
}

/// How long to wait after try number `tries` (the first is 1). `None` means that there is no further try. `jitter` is
/// a random number.
fn pause(class: RetryClass, tries: u32, timeouts: &Timeouts, jitter: u64) -> Option<Duration> {
    if tries >= timeouts.tries {
        return None;
    }
    match class {
        RetryClass::Terminal => None,
        RetryClass::After(wait) => (wait <= timeouts.max_wait).then_some(wait),
        RetryClass::Transient => {
            let full = timeouts
                .backoff
                .saturating_mul(1 << (tries - 1).min(16))
                .min(MAX_BACKOFF);
            // The pause is a random part of `full`, at least half of it, so that not all nodes of a fleet send their
            // requests at the same time.
            Some(full / 2 + full.mul_f64((jitter % 1024) as f64 / 2048.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_end_and_obey_the_registry() {
        let timeouts = Timeouts {
            backoff: Duration::from_millis(100),
            max_wait: Duration::from_secs(30),
            tries: 5,
            ..Timeouts::default()
        };
        let ms = |class, tries, jitter| {
            pause(class, tries, &timeouts, jitter).map(|pause| pause.as_millis())
        };
        let after = |seconds| RetryClass::After(Duration::from_secs(seconds));
        let table = [
            (RetryClass::Transient, 1, 0, Some(50)),
            (RetryClass::Transient, 1, 1023, Some(99)),
            (RetryClass::Transient, 4, 0, Some(400)),
            (RetryClass::Transient, 5, 0, None),
            (RetryClass::Terminal, 1, 0, None),
            (after(30), 1, 0, Some(30_000)),
            (after(31), 1, 0, None),
            (after(1), 5, 0, None),
        ];
        for (class, tries, jitter, want) in table {
            assert_eq!(ms(class, tries, jitter), want, "{class:?} {tries} {jitter}");
        }
    }
}
