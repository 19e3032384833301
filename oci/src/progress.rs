//! What a pull and an unpack tell while they run.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;

mod render;

pub(crate) use render::size;
pub use render::{Display, bar, show};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The reference is being asked for.
    Resolving {
        reference: String,
    },
    /// The image is known: its layers and what they weigh together.
    Resolved {
        manifest: Digest,
        layers: u64,
        bytes: u64,
    },
    /// A layer is in the store already.
    LayerPresent {
        digest: Digest,
        bytes: u64,
    },
    LayerStarted {
        digest: Digest,
        bytes: u64,
    },
    /// Bytes of this layer that have come so far.
    LayerProgress {
        digest: Digest,
        received: u64,
    },
    LayerDone {
        digest: Digest,
    },
    /// A request failed and is tried again.
    Retrying {
        what: String,
        reason: String,
        after_ms: u64,
    },
    /// Everything is in the store, verified.
    Pulled {
        manifest: Digest,
    },
    Unpacking {
        manifest: Digest,
    },
    Unpacked {
        entries: u64,
    },
}

/// Takes events; must not block.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Event) + Send + Sync>);

impl Progress {
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// Nobody listens.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    pub(crate) fn say(&self, event: Event) {
        (self.0)(event);
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}
