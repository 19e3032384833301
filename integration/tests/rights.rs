//! What the chart lets our two programs do, asked of a real API server with real tokens: the token
//! of a pod that is bound to a node, as the kubelet gives it to an agent.
#![expect(clippy::disallowed_methods, reason = "tokens have a time in them")]

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Node, Pod, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skyhook_crds::InterruptionLease;
use skyhook_integration::agent::service_account_token;
use skyhook_integration::chart::{self, AGENT, COORDINATOR};
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::coordinator::Coordinator;
use skyhook_integration::install::{NAMESPACE, apply, await_crds};
use skyhook_integration::programs;
use skyhook_integration::run::Run;
use skyhook_integration::skip::chart_can_run;
use skyhook_integration::wait::{MINUTE, eventually};

const ISSUER: &str = "https://kubernetes.default.svc";

struct Lab {
    plane: ControlPlane,
    run: Arc<Run>,
}

impl Lab {
    /// The chart on a control plane without kubelets; nodes `a` and `b` with a lease each, and what
    /// an agent may want to read.
    async fn start() -> Result<Self> {
        Self::start_with(&Options::default()).await
    }

    async fn start_with(options: &Options) -> Result<Self> {
        let run = Arc::new(Run::start()?);
        programs::collect(&run)?;
        let plane = ControlPlane::start(Arc::clone(&run), options).await?;
        let path = chart::path();
        let path = path.to_string_lossy();
        let install = [
            "install",
            chart::RELEASE,
            &path,
            "-n",
            NAMESPACE,
            "--create-namespace",
        ];
        chart::helm(&plane, &install).await?;
        await_crds(&plane).await?;
        apply(&plane, include_str!("rights.yaml")).await?;
        Ok(Self { plane, run })
    }

    /// The token of a pod on a node (or of one that is not scheduled), with its UID.
    async fn pod_token(&self, name: &str, account: &str, node: Option<&str>) -> Result<String> {
        let pod: Pod = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {
                "app.kubernetes.io/component": "agent",
                "app.kubernetes.io/name": "skyhook-operator",
                "app.kubernetes.io/instance": chart::RELEASE,
            }},
            "spec": {
                "nodeName": node, "serviceAccountName": account,
                "containers": [{"name": "agent", "image": "agent"}],
            },
        }))?;
        let pods: Api<Pod> = Api::namespaced(self.plane.client(), NAMESPACE);
        let pod = pods.create(&PostParams::default(), &pod).await?;
        let bound = json!({
            "kind": "Pod", "apiVersion": "v1", "name": name, "uid": pod.metadata.uid,
        });
        service_account_token(self.plane.client(), account, Some(bound)).await
    }

    async fn agent(&self, node: &str) -> Result<Client> {
        let token = self
            .pod_token(&format!("agent-{node}"), AGENT, Some(node))
            .await?;
        self.plane.client_for(&token).await
    }
}

/// What the server said to a request that has to be refused.
fn refusal<T>(what: &str, answer: kube::Result<T>) -> Result<(u16, String)> {
    match answer {
        Ok(_) => anyhow::bail!("{what}: allowed"),
        Err(kube::Error::Api(status)) => {
            println!("{what}: {} {}", status.code, status.message);
            Ok((status.code, status.message.clone()))
        }
        Err(error) => Err(error).context(what.to_owned()),
    }
}

fn refused<T>(what: &str, answer: kube::Result<T>, code: u16, words: &str) -> Result<()> {
    let (given, message) = refusal(what, answer)?;
    ensure!(
        given == code && message.contains(words),
        "{what}: {given} {message}, not {code} with {words:?}"
    );
    Ok(())
}

async fn report(client: &Client, node: &str, more: Value) -> kube::Result<InterruptionLease> {
    let leases: Api<InterruptionLease> = Api::all(client.clone());
    let mut body = json!({"status": {"phase": "Accepted", "bootID": "x", "machineID": "y"}});
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    leases
        .patch_status(node, &PatchParams::default(), &Patch::Merge(&body))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_at_its_node() -> Result<()> {
    if !chart_can_run("an_agent_ends_at_its_node").await {
        return Ok(());
    }
    let lab = Lab::start().await?;
    let a = lab.agent("a").await?;
    let leases: Api<InterruptionLease> = Api::all(a.clone());

    // What it may do, all of it.
    let own = leases.get("a").await?;
    let written = report(&a, "a", json!({"spec": {"revision": "forged"}})).await?;
    assert_eq!(written.spec, own.spec, "a status write changed the spec");
    Api::<Node>::all(a.clone()).get("a").await?;
    Api::<ControllerRevision>::namespaced(a.clone(), NAMESPACE)
        .get("one-1")
        .await?;
    Api::<LimitRange>::namespaced(a.clone(), NAMESPACE)
        .list(&ListParams::default())
        .await?;
    let secrets: Api<Secret> = Api::namespaced(a.clone(), NAMESPACE);
    secrets.get("node-init-secret").await?;

    others_leases(&a).await?;
    others_objects(&a).await?;
    taints_are_the_coordinators(&lab, &a).await?;
    credentials_of_others(&lab).await
}

/// The list of taints is replaced as a whole, and may be emptied.
async fn taints_are_the_coordinators(lab: &Lab, agent: &Client) -> Result<()> {
    let token = service_account_token(lab.plane.client(), COORDINATOR, None).await?;
    let coordinator = lab.plane.client_for(&token).await?;
    let nodes: Api<Node> = Api::all(coordinator);
    let params = PatchParams::default();
    let ours =
        json!({"key": "skyhook.nvidia.com", "value": "runtime-required", "effect": "NoSchedule"});
    let other = json!({"key": "x", "effect": "NoSchedule"});
    for taints in [json!([other, ours]), json!([other]), json!([])] {
        let patch = json!({"spec": {"taints": taints}});
        let written = nodes.patch("a", &params, &Patch::Strategic(&patch)).await;
        let spec = written.context("the coordinator writes taints")?.spec;
        let left = spec.and_then(|spec| spec.taints).unwrap_or_default();
        assert_eq!(json!(left), taints);
    }
    let nodes: Api<Node> = Api::all(agent.clone());
    let patch = json!({"spec": {"taints": [ours]}});
    let patched = nodes.patch("a", &params, &Patch::Strategic(&patch)).await;
    let words = "cannot patch resource \"nodes\"";
    refused("an agent's taint", patched, 403, words)
}

async fn others_leases(a: &Client) -> Result<()> {
    let leases: Api<InterruptionLease> = Api::all(a.clone());
    let none = json!({});
    let words = "the agent of node a may not write the lease of node b";
    refused_by_policy(
        "the status of another's lease",
        report(a, "b", none).await,
        words,
    )?;
    let spec = json!({"spec": {"drain": {"state": "Drained"}}});
    let patched = leases
        .patch("a", &PatchParams::default(), &Patch::Merge(&spec))
        .await;
    refused(
        "its own lease's spec",
        patched,
        403,
        "cannot patch resource \"interruptionleases\"",
    )?;
    let deleted = leases.delete("a", &DeleteParams::default()).await;
    refused("deleting its own lease", deleted, 403, "cannot delete")?;
    let mut lease = leases.get("a").await?;
    lease.metadata = kube::core::ObjectMeta {
        name: Some("c".into()),
        ..Default::default()
    };
    let created = leases.create(&PostParams::default(), &lease).await;
    refused("creating a lease", created, 403, "cannot create")
}

async fn others_objects(a: &Client) -> Result<()> {
    let label = json!({"metadata": {"labels": {"forged": "yes"}}});
    let (params, label) = (PatchParams::default(), Patch::Merge(&label));
    let nodes: Api<Node> = Api::all(a.clone());
    refused(
        "its own Node",
        nodes.patch("a", &params, &label).await,
        403,
        "cannot patch resource \"nodes\"",
    )?;
    refused(
        "its own Node's status",
        nodes.patch_status("a", &params, &label).await,
        403,
        "nodes/status",
    )?;
    let revisions: Api<ControllerRevision> = Api::namespaced(a.clone(), NAMESPACE);
    refused(
        "a revision",
        revisions.patch("one-1", &params, &label).await,
        403,
        "cannot patch",
    )?;
    refused(
        "all revisions",
        revisions.list(&ListParams::default()).await,
        403,
        "cannot list",
    )?;
    let secrets: Api<Secret> = Api::namespaced(a.clone(), NAMESPACE);
    for name in ["webhook-cert", "referred", "somebodys"] {
        refused(
            &format!("secret {name}"),
            secrets.get(name).await,
            403,
            "cannot get resource \"secrets\"",
        )?;
    }
    refused(
        "all secrets",
        secrets.list(&ListParams::default()).await,
        403,
        "cannot list",
    )?;
    let elsewhere: Api<Secret> = Api::namespaced(a.clone(), "kube-system");
    refused(
        "a secret elsewhere",
        elsewhere.get("referred").await,
        403,
        "cannot get",
    )?;
    let maps: Api<ConfigMap> = Api::namespaced(a.clone(), NAMESPACE);
    refused(
        "a config map",
        maps.get("referred").await,
        403,
        "cannot get",
    )?;
    let pods: Api<Pod> = Api::namespaced(a.clone(), NAMESPACE);
    refused(
        "pods",
        pods.list(&ListParams::default()).await,
        403,
        "cannot list",
    )
}

/// Tokens that look like an agent's and are not.
async fn credentials_of_others(lab: &Lab) -> Result<()> {
    let client = async |token: String| lab.plane.client_for(&token).await;
    let none = || json!({});

    let forged = client(lab.pod_token("forged", "default", Some("a")).await?).await?;
    refused(
        "a pod with an agent's labels",
        report(&forged, "a", none()).await,
        403,
        "cannot patch",
    )?;
    let nowhere = client(lab.pod_token("nowhere", AGENT, None).await?).await?;
    refused_by_policy(
        "a pod on no node",
        report(&nowhere, "a", none()).await,
        "names no node",
    )?;
    let unbound = service_account_token(lab.plane.client(), AGENT, None).await?;
    let unbound = client(unbound).await?;
    refused_by_policy(
        "a token without a pod",
        report(&unbound, "a", none()).await,
        "names no node",
    )?;

    let pods: Api<Pod> = Api::namespaced(lab.plane.client(), NAMESPACE);
    let gone = client(lab.pod_token("gone", AGENT, Some("a")).await?).await?;
    report(&gone, "a", none()).await?;
    let now = DeleteParams::default().grace_period(0);
    pods.delete("gone", &now).await?;
    refused_in_time("the token of a deleted pod", || {
        report(&gone, "a", json!({}))
    })
    .await?;

    // Signed with the API server's own key: only the time is wrong.
    let pod = pods.get("agent-a").await?;
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
        Api::namespaced(lab.plane.client(), NAMESPACE);
    let account = accounts.get(AGENT).await?;
    let now = Timestamp::now().as_second();
    let claims = |from: i64, until: i64| {
        json!({
            "iss": ISSUER, "aud": [ISSUER], "iat": from, "nbf": from, "exp": until,
            "sub": format!("system:serviceaccount:{NAMESPACE}:{AGENT}"),
            "kubernetes.io": {
                "namespace": NAMESPACE,
                "serviceaccount": {"name": AGENT, "uid": account.metadata.uid},
                "pod": {"name": "agent-a", "uid": pod.metadata.uid},
                "node": {"name": "a"},
            },
        })
    };
    let valid = client(lab.plane.sign_token(&claims(now - 60, now + 600))?).await?;
    report(&valid, "a", none())
        .await
        .context("a token that is valid")?;
    let expired = client(lab.plane.sign_token(&claims(now - 7200, now - 3600))?).await?;
    refused(
        "an expired token",
        report(&expired, "a", none()).await,
        401,
        "Unauthorized",
    )
}

fn refused_by_policy<T>(what: &str, answer: kube::Result<T>, words: &str) -> Result<()> {
    let (code, message) = refusal(what, answer)?;
    ensure!(
        message.contains(words) && message.contains("ValidatingAdmissionPolicy"),
        "{what}: {code} {message}"
    );
    Ok(())
}

/// The API server remembers a token for some seconds.
async fn refused_in_time<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = kube::Result<T>>,
{
    let refusal = eventually(MINUTE, async || match ask().await {
        Err(kube::Error::Api(status)) => Ok(status),
        Ok(_) | Err(_) => anyhow::bail!("{what}: allowed"),
    })
    .await?;
    println!("{what}: {} {}", refusal.code, refusal.message);
    ensure!(refusal.code == 401, "{what}: {refusal:?}");
    Ok(())
}

/// The coordinator, with the chart's rights alone, keeps the Role to what Skyhooks refer to.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_reads_what_skyhooks_refer_to_and_no_longer() -> Result<()> {
    if !chart_can_run("an_agent_reads_what_skyhooks_refer_to_and_no_longer").await {
        return Ok(());
    }
    let lab = Lab::start().await?;
    let a = lab.agent("a").await?;
    let secrets: Api<Secret> = Api::namespaced(a.clone(), NAMESPACE);
    let maps: Api<ConfigMap> = Api::namespaced(a.clone(), NAMESPACE);
    let role = format!("--references-role={AGENT}-references");
    let run = Arc::clone(&lab.run);
    let coordinator =
        Coordinator::start_as(run, &lab.plane, "coordinator", COORDINATOR, &[&role]).await?;

    apply(&lab.plane, &skyhook_with_env(true)).await?;
    let outcome = async {
        readable(true, || secrets.get("referred")).await?;
        readable(true, || maps.get("referred")).await?;
        let other = secrets.get("somebodys").await;
        refused("a secret that nobody refers to", other, 403, "cannot get")?;
        // Whatever somebody does to the Role is undone.
        let name = format!("{AGENT}-references");
        lab.plane
            .kubectl(&["-n", NAMESPACE, "delete", "role", &name])
            .await?;
        readable(true, || secrets.get("referred")).await?;
        let wide = r#"[{"op":"replace","path":"/rules","value":[{"apiGroups":[""],"resources":["secrets"],"verbs":["get"]}]}]"#;
        lab.plane
            .kubectl(&[
                "-n",
                NAMESPACE,
                "patch",
                "role",
                &name,
                "--type=json",
                "-p",
                wide,
            ])
            .await?;
        readable(false, || secrets.get("somebodys")).await?;
        apply(&lab.plane, &skyhook_with_env(false)).await?;
        readable(false, || secrets.get("referred")).await
    };
    outcome.await.with_context(|| coordinator.log())
}

/// A namespace in which privileged pods are forbidden: no agent can start, and Skyhooks say so, with
/// what to do about it; when it has been done, they no longer say it.
#[tokio::test(flavor = "multi_thread")]
async fn refused_agents_are_named_by_the_ready_condition() -> Result<()> {
    if !chart_can_run("refused_agents_are_named_by_the_ready_condition").await {
        return Ok(());
    }
    let options = Options {
        controller_manager: true,
        ..Options::default()
    };
    let lab = Lab::start_with(&options).await?;
    let enforce = |level: &str| format!("pod-security.kubernetes.io/enforce={level}");
    let label = async |level: &str| {
        let label = enforce(level);
        let args = ["label", "namespace", NAMESPACE, "--overwrite", &label];
        lab.plane.kubectl(&args).await
    };
    label("baseline").await?;
    let pods = Api::<Pod>::namespaced(lab.plane.client(), NAMESPACE);
    pods.delete_collection(
        &DeleteParams::default().grace_period(0),
        &ListParams::default(),
    )
    .await?;
    let set = format!("--agent-daemon-set={AGENT}");
    let run = Arc::clone(&lab.run);
    let coordinator =
        Coordinator::start_as(run, &lab.plane, "coordinator", COORDINATOR, &[&set]).await?;
    apply(&lab.plane, &skyhook_for_all()).await?;
    let outcome = async {
        let said = ready_says(&lab, |reason, _| reason == "AgentsRefused").await?;
        for words in ["PodSecurity", &enforce("privileged"), "hostPID"] {
            ensure!(said.contains(words), "no {words:?} in {said}");
        }
        label("privileged").await?;
        ready_says(&lab, |reason, _| reason != "AgentsRefused")
            .await
            .map(drop)
    };
    outcome.await.with_context(|| coordinator.log())
}

/// Waits until the Ready condition of the Skyhook is as wanted; returns its message.
async fn ready_says(lab: &Lab, wanted: impl Fn(&str, &str) -> bool) -> Result<String> {
    let skyhooks: Api<skyhook_crds::Skyhook> = Api::all(lab.plane.client());
    eventually(MINUTE, async || {
        let status = skyhooks.get("reader").await?.status.unwrap_or_default();
        let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready");
        let ready = ready.context("no condition Ready")?;
        ensure!(wanted(&ready.reason, &ready.message), "{ready:?}");
        Ok(ready.message)
    })
    .await
}

fn skyhook_for_all() -> String {
    skyhook_with_env(false).replace(r#""matchLabels":{"no":"node"}"#, r#""matchLabels":{}"#)
}

fn skyhook_with_env(refers: bool) -> String {
    let env = json!([
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "referred", "key": "k"}}},
        {"name": "M", "valueFrom": {"configMapKeyRef": {"name": "referred", "key": "k"}}},
    ]);
    let env = if refers { env } else { json!([]) };
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
        "metadata": {"name": "reader"},
        "spec": {
            "nodeSelectors": {"matchLabels": {"no": "node"}},
            "packages": {"pkg": {"version": "1.0.0", "image": "localhost/pkg", "env": env}},
        },
    })
    .to_string()
}

/// Waits until it can or cannot be read: authorization follows the Role within a moment.
async fn readable<T, F>(want: bool, mut get: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = kube::Result<T>>,
{
    eventually(MINUTE, async || {
        let answer = get().await;
        ensure!(
            answer.is_ok() == want,
            "readable is not {want}: {:?}",
            answer.err()
        );
        Ok(())
    })
    .await
}
