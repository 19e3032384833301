//! How the pods of a node are listed while it drains, as a real API server is asked.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;
use skyhook_integration::controlplane::Options;
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::programs;
use skyhook_integration::run::Run;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::bench::{Fixture, status};

const USER: &str = "system:serviceaccount:skyhook:skyhook-coordinator";

/// A consistent list of pods reads those of the whole cluster from etcd on many API servers: one a second and node would
/// stop a control plane.
#[tokio::test(flavor = "multi_thread")]
async fn while_pods_are_left_lists_come_from_the_watch_cache() -> anyhow::Result<()> {
    let options = Options {
        audit: true,
        ..Options::default()
    };
    let fixture = Fixture::start_with(&options).await?;
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), "default");
    let pod = serde_json::from_value(json!({
        "metadata": { "name": "train", "labels": { "keep": "me" } },
        "spec": { "nodeName": "worker-0", "containers": [{ "name": "c", "image": "example.com/c" }] },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let coordinator = Coordinator::start(Arc::clone(&run), &fixture.plane, "coordinator").await?;
    fixture
        .skyhook(json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "sample" },
            "spec": {
                "podNonInterruptLabels": { "matchLabels": { "keep": "me" } },
                "packages": { "something": {
                    "version": "1.0.0", "image": "example.com/something",
                    "interrupt": { "type": "service", "services": ["a"] },
                } },
            },
        }))
        .await?;
    let lists = || -> anyhow::Result<(usize, usize)> {
        let uris = fixture.plane.audit_uris(USER, "list")?;
        let of_pods = uris.iter().filter(|uri| uri.contains("/pods?"));
        let (cached, consistent): (Vec<_>, Vec<_>) =
            of_pods.partition(|uri| uri.contains("resourceVersion=0"));
        Ok((cached.len(), consistent.len()))
    };
    eventually(MINUTE, async || {
        let (cached, _) = lists()?;
        ensure!(cached >= 5, "the watch cache was asked {cached} times");
        Ok(())
    })
    .await?;
    let (_, consistent) = lists()?;
    ensure!(
        consistent == 1,
        "{consistent} consistent lists while a pod is left"
    );
    let log = coordinator.log();
    ensure!(
        log.contains("written"),
        "no line says what was written: {log}"
    );
    ensure!(
        !log.contains("SurveyPods"),
        "a line for each list of pods: {log}"
    );
    let force = DeleteParams::default().grace_period(0);
    pods.delete("train", &force).await?;
    fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    let (_, consistent) = lists()?;
    ensure!(
        (3..=5).contains(&consistent),
        "{consistent} consistent lists in all"
    );
    Ok(())
}
