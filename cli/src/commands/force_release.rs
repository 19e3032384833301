//! `force-release`: the lease of a node whose agent will not come back ends without a result.

use anyhow::{Context as _, Result};
use kube::ResourceExt as _;
use kube::api::Api;
use serde_json::{Value, json};
use skyhook_crds::{InterruptionLease, InterruptionLeaseSpec, names};

use crate::args::ForceReleaseArgs;
use crate::edit::{self, Part};
use crate::session::{Session, is_missing, said};

/// Runs `force-release`.
pub(crate) async fn run(session: &mut Session<'_>, args: &ForceReleaseArgs) -> Result<()> {
    let node = &args.node;
    // As data, so that a lease that this version cannot decode ends as well.
    let kind = kube::discovery::ApiResource::erase::<InterruptionLease>(&());
    let api: Api<kube::core::DynamicObject> = Api::all_with(session.client().await?, &kind);
    let lease = match api.get(node).await {
        Ok(lease) => lease,
        Err(error) if is_missing(&error) => {
            return session.print(&format!(
                "Node {node:?} has no lease: nothing is to be released\n"
            ));
        }
        Err(error) => {
            return Err(said(error)).with_context(|| format!("getting the lease of node {node:?}"));
        }
    };
    session.print(&summary(node, &lease.data))?;
    if !is_accepted(&lease.data) {
        return session.print(
            "\nThe agent has not accepted the lease, so nothing runs under it: the coordinator takes the slot back by itself\n",
        );
    }
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    let question = "\nIf the agent is alive, a step may still run there while another node takes the slot.\nRelease it? [y/N]: ";
    if !args.confirm.confirm && !session.ask_yes(question)? {
        return session.print("Aborted\n");
    }
    let uid = lease.uid();
    let write = edit::change(&api, lease, Part::Object, |lease| {
        Ok(change(uid.as_deref(), lease.uid()))
    });
    write
        .await
        .with_context(|| format!("patching the lease of node {node:?}"))?;
    session.print(&format!(
        "\nThe coordinator gives the slot of node {node:?} back\n"
    ))
}

fn summary(node: &str, lease: &Value) -> String {
    let text = |pointer: &str| lease.pointer(pointer).and_then(Value::as_str);
    let skyhook = text("/spec/skyhook/name").unwrap_or("unknown");
    let phase = text("/status/phase").unwrap_or("not accepted by the agent");
    let since = text("/status/since").map(|since| format!(" since {since}"));
    let package = text("/status/package").map(|package| format!("Package: {package}\n"));
    format!(
        "Node: {node}\nSkyhook: {skyhook}\nPhase: {phase}{}\n{}",
        since.unwrap_or_default(),
        package.unwrap_or_default()
    )
}

/// False while the agent has done nothing under a lease. Nobody has to release that by force. A lease that cannot be decoded
/// may be one under which something runs.
fn is_accepted(lease: &Value) -> bool {
    let decoded: Result<InterruptionLeaseSpec, _> =
        serde_json::from_value(lease.get("spec").cloned().unwrap_or_default());
    decoded.is_err() || lease.pointer("/status/phase").is_some()
}

/// The value is the UID of the lease, so that no later lease of the node is released by it.
fn change(asked: Option<&str>, uid: Option<String>) -> Option<Value> {
    let uid = uid.filter(|uid| asked == Some(uid))?;
    Some(json!({ "metadata": { "annotations": { names::FORCE_RELEASE: uid } } }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lease;

    #[test]
    fn the_lease_that_was_shown_is_released_and_no_other() {
        let want =
            json!({ "metadata": { "annotations": { "skyhook.nvidia.com/force-release": "u" } } });
        assert_eq!(change(Some("u"), Some("u".into())), Some(want));
        assert_eq!(change(Some("u"), Some("later".into())), None);
    }

    #[test]
    fn the_summary_says_who_is_interrupted() {
        let status =
            json!({ "phase": "Running", "package": "aa|1.0", "since": "2026-11-27T10:00:00Z" });
        let running = serde_json::to_value(lease("w", "s", &json!({}), &status)).unwrap();
        let want =
            "Node: w\nSkyhook: s\nPhase: Running since 2026-11-27T10:00:00Z\nPackage: aa|1.0\n";
        assert_eq!(summary("w", &running), want);
        assert!(is_accepted(&running));
        let new = serde_json::to_value(lease("w", "s", &json!({}), &json!(null))).unwrap();
        assert!(!is_accepted(&new));
        assert!(is_accepted(&json!({ "spec": "?" })));
        let want = "Node: w\nSkyhook: unknown\nPhase: not accepted by the agent\n";
        assert_eq!(summary("w", &json!({ "spec": "?" })), want);
    }
}
