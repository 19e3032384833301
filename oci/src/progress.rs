//! Events that report the progress of a pull or an unpack.

use std::fmt;
use std::sync::Arc;

use crate::digest::Digest;

mod render;

pub use render::{Display, bar, show, size};

/// One step of a pull or an unpack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// The pull looks for the manifest of the reference.
    Resolving {
        reference: String,
    },
    /// The manifest is known: the number of layers, and their total size.
    Resolved {
        manifest: Digest,
        layers: u64,
        bytes: u64,
    },
    /// The store already has this layer (or the image config).
    LayerPresent {
        digest: Digest,
        bytes: u64,
    },
    LayerStarted {
        digest: Digest,
        bytes: u64,
    },
    /// How many bytes of this layer were received so far.
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
    /// The store has the complete image.
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

/// A function that receives the events. It must not block.
#[derive(Clone)]
pub struct PullProgress(Arc<dyn Fn(PullEvent) + Send + Sync>);

impl PullProgress {
    pub fn new(sink: impl Fn(PullEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// All events are dropped.
    pub fn none() -> Self {
        Self::new(|_| {})
    }

    pub(crate) fn say(&self, event: PullEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullProgress")
    }
}
