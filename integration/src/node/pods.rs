//! The kubelet's part for pods, where nothing runs them: a pod bound to the node becomes Running
//! and Ready, and one that is being deleted goes when its host can be reached.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::machine::Machine;

/// Annotation on a Pod: seconds that it takes to end, or `never`; without it, none.
pub const ENDS_AFTER: &str = "skyhook-harness/ends-after";

/// A pod that is being deleted: when it may go.
type Ending = BTreeMap<(String, String), Option<Instant>>;

/// Plays for as long as it is polled.
pub(super) async fn play<M: Machine>(client: kube::Client, host: Arc<M>) {
    let config = Config::default().fields(&format!("spec.nodeName={}", host.name()));
    let mut events = watcher(Api::<Pod>::all(client.clone()), config).boxed();
    let mut ending = Ending::new();
    loop {
        // A watch that breaks is set up again by the watcher itself.
        let event = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep(Duration::from_millis(200)), if !ending.is_empty() => None,
        };
        let outcome = match event {
            Some(Ok(Event::Apply(pod) | Event::InitApply(pod))) => {
                observe(&client, &pod, &mut ending).await
            }
            Some(Ok(Event::Delete(pod))) => {
                ending.remove(&key(&pod));
                Ok(())
            }
            Some(Ok(Event::Init | Event::InitDone) | Err(_)) | None => Ok(()),
        };
        let ended = if host.is_reachable() {
            end(&client, &mut ending).await
        } else {
            Ok(())
        };
        for error in [outcome, ended].into_iter().filter_map(Result::err) {
            eprintln!("pods of {}: {error:#}", host.name());
        }
    }
}

fn key(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

async fn observe(client: &kube::Client, pod: &Pod, ending: &mut Ending) -> Result<()> {
    if pod.metadata.deletion_timestamp.is_some() {
        ending.entry(key(pod)).or_insert_with(|| {
            let after = pod
                .annotations()
                .get(ENDS_AFTER)
                .map_or("0", String::as_str);
            after
                .parse()
                .ok()
                .map(|seconds| Instant::now() + Duration::from_secs(seconds))
        });
        return Ok(());
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if !matches!(phase, None | Some("Pending")) {
        return Ok(());
    }
    let (namespace, name) = key(pod);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let running = json!({"metadata": {"uid": pod.uid()}, "status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    gone_is_fine(
        pods.patch_status(&name, &PatchParams::default(), &Patch::Strategic(running))
            .await,
    )
}

async fn end(client: &kube::Client, ending: &mut Ending) -> Result<()> {
    let now = Instant::now();
    let due: Vec<_> = ending
        .iter()
        .filter(|(_, at)| at.is_some_and(|at| at <= now))
        .collect();
    let due: Vec<_> = due.into_iter().map(|(key, _)| key.clone()).collect();
    for (namespace, name) in due {
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let Some(pod) = pods.get_opt(&name).await? else {
            ending.remove(&(namespace, name));
            continue;
        };
        let only = Preconditions {
            uid: pod.uid(),
            resource_version: pod.resource_version(),
        };
        let now = DeleteParams {
            preconditions: Some(only),
            ..DeleteParams::default()
        };
        if pod.metadata.deletion_timestamp.is_some() {
            gone_is_fine(pods.delete(&name, &now.grace_period(0)).await)?;
        }
        ending.remove(&(namespace, name));
    }
    Ok(())
}

fn gone_is_fine<T>(result: kube::Result<T>) -> Result<()> {
    match result {
        Ok(_) => Ok(()),
        // Another pod has its name by now, or none: the watch brings what there is.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
