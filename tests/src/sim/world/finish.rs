//! What has to be true when everything has come to rest, and for a minute after: nothing is written any more.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::installed::PackageStates;
use skyhook_crds::names;
use skyhook_crds::package::Package;
use skyhook_crds::revision::{self, RevisionData, Work};
use skyhook_crds::skyhook::Sequencing;
use skyhook_crds::stage::Status;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};

use super::ending::WRITES_A_MINUTE;
use super::{Event, LEASES, NODES, REVISIONS, SKYHOOKS, World};
use crate::sim::Shape;
use crate::sim::agent::Core;

/// Everything has converged by then, in milliseconds.
const PATIENCE: u64 = 40 * 60_000;
/// The same for a hundred nodes, ten at a time.
const FLEET_PATIENCE: u64 = 180 * 60_000;
/// How long nothing may be written.
const REST: u64 = 60_000;

/// When the world came to rest, and how much had been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    since: u64,
    ends: [usize; 4],
}

impl<C: Core> World<'_, C> {
    /// Looks whether everything is as it should be.
    pub(super) fn look(&mut self) {
        let now = self.now;
        match self.shape {
            Shape::Slow => return self.look_at_slow(),
            // What never gets well is tried again and again.
            Shape::Forsaken => self.checks.excuse("", now),
            Shape::Small | Shape::Paced | Shape::Fleet => {}
        }
        if let Some(problem) = self.has_no_way_out() {
            self.fail(problem);
        }
        let ends = [NODES, SKYHOOKS, LEASES, REVISIONS].map(|kind| self.api.end(kind));
        let calm = self.weather.calm_since.unwrap_or(now);
        let patience = match self.shape {
            Shape::Fleet => FLEET_PATIENCE,
            Shape::Small | Shape::Paced | Shape::Forsaken | Shape::Slow => PATIENCE,
        };
        match self.unmet() {
            Some(problem) => {
                self.rest = None;
                if now > calm + patience {
                    self.fail(format!("it does not converge: {problem}"));
                }
            }
            None => match &self.rest {
                Some(rest) if self.is_busy(rest, ends) => {
                    self.rest = None;
                    if now > calm + patience {
                        self.fail("writes go on although nothing is left to do");
                    }
                }
                Some(rest) => self.done = now >= rest.since + REST && self.is_over(calm),
                None => self.rest = Some(Rest { since: now, ends }),
            },
        }
        self.after(5_000, Event::Look);
    }

    /// Whether more was written since than what never gets well may cost.
    fn is_busy(&self, rest: &Rest, ends: [usize; 4]) -> bool {
        let written = ends.iter().sum::<usize>() - rest.ends.iter().sum::<usize>();
        let minutes = usize::try_from((self.now - rest.since) / 60_000).unwrap_or_default() + 1;
        written > self.weather.afflicted.len() * WRITES_A_MINUTE * minutes
    }

    /// What is not yet as it should be.
    fn unmet(&self) -> Option<String> {
        let mut held: BTreeSet<&str> = BTreeSet::new();
        for (node, lease) in self.api.list(LEASES) {
            let uid = &lease["spec"]["skyhook"]["uid"];
            // One that is paused holds its leases.
            let holds = self
                .checks
                .skyhooks
                .values()
                .any(|s| *uid == *s.uid && s.is_paused() && !self.is_out(s));
            let stands_still = self.affliction(node).is_some() && {
                let mut skyhooks = self.checks.skyhooks.values();
                skyhooks.any(|s| *uid == *s.uid && !self.is_out(s))
            };
            let waits = lease["status"]["phase"] == "AwaitingDrain"
                && self.is_weakened(&self.checks.nodes[node]);
            if stands_still || waits {
                held.insert(node);
                continue;
            }
            if !holds || lease["status"]["phase"].is_null() {
                return Some(format!(
                    "the lease of {node} is left: {}",
                    lease["status"]["phase"]
                ));
            }
            held.insert(node);
        }
        for node in self.checks.nodes.values() {
            if let Some(problem) = self.unmet_node(node, &held) {
                return Some(problem);
            }
        }
        self.checks
            .skyhooks
            .values()
            .find_map(|skyhook| self.unmet_skyhook(skyhook, &held))
    }

    fn unmet_node(&self, node: &NodeFact, held: &BTreeSet<&str>) -> Option<String> {
        let name = &node.name;
        if self.affliction(name).is_some() {
            return None;
        }
        if !node.is_host() {
            // It has no machine, and nothing is written there.
            return None;
        }
        if !self.machines.get(name).is_some_and(|m| m.up && node.ready) {
            return Some(format!("{name} is not back"));
        }
        if held.contains(name.as_str()) || self.keeps_cordon(node, held) {
            return None;
        }
        if let Some(problem) = self.unmet_taint(node) {
            return Some(problem);
        }
        let is_protection = |key: &&String| {
            *key == names::CORDON_OWNERS && node.cordon.owners.is_empty() && !node.cordon.is_empty()
        };
        let marks: Vec<&String> = node
            .annotations
            .keys()
            .filter(|key| key.contains("/cordon") && !is_protection(key))
            .collect();
        if !marks.is_empty() {
            return Some(format!("marks are left on {name}: {marks:?}"));
        }
        if let Some(left) = Self::drain_mark(node) {
            return Some(left);
        }
        let cordoned = self.checks.cordoned.contains(name);
        (node.unschedulable != cordoned && !self.checks.meddled.contains(name)).then(|| {
            format!(
                "{name} is cordoned: {}, it was: {cordoned}",
                node.unschedulable
            )
        })
    }

    /// Whether the node waits with its cordon, in the midst of its packages, for what never gets well.
    fn keeps_cordon(&self, node: &NodeFact, held: &BTreeSet<&str>) -> bool {
        let owners = &node.cordon.owners;
        !self.weather.afflicted.is_empty()
            && !owners.is_empty()
            && owners.keys().all(|owner| {
                let skyhook = self.checks.skyhooks.get(owner);
                skyhook.is_some_and(|skyhook| {
                    let is_active = !self.is_out(skyhook);
                    is_active && !self.is_at(skyhook, node) && self.is_excused(skyhook, node, held)
                })
            })
    }

    /// Whether another control-plane node never gets well: this one is not interrupted then.
    fn is_weakened(&self, node: &NodeFact) -> bool {
        let mut others = self.checks.nodes.values();
        node.is_control_plane()
            && others.any(|n| n.is_control_plane() && self.affliction(&n.name).is_some())
    }

    fn unmet_skyhook(&self, skyhook: &SkyhookFact, held: &BTreeSet<&str>) -> Option<String> {
        let name = &skyhook.name;
        if skyhook.deleting {
            return self.unmet_deletion(skyhook, held);
        }
        let Some(status) = &skyhook.status else {
            return Some(format!("Skyhook {name} has no status"));
        };
        if status.observed_generation != skyhook.generation {
            return Some(format!("Skyhook {name} is not observed"));
        }
        if let Some(silent) = self.blocked_in_silence(skyhook) {
            return Some(silent);
        }
        let selected = || {
            let nodes = self.checks.nodes.values();
            nodes.filter(|node| skyhook.selects(node))
        };
        let open: Vec<&NodeFact> = selected()
            .filter(|node| !self.is_at(skyhook, node))
            .collect();
        if let Some(node) = open.iter().find(|node| self.is_silent(skyhook, node)) {
            return Some(format!(
                "nothing says why {name} does not move on {}",
                node.name
            ));
        }
        let settled = selected().filter(|node| self.is_at(skyhook, node));
        let settled = settled.filter(|node| !self.is_excused(skyhook, node, held));
        let undone = settled.filter_map(|node| Some((node, self.undone(skyhook, node)?)));
        if let Some((node, package)) = undone.into_iter().next() {
            return Some(format!(
                "{package} of {name} was not applied again on {} after a reboot",
                node.name
            ));
        }
        let stands_still = selected().any(|node| self.affliction(&node.name).is_some())
            || self.holds_an_afflicted_node(skyhook);
        let is_kept_off = || selected().any(|node| self.is_excused(skyhook, node, held));
        let want: &[Status] = if skyhook.is_paused() {
            &[Status::Paused]
        } else if skyhook.checked.is_err() {
            &[Status::Blocked]
        } else if open.is_empty() && skyhook.is_disabled() {
            // What a host was configured with is told by a revision that may be gone: only a run would show that nothing
            // is to be done.
            &[Status::Complete, Status::Disabled]
        } else if open.is_empty() && is_kept_off() {
            // The same: there can be no run.
            &[Status::Complete, Status::Blocked, Status::Waiting]
        } else if open.is_empty() {
            &[Status::Complete]
        } else if skyhook.is_disabled() && open.iter().all(|node| self.is_undone_here(node)) {
            // A reboot has undone what the record says. While the Skyhook is disabled the record stays as it is.
            &[Status::Complete, Status::Disabled]
        } else if open
            .iter()
            .all(|node| self.is_undone_here(node) && held.contains(&*node.name))
        {
            // The same, until the lease of another Skyhook is gone from the node.
            &[Status::Complete, Status::Blocked, Status::Waiting]
        } else if skyhook.is_disabled() {
            &[Status::Disabled]
        } else {
            let stuck = open
                .iter()
                .find(|node| !self.is_excused(skyhook, node, held));
            if let Some(node) = stuck {
                return Some(format!(
                    "{name} is not complete on {}: {status:?}",
                    node.name
                ));
            }
            &[Status::Blocked, Status::Waiting]
        };
        if stands_still || want.contains(&status.status) {
            None
        } else {
            Some(format!(
                "Skyhook {name} is {}, not {want:?}: {status:?}",
                status.status
            ))
        }
    }

    /// Whether a node that never gets well has a lease of the Skyhook. It may not be selected any more.
    fn holds_an_afflicted_node(&self, skyhook: &SkyhookFact) -> bool {
        let mut leases = self.api.list(LEASES);
        leases.any(|(node, lease)| {
            lease["spec"]["skyhook"]["uid"] == *skyhook.uid && self.affliction(node).is_some()
        })
    }

    /// Whether the host is at the Skyhook's revision, as the host knows it, and the Node says the same.
    pub(super) fn is_at(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        let Ok(checked) = &skyhook.checked else {
            return false;
        };
        if !self.machines.contains_key(&node.name) {
            return false;
        }
        let known = self.known_of(&skyhook.name, &node.name);
        let there = known.as_ref().is_some_and(|known| {
            C::is_at(known, &self.newest(skyhook, &checked.data))
                && node.record(&skyhook.name).states.as_ref().ok() == Some(&C::states(known))
        });
        // Nobody can tell that a machine took a Node over that carries a complete record and no result of ours.
        let record = node.record(&skyhook.name);
        let unstamped = record
            .stamp
            .as_ref()
            .is_none_or(|stamp| !stamp.has_result());
        let taken_for_complete = record.states.as_ref().is_ok_and(|states| {
            let left = || revision::left_undone(states, skyhook.config_updates(), &checked.data);
            let work = || self.work(skyhook, node, states);
            unstamped && work().is_empty() && left().is_empty()
        });
        let packages = &checked.data.packages;
        // Where all packages have to go, the record tells whether they are gone. Somebody may have removed what it said.
        let is_nothing_there = record.states.as_ref().is_ok_and(BTreeMap::is_empty);
        let is_nothing_wanted = packages.values().all(Package::is_to_go) && is_nothing_there;
        there
            || taken_for_complete
            || is_nothing_wanted
            || (packages.is_empty() && record.states.is_ok())
    }

    /// What a host knows of a Skyhook.
    pub(super) fn known_of(&self, skyhook: &str, node: &str) -> Option<C::Known> {
        let journal = &self.machines.get(node)?.journal;
        let current = journal.current.as_ref();
        let current = current.filter(|current| current.skyhook == skyhook);
        let current = current.map(|current| current.core.known());
        current.or_else(|| journal.known.get(skyhook).cloned())
    }

    /// The revision of the Skyhook with what the newest stored one leaves behind: the spec alone does not tell.
    fn newest(&self, skyhook: &SkyhookFact, data: &RevisionData) -> RevisionData {
        let owned = self.api.list(REVISIONS).map(|(_, object)| object);
        let owned = owned.filter(|object| {
            let of = &object["metadata"]["labels"][names::REVISION_OF];
            *of == *skyhook.name
        });
        let newest = owned.max_by_key(|object| object["revision"].as_i64());
        let left = newest.map(|object| object["data"]["leftBehind"].clone());
        let left: BTreeSet<String> = left
            .and_then(|left| serde_json::from_value(left).ok())
            .unwrap_or_default();
        let left = left.into_iter();
        let left = left.filter(|name| !data.packages.contains_key(name));
        RevisionData::new(data.packages.clone(), data.serial, left.collect())
    }

    /// What is left to do on a node, as its record and the spec tell.
    pub(super) fn work(
        &self,
        skyhook: &SkyhookFact,
        node: &NodeFact,
        states: &PackageStates,
    ) -> BTreeMap<String, Work> {
        let Ok(checked) = &skyhook.checked else {
            return BTreeMap::new();
        };
        let newest = self.newest(skyhook, &checked.data);
        let record = node.record(&skyhook.name);
        if record.is_of_another_machine(node) {
            let nothing = PackageStates::new();
            let mut work = revision::work(&nothing, &BTreeSet::new(), None, &newest);
            // A lease corrects the record.
            let is_to_stay = |name| newest.packages.get(name).is_some_and(|one| !one.is_to_go());
            let stale = states.values().filter(|state| !is_to_stay(&state.name));
            work.extend(stale.map(|state| (state.name.clone(), Work::Removed)));
            return work;
        }
        let stamp = record.stamp.as_ref();
        let left = stamp.map_or_else(BTreeSet::new, |stamp| stamp.left_behind.clone());
        revision::work(states, &left, None, &newest)
    }

    /// Whether all that is left on the node waits for packages that were uninstalled.
    fn is_blocked(&self, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
        let states = node.record(&skyhook.name).states.as_ref();
        states.is_ok_and(|states| {
            let work = self.work(skyhook, node, states);
            !work.is_empty() && revision::is_idle(&work)
        })
    }

    /// Whether something that was left as it is keeps the Skyhook off the node.
    pub(super) fn is_excused(
        &self,
        skyhook: &SkyhookFact,
        node: &NodeFact,
        held: &BTreeSet<&str>,
    ) -> bool {
        let ignored = node.labels.get(names::IGNORE) == Some("true");
        let malformed = node.record(&skyhook.name).states.is_err();
        let budget = skyhook.spec.interruption_budget.as_ref();
        let zero = budget.is_some_and(|b| b.count == Some(0) || b.percent == Some(0));
        let is_open = |other: &SkyhookFact, node: &NodeFact| {
            if other.deleting {
                return self.is_kept_on(other, node);
            }
            (other.selects(node) || other.is_parked_over(node))
                && (!self.is_at(other, node) || self.is_excused(other, node, held))
        };
        let earlier = self.checks.skyhooks.values().any(|other| {
            (other.spec.priority, &other.name) < (skyhook.spec.priority, &skyhook.name)
                && !other.is_disabled()
                && match other.spec.sequencing {
                    Sequencing::Node => is_open(other, node),
                    Sequencing::All => self.checks.nodes.values().any(|node| is_open(other, node)),
                }
        });
        let cap = self.settings.max_concurrent_nodes;
        let full = cap.is_some_and(|cap| held.len() >= cap) || self.is_full(skyhook, held);
        let control_plane = node.is_control_plane()
            && held.iter().any(|other| {
                let other = self.checks.nodes.get(*other);
                other.is_some_and(NodeFact::is_control_plane)
            });
        ignored
            || self.is_kept_off_by_taint(skyhook, node)
            || self.is_weakened(node)
            || self.affliction(&node.name).is_some()
            || malformed
            || self.is_blocked(skyhook, node)
            || zero
            || earlier
            || full
            || control_plane
            || held.contains(node.name.as_str())
    }
}
