//! The coordinator against a real API server, with agents whose hosts are faked.

use std::time::Duration;

use serde_json::json;
use skyhook_coordinator::config::Settings;
use skyhook_tests::bench::{Fixture, InProcess, status};
use skyhook_tests::coreagent::{CoreAgent, FakeHost, HostScript};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_out_completes_under_its_budget() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let mut agents = Vec::new();
    for name in ["worker-1", "worker-2", "worker-3"] {
        let uid = fixture.node(name, &[]).await?;
        let script = HostScript {
            step_time: Duration::from_millis(50),
            ..HostScript::default()
        };
        let host = FakeHost::new(name, script);
        agents.push(CoreAgent::start(fixture.client.clone(), name, &uid, &host));
    }
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
        .until("sample", SOON, |s| status(s) == "complete")
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
