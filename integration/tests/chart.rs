//! What the chart renders, and what it refuses to render. No cluster.

#[path = "chart/admission.rs"]
mod admission;
#[path = "chart/golden.rs"]
mod golden;
#[path = "chart/placement.rs"]
mod placement;
#[path = "chart/readme.rs"]
mod readme;
#[path = "chart/roles.rs"]
mod roles;
#[path = "chart/taints.rs"]
mod taints;
#[path = "chart/values.rs"]
mod values;

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};
use skyhook_integration::chart::{AGENT, COORDINATOR, lint, template};
use skyhook_integration::skip::chart_can_run;

/// All objects of the chart with these arguments.
async fn render(args: &[&str]) -> Result<Vec<Value>> {
    documents(&template(args).await?)
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let object = Value::deserialize(document)?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.with_context(|| format!("no {kind} {name}"))
}

#[tokio::test]
async fn it_lints_and_renders_with_every_switch() -> Result<()> {
    if !chart_can_run("it_lints_and_renders_with_every_switch").await {
        return Ok(());
    }
    for args in [
        &[][..],
        &["--set", "cleanup.enabled=false,crds.keep=true"],
        &["--set", "limitRange=null"],
        &[
            "--set",
            "imagePullSecret=s,useHostNetwork=true,kubernetesApi.host=h,kubernetesApi.port=1",
        ],
        &[
            "--set",
            "rbac.createSkyhookViewerRole=true,rbac.createSkyhookEditorRole=true",
        ],
        &[
            "--set",
            "agent.imagePullSecrets={a,b},agent.insecureRegistries={r:1},agent.stepTimeoutSeconds=60,agent.maxAttempts=4,agent.stageTimeoutSeconds=1800",
        ],
        &[
            "--set",
            "controllerManager.selectors.role=infra,controllerManager.replicas=1",
        ],
        &["--set", "estimatedNodeCount=5000,estimatedPackageCount=4"],
        &["--set", "flowControl.enabled=false"],
    ] {
        lint(args).await?;
        let objects = render(args).await?;
        for object in &objects {
            ensure!(object["kind"].is_string(), "{args:?}: {object}");
        }
    }
    let big = render(&["--set", "estimatedNodeCount=5000,estimatedPackageCount=4"]).await?;
    let coordinator = find(&big, "Deployment", COORDINATOR)?;
    let resources = &coordinator["spec"]["template"]["spec"]["containers"][0]["resources"];
    assert_eq!(resources["requests"]["memory"], "400Mi");
    Ok(())
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_reason() -> Result<()> {
    if !chart_can_run("what_cannot_work_is_refused_with_the_reason").await {
        return Ok(());
    }
    for (args, words) in [
        (&["--namespace", "default"][..], "namespace of its own"),
        (
            &[
                "--set",
                "controllerManager.selectors.a=b",
                "--set-json",
                r#"controllerManager.nodeAffinity.matchExpressions=[{"key":"a","operator":"Exists"}]"#,
            ],
            "exclude each other",
        ),
        (
            &[
                "--set",
                "controllerManager.podDisruptionBudget.minAvailable=2",
            ],
            "less than",
        ),
        (
            &[
                "--set",
                "controllerManager.manager.env.leaderElection=false",
            ],
            "more than one replica",
        ),
        (
            &["--set", "controllerManager.manager.env.copyDirRoot=var"],
            "absolute path",
        ),
        (
            &["--set", "agent.imageCredentialProviderBinDir=/opt/plugins"],
            "go together",
        ),
        (
            &["--set", "agent.registryHostsDir=/a:b"],
            "each part has to be an absolute path",
        ),
        (&["--kube-version", "1.29.0"], "kubeVersion"),
    ] {
        let error = template(args)
            .await
            .err()
            .with_context(|| format!("{args:?} renders"))?;
        ensure!(error.to_string().contains(words), "{args:?}: {error:#}");
    }
    Ok(())
}

/// What says where images come from gets to the agents.
#[tokio::test]
async fn agents_get_their_environment_and_the_places_of_registries() -> Result<()> {
    if !chart_can_run("agents_get_their_environment_and_the_places_of_registries").await {
        return Ok(());
    }
    let proxy = r#"agent.env=[{"name":"HTTPS_PROXY","value":"http://proxy:3128"},{"name":"no_proxy","value":"a:5000,10.0.0.0/8"}]"#;
    let dirs = "agent.registryHostsDir=/etc/a:/etc/b";
    let objects = render(&["--set-json", proxy, "--set", dirs]).await?;
    let container =
        &find(&objects, "DaemonSet", AGENT)?["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().context("env")?;
    for (name, value) in [
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("no_proxy", "a:5000,10.0.0.0/8"),
    ] {
        let want = json!({"name": name, "value": value});
        ensure!(variables.contains(&want), "{name}: {variables:?}");
    }
    let args = container["args"].to_string();
    ensure!(
        args.contains("\"--registry-hosts-dir=/etc/a:/etc/b\""),
        "{args}"
    );
    // By default, the host says it.
    let objects = render(&[]).await?;
    let container =
        &find(&objects, "DaemonSet", AGENT)?["spec"]["template"]["spec"]["containers"][0];
    let text = container.to_string();
    ensure!(
        !text.contains("PROXY") && !text.contains("registry-hosts-dir"),
        "{text}"
    );
    Ok(())
}

/// The chart names a limit only when somebody has set it: the agent knows what is usual.
#[tokio::test]
async fn limits_of_images_reach_the_agent() -> Result<()> {
    if !chart_can_run("limits_of_images_reach_the_agent").await {
        return Ok(());
    }
    let args = async |values: &str| -> Result<BTreeSet<String>> {
        let objects = render(&["--set", values]).await?;
        let agent = find(&objects, "DaemonSet", AGENT)?;
        let args = &agent["spec"]["template"]["spec"]["containers"][0]["args"];
        let args: Vec<String> = serde_json::from_value(args.clone())?;
        let of_images = |arg: &String| {
            ["--image-m", "--image-s", "--partial-", "--pull-"]
                .iter()
                .any(|start| arg.starts_with(start))
        };
        Ok(args.into_iter().filter(of_images).collect())
    };
    assert_eq!(args("agent.logLevel=info").await?, BTreeSet::new());
    assert_eq!(args("agent.images=null").await?, BTreeSet::new());
    let all = "agent.images.storeMaxSize=1Gi,agent.images.maxUnusedHours=24,\
               agent.images.minFreePercent=0,agent.images.minFreeSize=5Gi,\
               agent.images.pullMinFreeSize=1Gi,agent.images.maxSize=2Gi,\
               agent.images.partialLayerMaxHours=12,agent.images.pullStallSeconds=300,\
               agent.images.pullStallSize=1Ki,agent.images.pullParallelLayers=1";
    let want = [
        "--image-max-size=2Gi",
        "--image-max-unused-hours=24",
        "--image-min-free-percent=0",
        "--image-min-free-size=5Gi",
        "--image-store-max-size=1Gi",
        "--partial-layer-max-hours=12",
        "--pull-min-free-size=1Gi",
        "--pull-parallel-layers=1",
        "--pull-stall-seconds=300",
        "--pull-stall-size=1Ki",
    ];
    assert_eq!(args(all).await?, want.map(str::to_owned).into());
    Ok(())
}

/// A selector that changes breaks every upgrade; NVIDIA Skyhook's names are what other tools look for.
#[tokio::test]
async fn names_and_selectors_stay() -> Result<()> {
    if !chart_can_run("names_and_selectors_stay").await {
        return Ok(());
    }
    let objects = render(&[]).await?;
    let coordinator = find(&objects, "Deployment", COORDINATOR)?;
    assert_eq!(
        coordinator["spec"]["selector"]["matchLabels"],
        json!({
            "control-plane": "controller-manager",
            "app.kubernetes.io/name": "skyhook-operator",
            "app.kubernetes.io/instance": "skyhook",
        })
    );
    let agent = find(&objects, "DaemonSet", AGENT)?;
    assert_eq!(
        agent["spec"]["selector"]["matchLabels"],
        json!({
            "app.kubernetes.io/component": "agent",
            "app.kubernetes.io/name": "skyhook-operator",
            "app.kubernetes.io/instance": "skyhook",
        })
    );
    let crds = objects
        .iter()
        .filter(|o| o["kind"] == "CustomResourceDefinition");
    assert_eq!(crds.count(), 4);
    let roles = render(&[
        "--set",
        "rbac.createSkyhookViewerRole=true,rbac.createSkyhookEditorRole=true",
    ]);
    let roles = roles.await?;
    find(&roles, "ClusterRole", "skyhook-viewer-role")?;
    find(&roles, "ClusterRole", "skyhook-editor-role").map(drop)
}

#[tokio::test]
async fn pods_have_what_they_need_and_no_more() -> Result<()> {
    if !chart_can_run("pods_have_what_they_need_and_no_more").await {
        return Ok(());
    }
    let digest = "controllerManager.manager.agent.digest=sha256:00";
    let objects = render(&["--set", digest]).await?;
    let agent = &find(&objects, "DaemonSet", AGENT)?["spec"]["template"]["spec"];
    assert_eq!(agent["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(
        (&agent["hostPID"], &agent["hostNetwork"]),
        (&json!(true), &json!(true))
    );
    let container = &agent["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], true);
    ensure!(container["ports"].is_null(), "the agent opens no port");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        ensure!(container[probe]["exec"].is_object(), "{probe} is not exec");
    }
    let image = container["image"].as_str().context("image")?;
    ensure!(image.ends_with("/agent@sha256:00"), "{image}");

    let coordinator = &find(&objects, "Deployment", COORDINATOR)?["spec"]["template"]["spec"];
    let cleanup = "skyhook-skyhook-operator-skyhook-cleanup";
    let cleanup = &find(&objects, "Job", cleanup)?["spec"]["template"]["spec"];
    // What the restricted Pod Security Standard asks for.
    for pod in [coordinator, cleanup] {
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(
            pod["securityContext"]["seccompProfile"]["type"],
            "RuntimeDefault"
        );
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"]["drop"], json!(["ALL"]));
        ensure!(
            pod["hostNetwork"].is_null() && pod["volumes"].is_null(),
            "{pod}"
        );
    }
    let tolerations = coordinator["tolerations"]
        .as_array()
        .context("tolerations")?;
    ensure!(
        tolerations
            .iter()
            .any(|t| t["key"] == "node.kubernetes.io/unschedulable")
    );
    Ok(())
}

/// A LimitRange of the namespace would bind the coordinator and the agents as well, and make a CPU request above its
/// limit invalid.
#[tokio::test]
async fn what_steps_may_use_binds_nobody_else() -> Result<()> {
    if !chart_can_run("what_steps_may_use_binds_nobody_else").await {
        return Ok(());
    }
    let flags = |objects: &[Value]| -> Result<Vec<String>> {
        let agent = find(objects, "DaemonSet", AGENT)?;
        let args = agent["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
        let args = args.context("the agent has arguments")?.iter();
        let flags = args.filter_map(Value::as_str);
        let defaults = flags.filter(|flag| flag.starts_with("--default-"));
        Ok(defaults.map(str::to_owned).collect())
    };
    let request = "controllerManager.manager.resources.requests.cpu=1";
    for (args, want) in [
        (
            &["--set", request][..],
            &[
                "--default-cpu-limit=500m",
                "--default-memory-limit=512Mi",
                "--default-cpu-request=250m",
                "--default-memory-request=256Mi",
            ][..],
        ),
        (&["--set", "limitRange=null"], &[]),
        (
            &[
                "--set",
                "limitRange.default.cpu=2,limitRange.default.memory=null,limitRange.defaultRequest=null",
            ],
            &["--default-cpu-limit=2"],
        ),
    ] {
        let objects = render(args).await?;
        ensure!(
            objects.iter().all(|o| o["kind"] != "LimitRange"),
            "{args:?}"
        );
        assert_eq!(flags(&objects)?, want, "{args:?}");
        for (kind, name) in [("Deployment", COORDINATOR), ("DaemonSet", AGENT)] {
            let pod = &find(&objects, kind, name)?["spec"]["template"]["spec"];
            let limits = &pod["containers"][0]["resources"]["limits"];
            ensure!(limits["cpu"].is_null(), "{name} is throttled: {limits}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn requests_of_each_part_have_a_level_of_their_own() -> Result<()> {
    if !chart_can_run("requests_of_each_part_have_a_level_of_their_own").await {
        return Ok(());
    }
    let objects = render(&[]).await?;
    for (name, accounts) in [
        (
            COORDINATOR,
            &[COORDINATOR, "skyhook-skyhook-operator-skyhook-cleanup"][..],
        ),
        (AGENT, &[AGENT]),
    ] {
        let schema = &find(&objects, "FlowSchema", name)?["spec"];
        assert_eq!(schema["priorityLevelConfiguration"]["name"], name);
        let subjects = schema["rules"][0]["subjects"]
            .as_array()
            .context("subjects")?;
        let named: Vec<_> = subjects
            .iter()
            .map(|s| &s["serviceAccount"]["name"])
            .collect();
        assert_eq!(named, accounts);
        find(&objects, "PriorityLevelConfiguration", name)?;
    }
    let without = render(&["--set", "flowControl.enabled=false"]).await?;
    ensure!(without.iter().all(|o| o["kind"] != "FlowSchema"));
    Ok(())
}
