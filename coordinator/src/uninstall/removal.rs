//! `finish-removal`: what has to happen before the chart is installed where an uninstall has left CRDs that cannot end.
//!
//! Somebody has deleted the CRDs and the coordinator together. The finalizers of the objects that are left keep the CRDs,
//! and nobody takes them away. While a CRD is in this state, it takes no new objects, and nothing can be installed.
//! Guarantees: the program ends in time, and after a success none of our CRDs is being deleted. It changes nothing if no
//! CRD is being deleted. A coordinator that still runs is left the time to release what it holds.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PartialObjectMeta};
use kube::{Client, CustomResourceExt as _, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use skyhook_crds::{DeploymentPolicy, InterruptionLease, RolloutState, Skyhook, names};
use skyhook_fleet::facts::{WireLease, WireSkyhook};
use tokio::time::{Instant, sleep, timeout};

use super::sweep::{all, strip};
use super::{LOOK, PATIENCE};
use crate::config::duration;

#[cfg(test)]
mod tests;

/// How long nothing has to change until nobody else is believed to work on it.
const STANDSTILL: Duration = Duration::from_secs(10);

/// Flags of `finish-removal`.
#[derive(Args, Clone, Debug)]
pub struct RemovalArgs {
    /// How long the whole may take.
    #[arg(long, default_value = "100s", value_parser = duration)]
    pub timeout: Duration,
}

/// What is left, of the CRDs that are being deleted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    crds: Vec<&'static str>,
    objects: usize,
    /// Finalizers that are not ours: who set them has to take them away.
    foreign: Vec<String>,
}

/// Waits until no CRD of ours is being deleted, and takes our finalizers away if that does not come by itself.
pub async fn run(client: Client, args: &RemovalArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let (mut smallest, mut since) = (usize::MAX, started);
    let mut last = String::from("the API server has not answered");
    while started.elapsed() < args.timeout {
        let strips = since.elapsed() > STANDSTILL;
        match timeout(PATIENCE, look(&client, strips)).await {
            Ok(Ok(left)) if left.crds.is_empty() => {
                tracing::info!("no CustomResourceDefinition is being deleted");
                return Ok(());
            }
            Ok(Ok(left)) => {
                if left.objects < smallest {
                    (smallest, since) = (left.objects, Instant::now());
                }
                last = left.message();
                tracing::info!(
                    left = last,
                    strips,
                    "CustomResourceDefinitions are still being deleted"
                );
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the look at the cluster has failed and is repeated"
                );
                last = format!("{error:#}");
            }
            Err(_) => tracing::warn!(
                "the API server takes too long to answer; the look at the cluster is repeated"
            ),
        }
        sleep(LOOK).await;
    }
    bail!("not done after {:?}: {last}", args.timeout)
}

impl Left {
    fn message(&self) -> String {
        let foreign = match &self.foreign[..] {
            [] => String::new(),
            names => format!(
                "; whoever set these finalizers has to take them away: {}",
                names.join(", ")
            ),
        };
        format!(
            "{} being deleted, with {} objects{foreign}",
            match &self.crds[..] {
                [one] => format!("{one} is"),
                many => format!("{} are", many.join(", ")),
            },
            self.objects
        )
    }
}

async fn look(client: &Client, strips: bool) -> anyhow::Result<Left> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut left = Left::default();
    let (skyhooks, leases) = (Skyhook::crd_name(), InterruptionLease::crd_name());
    for name in [
        // First, because the record of what a lease has done goes to the Node, and never to the Skyhook.
        leases,
        skyhooks,
        DeploymentPolicy::crd_name(),
        RolloutState::crd_name(),
    ] {
        match crds.get_metadata(name).await {
            Ok(crd) if crd.metadata.deletion_timestamp.is_some() => {}
            Ok(_) => continue,
            Err(kube::Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error).with_context(|| format!("read {name}")),
        }
        left.crds.push(name);
        if name == leases {
            let api: Api<WireLease> = Api::all(client.clone());
            left.objects_of(&api, names::LEASE_FINALIZER, strips)
                .await?;
        } else if name == skyhooks {
            let api: Api<WireSkyhook> = Api::all(client.clone());
            left.objects_of(&api, names::SKYHOOK_FINALIZER, strips)
                .await?;
        }
    }
    Ok(left)
}

impl Left {
    /// Counts the objects of a kind, and takes our finalizer away from them if `strips`.
    async fn objects_of<K>(&mut self, api: &Api<K>, ours: &str, strips: bool) -> anyhow::Result<()>
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let objects = all(api).await?;
        self.count(&objects, ours);
        if strips {
            strip(api, &objects, ours).await?;
        }
        Ok(())
    }

    fn count<K: Resource>(&mut self, objects: &[PartialObjectMeta<K>], ours: &str) {
        self.objects += objects.len();
        let finalizers = objects.iter().flat_map(|object| object.finalizers());
        for finalizer in finalizers.filter(|finalizer| *finalizer != ours) {
            if !self.foreign.contains(finalizer) {
                self.foreign.push(finalizer.clone());
            }
        }
    }
}
