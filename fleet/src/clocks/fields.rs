//! The names of all fields. A new field does not compile before it is named here; then a test asks for its row.

use super::{Clocks, LeaseClock};

impl LeaseClock {
    pub(crate) fn fields() -> [&'static str; 8] {
        let Self {
            uid: _,
            granted: _,
            given_up: _,
            resumed: _,
            drain: _,
            blocked: _,
            paused: _,
            skyhook: _,
        } = Self::default();
        [
            "uid", "granted", "given_up", "resumed", "drain", "blocked", "paused", "skyhook",
        ]
    }
}

impl Clocks {
    pub(crate) fn fields() -> [&'static str; 10] {
        let Self {
            leases: _,
            backoff: _,
            left: _,
            states_refused: _,
            states_gone: _,
            mismatches: _,
            drains: _,
            away: _,
            undrained: _,
            first_seen: _,
        } = Self::default();
        [
            "leases",
            "backoff",
            "left",
            "states_refused",
            "states_gone",
            "mismatches",
            "drains",
            "away",
            "undrained",
            "first_seen",
        ]
    }
}
