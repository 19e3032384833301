//! Which values the chart takes, which it takes without effect, and which it refuses.
#![expect(clippy::disallowed_methods, reason = "it reads files of the chart")]

use std::collections::BTreeMap;
use std::process::Command;

use skyhook_integration::chart;
use skyhook_integration::process::output;

use super::*;

/// `values.schema.json`.
pub(crate) fn schema() -> Result<Value> {
    let text = std::fs::read_to_string(chart::path().join("values.schema.json"))?;
    Ok(serde_json::from_str(&text)?)
}

/// The values without effect, and why.
pub(crate) fn accepted() -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(chart::path().join("accepted.yaml"))?;
    Ok(serde_yaml_ng::from_str(&text)?)
}

/// The schema of a value, where it is defined.
pub(crate) fn resolved<'a>(schema: &'a Value, node: &'a Value) -> Result<&'a Value> {
    match node["$ref"].as_str() {
        Some(reference) => schema
            .pointer(reference.trim_start_matches('#'))
            .with_context(|| format!("no {reference}")),
        None => Ok(node),
    }
}

/// The paths of all values that have no values below them, but for `global`, which is Helm's.
pub(crate) fn leaves(schema: &Value) -> Result<Vec<String>> {
    let mut leaves = Vec::new();
    let mut below = vec![(String::new(), schema)];
    while let Some((path, node)) = below.pop() {
        let properties = resolved(schema, node)?["properties"].as_object();
        // A list of requests is not a value of ours.
        let Some(properties) = properties.filter(|_| !path.ends_with("resources")) else {
            leaves.push(path);
            continue;
        };
        for (name, node) in properties.iter().filter(|(name, _)| *name != "global") {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            below.push((path, node));
        }
    }
    leaves.sort();
    Ok(leaves)
}

/// Every object with properties says that it has no others.
#[test]
fn the_schema_is_closed() -> Result<()> {
    let schema = schema()?;
    let mut nodes = vec![&schema];
    let mut closed = 0;
    while let Some(node) = nodes.pop() {
        if node["properties"].is_object() && node["type"] != "array" {
            assert_eq!(node["additionalProperties"], false, "{node}");
            closed += 1;
        }
        match node {
            Value::Object(map) => nodes.extend(map.values()),
            Value::Array(list) => nodes.extend(list),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    ensure!(closed > 20, "{closed} objects are closed");
    let leaves = leaves(&schema)?;
    for path in accepted()?.keys() {
        ensure!(leaves.contains(path), "{path} is not in the schema");
    }
    Ok(())
}

#[tokio::test]
async fn unknown_and_wrong_values_are_refused_by_name() -> Result<()> {
    if !chart_can_run("unknown_and_wrong_values_are_refused_by_name").await {
        return Ok(());
    }
    let manager = "controllerManager.manager";
    for (value, words) in [
        ("agnet.logLevel=debug", "'agnet' not allowed"),
        (
            "controllerManager.manager.env.logLvl=debug",
            "'/controllerManager/manager/env': additional properties 'logLvl' not allowed",
        ),
        (
            "agent.env.HTTPS_PROXY=http://proxy:3128",
            "'/agent/env': got object, want array",
        ),
        ("agent.maxAttempts=often", "'/agent/maxAttempts': 'often'"),
        (
            "agent.images.maxSize=large",
            "'/agent/images/maxSize': 'large'",
        ),
        (
            "cleanup.enabled=yes",
            "'/cleanup/enabled': got string, want boolean",
        ),
        ("limitRange=true", "'/limitRange'"),
        (
            "controllerManager.manager.env.probePort=8081",
            "'/controllerManager/manager/env/probePort'",
        ),
        (
            "controllerManager.manager.env.metricsPort=8080",
            "'/controllerManager/manager/env/metricsPort'",
        ),
        (
            "controllerManager.manager.env.metricsPort=:8081",
            "metricsPort and controllerManager.manager.env.probePort have to differ",
        ),
        (
            "metrics.serviceMonitor.enabled=true,metricsService.enabled=false",
            "metrics.serviceMonitor.enabled needs metricsService.enabled",
        ),
        (
            "fullnameOverride=Packages",
            "'/fullnameOverride': 'Packages'",
        ),
        (
            &format!("{manager}.image.repository=nvcr.io/nvidia/skyhook/operator"),
            "a copy of ghcr.io/skyhook-rs/skyhook/coordinator",
        ),
        (
            &format!("{manager}.agent.repository=mirror/ghcr.io/nvidia/nodewright/agent"),
            "a copy of ghcr.io/skyhook-rs/skyhook/agent",
        ),
        (
            &format!("{manager}.image.tag=v0.13.0"),
            "a version of another product",
        ),
        (
            &format!("{manager}.agent.tag=v6.4.1"),
            "a version of another product",
        ),
        (
            "agent.extraArgs={--max-attempts=3}",
            "agent.extraArgs has --max-attempts: set agent.maxAttempts instead",
        ),
        (
            "controllerManager.manager.extraArgs={--leader-election}",
            "set controllerManager.manager.env.leaderElection instead",
        ),
        (
            "controllerManager.podDisruptionBudget.minAvailable=51%",
            "less than controllerManager.replicas",
        ),
    ] {
        let error = template(&["--set", value]).await.err();
        let error = error.with_context(|| format!("{value} renders"))?;
        ensure!(error.to_string().contains(words), "{value}: {error:#}");
    }
    Ok(())
}

/// Flags that the chart gives are those that `flags.yaml` refuses in `extraArgs`.
#[tokio::test]
async fn every_flag_of_the_chart_is_refused_a_second_time() -> Result<()> {
    if !chart_can_run("every_flag_of_the_chart_is_refused_a_second_time").await {
        return Ok(());
    }
    let all = [
        "agent.imageCredentialProviderConfig=/a,agent.imageCredentialProviderBinDir=/b,agent.stepTimeoutSeconds=1",
        "agent.stageTimeoutSeconds=1,agent.maxAttempts=1,agent.rebootCap=1,agent.registryHostsDir=/a,imagePullSecret=s",
        "agent.images.storeMaxSize=1Gi,agent.images.maxUnusedHours=1,agent.images.minFreePercent=1,agent.images.minFreeSize=1",
        "agent.images.pullMinFreeSize=1,agent.images.maxSize=1,agent.images.partialLayerMaxHours=1",
        "agent.images.pullStallSeconds=1,agent.images.pullStallSize=1,agent.images.pullParallelLayers=1",
        "controllerManager.manager.env.maxConcurrentNodes=1",
    ]
    .join(",");
    let objects = render(&["--set", &all]).await?;
    let text = std::fs::read_to_string(chart::path().join("flags.yaml"))?;
    let refused: BTreeMap<String, BTreeMap<String, String>> = serde_yaml_ng::from_str(&text)?;
    // The agent's probes need these as well: they are environment variables.
    let elsewhere = ["--host-root", "--copy-dir-root", "--log-root"];
    for (value, kind, name, elsewhere) in [
        (
            "controllerManager.manager.extraArgs",
            "Deployment",
            COORDINATOR,
            &[][..],
        ),
        ("agent.extraArgs", "DaemonSet", AGENT, &elsewhere),
    ] {
        let args =
            &find(&objects, kind, name)?["spec"]["template"]["spec"]["containers"][0]["args"];
        let args: Vec<String> = serde_json::from_value(args.clone())?;
        let flags = args.iter().filter(|arg| arg.starts_with("--"));
        let mut given: BTreeSet<&str> = flags.filter_map(|flag| flag.split('=').next()).collect();
        given.extend(elsewhere);
        let known: BTreeSet<&str> = refused[value].keys().map(String::as_str).collect();
        assert_eq!(given, known, "{value}");
    }
    Ok(())
}

/// A copy of the chart that renders its notes as an object: Helm prints them only when it has a cluster.
struct Notes(tempfile::TempDir);

impl Notes {
    async fn copy() -> Result<Self> {
        let copy = Self(tempfile::tempdir()?);
        let mut command = Command::new("cp");
        command.arg("-r").arg(chart::path()).arg(copy.0.path());
        output(command).await?;
        let templates = copy.0.path().join("skyhook-operator/templates");
        let notes = std::fs::read_to_string(templates.join("NOTES.txt"))?;
        let object = format!(
            "{{{{- define \"notes\" -}}}}\n{notes}\n{{{{- end }}}}\nnotes: {{{{ include \"notes\" . | toJson }}}}\n"
        );
        std::fs::write(templates.join("shown.yaml"), object)?;
        Ok(copy)
    }

    /// The notes after an install with these arguments.
    async fn show(&self, args: &[&str]) -> Result<String> {
        let chart = self.0.path().join("skyhook-operator");
        let all = [&["--show-only", "templates/shown.yaml"][..], args].concat();
        let shown = documents(&chart::template_of(&chart, &all).await?)?;
        let notes = shown.first().and_then(|shown| shown["notes"].as_str());
        Ok(notes.context("notes")?.to_owned())
    }
}

#[tokio::test]
async fn what_has_no_effect_is_said() -> Result<()> {
    if !chart_can_run("what_has_no_effect_is_said").await {
        return Ok(());
    }
    let notes = Notes::copy().await?;
    let none = notes.show(&[]).await?;
    ensure!(!none.contains("no effect"), "{none}");
    ensure!(none.contains("root on every node"), "{none}");
    let values = ["false", r#""8080""#, r#"{"a":{"b":["c"]}}"#];
    for ((path, why), value) in accepted()?.into_iter().zip(values.into_iter().cycle()) {
        let said = notes
            .show(&["--set-json", &format!("{path}={value}")])
            .await?;
        assert_eq!(
            said.matches("has no effect").count(),
            1,
            "{path}={value}: {said}"
        );
        let want = format!("{path} has no effect, because {why}.");
        ensure!(said.contains(&want), "{path}={value}: {said}");
    }
    Ok(())
}

/// The values of the charts of NVIDIA Skyhook and NodeWright, as somebody may have kept them, without their images.
#[tokio::test]
async fn values_of_the_charts_before_render() -> Result<()> {
    if !chart_can_run("values_of_the_charts_before_render").await {
        return Ok(());
    }
    let notes = Notes::copy().await?;
    for file in ["skyhook-v0.13.yaml", "nodewright-v0.20.yaml"] {
        let file =
            skyhook_integration::source::source(&format!("integration/tests/chart/before/{file}"));
        let file = file.to_string_lossy();
        render(&["-f", &file]).await?;
        let said = notes.show(&["-f", &file]).await?;
        for path in ["webhook", "controllerManager.manager.env.pauseImage"] {
            ensure!(said.contains(&format!("{path} has no effect")), "{said}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn names_can_be_overridden() -> Result<()> {
    if !chart_can_run("names_can_be_overridden").await {
        return Ok(());
    }
    // Names that others know, whatever the release is called.
    let fixed = [
        "skyhooks",
        "deploymentpolicies",
        "interruptionleases",
        "rolloutstates",
    ];
    for (value, name, full) in [
        ("nameOverride=other", "other", "skyhook-other"),
        (
            "fullnameOverride=fleetwide",
            "skyhook-operator",
            "fleetwide",
        ),
        (
            "nameOverride=other,fullnameOverride=fleetwide",
            "other",
            "fleetwide",
        ),
    ] {
        let objects = render(&["--set", value]).await?;
        for object in &objects {
            let of_object = object["metadata"]["name"].as_str().context("a name")?;
            let is_fixed = fixed
                .iter()
                .any(|kind| of_object == format!("{kind}.skyhook.nvidia.com"));
            ensure!(
                is_fixed || of_object.starts_with(full),
                "{value}: {of_object}"
            );
            assert_eq!(
                object["metadata"]["labels"]["app.kubernetes.io/name"], name,
                "{value}: {of_object}"
            );
        }
        let deployment = find(
            &objects,
            "Deployment",
            &format!("{full}-controller-manager"),
        )?;
        let selector = &deployment["spec"]["selector"]["matchLabels"];
        assert_eq!(selector["app.kubernetes.io/name"], name);
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/name"], name);
    }
    Ok(())
}
