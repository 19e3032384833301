//! The result of an effect.

use std::time::Duration;

use crate::index::Change;

/// The result of an effect.
#[derive(Debug)]
pub enum Outcome {
    /// The write succeeded. If the server returned the object, the picture takes it in. For a lease, the picture waits
    /// for the watch.
    Done(Option<Change>),
    /// The object has changed since the decision. The watch will deliver the newer version.
    Stale,
    /// The server failed with this write. The next tries wait longer and longer.
    Retry { error: String },
    /// The server is too busy or cannot be reached, so writes of any kind have to wait.
    Busy { after: Duration, error: String },
    /// The server refuses the write. Another try can only succeed after somebody has changed something.
    Refused { error: String },
}
