//! What demo, benchmarks and tests need to say about a roll-out: start it, wait for it, and record
//! every grant while it goes on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use skyhook_crds::{InterruptionLease, Skyhook};

use crate::record::{Record, Recorder};
use crate::registry::Image;
use crate::source::source;

/// The manifest of `examples/<file>` (its first document), with every package's image taken from
/// `image`'s registry and repository, and a budget of `count` nodes.
pub fn example(file: &str, image: &Image, count: u32) -> Result<Value> {
    let path = source("examples").join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut manifest: Value = serde_yaml_ng::from_str(&text)?;
    let packages = manifest["spec"]["packages"]
        .as_object_mut()
        .context("spec.packages")?;
    for package in packages.values_mut() {
        package["image"] = json!(image.repository);
    }
    manifest["spec"]["interruptionBudget"] = json!({"count": count});
    Ok(manifest)
}

/// A Skyhook for all nodes with one package called `package`; `more` is merged into the package.
pub fn skyhook(name: &str, package: &str, image: &Image, count: u32, more: &Value) -> Value {
    let mut spec = json!({"version": image.version, "image": image.repository});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": {"name": name},
        "spec": {"interruptionBudget": {"count": count}, "packages": {package: spec}},
    })
}

/// [`skyhook`] with these scripts, by the key of the configMap that the package `shellscript` has them in.
pub fn scripts(name: &str, image: &Image, scripts: &Value, more: &Value) -> Value {
    let mut package = json!({"configMap": scripts});
    for (key, value) in more.as_object().into_iter().flatten() {
        package[key] = value.clone();
    }
    skyhook(name, "work", image, 1, &package)
}

/// Applies a Skyhook, as `kubectl apply --server-side` would.
pub async fn apply(client: kube::Client, manifest: &Value) -> Result<Skyhook> {
    let name = manifest["metadata"]["name"]
        .as_str()
        .context("metadata.name")?;
    let params = PatchParams::apply("harness").force();
    let skyhooks: Api<Skyhook> = Api::all(client);
    Ok(skyhooks
        .patch(name, &params, &Patch::Apply(manifest))
        .await?)
}

/// Waits until the Skyhook's status satisfies `done`; fails with the last one seen.
pub async fn wait_for(
    client: kube::Client,
    name: &str,
    what: &str,
    within: Duration,
    mut done: impl FnMut(&Skyhook) -> bool,
) -> Result<Skyhook> {
    let skyhooks: Api<Skyhook> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = watcher::watcher(skyhooks, config).boxed();
    let mut last = None;
    let deadline = tokio::time::sleep(within);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(skyhook) | Event::InitApply(skyhook))) => {
                    if done(&skyhook) {
                        return Ok(skyhook);
                    }
                    last = Some(skyhook);
                }
                Some(Ok(Event::Init | Event::InitDone | Event::Delete(_)) | Err(_)) => {}
                None => bail!("the watch of Skyhooks ended"),
            },
            () = &mut deadline => {
                let status = last.map(|skyhook| serde_json::to_string_pretty(&skyhook.status));
                bail!(
                    "{name}: not within {within:?}: {what}; last status: {}",
                    status.transpose()?.unwrap_or_else(|| "none, it does not exist".to_owned())
                );
            }
        }
    }
}

/// Waits until the roll-out is complete at the current generation.
pub async fn wait_complete(client: kube::Client, name: &str, within: Duration) -> Result<Skyhook> {
    wait_for(client, name, "complete", within, is_complete).await
}

/// Whether the reasons of its nodes hold all of these words.
pub fn says(skyhook: &Skyhook, words: &[&str]) -> bool {
    let reasons = skyhook.status.as_ref().map(|status| &status.node_reasons);
    serde_json::to_string(&reasons).is_ok_and(|text| words.iter().all(|word| text.contains(word)))
}

/// Complete, and of the spec as it is now.
pub fn is_complete(skyhook: &Skyhook) -> bool {
    let Some(status) = &skyhook.status else {
        return false;
    };
    Some(status.observed_generation) == skyhook.metadata.generation
        && status.status == skyhook_crds::Status::Complete
}

pub type LeaseRecorder = Recorder<Leases>;

/// Which leases were granted when.
#[derive(Debug, Default)]
pub struct Leases {
    granted: BTreeMap<String, bool>,
    most_granted: usize,
    changes: Vec<LeaseChange>,
}

/// One change of one lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseChange {
    pub at: Instant,
    pub node: String,
    /// The Skyhook that the node is worked on for.
    pub skyhook: String,
    /// `reserved`, `granted`, a phase, or `released`.
    pub what: String,
}

impl LeaseRecorder {
    /// The most leases that were granted at once. Fails if the stream had a gap.
    pub fn most_granted(&self) -> Result<usize> {
        self.whole(|leases| leases.most_granted)
    }

    /// Everything seen so far, in order.
    pub fn changes(&self) -> Vec<LeaseChange> {
        self.look(|leases| leases.changes.clone())
    }
}

impl Record for Leases {
    type Object = InterruptionLease;

    fn is(&mut self, lease: InterruptionLease) {
        let granted = lease.spec.granted.is_some();
        let node = lease.metadata.name.unwrap_or_default();
        let skyhook = lease.spec.skyhook.name;
        let phase = lease.status.and_then(|status| status.phase);
        let what = match phase {
            Some(phase) => format!("{phase:?}"),
            None if granted => "granted".to_owned(),
            None => "reserved".to_owned(),
        };
        self.note(&node, skyhook, what);
        self.granted.insert(node, granted);
        let granted = self.granted.values().filter(|granted| **granted).count();
        self.most_granted = self.most_granted.max(granted);
    }

    fn is_gone(&mut self, lease: InterruptionLease) {
        let node = lease.metadata.name.unwrap_or_default();
        self.note(&node, lease.spec.skyhook.name, "released".to_owned());
        self.granted.remove(&node);
    }
}

impl Leases {
    fn note(&mut self, node: &str, skyhook: String, what: String) {
        let last = self.changes.iter().rev().find(|change| change.node == node);
        if last.is_none_or(|last| last.what != what) {
            let node = node.to_owned();
            self.changes.push(LeaseChange {
                at: Instant::now(),
                node,
                skyhook,
                what,
            });
        }
    }
}
