//! Which nodes our programs had cordoned, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Result;
use k8s_openapi::api::core::v1::Node;
use skyhook_crds::installed::CordonRecord;
use skyhook_crds::names;

use crate::record::{Record, Recorder};

pub type CordonRecorder = Recorder<Cordons>;

#[derive(Debug, Default)]
pub struct Cordons {
    now: BTreeSet<String>,
    most: usize,
    /// Per node, when it was cordoned and when that was given back.
    spans: BTreeMap<String, Vec<(Instant, Option<Instant>)>>,
}

impl CordonRecorder {
    /// The most nodes that were cordoned by us at one moment. Fails if the stream had a gap.
    pub fn most(&self) -> Result<usize> {
        self.whole(|cordons| cordons.most)
    }

    /// When this node was cordoned, and when that was given back.
    pub fn spans(&self, node: &str) -> Vec<(Instant, Option<Instant>)> {
        self.look(|cordons| cordons.spans.get(node).cloned().unwrap_or_default())
    }
}

impl Record for Cordons {
    type Object = Node;

    fn is(&mut self, node: Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let annotation = node
            .metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(names::CORDON_OWNERS));
        let record = CordonRecord::parse(annotation.map(String::as_str));
        let unschedulable = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
        let spans = self.spans.entry(name.clone()).or_default();
        if unschedulable && !record.owners.is_empty() {
            if self.now.insert(name) {
                spans.push((Instant::now(), None));
            }
        } else if self.now.remove(&name)
            && let Some(span) = spans.last_mut()
        {
            span.1 = Some(Instant::now());
        }
        self.most = self.most.max(self.now.len());
    }

    fn is_gone(&mut self, _: Node) {}
}
