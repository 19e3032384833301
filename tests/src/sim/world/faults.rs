//! What goes wrong, and what people do, until the world is told to calm down.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skyhook_crds::names;

use super::ending::Affliction;
use super::host::Machine;
use super::setup::{NAMES, ROLLOUT_PATH};
use super::{Event, LEASES, NODES, PODS, ROLLOUTS, SKYHOOKS, World};
use crate::sim::agent::Core;
use crate::sim::api::{Request, Response};
use crate::sim::rng::Rng;

/// How things are just now.
#[derive(Debug, Default)]
pub struct Weather {
    /// Requests and watches fail now and then.
    pub stormy: bool,
    pub outage: bool,
    pub kills: bool,
    /// One act in so many is the actor's last.
    pub kill_odds: u64,
    pub steps_fail: bool,
    /// Evictions are refused.
    pub budgeted: bool,
    pub nodes: u64,
    pub machines: u64,
    pub pods: u64,
    pub calm_since: Option<u64>,
    /// Nodes that never get well again.
    pub afflicted: BTreeMap<String, Affliction>,
}

/// What ends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heal {
    Outage,
    Evictions,
    Ready(String),
    /// A coordinator learns that it leads no more.
    Depose(usize),
    Register(String),
}

/// What a vandal writes over a stamp.
pub(super) const NONSENSE: &str = "nonsense";

const SKYHOOK_PATH: &str = "/apis/skyhook.nvidia.com/v1alpha1/skyhooks";

impl<C: Core> World<'_, C> {
    /// Something happens.
    pub(super) fn fault(&mut self) {
        if self.weather.calm_since.is_some() {
            return;
        }
        let now = self.now;
        self.checks.excuse("", now);
        match self.rng.below(24) {
            0 | 1 => self.lose_coordinator(),
            2 | 3 => self.hand_over(),
            4..=9 => self.trouble_node(),
            10..=15 => self.change_skyhook(),
            16..=19 => self.meddle_with_taints(),
            20 => {
                self.weather.outage = true;
                let delay = self.rng.between(1_000, 30_000);
                self.note(|| "the API server is away".to_owned());
                self.after(delay, Event::Heal(Heal::Outage));
            }
            21 => {
                self.weather.budgeted = true;
                let delay = self.rng.between(1_000, 60_000);
                self.note(|| "evictions are refused".to_owned());
                self.after(delay, Event::Heal(Heal::Evictions));
            }
            _ => {
                for _ in 0..3 {
                    if let Some(node) = self.some_node() {
                        self.schedule_pod(&node);
                    }
                }
            }
        }
    }

    fn some_node(&mut self) -> Option<String> {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        self.rng.pick(&names).cloned()
    }

    fn some_skyhook(&mut self) -> Option<String> {
        let names: Vec<String> = self
            .api
            .list(SKYHOOKS)
            .map(|(name, _)| name.clone())
            .collect();
        self.rng.pick(&names).cloned()
    }

    fn lose_coordinator(&mut self) {
        let index = usize::from(self.rng.one_in(4));
        let back_in = self.rng.between(100, 20_000);
        self.kill_replica(index, back_in);
    }

    /// The other coordinator takes over, while the first does not know or is frozen in mid-write.
    fn hand_over(&mut self) {
        let old = self.replicas.iter().position(|r| r.leads).unwrap_or(0);
        let new = 1 - old;
        let late = self.rng.between(0, 10_000);
        let mut until = late;
        if self.rng.one_in(2)
            && let Some(replica) = self.replicas.get_mut(old)
        {
            replica.frozen = true;
            let life = replica.life;
            let away = self.rng.between(500, 40_000);
            until += away;
            self.note(|| format!("coordinator-{old} is frozen"));
            self.after(away, Event::Thaw { replica: old, life });
        }
        self.note(|| format!("coordinator-{new} leads; coordinator-{old} does not know"));
        self.lead(new);
        self.after(until, Event::Heal(Heal::Depose(old)));
    }

    fn trouble_node(&mut self) {
        let Some(node) = self.some_node() else { return };
        match self.rng.below(10) {
            0 => {
                let delay = self.rng.between(1_000, 60_000);
                self.set_unready(&node, true);
                self.after(delay, Event::Heal(Heal::Ready(node)));
            }
            1 => {
                let away = self.rng.between(2_000, 60_000);
                self.power_off(&node, away);
            }
            2 => self.replace(&node, true),
            3 => self.replace(&node, false),
            8 => self.swap(&node),
            4 if self.machines.len() > 1 => {
                self.machines.remove(&node);
                self.remove_node(&node);
            }
            5 if self.machines.len() < self.most_nodes() => self.add_node(),
            6 => {
                let tier = if self.rng.one_in(2) { "a" } else { "b" };
                let body = json!({ "metadata": { "labels": { "tier": tier } } });
                self.as_admin("PATCH", &format!("/api/v1/nodes/{node}"), body);
            }
            7 => {
                let value = if self.rng.one_in(2) {
                    json!("true")
                } else {
                    Value::Null
                };
                let body = json!({ "metadata": { "labels": { names::IGNORE: value } } });
                self.as_admin("PATCH", &format!("/api/v1/nodes/{node}"), body);
            }
            _ => {
                let back_in = self.rng.between(100, 150_000);
                self.kill_agent(&node, Some(back_in));
            }
        }
    }

    pub(super) fn set_unready(&mut self, node: &str, unready: bool) {
        if let Some(machine) = self.machines.get_mut(node) {
            machine.unready = unready;
            self.kubelet(node);
        }
    }

    fn remove_node(&mut self, node: &str) {
        self.as_admin("DELETE", &format!("/api/v1/nodes/{node}"), Value::Null);
        let pods: Vec<String> = self
            .api
            .list(PODS)
            .filter(|(_, pod)| pod["spec"]["nodeName"] == node)
            .map(|(key, _)| key.clone())
            .collect();
        for pod in pods {
            self.pod_gone(&pod);
        }
        let delay = self.rng.between(100, 5_000);
        self.after(delay, Event::Collect);
    }

    /// The Node is deleted and registered anew under its name, with another machine behind it or the same.
    fn replace(&mut self, node: &str, machine: bool) {
        self.checks.rewritten.insert(node.to_owned());
        if machine && let Some(held) = self.machines.get_mut(node) {
            let mut fresh = Machine::new(format!("{}-next", held.machine_id), String::new());
            fresh.life = held.life + 1;
            *held = fresh;
        } else {
            self.kill_agent(node, None);
        }
        self.note(|| format!("{node} is registered anew, another machine: {machine}"));
        self.remove_node(node);
        let gap = self.rng.between(1, 10_000);
        self.after(gap, Event::Heal(Heal::Register(node.to_owned())));
    }

    /// Another machine comes up under the Node object that is there.
    fn swap(&mut self, node: &str) {
        if self.api.get(NODES, node).is_none() {
            return;
        }
        self.checks.rewritten.insert(node.to_owned());
        self.kill_agent(node, None);
        let Some(held) = self.machines.get_mut(node) else {
            return;
        };
        let mut fresh = Machine::new(format!("{}-next", held.machine_id), held.node_uid.clone());
        fresh.life = held.life + 1;
        *held = fresh;
        self.note(|| format!("another machine takes {node} over"));
        self.kubelet(node);
        let delay = self.rng.between(50, 20_000);
        self.after(delay, Event::StartAgent(node.to_owned()));
    }

    fn change_skyhook(&mut self) {
        let Some(name) = self.some_skyhook() else {
            return;
        };
        let path = format!("{SKYHOOK_PATH}/{name}");
        match self.rng.below(10) {
            0 | 1 => self.toggle(&name, names::PAUSE),
            2 | 3 => self.toggle(&name, names::DISABLE),
            4 => {
                self.as_admin("DELETE", &path, Value::Null);
                if self.rng.one_in(2) {
                    let delay = self.rng.between(100, 40_000);
                    let body = self.manifest(&name);
                    self.after(delay, Event::Apply(Box::new(body)));
                }
            }
            5 => {
                let body = json!({ "spec": { "packages": { format!("{name}-one"): { "dependsOn": { format!("{name}-one"): "1.0.0" } } } } });
                self.as_admin("PATCH", &path, body);
            }
            6 if self.change_policy() => {}
            6 => {
                let budget = match self.rng.below(3) {
                    0 => Value::Null,
                    1 => json!({ "count": self.rng.between(0, 3), "percent": null }),
                    _ => json!({ "percent": self.rng.between(0, 100), "count": null }),
                };
                self.as_admin(
                    "PATCH",
                    &path,
                    json!({ "spec": { "interruptionBudget": budget } }),
                );
            }
            7 => {
                let body = json!({ "spec": { "priority": self.rng.between(1, 3) * 100 } });
                self.as_admin("PATCH", &path, body);
            }
            _ if Rng::new(self.rng.clone().below(u64::MAX)).one_in(3)
                && self.switch_uninstalls(&name) => {}
            _ => {
                let body = self.manifest(&name);
                self.api.edit(SKYHOOKS, &name, |object| {
                    object["spec"] = body["spec"].clone()
                });
                self.note(|| format!("world: spec of {name} is {}", body["spec"]));
            }
        }
    }

    fn toggle(&mut self, name: &str, annotation: &str) {
        let is_set = self
            .api
            .get(SKYHOOKS, name)
            .is_some_and(|s| s["metadata"]["annotations"][annotation] == "true");
        let value = if is_set { Value::Null } else { json!("true") };
        let body = json!({ "metadata": { "annotations": { annotation: value } } });
        self.as_admin("PATCH", &format!("{SKYHOOK_PATH}/{name}"), body);
    }

    /// What administrators and other tools do to nodes and leases.
    pub(super) fn meddle(&mut self) {
        let Some(node) = self.some_node() else { return };
        let name = self.some_skyhook().unwrap_or_else(|| NAMES[0].to_owned());
        let path = format!("/api/v1/nodes/{node}");
        self.checks.rewritten.insert(node.clone());
        match self.rng.below(8) {
            0 => {
                let body = json!({ "metadata": { "annotations": {
                    names::node_state(&name): null, names::status(&name): null,
                    names::cordon(&name): null, names::version(&name): null,
                }, "labels": { names::status(&name): null } } });
                self.as_admin("PATCH", &path, body);
            }
            1 => {
                let rerun = self.api.get(NODES, &node).and_then(|object| {
                    let states = object["metadata"]["annotations"]
                        [names::node_state(&name).as_str()]
                    .as_str()?;
                    Some(states.replace(
                        "\"stage\":\"config\",\"state\":\"complete\"",
                        "\"stage\":\"apply\",\"state\":\"in_progress\"",
                    ))
                });
                if let Some(states) = rerun {
                    if let Some(machine) = self.machines.get_mut(&node) {
                        machine.boot.is_told_by_people(&name);
                    }
                    let body = json!({ "metadata": { "annotations": { names::node_state(&name): states } } });
                    self.as_admin("PATCH", &path, body);
                }
            }
            2 => {
                let body =
                    json!({ "metadata": { "annotations": { names::node_state(&name): "{" } } });
                self.as_admin("PATCH", &path, body);
            }
            3 | 4 => self.cordon(&node),
            5 => {
                let body = json!({ "metadata": { "annotations": {
                    names::reason(&name): "[", names::stamp(&name): NONSENSE,
                } } });
                self.as_admin("PATCH", &path, body);
            }
            _ => {
                let path = format!("/apis/skyhook.nvidia.com/v1alpha1/interruptionleases/{node}");
                self.as_admin("DELETE", &path, Value::Null);
            }
        }
    }

    /// `kubectl cordon`, or uncordon; kubectl does nothing where there is nothing to do.
    fn cordon(&mut self, node: &str) {
        let Some(object) = self.api.get(NODES, node) else {
            return;
        };
        let is_cordoned = object["spec"]["unschedulable"] == true;
        let owned = !object["metadata"]["annotations"][names::CORDON_OWNERS].is_null();
        if owned && is_cordoned {
            self.checks.meddled.insert(node.to_owned());
        }
        if is_cordoned {
            self.checks.cordoned.remove(node);
        } else {
            self.checks.cordoned.insert(node.to_owned());
        }
        let value = if is_cordoned {
            Value::Null
        } else {
            json!(true)
        };
        let body = json!({ "spec": { "unschedulable": value } });
        self.as_admin("PATCH", &format!("/api/v1/nodes/{node}"), body);
    }

    pub(super) fn apply(&mut self, body: Value) {
        let now = self.now;
        self.checks.excuse("", now);
        self.as_admin("POST", SKYHOOK_PATH, body);
    }

    /// What ends a trouble.
    pub(super) fn heal(&mut self, what: Heal) {
        let now = self.now;
        self.checks.excuse("", now);
        match what {
            Heal::Outage => self.weather.outage = false,
            Heal::Evictions => self.weather.budgeted = false,
            Heal::Ready(node) => self.set_unready(&node, false),
            Heal::Depose(index) => {
                let other = self.replicas.get(1 - index).is_some_and(|r| r.leads);
                if let Some(replica) = self.replicas.get_mut(index).filter(|_| other) {
                    replica.leads = false;
                    self.note(|| format!("coordinator-{index} learns that it leads no more"));
                }
            }
            Heal::Register(node) => {
                // Registered meanwhile: the kubelet finds its Node and uses it.
                if self.api.get(NODES, &node).is_some() {
                    return;
                }
                if let Some(machine) = self.machines.remove(&node) {
                    self.register(&node, Some(machine));
                }
            }
        }
    }

    /// From now on nothing goes wrong. Labels, annotations and specs stay as people left them, but for pauses.
    pub(super) fn calm(&mut self) {
        let now = self.now;
        self.note(|| "from now on nothing goes wrong".to_owned());
        self.checks.excuse("", now);
        self.weather.calm_since = Some(now);
        self.weather.stormy = false;
        self.weather.kills = false;
        self.weather.steps_fail = false;
        let unready: Vec<String> = self
            .machines
            .iter()
            .filter(|(_, m)| m.unready)
            .map(|(node, _)| node.clone())
            .collect();
        for node in unready {
            self.set_unready(&node, false);
        }
        let skyhooks: Vec<String> = self
            .api
            .list(SKYHOOKS)
            .map(|(name, _)| name.clone())
            .collect();
        for name in skyhooks {
            let is_paused = self
                .api
                .get(SKYHOOKS, &name)
                .is_some_and(|s| s["metadata"]["annotations"][names::PAUSE] == "true");
            if is_paused && !self.rng.one_in(4) {
                self.toggle(&name, names::PAUSE);
            }
        }
        self.set_policy();
        self.take_foreign_taints_off();
        self.delete_bare_pods();
        self.forsake();
        self.after(5_000, Event::Look);
    }

    /// The garbage collector deletes what belonged to an object that is gone.
    pub(super) fn collect(&mut self) {
        for (owner, dependent, path) in [
            (
                NODES,
                LEASES,
                "/apis/skyhook.nvidia.com/v1alpha1/interruptionleases",
            ),
            (SKYHOOKS, ROLLOUTS, ROLLOUT_PATH),
        ] {
            let orphans: Vec<(String, Value)> = self
                .api
                .list(dependent)
                .filter(|(_, object)| {
                    let reference = &object["metadata"]["ownerReferences"][0];
                    let Some(name) = reference["name"].as_str() else {
                        return false;
                    };
                    self.api
                        .get(owner, name)
                        .is_none_or(|o| o["metadata"]["uid"] != reference["uid"])
                })
                .map(|(key, object)| (key.clone(), object["metadata"]["uid"].clone()))
                .collect();
            for (key, uid) in orphans {
                let name = key.replace('/', &format!("/{dependent}/"));
                let body = json!({ "preconditions": { "uid": uid } });
                self.as_admin("DELETE", &format!("{path}/{name}"), body);
            }
        }
    }

    pub(super) fn evict(&mut self, request: &Request) -> Response {
        let node = self.node_of(request);
        if self.weather.budgeted || self.is(&node, Affliction::Undrainable) {
            return Response::budget_refuses();
        }
        let mut parts = request
            .path
            .split('/')
            .skip_while(|part| *part != "namespaces");
        let (namespace, name) = (
            parts.nth(1).unwrap_or_default(),
            parts.nth(1).unwrap_or_default(),
        );
        let key = format!("{namespace}/{name}");
        let Some(pod) = self.api.get(PODS, &key) else {
            return Response::failure(404, "NotFound", &key);
        };
        let wanted = &request.body["deleteOptions"]["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != pod["metadata"]["uid"] {
            return Response::failure(409, "Conflict", "another pod");
        }
        let at = self.api.wall().to_string();
        self.api.edit(PODS, &key, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!(at)
        });
        let delay = self.rng.between(50, 12_000);
        self.after(delay, Event::PodGone(key));
        let body =
            json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success" });
        Response { code: 201, body }
    }
}
