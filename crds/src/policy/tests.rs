use std::collections::BTreeMap;

use kube::core::{Expression, Selector, SelectorExt as _};
use serde_json::{Value, json};

use super::*;

fn policy(spec: Value) -> DeploymentPolicySpec {
    serde_json::from_value(spec).unwrap()
}

fn problems(spec: Value) -> Vec<String> {
    let errors = policy(spec).check().unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

fn fixed() -> Value {
    json!({"budget": {"percent": 100}, "strategy": {"fixed": {}}})
}

#[test]
fn every_problem_is_found_with_its_field() {
    let selector = json!({"matchLabels": {"a": "b"}});
    let broken = json!({
        "default": {
            "budget": {"percent": 0, "count": 3},
            "strategy": {"fixed": {"batchThreshold": 101}, "linear": {}},
        },
        "compartments": [
            {"name": "", "selector": selector, "budget": {}},
            {"name": "__default__", "selector": selector, "budget": {"percent": 101}},
            {"name": "x", "selector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}, "budget": {"count": 0}},
            {"name": "x", "selector": {}, "budget": {"count": 1}, "strategy": {
                "exponential": {"growthFactor": 1, "initialBatch": 0, "failureThreshold": 0, "safetyLimit": 0, "batchThreshold": 0}}},
            {"name": "y", "selector": {"matchLabels": {"y": ""}}, "budget": {"count": 1}, "strategy": {"linear": {"delta": 0}}},
            {"name": "z", "selector": {"matchLabels": {"z": ""}}, "budget": {"count": 1}, "strategy": {}},
        ],
    });
    let one_of = "set exactly one of fixed, linear and exponential";
    let exponential = "spec.compartments[3].strategy.exponential";
    assert_eq!(
        problems(broken),
        [
            "spec.default.budget: percent and count are both set: set one of them",
            &format!("spec.default.strategy: {one_of}"),
            "spec.compartments: several compartments have the same name: [\"x\", \"x\"]",
            "spec.compartments: several compartments have the same selector: [\"\", \"__default__\"]",
            "spec.compartments[0].name: a compartment needs a name",
            "spec.compartments[0].budget: neither percent nor count is set: set one of them",
            "spec.compartments[1].name: __default__ is the name of spec.default: choose another one",
            "spec.compartments[1].budget.percent: it is 101, and must be from 1 to 100",
            "spec.compartments[2].selector.matchExpressions[0].operator: \"Near\" is not supported: \
             write In, NotIn, Exists or DoesNotExist",
            "spec.compartments[2].budget.count: it is 0, and must be 1 or more",
            &format!("{exponential}.growthFactor: it is 1, and must be 2 or more"),
            &format!("{exponential}.initialBatch: it is 0, and must be 1 or more"),
            &format!("{exponential}.batchThreshold: it is 0, and must be from 1 to 100"),
            &format!("{exponential}.failureThreshold: it is 0, and must be 1 or more"),
            &format!("{exponential}.safetyLimit: it is 0, and must be from 1 to 100"),
            "spec.compartments[4].strategy.linear.delta: it is 0, and must be 1 or more",
            &format!("spec.compartments[5].strategy: {one_of}"),
        ]
    );
}

#[test]
fn more_compartments_than_are_allowed_are_refused() {
    let one = |at: usize| json!({"name": format!("c{at}"), "selector": {"matchLabels": {"c": at.to_string()}}, "budget": {"count": 1}});
    let many = |count: usize| {
        let all: Vec<Value> = (0..count).map(one).collect();
        json!({"default": fixed(), "compartments": all})
    };
    assert!(policy(many(MOST_COMPARTMENTS)).check().is_ok());
    assert_eq!(
        problems(many(MOST_COMPARTMENTS + 1)),
        ["spec.compartments: there are 65, and at most 64 are allowed"]
    );
}

#[test]
fn a_selector_that_kubernetes_refuses_is_refused() {
    let with = |selector: &Value| {
        let one = json!({"name": "x", "selector": selector, "budget": {"count": 1}});
        json!({"default": fixed(), "compartments": [one]})
    };
    let expression = |key: &str, operator: &str, values: Value| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
    let expressions = "matchExpressions[0]";
    let values = "In and NotIn need values, Exists and DoesNotExist have none";
    for (selector, field, problem) in [
        (expression("a", "In", json!([])), "values", values),
        (expression("a", "NotIn", json!(null)), "values", values),
        (expression("a", "Exists", json!(["b"])), "values", values),
        (
            expression("a", "DoesNotExist", json!(["b"])),
            "values",
            values,
        ),
        (
            expression("a b", "Exists", json!(null)),
            "key",
            "not a label key: ",
        ),
        (
            expression("a", "In", json!(["b", "-"])),
            "values[1]",
            "\"-\" is not a label value: ",
        ),
    ] {
        let want = format!("spec.compartments[0].selector.{expressions}.{field}: {problem}");
        let found = problems(with(&selector));
        assert!(
            found.len() == 1 && found[0].starts_with(&want),
            "{found:?} is not {want:?}"
        );
    }
    for (labels, field, problem) in [
        (json!({"": "b"}), "", "[\"\"]: not a label key: "),
        (json!({"a": "b c"}), "[a]", "\"b c\" is not a label value: "),
    ] {
        let want = format!("spec.compartments[0].selector.matchLabels{field}: {problem}");
        let found = problems(with(&json!({ "matchLabels": labels })));
        assert!(
            found.len() == 1 && found[0].starts_with(&want),
            "{found:?} is not {want:?}"
        );
    }
    for selector in [
        json!({}),
        json!({"matchLabels": {"nvidia.com/gpu": ""}}),
        expression("a", "In", json!(["b", ""])),
        expression("a", "Exists", json!([])),
    ] {
        assert!(policy(with(&selector)).check().is_ok(), "{selector}");
    }
}

#[test]
fn a_name_is_not_longer_than_the_value_of_a_label() {
    let named = |bytes: usize| {
        let one = json!({"name": "x".repeat(bytes), "selector": {"matchLabels": {"c": ""}}, "budget": {"count": 1}});
        json!({"default": fixed(), "compartments": [one]})
    };
    assert!(policy(named(63)).check().is_ok());
    assert_eq!(
        problems(named(64)),
        [
            "spec.compartments[0].name: it has 64 bytes, and at most 63 are allowed: choose a shorter one"
        ]
    );
}

#[test]
fn what_is_unset_has_the_defaults_of_the_schema() {
    let checked = policy(json!({
        "default": {"budget": {"percent": 30}, "strategy": {"exponential": {}}},
        "compartments": [
            {"name": "line", "selector": {}, "budget": {"count": 2}, "strategy": {"linear": {}}},
            {"name": "free", "selector": {"matchLabels": {"a": ""}}, "budget": {"count": 2}},
        ],
    }))
    .check()
    .unwrap();
    let pace = |growth| Pace {
        growth,
        initial_batch: 1,
        batch_threshold: 100,
        failure_threshold: None,
        safety_limit: 50,
    };
    let growth = Growth::Exponential { factor: 2 };
    assert_eq!(checked.default.pace, Some(pace(growth)));
    let line = &checked.compartments[0];
    assert_eq!(line.pace, Some(pace(Growth::Linear { delta: 1 })));
    assert_eq!(checked.compartments[1].pace, None);
    assert!(checked.resets);
}

#[test]
fn ceilings() {
    use Ceiling::{Count, Percent};
    for (ceiling, matched, expected) in [
        (Count(4), 8, 4),
        (Count(4), 3, 3),
        (Count(4), 0, 0),
        // 33 % of 6 is 1.98, of 2 is 0.66.
        (Percent(33), 6, 1),
        (Percent(33), 2, 1),
        (Percent(33), 0, 0),
        (Percent(50), 4, 2),
        (Percent(29), 100, 29),
        (Percent(57), 100, 57),
        (Percent(100), 10_000, 10_000),
        (Count(u32::MAX), 10_000, 10_000),
    ] {
        assert_eq!(ceiling.of(matched), expected, "{ceiling:?} of {matched}");
    }
}

fn meets(labels: &BTreeMap<String, String>) -> impl Fn(&Expression) -> bool {
    |expression| Selector::from(expression.clone()).matches(labels)
}

fn nodes(labels: &[&str]) -> Vec<BTreeMap<String, String>> {
    let of = |labels: &&str| {
        let pairs = labels.split(',').filter(|one| !one.is_empty());
        pairs.map(|key| (key.to_owned(), String::new())).collect()
    };
    labels.iter().map(of).collect()
}

/// Compartments `name: (strategy, budget)`, each for nodes with the label of its name, with the nodes' answers.
fn sorted(compartments: &[(&str, Value, Value)], labels: &[&str]) -> Vec<String> {
    let given: Vec<Value> = compartments
        .iter()
        .map(|(name, strategy, budget)| {
            let label = name.split('-').next().unwrap();
            let mut one = json!({"name": name, "budget": budget,
                "selector": {"matchExpressions": [{"key": label, "operator": "Exists"}]}});
            if !strategy.is_null() {
                one["strategy"] = strategy.clone();
            }
            one
        })
        .collect();
    let checked = policy(json!({"default": fixed(), "compartments": given}))
        .check()
        .unwrap();
    let nodes = nodes(labels);
    let (all, ids) = Compartments::sort(
        &checked,
        nodes.iter().map(|labels| checked.matches(meets(labels))),
    );
    ids.iter().map(|id| all.get(*id).name.clone()).collect()
}

#[test]
fn a_node_is_in_the_most_cautious_compartment_that_matches_it() {
    let (fixed, linear) = (json!({"fixed": {}}), json!({"linear": {}}));
    let exponential = json!({"exponential": {}});
    let count = |count: i32| json!({"count": count});
    // By strategy: none is the least cautious, whatever its ceiling.
    let by_strategy = [
        ("a", Value::Null, count(1)),
        ("b", exponential.clone(), count(1)),
        ("c", linear, count(2)),
        ("d", fixed, count(3)),
    ];
    assert_eq!(
        sorted(&by_strategy, &["a,b,c,d", "a,b,c", "a,b", "a", ""]),
        ["d", "c", "b", "a", "__default__"]
    );
    // By ceiling over all nodes that the selector matches: `big` matches four nodes, 50 % of which are 2; `few` matches
    // one, 100 % of which is 1.
    let by_ceiling = [
        ("big", exponential.clone(), json!({"percent": 50})),
        ("few", exponential.clone(), json!({"percent": 100})),
    ];
    assert_eq!(
        sorted(&by_ceiling, &["big", "big", "big", "big,few"]),
        ["big", "big", "big", "few"]
    );
    // By name.
    let by_name = [
        ("b", exponential.clone(), count(2)),
        ("a", exponential, count(2)),
    ];
    assert_eq!(sorted(&by_name, &["a,b", "a,b"]), ["a", "a"]);
}

#[test]
fn ceilings_are_reckoned_from_the_nodes_that_are_in_a_compartment() {
    let checked = policy(json!({"default": fixed(), "compartments": [
        {"name": "west", "selector": {"matchExpressions": [{"key": "west", "operator": "Exists"}]},
         "budget": {"percent": 50}, "strategy": {"exponential": {}}},
        {"name": "both", "selector": {"matchExpressions": [
            {"key": "west", "operator": "Exists"}, {"key": "prod", "operator": "Exists"}]},
         "budget": {"count": 1}, "strategy": {"fixed": {}}},
    ]}))
    .check()
    .unwrap();
    let nodes = nodes(&["west", "west", "west,prod", "west,prod", "prod"]);
    let (all, _) = Compartments::sort(
        &checked,
        nodes.iter().map(|labels| checked.matches(meets(labels))),
    );
    let counted: Vec<(&str, usize, usize)> = all
        .all()
        .map(|(id, one)| (one.name.as_str(), all.matched(id), all.ceiling(id)))
        .collect();
    assert_eq!(
        counted,
        [("west", 2, 1), ("both", 2, 1), ("__default__", 1, 1)]
    );
    assert_eq!(
        all.named("both"),
        Some(all.place(checked.matches(meets(&nodes[2]))))
    );
    assert_eq!(all.named("gone"), None);
}
