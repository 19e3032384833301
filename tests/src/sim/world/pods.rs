//! The pods of nodes, and what drains do about them.

use serde::Deserialize as _;
use serde_json::{Value, json};
use skyhook_crds::lease::{BlockCause, DrainState, InterruptionLease};
use skyhook_crds::names;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};
use skyhook_fleet::pods::{PodFact, Rules, Verdict, judge};

use super::{LEASES, NODES, PODS, Sender, World};
use crate::sim::Shape;
use crate::sim::agent::Core;
use crate::sim::api::Request;

/// A drain that a budget has blocked for so long is said to be blocked, in milliseconds.
const TOLD: i128 = 15_000;

impl<C: Core> World<'_, C> {
    /// How nodes are drained, as an administrator may write it.
    pub(super) fn drain_config(&mut self) -> Value {
        let mut config = json!({ "timeout": "20s" });
        if self.rng.one_in(4) {
            config["force"] = json!(false);
        }
        if self.rng.one_in(3) {
            config["ignoreDaemonSets"] = json!(false);
        }
        if self.rng.one_in(3) {
            config["gracePeriod"] = json!("1500ms");
        }
        config
    }

    /// Binds a pod to a node that takes pods.
    pub(super) fn schedule_pod(&mut self, node: &str) {
        let takes = self.api.get(NODES, node).is_some_and(|n| {
            n["spec"]["unschedulable"] != true && !super::taints::keeps_pods_off(n)
        });
        if !takes {
            return;
        }
        self.weather.pods += 1;
        let name = format!("pod-{}", self.weather.pods);
        let owner = |kind: &str| json!([{ "apiVersion": "apps/v1", "kind": kind, "name": "web", "uid": "web", "controller": true }]);
        let mut metadata = json!({ "name": name, "ownerReferences": owner("ReplicaSet") });
        let mut spec = json!({ "nodeName": node, "containers": [{ "name": "web" }] });
        // Nodes that drain for ever need pods that have to leave.
        let kind = if self.shape == Shape::Slow {
            0
        } else {
            self.rng.below(8)
        };
        match kind {
            // Nobody would delete one of these later on.
            1 if self.weather.calm_since.is_none() => {
                metadata["ownerReferences"] = Value::Null;
            }
            2 => spec["tolerations"] = json!([{ "operator": "Exists" }]),
            3 => metadata["ownerReferences"] = owner("DaemonSet"),
            _ => {}
        }
        let body = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec,
            "status": { "phase": "Running" },
        });
        self.as_admin("POST", "/api/v1/namespaces/default/pods", body);
    }

    /// Somebody deletes the pods that no drain evicts: those that no controller has made.
    pub(super) fn delete_bare_pods(&mut self) {
        let pods = self.api.list(PODS);
        let bare = pods.filter(|(_, pod)| pod["metadata"]["ownerReferences"].is_null());
        let bare: Vec<String> = bare.map(|(key, _)| key.clone()).collect();
        for pod in bare {
            self.pod_gone(&pod);
        }
    }

    /// A pod on the node that has to leave, by every form that the spec of the lease's Skyhook has had.
    pub(super) fn pod_left(&self, node: &str, lease: &Value) -> Option<String> {
        let skyhook = lease["spec"]["skyhook"]["uid"].as_str().unwrap_or_default();
        let must_leave = |pod: &Value| {
            let Ok(pod) = serde_json::from_value(pod.clone()).map(PodFact::new) else {
                return true;
            };
            let mut specs = self
                .checks
                .slots
                .specs(skyhook)
                .filter_map(|fact| fact.checked.as_ref().ok());
            specs.all(|checked| {
                let rules = Rules {
                    wait_for: checked.spec.pods_to_wait_for.as_ref(),
                    options: &checked.spec.drain,
                    namespace: &self.settings.namespace,
                    node_ready: true,
                };
                judge(&pod, &rules) != Verdict::Stays
            })
        };
        let mut pods = self.api.list(PODS);
        pods.find(|(_, pod)| pod["spec"]["nodeName"] == node && must_leave(pod))
            .map(|(key, _)| key.clone())
    }

    /// A node that somebody else cordoned gets no mark: NVIDIA Skyhook would uncordon it.
    pub(super) fn check_marks(&mut self, before: Option<&NodeFact>, after: &NodeFact) {
        let Some(before) = before.filter(|before| before.uid == after.uid) else {
            return;
        };
        let by_coordinator = matches!(self.checks.author, Some(Sender::Replica { .. }));
        if !by_coordinator || !before.unschedulable || !before.cordon.owners.is_empty() {
            return;
        }
        let prefix = names::cordon("");
        let mut marks = after.annotations.keys();
        if let Some(mark) = marks.find(|key| key.starts_with(&prefix)) {
            let node = &after.name;
            self.fail(format!("{node}, which somebody else cordoned, gets {mark}"));
        }
    }

    /// What is left of a drain on a node that nobody works on.
    pub(super) fn drain_mark(node: &NodeFact) -> Option<String> {
        let mut keys = node.annotations.keys();
        let left = keys.find(|key| key.contains("/drainStart_") || key.contains("/drainBlocked_"));
        left.map(|key| format!("{key} is left on {}", node.name))
    }

    /// A drain that a budget blocks, and of which the Skyhook does not say so.
    pub(super) fn blocked_in_silence(&self, skyhook: &SkyhookFact) -> Option<String> {
        if skyhook.checked.is_err() || skyhook.deleting {
            return None;
        }
        let conditions = skyhook.status.iter().flat_map(|status| &status.conditions);
        let mut conditions = conditions.filter(|one| one.type_ == "DrainBlocked");
        let said = conditions.next().map(|one| one.message.clone());
        let is_told = |node: &str| {
            let said = said.as_ref();
            said.is_some_and(|said| said.contains(node) || said.contains("more"))
        };
        let now = self.api.wall();
        let leases = self.api.list(LEASES).filter_map(|(node, lease)| {
            let lease = InterruptionLease::deserialize(lease.as_ref()).ok()?;
            let drain = &lease.spec.drain;
            let since = drain.since.as_deref()?.parse().ok()?;
            let mut causes = drain.blockers.iter().filter_map(|one| one.cause);
            let is_blocked = drain.state == DrainState::Draining
                && causes.any(|cause| cause == BlockCause::PodDisruptionBudget)
                && now.duration_since(since).as_millis() >= TOLD;
            let there = self.checks.nodes.get(node)?;
            let is_ours = lease.spec.skyhook.uid == skyhook.uid && lease.spec.node.uid == there.uid;
            (is_blocked && is_ours && skyhook.selects(there)).then_some(node)
        });
        let mut silent = leases.filter(|node| !is_told(node));
        let node = silent.next()?;
        Some(format!(
            "{} does not say that the drain of {node} is blocked: {said:?}",
            skyhook.name
        ))
    }

    /// The node of the pod that a request is about.
    pub(super) fn node_of(&self, request: &Request) -> String {
        let mut parts = request.path.split('/').rev().skip(1);
        let (name, namespace) = (parts.next(), parts.nth(1));
        let key = namespace.zip(name).map(|(ns, name)| format!("{ns}/{name}"));
        let pod = key.and_then(|key| self.api.get(PODS, &key));
        let node = pod.and_then(|pod| pod["spec"]["nodeName"].as_str());
        node.unwrap_or_default().to_owned()
    }

    pub(super) fn pod_gone(&mut self, key: &str) {
        let path = format!("/api/v1/namespaces/{}", key.replace('/', "/pods/"));
        self.as_admin("DELETE", &path, Value::Null);
    }
}
