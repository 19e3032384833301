//! What a seed begins with.

use std::time::Duration;

use serde_json::{Value, json};
use skyhook_fleet::settings::Settings;

use super::host::Machine;
use super::{Event, POLICIES, SKYHOOKS, World};
use crate::sim::Shape;
use crate::sim::agent::Core;
use crate::sim::api::Request;
use crate::sim::rng::Rng;

/// Settings of the coordinators. `reapplies` says what the agents can do.
#[must_use]
pub fn settings(shape: Shape, reapplies: bool, rng: &mut Rng) -> Settings {
    // All other worlds are as they would be without it.
    let reapply = Rng::new(rng.clone().below(u64::MAX)).one_in(4);
    let cap = rng.one_in(3).then(|| rng.between(1, 3) * shape.scale());
    let cap = cap.filter(|_| shape != Shape::Slow);
    Settings {
        max_concurrent_nodes: cap.and_then(|cap| usize::try_from(cap).ok()),
        accept_timeout: Duration::from_secs(rng.between(20, 120)),
        agent_backoff: Duration::from_secs(rng.between(5, 60)),
        drain_cool_down: Duration::from_secs(rng.between(5, 60)),
        reapply_on_reboot: reapply && reapplies && shape == Shape::Small,
        ..Settings::default()
    }
}

/// Nodes of a fleet.
const FLEET: u64 = 100;

impl Shape {
    /// How much more there is of everything than in a small cluster.
    const fn scale(self) -> u64 {
        match self {
            Self::Small | Self::Paced | Self::Forsaken | Self::Slow => 1,
            Self::Fleet => 10,
        }
    }
}

/// The policy that Skyhooks name.
const POLICY: &str = "tuned";
pub(super) const ROLLOUT_PATH: &str = "/apis/skyhook.nvidia.com/v1alpha1/rolloutstates";
const POLICY_PATH: &str = "/apis/skyhook.nvidia.com/v1alpha1/deploymentpolicies";

/// Names of the Skyhooks.
pub(super) const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

impl<C: Core> World<'_, C> {
    pub(super) fn set_up(&mut self) {
        self.weather.stormy = true;
        self.weather.kills = !self.rng.one_in(3);
        self.weather.kill_odds = self.rng.between(40, 250);
        self.weather.steps_fail = self.rng.one_in(3);
        let nodes = match self.shape {
            Shape::Fleet => FLEET,
            Shape::Small | Shape::Paced | Shape::Forsaken | Shape::Slow => self.rng.between(1, 6),
        };
        self.set_up_taints();
        for _ in 0..nodes {
            self.add_node();
        }
        self.set_policy();
        let skyhooks = usize::try_from(self.rng.between(1, 3)).unwrap_or(1);
        for name in NAMES.iter().take(skyhooks) {
            let delay = self.rng.between(0, 3_000);
            let body = self.manifest(name);
            self.after(delay, Event::Apply(Box::new(body)));
        }
        for index in 0..2 {
            self.replicas.push(super::replica::Replica::default());
            let delay = self.rng.between(0, 2_000);
            self.after(delay, Event::StartReplica(index));
        }
        self.replicas[0].leads = true;
        let faults = self.rng.between(0, 25) * if self.shape == Shape::Fleet { 4 } else { 1 };
        for _ in 0..faults {
            let delay = self.rng.between(500, 120_000);
            self.after(delay, Event::Fault);
        }
        let calm = self.rng.between(20_000, 150_000);
        self.after(calm, Event::Calm);
    }

    /// No more nodes are added than make so many.
    pub(super) fn most_nodes(&self) -> usize {
        match self.shape {
            Shape::Fleet => 110,
            Shape::Small | Shape::Paced | Shape::Forsaken | Shape::Slow => 7,
        }
    }

    /// Registers a Node with a machine of its own.
    pub(super) fn add_node(&mut self) {
        self.weather.nodes += 1;
        let name = format!("worker-{}", self.weather.nodes);
        self.register(&name, None);
    }

    /// Creates the Node object of a machine; of a new one unless there is one already.
    pub(super) fn register(&mut self, name: &str, machine: Option<Machine<C>>) {
        self.weather.machines += 1;
        let serial = self.weather.machines;
        let mut labels = json!({ "tier": if self.rng.one_in(2) { "a" } else { "b" } });
        let control_plane = match self.shape {
            Shape::Small | Shape::Paced | Shape::Forsaken => self.rng.one_in(5),
            Shape::Fleet => self.rng.one_in(30),
            Shape::Slow => false,
        };
        if control_plane {
            labels[skyhook_crds::names::CONTROL_PLANE] = json!("");
        }
        let mut machine =
            machine.unwrap_or_else(|| Machine::new(format!("machine-{serial}"), String::new()));
        let boot_id = machine.boot_id();
        let ready = if machine.up { "True" } else { "Unknown" };
        let body = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": name, "labels": labels },
            "spec": { "taints": self.taints_that_join(name) },
            "status": {
                "nodeInfo": { "bootID": boot_id, "machineID": machine.machine_id },
                "conditions": [{ "type": "Ready", "status": ready }],
            },
        });
        let created = self.as_admin("POST", "/api/v1/nodes", body);
        machine.node_uid = created["metadata"]["uid"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        machine.agent = None;
        machine.life += 1;
        machine.inbox.clear();
        self.machines.insert(name.to_owned(), machine);
        self.checks.cordoned.remove(name);
        self.checks.meddled.remove(name);
        if self.shape != Shape::Slow {
            for _ in 0..self.rng.below(3) {
                self.schedule_pod(name);
            }
        }
        let delay = self.rng.between(0, 4_000);
        self.after(delay, Event::StartAgent(name.to_owned()));
    }

    /// A request that takes no time and is never refused for the weather.
    pub(super) fn as_admin(&mut self, method: &str, path: &str, body: Value) -> Value {
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            content_type: "application/merge-patch+json".to_owned(),
            body,
            ..Request::default()
        };
        let response = self.api.serve(&request);
        self.note(|| {
            format!(
                "world: {method} {path} {} -> {}",
                request.body, response.code
            )
        });
        self.notice();
        response.body
    }

    /// A Skyhook as an administrator may write it.
    pub(super) fn manifest(&mut self, name: &str) -> Value {
        let spec = self.spec(name);
        json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
            "metadata": { "name": name },
            "spec": spec,
        })
    }

    fn spec(&mut self, name: &str) -> Value {
        let mut spec = json!({
            "priority": self.rng.between(1, 3) * 100,
            "serial": self.rng.one_in(4),
            "packages": {},
        });
        match self.rng.below(5) {
            _ if self.shape == Shape::Paced => spec["deploymentPolicy"] = json!(POLICY),
            0 => spec["interruptionBudget"] = json!({ "percent": self.rng.between(0, 60) }),
            1 | 2 => {
                let count = self.rng.between(1, 2) * self.shape.scale();
                spec["interruptionBudget"] = json!({ "count": count });
            }
            3 if self.rng.one_in(4) => spec["interruptionBudget"] = json!({ "count": 0 }),
            _ => {}
        }
        if self.rng.one_in(3) {
            spec["nodeSelectors"] = json!({ "matchLabels": { "tier": "a" } });
        }
        self.require_taints(&mut spec);
        if self.rng.one_in(3) {
            spec["drainConfig"] = self.drain_config();
        }
        // Whether nodes are kept off is counted over all nodes of all earlier Skyhooks, which takes long in a fleet.
        if self.shape != Shape::Fleet && self.rng.one_in(4) {
            spec["sequencing"] = json!("all");
        }
        let count = self.rng.between(1, 3);
        for n in 0..count {
            let package = format!(
                "{name}-{}",
                ["one", "two", "three"][usize::try_from(n).unwrap_or(0) % 3]
            );
            spec["packages"][&package] = self.package();
            if n > 0 && self.rng.one_in(2) {
                let on = format!("{name}-one");
                let version = spec["packages"][&on]["version"].clone();
                spec["packages"][&package]["dependsOn"] = json!({ on: version });
            }
        }
        spec
    }

    /// Creates the policy that Skyhooks name, or gives it another form. A failure never stops a compartment.
    pub(super) fn set_policy(&mut self) {
        if self.shape != Shape::Paced {
            return;
        }
        let strategy = match self.rng.below(4) {
            0 => Value::Null,
            1 => json!({ "fixed": { "initialBatch": 2 } }),
            2 => json!({ "linear": {} }),
            _ => json!({ "exponential": { "batchThreshold": 50 } }),
        };
        let count = self.rng.between(1, 3);
        let mut compartment = json!({
            "name": if self.rng.one_in(4) { "renamed" } else { "a" },
            "selector": { "matchLabels": { "tier": "a" } },
            "budget": { "count": count },
        });
        if !strategy.is_null() {
            compartment["strategy"] = strategy;
        }
        let spec = json!({
            "default": { "budget": { "percent": 50 }, "strategy": { "fixed": {} } },
            "compartments": [compartment],
        });
        let body = json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "DeploymentPolicy",
            "metadata": { "name": POLICY }, "spec": spec,
        });
        if self.api.get(POLICIES, POLICY).is_some() {
            self.api.edit(POLICIES, POLICY, |object| {
                object["spec"] = body["spec"].clone()
            });
            self.note(|| format!("world: spec of the policy is {}", body["spec"]));
        } else {
            self.as_admin("POST", POLICY_PATH, body);
        }
    }

    /// Changes the policy, or deletes it. False in a world without one.
    pub(super) fn change_policy(&mut self) -> bool {
        let is_paced = self.shape == Shape::Paced;
        if is_paced && self.rng.one_in(3) {
            let path = format!("{POLICY_PATH}/{POLICY}");
            self.as_admin("DELETE", &path, Value::Null);
        } else {
            self.set_policy();
        }
        is_paced
    }

    /// A package at some version.
    pub(super) fn package(&mut self) -> Value {
        let mut package = json!({
            "version": format!("1.{}.0", self.rng.below(3)),
            "image": "example.com/package",
            "configMap": { "key": format!("{}", self.rng.below(2)) },
        });
        match self.rng.below(8) {
            0 => package["interrupt"] = json!({ "type": "reboot" }),
            1 => package["interrupt"] = json!({ "type": "service", "services": ["a"] }),
            2 => package["configInterrupts"] = json!({ "key": { "type": "noop" } }),
            _ => {}
        }
        // All that is drawn besides is as it would be without it.
        let own = Rng::new(self.rng.clone().below(u64::MAX)).below(8);
        if C::UNINSTALLS && self.shape != Shape::Slow {
            match own {
                0 => package["uninstall"] = json!({ "enabled": true, "apply": true }),
                1 | 2 => package["uninstall"] = json!({ "enabled": true }),
                3 => package["uninstall"] = json!({ "enabled": false }),
                _ => {}
            }
        }
        package
    }

    /// Asks for the uninstall of every package of a Skyhook that can be uninstalled, or takes this back. False if there is
    /// none.
    pub(super) fn switch_uninstalls(&mut self, name: &str) -> bool {
        let mut found = false;
        let skyhook = self
            .api
            .get(SKYHOOKS, name)
            .map(|object| &object["spec"]["packages"]);
        let packages = skyhook
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        for (package, spec) in packages {
            if spec["uninstall"]["enabled"] != true {
                continue;
            }
            found = true;
            let apply = spec["uninstall"]["apply"] != true;
            let body =
                json!({ "spec": { "packages": { package: { "uninstall": { "apply": apply } } } } });
            let path = format!("/apis/skyhook.nvidia.com/v1alpha1/skyhooks/{name}");
            self.as_admin("PATCH", &path, body);
        }
        found
    }
}
