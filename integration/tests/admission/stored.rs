//! Objects that were stored before there were rules: they can be edited elsewhere, and always be deleted.

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, CustomResourceExt as _, ResourceExt as _};
use serde_json::{Value, json};
use skyhook_crds::{DeploymentPolicy, Skyhook, admission};
use skyhook_integration::controlplane::ControlPlane;
use skyhook_integration::wait::{MINUTE, eventually};

use super::table::merge;
use super::{apply_crd, made, object, objects, skyhook_crd, start};

/// What cannot be changed before a mistake is repaired, because its rule looks at all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Blocks {
    Nothing,
    Packages,
    Spec,
}

/// Mistakes by name.
fn mistakes() -> Vec<(&'static str, Blocks, Value)> {
    let label = json!({ "matchLabels": { "a b": "c" } });
    let mut mistakes = vec![
        (
            "budget",
            Blocks::Nothing,
            json!({ "interruptionBudget": { "percent": 1, "count": 1 } }),
        ),
        (
            "policy",
            Blocks::Spec,
            json!({ "deploymentPolicy": "p", "interruptionBudget": { "count": 1 } }),
        ),
        (
            "selector",
            Blocks::Nothing,
            json!({ "nodeSelectors": label }),
        ),
        (
            "timeout",
            Blocks::Nothing,
            json!({ "drainConfig": { "timeout": "soon" } }),
        ),
    ];
    mistakes.extend(mistakes_of_packages());
    mistakes
}

fn mistakes_of_packages() -> Vec<(&'static str, Blocks, Value)> {
    let aa = |change: Value| json!({ "packages": { "aa": change } });
    vec![
        (
            "version",
            Blocks::Nothing,
            aa(json!({ "version": "latest" })),
        ),
        (
            "image",
            Blocks::Nothing,
            aa(json!({ "image": "r/a:2.0.0" })),
        ),
        (
            "digest",
            Blocks::Nothing,
            aa(json!({ "containerSHA": "sha256:ab" })),
        ),
        (
            "resources",
            Blocks::Nothing,
            aa(json!({ "resources": { "cpuLimit": "0" } })),
        ),
        (
            "grace",
            Blocks::Nothing,
            aa(json!({ "gracefulShutdown": "-1s" })),
        ),
        (
            "keys",
            Blocks::Nothing,
            aa(json!({ "configMap": { "a/b": "" } })),
        ),
        (
            "interrupts",
            Blocks::Nothing,
            aa(json!({ "configInterrupts": { "x": { "type": "noop" } } })),
        ),
        (
            "env",
            Blocks::Nothing,
            aa(json!({ "env": [{ "name": "A=B", "valueFrom": {} }] })),
        ),
        (
            "uninstall",
            Blocks::Nothing,
            aa(json!({ "uninstall": { "apply": true } })),
        ),
        (
            "key",
            Blocks::Packages,
            json!({ "packages": { "A": { "version": "1.0.0", "image": "r/a" } } }),
        ),
        ("name", Blocks::Packages, aa(json!({ "name": "other" }))),
        (
            "missing",
            Blocks::Packages,
            aa(json!({ "dependsOn": { "xx": "1.0.0" } })),
        ),
        (
            "cycle",
            Blocks::Packages,
            aa(json!({ "dependsOn": { "aa": "1.0.0" } })),
        ),
    ]
}

fn skyhook(name: &str, mistake: &Value) -> Value {
    let package = json!({ "version": "1.0.0", "image": "r/a" });
    let mut spec = json!({ "packages": { "aa": package, "zz": package } });
    merge(&mut spec, mistake.clone());
    object("Skyhook", name, spec)
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_objects_can_be_edited_elsewhere_and_deleted() -> Result<()> {
    let plane = start(&[Skyhook::crd(), DeploymentPolicy::crd()]).await?;
    let skyhooks = objects::<Skyhook>(&plane);
    let policies = objects::<DeploymentPolicy>(&plane);
    let mut all: Vec<(String, Blocks)> = Vec::new();
    for (name, blocks, mistake) in mistakes() {
        store(&skyhooks, &skyhook(name, &mistake)).await?;
        all.push((name.to_owned(), blocks));
    }
    let long = "x".repeat(60);
    store(&skyhooks, &skyhook(&long, &json!({}))).await?;
    all.push((long, Blocks::Nothing));
    let policy = json!({ "default": { "budget": {}, "strategy": { "fixed": {} } } });
    store(&policies, &object("DeploymentPolicy", "budget", policy)).await?;
    install_rules(&plane).await?;
    for (name, blocks) in all {
        let outcome = edits(&skyhooks, &name, blocks).await;
        outcome.with_context(|| name.clone())?;
        deletion(&skyhooks, &name)
            .await
            .with_context(|| name.clone())?;
    }
    edit(
        &policies,
        "budget",
        json!({ "metadata": { "labels": { "a": "b" } } }),
    )
    .await?;
    edit(
        &policies,
        "budget",
        json!({ "spec": { "resetBatchStateOnCompletion": true } }),
    )
    .await?;
    deletion(&policies, "budget").await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_mistakes_can_be_repaired() -> Result<()> {
    let plane = start(&[Skyhook::crd(), DeploymentPolicy::crd()]).await?;
    let skyhooks = objects::<Skyhook>(&plane);
    let two = json!({ "packages": { "aa": { "version": "latest", "image": "r/a b" }, "zz": { "version": "x" } } });
    store(&skyhooks, &skyhook("two", &two)).await?;
    install_rules(&plane).await?;
    let aa = |change: Value| json!({ "spec": { "packages": { "aa": change } } });
    edit(&skyhooks, "two", aa(json!({ "version": "1.0.0" }))).await?;
    let still = edit(&skyhooks, "two", aa(json!({ "image": "r/a c" }))).await;
    ensure!(still.is_err(), "another image that is none was taken");
    edit(&skyhooks, "two", aa(json!({ "image": "r/a" }))).await?;
    let back = edit(&skyhooks, "two", aa(json!({ "version": "latest" }))).await;
    ensure!(back.is_err(), "the mistake was taken again");
    Ok(())
}

/// Replaces the CRDs by those with rules, and waits until they count.
async fn install_rules(plane: &ControlPlane) -> Result<()> {
    apply_crd(plane, &skyhook_crd()?).await?;
    apply_crd(plane, &admission::deployment_policy()?).await?;
    let skyhooks = objects::<Skyhook>(plane);
    let policies = objects::<DeploymentPolicy>(plane);
    let skyhook = skyhook(
        "new",
        &json!({ "interruptionBudget": { "percent": 1, "count": 1 } }),
    );
    let policy = json!({ "default": { "budget": {}, "strategy": { "fixed": {} } } });
    let policy = object("DeploymentPolicy", "new", policy);
    eventually(MINUTE, async || {
        let refused = [
            made(&skyhooks, &skyhook).await?,
            made(&policies, &policy).await?,
        ];
        ensure!(
            refused.iter().all(Result::is_err),
            "the rules do not count yet"
        );
        Ok(())
    })
    .await
}

async fn store(api: &Api<DynamicObject>, object: &Value) -> Result<()> {
    let object = serde_json::from_value(object.clone())?;
    api.create(&PostParams::default(), &object).await?;
    Ok(())
}

pub(super) async fn edit(api: &Api<DynamicObject>, name: &str, change: Value) -> Result<()> {
    let params = PatchParams::default();
    let edited = api.patch(name, &params, &Patch::Merge(&change)).await;
    edited.map(drop).with_context(|| change.to_string())
}

/// What the coordinator and people write to a Skyhook with a mistake.
async fn edits(skyhooks: &Api<DynamicObject>, name: &str, blocks: Blocks) -> Result<()> {
    edit(
        skyhooks,
        name,
        json!({ "metadata": { "annotations": { "skyhook.nvidia.com/pause": "true" } } }),
    )
    .await?;
    edit(
        skyhooks,
        name,
        json!({ "metadata": { "labels": { "a": "b" } } }),
    )
    .await?;
    edit(
        skyhooks,
        name,
        json!({ "metadata": { "finalizers": ["skyhook.nvidia.com/skyhook"] } }),
    )
    .await?;
    let status = json!({ "status": { "status": "paused", "installed": { "aa": 1 }, "observedGeneration": 1 } });
    let params = PatchParams::default();
    skyhooks
        .patch_status(name, &params, &Patch::Merge(&status))
        .await
        .context("status")?;
    let same = skyhooks.get(name).await?;
    skyhooks
        .replace(name, &PostParams::default(), &same)
        .await
        .context("the same again")?;
    let mut applied = object("Skyhook", name, json!({}));
    applied["metadata"]["annotations"] = json!({ "by": "server-side apply" });
    if let Some(fields) = applied.as_object_mut() {
        fields.remove("spec");
    }
    let params = PatchParams::apply("test");
    skyhooks
        .patch(name, &params, &Patch::Apply(&applied))
        .await
        .context("server-side apply")?;
    let priority = edit(skyhooks, name, json!({ "spec": { "priority": 5 } })).await;
    ensure!(
        priority.is_err() == (blocks == Blocks::Spec),
        "a change of another field: {priority:?}"
    );
    let other = json!({ "spec": { "packages": { "zz": { "configMap": { "a": "b" } } } } });
    let other = edit(skyhooks, name, other).await;
    ensure!(
        other.is_err() == (blocks != Blocks::Nothing),
        "a change of another package: {other:?}"
    );
    for mistake in [
        json!({ "interruptionBudget": { "percent": 101 } }),
        json!({ "podNonInterruptLabels": { "matchLabels": { "/": "" } } }),
    ] {
        let new = edit(skyhooks, name, json!({ "spec": mistake })).await;
        ensure!(new.is_err(), "a new mistake was taken: {mistake}");
    }
    Ok(())
}

/// Deletes the object, which has a finalizer unless nobody gave it one.
async fn deletion(api: &Api<DynamicObject>, name: &str) -> Result<()> {
    edit(
        api,
        name,
        json!({ "metadata": { "finalizers": ["skyhook.nvidia.com/skyhook"] } }),
    )
    .await?;
    api.delete(name, &DeleteParams::default()).await?;
    let deleting = api.get(name).await?;
    ensure!(
        deleting.metadata.deletion_timestamp.is_some(),
        "{:?}",
        deleting.metadata
    );
    edit(
        api,
        name,
        json!({ "metadata": { "annotations": { "while": "deleting" } } }),
    )
    .await?;
    edit(api, name, json!({ "metadata": { "finalizers": null } })).await?;
    let left = api.get_opt(name).await?;
    ensure!(
        left.is_none(),
        "{} is still there",
        left.map(|left| left.name_any()).unwrap_or_default()
    );
    Ok(())
}
