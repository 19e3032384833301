mod standstills;

use serde_json::{Value, json};

use super::*;
use crate::testing;

/// A node with a status and a reason for some Skyhooks.
fn node(name: &str, reasons: &[(&str, &str, &str, &str)]) -> Node {
    let mut pairs = Vec::new();
    for (skyhook, status, reason, message) in reasons {
        pairs.push((format!("status_{skyhook}"), (*status).to_owned()));
        let reason =
            json!({ "reason": reason, "message": message, "since": "2026-11-27T10:00:00Z" });
        pairs.push((format!("reason_{skyhook}"), reason.to_string()));
    }
    let pairs: Vec<(&str, &str)> = pairs
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    testing::node(name, &pairs, &[])
}

fn facts(nodes: Vec<Node>, skyhooks: Vec<Skyhook>, leases: Vec<InterruptionLease>) -> Facts {
    Facts::new("skyhook", skyhooks, leases, nodes)
}

fn skyhook(name: &str, reasons: &Value) -> Skyhook {
    let status = json!({ "status": "in_progress", "completeNodes": "1/4", "reasons": reasons });
    testing::skyhook(name, &json!({}), &status)
}

/// A node waits for another Skyhook, which waits for a slot, which a failing node holds.
fn chain() -> Facts {
    let failing = testing::lease(
        "worker-1",
        "base",
        &json!({}),
        &json!({
            "phase": "Erroring", "package": "aa|1.0.0", "stage": "config", "since": "2026-11-27T09:00:00Z",
            "parked": { "package": "aa", "version": "1.0.0", "stage": "config", "attempts": 4 },
        }),
    );
    let full = "1 of 1 nodes of the interruptionBudget are in use";
    let first = "Skyhook base goes first on this node and is not complete there";
    facts(
        vec![
            node(
                "worker-1",
                &[(
                    "base",
                    "erroring",
                    "GaveUp",
                    "package aa in stage config: it failed",
                )],
            ),
            node(
                "worker-2",
                &[
                    ("gpu", "waiting", "EarlierSkyhook", first),
                    ("base", "waiting", "BudgetExhausted", full),
                ],
            ),
        ],
        vec![
            skyhook(
                "base",
                &json!({
                    "BudgetExhausted": { "nodes": 2, "since": "2026-11-27T10:00:00Z", "examples": ["worker-2"] },
                    "GaveUp": { "nodes": 1, "since": "2026-11-27T10:00:00Z", "examples": ["worker-1"] },
                }),
            ),
            skyhook("gpu", &json!({})),
        ],
        vec![failing],
    )
}

#[test]
fn the_whole_chain_is_followed_to_the_command_that_helps() {
    let want = "\
Skyhook base on node worker-2: waiting since 2026-11-27T10:00:00Z
  BudgetExhausted: 1 of 1 nodes of the interruptionBudget are in use
  because Skyhook base on node worker-1: erroring since 2026-11-27T10:00:00Z
    GaveUp: package aa in stage config: it failed
    it is worked on: Erroring, package aa|1.0.0, stage config, since 2026-11-27T09:00:00Z
    > what the steps wrote: kubectl skyhook package logs aa -n skyhook --skyhook base --node worker-1
    > try it again: kubectl skyhook package rerun aa --skyhook base --node worker-1

Skyhook gpu on node worker-2: waiting since 2026-11-27T10:00:00Z
  EarlierSkyhook: Skyhook base goes first on this node and is not complete there
  because Skyhook base on node worker-2: waiting since 2026-11-27T10:00:00Z
    BudgetExhausted: 1 of 1 nodes of the interruptionBudget are in use
    because Skyhook base on node worker-1: erroring since 2026-11-27T10:00:00Z
      GaveUp: package aa in stage config: it failed
      it is worked on: Erroring, package aa|1.0.0, stage config, since 2026-11-27T09:00:00Z
      > what the steps wrote: kubectl skyhook package logs aa -n skyhook --skyhook base --node worker-1
      > try it again: kubectl skyhook package rerun aa --skyhook base --node worker-1
";
    assert_eq!(text(&chain::of_node(&chain(), "worker-2")), want);
}

#[test]
fn a_skyhook_is_explained_by_an_example_for_each_reason() {
    let want = "\
Skyhook base: in_progress, 1/4 nodes complete
  because Skyhook base on node worker-1: erroring since 2026-11-27T10:00:00Z
    GaveUp: package aa in stage config: it failed
    it is worked on: Erroring, package aa|1.0.0, stage config, since 2026-11-27T09:00:00Z
    > what the steps wrote: kubectl skyhook package logs aa -n skyhook --skyhook base --node worker-1
    > try it again: kubectl skyhook package rerun aa --skyhook base --node worker-1
  because Skyhook base on node worker-2: waiting since 2026-11-27T10:00:00Z
    BudgetExhausted: 1 of 1 nodes of the interruptionBudget are in use
    and 1 more nodes: BudgetExhausted, the first since 2026-11-27T10:00:00Z
";
    assert_eq!(text(&[chain::of_skyhook(&chain(), "base")]), want);
}

#[test]
fn a_paused_skyhook_and_one_that_is_not_valid_say_so() {
    let mut paused = skyhook("base", &json!({}));
    paused
        .annotations_mut()
        .insert("skyhook.nvidia.com/pause".into(), "true".into());
    paused.status.as_mut().unwrap().conditions = testing::object(json!([
        { "type": "Ready", "status": "False", "reason": "Invalid", "message": "spec.packages[a].image is empty",
          "lastTransitionTime": "2026-11-27T10:00:00Z" },
        { "type": "DrainBlocked", "status": "False", "reason": "x", "message": "no", "lastTransitionTime": "2026-11-27T10:00:00Z" },
    ]));
    let want = "\
Skyhook base: in_progress, 1/4 nodes complete
  Ready (Invalid): spec.packages[a].image is empty
  Paused: annotation skyhook.nvidia.com/pause is \"true\"
  > correct it: kubectl edit skyhook base
  > let it go on: kubectl skyhook resume base
";
    let facts = facts(Vec::new(), vec![paused], Vec::new());
    assert_eq!(text(&[chain::of_skyhook(&facts, "base")]), want);
}

#[test]
fn a_drain_names_the_pods_that_do_not_leave() {
    let drain = json!({ "drain": {
        "state": "Draining", "more": 2,
        "blockers": [{ "pod": "db/pg-0", "reason": "no more than 0 may be disrupted", "cause": "PodDisruptionBudget" }],
    } });
    let lease = testing::lease(
        "worker-1",
        "base",
        &drain,
        &json!({ "phase": "AwaitingDrain" }),
    );
    let facts = facts(
        vec![node(
            "worker-1",
            &[("base", "in_progress", "Draining", "waiting for: db/pg-0")],
        )],
        vec![skyhook("base", &json!({}))],
        vec![lease],
    );
    let want = "\
Skyhook base on node worker-1: in_progress since 2026-11-27T10:00:00Z
  Draining: waiting for: db/pg-0
  it is worked on: AwaitingDrain
  db/pg-0: no more than 0 may be disrupted (PodDisruptionBudget)
  and 2 more pods
  > the pods on the node: kubectl get pods -A -o wide --field-selector spec.nodeName=worker-1
  > the budgets of such pods: kubectl get poddisruptionbudgets -n db
";
    assert_eq!(text(&chain::of_node(&facts, "worker-1")), want);
}

/// Two Skyhooks that name each other, which no coordinator writes.
#[test]
fn a_circle_of_causes_ends() {
    let first =
        |name: &str| format!("Skyhook {name} goes first on this node and is not complete there");
    let (a, b) = (first("a"), first("b"));
    let facts = facts(
        vec![node(
            "n",
            &[
                ("a", "waiting", "EarlierSkyhook", &b),
                ("b", "waiting", "EarlierSkyhook", &a),
            ],
        )],
        vec![skyhook("a", &json!({})), skyhook("b", &json!({}))],
        Vec::new(),
    );
    let found = chain::of_node(&facts, "n");
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].because[0].because, Vec::<Finding>::new());
}

#[test]
fn a_chain_is_data_as_well() {
    let found = chain::of_node(&chain(), "worker-2");
    let data = serde_json::to_value(&found).unwrap();
    assert_eq!(data[1]["because"][0]["because"][0]["reason"], "GaveUp");
    assert_eq!(data[0]["status"], "waiting");
}
