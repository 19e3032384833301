//! From what stands still to what it comes from.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt as _;
use skyhook_crds::lease::{InterruptionLease, Phase};
use skyhook_crds::skyhook::NodeReason;
use skyhook_crds::{Skyhook, names};

use super::advice::{self, Place};
use super::{Facts, Finding};

/// Reasons of the condition Ready that are no node's.
const OF_ALL: [&str; 2] = ["AgentsRefused", "Invalid"];
/// Most causes of one kind that are followed.
const MOST: usize = 3;
/// What was explained already: node and Skyhook. A Skyhook as a whole has no node.
type Seen = BTreeSet<(String, String)>;

/// Every Skyhook that has something to do with a node.
pub(super) fn of_node(facts: &Facts, node: &str) -> Vec<Finding> {
    let Some(object) = facts.nodes.get(node) else {
        return Vec::new();
    };
    let mut skyhooks: BTreeSet<&str> = BTreeSet::new();
    for prefix in [names::status(""), names::reason(""), names::node_state("")] {
        let keys = object.annotations().keys();
        skyhooks.extend(keys.filter_map(|key| key.strip_prefix(&prefix)));
    }
    let lease = facts.leases.get(node);
    skyhooks.extend(lease.map(|lease| lease.spec.skyhook.name.as_str()));
    let on_node = |name: &&str| facts.skyhooks.get(*name);
    let mut sorted: Vec<&str> = skyhooks.into_iter().collect();
    sorted.sort_by_key(|name| (on_node(name).map(|skyhook| skyhook.spec.priority), *name));
    let findings = sorted.into_iter();
    findings
        .map(|skyhook| on(facts, node, skyhook, &mut Seen::new()))
        .collect()
}

/// A Skyhook as a whole: one example for each reason.
pub(super) fn of_skyhook(facts: &Facts, name: &str) -> Finding {
    whole(facts, name, &mut Seen::new())
}

fn whole(facts: &Facts, name: &str, seen: &mut Seen) -> Finding {
    let Some(skyhook) = facts.skyhooks.get(name) else {
        return Finding {
            subject: format!("Skyhook {name}"),
            status: "there is no such Skyhook".to_owned(),
            ..Finding::default()
        };
    };
    let status = skyhook.status.clone().unwrap_or_default();
    let mut finding = Finding {
        subject: format!("Skyhook {name}"),
        status: format!(
            "{}, {} nodes complete",
            status.status, status.complete_nodes
        ),
        ..Finding::default()
    };
    if !seen.insert((String::new(), name.to_owned())) {
        return finding;
    }
    let telling = conditions(skyhook, status.reasons.is_empty());
    finding.details = telling.iter().map(|condition| said(condition)).collect();
    let of_all = |condition: &&&Condition| OF_ALL.contains(&condition.reason.as_str());
    for condition in telling.iter().filter(of_all) {
        let help = advice::of(&condition.reason, "", &place(facts, name, ""));
        finding.help.extend(help);
    }
    for (key, word) in [(names::PAUSE, "Paused"), (names::DISABLE, "Disabled")] {
        if skyhook
            .annotations()
            .get(key)
            .is_some_and(|value| value == "true")
        {
            finding
                .details
                .push(format!("{word}: annotation {key} is \"true\""));
            finding
                .help
                .extend(advice::of(word, "", &place(facts, name, "")));
        }
    }
    if let Some(since) = &skyhook.metadata.deletion_timestamp {
        finding
            .details
            .push(format!("Deleted: it is being deleted since {}", since.0));
    }
    let mut reasons: Vec<_> = status.reasons.iter().collect();
    reasons.sort_by_key(|(code, summary)| {
        (
            advice::ends_by_itself(code),
            -summary.nodes,
            (*code).clone(),
        )
    });
    for (code, summary) in reasons {
        let Some(example) = summary.examples.first() else {
            finding
                .details
                .push(format!("{} nodes: {code}", summary.nodes));
            continue;
        };
        let mut cause = on(facts, example, name, seen);
        if summary.nodes > 1 {
            cause.details.push(format!(
                "and {} more nodes: {code}, the first since {}",
                summary.nodes - 1,
                summary.since
            ));
        }
        finding.because.push(cause);
    }
    finding
}

/// The conditions that say why a Skyhook stands still. Ready says so where no node has a reason, and where the reason is no
/// node's.
fn conditions(skyhook: &Skyhook, with_ready: bool) -> Vec<&Condition> {
    let all = skyhook.status.iter().flat_map(|status| &status.conditions);
    let telling = all.filter(|condition| match short(condition) {
        "Ready" => {
            let is_of_all = OF_ALL.contains(&condition.reason.as_str());
            condition.status != "True" && (with_ready || is_of_all)
        }
        "DeploymentPolicyInvalid"
        | "DeploymentPolicyNotFound"
        | "RolloutStopped"
        | "Blocked"
        | "DrainBlocked"
        | "UninstallFailed"
        | "NodeStateMalformed"
        | "DeletionBlocked" => condition.status == "True",
        _ => false,
    });
    telling.collect()
}

/// The type of a condition, without our prefix.
fn short(condition: &Condition) -> &str {
    let type_ = condition.type_.as_str();
    type_.rsplit('/').next().unwrap_or(type_)
}

fn said(condition: &Condition) -> String {
    let (type_, reason) = (short(condition), &condition.reason);
    let message = &condition.message;
    if type_ == reason {
        return format!("{type_}: {message}");
    }
    format!("{type_} ({reason}): {message}")
}

fn place<'a>(facts: &'a Facts, skyhook: &'a str, node: &'a str) -> Place<'a> {
    let lease = facts.leases.get(node);
    Place {
        namespace: &facts.namespace,
        skyhook,
        node,
        lease: lease.filter(|lease| lease.spec.skyhook.name == skyhook),
    }
}

/// Why a node makes no progress: the Node has all of it, the Skyhook's status an abridged form.
fn reason(facts: &Facts, node: &str, skyhook: &str) -> Option<NodeReason> {
    let annotations = facts.nodes.get(node).map(|node| node.annotations());
    let text = annotations.and_then(|all| all.get(&names::reason(skyhook)));
    let of_node = text.and_then(|text| serde_json::from_str(text).ok());
    let status = facts
        .skyhooks
        .get(skyhook)
        .and_then(|skyhook| skyhook.status.as_ref());
    of_node.or_else(|| status?.node_reasons.get(node).cloned())
}

fn status(facts: &Facts, node: &str, skyhook: &str) -> String {
    let annotations = facts.nodes.get(node).map(|node| node.annotations());
    let text = annotations.and_then(|all| all.get(&names::status(skyhook)).cloned());
    let all = facts
        .skyhooks
        .get(skyhook)
        .and_then(|skyhook| skyhook.status.as_ref());
    let listed = all.and_then(|status| status.node_status.get(node));
    text.or_else(|| listed.map(ToString::to_string))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// A node with a Skyhook.
fn on(facts: &Facts, node: &str, skyhook: &str, seen: &mut Seen) -> Finding {
    let mut finding = Finding {
        subject: format!("Skyhook {skyhook} on node {node}"),
        status: status(facts, node, skyhook),
        ..Finding::default()
    };
    let place = place(facts, skyhook, node);
    finding.details.extend(place.lease.map(working));
    finding
        .details
        .extend(place.lease.into_iter().flat_map(blockers));
    let Some(reason) = reason(facts, node, skyhook) else {
        return finding;
    };
    finding.reason.clone_from(&reason.reason);
    finding.message.clone_from(&reason.message);
    finding.since.clone_from(&reason.since);
    finding.help = advice::of(&reason.reason, &reason.message, &place);
    if seen.insert((node.to_owned(), skyhook.to_owned())) {
        finding.because = causes(facts, node, skyhook, &reason, seen);
    }
    finding
}

/// What a reason comes from.
fn causes(
    facts: &Facts,
    node: &str,
    skyhook: &str,
    reason: &NodeReason,
    seen: &mut Seen,
) -> Vec<Finding> {
    let of = |lease: &InterruptionLease| {
        let spec = &lease.spec;
        (spec.node.name.clone(), spec.skyhook.name.clone())
    };
    let holders = |any: bool| {
        let leases = facts.leases.values();
        let others = leases.filter(|lease| lease.spec.node.name != node);
        let mut found: Vec<&InterruptionLease> = others
            .filter(|lease| any || lease.spec.skyhook.name == skyhook)
            .collect();
        found.sort_by_key(|lease| (!is_stuck(lease), lease.spec.node.name.clone()));
        found.into_iter().take(MOST).map(of).collect::<Vec<_>>()
    };
    let next = match reason.reason.as_str() {
        "EarlierSkyhook" => {
            let earlier = earlier(&reason.message);
            if reason.message.contains("sequencing: all") {
                return earlier
                    .map(|earlier| whole(facts, earlier, seen))
                    .into_iter()
                    .collect();
            }
            earlier
                .map(|earlier| (node.to_owned(), earlier.to_owned()))
                .into_iter()
                .collect()
        }
        "NodeLeased" => facts.leases.get(node).map(of).into_iter().collect(),
        "BudgetExhausted" | "BatchUnderWay" => holders(false),
        "ClusterBudgetExhausted" | "ControlPlane" => holders(true),
        _ => Vec::new(),
    };
    let new = next
        .into_iter()
        .filter(|(node, skyhook)| !seen.contains(&(node.clone(), skyhook.clone())));
    let new: Vec<(String, String)> = new.collect();
    new.into_iter()
        .map(|(node, skyhook)| on(facts, &node, &skyhook, seen))
        .collect()
}

/// The Skyhook that a message names as the one that goes first.
fn earlier(message: &str) -> Option<&str> {
    let mut words = message.split(' ').skip_while(|word| *word != "Skyhook");
    words.nth(1)
}

fn is_stuck(lease: &InterruptionLease) -> bool {
    let status = lease.status.as_ref();
    status.is_none_or(|status| {
        status.parked.is_some() || matches!(status.phase, None | Some(Phase::Erroring))
    })
}

/// What the agent does under a lease.
fn working(lease: &InterruptionLease) -> String {
    let Some(status) = &lease.status else {
        return "it has the slot of the node, and the agent has not accepted it".to_owned();
    };
    let phase = status
        .phase
        .map_or_else(|| "Accepting".to_owned(), |phase| format!("{phase:?}"));
    let mut text = format!("it is worked on: {phase}");
    if let Some(package) = &status.package {
        let stage = status.stage.map(|stage| format!(", stage {stage}"));
        text.push_str(&format!(", package {package}{}", stage.unwrap_or_default()));
    }
    if let Some(since) = &status.since {
        text.push_str(&format!(", since {since}"));
    }
    for more in [&status.waits_for, &status.message] {
        if !more.is_empty() {
            text.push_str(&format!(": {more}"));
        }
    }
    if let Some(stop) = &lease.spec.stop {
        text.push_str(&format!(
            "; it stops before its next step ({:?})",
            stop.reason
        ));
    }
    text
}

/// The pods that a drain waits for.
fn blockers(lease: &InterruptionLease) -> Vec<String> {
    let drain = &lease.spec.drain;
    let pods = drain.blockers.iter().map(|blocker| {
        let cause = blocker.cause.map(|cause| format!(" ({})", cause.as_str()));
        format!(
            "{}: {}{}",
            blocker.pod,
            blocker.reason,
            cause.unwrap_or_default()
        )
    });
    let more = (drain.more > 0).then(|| format!("and {} more pods", drain.more));
    pods.chain(more).collect()
}
