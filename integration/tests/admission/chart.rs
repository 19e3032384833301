//! The policies of the chart: what is about two objects, and warnings.

use std::cell::Cell;

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, DynamicObject};
use serde_json::{Value, json};
use skyhook_crds::{DeploymentPolicy, Skyhook, admission};
use skyhook_integration::chart::template;
use skyhook_integration::controlplane::ControlPlane;
use skyhook_integration::install::apply;
use skyhook_integration::skip::chart_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

use super::{object, objects, start};

/// A control plane with the CRDs and the policies that an old API server gets.
async fn with_policies() -> Result<ControlPlane> {
    let plane = start(&[admission::skyhook()?, admission::deployment_policy()?]).await?;
    let args = [
        "--show-only",
        "templates/admission.yaml",
        "--kube-version",
        "1.33.0",
    ];
    apply(&plane, &template(&args).await?).await?;
    Ok(plane)
}

fn policy(name: &str) -> Value {
    let spec = json!({ "default": { "budget": { "count": 1 }, "strategy": { "fixed": {} } } });
    object("DeploymentPolicy", name, spec)
}

/// Why the API server does not delete a policy; `None` if it would.
async fn kept(policies: &Api<DynamicObject>, name: &str, dry_run: bool) -> Result<Option<String>> {
    let params = DeleteParams {
        dry_run,
        ..DeleteParams::default()
    };
    match policies.delete(name, &params).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Some(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_in_use_is_not_deleted() -> Result<()> {
    if !chart_can_run("a_policy_in_use_is_not_deleted").await {
        return Ok(());
    }
    let plane = with_policies().await?;
    let policies = objects::<DeploymentPolicy>(&plane);
    for name in ["used", "free"] {
        apply(&plane, &policy(name).to_string()).await?;
    }
    let spec = |policy: &str| json!({ "deploymentPolicy": policy });
    for (name, spec) in [("a", json!({})), ("b", spec("used")), ("c", spec("none"))] {
        apply(&plane, &object("Skyhook", name, spec).to_string()).await?;
    }
    eventually(MINUTE, async || {
        let message = kept(&policies, "used", true).await?.context("it would be deleted")?;
        let words = "cannot delete DeploymentPolicy \"used\": still referenced by Skyhook \"b\"; give that Skyhook another \
            deploymentPolicy first, or delete it";
        ensure!(message.contains(words), "{message}");
        Ok(())
    })
    .await?;
    ensure!(kept(&policies, "used", false).await?.is_some());
    ensure!(kept(&policies, "free", false).await?.is_none());
    objects::<Skyhook>(&plane)
        .delete("b", &DeleteParams::default())
        .await?;
    eventually(MINUTE, async || {
        let message = kept(&policies, "used", false).await?;
        ensure!(message.is_none(), "{message:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_effect_is_warned_of() -> Result<()> {
    if !chart_can_run("what_has_no_effect_is_warned_of").await {
        return Ok(());
    }
    let plane = with_policies().await?;
    let package = |change: Value| {
        let mut package = json!({ "version": "1.0.0", "image": "r/a" });
        super::table::merge(&mut package, change);
        json!({ "packages": { "aa": package } })
    };
    let resources = |cpu: &str, memory: &str| {
        let four = json!({ "cpuRequest": "1", "cpuLimit": cpu, "memoryRequest": "1Gi", "memoryLimit": memory });
        package(json!({ "resources": four }))
    };
    let pause = "spec.pause has no effect; set the annotation skyhook.nvidia.com/pause to";
    // Policies take a while until they count. Nothing is written, and nothing warned of, when the same is applied again.
    let tries = Cell::new(0);
    eventually(MINUTE, async || {
        tries.set(tries.get() + 1);
        let name = format!("try-{}", tries.get());
        warns(&plane, &name, &json!({ "pause": true }), Some(pause)).await
    })
    .await?;
    let uninstall =
        |apply: bool| package(json!({ "uninstall": { "enabled": true, "apply": apply } }));
    for (name, spec, warning) in [
        ("a", package(json!({})), None),
        ("a", json!({ "pause": true }), Some(pause)),
        ("b", resources("1", "1Gi"), None),
        (
            "b",
            resources("500m", "1Gi"),
            Some("cpuLimit is below cpuRequest: raise the limit or lower the request of aa"),
        ),
        (
            "b",
            resources("1", "1G"),
            Some("memoryLimit is below memoryRequest: raise the limit or lower the request of aa"),
        ),
        ("c", uninstall(false), None),
        ("c", uninstall(true), None),
        (
            "c",
            uninstall(false),
            Some(
                "uninstall.apply is taken back for aa: nodes where the uninstall has completed will install again",
            ),
        ),
        ("c", uninstall(false), None),
        (
            "d",
            json!({ "drainConfig": { "disableEviction": true } }),
            Some(
                "no right to delete pods: set rbac.allowDisableEviction in the values of the chart",
            ),
        ),
        (
            "d",
            json!({ "drainConfig": { "disableEviction": false } }),
            None,
        ),
    ] {
        warns(&plane, name, &spec, warning).await?;
    }
    Ok(())
}

/// Applies a Skyhook, and fails unless it is taken with this warning, or without one.
async fn warns(
    plane: &ControlPlane,
    name: &str,
    spec: &Value,
    warning: Option<&str>,
) -> Result<()> {
    let skyhook = object("Skyhook", name, spec.clone()).to_string();
    let mut file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::io::Write::write_all(&mut file, skyhook.as_bytes())?;
    let file = file.path().to_string_lossy();
    let outcome = plane
        .kubectl(&["apply", "--warnings-as-errors", "-f", &file])
        .await;
    let printed = outcome.err().map(|error| format!("{error:#}"));
    let has_words = warning.is_none_or(|words| {
        printed
            .as_ref()
            .is_some_and(|printed| printed.contains(words))
    });
    ensure!(
        printed.is_some() == warning.is_some() && has_words,
        "{skyhook}: {printed:?} is not {warning:?}"
    );
    Ok(())
}
