//! A record of which nodes our programs had cordoned, moment by moment, as the API server's stream of Nodes tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use skyhook_crds::installed::CordonRecord;
use skyhook_crds::names;
use tokio::task::JoinHandle;

/// Records for as long as it lives.
#[derive(Debug)]
pub struct CordonRecorder {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    now: BTreeSet<String>,
    most: usize,
    /// Per node, when it was cordoned and when that was given back.
    spans: BTreeMap<String, Vec<(Instant, Option<Instant>)>>,
    broken: Option<String>,
}

impl CordonRecorder {
    /// Returns once the watch delivers.
    pub async fn start(client: kube::Client) -> Result<Self> {
        let mut events =
            watcher::watcher(Api::<Node>::all(client), watcher::Config::default()).boxed();
        let mut seen = Seen::default();
        while let Some(event) = events.try_next().await? {
            match event {
                Event::InitApply(node) => seen.take(&node),
                Event::InitDone => break,
                Event::Init | Event::Apply(_) | Event::Delete(_) => {}
            }
        }
        let seen = Arc::new(Mutex::new(seen));
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let mut seen = record.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Ok(Event::Apply(node)) => seen.take(&node),
                    Ok(Event::Delete(_)) => {}
                    Ok(Event::Init | Event::InitApply(_) | Event::InitDone) => {
                        seen.broken = Some("the list was read again".to_owned());
                    }
                    Err(error) => seen.broken = Some(error.to_string()),
                }
            }
        });
        Ok(Self { seen, task })
    }

    /// The most nodes that were cordoned by us at one moment. Fails if the stream had a gap.
    pub fn most(&self) -> Result<usize> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &seen.broken {
            None => Ok(seen.most),
            Some(why) => bail!("the record of nodes has a gap: {why}"),
        }
    }

    /// When this node was cordoned, and when that was given back.
    pub fn spans(&self, node: &str) -> Vec<(Instant, Option<Instant>)> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.spans.get(node).cloned().unwrap_or_default()
    }
}

impl Drop for CordonRecorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Seen {
    fn take(&mut self, node: &Node) {
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
}
