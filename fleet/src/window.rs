//! How many writes may be under way at once. This limit is halved when the API server is too busy (429, or no answer).
//! It grows by one each time that as many writes as the limit allows have succeeded.

use std::time::Duration;

use crate::index::Mono;

/// The least limit. With a lower one, a single write that hangs could hold up the writes that give something back.
const LEAST: usize = 2;
/// Answers that the API server is busy, this close together, count as one: their writes were under way at the same
/// time.
const TOGETHER: Duration = Duration::from_secs(1);

/// The limit of writes under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    size: usize,
    most: usize,
    /// Writes that have succeeded since the size last changed.
    ended: usize,
    narrowed: Option<Mono>,
}

impl Window {
    /// A window that starts with the largest limit.
    #[must_use]
    pub const fn new(most: usize) -> Self {
        Self {
            size: most,
            most,
            ended: 0,
            narrowed: None,
        }
    }

    /// How many writes may be under way.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.size
    }

    /// A write has succeeded.
    pub fn widen(&mut self) {
        self.ended += 1;
        if self.ended >= self.size {
            self.size = self.most.min(self.size + 1);
            self.ended = 0;
        }
    }

    /// The API server is too busy.
    pub fn narrow(&mut self, now: Mono) {
        if self.narrowed.is_some_and(|at| now < at + TOGETHER) {
            return;
        }
        self.narrowed = Some(now);
        self.size = (self.size / 2).max(LEAST).min(self.most);
        self.ended = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_as_many_at_once_and_one_more_for_each_round_that_went_well() {
        let mut window = Window::new(16);
        let mut sizes = Vec::new();
        for seconds in [0, 0, 5, 10, 15] {
            window.narrow(Mono::from_secs(seconds));
            sizes.push(window.size());
        }
        assert_eq!(sizes, [8, 8, 4, 2, 2]);
        let mut ended = 0;
        let mut steps = Vec::new();
        while window.size() < 16 {
            let before = window.size();
            window.widen();
            ended += 1;
            if window.size() > before {
                steps.push(ended);
            }
        }
        assert_eq!(steps[..4], [2, 5, 9, 14]);
        assert_eq!(window.size(), 16);
        for _ in 0..100 {
            window.widen();
        }
        assert_eq!(window.size(), 16, "never more than is allowed");
        let mut one = Window::new(1);
        one.narrow(Mono::ZERO);
        assert_eq!(one.size(), 1);
    }
}
