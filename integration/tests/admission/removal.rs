//! A package that can be uninstalled is uninstalled before it is removed from the spec or gets a lower version.

use std::cmp::Ordering;

use anyhow::{Context, Result, ensure};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, version};

use super::oracle::Oracle;
use super::stored::edit;
use super::{object, objects, skyhook_crd, start};

const PATH: &str = "/spec/packages";

fn package(version: &str, uninstall: Option<Value>) -> Value {
    let mut package = json!({ "version": version, "image": "r/a" });
    if let Some(uninstall) = uninstall {
        package["uninstall"] = uninstall;
    }
    package
}

/// Makes a Skyhook that is installed on so many nodes.
async fn installed(
    api: &Api<DynamicObject>,
    name: &str,
    packages: Value,
    nodes: Value,
) -> Result<()> {
    let skyhook = object("Skyhook", name, json!({ "packages": packages }));
    let skyhook = serde_json::from_value(skyhook)?;
    api.create(&PostParams::default(), &skyhook)
        .await
        .with_context(|| name.to_owned())?;
    on_nodes(api, name, nodes).await
}

async fn on_nodes(api: &Api<DynamicObject>, name: &str, nodes: Value) -> Result<()> {
    let status = json!({ "status": { "installed": nodes } });
    let params = PatchParams::default();
    api.patch_status(name, &params, &Patch::Merge(&status))
        .await?;
    Ok(())
}

/// What the API server says about a change that is not made: the message, or nothing.
async fn asked(api: &Api<DynamicObject>, name: &str, packages: Value) -> Result<Option<String>> {
    let params = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    };
    let change = json!({ "spec": { "packages": packages } });
    match api.patch(name, &params, &Patch::Merge(&change)).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
            Ok(Some(status.message.clone()))
        }
        Err(error) => Err(error.into()),
    }
}

fn refused(outcome: Option<String>, words: &str) -> Result<()> {
    let message = outcome.with_context(|| format!("it was taken: {words}"))?;
    ensure!(
        message.contains(words) && message.contains("spec.packages: "),
        "{message:?} does not say {words:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_package_is_uninstalled_before_it_is_removed() -> Result<()> {
    let plane = start(&[skyhook_crd()?]).await?;
    let api = objects::<Skyhook>(&plane);
    let enabled = json!({ "enabled": true });
    let packages = json!({
        "aa": package("1.10.0", Some(enabled.clone())),
        "bb": package("1.10.0", None),
        "cc": package("1.10.0", Some(enabled)),
        "dd": package("1.10.0", Some(json!({ "enabled": false }))),
    });
    installed(
        &api,
        "s",
        packages,
        json!({ "aa": 2, "bb": 1, "cc": 0, "dd": 1, "left": 3 }),
    )
    .await?;
    let removal = "package aa has uninstall.enabled=true and is still on 2 nodes; set uninstall.apply=true and wait for \
        completion before removing from spec";
    refused(asked(&api, "s", json!({ "aa": null })).await?, removal)?;
    let renamed = json!({ "aa": null, "ee": package("1.10.0", None) });
    refused(asked(&api, "s", renamed).await?, removal)?;
    for free in ["bb", "cc", "dd"] {
        let outcome = asked(&api, "s", json!({ free: null })).await?;
        ensure!(outcome.is_none(), "{free}: {outcome:?}");
        let outcome = asked(&api, "s", json!({ free: { "version": "1.9.0" } })).await?;
        ensure!(outcome.is_none(), "{free}: {outcome:?}");
    }
    let lower = json!({ "aa": { "version": "1.9.0" } });
    let words = "package aa has uninstall.enabled=true and its version is lowered from 1.10.0 to 1.9.0: set \
        uninstall.apply=true first, wait, then change the version";
    refused(asked(&api, "s", lower.clone()).await?, words)?;
    for taken in [
        json!({ "version": "1.11.0" }),
        json!({ "configMap": { "a": "b" } }),
        json!({ "uninstall": { "enabled": false } }),
    ] {
        let outcome = asked(&api, "s", json!({ "aa": taken })).await?;
        ensure!(outcome.is_none(), "{outcome:?}");
    }
    edit(
        &api,
        "s",
        json!({ "spec": { "packages": { "aa": { "uninstall": { "apply": true } } } } }),
    )
    .await?;
    refused(
        asked(&api, "s", lower.clone()).await?,
        "to 1.9.0: wait for the uninstall to finish",
    )?;
    refused(asked(&api, "s", json!({ "aa": null })).await?, removal)?;
    // The coordinator counts down, and edits metadata, whatever the rules say.
    on_nodes(&api, "s", json!({ "aa": 1 })).await?;
    edit(
        &api,
        "s",
        json!({ "metadata": { "finalizers": ["skyhook.nvidia.com/skyhook"] } }),
    )
    .await?;
    on_nodes(&api, "s", json!({ "aa": null })).await?;
    for change in [lower, json!({ "aa": null })] {
        let outcome = asked(&api, "s", change).await?;
        ensure!(outcome.is_none(), "{outcome:?}");
    }
    Ok(())
}

/// Pairs of versions in which the second one may be lower.
const PAIRS: [(&str, &str); 36] = [
    ("1.10.0", "1.9.0"),
    ("1.9.0", "1.10.0"),
    ("1.10.0", "1.10.0-rc.1"),
    ("1.10.0-rc.1", "1.10.0"),
    ("2.0.0", "10.0.0"),
    ("10.0.0", "2.0.0"),
    ("1.2", "1.2.0"),
    ("v1.2", "1.1.9"),
    ("1", "v1.0.1"),
    ("1.0.1", "1"),
    ("1.0.0+a", "1.0.0+b"),
    ("1.0.0+b", "1.0.0"),
    ("1.0.0", "1.0.0+b"),
    ("1.0.0-1", "1.0.0-a"),
    ("1.0.0-a", "1.0.0-1"),
    ("1.0.0-9", "1.0.0-10"),
    ("1.0.0-10", "1.0.0-9"),
    ("1.0.0-a.b", "1.0.0-a"),
    ("1.0.0-a", "1.0.0-a.b"),
    ("1.0.0-a.1", "1.0.0-a.b"),
    ("1.0.0-a.b", "1.0.0-a.1"),
    ("1.0.0-a.9.x", "1.0.0-a.10"),
    ("1.0.0-a.10", "1.0.0-a.9.x"),
    ("1.0.0-A", "1.0.0-a"),
    ("1.0.0-a", "1.0.0-A"),
    ("1.0.0--", "1.0.0-a"),
    ("1.0.0-a-b", "1.0.0-a"),
    ("1.0.0-aa", "1.0.0-a-b"),
    ("1.0.0-a.b.c.2", "1.0.0-a.b.c.1"),
    ("1.0.0-a.b.c.1", "1.0.0-a.b.c.2"),
    ("1.0.0-x+a-b", "1.0.0-w+c-d"),
    ("1.0.0+x-1", "1.0.0-x"),
    ("999999999999999999.0.0", "1.0.0"),
    ("1.0.0", "999999999999999999.0.0"),
    ("0.0.1", "0.0.0-999999999999999999"),
    ("2024.7.7-test", "2024.7.6"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_version_is_one_of_lower_precedence() -> Result<()> {
    let crd = skyhook_crd()?;
    let oracle = Oracle::new(&crd)?;
    let plane = start(&[crd]).await?;
    let api = objects::<Skyhook>(&plane);
    let mut wrong = Vec::new();
    for (at, (before, after)) in PAIRS.into_iter().enumerate() {
        let name = format!("s{at}");
        let enabled = json!({ "enabled": true });
        installed(
            &api,
            &name,
            json!({ "aa": package(before, Some(enabled)) }),
            json!({ "aa": 1 }),
        )
        .await?;
        let outcome = asked(&api, &name, json!({ "aa": { "version": after } })).await?;
        let lower = version::compare(after, before)? == Ordering::Less;
        let old = serde_json::to_value(api.get(&name).await?)?;
        let mut new = old.clone();
        let place = new.pointer_mut(PATH).context("packages")?;
        place["aa"]["version"] = json!(after);
        let beside = oracle.change(&old, &new);
        if (outcome.is_some(), beside.is_empty()) != (lower, !lower) {
            wrong.push(format!(
                "{before} to {after}: the API server says {outcome:?}, kube-cel {beside:?}"
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}
