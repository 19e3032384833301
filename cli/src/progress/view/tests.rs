use serde_json::json;

use super::*;
use crate::testing::{lease, object, skyhook};

fn at(time: &str) -> Timestamp {
    format!("2026-11-27T{time}Z").parse().unwrap()
}

fn node(name: &str, completed: &str) -> Node {
    object(json!({
        "metadata": { "name": name },
        "status": { "conditions": [{
            "type": "skyhook.nvidia.com/gpu-init/NotReady", "status": "False",
            "lastTransitionTime": format!("2026-11-27T{completed}Z"),
        }] },
    }))
}

fn rollout() -> Rollout {
    let status = json!({
        "status": "in_progress", "completeNodes": "3/8", "packageList": "aa:1.0.0,bb:2.0.0",
        "reasons": {
            "BudgetExhausted": { "nodes": 3, "since": "2026-11-27T09:58:00Z", "examples": ["worker-6"] },
            "Draining": { "nodes": 1, "since": "2026-11-27T09:59:15Z", "examples": ["worker-4"] },
        },
    });
    let drain = json!({ "drain": { "state": "Draining", "more": 1, "blockers": [{ "pod": "db/pg-0", "reason": "budget" }] } });
    let draining = json!({ "phase": "AwaitingDrain", "package": "aa|1.0.0", "stage": "apply", "since": "2026-11-27T09:59:15Z" });
    let leases = [
        lease("worker-5", "gpu-init", &json!({}), &json!(null)),
        lease("worker-4", "gpu-init", &drain, &draining),
        lease("other", "base", &json!({}), &json!(null)),
    ];
    let nodes = [
        node("a", "09:50:00"),
        node("b", "09:54:00"),
        node("c", "09:58:00"),
    ];
    Rollout::new(
        &skyhook("gpu-init", &json!({}), &status),
        &leases,
        &nodes,
        at("10:00:00"),
    )
}

fn shown(is_terminal: bool, width: usize, with_nodes: bool) -> Shown {
    Shown {
        screen: Screen {
            is_terminal,
            colours: false,
            width,
            ..Screen::default()
        },
        now: at("10:00:00"),
        with_nodes,
    }
}

#[test]
fn a_roll_out_with_its_nodes() {
    let want = "\
SKYHOOK   STATUS       NODES  WORKING  PACKAGES
-------   ------       -----  -------  --------
gpu-init  in_progress  3/8    2        aa:1.0.0,bb:2.0.0

WORKING   PHASE          PACKAGE   STAGE  FOR  WAITS FOR
-------   -----          -------   -----  ---  ---------
worker-4  AwaitingDrain  aa|1.0.0  apply  45s  2 pods, db/pg-0
worker-5  AwaitingAgent

REASON           NODES  FOR  EXAMPLE
------           -----  ---  -------
BudgetExhausted  3      2m   worker-6
Draining         1      45s  worker-4

5 nodes are left: about 25m more at this pace
";
    assert_eq!(shown(false, 80, true).text(&[rollout()]), want);
}

#[test]
fn a_terminal_has_bars_and_no_line_that_is_too_long() {
    let narrow = shown(true, 60, false).text(&[rollout()]);
    let want = "\
SKYHOOK   STATUS       NODES  WORKING  PROGRESS         PAC…
-------   ------       -----  -------  --------         ---…
gpu-init  in_progress  3/8    2        ███░░░░░░░  37%  aa:…
";
    assert_eq!(narrow, want);
    let wide = shown(true, 200, false).text(&[rollout()]);
    let bar = format!("{}{}  37%", "█".repeat(11), "░".repeat(19));
    assert!(wide.contains(&bar), "{wide}");
    let mut coloured = shown(true, 200, false);
    coloured.screen.colours = true;
    let text = coloured.text(&[rollout()]);
    let line = text.lines().last().unwrap();
    assert!(
        line.starts_with("\u{1b}[33mgpu-init") && line.ends_with("\u{1b}[0m"),
        "{line:?}"
    );
}

/// What matters most is in the last columns.
#[test]
fn long_names_leave_room_for_what_a_node_waits_for() {
    let mut long = rollout();
    for working in &mut long.working {
        working.node = format!("{}.eu-central-1.compute.internal", working.node);
    }
    let want = "\
WORKING                     PHASE          PACKAGE   STAGE  FOR  WAITS FOR
-------                     -----          -------   -----  ---  ---------
worker-4.eu-central-1.com…  AwaitingDrain  aa|1.0.0  apply  45s  2 pods, db/pg-0
worker-5.eu-central-1.com…  AwaitingAgent
";
    let text = shown(true, 80, true).text(std::slice::from_ref(&long));
    assert!(text.contains(want), "{text}");
    let narrow = shown(true, 60, true).text(&[long]);
    let want = "\nworker-4.eu…  AwaitingDr…  aa|1.0.0  apply  45s  2 pods, db…\n";
    assert!(narrow.contains(want), "{narrow}");
}

#[test]
fn the_pace_follows_from_the_nodes_that_were_completed_last() {
    for (what, completed, left, want) in [
        (
            "two in ten minutes",
            vec!["09:50:00", "10:00:00"],
            3,
            Some(1800),
        ),
        (
            "nothing for ten minutes",
            vec!["09:40:00", "09:50:00"],
            3,
            Some(3600),
        ),
        ("one alone", vec!["09:50:00"], 3, None),
        ("nothing left", vec!["09:50:00", "10:00:00"], 0, None),
    ] {
        let completed = completed.into_iter().map(at).collect();
        assert_eq!(remaining(completed, left, at("10:00:00")), want, "{what}");
    }
}

#[test]
fn times_are_spelled_as_kubectl_spells_ages() {
    for (seconds, want) in [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (3599, "59m"),
        (3600, "1h"),
        (11_100, "3h5m"),
        (172_800, "2d"),
    ] {
        assert_eq!(spell(seconds), want);
    }
}

#[test]
fn there_may_be_no_skyhook_and_no_status() {
    assert_eq!(shown(false, 80, false).text(&[]), "There are no Skyhooks\n");
    let new = Rollout::new(
        &skyhook("new", &json!({}), &json!(null)),
        &[],
        &[],
        at("10:00:00"),
    );
    let want = "\
SKYHOOK  STATUS   NODES  WORKING  PACKAGES
-------  ------   -----  -------  --------
new      unknown  0/0    0
";
    assert_eq!(shown(false, 80, true).text(&[new]), want);
}

#[test]
fn a_roll_out_is_data_as_well() {
    let data = serde_json::to_value(rollout()).unwrap();
    let working = json!({
        "node": "worker-4", "phase": "AwaitingDrain", "package": "aa|1.0.0", "stage": "apply",
        "since": "2026-11-27T09:59:15Z", "waitsFor": "2 pods, db/pg-0",
    });
    assert_eq!(data["working"][0], working);
    assert_eq!(data["remainingSeconds"], 1500);
    assert_eq!(data["status"], "in_progress");
}
