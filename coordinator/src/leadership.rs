//! Leader election over a `coordination.k8s.io/v1` Lease. It only saves work: the budgets hold with any number of
//! replicas that believe they lead.
//!
//! A leader that cannot renew its Lease stops leading after [`RENEW_DEADLINE`]. Another replica takes over when it has
//! not seen the Lease change for 15 s. Each replica measures both times on its own monotonic clock, so that a wrong
//! wall clock does no harm.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use skyhook_crds::names;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use candidate::Candidate;

mod candidate;

/// Name of the Lease.
const NAME: &str = "skyhook-coordinator";
/// How long a leader that cannot renew goes on leading: less than others wait before they take over.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often the Lease is renewed, or looked at.
const RETRY: Duration = Duration::from_secs(2);
/// How long the API server may take to answer; a connection that died must not use up the deadline.
const PATIENCE: Duration = Duration::from_secs(4);

/// Reads the wall clock.
pub type Clock = fn() -> Timestamp;

/// Whether this replica leads, for as long as the value lives.
#[derive(Debug)]
pub struct Leadership {
    /// Until when it leads if the Lease is not renewed before.
    until: watch::Receiver<Option<Instant>>,
    /// The value that [`changed`](Self::changed) reported last.
    told: bool,
    election: Option<(watch::Sender<bool>, JoinHandle<()>)>,
}

impl Leadership {
    /// A replica that always leads.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            until: watch::channel(None).1,
            told: true,
            election: None,
        }
    }

    /// Stands for election as `identity`. `clock` gives the times that are written into the Lease.
    #[must_use]
    pub fn stand(client: Client, namespace: &str, identity: &str, clock: Clock) -> Self {
        let (leads, until) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let elector = Elector {
            leases: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            candidate: Candidate::new(identity),
            held: None,
            started: Instant::now(),
            clock,
        };
        Self {
            until,
            told: false,
            election: Some((stop, tokio::spawn(elector.run(leads, stopped)))),
        }
    }

    /// True while this replica leads. A process that was suspended and goes on notices at once that its time is over.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.election.is_none()
            || self
                .until
                .borrow()
                .is_some_and(|until| Instant::now() < until)
    }

    /// Waits until [`leads`](Self::leads) changes, for ever if it cannot change. Fails if the task of the election has
    /// ended, because the value would never change again.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        if self.election.is_none() {
            return std::future::pending().await;
        }
        loop {
            let leads = self.leads();
            if leads != self.told {
                self.told = leads;
                return Ok(());
            }
            let until = *self.until.borrow_and_update();
            let runs_out = async {
                match until.filter(|_| leads) {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.until.changed() => if changed.is_err() {
                    anyhow::bail!("leader election ended by itself");
                },
                () = runs_out => {}
            }
        }
    }

    /// Gives the Lease up, so that another replica need not wait for it to run out.
    pub async fn resign(self) {
        let Some((stop, task)) = self.election else {
            return;
        };
        stop.send_replace(true);
        if let Err(error) = task.await {
            tracing::warn!(%error, "leader election ended by itself");
        }
    }
}

/// The part that speaks to the API server.
struct Elector {
    leases: Api<Lease>,
    identity: String,
    candidate: Candidate,
    /// The Lease as this replica last wrote it. It can be renewed without a GET.
    held: Option<Lease>,
    started: Instant,
    clock: Clock,
}

impl Elector {
    async fn run(mut self, leads: watch::Sender<Option<Instant>>, mut stop: watch::Receiver<bool>) {
        let pause = RETRY + spread(&self.identity);
        loop {
            let asked = Instant::now();
            match timeout(PATIENCE, self.attempt()).await {
                Ok(Ok(true)) => drop(leads.send_replace(Some(asked + RENEW_DEADLINE))),
                Ok(Ok(false)) => drop(leads.send_replace(None)),
                Ok(Err(error)) => self.failed(&error.to_string()),
                Err(_) => self.failed("the API server does not answer"),
            }
            let pause = if self.held.is_some() { RETRY } else { pause };
            tokio::select! {
                _ = stop.changed() => break,
                () = sleep(pause) => {}
            }
        }
        match timeout(PATIENCE, self.resign()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "leader election: the Lease was not given up; it runs out by itself");
            }
            Err(_) => tracing::warn!(
                "leader election: the API server does not answer; the Lease runs out by itself"
            ),
        }
    }

    /// The result of the last write is not known, so the Lease is read before the next write.
    fn failed(&mut self, error: &str) {
        self.held = None;
        tracing::warn!(
            error,
            "leader election: the Lease could not be read or renewed; it is tried again"
        );
    }

    /// Reads the Lease if necessary, and writes it if this replica may. Returns true if this replica holds the Lease
    /// now.
    async fn attempt(&mut self) -> kube::Result<bool> {
        if let Some(held) = self.held.take()
            && self.bid(Some(held)).await?
        {
            return Ok(true);
        }
        // This replica does not hold the Lease, or somebody else has written to it, for example a label.
        let there = self.leases.get_opt(NAME).await?;
        self.bid(there).await
    }

    async fn bid(&mut self, there: Option<Lease>) -> kube::Result<bool> {
        match &there {
            Some(lease) => self.sees(lease),
            None => self.candidate.sees_none(),
        }
        let Some(bid) = self.candidate.bid(self.started.elapsed(), (self.clock)()) else {
            return Ok(false);
        };
        match self.write(there, bid).await {
            Ok(written) => {
                self.sees(&written);
                self.held = Some(written);
                Ok(true)
            }
            // Another writer was faster.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn sees(&mut self, lease: &Lease) {
        let spec = lease.spec.clone().unwrap_or_default();
        self.candidate.sees(&spec, self.started.elapsed());
    }

    /// Writes the Lease over the version that was read.
    async fn write(&self, there: Option<Lease>, spec: LeaseSpec) -> kube::Result<Lease> {
        let params = PostParams {
            field_manager: Some(names::COORDINATOR.to_owned()),
            ..PostParams::default()
        };
        let spec = Some(spec);
        match there {
            Some(there) => {
                let lease = Lease { spec, ..there };
                self.leases.replace(NAME, &params, &lease).await
            }
            None => {
                let metadata = ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                };
                self.leases.create(&params, &Lease { metadata, spec }).await
            }
        }
    }

    async fn resign(&mut self) -> kube::Result<()> {
        let spec = self.candidate.resignation((self.clock)());
        let Some((held, spec)) = self.held.take().zip(spec) else {
            return Ok(());
        };
        self.write(Some(held), spec).await.map(drop)
    }
}

/// An additional pause of up to a fifth. It depends on the identity, so that the candidates do not ask all at once.
fn spread(identity: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    let part = u32::try_from(hasher.finish() % 256).unwrap_or_default();
    RETRY / (5 * 256) * part
}

#[cfg(test)]
mod tests;
