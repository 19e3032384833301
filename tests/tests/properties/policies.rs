//! Policies and states of roll-outs, in every form.

use serde_json::{Value, json};
use skyhook_crds::rollout;

use super::NAMES;

/// UID of every stored state.
pub(super) const STATE: &str = "state";

/// The policy that Skyhooks name: not valid, without strategies, with one, or with several.
pub(in super::super) fn policy_object(form: u8) -> Value {
    let tier = |name: &str, budget: Value| json!({ "name": name, "selector": { "matchLabels": { "tier": name } }, "budget": budget });
    let fixed = json!({ "fixed": { "failureThreshold": 1 } });
    let exponential = json!({ "exponential": { "safetyLimit": 100 } });
    let compartments = match form % 5 {
        0 => json!([]),
        1 => json!([
            tier("a", json!({ "count": 1 })),
            tier("b", json!({ "percent": 50 }))
        ]),
        2 => {
            let mut paced = tier("a", json!({ "count": 2 }));
            paced["strategy"] = exponential;
            json!([paced, tier("b", json!({ "count": 1 }))])
        }
        3 => {
            let (mut a, mut b) = (
                tier("a", json!({ "count": 1 })),
                tier("b", json!({ "count": 1 })),
            );
            a["strategy"] = fixed.clone();
            b["strategy"] = exponential;
            json!([a, b])
        }
        _ => json!([tier("a", json!({}))]),
    };
    json!({
        "metadata": { "name": "tuned" },
        "spec": {
            "default": { "budget": { "count": 1 }, "strategy": fixed },
            "compartments": compartments,
        },
    })
}

/// The state of a Skyhook's roll-out. Bits of `form` say what is in it.
pub(in super::super) fn rollout_object(at: usize, form: u8) -> Value {
    let name = NAMES[at];
    let has = |bit: u8| form & (1 << bit) != 0;
    let members: Vec<String> = (0..4_u8)
        .filter(|node| (form >> 4) & (1 << node) != 0)
        .map(|node| rollout::member(&format!("uid-worker-{node}")))
        .collect();
    let failed: Vec<usize> = (0..members.len().min(1)).filter(|_| has(1)).collect();
    let mut open = json!({
        "run": 1, "shown": 1, "batch": if has(0) { 3 } else { 0 }, "members": members, "failed": failed,
    });
    if has(2) {
        open["struck"] = json!(failed);
    }
    if has(3) {
        open["stopped"] = json!("2026-01-01T00:00:00Z");
    }
    let owner = if form == 0 {
        "another".to_owned()
    } else {
        format!("uid-{name}")
    };
    json!({
        "metadata": {
            "name": name, "uid": STATE, "resourceVersion": "6",
            "ownerReferences": [{ "apiVersion": "x", "kind": "Skyhook", "name": name, "uid": owner }],
        },
        "spec": {
            "format": i32::from(form == 255),
            "policy": "tuned", "nextBatch": if has(0) { 4 } else { 3 }, "nextOrder": 0,
            "revision": { "name": "r", "number": 1, "versions": "v" },
            "compartments": { "a": open },
        },
    })
}

/// The compartment and the batch of a lease.
pub(super) fn into_lease(spec: &mut Value, form: u8) {
    spec["compartment"] = json!(["", "__default__", "a", "b"][usize::from(form % 4)]);
    if !form.is_multiple_of(3) {
        spec["batch"] = json!({ "state": if form.is_multiple_of(5) { "other" } else { STATE }, "number": 2 + form % 3 });
    }
}
