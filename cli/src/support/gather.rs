//! Asks the cluster for everything. What one question does not get, the others may get.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, LimitRange, Node, Pod};
use kube::api::{Api, ListParams, LogParams};
use kube::core::ApiResource;
use kube::core::DynamicObject;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;
use skyhook_crds::names::REVISION_OF;
use skyhook_crds::{DeploymentPolicy, InterruptionLease, RolloutState, Skyhook};

use super::{Gathered, nodes};
use crate::agents;
use crate::args::SupportArgs;
use crate::commands::OURS;
use crate::explain::{self, Facts};
use crate::session::{Session, is_missing, list, said};

/// How many agents are asked when no node is named.
const AGENTS: usize = 20;
/// How many questions are asked at the same time.
const AT_ONCE: usize = 8;
/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes of one log.
const LOG_BYTES: i64 = 8 << 20;
/// Labels of the pods of the installation, and of those that are the coordinator's.
const INSTALLATION: &str = "app.kubernetes.io/name=skyhook-operator";
const COORDINATOR: &str = "control-plane=controller-manager";

/// Asks for everything. Fails only when the cluster cannot be reached.
pub(super) async fn all(session: &Session<'_>, args: &SupportArgs) -> Result<Gathered> {
    let namespace = session.global.namespace.clone();
    let client = session.client().await?;
    let mut asking = Asking {
        gathered: Gathered::default(),
        client,
        namespace,
    };
    asking.versions().await?;
    asking.objects().await;
    asking.events().await;
    let pods = agents::pods(&asking.client, &asking.namespace).await;
    let pods = asking.had("the agents' pods", pods).unwrap_or_default();
    let nodes = asking.nodes().await;
    let leases: Vec<InterruptionLease> = asking.typed("interruptionleases");
    let explained = Facts::new(
        &asking.namespace,
        asking.typed::<Skyhook>("skyhooks"),
        leases.clone(),
        nodes.clone(),
    );
    let texts = &mut asking.gathered.texts;
    texts.insert("explain.txt".to_owned(), explain::everything(&explained));
    asking.coordinators(args.tail).await;
    let chosen = nodes::chosen(&nodes, &leases, &pods, &args.node, AGENTS)?;
    if chosen.len() < nodes.len() && args.node.is_empty() {
        asking.gathered.missing.push(format!(
            "agents of {} more nodes: only {AGENTS} are asked unless --node names others",
            nodes.len() - chosen.len()
        ));
    }
    asking.agents(&pods, &chosen, args).await;
    Ok(asking.gathered)
}

struct Asking {
    gathered: Gathered,
    client: Client,
    namespace: String,
}

impl Asking {
    /// The value, or a note that it could not be had.
    fn had<T>(&mut self, what: &str, answer: Result<T>) -> Option<T> {
        match answer {
            Ok(value) => Some(value),
            Err(error) => {
                self.gathered.missing.push(format!("{what}: {error:#}"));
                None
            }
        }
    }

    fn keep(&mut self, kind: &'static str, objects: Vec<impl Serialize>) {
        let objects = objects.into_iter().map(serde_json::to_value);
        let objects: Result<Vec<Value>, _> = objects.collect();
        if let Some(objects) = self.had(kind, objects.map_err(Into::into)) {
            self.gathered.objects.insert(kind, objects);
        }
    }

    /// The objects of a kind that were gathered already. Those that cannot be read are left out.
    fn typed<K: serde::de::DeserializeOwned>(&self, kind: &str) -> Vec<K> {
        let objects = self.gathered.objects.get(kind).into_iter().flatten();
        objects
            .filter_map(|object| serde_json::from_value(object.clone()).ok())
            .collect()
    }

    async fn versions(&mut self) -> Result<()> {
        let server = self.client.apiserver_version().await.map_err(said)?;
        let text = format!(
            "kubectl-skyhook {OURS}\nkube-apiserver {}\n",
            server.git_version
        );
        self.gathered.texts.insert("versions.txt".to_owned(), text);
        Ok(())
    }

    /// Our own objects with all of their fields, also those that this version does not know.
    async fn ours<K: Resource<DynamicType = ()>>(&mut self, kind: &'static str) {
        let resource = ApiResource::erase::<K>(&());
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let objects = match api.list(&ListParams::default().limit(1)).await {
            Err(error) if is_missing(&error) => {
                Err(anyhow::anyhow!("the cluster does not know this kind"))
            }
            Ok(_) | Err(_) => list(&api, &ListParams::default()).await,
        };
        if let Some(objects) = self.had(kind, objects) {
            self.keep(kind, objects);
        }
    }

    async fn of_namespace<K>(&mut self, kind: &'static str, labels: &str)
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + Serialize
            + std::fmt::Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let objects = list(&api, &ListParams::default().labels(labels)).await;
        if let Some(objects) = self.had(kind, objects) {
            self.keep(kind, objects);
        }
    }

    async fn objects(&mut self) {
        self.ours::<Skyhook>("skyhooks").await;
        self.ours::<DeploymentPolicy>("deploymentpolicies").await;
        self.ours::<RolloutState>("rolloutstates").await;
        self.ours::<InterruptionLease>("interruptionleases").await;
        self.of_namespace::<ControllerRevision>("controllerrevisions", REVISION_OF)
            .await;
        self.of_namespace::<Deployment>("deployments", INSTALLATION)
            .await;
        self.of_namespace::<DaemonSet>("daemonsets", INSTALLATION)
            .await;
        self.of_namespace::<Pod>("pods", INSTALLATION).await;
        self.of_namespace::<Lease>("leases", "").await;
        self.of_namespace::<LimitRange>("limitranges", "").await;
    }

    /// Events about Skyhooks, those of ours about Nodes, and those of the namespace.
    async fn events(&mut self) {
        let everywhere: Api<Event> = Api::all(self.client.clone());
        let here: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut all = Vec::new();
        for (what, api, fields) in [
            (
                "events of Skyhooks",
                &everywhere,
                "involvedObject.kind=Skyhook",
            ),
            ("events of Nodes", &everywhere, "involvedObject.kind=Node"),
            ("events of the namespace", &here, ""),
        ] {
            let found = list(api, &ListParams::default().fields(fields)).await;
            let found = self.had(what, found).unwrap_or_default();
            all.extend(found.into_iter().filter(|event| {
                event.involved_object.kind.as_deref() != Some("Node") || is_ours(event)
            }));
        }
        let mut seen = BTreeSet::new();
        all.retain(|event| seen.insert(event.uid()));
        self.keep("events", all);
    }

    async fn nodes(&mut self) -> Vec<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        let found = list(&api, &ListParams::default()).await;
        let found = self.had("nodes", found).unwrap_or_default();
        let selecting = ["skyhooks", "deploymentpolicies"];
        let selecting = selecting
            .iter()
            .filter_map(|kind| self.gathered.objects.get(kind));
        let keys: BTreeSet<String> = selecting.flat_map(|all| nodes::selected_by(all)).collect();
        let reduced: Vec<Value> = found
            .iter()
            .map(|node| nodes::reduced(node, &keys))
            .collect();
        self.gathered.objects.insert("nodes", reduced);
        found
    }

    async fn coordinators(&mut self, tail: u32) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let found = list(&api, &ListParams::default().labels(COORDINATOR)).await;
        let pods = self
            .had("the coordinator's pods", found)
            .unwrap_or_default();
        for pod in &pods {
            let name = format!("logs/coordinator/{}", pod.name_any());
            let logs = logs(&api, pod, &name, tail).await;
            self.add(logs);
        }
    }

    async fn agents(&mut self, pods: &[Pod], nodes: &[String], args: &SupportArgs) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let asked = nodes.iter().map(|node| {
            let pod = agents::on_node(pods, node, &self.namespace);
            let mut here = pods.iter().filter(|pod| {
                let spec = pod.spec.as_ref();
                spec.and_then(|spec| spec.node_name.as_ref()) == Some(node)
            });
            let shown = pod.as_ref().ok();
            let object = here.clone().find(|pod| shown == Some(&pod.name_any()));
            let object = object.or_else(|| here.next());
            agent(&api, node, object, pod, args)
        });
        let asked: Vec<_> = asked.collect();
        let answers: Vec<Answers> = futures::stream::iter(asked)
            .buffered(AT_ONCE)
            .collect()
            .await;
        answers.into_iter().for_each(|answers| self.add(answers));
    }

    fn add(&mut self, answers: Answers) {
        for (name, answer) in answers {
            if let Some(text) = self.had(&name, answer) {
                self.gathered.texts.insert(name, text);
            }
        }
    }
}

/// Texts, or why they could not be had, by the name of their file.
type Answers = Vec<(String, Result<String>)>;

/// True for an event that the coordinator or an agent has written.
fn is_ours(event: &Event) -> bool {
    let source = event.source.as_ref();
    let source = source.and_then(|source| source.component.as_deref());
    let reporter = event.reporting_component.as_deref();
    let mut all = source.into_iter().chain(reporter);
    all.any(|component| component.contains("skyhook"))
}

/// The log of a pod's containers, and that of their run before the last restart.
async fn logs(api: &Api<Pod>, pod: &Pod, name: &str, tail: u32) -> Answers {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let has_restarted = containers
        .into_iter()
        .flatten()
        .any(|one| one.restart_count > 0);
    let mut answers = vec![(format!("{name}.log"), log(api, pod, tail, false).await)];
    if has_restarted {
        answers.push((
            format!("{name}.previous.log"),
            log(api, pod, tail, true).await,
        ));
    }
    answers
}

async fn log(api: &Api<Pod>, pod: &Pod, tail: u32, previous: bool) -> Result<String> {
    let name = pod.name_any();
    let params = LogParams {
        tail_lines: Some(tail.into()),
        limit_bytes: Some(LOG_BYTES),
        previous,
        ..LogParams::default()
    };
    let answer = in_time(async { api.logs(&name, &params).await.map_err(said) });
    answer.await.with_context(|| format!("pod {name}"))
}

async fn in_time<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(answer) => answer,
        Err(_) => bail!("no answer within {} s", PATIENCE.as_secs()),
    }
}

/// What is asked of the agent on a node. `object` is its pod, and `pod` the name of that if it runs.
async fn agent(
    api: &Api<Pod>,
    node: &str,
    object: Option<&Pod>,
    pod: Result<String, String>,
    args: &SupportArgs,
) -> Answers {
    let mut answers = Vec::new();
    if let Some(object) = object {
        answers = logs(api, object, &format!("logs/agents/{node}"), args.tail).await;
    }
    let (host, steps) = (
        format!("hosts/{node}.json"),
        format!("hosts/{node}.steps.log"),
    );
    match pod {
        Err(problem) if args.hosts || object.is_none() => {
            answers.push((format!("agent of {node}"), Err(anyhow::anyhow!(problem))));
        }
        Ok(pod) if args.hosts => {
            let tail = format!("--tail={}", args.tail);
            for (name, words) in [
                (host, vec!["show".to_owned(), "--output=json".to_owned()]),
                (steps, vec!["logs".to_owned(), tail]),
            ] {
                let answer = in_time(agents::output(api, &pod, &words)).await;
                answers.push((name, answer));
            }
        }
        Ok(_) | Err(_) => {}
    }
    answers
}
