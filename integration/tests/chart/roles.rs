//! Who may do what.

use super::*;

/// Nobody is given a wildcard, and only the coordinator's own Role reaches secrets without names.
#[tokio::test]
async fn no_role_is_wider_than_it_says() -> Result<()> {
    if !chart_can_run("no_role_is_wider_than_it_says").await {
        return Ok(());
    }
    for object in render(&[]).await? {
        let kind = object["kind"].as_str().unwrap_or_default();
        if !matches!(kind, "Role" | "ClusterRole") {
            continue;
        }
        let name = &object["metadata"]["name"];
        for rule in object["rules"].as_array().into_iter().flatten() {
            for field in ["verbs", "resources", "apiGroups"] {
                let values = rule[field].as_array().context("a list")?;
                ensure!(!values.contains(&json!("*")), "{name}: {rule}");
            }
            let resources = rule["resources"].as_array().context("a list")?;
            let reads_secrets = resources.contains(&json!("secrets"));
            let is_the_keeper = kind == "Role" && *name == COORDINATOR;
            ensure!(
                !reads_secrets || is_the_keeper || rule["resourceNames"].is_array(),
                "{name}: {rule}"
            );
        }
    }
    Ok(())
}

/// One right: its namespace (empty for the whole cluster), API group, resource, verb, and whether it is bound to names.
type Right = (String, String, String, String, bool);

/// All rights in the Roles and ClusterRoles whose name begins with `account`.
fn rights(objects: &[Value], account: &str) -> BTreeSet<Right> {
    let texts = |list: &Value| -> Vec<String> {
        let texts = list.as_array().into_iter().flatten();
        texts.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut rights = BTreeSet::new();
    for role in objects {
        let kind = role["kind"].as_str().unwrap_or_default();
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        if !matches!(kind, "Role" | "ClusterRole") || !name.starts_with(account) {
            continue;
        }
        let namespace = role["metadata"]["namespace"].as_str().unwrap_or_default();
        for rule in role["rules"].as_array().into_iter().flatten() {
            let named = rule["resourceNames"].is_array();
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        let (group, resource) = (group.clone(), resource.clone());
                        rights.insert((namespace.to_owned(), group, resource, verb, named));
                    }
                }
            }
        }
    }
    rights
}

/// Tests with a real API server run the coordinator with the rights in a manifest of their own. If these were more than
/// the chart's, such a test would pass although the coordinator of the chart is refused.
#[tokio::test]
async fn tests_run_the_coordinator_with_no_right_that_the_chart_does_not_grant() -> Result<()> {
    let test = "tests_run_the_coordinator_with_no_right_that_the_chart_does_not_grant";
    if !chart_can_run(test).await {
        return Ok(());
    }
    let allowed = ["--set", "rbac.allowDisableEviction=true"];
    let granted = rights(&render(&allowed).await?, COORDINATOR);
    let manifest = documents(include_str!("../../manifests/coordinator.yaml"))?;
    let used = rights(&manifest, "skyhook-coordinator");
    ensure!(used.len() > 20, "{used:?}");
    let lacking: Vec<_> = used.difference(&granted).collect();
    ensure!(lacking.is_empty(), "the chart does not grant {lacking:?}");
    Ok(())
}

/// Whoever may create a Skyhook is root on every node: nobody gets that with a role that he has for other reasons.
#[tokio::test]
async fn no_role_is_part_of_another_one() -> Result<()> {
    if !chart_can_run("no_role_is_part_of_another_one").await {
        return Ok(());
    }
    let all = "rbac.createSkyhookViewerRole=true,rbac.createSkyhookEditorRole=true,rbac.allowDisableEviction=true";
    let mut roles = 0;
    for object in render(&["--set", all]).await? {
        if object["kind"] != "ClusterRole" {
            continue;
        }
        roles += 1;
        let labels = object["metadata"]["labels"].to_string();
        ensure!(!labels.contains("aggregate-to"), "{labels}");
        ensure!(object["aggregationRule"].is_null(), "{object}");
    }
    ensure!(roles > 4, "{roles} ClusterRoles");
    Ok(())
}

/// Past PodDisruptionBudgets goes only who was told so when the chart was installed.
#[tokio::test]
async fn pods_are_deleted_only_where_a_value_allows_it() -> Result<()> {
    if !chart_can_run("pods_are_deleted_only_where_a_value_allows_it").await {
        return Ok(());
    }
    let deletes = |objects: &[Value]| {
        let rights = rights(objects, "");
        let mut verbs = rights
            .iter()
            .filter(|right| right.2 == "pods")
            .map(|right| &right.3);
        verbs.any(|verb| verb == "delete" || verb == "deletecollection")
    };
    let warns = |objects: &[Value]| -> Result<bool> {
        let policy = find(
            objects,
            "ValidatingAdmissionPolicy",
            "skyhook-skyhook-operator-warnings",
        )?;
        Ok(policy["spec"]["validations"]
            .to_string()
            .contains("rbac.allowDisableEviction"))
    };
    let objects = render(&[]).await?;
    ensure!(!deletes(&objects) && warns(&objects)?);
    let objects = render(&["--set", "rbac.allowDisableEviction=true"]).await?;
    ensure!(deletes(&objects) && !warns(&objects)?);
    Ok(())
}

/// What the messages of the coordinator and the plugin's `explain` tell people to do.
#[tokio::test]
async fn editors_may_do_what_messages_ask_for() -> Result<()> {
    if !chart_can_run("editors_may_do_what_messages_ask_for").await {
        return Ok(());
    }
    let all = "rbac.createSkyhookViewerRole=true,rbac.createSkyhookEditorRole=true";
    let objects = render(&["--set", all]).await?;
    let editor = rights(&objects, "skyhook-editor-role");
    let viewer = rights(&objects, "skyhook-viewer-role");
    let ours = "skyhook.nvidia.com";
    for (namespace, group, resource, verb, why) in [
        ("", ours, "skyhooks", "patch", "annotate, edit"),
        (
            "",
            ours,
            "skyhooks/status",
            "patch",
            "deployment-policy reset",
        ),
        (
            "",
            ours,
            "interruptionleases",
            "patch",
            "annotate interruptionlease, force-release",
        ),
        (
            "",
            "",
            "nodes",
            "patch",
            "reset, node ignore, uncordon, delete an annotation",
        ),
        (
            "",
            "",
            "pods",
            "list",
            "get pods -A --field-selector spec.nodeName",
        ),
        ("skyhook", "", "pods", "list", "get pods -n"),
        ("skyhook", "apps", "daemonsets", "list", "get daemonsets -n"),
        ("skyhook", "apps", "deployments", "list", "version -n"),
    ] {
        let right = |verb: &str| -> Right {
            let [namespace, group, resource] = [namespace, group, resource].map(str::to_owned);
            (namespace, group, resource, verb.to_owned(), false)
        };
        ensure!(editor.contains(&right(verb)), "{why}: {verb} {resource}");
        let may_change = viewer
            .iter()
            .any(|right| !matches!(right.3.as_str(), "get" | "list" | "watch"));
        ensure!(!may_change, "{viewer:?}");
    }
    ensure!(viewer.contains(&(
        String::new(),
        String::new(),
        "nodes".to_owned(),
        "list".to_owned(),
        false
    )));
    Ok(())
}
