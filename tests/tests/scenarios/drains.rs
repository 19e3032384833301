//! Cordons of somebody else, drains that do not come to their end, and what keeps autoscalers off.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, PostParams};
use skyhook_tests::seen::{annotation, is_cordoned};

use super::*;

fn interrupting(more: Value) -> Value {
    let interrupt = json!({ "interrupt": { "type": "service", "services": ["cron"] } });
    let mut spec = json!({ "packages": { "dax": package("1.2.3", interrupt) } });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    spec
}

pub(crate) async fn of_a_cordoned_node(
    world: &mut World,
    nodes: &NodeRecorder,
) -> anyhow::Result<()> {
    let node = "cordoned-1";
    world.node(node, "cordoned", slow()).await?;
    world
        .edit_node(node, json!({ "spec": { "unschedulable": true } }))
        .await?;
    world.pod("guest", node, &[]).await?;
    world
        .apply("cordoned", "cordoned", interrupting(json!({})))
        .await?;
    world.complete("cordoned").await?;
    world
        .lease_until(node, "released", |lease| lease.is_none())
        .await?;
    ensure!(!world.has_pod("guest").await?, "the node was not drained");
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        let owners = annotation(&object, names::CORDON_OWNERS);
        ensure!(owners.is_none(), "{owners:?}");
        Ok(())
    })
    .await?;
    let mark = names::cordon("cordoned");
    nodes.whole(|seen| {
        let since = seen
            .versions(node)
            .iter()
            .skip_while(|one| !is_cordoned(one));
        for version in since {
            ensure!(
                is_cordoned(version),
                "somebody else's cordon was taken away"
            );
            ensure!(
                annotation(version, &mark).is_none(),
                "it was marked as ours"
            );
        }
        Ok(())
    })?
}

pub(crate) async fn blocked(world: &mut World) -> anyhow::Result<()> {
    let node = "blocked-1";
    world.node(node, "blocked", slow()).await?;
    world.pod("web", node, &[("app", "web")]).await?;
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(world.client.clone(), "default");
    let budget = json!({
        "metadata": { "name": "at-least-one" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } },
    });
    budgets
        .create(&PostParams::default(), &serde_json::from_value(budget)?)
        .await?;
    let spec = interrupting(json!({ "drainConfig": { "timeout": "6s" } }));
    world.apply("blocked", "blocked", spec).await?;
    let condition = |skyhook: &Skyhook| {
        let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
        let mut own = conditions.filter(|one| one.type_ == "DrainBlocked");
        own.next().cloned()
    };
    let held = world
        .skyhook_until("blocked", "DrainBlocked", |s| condition(s).is_some())
        .await?;
    let held = condition(&held).context("the condition")?;
    ensure!(
        held.status == "True" && held.reason == "PodDisruptionBudget",
        "{held:?}"
    );
    let begins = "1/1 nodes blocked draining (blocked-1); default/web on blocked-1: ";
    ensure!(
        held.message.starts_with(begins) && held.message.contains("at-least-one"),
        "{}",
        held.message
    );
    let key = names::drain_blocked("blocked").context("a short name")?;
    let start = names::drain_start("blocked").context("a short name")?;
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        let said = annotation(&object, &key).unwrap_or_default();
        let pods: Value = serde_json::from_str(said)?;
        let first = &pods[0];
        ensure!(
            (&first["namespace"], &first["name"], &first["reason"])
                == (
                    &json!("default"),
                    &json!("web"),
                    &json!("PodDisruptionBudget")
                ),
            "{said}"
        );
        ensure!(
            first["detail"]
                .as_str()
                .is_some_and(|one| one.contains("at-least-one")),
            "{said}"
        );
        ensure!(annotation(&object, &start).is_some(), "no {start}");
        Ok(())
    })
    .await?;

    // The time is up: the node is given back, and tried again later.
    let events: Api<Event> = Api::all(world.client.clone());
    let told = async |reason: &str| -> anyhow::Result<usize> {
        let all = events.list(&ListParams::default()).await?;
        let own = all.items.iter().filter(|event| {
            let of = event.regarding.as_ref().and_then(|of| of.name.as_deref());
            of == Some("blocked") && event.reason.as_deref() == Some(reason)
        });
        Ok(own.count())
    };
    eventually(MINUTE, async || {
        for reason in ["DrainBlocked", "DrainTimeout"] {
            ensure!(told(reason).await? > 0, "no event {reason}");
        }
        Ok(())
    })
    .await?;
    ensure!(world.has_pod("web").await?, "the budget was not respected");
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        ensure!(!is_cordoned(&object), "the cordon is left");
        Ok(())
    })
    .await?;

    budgets
        .delete("at-least-one", &DeleteParams::default())
        .await?;
    let done = world.complete("blocked").await?;
    ensure!(condition(&done).is_none(), "{:?}", condition(&done));
    world.expect_settled_soon(node, "blocked").await?;
    let object = world.get_node(node).await?;
    for key in [&key, &start] {
        ensure!(annotation(&object, key).is_none(), "{key} is left");
    }
    Ok(())
}

pub(crate) async fn protections(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let node = "protected-1";
    let script = HostScript {
        step_time: Duration::from_millis(300),
        ..HostScript::default()
    };
    world.node(node, "protected", script).await?;
    world
        .annotate(node, names::DO_NOT_DISRUPT, Some("true"))
        .await?;
    let spec = json!({ "packages": { "spencer": package("3.2.3", json!({})) } });
    world.apply("protected", "protected", spec).await?;
    world
        .lease_until(node, "granted", |lease| {
            lease.is_some_and(|lease| lease.spec.granted.is_some())
        })
        .await?;
    let held = world.get_node(node).await?;
    ensure!(
        annotation(&held, names::SCALE_DOWN_DISABLED) == Some("true"),
        "{:?}",
        held.metadata.annotations
    );
    world.complete("protected").await?;
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        let left = annotation(&object, names::SCALE_DOWN_DISABLED);
        ensure!(left.is_none(), "{left:?}");
        Ok(())
    })
    .await?;
    nodes.whole(|seen| {
        let mut since = seen.versions(node).iter();
        let mut since = since
            .by_ref()
            .skip_while(|one| annotation(one, names::DO_NOT_DISRUPT).is_none());
        ensure!(
            since.all(|one| annotation(one, names::DO_NOT_DISRUPT) == Some("true")),
            "the administrator's own annotation was changed"
        );
        Ok(())
    })?
}
