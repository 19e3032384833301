//! What an agent does around its core: which lease to accept, when to begin, what to report. Decided from the lease as
//! last seen and the journal alone, one act at a time; the world carries the acts out and may kill the agent at each.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::lease::{FORMAT, InterruptionLease, InterruptionLeaseStatus, Phase, StopReason};
use skyhook_crds::revision::RevisionData;
use skyhook_nodeagent::machine::LeaseView;
use skyhook_nodeagent::report::{self, HostFacts};

use super::{Core, Event, Report};

/// What a host keeps when its agent dies.
#[derive(Clone, Debug)]
pub struct Journal<C: Core> {
    /// By Skyhook.
    pub known: BTreeMap<String, C::Known>,
    pub current: Option<Current<C>>,
    /// Numbers of steps are never used twice on a host.
    pub next_step: u64,
    /// The last boot that Skyhook did not ask for, as the agent noted it when it started.
    pub epoch: String,
}

impl<C: Core> Default for Journal<C> {
    fn default() -> Self {
        Self {
            known: BTreeMap::new(),
            current: None,
            next_step: 1,
            epoch: String::new(),
        }
    }
}

/// The lease that is worked on.
#[derive(Clone, Debug)]
pub struct Current<C> {
    pub lease: String,
    pub skyhook: String,
    pub core: C,
}

/// The running agent: everything here is lost when it dies.
#[derive(Clone, Debug, Default)]
pub struct Agent {
    /// The lease with the node's name, as seen last.
    pub lease: Option<Box<InterruptionLease>>,
    /// Set once the watch has said whether there is one.
    pub synced: bool,
    pub revision: Option<(String, RevisionData)>,
    /// A request is under way.
    pub waits: bool,
    /// After a failure nothing is written over this version before this time, in milliseconds.
    pub refused: Option<(String, u64)>,
    /// What the core was told last, of which lease.
    fed: Option<(String, LeaseView)>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Tell the core.
    Feed(Event),
    /// The lease is over: keep what is on the host.
    Archive,
    /// Begin with the revision that was read.
    Begin,
    GetRevision(String),
    /// Over the version of the lease that was seen.
    Report(Box<InterruptionLeaseStatus>),
}

/// Identity of the host.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    pub node_uid: &'a str,
    pub machine_id: &'a str,
    pub boot_id: &'a str,
    /// The last boot that Skyhook did not ask for.
    pub epoch: &'a str,
}

impl Agent {
    /// Notes that the core was told.
    pub fn has_fed<C: Core>(&mut self, event: &Event, current: &Current<C>) {
        if let Event::LeaseSeen(seen) = event {
            self.fed = Some((current.lease.clone(), seen.clone()));
        }
    }

    /// What the core was told has to be said again.
    pub fn forget(&mut self) {
        self.fed = None;
    }

    /// When a refused write may be tried again.
    #[must_use]
    pub fn retry_at(&self) -> Option<u64> {
        self.refused.as_ref().map(|(_, at)| *at)
    }

    /// What to do next; `None` while there is nothing, or something is waited for.
    #[must_use]
    pub fn next<C: Core>(&self, journal: &Journal<C>, host: Host<'_>, now: u64) -> Option<Act> {
        if !self.synced {
            return None;
        }
        let lease = self.lease.as_deref();
        let uid = lease.and_then(kube::ResourceExt::uid);
        if let Some(current) = &journal.current
            && uid.as_deref() != Some(&current.lease)
        {
            return self.leave(current);
        }
        let lease = lease?;
        let duty = protocol::agent_duty(lease, host.node_uid);
        match duty {
            AgentDuty::Ignore(_) => None,
            AgentDuty::Accept => self.report(lease, &Report::accepted(), host, now),
            AgentDuty::Work | AgentDuty::Hold | AgentDuty::Stop(_) | AgentDuty::Finished => {
                self.carry_on(journal, lease, duty, host, now)
            }
        }
    }

    /// The lease is gone, or another one is there: what runs ends first.
    fn leave<C: Core>(&self, current: &Current<C>) -> Option<Act> {
        let seen = LeaseView {
            stop: Some(StopReason::Deleted),
            ..LeaseView::default()
        };
        let told = (current.lease.clone(), seen.clone());
        if self.fed.as_ref() != Some(&told) {
            return Some(Act::Feed(Event::LeaseSeen(seen)));
        }
        (!current.core.is_busy()).then_some(Act::Archive)
    }

    fn carry_on<C: Core>(
        &self,
        journal: &Journal<C>,
        lease: &InterruptionLease,
        duty: AgentDuty,
        host: Host<'_>,
        now: u64,
    ) -> Option<Act> {
        let Some(current) = &journal.current else {
            if duty == AgentDuty::Finished {
                let facts = HostFacts {
                    boot_id: host.boot_id.to_owned(),
                    epoch: host.epoch.to_owned(),
                    machine_id: host.machine_id.to_owned(),
                    agent_version: String::new(),
                    ..HostFacts::default()
                };
                let wanted = report::finished(lease.status.as_ref()?, &facts)?;
                let waits = self.waits || self.is_refused(lease, now);
                return (!waits).then(|| Act::Report(Box::new(wanted)));
            }
            return match &self.revision {
                Some((name, _)) if *name == lease.spec.revision => Some(Act::Begin),
                Some(_) | None if self.waits || self.is_refused(lease, now) => None,
                Some(_) | None => Some(Act::GetRevision(lease.spec.revision.clone())),
            };
        };
        let seen = LeaseView::of(lease, host.node_uid);
        let told = (current.lease.clone(), seen.clone());
        if self.fed.as_ref() != Some(&told) {
            return Some(Act::Feed(Event::LeaseSeen(seen)));
        }
        self.report(lease, &current.core.report(), host, now)
    }

    fn report(
        &self,
        lease: &InterruptionLease,
        report: &Report,
        host: Host<'_>,
        now: u64,
    ) -> Option<Act> {
        if self.waits || self.is_refused(lease, now) {
            return None;
        }
        let there = lease.status.clone().unwrap_or_default();
        let mut wanted = InterruptionLeaseStatus {
            format: FORMAT,
            phase: report.phase,
            boot_id: host.boot_id.to_owned(),
            epoch: host.epoch.to_owned(),
            machine_id: host.machine_id.to_owned(),
            ..there.clone()
        };
        if let Some(packages) = &report.packages {
            wanted.needs_drain = report.needs_drain;
            wanted.begun = report.begun;
            wanted.packages.clone_from(packages);
        }
        if wanted == there {
            return None;
        }
        wanted.observed_generation = lease.metadata.generation.unwrap_or_default();
        Some(Act::Report(Box::new(wanted)))
    }

    fn is_refused(&self, lease: &InterruptionLease, now: u64) -> bool {
        self.refused.as_ref().is_some_and(|(version, at)| {
            lease.resource_version().as_ref() == Some(version) && *at > now
        })
    }
}

impl Report {
    fn accepted() -> Self {
        Self {
            phase: Some(Phase::Accepted),
            ..Self::default()
        }
    }
}
