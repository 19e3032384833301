use super::*;

fn text(manifest: &str) -> String {
    Report::new(check_text("f.yaml", manifest)).text()
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let manifest = r#"
apiVersion: skyhook.nvidia.com/v1alpha1
kind: Skyhook
metadata: { name: gpu }
spec:
  priority: 0
  serail: true
  Serial: true
  interruptionBudget: { percent: 120, count: 1 }
  deploymentPolicy: slow
  nodeSelectors: { matchExpressions: [{ key: a, operator: Near, values: [x] }] }
  drainConfig: { timeout: soon }
  packages:
    aa: { version: one, image: r/aa }
    bb: { version: 1.0.0, image: "r/bb:2.0.0", dependsOn: { zz: 1.0.0 } }
    cc: { version: 1.0.0, image: r/cc, dependsOn: { dd: 1.0.0 }, interrupt: { type: explode } }
    dd: { version: 1.0.0, dependsOn: { cc: 1.0.0 } }
---
apiVersion: skyhook.nvidia.com/v1alpha1
kind: DeploymentPolicy
metadata: {}
spec:
  default: { budget: { count: 0 }, strategy: { fixed: {}, linear: {} } }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: other }
"#;
    let given = text(manifest);
    for want in [
        "f.yaml: Skyhook gpu is not valid\n",
        "  spec.priority: is 0: it must be at least 1\n",
        "  spec.serail: there is no such field\n",
        "  spec.Serial: there is no such field; is serial meant?\n",
        "  spec.interruptionBudget.percent: is 120: it must be at most 100\n",
        "  spec.packages[cc].interrupt.type: is \"explode\": it must be one of ",
        "  spec.packages[dd].image: is missing\n",
        "f.yaml: DeploymentPolicy is not valid\n",
        "  metadata.name: is missing\n",
        "  spec.default.budget.count: is 0: it must be at least 1\n",
        "  spec.default.strategy: ",
    ] {
        assert!(given.contains(want), "{want:?} is missing in\n{given}");
    }
    assert!(!given.contains("ConfigMap"), "{given}");
}

#[test]
fn a_mistake_hides_no_other_one() {
    let manifest = r#"
apiVersion: skyhook.nvidia.com/v1alpha1
kind: Skyhook
metadata: { name: gpu }
spec:
  interruptionBudget: { percent: 10, count: 1 }
  nodeSelectors: { matchExpressions: [{ key: a, operator: Near, values: [x] }] }
  packages:
    aa: { version: one, image: r/aa }
    bb: { version: 1.0.0, image: "r/bb:2.0.0" }
    cc: { version: 1.0.0, image: r/cc, resources: { cpuLimit: "1" } }
"#;
    let given = text(manifest);
    for field in [
        "spec.interruptionBudget",
        "spec.nodeSelectors.matchExpressions[0].operator",
        "spec.packages[aa].version",
        "spec.packages[bb].image",
        "spec.packages[cc].resources",
    ] {
        assert!(
            given.contains(&format!("\n  {field}: ")),
            "{field} is missing in\n{given}"
        );
    }
    let cycle = "
apiVersion: skyhook.nvidia.com/v1alpha1
kind: Skyhook
metadata: { name: gpu }
spec:
  packages:
    aa: { version: 1.0.0, image: r/aa, dependsOn: { bb: 1.0.0 } }
    bb: { version: 1.0.0, image: r/bb, dependsOn: { aa: 1.0.0 } }
    cc: { version: 1.0.0, image: r/cc, dependsOn: { zz: 1.0.0 } }
    dd: { version: 1.0.0, image: r/dd, dependsOn: { aa: 2.0.0 } }
";
    let given = text(cycle);
    let want = "  spec.packages: graph is not valid, missing: [[\"cc needs zz|1.0.0\"], [\"dd needs aa|2.0.0\"]]\n";
    assert!(given.contains(want), "{want:?} is missing in\n{given}");
    let only = cycle
        .lines()
        .filter(|line| !line.contains("cc:") && !line.contains("dd:"));
    let given = text(&only.collect::<Vec<_>>().join("\n"));
    let want = "f.yaml: Skyhook gpu is not valid\n  spec.packages: dependsOn forms a cycle: aa -> bb -> aa\n";
    assert_eq!(given, want);
}

/// Lists, JSON and several documents; as data.
#[test]
fn sound_objects_are_said_to_be_so() {
    let list = r#"{ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "a" },
          "spec": { "packages": { "aa": { "version": "1.0.0", "image": "r/aa" } }, "runtimeRequired": true } },
        { "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "DeploymentPolicy", "metadata": { "name": "b" },
          "spec": { "default": { "budget": { "percent": 10 }, "strategy": { "fixed": {} } } } }
    ] }"#;
    assert_eq!(
        text(list),
        "f.yaml: Skyhook a is valid\nf.yaml: DeploymentPolicy b is valid\n"
    );
    let report = Report::new(check_text("f.yaml", list));
    let data = serde_json::to_value(&report).unwrap();
    let object = |kind: &str, name: &str| serde_json::json!({ "file": "f.yaml", "kind": kind, "name": name, "valid": true, "errors": [] });
    let objects = [object("Skyhook", "a"), object("DeploymentPolicy", "b")];
    assert_eq!(
        data,
        serde_json::json!({ "valid": true, "objects": objects })
    );
}

#[test]
fn what_is_no_yaml_is_an_error() {
    let given = text("apiVersion: skyhook.nvidia.com/v1alpha1\nkind: [");
    assert!(
        given.starts_with("f.yaml: document is not valid\n  "),
        "{given}"
    );
}

/// The manifests that the repository ships.
#[test]
fn the_examples_are_valid() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let files = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    assert!(!files.is_empty(), "there are examples");
    let mut objects = 0;
    for file in files {
        let manifest = std::fs::read_to_string(&file).unwrap();
        let checked = check_text(&file.to_string_lossy(), &manifest);
        objects += checked.len();
        for object in checked {
            assert!(object.valid, "{object:#?}");
        }
    }
    assert!(objects > 0, "there are Skyhooks among the examples");
}
