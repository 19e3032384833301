//! Skyhooks that are deleted, and made anew under their name.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::ControllerRevision;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy};
use serde_json::{Value, json};
use skyhook_crds::{Skyhook, names};
use skyhook_integration::rollout::LeaseRecorder;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::coreagent::HostScript;
use skyhook_tests::world::World;

use super::{package, position, slow, times};

fn skyhooks(world: &World) -> Api<Skyhook> {
    Api::all(world.client.clone())
}

async fn revisions(world: &World, skyhook: &str) -> anyhow::Result<Vec<ControllerRevision>> {
    let all: Api<ControllerRevision> = Api::namespaced(world.client.clone(), "skyhook");
    let of = ListParams::default().labels(&format!("{}={skyhook}", names::REVISION_OF));
    Ok(all.list(&of).await?.items)
}

async fn gone(world: &World, name: &str) -> anyhow::Result<()> {
    eventually(MINUTE, async || {
        let left = skyhooks(world).get_opt(name).await?;
        ensure!(left.is_none(), "Skyhook {name} is there: {left:#?}");
        Ok(())
    })
    .await
}

/// Deletes a Skyhook with what depends on it first, as Argo CD does. The garbage collector is played: it deletes all that
/// the Skyhook owns, at once, and then takes its own finalizer off.
async fn delete_in_foreground(world: &World, name: &str) -> anyhow::Result<()> {
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    skyhooks(world).delete(name, &params).await?;
    let all: Api<ControllerRevision> = Api::namespaced(world.client.clone(), "skyhook");
    for revision in revisions(world, name).await? {
        if !revision.owner_references().is_empty() {
            all.delete(&revision.name_any(), &DeleteParams::default())
                .await?;
        }
    }
    eventually(MINUTE, async || {
        let Some(skyhook) = skyhooks(world).get_opt(name).await? else {
            return Ok(());
        };
        let finalizers = skyhook.finalizers().iter();
        let ours: Vec<&String> = finalizers
            .filter(|one| *one != "foregroundDeletion")
            .collect();
        let body = json!({ "metadata": {
            "resourceVersion": skyhook.resource_version(), "finalizers": ours,
        } });
        skyhooks(world)
            .patch(name, &PatchParams::default(), &Patch::Merge(&body))
            .await?;
        Ok(())
    })
    .await?;
    gone(world, name).await
}

fn spec(config: &str, more: Value) -> Value {
    let mut packages = json!({
        "steady": package("1.0.0", json!({ "interrupt": { "type": "reboot" } })),
        "tuned": package("1.0.0", json!({ "configMap": { "key": config } })),
    });
    for (name, package) in more.as_object().cloned().unwrap_or_default() {
        packages[name] = package;
    }
    json!({ "interruptionBudget": { "count": 1 }, "packages": packages })
}

/// What has not changed is complete at once, without a lease; what has changed is an edit; what was in the middle goes on.
pub(super) async fn made_anew(world: &mut World, leases: &LeaseRecorder) -> anyhow::Result<()> {
    let hosts = [
        world.node("anew-1", "anew", slow()).await?,
        world.node("anew-2", "anew", slow()).await?,
    ];
    let none = || json!({});
    world.apply("anew", "anew", spec("a", none())).await?;
    world.complete("anew").await?;
    for node in ["anew-1", "anew-2"] {
        world.expect_settled_soon(node, "anew").await?;
    }
    let before: Vec<usize> = hosts.iter().map(|host| host.ledger().len()).collect();
    let seen = leases.changes().len();
    for again in 0..2 {
        delete_in_foreground(world, "anew").await?;
        let node = world.get_node("anew-1").await?;
        let said: Vec<&String> = node
            .annotations()
            .keys()
            .chain(node.labels().keys())
            .filter(|key| key.ends_with("_anew"))
            .collect();
        let stays = [
            names::node_state("anew"),
            names::stamp("anew"),
            names::version("anew"),
        ];
        ensure!(said.iter().all(|key| stays.contains(key)), "{said:?}");
        ensure!(said.len() == stays.len(), "{said:?}");
        ensure!(!revisions(world, "anew").await?.is_empty(), "no revision");
        world.apply("anew", "anew", spec("a", none())).await?;
        world
            .complete("anew")
            .await
            .with_context(|| format!("time {again}"))?;
        for node in ["anew-1", "anew-2"] {
            world.expect_settled_soon(node, "anew").await?;
        }
    }
    let after: Vec<usize> = hosts.iter().map(|host| host.ledger().len()).collect();
    ensure!(before == after, "something ran: {:#?}", hosts[0].ledger());
    let more = leases.changes().split_off(seen);
    ensure!(more.is_empty(), "no lease is needed: {more:#?}");

    delete_in_foreground(world, "anew").await?;
    world.apply("anew", "anew", spec("b", none())).await?;
    world.complete("anew").await?;
    for host in &hosts {
        ensure!(
            times(host, "tuned|1.0.0 config") == 2,
            "{:#?}",
            host.ledger()
        );
        ensure!(
            times(host, "tuned|1.0.0 apply") == 1,
            "{:#?}",
            host.ledger()
        );
        ensure!(
            times(host, "steady|1.0.0 config") == 1,
            "{:#?}",
            host.ledger()
        );
    }

    // A node in the middle of a package that comes anew.
    let late = HostScript {
        failures: [("late".to_owned(), 1000)].into(),
        ..slow()
    };
    let host = world.node("anew-3", "anew", late).await?;
    let with_late = || spec("b", json!({ "late": package("1.0.0", json!({})) }));
    world.apply("anew", "anew", with_late()).await?;
    eventually(MINUTE, async || {
        let states = world.states("anew-3", "anew").await?;
        let is_failing = states
            .get("late|1.0.0")
            .is_some_and(|one| one.contains("erroring"));
        let others = states.get("steady|1.0.0").map(String::as_str);
        ensure!(
            is_failing && others == Some("post-interrupt/complete"),
            "{states:?}"
        );
        Ok(())
    })
    .await?;
    delete_in_foreground(world, "anew").await?;
    let reboots = |ledger: &[String]| ledger.iter().filter(|one| one.contains("reboot")).count();
    let interrupted = reboots(&host.ledger());
    host.change(|script| script.failures.clear());
    world.apply("anew", "anew", with_late()).await?;
    world.complete("anew").await?;
    ensure!(
        times(&host, "steady|1.0.0 apply") == 1,
        "{:#?}",
        host.ledger()
    );
    ensure!(
        reboots(&host.ledger()) == interrupted,
        "{:#?}",
        host.ledger()
    );
    Ok(())
}

/// Packages that can be uninstalled are, one node after the other, and then nothing tells of the Skyhook.
pub(super) async fn uninstall_on_delete(
    world: &mut World,
    leases: &LeaseRecorder,
) -> anyhow::Result<()> {
    let hosts = [
        world.node("away-1", "away", slow()).await?,
        world.node("away-2", "away", slow()).await?,
    ];
    let enabled = json!({ "enabled": true });
    let spec = json!({ "interruptionBudget": { "count": 1 }, "packages": {
        "plain": package("1.0.0", json!({ "uninstall": enabled })),
        "rebooting": package("1.0.0", json!({ "uninstall": enabled, "interrupt": { "type": "reboot" } })),
    } });
    world.apply("away", "away", spec).await?;
    world.complete("away").await?;
    let reboots = |ledger: &[String]| ledger.iter().filter(|one| one.contains("reboot")).count();
    let before: Vec<usize> = hosts.iter().map(|host| reboots(&host.ledger())).collect();
    // Nodes that are not selected any more are cleaned as well.
    world
        .edit_node(
            "away-2",
            json!({ "metadata": { "labels": { "test": "elsewhere" } } }),
        )
        .await?;
    world
        .annotate_skyhook("away", names::PAUSE, Some("true"))
        .await?;
    skyhooks(world)
        .delete("away", &DeleteParams::default())
        .await?;
    let says = |skyhook: &Skyhook, reason: &str| {
        let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
        let mut blocked = conditions.filter(|one| one.type_ == "DeletionBlocked");
        blocked.any(|one| one.reason == reason)
    };
    world
        .skyhook_until("away", "it cannot go while it is paused", |skyhook| {
            says(skyhook, "PausedWithPendingUninstall")
        })
        .await?;
    world
        .annotate_skyhook("away", names::DISABLE, Some("true"))
        .await?;
    world
        .skyhook_until("away", "nor while it is disabled", |skyhook| {
            says(skyhook, "DisabledWithPendingUninstall")
        })
        .await?;
    for key in [names::DISABLE, names::PAUSE] {
        world.annotate_skyhook("away", key, None).await?;
    }
    gone(world, "away").await?;
    for (host, before) in hosts.iter().zip(before) {
        for package in ["plain", "rebooting"] {
            let what = format!("{package}|1.0.0 uninstall");
            ensure!(times(host, &what) == 1, "{what}: {:#?}", host.ledger());
        }
        ensure!(
            reboots(&host.ledger()) == before + 1,
            "{:#?}",
            host.ledger()
        );
        position(host, "rebooting|1.0.0 uninstall-check")?;
    }
    for node in ["away-1", "away-2"] {
        let object = world.get_node(node).await?;
        let said: Vec<&String> = object
            .annotations()
            .keys()
            .chain(object.labels().keys())
            .filter(|key| key.ends_with("_away"))
            .collect();
        ensure!(said.is_empty(), "{node}: {said:?}");
        let conditions = object.status.and_then(|status| status.conditions);
        let conditions = conditions.unwrap_or_default();
        ensure!(
            !conditions.iter().any(|one| one.type_.contains("/away/")),
            "{conditions:?}"
        );
    }
    ensure!(leases.most_granted()? == 1, "one node after the other");
    eventually(MINUTE, async || {
        let left = revisions(world, "away").await?.len();
        ensure!(left == 0, "{left} revisions are left");
        Ok(())
    })
    .await
}

/// The way out when nobody can uninstall: the package need not be.
pub(super) async fn deletion_that_nobody_waits_for(world: &mut World) -> anyhow::Result<()> {
    let host = world.node("stuck-1", "stuck", slow()).await?;
    let spec = |enabled: bool| {
        let package = package("1.0.0", json!({ "uninstall": { "enabled": enabled } }));
        json!({ "packages": { "stuck": package } })
    };
    world.apply("stuck", "stuck", spec(true)).await?;
    world.complete("stuck").await?;
    host.change(|script| {
        script.failures.insert("stuck".to_owned(), 1000);
    });
    skyhooks(world)
        .delete("stuck", &DeleteParams::default())
        .await?;
    world
        .skyhook_until("stuck", "the uninstall fails", |skyhook| {
            let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
            conditions.clone().any(|one| one.type_ == "UninstallFailed")
                && conditions.clone().any(|one| one.reason == "Deleting")
        })
        .await?;
    world.apply("stuck", "stuck", spec(false)).await?;
    gone(world, "stuck").await?;
    let states = world.states("stuck-1", "stuck").await?;
    ensure!(states.len() == 1, "it stays on record: {states:?}");
    Ok(())
}
