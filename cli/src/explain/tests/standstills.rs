//! Why a roll-out may stand still: each cause with the words of the coordinator or the agent, and the command that helps.

use super::*;

/// Words of the coordinator about `base` on worker-1.
fn told(status: &str, reason: &str, message: &str) -> Node {
    node("worker-1", &[("base", status, reason, message)])
}

/// The Skyhook `base`, whose node worker-1 stands still for a reason, with a lease.
fn on_node(status: &str, reason: &str, message: &str, lease: Option<InterruptionLease>) -> Facts {
    let all = json!({ reason: { "nodes": 1, "since": "2026-11-27T10:00:00Z", "examples": ["worker-1"] } });
    let node = told(status, reason, message);
    facts(
        vec![node],
        vec![skyhook("base", &all)],
        lease.into_iter().collect(),
    )
}

/// The Skyhook `base` with a condition of the whole.
fn of_all(reason: &str, message: &str) -> Facts {
    let mut base = skyhook("base", &json!({}));
    base.status.as_mut().unwrap().conditions = testing::object(json!([{
        "type": "Ready", "status": "False", "reason": reason, "message": message,
        "lastTransitionTime": "2026-11-27T10:00:00Z",
    }]));
    facts(Vec::new(), vec![base], Vec::new())
}

fn lease(status: &Value) -> InterruptionLease {
    testing::lease("worker-1", "base", &json!({}), status)
}

/// A lease whose drain a pod blocks.
fn draining(cause: &str, reason: &str) -> InterruptionLease {
    let blocker = json!({ "pod": "db/pg-0", "reason": reason, "cause": cause });
    let drain = json!({ "drain": { "state": "Draining", "more": 0, "blockers": [blocker] } });
    testing::lease(
        "worker-1",
        "base",
        &drain,
        &json!({ "phase": "AwaitingDrain" }),
    )
}

/// A lease under which package aa fails in a stage.
fn failing(stage: &str) -> InterruptionLease {
    lease(&json!({ "phase": "Erroring", "package": "aa|1.0.0", "stage": stage }))
}

/// worker-2, which waits, beside what worker-1 does.
fn waits(mut facts: Facts, reason: &str, message: &str) -> Facts {
    let waiting = node("worker-2", &[("base", "waiting", reason, message)]);
    facts.nodes.insert("worker-2".to_owned(), waiting);
    facts
}

fn paused() -> Facts {
    let mut facts = on_node("paused", "Paused", "the Skyhook is paused", None);
    let base = facts.skyhooks.get_mut("base").unwrap();
    base.annotations_mut()
        .insert("skyhook.nvidia.com/pause".into(), "true".into());
    facts
}

fn blocked(facts: &Facts) -> String {
    text(&chain::of_node(facts, "worker-1"))
}

fn head(status: &str) -> String {
    format!("Skyhook base on node worker-1: {status} since 2026-11-27T10:00:00Z\n")
}

#[test]
fn a_budget_or_a_cap_is_explained_by_who_has_the_slots() {
    let message = "package aa failed in stage config: config step x exited with 1";
    let slots = || {
        on_node(
            "erroring",
            "PackageErroring",
            message,
            Some(failing("config")),
        )
    };
    let holder = "  because Skyhook base on node worker-1: erroring since 2026-11-27T10:00:00Z
    PackageErroring: package aa failed in stage config: config step x exited with 1
    it is worked on: Erroring, package aa|1.0.0, stage config
    > what the steps wrote: kubectl skyhook package logs aa -n skyhook --skyhook base --node worker-1
    > try it again: kubectl skyhook package rerun aa --skyhook base --node worker-1
";
    for (reason, message) in [
        (
            "BudgetExhausted",
            "waits for a slot of the interruptionBudget",
        ),
        (
            "ClusterBudgetExhausted",
            "waits for a slot of the cluster-wide budget",
        ),
    ] {
        let facts = waits(slots(), reason, message);
        let want = format!(
            "Skyhook base on node worker-2: waiting since 2026-11-27T10:00:00Z\n  {reason}: {message}\n{holder}"
        );
        assert_eq!(text(&chain::of_node(&facts, "worker-2")), want);
    }
}

#[test]
fn a_priority_is_explained_by_what_goes_first() {
    let first = "Skyhook first goes first on this node and is not complete there";
    let waiting = node(
        "worker-1",
        &[
            ("base", "waiting", "EarlierSkyhook", first),
            (
                "first",
                "blocked",
                "NodeIgnored",
                "label skyhook.nvidia.com/ignore=true keeps every Skyhook off",
            ),
        ],
    );
    let facts = facts(
        vec![waiting],
        vec![skyhook("base", &json!({})), skyhook("first", &json!({}))],
        Vec::new(),
    );
    let found = chain::of_node(&facts, "worker-1");
    let want = format!(
        "{}  EarlierSkyhook: {first}
  because Skyhook first on node worker-1: blocked since 2026-11-27T10:00:00Z
    NodeIgnored: label skyhook.nvidia.com/ignore=true keeps every Skyhook off
    > let Skyhooks work on the node again: kubectl skyhook node unignore worker-1
",
        head("waiting")
    );
    assert_eq!(text(&found[..1]), want);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_standstill_on_a_node_has_its_words_and_the_command_that_helps() {
    let stopped = "compartment gpu has stopped after batches that failed; to start it again: kubectl skyhook \
                   deployment-policy reset base";
    let away = "the node went away at 2026-11-27T09:00:00Z and did not come back: it keeps its lease and its slot; to give \
                them up: kubectl annotate interruptionlease worker-1 skyhook.nvidia.com/force-release=lease";
    let uninstalled = "package bb is blocked: dependency aa has been uninstalled. Set uninstall.apply of the dependency to \
                       false, or remove the package";
    let pods =
        "the pods on the node: kubectl get pods -A -o wide --field-selector spec.nodeName=worker-1";
    let agents = "the agent's pod on the node: kubectl get pods -n skyhook -o wide --field-selector spec.nodeName=worker-1";
    let gone = "only if the machine will not come back: kubectl skyhook force-release worker-1";
    let edit = |what: &str| format!("{what}: kubectl edit skyhook base");
    let logs = "what the steps wrote: kubectl skyhook package logs aa -n skyhook --skyhook base --node worker-1";
    let rerun = "try it again: kubectl skyhook package rerun aa --skyhook base --node worker-1";
    let erroring = |stage: &str| {
        let line = format!("it is worked on: Erroring, package aa|1.0.0, stage {stage}");
        (Some(failing(stage)), vec![line])
    };
    let drained = |cause: &str, reason: &str| {
        let line = format!("db/pg-0: {reason} ({cause})");
        (
            Some(draining(cause, reason)),
            vec!["it is worked on: AwaitingDrain".to_owned(), line],
        )
    };
    let none = || (None, Vec::new());
    let accepted = || {
        let line = "it is worked on: Running, package aa|1.0.0, stage apply".to_owned();
        (
            Some(lease(
                &json!({ "phase": "Running", "package": "aa|1.0.0", "stage": "apply" }),
            )),
            vec![line],
        )
    };
    let inhibited = "reboot: waits up to 300 s for apt (upgrading)";
    let inhibitor = || {
        let line =
            format!("it is worked on: Running, package aa|1.0.0, stage interrupt: {inhibited}");
        let status = json!({ "phase": "Running", "package": "aa|1.0.0", "stage": "interrupt", "waitsFor": inhibited });
        (Some(lease(&status)), vec![line])
    };
    let pull =
        "package aa failed in stage apply: image r.example/aa:1.0.0: r.example: 401 Unauthorized";
    let secret = "package aa failed in stage apply: env TOKEN: secret team does not exist";
    let check = "package aa failed in stage config: config-check step x exited with 1";
    let unit = "package aa failed in stage interrupt: restart of containerd: containerd.service did not start";
    let table = [
        ("policy stopped", "waiting", "RolloutStopped", stopped, none(),
            vec!["when the cause is gone, begin with the first batch again: kubectl skyhook deployment-policy reset base".to_owned()]),
        ("PodDisruptionBudget", "in_progress", "Draining",
            "waiting for: db/pg-0 (eviction refused (429): The disruption budget pg needs 1 healthy pods)",
            drained("PodDisruptionBudget", "eviction refused (429): The disruption budget pg needs 1 healthy pods"),
            vec![pods.to_owned(), "the budgets of such pods: kubectl get poddisruptionbudgets -n db".to_owned()]),
        ("blocking pod", "in_progress", "Draining", "waiting for: db/pg-0 (no controller would replace it)",
            drained("UnmanagedPod", "no controller would replace it"),
            vec![pods.to_owned(), edit("let the drain delete pods that nothing makes anew, with spec.drain.force: true")]),
        ("emptyDir", "in_progress", "DrainTimedOut", "pods did not leave in time",
            drained("EmptyDirData", "it would lose its emptyDir"),
            vec![pods.to_owned(), edit("let the drain delete pods with an emptyDir, with spec.drain.deleteEmptyDirData: true")]),
        ("taint", "blocked", "TaintNotTolerable",
            "taint dedicated:NoSchedule is not tolerated: add it to spec.additionalTolerations", none(),
            vec!["the taints of the node: kubectl describe node worker-1".to_owned(), edit("tolerate them in spec.additionalTolerations")]),
        ("ignored", "blocked", "NodeIgnored", "label skyhook.nvidia.com/ignore=true keeps every Skyhook off", none(),
            vec!["let Skyhooks work on the node again: kubectl skyhook node unignore worker-1".to_owned()]),
        ("agent away", "blocked", "AgentNotResponding", "the agent did not accept it in time", none(), vec![agents.to_owned()]),
        ("agent lost", "in_progress", "AwaitingAgent",
            "the node has booted anew, and its agent has not reported since: is its pod running there?", accepted(),
            vec![agents.to_owned(), gone.to_owned()]),
        ("image", "erroring", "PackageErroring", pull, erroring("apply"), vec![
            edit("correct the image or the version of package aa"),
            "the pull secrets that there are: kubectl get secrets -n skyhook --field-selector type=kubernetes.io/dockerconfigjson"
                .to_owned(),
        ]),
        ("secret", "erroring", "PackageErroring", secret, erroring("apply"), vec![
            "what there is in the namespace: kubectl get secrets,configmaps -n skyhook".to_owned(),
            edit("correct the env of package aa"),
        ]),
        ("check failing", "erroring", "PackageErroring", check, erroring("config"), vec![logs.to_owned(), rerun.to_owned()]),
        ("interrupt failing", "erroring", "PackageErroring", unit, erroring("interrupt"),
            vec![edit("correct the interrupt of package aa"), format!("{rerun} --stage interrupt")]),
        ("inhibitor", "in_progress", "AwaitingInterrupt", "drained; the agent has not started the interrupt", inhibitor(), vec![]),
        ("reboot never back", "erroring", "NodeNotReturning", away, accepted(),
            vec!["what the node says: kubectl describe node worker-1".to_owned(), gone.to_owned()]),
        ("dependency", "blocked", "DependencyUninstalled", uninstalled, none(),
            vec![edit("let the dependency stay, or remove what depends on it")]),
        ("API refuses writes", "blocked", "RolloutStateRefused",
            "the state of the roll-out cannot be stored: rolloutstates.skyhook.nvidia.com is forbidden", none(), vec![
            "the state of the roll-out: kubectl get rolloutstate base -o yaml".to_owned(),
            "what the coordinator says of it: kubectl logs -n skyhook -l control-plane=controller-manager --tail 50".to_owned(),
        ]),
    ];
    for (name, status, reason, message, (lease, details), help) in table {
        let details = details.iter().map(|line| format!("  {line}\n"));
        let help = help.iter().map(|line| format!("  > {line}\n"));
        let lines: String = details.chain(help).collect();
        let want = format!("{}  {reason}: {message}\n{lines}", head(status));
        let facts = on_node(status, reason, message, lease);
        assert_eq!(blocked(&facts), want, "{name}");
        // The Skyhook as a whole says the same, one level deeper.
        let whole = text(&[chain::of_skyhook(&facts, "base")]);
        let deeper: String = want
            .lines()
            .enumerate()
            .map(|(n, line)| match n {
                0 => format!("  because {line}\n"),
                _ => format!("  {line}\n"),
            })
            .collect();
        assert_eq!(
            whole,
            format!("Skyhook base: in_progress, 1/4 nodes complete\n{deeper}"),
            "{name}"
        );
    }
}

#[test]
fn a_standstill_of_the_whole_is_the_skyhooks() {
    let refused = "the agents' pods are refused in namespace skyhook: pods \"a-\" is forbidden: exceeded quota";
    for (facts, want) in [
        (
            paused(),
            "Skyhook base: in_progress, 1/4 nodes complete
  Paused: annotation skyhook.nvidia.com/pause is \"true\"
  > let it go on: kubectl skyhook resume base
  because Skyhook base on node worker-1: paused since 2026-11-27T10:00:00Z
    Paused: the Skyhook is paused
    > let it go on: kubectl skyhook resume base
"
            .to_owned(),
        ),
        (
            of_all("AgentsRefused", refused),
            format!(
                "Skyhook base: in_progress, 1/4 nodes complete
  Ready (AgentsRefused): {refused}
  > what the API server says: kubectl get events -n skyhook --field-selector reason=FailedCreate
"
            ),
        ),
        (
            of_all("Invalid", "spec.packages[a].image is empty"),
            "Skyhook base: in_progress, 1/4 nodes complete
  Ready (Invalid): spec.packages[a].image is empty
  > correct it: kubectl edit skyhook base
"
            .to_owned(),
        ),
    ] {
        assert_eq!(text(&[chain::of_skyhook(&facts, "base")]), want);
    }
}

/// Nodes wait for agents that cannot be made: the Skyhook says why, although the nodes have a reason of their own.
#[test]
fn refused_agents_are_named_beside_the_nodes_that_wait_for_them() {
    let mut facts = on_node(
        "blocked",
        "AwaitingAgent",
        "the lease is granted; the node's agent has not accepted it",
        None,
    );
    let refused = of_all("AgentsRefused", "refused")
        .skyhooks
        .remove("base")
        .unwrap();
    let base = facts.skyhooks.get_mut("base").unwrap();
    base.status.as_mut().unwrap().conditions = refused.status.unwrap().conditions;
    let said = text(&[chain::of_skyhook(&facts, "base")]);
    assert!(
        said.contains("\n  Ready (AgentsRefused): refused\n  > what the API server says: "),
        "{said}"
    );
    assert!(said.contains("\n    AwaitingAgent: "), "{said}");
}
