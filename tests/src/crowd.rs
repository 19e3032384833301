//! Thousands of agents at little cost: their real cores on faked hosts, and one watch on all leases that tells each agent of
//! its own. Real agents have a watch each; what those cost the API server is not measured here.

#![expect(
    clippy::disallowed_methods,
    reason = "when the first grant came is what is measured"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kube::api::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Client, ResourceExt as _};
use skyhook_crds::InterruptionLease;
use skyhook_crds::lease::Phase;
use skyhook_crds::lease::protocol;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bench::Fixture;
use crate::coreagent::{CoreAgent, FakeHost, HostScript};

/// The label that says in which of the [`ZONES`] a node is.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// Values of that label.
pub const ZONES: [&str; 4] = ["zone-a", "zone-b", "zone-c", "zone-d"];

/// Nodes that are registered at once.
const AT_ONCE: usize = 32;

type Told = mpsc::UnboundedSender<Option<InterruptionLease>>;

/// What the watch has seen.
#[derive(Debug, Default)]
struct Seen {
    first_grant: Option<Instant>,
    erroring: BTreeSet<String>,
}

/// The agents of many nodes. They end when dropped.
#[derive(Debug)]
pub struct Crowd {
    _agents: Vec<CoreAgent>,
    hosts: Vec<FakeHost>,
    seen: Arc<Mutex<Seen>>,
    watch: JoinHandle<()>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Crowd {
    /// Registers so many nodes, with names as a cloud gives them, in the [`ZONES`] by turns, and starts their agents.
    pub async fn start(fixture: &Fixture, nodes: usize) -> anyhow::Result<Self> {
        let registered: Vec<(String, String)> = stream::iter(0..nodes)
            .map(|n| async move {
                let (name, zone) = (name(n), ZONES[n % ZONES.len()]);
                let uid = fixture.ready_node(&name, &[(ZONE, zone)]).await?;
                anyhow::Ok((name, uid))
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        let (mut agents, mut hosts) = (Vec::new(), Vec::new());
        let mut told = BTreeMap::new();
        for (name, uid) in registered {
            let host = FakeHost::new(&name, HostScript::default());
            let (sender, inbox) = mpsc::unbounded_channel();
            let leases = stream::unfold(inbox, |mut inbox| async move {
                inbox.recv().await.map(|seen| (seen, inbox))
            });
            let client = fixture.client.clone();
            agents.push(CoreAgent::start_fed(
                client,
                &name,
                &uid,
                &host,
                leases.boxed(),
            ));
            hosts.push(host);
            told.insert(name, sender);
        }
        let seen = Arc::default();
        let watch = tokio::spawn(follow(fixture.client.clone(), told, Arc::clone(&seen)));
        Ok(Self {
            _agents: agents,
            hosts,
            seen,
            watch,
        })
    }

    /// When the first lease was granted.
    #[must_use]
    pub fn first_grant(&self) -> Option<Instant> {
        locked(&self.seen).first_grant
    }

    /// Leases that say that their node fails.
    #[must_use]
    pub fn erroring(&self) -> usize {
        locked(&self.seen).erroring.len()
    }

    /// Changes how all hosts behave.
    pub fn change(&self, change: impl Fn(&mut HostScript)) {
        for host in &self.hosts {
            host.change(&change);
        }
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(client: Client, told: BTreeMap<String, Told>, seen: Arc<Mutex<Seen>>) {
    let leases: Api<InterruptionLease> = Api::all(client);
    let mut events = watcher::watcher(leases, watcher::Config::default())
        .default_backoff()
        .boxed();
    while let Some(event) = events.next().await {
        let (node, lease) = match event {
            Ok(Event::Apply(lease) | Event::InitApply(lease)) => (lease.name_any(), Some(lease)),
            Ok(Event::Delete(lease)) => (lease.name_any(), None),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                eprintln!("watch of the crowd: {error}");
                continue;
            }
        };
        {
            let mut seen = locked(&seen);
            if lease.as_ref().is_some_and(|l| l.spec.granted.is_some()) {
                seen.first_grant.get_or_insert_with(Instant::now);
            }
            let fails = |lease: &InterruptionLease| protocol::phase(lease) == Some(Phase::Erroring);
            if lease.as_ref().is_some_and(fails) {
                seen.erroring.insert(node.clone());
            } else {
                seen.erroring.remove(&node);
            }
        }
        if let Some(told) = told.get(&node) {
            let _ended = told.send(lease);
        }
    }
}

fn name(n: usize) -> String {
    format!(
        "ip-10-0-{:03}-{:03}.eu-central-1.compute.internal",
        n / 250,
        n % 250
    )
}
