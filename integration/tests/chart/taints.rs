//! The runtime-required taint, as the chart has it.

use super::*;

/// A node that waits for its packages has to run the coordinator all the same, whatever the taint is called.
#[tokio::test]
async fn the_coordinator_tolerates_every_runtime_required_taint() -> Result<()> {
    if !chart_can_run("the_coordinator_tolerates_every_runtime_required_taint").await {
        return Ok(());
    }
    let startup = "startup-taint.cluster-autoscaler.kubernetes.io/x";
    let set = "controllerManager.manager.env.runtimeRequiredTaint=";
    for (taint, more) in [
        ("", None),
        ("nodewright.nvidia.com=runtime-required:NoSchedule", None),
        (
            "startup-taint.cluster-autoscaler.kubernetes.io/x=y:NoSchedule",
            Some(startup),
        ),
        ("own:NoExecute", Some("own")),
    ] {
        let args = [
            "--set".to_owned(),
            format!("{set}{taint},controllerManager.manager.env.reapplyOnReboot=true"),
        ];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let objects = render(if taint.is_empty() { &[] } else { &args }).await?;
        let coordinator = &find(&objects, "Deployment", COORDINATOR)?["spec"]["template"]["spec"];
        let tolerations = coordinator["tolerations"].as_array().context("a list")?;
        let keys: Vec<&str> = tolerations
            .iter()
            .filter(|toleration| toleration["effect"].is_null())
            .filter_map(|toleration| toleration["key"].as_str())
            .collect();
        let defaults = ["skyhook.nvidia.com", "nodewright.nvidia.com"];
        let want: Vec<&str> = defaults.into_iter().chain(more).collect();
        assert_eq!(keys, want, "{taint}");
        let default = "skyhook.nvidia.com=runtime-required:NoSchedule";
        let taint = if taint.is_empty() { default } else { taint };
        let reapplies = taint != default;
        let agent = &find(&objects, "DaemonSet", AGENT)?["spec"]["template"]["spec"];
        let cleanup = "skyhook-skyhook-operator-skyhook-cleanup";
        let cleanup = &find(&objects, "Job", cleanup)?["spec"]["template"]["spec"];
        let flag = format!("--runtime-required-taint={taint}");
        let reapply = format!("--reapply-on-reboot={reapplies}");
        for (pod, flag) in [
            (coordinator, flag.clone()),
            (cleanup, flag),
            (coordinator, reapply.clone()),
            (agent, reapply),
        ] {
            let args = pod["containers"][0]["args"].as_array().context("a list")?;
            ensure!(args.contains(&json!(flag)), "{flag} is not in {args:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_taint_that_no_node_can_have_is_refused() -> Result<()> {
    if !chart_can_run("a_taint_that_no_node_can_have_is_refused").await {
        return Ok(());
    }
    let long = "a23456789b123456789c123456789d123456789e123456789f1234=b:NoSchedule";
    for (value, words) in [
        ("runtimeRequiredTaint=a=b", "key=value:effect"),
        ("runtimeRequiredTaint=a=b:Never", "key=value:effect"),
        (&format!("runtimeRequiredTaint={long}"), "53 characters"),
        (
            "reapplyOnReboot=yes",
            "'/controllerManager/manager/env/reapplyOnReboot': value must be one of",
        ),
    ] {
        let set = format!("controllerManager.manager.env.{value}");
        let error = template(&["--set", &set]).await.err();
        let error = error.with_context(|| format!("{value} renders"))?;
        ensure!(error.to_string().contains(words), "{value}: {error:#}");
    }
    Ok(())
}
