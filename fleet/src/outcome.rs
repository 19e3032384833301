//! What came of an effect.

use std::time::Duration;

use crate::index::Change;

/// What came of an effect.
#[derive(Debug)]
pub enum Outcome {
    /// Written. What the server returned is folded into the picture, leases excepted.
    Done(Option<Change>),
    /// The object is not what the effect was decided on: the watch brings what it is now.
    Stale,
    /// Try again after this long.
    Retry { after: Duration, error: String },
    /// The server asks for patience, with everything.
    Busy { after: Duration, error: String },
    /// The server will not have it: the same again only helps once somebody has changed something.
    Refused { error: String },
}
