//! The coordinator against a real API server, with agents whose hosts are faked.

use std::io::Write as _;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use skyhook_coordinator::config::Settings;
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
    let packages = json!({ "thing": { "version": "1.0.0", "image": "example.com/thing" } });
    fixture
        .skyhook(json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1",
            "kind": "Skyhook",
            "metadata": { "name": "sample" },
            "spec": { "packages": packages },
        }))
        .await?;
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
