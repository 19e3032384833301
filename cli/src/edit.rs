//! Writes that lose nothing: each names the version of the object that it was made from. When somebody else has written in
//! between, the object is read again and the write is made anew.

use anyhow::{Result, bail};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::session::said;

/// How often a write is made anew.
const TRIES: usize = 10;
/// How many nodes are written at the same time.
const AT_ONCE: usize = 8;
/// Field manager of every write.
const MANAGER: &str = "kubectl-skyhook";

/// Which part of an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Object,
    Status,
}

/// Changes an object. `change` makes a merge patch from the object as it is, or `None` when there is nothing to change.
pub(crate) async fn change<K>(
    api: &Api<K>,
    mut object: K,
    part: Part,
    change: impl Fn(&K) -> Result<Option<Value>>,
) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = object.name_any();
    for _ in 0..TRIES {
        let Some(mut patch) = change(&object)? else {
            return Ok(());
        };
        patch["metadata"]["resourceVersion"] = json!(object.resource_version());
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let done = match part {
            Part::Object => api.patch(&name, &params, &patch).await,
            Part::Status => api.patch_status(&name, &params, &patch).await,
        };
        match done {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {
                object = api.get(&name).await.map_err(said)?;
            }
            Err(error) => return Err(said(error)),
        }
    }
    bail!("{name} was changed by others {TRIES} times meanwhile; try again")
}

/// What became of writes to nodes.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) done: usize,
    /// `node: problem`.
    pub(crate) errors: Vec<String>,
}

impl Outcome {
    /// The lines about what failed, below a heading.
    pub(crate) fn problems(&self, heading: &str) -> String {
        let lines = self.errors.iter().map(|error| format!("  - {error}\n"));
        if self.errors.is_empty() {
            String::new()
        } else {
            format!("\n{heading}\n{}", lines.collect::<String>())
        }
    }

    /// An error if a node could not be written.
    pub(crate) fn result(&self) -> Result<()> {
        if self.errors.is_empty() {
            return Ok(());
        }
        bail!("{} node(s) could not be written", self.errors.len())
    }
}

/// Changes nodes, some at a time.
pub(crate) async fn nodes(
    client: &Client,
    nodes: Vec<Node>,
    make: impl Fn(&Node) -> Result<Option<Value>>,
) -> Outcome {
    let api: Api<Node> = Api::all(client.clone());
    let (api, make) = (&api, &make);
    let writes = nodes.into_iter().map(|node| async move {
        let name = node.name_any();
        let done = change(api, node, Part::Object, make).await;
        done.map_err(|error| format!("{name}: {error:#}"))
    });
    let done: Vec<Result<(), String>> = futures::stream::iter(writes)
        .buffered(AT_ONCE)
        .collect()
        .await;
    let mut outcome = Outcome::default();
    for one in done {
        match one {
            Ok(()) => outcome.done += 1,
            Err(error) => outcome.errors.push(error),
        }
    }
    outcome
}
