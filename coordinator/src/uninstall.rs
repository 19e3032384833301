//! `cleanup`: what has to happen before the chart is uninstalled. All Skyhooks are deleted, and our cordons are given
//! back. Objects that do not disappear in time lose our finalizers, so that nothing holds up the removal of the CRDs.
//!
//! Usually the coordinator's loop does all of this. This program runs the loop itself and stands for election, so it
//! does not matter whether another coordinator runs. Guarantees: the program ends in time, and after a success no
//! Skyhook and no lease is left. An error never ends it before its time: the next look tries again. Caveat: an agent that
//! did not answer may still run a step on its host.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DeleteParams, ListParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use skyhook_crds::lease::protocol;
use skyhook_crds::{InterruptionLease, names};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{Settings, duration};
use crate::metrics::Metrics;
use crate::run;
use skyhook_fleet::facts::{WireLease, WirePolicy, WireSkyhook};
use sweep::{all, delete, each, forgive, merge, strip};

pub mod removal;
mod sweep;
#[cfg(test)]
mod tests;

/// The pause between two looks at the progress.
const LOOK: Duration = Duration::from_secs(1);

/// How long one look may take: a server that does not answer must not use up the whole time.
const PATIENCE: Duration = Duration::from_secs(20);

/// Flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// How long the whole may take; the last third is for what does not end by itself.
    #[arg(long, default_value = "100s", value_parser = duration)]
    pub timeout: Duration,
}

/// How far it goes, the longer it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// Skyhooks are deleted, and the loop does the rest.
    Delete,
    /// Leases are released without their agents.
    Release,
    /// Our finalizers are taken away.
    Strip,
}

impl Means {
    fn after(spent: Duration, timeout: Duration) -> Self {
        if spent > timeout * 5 / 6 {
            Self::Strip
        } else if spent > timeout * 2 / 3 {
            Self::Release
        } else {
            Self::Delete
        }
    }
}

/// Deletes everything of ours from the cluster.
pub async fn run(client: Client, settings: &Settings, args: &CleanupArgs) -> anyhow::Result<()> {
    let role = settings.references_role.clone();
    let settings = Settings {
        leader_election: true,
        identity: format!("cleanup-{}", settings.identity),
        // The loop must not write the Role, because it is deleted in the end.
        references_role: None,
        ..settings.clone()
    };
    let (stop, stopped) = watch::channel(false);
    let (ready, _) = watch::channel(false);
    let metrics = Metrics::new(false);
    let coordinating = run::run(client.clone(), &settings, &metrics, stopped, ready);
    tokio::pin!(coordinating);
    let cleaning = clean(&client, &settings.namespace, args.timeout);
    tokio::pin!(cleaning);
    let cleaned = tokio::select! {
        cleaned = &mut cleaning => cleaned,
        ended = &mut coordinating => {
            // Without our own loop, only another coordinator can release the leases, if one runs. The rest of the
            // cleanup goes on.
            tracing::warn!(error = ?ended.err(), "cannot coordinate");
            return finish(&client, &settings, role, cleaning.await).await;
        }
    };
    stop.send_replace(true);
    if let Err(error) = coordinating.await {
        tracing::warn!(%error, "the loop did not end well");
    }
    finish(&client, &settings, role, cleaned).await
}

async fn finish(
    client: &Client,
    settings: &Settings,
    role: Option<String>,
    cleaned: anyhow::Result<()>,
) -> anyhow::Result<()> {
    if let Some(role) = &role {
        let roles: Api<Role> = Api::namespaced(client.clone(), &settings.namespace);
        // What is left of it is a Role that names secrets, which nobody can use without its RoleBinding: the uninstall
        // does not fail for that.
        for _ in 0..3 {
            match forgive(roles.delete(role, &DeleteParams::default()).await) {
                Ok(()) => break,
                Err(error) => tracing::warn!(%error, role, "cannot delete the role"),
            }
            sleep(LOOK).await;
        }
    }
    cleaned
}

/// The kinds that are cleaned up.
struct Kinds {
    skyhooks: Api<WireSkyhook>,
    leases: Api<WireLease>,
    policies: Api<WirePolicy>,
    revisions: Api<ControllerRevision>,
}

async fn clean(client: &Client, namespace: &str, time: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    let kinds = Kinds {
        skyhooks: Api::all(client.clone()),
        leases: Api::all(client.clone()),
        policies: Api::all(client.clone()),
        revisions: Api::namespaced(client.clone(), namespace),
    };
    let mut released = false;
    let mut used = Means::Delete;
    loop {
        let means = Means::after(started.elapsed(), time);
        if means != used {
            tracing::warn!(?means, "the cleanup takes too long and goes further");
            used = means;
        }
        if means == Means::Release && !released {
            match timeout(PATIENCE, release(client)).await {
                Ok(Ok(())) => released = true,
                Ok(Err(error)) => warn(&error),
                Err(_) => tracing::warn!("the API server takes too long to answer"),
            }
        }
        let looked = timeout(PATIENCE, kinds.look(means)).await;
        let looked = looked.unwrap_or_else(|_| bail!("the API server takes too long to answer"));
        let left = match &looked {
            Ok(0) => {
                tracing::info!(took = ?started.elapsed(), "no Skyhook and no lease is left");
                return Ok(());
            }
            Ok(left) => left.to_string(),
            Err(error) => {
                warn(error);
                "some".to_owned()
            }
        };
        if started.elapsed() > time {
            let error = looked.err().map(|error| format!("{error:#}"));
            let why = error.unwrap_or_else(|| {
                "somebody else's finalizer keeps them, or they are created anew".to_owned()
            });
            bail!("{left} objects are left after {time:?}: {why}");
        }
        sleep(LOOK).await;
    }
}

fn warn(error: &anyhow::Error) {
    tracing::warn!(
        error = format!("{error:#}"),
        "a part of the cleanup has failed and is repeated"
    );
}

impl Kinds {
    /// Does what is to be done now. Returns how many Skyhooks and leases there were. An error in one part keeps none of
    /// the others from being done.
    async fn look(&self, means: Means) -> anyhow::Result<usize> {
        let leases = self.leases(means).await;
        if means == Means::Strip && !matches!(leases, Ok(0)) {
            // Now that the leases are gone, the coordinator gives back the cordons.
            sleep(2 * LOOK).await;
        }
        let skyhooks = self.skyhooks(means).await;
        let left = leases? + skyhooks?;
        if left == 0 {
            let policies = all(&self.policies).await;
            let policies = policies.context("list DeploymentPolicies")?;
            delete(&self.policies, &policies)
                .await
                .context("delete DeploymentPolicies")?;
            // Those that outlived their Skyhooks because Nodes name them.
            let mut revisions = all(&self.revisions)
                .await
                .context("list ControllerRevisions")?;
            revisions.retain(|one| one.labels().contains_key(names::REVISION_OF));
            delete(&self.revisions, &revisions)
                .await
                .context("delete ControllerRevisions")?;
        }
        Ok(left)
    }

    async fn leases(&self, means: Means) -> anyhow::Result<usize> {
        let leases = all(&self.leases).await.context("list leases")?;
        if means == Means::Strip {
            delete(&self.leases, &leases)
                .await
                .context("delete leases")?;
            let deleted = all(&self.leases).await.context("list leases")?;
            strip(&self.leases, &deleted, names::LEASE_FINALIZER)
                .await
                .context("take the finalizers of leases away")?;
        }
        Ok(leases.len())
    }

    /// Skyhooks are deleted each time, because something may create them again.
    async fn skyhooks(&self, means: Means) -> anyhow::Result<usize> {
        let skyhooks = all(&self.skyhooks).await.context("list Skyhooks")?;
        delete(&self.skyhooks, &skyhooks)
            .await
            .context("delete Skyhooks")?;
        if means == Means::Strip {
            let deleted = all(&self.skyhooks).await.context("list Skyhooks")?;
            strip(&self.skyhooks, &deleted, names::SKYHOOK_FINALIZER)
                .await
                .context("take the finalizers of Skyhooks away")?;
        }
        Ok(skyhooks.len())
    }
}

/// Orders the leading coordinator to release every accepted lease without the result of its agent.
async fn release(client: &Client) -> anyhow::Result<()> {
    let leases: Api<InterruptionLease> = Api::all(client.clone());
    let list = match leases.list(&ListParams::default()).await {
        Ok(list) => list.items,
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).context("list leases"),
    };
    let accepted = list.iter().filter(|lease| protocol::is_accepted(lease));
    each(accepted, async |lease| {
        let uid = lease.metadata.uid.clone();
        let body = json!({"metadata": {"uid": uid, "annotations": {names::FORCE_RELEASE: uid}}});
        merge(&leases, &lease.name_any(), &body).await
    })
    .await
    .context("release leases")
}
