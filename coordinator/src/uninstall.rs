//! `cleanup`: what has to happen before the chart is uninstalled. All Skyhooks are deleted, and our cordons are given
//! back. Objects that do not disappear in time lose our finalizers, so that nothing holds up the removal of the CRDs.
//!
//! Usually the coordinator's loop does all of this. This program runs the loop itself and stands for election, so it
//! does not matter whether another coordinator runs. Guarantees: the program ends in time, and after a success no
//! Skyhook and no lease is left. Caveat: an agent that did not answer may still run a step on its host.

#![expect(clippy::disallowed_methods, reason = "the shell owns the clock")]

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::rbac::v1::Role;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use skyhook_crds::lease::protocol;
use skyhook_crds::{InterruptionLease, names};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::config::{Settings, duration};
use crate::run;
use skyhook_fleet::facts::{WireLease, WirePolicy, WireSkyhook};

/// The pause between two looks at the progress.
const LOOK: Duration = Duration::from_secs(1);

/// Flags of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// How long the whole may take; the last third is for what does not end by itself.
    #[arg(long, default_value = "100s", value_parser = duration)]
    pub timeout: Duration,
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
    let coordinating = run::run(client.clone(), &settings, stopped, ready);
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
        forgive(roles.delete(role, &DeleteParams::default()).await)
            .with_context(|| format!("delete role {role}"))?;
    }
    cleaned
}

async fn clean(client: &Client, namespace: &str, timeout: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    let policies: Api<WirePolicy> = Api::all(client.clone());
    let skyhooks: Api<WireSkyhook> = Api::all(client.clone());
    let leases: Api<WireLease> = Api::all(client.clone());
    let mut forced = false;
    loop {
        // This is repeated, because something may create Skyhooks again.
        delete_all(&skyhooks).await.context("delete Skyhooks")?;
        let left = names_of(&skyhooks).await? + names_of(&leases).await?;
        if left == 0 {
            break;
        }
        let spent = started.elapsed();
        if spent > timeout * 2 / 3 && !forced {
            tracing::warn!(
                left,
                "it takes too long: leases are released without their agents"
            );
            force_release(client).await?;
            forced = true;
        }
        if spent > timeout * 5 / 6 {
            tracing::warn!(left, "our finalizers are taken away");
            strip(&leases, names::LEASE_FINALIZER).await?;
            // Now that the leases are gone, the coordinator gives back the cordons.
            sleep(2 * LOOK).await;
            strip(&skyhooks, names::SKYHOOK_FINALIZER).await?;
        }
        if spent > timeout {
            bail!(
                "{left} objects are left after {timeout:?}: somebody else's finalizer keeps them, or they are created anew"
            );
        }
        sleep(LOOK).await;
    }
    delete_all(&policies)
        .await
        .context("delete DeploymentPolicies")?;
    delete_revisions(client, namespace)
        .await
        .context("delete ControllerRevisions")?;
    tracing::info!(took = ?started.elapsed(), "no Skyhook and no lease is left");
    Ok(())
}

async fn names_of<K>(api: &Api<K>) -> anyhow::Result<usize>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    Ok(all(api).await?.len())
}

/// All objects of a kind. There are none if the kind itself is gone, because somebody has deleted its CRD.
async fn all<K>(api: &Api<K>) -> kube::Result<Vec<K>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

async fn delete_all<K>(api: &Api<K>) -> anyhow::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    for object in all(api).await? {
        if object.meta().deletion_timestamp.is_none() {
            forgive(
                api.delete(&object.name_any(), &DeleteParams::default())
                    .await,
            )?;
        }
    }
    Ok(())
}

/// Deletes the revisions that outlived their Skyhooks because Nodes name them.
async fn delete_revisions(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let revisions: Api<ControllerRevision> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(names::REVISION_OF);
    for revision in revisions.list(&ours).await? {
        let name = revision.name_any();
        forgive(revisions.delete(&name, &DeleteParams::default()).await)?;
    }
    Ok(())
}

/// Orders the leading coordinator to release every accepted lease without the result of its agent.
async fn force_release(client: &Client) -> anyhow::Result<()> {
    let leases: Api<InterruptionLease> = Api::all(client.clone());
    for lease in all(&leases).await? {
        if !protocol::is_accepted(&lease) {
            continue;
        }
        let uid = lease.metadata.uid.clone();
        let body = json!({"metadata": {"uid": uid, "annotations": {names::FORCE_RELEASE: uid}}});
        forgive(merge(&leases, &lease.name_any(), &body).await)?;
    }
    Ok(())
}

/// Deletes all objects of a kind, and removes our finalizer from them.
async fn strip<K>(api: &Api<K>, finalizer: &str) -> anyhow::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    delete_all(api).await?;
    for object in all(api).await? {
        let metadata = object.meta();
        let kept: Vec<&String> = object
            .finalizers()
            .iter()
            .filter(|held| *held != finalizer)
            .collect();
        let body = json!({"metadata": {
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            "finalizers": kept,
        }});
        forgive(merge(api, &object.name_any(), &body).await)?;
    }
    Ok(())
}

async fn merge<K>(api: &Api<K>, name: &str, body: &serde_json::Value) -> kube::Result<K>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let params = PatchParams {
        field_manager: Some(names::COORDINATOR.to_owned()),
        ..PatchParams::default()
    };
    api.patch(name, &params, &Patch::Merge(body)).await
}

/// Accepts that an object is gone already or has changed in between: the next look shows what is left to do.
fn forgive<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::client::Body;
    use tower::service_fn;

    use super::*;

    /// A client of an API server that answers every request with this status. Also returns the requests that it gets.
    fn answering(code: u16) -> (Client, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        let service = service_fn(move |request: http::Request<Body>| {
            let line = format!("{} {}", request.method(), request.uri().path());
            log.lock().unwrap().push(line);
            let said = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "no", "code": code,
            });
            let answer = http::Response::builder().status(code);
            let answer = answer.body(Body::from(said.to_string().into_bytes()));
            async move { answer.map_err(std::io::Error::other) }
        });
        (Client::new(service, "skyhook"), asked)
    }

    #[tokio::test]
    async fn a_kind_whose_crd_is_gone_needs_no_clean_up() {
        let (client, asked) = answering(404);
        let leases: Api<WireLease> = Api::all(client.clone());
        force_release(&client).await.expect("no leases");
        strip(&leases, names::LEASE_FINALIZER)
            .await
            .expect("no leases");
        assert_eq!(names_of(&leases).await.expect("no leases"), 0);
        let asked = asked.lock().unwrap();
        assert!(
            asked.iter().all(|line| line.starts_with("GET ")),
            "{asked:?}"
        );
    }

    #[tokio::test]
    async fn any_other_answer_is_an_error() {
        let (client, _) = answering(403);
        let leases: Api<WireLease> = Api::all(client.clone());
        assert!(force_release(&client).await.is_err());
        assert!(strip(&leases, names::LEASE_FINALIZER).await.is_err());
    }
}
