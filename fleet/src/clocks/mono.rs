//! Times on the clock of this process.

use std::ops::{Add, AddAssign, Sub};
use std::time::Duration;

/// A time on a clock that starts with the process and that nobody can set. Deadlines are measured with it. It is not a
/// span of time: two times cannot be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(Duration);

impl Mono {
    /// The start of the process.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// The time so long after the start.
    #[must_use]
    pub const fn after(start: Duration) -> Self {
        Self(start)
    }

    /// The time so many seconds after the start.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// The time so many milliseconds after the start.
    #[must_use]
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }

    /// How long ago `earlier` was; nothing if it is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }
}

impl AddAssign<Duration> for Mono {
    fn add_assign(&mut self, span: Duration) {
        *self = *self + span;
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span))
    }
}
