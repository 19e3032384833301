//! Skyhooks, good and bad.

use serde_json::{Value, json};

use super::table::{Case, Group};
use super::{bounds, object, packages};

fn base() -> Value {
    let package = json!({ "version": "1.0.0", "image": "r/a" });
    object("Skyhook", "s", json!({ "packages": { "aa": package } }))
}

pub(super) fn spec(change: &Value) -> Value {
    json!({ "spec": change })
}

/// A change of the package `aa`.
pub(super) fn package(change: &Value) -> Value {
    spec(&json!({ "packages": { "aa": change } }))
}

pub(super) fn texts<const N: usize>(texts: [&str; N]) -> impl Iterator<Item = Value> {
    texts.map(Value::from).into_iter()
}

pub(super) fn cases() -> Vec<Case> {
    let base = base();
    [
        of_the_rollout(&base),
        selectors(&base),
        packages::cases(&base),
        bounds::cases(&base),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn of_the_rollout(base: &Value) -> Vec<Case> {
    let numbers = |numbers: &[i32]| -> Vec<Value> { numbers.iter().map(|n| json!(n)).collect() };
    [
        Group::new("metadata.name", base, |v| json!({ "metadata": { "name": v } }))
            .in_own_words()
            .good([json!("a"), json!("a.b-c"), json!("x".repeat(53))])
            .bad([json!("x".repeat(54)), json!("x".repeat(200))]),
        Group::new("spec.priority", base, |v| spec(&json!({ "priority": v })))
            .in_own_words()
            .good(numbers(&[1, 200, i32::MAX]))
            .bad(numbers(&[0, -5])),
        Group::new("spec.sequencing", base, |v| spec(&json!({ "sequencing": v })))
            .good(texts(["node", "all"]))
            .bad(texts(["", "Node", "some"])),
        Group::new("spec.interruptionBudget", base, |v| spec(&json!({ "interruptionBudget": v })))
            .good([json!({}), json!(null), json!({ "percent": 0 }), json!({ "percent": 100 }), json!({ "count": 0 })])
            .good([json!({ "count": 5, "countUnavailable": true }), json!({ "percent": null, "count": 1 })])
            .bad([json!({ "percent": 1, "count": 1 }), json!({ "percent": 0, "count": 0 })])
            .in_own_words()
            .bad([json!({ "percent": -1 }), json!({ "percent": 101 }), json!({ "count": -1 })]),
        Group::new("spec.deploymentPolicy", base, spec)
            .good([json!({ "deploymentPolicy": "p" }), json!({ "deploymentPolicy": "p", "interruptionBudget": {} })])
            .good([json!({ "deploymentPolicy": "", "interruptionBudget": { "count": 1 } })])
            .good([json!({ "deploymentPolicy": "p", "interruptionBudget": { "countUnavailable": true } })])
            .good([json!({ "deploymentPolicy": "p", "interruptionBudget": { "count": null } })])
            .bad([json!({ "deploymentPolicy": "p", "interruptionBudget": { "count": 1 } })])
            .bad([json!({ "deploymentPolicy": "p", "interruptionBudget": { "percent": 0 } })]),
        Group::new("spec.packages", base, |v| spec(&json!({ "packages": v })))
            .good([json!(null)])
            .bad([json!([]), json!("aa")]),
        Group::new("spec.packages[aa].uninstall", base, |v| package(&json!({ "uninstall": v })))
            .good([json!(null), json!({}), json!({ "enabled": true }), json!({ "apply": false })])
            .good([json!({ "enabled": true, "apply": true })])
            .bad([json!({ "apply": true }), json!({ "enabled": false, "apply": true })]),
        Group::new("spec.packages[aa].interrupt", base, |v| package(&json!({ "interrupt": v })))
            .good(["reboot", "restartAllServices", "service", "noop"].map(|kind| json!({ "type": kind })))
            .good([json!({ "type": "service", "services": ["cron", "containerd"] })])
            .bad([json!({}), json!({ "type": "restart_all_services" }), json!({ "type": "" })]),
        Group::new("spec.packages[aa].maxAttempts", base, |v| package(&json!({ "maxAttempts": v })))
            .in_own_words()
            .good(numbers(&[0, 4]))
            .bad(numbers(&[-1])),
    ]
    .into_iter()
    .flat_map(Group::cases)
    .collect()
}

fn selectors(base: &Value) -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(selector("nodeSelectors", base, |v| {
        spec(&json!({ "nodeSelectors": v }))
    }));
    cases.extend(selector("podNonInterruptLabels", base, |v| {
        spec(&json!({ "podNonInterruptLabels": v }))
    }));
    cases.extend(selector("podSelector", base, |v| {
        spec(&json!({ "drainConfig": { "podSelector": v } }))
    }));
    cases
}

/// Selectors at a place, good and bad.
pub(super) fn selector<'a>(
    name: &'static str,
    base: &'a Value,
    change: impl Fn(&Value) -> Value + 'a,
) -> Vec<Case> {
    let labels = |key: &str, value: &str| json!({ "matchLabels": { key: value } });
    let expression = |operator: &str, values: Value| json!({ "matchExpressions": [{ "key": "a", "operator": operator, "values": values }] });
    let key = |key: &str| json!({ "matchExpressions": [{ "key": key, "operator": "Exists" }] });
    let keys = [
        "", "a b", "/a", "a/", "A.com/a", "a..b/c", "-a/c", "a/b/c", "-a", "a-",
    ];
    let longest = "a".repeat(63);
    let longer = "a".repeat(64);
    Group::new(name, base, change)
        .good([
            json!({}),
            labels("a", "b"),
            labels("a", ""),
            labels("nvidia.com/gpu", "true"),
        ])
        .good([
            labels(&longest, &longest),
            key("nvidia.com/gpu"),
            key(&longest),
            key("A_b.c"),
        ])
        .good([
            expression("In", json!(["b"])),
            expression("In", json!(["b", ""])),
            expression("NotIn", json!(["b"])),
        ])
        .good([
            expression("Exists", json!([])),
            expression("Exists", json!(null)),
            expression("DoesNotExist", json!(null)),
        ])
        .bad(keys.map(|key| labels(key, "b")))
        .bad(keys.map(key))
        .bad([labels(&longer, "b"), key(&longer)])
        .bad(["In", "NotIn"].map(|operator| expression(operator, json!([]))))
        .bad(["In", "NotIn"].map(|operator| expression(operator, json!(null))))
        .bad(["Exists", "DoesNotExist"].map(|operator| expression(operator, json!(["b"]))))
        .in_own_words()
        .bad(["b c", "-", "b-", "é", &longer].map(|value| labels("a", value)))
        .bad(["b c", "-", &longer].map(|value| expression("In", json!(["b", value]))))
        .bad(["", "in", "Gt", "Sometimes"].map(|operator| expression(operator, json!(["b"]))))
        .cases()
}
