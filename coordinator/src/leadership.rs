//! Leader election over a `coordination.k8s.io/v1` Lease. It only saves work: the cap on interruptions holds with any
//! number of replicas that believe they lead.

use anyhow::Context as _;
use kube::Client;
use kube_lease_manager::LeaseManagerBuilder;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::config::Settings;

/// Name of the Lease.
const NAME: &str = "skyhook-coordinator";
/// How long a leader that says nothing is believed to lead, in seconds.
const DURATION: u64 = 6;
/// How long before that it renews, in seconds.
const GRACE: u64 = 3;

/// Whether this replica leads, for as long as the value lives.
#[derive(Debug)]
pub struct Leadership {
    leads: watch::Receiver<bool>,
    task: Option<JoinHandle<kube_lease_manager::Result<kube_lease_manager::LeaseManager>>>,
}

impl Leadership {
    /// One that always leads.
    #[must_use]
    pub fn alone() -> Self {
        let (_, leads) = watch::channel(true);
        Self { leads, task: None }
    }

    /// Stands for election.
    pub async fn stand(client: Client, settings: &Settings) -> anyhow::Result<Self> {
        let manager = LeaseManagerBuilder::new(client, NAME)
            .with_namespace(&settings.namespace)
            .with_identity(&settings.identity)
            .with_duration(DURATION)
            .with_grace(GRACE)
            .build()
            .await
            .with_context(|| {
                format!(
                    "prepare Lease {}/{NAME} for leader election",
                    settings.namespace
                )
            })?;
        let (leads, task) = manager.watch().await;
        Ok(Self {
            leads,
            task: Some(task),
        })
    }

    /// Whether this replica leads now.
    #[must_use]
    pub fn leads(&self) -> bool {
        *self.leads.borrow()
    }

    /// Waits until that changes; for ever when it cannot. Fails when the election itself is over: what this replica
    /// believes of it would never change again.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        match self.leads.changed().await {
            Ok(()) => Ok(()),
            Err(_) if self.task.is_none() => std::future::pending().await,
            Err(_) => anyhow::bail!("leader election ended by itself"),
        }
    }

    /// Gives the Lease up, so that another replica need not wait for it to run out.
    pub async fn resign(self) {
        drop(self.leads);
        if let Some(task) = self.task {
            match task.await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "leader election: the Lease was not given up; it runs out by itself")
                }
                Err(error) => tracing::warn!(%error, "leader election ended by itself"),
            }
        }
    }
}
