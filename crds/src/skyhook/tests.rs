use serde_json::{Value, json};

use super::*;

fn spec(value: Value) -> SkyhookSpec {
    serde_json::from_value(value).unwrap()
}

fn one_package() -> Value {
    json!({ "something": { "version": "1.1.1", "image": "ghcr.io/nvidia/skyhook-packages/shellscript" } })
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
                "containerSHA": "sha256:0123",
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
fn what_cannot_be_rolled_out_names_the_field_and_the_fix() {
    let long = "x".repeat(54);
    for (name, value, want) in [
        (
            "s",
            json!({ "interruptionBudget": { "percent": 1, "count": 1 } }),
            "both percent and count can not be set at the same time",
        ),
        (
            "s",
            json!({ "interruptionBudget": { "count": 1 }, "deploymentPolicy": "p" }),
            "mutually exclusive",
        ),
        (
            "s",
            json!({ "nodeSelectors": { "matchExpressions": [{ "key": "a", "operator": "Sometimes" }] } }),
            "node selectors are not valid",
        ),
        (
            "s",
            json!({ "podNonInterruptLabels": { "matchExpressions": [{ "key": "a", "operator": "Sometimes" }] } }),
            "spec.podNonInterruptLabels",
        ),
        (
            "s",
            json!({ "drainConfig": { "timeout": "soon" } }),
            "spec.drainConfig.timeout",
        ),
        (
            "s",
            json!({ "packages": { "a": { "version": "1.0.0", "image": "i" } } }),
            "package name [a] is not valid",
        ),
        (
            "s",
            json!({ "packages": { "aa": { "version": "1.0.0", "image": "i", "dependsOn": { "bb": "1.0.0" } } } }),
            "graph is not valid, missing: [bb|1.0.0]",
        ),
        (
            "s",
            json!({ "packages": {
                "aa": { "version": "1.0.0", "image": "i", "dependsOn": { "bb": "1.0.0" } },
                "bb": { "version": "1.0.0", "image": "i", "dependsOn": { "aa": "1.0.0" } },
            } }),
            "cycle: aa -> bb -> aa",
        ),
        (
            long.as_str(),
            json!({ "packages": one_package() }),
            "metadata.name has 54 characters",
        ),
    ] {
        let message = spec(value).check(name).unwrap_err().to_string();
        assert!(message.contains(want), "{message:?} does not say {want:?}");
    }
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
