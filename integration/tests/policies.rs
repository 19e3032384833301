//! Roll-outs that a DeploymentPolicy paces, with a real API server and the rights of the manifests.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use skyhook_crds::Skyhook;
use skyhook_crds::rollout::RolloutState;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::install::{apply, install};
use skyhook_integration::programs;
use skyhook_integration::rollout;
use skyhook_integration::run::Run;
use skyhook_integration::wait::{MINUTE, eventually};

/// The control plane has no garbage collector, so the state of the deleted Skyhook is still there when the next one comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_skyhook_that_is_made_anew_does_not_wait_for_the_garbage_collector() -> Result<()> {
    let run = Arc::new(Run::start()?);
    programs::collect(&run)?;
    let plane = ControlPlane::start(Arc::clone(&run), &Options::default()).await?;
    install(&plane).await?;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}});
    let policy = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "DeploymentPolicy", "metadata": {"name": "tuned"},
        "spec": {"default": {"budget": {"count": 1}, "strategy": {"fixed": {}}}, "compartments": []},
    });
    for manifest in [node, policy] {
        apply(&plane, &manifest.to_string()).await?;
    }
    let coordinator = Coordinator::start(run, &plane, "coordinator").await?;
    let outcome = made_anew(&plane).await;
    outcome.with_context(|| coordinator.log())
}

async fn made_anew(plane: &ControlPlane) -> Result<()> {
    let skyhooks: Api<Skyhook> = Api::all(plane.client());
    let states: Api<RolloutState> = Api::all(plane.client());
    rollout::apply(plane.client(), &skyhook()).await?;
    let first = owned_by(&states, &skyhooks).await?;
    skyhooks.delete("paced", &DeleteParams::default()).await?;
    eventually(MINUTE, async || {
        let left = skyhooks.get_opt("paced").await?;
        ensure!(left.is_none(), "the Skyhook is still there");
        Ok(())
    })
    .await?;
    let left = states.get("paced").await?;
    assert_eq!(left.uid(), first.uid(), "nobody else takes it away");
    rollout::apply(plane.client(), &skyhook()).await?;
    let second = owned_by(&states, &skyhooks).await?;
    assert_ne!(second.uid(), first.uid());
    Ok(())
}

/// Waits until there is a state of the Skyhook that is there now, with an open batch.
async fn owned_by(states: &Api<RolloutState>, skyhooks: &Api<Skyhook>) -> Result<RolloutState> {
    eventually(MINUTE, async || {
        let skyhook = skyhooks.get("paced").await?;
        let state = states.get("paced").await?;
        let owners = state.owner_references();
        let is_own = owners
            .iter()
            .any(|owner| Some(&owner.uid) == skyhook.uid().as_ref());
        ensure!(is_own, "it is of another Skyhook: {owners:?}");
        let mut all = state.spec.compartments.values();
        ensure!(
            all.any(|one| one.batch > 0),
            "no batch is open: {:?}",
            state.spec
        );
        Ok(state)
    })
    .await
}

fn skyhook() -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": {"name": "paced"},
        "spec": {
            "deploymentPolicy": "tuned",
            // The node has no kubelet, so the API server taints it.
            "additionalTolerations": [{"operator": "Exists"}],
            "packages": {"pkg": {"version": "1.0.0", "image": "localhost/pkg"}},
        },
    })
}
