//! `DeploymentPolicies`, good and bad.

use serde_json::{Value, json};

use super::object;
use super::skyhooks::selector;
use super::table::{Case, Group};

fn base() -> Value {
    let spec = json!({ "default": { "budget": { "percent": 100 }, "strategy": { "fixed": {} } }, "compartments": [] });
    object("DeploymentPolicy", "p", spec)
}

fn compartment(name: &str, labels: &Value) -> Value {
    json!({ "name": name, "selector": { "matchLabels": labels }, "budget": { "count": 1 } })
}

fn compartments(all: &Value) -> Value {
    json!({ "spec": { "compartments": all } })
}

/// A compartment with this field.
fn with(field: &str, value: &Value) -> Value {
    let mut one = compartment("x", &json!({ "a": "b" }));
    one[field] = value.clone();
    compartments(&json!([one]))
}

pub(super) fn cases() -> Vec<Case> {
    let base = base();
    let mut cases = selector("compartments[0].selector", &base, |v| with("selector", v));
    for (name, change) in [
        (
            "spec.default.budget",
            (|v| json!({ "spec": { "default": { "budget": v } } })) as fn(&Value) -> Value,
        ),
        ("spec.compartments[0].budget", |v| with("budget", v)),
    ] {
        // In the base, percent is set.
        let none = json!({ "percent": null });
        let count = |n: i32| json!({ "percent": null, "count": n });
        let budget = Group::new(name, &base, change)
            .good([
                json!({ "percent": 1 }),
                json!({ "percent": 100 }),
                count(1),
                count(1000),
            ])
            .bad([none, json!({ "percent": 1, "count": 1 })])
            .in_own_words()
            .bad([
                json!({ "percent": 0 }),
                json!({ "percent": 101 }),
                json!({ "percent": -1 }),
                count(0),
                count(-1),
            ]);
        cases.extend(budget.cases());
    }
    for (name, change) in [
        (
            "spec.default.strategy",
            (|v| json!({ "spec": { "default": { "strategy": v } } })) as fn(&Value) -> Value,
        ),
        ("spec.compartments[0].strategy", |v| with("strategy", v)),
    ] {
        cases.extend(strategy(name, &base, change));
    }
    cases.extend(lists(&base));
    cases
}

fn strategy(name: &'static str, base: &Value, change: fn(&Value) -> Value) -> Vec<Case> {
    // In the base, fixed is set.
    let linear = |fields: Value| json!({ "fixed": null, "linear": fields });
    let exponential = |fields: Value| json!({ "fixed": null, "exponential": fields });
    Group::new(name, base, change)
        .good([json!({ "fixed": { "initialBatch": 3, "batchThreshold": 1, "failureThreshold": 1, "safetyLimit": 100 } })])
        .good([json!({ "fixed": { "failureThreshold": null } }), linear(json!({})), linear(json!({ "delta": 5 }))])
        .good([exponential(json!({})), exponential(json!({ "growthFactor": 2 }))])
        .bad([json!({ "fixed": null }), json!({ "fixed": {}, "linear": {} }), json!({ "fixed": {}, "linear": {}, "exponential": {} })])
        .in_own_words()
        .bad(["initialBatch", "batchThreshold", "failureThreshold", "safetyLimit"].map(|field| json!({ "fixed": { field: 0 } })))
        .bad(["batchThreshold", "safetyLimit"].map(|field| json!({ "fixed": { field: 101 } })))
        .bad([linear(json!({ "delta": 0 })), linear(json!({ "initialBatch": -1 })), linear(json!({ "safetyLimit": 0 }))])
        .bad([exponential(json!({ "growthFactor": 1 })), exponential(json!({ "batchThreshold": 0 }))])
        .cases()
}

fn lists(base: &Value) -> Vec<Case> {
    let [a, b, none] = [json!({ "a": "" }), json!({ "b": "" }), json!({})];
    let many = |count: usize| -> Value {
        let all = (0..count).map(|n| compartment(&n.to_string(), &json!({ "n": n.to_string() })));
        all.collect::<Vec<Value>>().into()
    };
    let lists = Group::new("spec.compartments", base, compartments)
        .good([
            json!([]),
            json!([compartment("x", &a)]),
            json!([compartment("x", &a), compartment("y", &b)]),
        ])
        .good([many(64)])
        .bad([
            json!([compartment("x", &a), compartment("x", &b)]),
            json!([compartment("x", &a), compartment("y", &a)]),
        ])
        .bad([json!([
            compartment("x", &none),
            compartment("y", &b),
            compartment("z", &none)
        ])])
        .bad([json!([
            compartment("x", &a),
            compartment("y", &b),
            compartment("x", &none),
            compartment("y", &json!({ "c": "" }))
        ])])
        .in_own_words()
        .bad([many(65)]);
    let names = Group::new("spec.compartments[0].name", base, |v| with("name", v))
        .good([json!("y"), json!("GPU nodes"), json!("x".repeat(63))])
        .bad([json!("__default__")])
        .in_own_words()
        .bad([json!(""), json!("x".repeat(64))]);
    lists.cases().into_iter().chain(names.cases()).collect()
}
