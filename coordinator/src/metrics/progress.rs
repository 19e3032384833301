//! Since when each Skyhook has its status, and since when it has made no progress.

use std::collections::BTreeMap;

use k8s_openapi::jiff::Timestamp;
use skyhook_crds::stage::{Stage, Status};
use skyhook_fleet::plan::{Fleet, SkyhookCounts};

/// The times of all Skyhooks, as far as this replica has seen.
#[derive(Debug, Default)]
pub(super) struct Progress(BTreeMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    status: Status,
    /// Since when it has this status. The object may know better.
    since: Timestamp,
    done: Done,
    moved: Timestamp,
}

/// What only grows while work goes on.
#[derive(Debug, PartialEq, Eq)]
struct Done {
    complete: usize,
    /// Nodes on which a stage of a package is complete.
    stages: BTreeMap<(String, Stage), usize>,
}

impl Done {
    fn of(counts: &SkyhookCounts) -> Self {
        let complete = counts.by_status.get(&Status::Complete);
        let packages = counts.packages.iter();
        let stages = packages.flat_map(|(package, counts)| {
            let ended = counts.ended.iter();
            ended.map(move |(stage, nodes)| ((package.clone(), *stage), *nodes))
        });
        Self {
            complete: complete.copied().unwrap_or_default(),
            stages: stages.collect(),
        }
    }

    /// True when a node became complete since `before`, or a package came to the end of a stage.
    fn is_ahead_of(&self, before: &Self) -> bool {
        let grew = |(key, nodes): (&(String, Stage), &usize)| {
            *nodes > before.stages.get(key).copied().unwrap_or_default()
        };
        self.complete > before.complete || self.stages.iter().any(grew)
    }
}

impl Progress {
    /// Takes in the counts of a pass.
    pub(super) fn observe(&mut self, fleet: &Fleet, now: Timestamp) {
        self.0.retain(|name, _| fleet.skyhooks.contains_key(name));
        for (name, counts) in &fleet.skyhooks {
            let done = Done::of(counts);
            let Some(seen) = self.0.get_mut(name) else {
                let seen = Seen {
                    status: counts.status,
                    since: now,
                    done,
                    moved: now,
                };
                self.0.insert(name.clone(), seen);
                continue;
            };
            if seen.status != counts.status {
                seen.status = counts.status;
                seen.since = now;
            }
            if done.is_ahead_of(&seen.done) {
                seen.moved = now;
            }
            seen.done = done;
        }
    }

    /// Since when a Skyhook has its status, by what this replica has seen.
    pub(super) fn since(&self, skyhook: &str) -> Option<Timestamp> {
        self.0.get(skyhook).map(|seen| seen.since)
    }

    /// When this replica saw a Skyhook make progress last; at first, when it saw the Skyhook first.
    pub(super) fn moved(&self, skyhook: &str) -> Option<Timestamp> {
        self.0.get(skyhook).map(|seen| seen.moved)
    }
}
