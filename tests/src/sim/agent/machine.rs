//! The core that ships: `skyhook_nodeagent::machine`.

use std::collections::BTreeMap;

use skyhook_crds::installed::PackageStates;
use skyhook_crds::revision::RevisionData;
use skyhook_nodeagent::machine::progress::{StepPlan, states};
use skyhook_nodeagent::machine::{
    self, Effect, Entries, Entry, Half, Input, Outcome, Progress, Wanted, reconcile,
};
use skyhook_nodeagent::report::{self, HostFacts};

use super::{Action, Core, Event, Report, Start, Step};

/// The progress of one lease.
#[derive(Clone, Debug)]
pub struct Machine(Progress);

impl Machine {
    fn at(&self, key: String, id: u64, half: Half, index: usize) -> Step {
        let entry = self.0.entries.get(&key);
        Step {
            id,
            stage: entry.map_or(skyhook_crds::Stage::Apply, |e| e.stage),
            check: half == Half::Check,
            index,
            content: entry
                .and_then(|e| e.cycle.as_ref())
                .map(|cycle| format!("{} {:?}", cycle.identity, cycle.content))
                .unwrap_or_default(),
            disruptive: entry.is_some_and(|e| e.interrupt().is_some()),
            key,
        }
    }

    fn action(&self, effect: Effect) -> Option<Action> {
        Some(match effect {
            Effect::PullImage { key } => Action::PullImage { key },
            Effect::PrepareStage { key, .. } => Action::PrepareStage { key },
            Effect::RunStep {
                key,
                id,
                half,
                index,
            } => Action::RunStep(self.at(key, id, half, index)),
            Effect::AdoptStep {
                key,
                id,
                half,
                index,
            } => Action::AdoptStep(self.at(key, id, half, index)),
            Effect::EndStep { id } => Action::EndStep { id },
            Effect::WriteRunning { resource_version } => Action::WriteRunning { resource_version },
            Effect::LookAtLease => Action::LookAtLease,
            Effect::PrepareInterrupt { .. } => Action::PrepareInterrupt,
            // What was prepared meanwhile comes to a core that does not wait for it. Nodes here have room for everything.
            Effect::CallOffInterrupt | Effect::LookAtNode => return None,
            Effect::Interrupt { interrupt, .. } => Action::Interrupt(interrupt),
        })
    }
}

impl Core for Machine {
    type Known = Entries;
    const REAPPLIES: bool = true;
    const UNINSTALLS: bool = true;

    fn reapply(&mut self, now: i64) {
        machine::reapply(&mut self.0, now);
    }

    fn begin(start: &Start<'_, Entries>) -> Self {
        let spec = &start.lease.spec;
        let undone = start
            .epoch
            .is_some_and(|epoch| reconcile::is_undone(start.lease, epoch));
        let (entries, _) = if undone {
            (Entries::new(), reconcile::Source::Nothing)
        } else {
            reconcile::of_lease(start.known, start.lease, start.machine_id, "")
        };
        Self(Progress {
            lease: start.lease.metadata.uid.clone().unwrap_or_default(),
            skyhook: spec.skyhook.clone(),
            revision: spec.revision.clone(),
            serial: start.data.serial,
            wanted: Wanted::of_revision(start.data),
            left_behind: start.data.left_behind.clone(),
            entries,
            next_step: start.next_step,
            begun: Some(false),
            boot_id: start.boot_id.to_owned(),
            ..Progress::default()
        })
    }

    fn step(self, now: i64, event: Event) -> (Self, Vec<Action>) {
        let input = Input {
            now,
            event: told(event),
        };
        let (mut progress, effects) = machine::step(self.0, input);
        report::mark_since(&mut progress, now);
        let after = Self(progress);
        let actions = effects
            .into_iter()
            .filter_map(|e| after.action(e))
            .collect();
        (after, actions)
    }

    fn wake_at(&self, now: i64) -> Option<i64> {
        machine::wake_at(&self.0, now)
    }

    fn is_busy(&self) -> bool {
        self.0.is_busy()
    }

    fn report(&self) -> Report {
        let status = report::status(&self.0, &HostFacts::default(), 0);
        Report {
            phase: status.phase,
            needs_drain: status.needs_drain,
            begun: status.begun,
            packages: Some(status.packages),
        }
    }

    fn known(&self) -> Entries {
        self.0.entries.clone()
    }

    fn states(known: &Entries) -> PackageStates {
        states(known)
    }

    fn is_at(known: &Entries, data: &RevisionData) -> bool {
        let wanted = Wanted::of_revision(data);
        let is_there = |name: &String, wanted: &Wanted| {
            known
                .get(&skyhook_crds::package::key(name, &wanted.version))
                .is_some_and(|e| e.is_done() && e.configured.as_ref() == Some(&wanted.config))
        };
        // What never began is not on the host, and a later run forgets that it was wanted.
        let mut there = known.values().filter(|entry| !entry.is_pending());
        let belongs = |entry: &Entry| match wanted.get(&entry.name) {
            Some(wanted) if wanted.is_to_go() => false,
            Some(wanted) => wanted.version == entry.version || entry.left_behind,
            None => data.left_behind.contains(&entry.name) || entry.left_behind,
        };
        let mut all = wanted.iter().filter(|(_, wanted)| !wanted.is_to_go());
        there.all(belongs) && all.all(|(name, wanted)| is_there(name, wanted))
    }

    fn next_step(&self) -> u64 {
        self.0.next_step
    }
}

fn told(event: Event) -> machine::Event {
    match event {
        Event::Begun => machine::Event::LeaseAccepted,
        Event::Restarted { boot_id } => machine::Event::Restarted { boot_id },
        Event::LeaseSeen(view) => machine::Event::LeaseSeen(view),
        Event::ImageReady { key } => machine::Event::ImageReady { key, digest: None },
        Event::StageReady { key, main, checks } => machine::Event::StageReady {
            key,
            plan: StepPlan {
                main: vec![true; main],
                checks,
            },
        },
        Event::StepExited { key, id, succeeded } => machine::Event::StepExited {
            key,
            id,
            outcome: if succeeded {
                Outcome::Succeeded
            } else {
                Outcome::Failed("exited with 1".to_owned())
            },
            took_ms: 0,
        },
        Event::StepNotStarted { key, id } => machine::Event::StepNotStarted { key, id },
        Event::RunningWritten => machine::Event::RunningWritten,
        Event::RunningRefused => machine::Event::RunningRefused,
        Event::LeaseLooked { lease, stands } => machine::Event::LeaseLooked { lease, stands },
        Event::InterruptPrepared => machine::Event::InterruptPrepared {
            before: BTreeMap::new(),
        },
        Event::Interrupted => machine::Event::Interrupted,
        Event::Ticked => machine::Event::Ticked,
    }
}
