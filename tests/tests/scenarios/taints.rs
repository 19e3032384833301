//! The runtime-required taint, taints of others, and nodes that were rebooted.

use k8s_openapi::api::core::v1::Node;
use skyhook_tests::seen::{annotation, is_cordoned, marks, taints};

use super::*;

const OURS: &str = "skyhook.nvidia.com=runtime-required:NoSchedule";
const AUTO: &str = "skyhook.nvidia.com/autoTaint_skyhook.nvidia.com";
const NONE: [&str; 0] = [];

fn required(more: Value) -> Value {
    let mut spec = json!({
        "runtimeRequired": true, "packages": { "spencer": package("3.2.3", json!({})) },
    });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        spec[key] = value;
    }
    spec
}

/// All versions of a Node so far.
fn versions(nodes: &NodeRecorder, node: &str) -> anyhow::Result<Vec<Node>> {
    nodes.whole(|seen| seen.versions(node).to_vec())
}

/// Waits until label and annotation of a node have this status.
async fn has_status(world: &World, node: &str, skyhook: &str, want: &str) -> anyhow::Result<()> {
    let key = names::status(skyhook);
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        let metadata = &object.metadata;
        for map in [&metadata.labels, &metadata.annotations] {
            let given = map.as_ref().and_then(|map| map.get(&key));
            ensure!(given.is_some_and(|given| given == want), "{node}: {map:?}");
        }
        Ok(())
    })
    .await
}

/// Fails unless the node is untainted once it is complete, and not before.
fn untainted_when_complete(nodes: &NodeRecorder, node: &str, skyhook: &str) -> anyhow::Result<()> {
    let key = names::node_state(skyhook);
    let all = versions(nodes, node)?;
    let tainted = |node: &Node| taints(node).contains(&OURS.to_owned());
    let turn = all
        .windows(2)
        .find(|pair| tainted(&pair[0]) && !tainted(&pair[1]));
    let before = turn.with_context(|| format!("{node} was never untainted"))?;
    let record = annotation(&before[0], &key).unwrap_or_default();
    ensure!(
        record.contains(r#""stage":"config","state":"complete""#),
        "{node} was untainted when its record was {record:?}"
    );
    Ok(())
}

pub(crate) async fn runtime_required(
    world: &mut World,
    nodes: &NodeRecorder,
) -> anyhow::Result<()> {
    let (free, kept) = ("required-1", "required-2");
    for node in [free, kept] {
        world.node(node, "required", slow()).await?;
    }
    world.taint(free, &[OURS]).await?;
    world
        .taint(kept, &["test-block=true:NoSchedule", OURS])
        .await?;
    world
        .apply("required", "required", required(json!({})))
        .await?;
    has_status(world, free, "required", "complete").await?;
    eventually(MINUTE, async || {
        let left = taints(&world.get_node(free).await?);
        ensure!(left == NONE, "{left:?}");
        Ok(())
    })
    .await?;
    untainted_when_complete(nodes, free, "required")?;

    has_status(world, kept, "required", "blocked").await?;
    let since = versions(nodes, kept)?.len() - 1;
    holds(|| {
        for version in versions(nodes, kept)?.iter().skip(since) {
            let given = taints(version);
            ensure!(
                given == ["test-block=true:NoSchedule", OURS] && !is_cordoned(version),
                "{given:?}, cordoned: {}",
                is_cordoned(version)
            );
        }
        Ok(())
    })
    .await?;
    let status = world.skyhook_until("required", "told", |s| s.status.is_some());
    let reason = status.await?.status.context("status")?.node_reasons[kept].clone();
    ensure!(
        reason.reason == "TaintNotTolerable"
            && reason.message.contains("test-block")
            && reason.message.contains(OURS),
        "{reason:?}"
    );
    world.taint(kept, &[OURS]).await?;
    world.complete("required").await?;
    world.expect_settled_soon(kept, "required").await?;
    let left = taints(&world.get_node(kept).await?);
    ensure!(left == NONE, "{left:?}");
    untainted_when_complete(nodes, kept, "required")
}

pub(crate) async fn auto_taint(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let node = "auto-1";
    let script = HostScript {
        step_time: Duration::from_millis(500),
        ..HostScript::default()
    };
    world.node(node, "auto", script).await?;
    let auto = required(json!({ "autoTaintNewNodes": true }));
    world.apply("auto", "auto", auto.clone()).await?;
    world.complete("auto").await?;
    world.expect_settled_soon(node, "auto").await?;
    let all = versions(nodes, node)?;
    let first = all.iter().find(|version| !marks(version).is_empty());
    let first = first.context("nothing was written on the Node")?;
    ensure!(
        taints(first) == [OURS] && marks(first) == [AUTO],
        "the first write: {:?}, {:?}",
        taints(first),
        marks(first)
    );
    ensure!(annotation(first, AUTO) == Some("true"), "{first:?}");
    untainted_when_complete(nodes, node, "auto")?;
    let left = taints(&world.get_node(node).await?);
    ensure!(left == NONE, "{left:?}");

    // The node is not new any more.
    let since = versions(nodes, node)?.len() - 1;
    world.apply("auto-later", "auto", auto).await?;
    world.complete("auto-later").await?;
    holds(|| {
        for version in versions(nodes, node)?.iter().skip(since) {
            let given = taints(version);
            ensure!(given == NONE, "tainted again: {given:?}");
        }
        Ok(())
    })
    .await
}

pub(crate) async fn scheduling(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let node = "dedicated-1";
    let host = world.node(node, "dedicated", slow()).await?;
    world.taint(node, &["dedicated=x:NoSchedule"]).await?;
    let packages = json!({ "spencer": package("3.2.3", json!({})) });
    let spec = json!({ "packages": packages });
    world.apply("dedicated", "dedicated", spec).await?;
    has_status(world, node, "dedicated", "blocked").await?;
    let type_ = "skyhook.nvidia.com/TaintNotTolerable";
    let says = |skyhook: &Skyhook, status: &str| {
        let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
        let mut own = conditions.filter(|one| one.type_ == type_);
        own.any(|one| one.status == status)
    };
    let blocked = world
        .skyhook_until("dedicated", "blocked", |s| says(s, "True"))
        .await?;
    let status = blocked.status.context("status")?;
    let conditions = status.conditions.iter();
    let mut messages = conditions.filter(|one| one.type_ == type_);
    let message = messages.next().map(|one| one.message.clone());
    ensure!(
        message.as_deref()
            == Some("Node [dedicated-1] has taints that are not tolerable. Skipping."),
        "{message:?}"
    );
    let reason = &status.node_reasons[node];
    ensure!(
        reason.message.contains("dedicated=x:NoSchedule"),
        "{reason:?}"
    );
    ensure!(host.ledger().is_empty(), "{:?}", host.ledger());

    let toleration =
        json!([{ "key": "dedicated", "operator": "Equal", "value": "x", "effect": "NoSchedule" }]);
    let spec = json!({ "packages": packages, "additionalTolerations": toleration });
    world.apply("dedicated", "dedicated", spec).await?;
    let done = world.complete("dedicated").await?;
    ensure!(says(&done, "False"), "{:?}", done.status);
    let all = versions(nodes, node)?;
    ensure!(!all.iter().any(is_cordoned), "it was cordoned");
    let left = taints(&world.get_node(node).await?);
    ensure!(left == ["dedicated=x:NoSchedule"], "{left:?}");
    Ok(())
}

pub(crate) async fn cordon_after(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let node = "after-1";
    world.node(node, "after", slow()).await?;
    world.taint(node, &[OURS]).await?;
    let spec = required(json!({ "runtimeRequiredCordonAfter": true }));
    world.apply("after", "after", spec).await?;
    world.complete("after").await?;
    let mark = names::RUNTIME_REQUIRED_CORDON;
    let cordoned = async || -> anyhow::Result<()> {
        let object = world.get_node(node).await?;
        ensure!(
            is_cordoned(&object) && annotation(&object, mark) == Some("true"),
            "cordoned: {}, {:?}",
            is_cordoned(&object),
            object.metadata.annotations
        );
        let left = taints(&object);
        ensure!(!left.contains(&OURS.to_owned()), "{left:?}");
        Ok(())
    };
    eventually(MINUTE, cordoned).await?;
    let all = versions(nodes, node)?;
    let untainted = all
        .iter()
        .skip_while(|version| !taints(version).contains(&OURS.to_owned()));
    let mut untainted = untainted.filter(|version| !taints(version).contains(&OURS.to_owned()));
    ensure!(
        untainted.all(is_cordoned),
        "there was a moment without the taint and without the cordon"
    );

    // The cordon outlives an interrupt of another Skyhook.
    let interrupt = json!({ "interrupt": { "type": "service", "services": ["cron"] } });
    let spec = json!({ "priority": 300, "packages": { "dax": package("1.2.3", interrupt) } });
    world.apply("after-later", "after", spec).await?;
    world.complete("after-later").await?;
    world
        .lease_until(node, "released", |lease| lease.is_none())
        .await?;
    cordoned().await?;
    ensure!(
        annotation(&world.get_node(node).await?, &names::cordon("after-later")).is_none(),
        "the cordon is not that of the Skyhook"
    );
    world
        .edit_node(node, json!({ "spec": { "unschedulable": false } }))
        .await?;
    eventually(MINUTE, async || {
        let object = world.get_node(node).await?;
        ensure!(annotation(&object, mark).is_none(), "the mark is left");
        ensure!(!is_cordoned(&object), "it is cordoned again");
        Ok(())
    })
    .await
}

/// A reboot that an interrupt asks for changes nothing about taints. One that nobody asked for does.
pub(crate) async fn reboots(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let node = "reboot-1";
    let host = world.node(node, "reboot", slow()).await?;
    let interrupt = json!({ "interrupt": { "type": "reboot" } });
    let spec = required(json!({
        "autoTaintNewNodes": true, "packages": { "spencer": package("3.2.3", interrupt) },
    }));
    world.apply("reboot", "reboot", spec).await?;
    world.complete("reboot").await?;
    world.expect_settled_soon(node, "reboot").await?;
    let is_tainted = |version: &Node| taints(version).contains(&OURS.to_owned());
    let times_tainted = |all: &[Node]| {
        let turns = all.windows(2);
        let turns = turns.filter(|pair| !is_tainted(&pair[0]) && is_tainted(&pair[1]));
        turns.count()
    };
    let all = versions(nodes, node)?;
    ensure!(
        times_tainted(&all) == 1,
        "tainted when it joined, and not again"
    );
    ensure!(
        host.ledger()
            .iter()
            .any(|entry| entry.starts_with("interrupt")),
        "{:#?}",
        host.ledger()
    );

    let applied = times(&host, "spencer|3.2.3 apply");
    world.reboot(node).await?;
    eventually(MINUTE, async || {
        let again = times(&host, "spencer|3.2.3 apply");
        ensure!(again == applied + 1, "applied {again} times");
        Ok(())
    })
    .await?;
    world.expect_settled_soon(node, "reboot").await?;
    let all = versions(nodes, node)?;
    ensure!(times_tainted(&all) == 2, "{} times", times_tainted(&all));
    // The taint is back in the write that empties the record, and stays until the packages are there again.
    let key = names::node_state("reboot");
    let emptied = all.iter().filter(|one| annotation(one, &key) == Some("{}"));
    let emptied: Vec<bool> = emptied.map(is_tainted).collect();
    ensure!(
        !emptied.is_empty() && emptied.iter().all(|tainted| *tainted),
        "{emptied:?}"
    );
    let left = taints(&world.get_node(node).await?);
    ensure!(left == NONE, "{left:?}");
    Ok(())
}

/// Nodes that are no hosts of ours are selected too, and nothing is ever written on them.
pub(crate) async fn strange_nodes(world: &mut World, nodes: &NodeRecorder) -> anyhow::Result<()> {
    let strange = [
        ("strange-windows", "kubernetes.io/os", "windows"),
        ("strange-virtual", "type", "virtual-kubelet"),
        (
            "strange-fargate",
            "eks.amazonaws.com/compute-type",
            "fargate",
        ),
    ];
    for (node, key, value) in strange {
        world
            .fixture
            .node(node, &[("test", "strange"), (key, value)])
            .await?;
    }
    world.node("strange-none", "strange", slow()).await?;
    let auto = required(json!({ "autoTaintNewNodes": true }));
    world.apply("strange", "strange", auto).await?;
    world.complete("strange").await?;
    let end = "; 3 selected nodes are left out: Windows, virtual-kubelet or Fargate";
    let said = |skyhook: &Skyhook| {
        let status = skyhook.status.as_ref();
        let all = status.is_some_and(|status| status.complete_nodes == "1/1");
        let conditions = status.into_iter().flat_map(|status| &status.conditions);
        all && conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.message.ends_with(end))
    };
    let what = "1/1 and three left out";
    world.skyhook_until("strange", what, said).await?;
    world.expect_settled_soon("strange-none", "strange").await?;
    for (node, ..) in strange {
        for version in versions(nodes, node)? {
            let metadata = &version.metadata;
            let keys = [&metadata.labels, &metadata.annotations];
            let ours = keys.into_iter().flatten().flat_map(|map| map.keys());
            let ours: Vec<&String> = ours.filter(|key| key.contains("skyhook")).collect();
            ensure!(
                ours.is_empty() && !is_cordoned(&version),
                "{node}: {ours:?}"
            );
            let tainted = taints(&version);
            let tainted = tainted.iter().find(|taint| taint.contains("skyhook"));
            ensure!(tainted.is_none(), "{node}: {tainted:?}");
        }
    }
    Ok(())
}
