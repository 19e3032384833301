//! How the chart comes and goes, on a control plane without kubelets: the test does what the pods of its jobs would do,
//! with their arguments and rights.
#![expect(
    clippy::disallowed_methods,
    reason = "it writes files and says when a job has ended"
)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use skyhook_crds::names;
use skyhook_integration::agent::service_account_token;
use skyhook_integration::chart::{self, COORDINATOR};
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::install::{NAMESPACE, apply, await_crds};
use skyhook_integration::process::output;
use skyhook_integration::programs;
use skyhook_integration::run::Run;
use skyhook_integration::skip::chart_can_run;
use skyhook_integration::source::source;
use skyhook_integration::wait::{MINUTE, eventually};

const REMOVAL: &str = "skyhook-skyhook-operator-finish-removal";

struct Lab {
    plane: ControlPlane,
    run: Arc<Run>,
}

impl Lab {
    async fn start() -> Result<Self> {
        let run = Arc::new(Run::start()?);
        programs::collect(&run)?;
        let plane = ControlPlane::start(Arc::clone(&run), &Options::default()).await?;
        Ok(Self { plane, run })
    }

    /// `helm` with a verb and the release.
    async fn helm(&self, verb: &[&str], rest: &[&str]) -> Result<String> {
        let args = [verb, &[chart::RELEASE], rest, &["--namespace", NAMESPACE]].concat();
        chart::helm(&self.plane, &args).await
    }

    async fn install(&self, chart: &Path, args: &[&str]) -> Result<String> {
        let chart = chart.to_string_lossy();
        let rest = [&[&*chart, "--create-namespace"][..], args].concat();
        self.helm(&["upgrade", "--install"], &rest).await
    }

    /// Runs the coordinator's program to its end, with the rights of a service account.
    async fn program(&self, account: &str, args: &[String]) -> Result<()> {
        let token = service_account_token(self.plane.client(), account, None).await?;
        let kubeconfig = self.run.scratch().join(format!("{account}.kubeconfig"));
        std::fs::write(&kubeconfig, self.plane.kubeconfig_for(&token))?;
        let program = self.run.scratch().join("bin").join(programs::COORDINATOR);
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", &kubeconfig);
        command.env("NAMESPACE", NAMESPACE).env("POD_NAME", "job");
        output(command).await.map(drop)
    }

    /// Does what the pod of a job would do, and says that the job is complete.
    async fn run_job(&self, name: &str) -> Result<()> {
        let jobs: Api<Job> = Api::namespaced(self.plane.client(), NAMESPACE);
        let job = eventually(MINUTE, async || Ok(jobs.get(name).await?)).await?;
        let pod = job
            .spec
            .and_then(|spec| spec.template.spec)
            .context("a pod")?;
        let account = pod.service_account_name.context("an account")?;
        let container = pod.containers.first().context("a container")?;
        self.program(&account, &container.args.clone().unwrap_or_default())
            .await?;
        let now = Timestamp::now().to_string();
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now});
        let status = json!({"status": {
            "startTime": now, "completionTime": now, "succeeded": 1,
            "conditions": [condition("SuccessCriteriaMet"), condition("Complete")],
        }});
        let params = PatchParams::default();
        jobs.patch_status(name, &params, &Patch::Merge(&status))
            .await?;
        Ok(())
    }

    async fn get(&self, what: &[&str]) -> Result<String> {
        self.plane.kubectl(&[&["get"], what].concat()).await
    }
}

/// A Skyhook and a lease, as the coordinator leaves them when it is killed in the midst.
async fn skyhook_with_lease(plane: &ControlPlane) -> Result<()> {
    let skyhook = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
        "metadata": {"name": "held", "finalizers": [names::SKYHOOK_FINALIZER]},
        "spec": {"nodeSelectors": {}, "packages": {}},
    });
    let lease = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "InterruptionLease",
        "metadata": {"name": "held", "finalizers": [names::LEASE_FINALIZER]},
        "spec": {"node": {"name": "held", "uid": "n"}, "skyhook": {"name": "held", "uid": "s"}, "revision": "held-1"},
    });
    for object in [skyhook, lease] {
        apply(plane, &object.to_string()).await?;
    }
    Ok(())
}

/// `helm uninstall --no-hooks`, or a GitOps tool that knows no such hooks, and then the next install.
#[tokio::test(flavor = "multi_thread")]
async fn crds_that_cannot_end_are_finished_by_the_next_install() -> Result<()> {
    if !chart_can_run("crds_that_cannot_end_are_finished_by_the_next_install").await {
        return Ok(());
    }
    let lab = Lab::start().await?;
    // There is no kubelet: this would wait for ever if a job were made.
    lab.install(&chart::path(), &["--timeout", "30s"]).await?;
    await_crds(&lab.plane).await?;
    skyhook_with_lease(&lab.plane).await?;
    lab.helm(&["uninstall", "--no-hooks"], &[]).await?;
    let left = lab.get(&["crd", "-o", "name"]).await?;
    ensure!(
        left.contains("/skyhooks.") && left.contains("/interruptionleases."),
        "{left}"
    );

    let chart = chart::path();
    let install = lab.install(&chart, &["--timeout", "120s"]);
    tokio::try_join!(install, lab.run_job(REMOVAL))?;
    await_crds(&lab.plane).await?;
    let deleted = "jsonpath={.items[*].metadata.deletionTimestamp}";
    assert_eq!(lab.get(&["crd", "-o", deleted]).await?, "");
    let objects = lab
        .get(&["skyhooks,interruptionleases", "-o", "name"])
        .await?;
    assert_eq!(objects, "");
    skyhook_with_lease(&lab.plane).await?;
    // Nothing of the job is left, and an upgrade makes none.
    let ours = lab
        .get(&["clusterroles,clusterrolebindings", "-o", "name"])
        .await?;
    ensure!(!ours.contains("finish-removal"), "{ours}");
    lab.install(&chart, &["--timeout", "30s"]).await?;
    Ok(())
}

/// An upgrade from the chart of NVIDIA Skyhook, in its release.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_the_chart_before_brings_crds_and_rights() -> Result<()> {
    if !chart_can_run("an_upgrade_from_the_chart_before_brings_crds_and_rights").await {
        return Ok(());
    }
    let lab = Lab::start().await?;
    let before = source("integration/fixtures/chart-before");
    lab.install(&before, &[]).await?;
    await_crds(&lab.plane).await?;
    let skyhook = json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
        "metadata": {"name": "kept", "finalizers": [names::SKYHOOK_FINALIZER]},
        "spec": {
            "nodeSelectors": {"matchLabels": {"a": "b"}},
            "packages": {"foo": {"version": "1.0.0", "image": "registry.example.com/foo"}},
        },
    });
    apply(&lab.plane, &skyhook.to_string()).await?;
    lab.install(&before, &["--set", "webhooks=true"]).await?;
    let uid = ["-o", "jsonpath={.metadata.uid}"];
    let deployment = format!("deployment/{COORDINATOR}");
    let (kept, selected) = (
        lab.get(&[&["skyhook/kept"][..], &uid].concat()).await?,
        lab.get(&[&["-n", NAMESPACE, &deployment][..], &uid].concat())
            .await?,
    );

    let upgrade = ["--reset-values", "--timeout", "30s"];
    lab.install(&chart::path(), &upgrade).await?;
    await_crds(&lab.plane).await?;
    let crds: Value = serde_json::from_str(&lab.get(&["crd", "-o", "json"]).await?)?;
    let crds = crds["items"].as_array().context("items")?;
    assert_eq!(crds.len(), 4);
    for crd in crds {
        let name = &crd["metadata"]["name"];
        assert_eq!(
            crd["spec"]["conversion"],
            json!({"strategy": "None"}),
            "{name}"
        );
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let keeps_all = schema
            .to_string()
            .contains("\"x-kubernetes-preserve-unknown-fields\":true");
        ensure!(!keeps_all, "{name} is as it was");
    }
    assert_eq!(
        lab.get(&[&["skyhook/kept"][..], &uid].concat()).await?,
        kept
    );
    let now = lab
        .get(&[&["-n", NAMESPACE, &deployment][..], &uid].concat())
        .await?;
    assert_eq!(now, selected, "the Deployment was made anew");
    // What is not in our chart has gone, and nothing refuses a change any more.
    let others = "validatingwebhookconfigurations,limitranges,clusterroles";
    let left = lab.get(&[others, "-A", "-o", "name"]).await?;
    for gone in ["webhook", "limitrange", "skyhook-operator-manager-role"] {
        ensure!(!left.contains(gone), "{gone} is left: {left}");
    }
    let patch = [
        "patch",
        "skyhook/kept",
        "--type=merge",
        "-p",
        r#"{"spec":{"interruptionBudget":{"count":1}}}"#,
    ];
    lab.plane.kubectl(&patch).await?;
    let account = format!("system:serviceaccount:{NAMESPACE}:{COORDINATOR}");
    for (verb, what) in [
        ("patch", "nodes"),
        ("list", "rolloutstates.skyhook.nvidia.com"),
    ] {
        let can = ["auth", "can-i", verb, what, "--as", &account];
        assert_eq!(
            lab.plane.kubectl(&can).await?.trim(),
            "yes",
            "{verb} {what}"
        );
    }
    Ok(())
}
