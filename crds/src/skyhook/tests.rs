use serde_json::{Value, json};

use super::*;

fn spec(value: Value) -> SkyhookSpec {
    serde_json::from_value(value).unwrap()
}

#[test]
fn defaults_are_those_of_the_reference() {
    let spec = spec(json!({}));
    assert_eq!(
        (
            spec.priority,
            spec.serial,
            spec.runtime_required,
            spec.auto_taint_new_nodes,
            spec.runtime_required_cordon_after,
            spec.sequencing,
        ),
        (200, false, false, false, false, Sequencing::Node)
    );
    let status = SkyhookStatus::default();
    assert_eq!(
        (
            status.nodes_in_progress,
            status.complete_nodes.as_str(),
            status.package_list.as_str()
        ),
        (0, "0/0", "")
    );
}

#[test]
fn everything_that_manifests_carry_decodes() {
    let spec = spec(json!({
        "serial": true,
        "pause": false,
        "podNonInterruptLabels": { "matchLabels": { "dontmess": "withme" } },
        "nodeSelectors": { "matchExpressions": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "DoesNotExist" }] },
        "deploymentPolicyOptions": { "resetBatchStateOnCompletion": true },
        "interruptionBudget": { "percent": 33 },
        "additionalTolerations": [{ "key": "nvidia.com/gpu", "operator": "Exists" }],
        "runtimeRequired": true,
        "autoTaintNewNodes": true,
        "runtimeRequiredCordonAfter": true,
        "drainConfig": { "disableEviction": true, "timeout": "1h", "gracePeriod": "1m30s" },
        "sequencing": "all",
        "priority": 20,
        "packages": {
            "dexter": {
                "name": "dexter",
                "version": "1.2.3",
                "image": "ghcr.io/nvidia/skyhook/agentless",
                "containerSHA": "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                "agentImageOverride": "ghcr.io/nvidia/skyhook/agentless:3.2.3",
                "interrupt": { "type": "service", "services": ["cron", "containerd"] },
                "configInterrupts": { "*.properties": { "type": "reboot" } },
                "configMap": { "game.properties": "x\ny" },
                "env": [
                    { "name": "SLEEP_LEN", "value": "1" },
                    { "name": "SECRET", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k", "optional": true } } },
                    { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
                ],
                "resources": { "cpuRequest": "50m", "cpuLimit": 1, "memoryRequest": "32Mi", "memoryLimit": "1Gi" },
                "gracefulShutdown": "46s",
            },
            "spencer": { "version": "3.2.3", "image": "localhost:5000/spencer:3.2.3", "dependsOn": { "dexter": "1.2.3" } },
        },
    }));
    assert!(spec.runtime_required_cordon_after);
    assert_eq!(spec.sequencing, Sequencing::All);
    let checked = spec.check("sample").unwrap();
    assert_eq!(checked.packages["spencer"].image, "localhost:5000/spencer");
    assert!(checked.pods_to_wait_for.is_some());
    assert_eq!(spec.package_list(), "dexter:1.2.3,spencer:3.2.3");
}

#[test]
fn everything_that_is_wrong_is_found_with_its_field() {
    let given = spec(json!({
        "priority": 0,
        "interruptionBudget": { "percent": 101, "count": -1 },
        "deploymentPolicy": "p",
        "nodeSelectors": {
            "matchLabels": { "a b": "c", "/": "-" },
            "matchExpressions": [{ "key": "a", "operator": "Sometimes" }, { "key": "a b", "operator": "In" }],
        },
        "podNonInterruptLabels": { "matchExpressions": [{ "key": "a", "operator": "Exists", "values": ["-"] }] },
        "drainConfig": { "timeout": "soon", "podSelector": { "matchLabels": { "a": "b c" } } },
        "packages": {
            "a": { "version": "1.0.0", "image": "i", "dependsOn": { "bb": "1.0.0" } },
            "cc": { "version": "1", "image": "i", "name": "dd", "dependsOn": { "dd": "1.0.0" } },
            "dd": { "version": "1.0.0", "image": "i:2", "dependsOn": { "cc": "1" } },
        },
    }));
    let label_key = "not a label key: an optional DNS name and /, then at most 63 characters A-Z, a-z, 0-9, -, _ and ., \
         first and last alphanumeric";
    let label_value = "is not a label value: at most 63 characters A-Z, a-z, 0-9, -, _ and ., first and last alphanumeric";
    let values = "In and NotIn need values, Exists and DoesNotExist have none";
    let want = [
        "metadata.name: it has 54 characters: above 53 the node annotations that carry the name are not valid".to_owned(),
        "spec.priority: it is 0, and must be 1 or more".to_owned(),
        "spec.interruptionBudget: both percent and count can not be set at the same time: leave one of them out".to_owned(),
        "spec.deploymentPolicy: deploymentPolicy and interruptionBudget are mutually exclusive: leave one of them out".to_owned(),
        "spec.interruptionBudget.percent: it is 101, and must be from 0 to 100".to_owned(),
        "spec.interruptionBudget.count: it is -1, and must be 0 or more".to_owned(),
        format!("spec.nodeSelectors.matchLabels: [\"/\", \"a b\"]: {label_key}"),
        format!("spec.nodeSelectors.matchLabels[/]: \"-\" {label_value}"),
        "spec.nodeSelectors.matchExpressions[0].operator: \"Sometimes\" is not supported: write In, NotIn, Exists or \
         DoesNotExist".to_owned(),
        format!("spec.nodeSelectors.matchExpressions[1].key: {label_key}"),
        format!("spec.nodeSelectors.matchExpressions[1].values: {values}"),
        format!("spec.podNonInterruptLabels.matchExpressions[0].values: {values}"),
        format!("spec.podNonInterruptLabels.matchExpressions[0].values[0]: \"-\" {label_value}"),
        "spec.drainConfig.timeout: must be a duration greater than or equal to 0 (write for example 30s, 1m30s or 2h)".to_owned(),
        format!("spec.drainConfig.podSelector.matchLabels[a]: \"b c\" {label_value}"),
        "spec.packages: package name [\"a\"] is not valid: 2 to 43 characters a-z, 0-9 and -, first and last a letter".to_owned(),
        "spec.packages: name must not be set explicitly, or equal the key: leave it out in [\"cc\"]".to_owned(),
        "spec.packages: graph is not valid, missing: [[\"a needs bb|1.0.0\"]]".to_owned(),
        "spec.packages: dependsOn forms a cycle: cc -> dd -> cc".to_owned(),
        "spec.packages[dd].image: the tag is the version, so leave out :2 or write it as version 1.0.0".to_owned(),
    ];
    let errors = given.check(&"x".repeat(54)).unwrap_err();
    let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(found, want);
    assert_eq!(errors.to_string(), want.join("; "));
}

/// Which nodes a parked Skyhook is for is known as long as its selector is right.
#[test]
fn other_mistakes_do_not_matter_to_the_node_selector() {
    let wrong = spec(json!({ "priority": 0, "nodeSelectors": { "matchLabels": { "a": "b" } } }));
    assert!(!wrong.node_selector().unwrap().selects_all());
    let selector = json!({ "matchExpressions": [{ "key": "a", "operator": "In" }] });
    let unknown = spec(json!({ "nodeSelectors": selector }));
    let problem = unknown.node_selector().unwrap_err().to_string();
    assert!(
        problem.starts_with("spec.nodeSelectors.matchExpressions[0].values: "),
        "{problem}"
    );
}

#[test]
fn budgets_give_slots() {
    for (percent, count, nodes, want) in [
        (None, None, 7, 7),
        (None, Some(1), 7, 1),
        (None, Some(9), 7, 7),
        (None, Some(0), 7, 0),
        (Some(0), None, 7, 0),
        (Some(1), None, 7, 1),
        (Some(29), None, 100, 29),
        (Some(57), None, 100, 57),
        (Some(50), None, 7, 3),
        (Some(100), None, 7, 7),
        (Some(50), None, 0, 0),
        (None, Some(1), 0, 0),
    ] {
        let budget = InterruptionBudget {
            percent,
            count,
            ..InterruptionBudget::default()
        };
        assert_eq!(
            budget.slots(nodes),
            want,
            "percent {percent:?} count {count:?} of {nodes}"
        );
    }
}

#[test]
fn the_wide_list_shows_why_a_skyhook_is_not_ready() {
    use kube::CustomResourceExt as _;
    let crd = Skyhook::crd();
    let columns = crd.spec.versions[0].additional_printer_columns.iter();
    let wide: Vec<(&str, &str)> = columns
        .flatten()
        .filter(|column| column.priority == Some(1))
        .map(|column| (column.name.as_str(), column.json_path.as_str()))
        .collect();
    let ready = r#".status.conditions[?(@.type=="Ready")].reason"#;
    assert_eq!(wide, [("Reason", ready)]);
}
