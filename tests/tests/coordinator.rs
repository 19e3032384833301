//! The coordinator against a real API server, with agents whose hosts are faked.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use skyhook_coordinator::apply::Applier;
use skyhook_coordinator::config::Settings;
use skyhook_crds::Skyhook;
use skyhook_crds::duration::GoDuration;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::Change;
use skyhook_fleet::outcome::Outcome;
use skyhook_fleet::pods::RefusedBy;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::bench::{Fixture, InProcess, status};
use skyhook_tests::coreagent::{CoreAgent, FakeHost, HostScript};

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_out_completes_under_its_budget() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(3, Duration::from_millis(50)).await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture
        .skyhook(json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1",
            "kind": "Skyhook",
            "metadata": { "name": "sample" },
            "spec": {
                "interruptionBudget": { "count": 1 },
                "packages": { "something": { "version": "1.0.0", "image": "example.com/something" } },
            },
        }))
        .await?;
    let done = fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    let done = done.status.expect("a complete Skyhook has a status");
    assert_eq!(done.complete_nodes, "3/3");
    assert_eq!(done.observed_generation, 1);
    println!(
        "{}",
        fixture
            .plane
            .kubectl(&["get", "skyhooks,interruptionleases,nodes", "-o", "yaml"])
            .await?
    );
    coordinator.stop().await
}

const POLICY: &str = r#"
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: { name: frozen-nodes }
spec:
  matchConstraints:
    resourceRules:
    - apiGroups: [""]
      apiVersions: ["v1"]
      operations: ["UPDATE"]
      resources: ["nodes/status"]
  validations:
  - expression: "false"
    message: nodes are frozen until Monday
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: { name: frozen-nodes }
spec: { policyName: frozen-nodes, validationActions: [Deny] }
"#;

#[tokio::test(flavor = "multi_thread")]
async fn who_refuses_a_write_is_named_and_it_goes_on_once_it_may() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let uid = fixture.node("worker-1", &[]).await?;
    let host = FakeHost::new("worker-1", HostScript::default());
    let _agent = CoreAgent::start(fixture.client.clone(), "worker-1", &uid, &host);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(POLICY.as_bytes())?;
    let file = file.path().to_str().expect("a path of plain letters");
    let plane = &fixture.plane;
    plane.kubectl(&["apply", "-f", file]).await?;
    let patch = r#"{"status":{"phase":"Running"}}"#;
    eventually(MINUTE, async || {
        let probe = ["patch", "node", "worker-1", "--subresource=status", "-p"];
        let probe = [&probe[..], &[patch, "--dry-run=server"]].concat();
        ensure!(
            plane.kubectl(&probe).await.is_err(),
            "the policy is not in force"
        );
        Ok(())
    })
    .await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(sample()).await?;
    eventually(MINUTE, async || {
        let selector = "reason=WriteRefused,type=Warning,involvedObject.name=worker-1";
        let args = [
            "get",
            "events",
            "-A",
            "-o",
            "yaml",
            "--field-selector",
            selector,
        ];
        let events = plane.kubectl(&args).await?;
        ensure!(
            events.contains("nodes are frozen until Monday"),
            "no event says who refuses: {events}"
        );
        Ok(())
    })
    .await?;
    plane.kubectl(&["delete", "-f", file]).await?;
    fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    coordinator.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_says_nothing_of_a_skyhook_that_is_gone() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    fixture.skyhook(sample()).await?;
    fixture
        .until("sample", MINUTE, |s| status(s) == "complete")
        .await?;
    let plane = &fixture.plane;
    let nodes = async || plane.kubectl(&["get", "nodes", "-o", "yaml"]).await;
    let said = ["skyhook.nvidia.com/sample/NotReady", "status_sample"];
    eventually(MINUTE, async || {
        let nodes = nodes().await?;
        let all = said.iter().all(|word| nodes.contains(word));
        ensure!(all, "the Node says nothing of the Skyhook: {nodes}");
        Ok(())
    })
    .await?;
    plane.kubectl(&["delete", "skyhook", "sample"]).await?;
    eventually(MINUTE, async || {
        let nodes = nodes().await?;
        let none = said.iter().all(|word| !nodes.contains(word));
        ensure!(none, "the Node still says something: {nodes}");
        let kept = nodes.contains("nodeState_sample") && nodes.contains("type: Ready");
        ensure!(kept, "the record or a foreign condition is gone: {nodes}");
        Ok(())
    })
    .await?;
    coordinator.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disruption_budget_is_told_from_a_server_that_is_too_busy() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    fixture.node("worker-1", &[]).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), "default");
    let pod = json!({
        "metadata": { "name": "web", "labels": { "app": "web" } },
        "spec": { "nodeName": "worker-1", "containers": [{ "name": "c", "image": "example.com/c" }] },
    });
    let pod = pods
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let running = Patch::Merge(json!({ "status": { "phase": "Running" } }));
    pods.patch_status("web", &PatchParams::default(), &running)
        .await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(fixture.client.clone(), "default");
    let budget = json!({
        "metadata": { "name": "web" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } },
    });
    budgets
        .create(&PostParams::default(), &serde_json::from_value(budget)?)
        .await?;
    let evict = Effect::EvictPod {
        node: "worker-1".into(),
        lease_uid: "lease".into(),
        namespace: "default".into(),
        pod: "web".into(),
        pod_uid: pod.metadata.uid.unwrap_or_default(),
        grace_period: None,
        by_deletion: false,
    };
    let applier = Applier::new(fixture.client.clone(), "default", "test");
    let outcome = applier.apply(&evict, "2026-01-01T00:00:00Z").await;
    let Outcome::Done(Some(Change::Evicted {
        problem: Some(problem),
        ..
    })) = outcome
    else {
        bail!("the budget was to refuse the eviction: {outcome:?}");
    };
    ensure!(problem.by == RefusedBy::DisruptionBudget, "{problem:?}");
    ensure!(
        problem.text.contains("disruption budget web"),
        "{problem:?}"
    );
    Ok(())
}

/// What the API server takes and what the coordinator reads is the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_refuses_a_duration_that_is_negative_or_none() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let skyhooks: Api<Skyhook> = Api::all(fixture.client.clone());
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (text, want) in [
        ("-1s", false),
        ("soon", false),
        ("30", false),
        ("", false),
        ("1h30", false),
        ("0", true),
        ("0s", true),
        ("+90s", true),
        ("1500ms", true),
        ("1.5h", true),
        (".5s", true),
        ("1h30m5s", true),
        ("1us", true),
    ] {
        let is_read = GoDuration(text.to_owned()).value().is_ok();
        ensure!(is_read == want, "{text:?} is read: {is_read}");
        for field in ["timeout", "gracePeriod"] {
            let mut object = sample();
            object["spec"]["drainConfig"] = json!({ field: text });
            let object = serde_json::from_value(object)?;
            match skyhooks.create(&dry_run, &object).await {
                Ok(_) => ensure!(want, "{field} {text:?} is taken"),
                Err(error) => {
                    let said = error.to_string();
                    let names_it = said.contains(&format!("spec.drainConfig.{field}"))
                        && said.contains("greater than or equal to 0");
                    ensure!(!want && names_it, "{field} {text:?}: {said}");
                }
            }
        }
    }
    Ok(())
}

/// A Skyhook with one package, for all nodes.
fn sample() -> serde_json::Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1",
        "kind": "Skyhook",
        "metadata": { "name": "sample" },
        "spec": { "packages": { "thing": { "version": "1.0.0", "image": "example.com/thing" } } },
    })
}
