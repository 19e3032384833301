//! What an edit of a record means for the nodes that are being worked on.

use anyhow::Result;
use kube::Client;
use kube::api::{Api, ListParams};
use skyhook_crds::InterruptionLease;

use crate::session::{Session, list};

/// Says which of the nodes are being worked on for the Skyhook. A cluster without leases is one of NVIDIA Skyhook.
pub(crate) async fn say(
    session: &mut Session<'_>,
    client: &Client,
    skyhook: &str,
    nodes: &[String],
) -> Result<()> {
    let api: Api<InterruptionLease> = Api::all(client.clone());
    let leases = list(&api, &ListParams::default()).await;
    match note(skyhook, nodes, &leases.unwrap_or_default()) {
        Some(note) => session.say(&note),
        None => Ok(()),
    }
}

fn note(skyhook: &str, nodes: &[String], leases: &[InterruptionLease]) -> Option<String> {
    let ours = leases
        .iter()
        .filter(|lease| lease.spec.skyhook.name == skyhook);
    let working: Vec<&str> = ours
        .map(|lease| lease.spec.node.name.as_str())
        .filter(|node| nodes.iter().any(|one| one == node))
        .collect();
    if working.is_empty() {
        return None;
    }
    Some(format!(
        "Note: {} is worked on now. The change is written at once. A step that runs there goes on to its end; then the lease \
         of the node ends, and the node begins anew with what is on record.",
        working.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::lease;

    #[test]
    fn only_leases_of_the_skyhook_on_these_nodes_are_named() {
        let one = |node: &str, skyhook: &str| lease(node, skyhook, &json!({}), &json!(null));
        let leases = [
            one("a", "s"),
            one("b", "other"),
            one("c", "s"),
            one("d", "s"),
        ];
        let nodes = ["a", "b", "c"].map(str::to_owned);
        let given = note("s", &nodes, &leases).unwrap();
        assert!(given.starts_with("Note: a, c is worked on now."), "{given}");
        assert_eq!(note("t", &nodes, &leases), None);
    }
}
