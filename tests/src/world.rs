//! A whole cluster but for its hosts: real API server, real coordinator, the agents' real core on faked hosts.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_crds::installed::{PackageStates, parse_states};
use skyhook_crds::{InterruptionLease, Skyhook, names};
use skyhook_integration::rollout::is_complete;
use skyhook_integration::wait::{MINUTE, eventually};

use crate::bench::{Fixture, InProcess};
use crate::coreagent::{CoreAgent, FakeHost, HostScript, report_boot};

/// The cluster.
pub struct World {
    pub fixture: Fixture,
    pub client: Client,
    pub coordinator: InProcess,
    hosts: BTreeMap<String, (FakeHost, CoreAgent)>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

impl World {
    /// Starts one without nodes.
    pub async fn start(settings: Settings) -> anyhow::Result<Self> {
        let mut world = Self::start_idle().await?;
        world.coordinate(settings);
        Ok(world)
    }

    /// Starts one without nodes and without a coordinator.
    pub async fn start_idle() -> anyhow::Result<Self> {
        let fixture = Fixture::start().await?;
        Ok(Self {
            client: fixture.client.clone(),
            fixture,
            coordinator: InProcess::none(),
            hosts: BTreeMap::new(),
        })
    }

    /// Starts the coordinator.
    pub fn coordinate(&mut self, settings: Settings) {
        self.coordinator = InProcess::start(self.client.clone(), settings);
    }

    /// Adds a node that is labelled `test: LABEL`, with its agent.
    pub async fn node(
        &mut self,
        name: &str,
        label: &str,
        script: HostScript,
    ) -> anyhow::Result<FakeHost> {
        self.labelled_node(name, &[("test", label)], script).await
    }

    /// Adds a node with these labels, with its agent.
    pub async fn labelled_node(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        script: HostScript,
    ) -> anyhow::Result<FakeHost> {
        let uid = self.fixture.node(name, labels).await?;
        let host = FakeHost::new(name, script);
        let agent = CoreAgent::start(self.client.clone(), name, &uid, &host);
        self.hosts.insert(name.to_owned(), (host.clone(), agent));
        Ok(host)
    }

    /// Starts the agent of a host anew, for a Node that was registered under the same name.
    pub fn adopt(&mut self, name: &str, uid: &str) {
        if let Some((host, agent)) = self.hosts.get_mut(name) {
            *agent = CoreAgent::start(self.client.clone(), name, uid, host);
        }
    }

    /// The host of a node.
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&FakeHost> {
        self.hosts.get(name).map(|(host, _)| host)
    }

    /// Applies a Skyhook for the nodes labelled `test: LABEL`, as `kubectl apply` would.
    pub async fn apply(&self, name: &str, label: &str, mut spec: Value) -> anyhow::Result<()> {
        spec["nodeSelectors"] = json!({ "matchLabels": { "test": label } });
        let skyhooks: Api<Skyhook> = Api::all(self.client.clone());
        let manifest = json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
            "metadata": { "name": name }, "spec": spec,
        });
        let params = PatchParams::apply("test").force();
        skyhooks
            .patch(name, &params, &Patch::Apply(manifest))
            .await?;
        Ok(())
    }

    /// Waits until the Skyhook is complete at its current generation.
    pub async fn complete(&self, name: &str) -> anyhow::Result<Skyhook> {
        self.skyhook_until(name, "complete", is_complete).await
    }

    /// Waits until the Skyhook is as it should be.
    pub async fn skyhook_until(
        &self,
        name: &str,
        what: &str,
        is_met: impl Fn(&Skyhook) -> bool,
    ) -> anyhow::Result<Skyhook> {
        self.fixture
            .until(name, MINUTE, is_met)
            .await
            .with_context(|| format!("waiting for {name}: {what}"))
    }

    /// Waits until a lease is as it should be.
    pub async fn lease_until(
        &self,
        node: &str,
        what: &str,
        is_met: impl Fn(Option<&InterruptionLease>) -> bool,
    ) -> anyhow::Result<()> {
        let leases: Api<InterruptionLease> = Api::all(self.client.clone());
        eventually(MINUTE, async || {
            let lease = leases.get_opt(node).await?;
            ensure!(
                is_met(lease.as_ref()),
                "lease of {node} did not get there: {what}: {lease:#?}"
            );
            Ok(())
        })
        .await
    }

    /// The Node as it is.
    pub async fn get_node(&self, name: &str) -> anyhow::Result<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        Ok(nodes.get(name).await?)
    }

    /// An annotation of a Node.
    pub async fn annotation(&self, node: &str, key: &str) -> anyhow::Result<Option<String>> {
        Ok(self.get_node(node).await?.annotations().get(key).cloned())
    }

    /// Changes a Node, as somebody else would.
    pub async fn edit_node(&self, node: &str, change: Value) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes
            .patch(node, &PatchParams::default(), &Patch::Merge(&change))
            .await?;
        Ok(())
    }

    /// Changes the status of a Node, as somebody else would.
    pub async fn edit_node_status(&self, node: &str, change: Value) -> anyhow::Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes
            .patch_status(node, &PatchParams::default(), &Patch::Strategic(&change))
            .await?;
        Ok(())
    }

    /// Sets or removes an annotation of a Node, as somebody else would.
    pub async fn annotate(&self, node: &str, key: &str, value: Option<&str>) -> anyhow::Result<()> {
        let change = json!({ "metadata": { "annotations": { key: value } } });
        self.edit_node(node, change).await
    }

    /// Gives a Node these taints, each as `key=value:effect`, and no others.
    pub async fn taint(&self, node: &str, taints: &[&str]) -> anyhow::Result<()> {
        let taints: Vec<Value> = taints.iter().map(|taint| taint_object(taint)).collect();
        self.edit_node(node, json!({ "spec": { "taints": taints } }))
            .await
    }

    /// A node is rebooted by somebody else.
    pub async fn reboot(&self, node: &str) -> anyhow::Result<()> {
        let host = self.host(node).context("a node with a host")?;
        let boot_id = host.boot(false);
        Ok(report_boot(&self.client, node, &boot_id).await?)
    }

    /// Sets or removes an annotation of a Skyhook.
    pub async fn annotate_skyhook(
        &self,
        name: &str,
        key: &str,
        value: Option<&str>,
    ) -> anyhow::Result<()> {
        let skyhooks: Api<Skyhook> = Api::all(self.client.clone());
        let body = json!({ "metadata": { "annotations": { key: value } } });
        skyhooks
            .patch(name, &PatchParams::default(), &Patch::Merge(&body))
            .await?;
        Ok(())
    }

    /// Package states of a Node, as `name|version` to `stage/state`.
    pub async fn states(
        &self,
        node: &str,
        skyhook: &str,
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let key = names::node_state(skyhook);
        let states: PackageStates =
            parse_states(&key, self.annotation(node, &key).await?.as_deref(), false)?;
        Ok(states
            .into_iter()
            .map(|(key, s)| (key, format!("{}/{}", s.stage, s.state)))
            .collect())
    }

    /// Fails unless the package states of a Node are these.
    pub async fn expect_states(
        &self,
        node: &str,
        skyhook: &str,
        want: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let want: BTreeMap<String, String> = want
            .iter()
            .map(|(key, state)| ((*key).to_owned(), (*state).to_owned()))
            .collect();
        let got = self.states(node, skyhook).await?;
        ensure!(
            got == want,
            "package states of {node}: {got:?}, not {want:?}"
        );
        Ok(())
    }

    /// Fails unless label, annotation and conditions of a Node say that the Skyhook is complete there, and no cordon,
    /// mark or lease of ours is left.
    pub async fn expect_settled(&self, node: &str, skyhook: &str) -> anyhow::Result<()> {
        self.lease_until(node, "released", |lease| lease.is_none())
            .await?;
        let object = self.get_node(node).await?;
        let status = names::status(skyhook);
        let said = |map: &BTreeMap<String, String>| map.get(&status).cloned().unwrap_or_default();
        ensure!(
            said(object.labels()) == "complete",
            "label of {node}: {:?}",
            object.labels()
        );
        ensure!(
            said(object.annotations()) == "complete",
            "annotations of {node}: {:?}",
            object.annotations()
        );
        let version = object
            .annotations()
            .get(&names::version(skyhook))
            .map(String::len)
            .unwrap_or_default();
        ensure!(version >= 6, "version annotation of {node}");
        let conditions = object
            .status
            .as_ref()
            .and_then(|s| s.conditions.clone())
            .unwrap_or_default();
        for (type_, status, reason) in [
            (names::not_ready_condition(skyhook), "False", "Complete"),
            (names::erroring_condition(skyhook), "False", "Not Erroring"),
        ] {
            let found = conditions.iter().any(|c| {
                c.type_ == type_ && c.status == status && c.reason.as_deref() == Some(reason)
            });
            ensure!(
                found,
                "condition {type_} of {node} is not {status}/{reason}: {conditions:?}"
            );
        }
        let cordoned = object
            .spec
            .as_ref()
            .and_then(|s| s.unschedulable)
            .unwrap_or(false);
        ensure!(!cordoned, "{node} is still cordoned");
        let marks: Vec<&String> = object
            .annotations()
            .keys()
            .filter(|key| key.contains("cordon"))
            .collect();
        ensure!(marks.is_empty(), "{node} still carries {marks:?}");
        Ok(())
    }

    /// Waits until [`World::expect_settled`] holds.
    pub async fn expect_settled_soon(&self, node: &str, skyhook: &str) -> anyhow::Result<()> {
        eventually(MINUTE, async || self.expect_settled(node, skyhook).await).await
    }

    /// Creates a running pod on a node that goes at once when it is evicted.
    pub async fn pod(&self, name: &str, node: &str, labels: &[(&str, &str)]) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": labels },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": "example.com/c" }],
            },
        }))?;
        pods.create(&PostParams::default(), &pod).await?;
        let running = json!({ "status": { "phase": "Running" } });
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&running))
            .await?;
        Ok(())
    }

    /// Whether a pod is there.
    pub async fn has_pod(&self, name: &str) -> anyhow::Result<bool> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        Ok(pods.get_opt(name).await?.is_some())
    }

    /// Deletes a pod.
    pub async fn delete_pod(&self, name: &str) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), "default");
        pods.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

fn taint_object(text: &str) -> Value {
    let (pair, effect) = text.rsplit_once(':').unwrap_or((text, "NoSchedule"));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    json!({ "key": key, "value": value, "effect": effect })
}
