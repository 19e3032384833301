//! Reboots that undo what packages did: with `reapply_on_reboot`, packages run again after each that Skyhook did not ask for.

use std::collections::BTreeSet;

use skyhook_crds::Stage;
use skyhook_fleet::facts::{NodeFact, SkyhookFact};

use super::World;
use crate::sim::agent::{Core, Step};

/// The boots of a machine.
#[derive(Debug, Default)]
pub(super) struct Boots {
    /// The last boot that Skyhook did not ask for; empty for the first one.
    epoch: String,
    /// Skyhook has asked for the next one.
    asked: bool,
    /// Packages (`name|version`) that have run since then.
    in_effect: BTreeSet<String>,
    /// There was one that Skyhook did not ask for.
    undone: bool,
    /// Skyhooks whose record somebody has edited. The edit is not written over, also when it calls something complete that a
    /// reboot undoes at the same time.
    edited: BTreeSet<String>,
}

impl Boots {
    pub(super) const fn is_asked_for(&mut self) {
        self.asked = true;
    }

    pub(super) fn begins(&mut self, boot_id: String) {
        if std::mem::take(&mut self.asked) {
            return;
        }
        self.epoch = boot_id;
        self.in_effect.clear();
        self.undone = true;
    }

    /// Somebody edits the node's record of a Skyhook.
    pub(super) fn is_told_by_people(&mut self, skyhook: &str) {
        self.edited.insert(skyhook.to_owned());
    }

    /// A step of a package has ended well.
    pub(super) fn has_run(&mut self, step: &Step) {
        if matches!(step.stage, Stage::Apply | Stage::Upgrade) && !step.check {
            self.in_effect.insert(step.key.clone());
        }
    }
}

impl<C: Core> World<'_, C> {
    /// The agent starts, and looks whether the host was rebooted meanwhile.
    pub(super) fn note_boot(&mut self, node: &str) {
        let now = self.unix();
        let Some(machine) = self.machines.get_mut(node) else {
            return;
        };
        let first = format!("{}-boot-1", machine.machine_id);
        let epoch = if machine.boot.epoch.is_empty() {
            first
        } else {
            machine.boot.epoch.clone()
        };
        let journal = &mut machine.journal;
        let is_lost = !journal.epoch.is_empty() && journal.epoch != epoch;
        journal.epoch = epoch;
        if !is_lost || !self.settings.reapply_on_reboot {
            return;
        }
        journal.known.clear();
        if let Some(current) = &mut journal.current {
            current.core.reapply(now);
            let lease = current.lease.clone();
            machine.is_undone(&lease);
        }
    }

    /// True when a reboot has undone what was installed on the node, and hosts of this cluster are known to lose it.
    pub(super) fn is_undone_here(&self, node: &NodeFact) -> bool {
        let machine = self.machines.get(&node.name);
        self.settings.reapply_on_reboot && machine.is_some_and(|machine| machine.boot.undone)
    }

    /// The first package of a Skyhook that is complete on a node although a reboot has undone it.
    pub(super) fn undone(&self, skyhook: &SkyhookFact, node: &NodeFact) -> Option<String> {
        let machine = self.machines.get(&node.name)?;
        let is_out = skyhook.is_disabled() || skyhook.is_paused() || skyhook.deleting;
        let is_out = is_out || machine.boot.edited.contains(&skyhook.name);
        if !self.settings.reapply_on_reboot || is_out || !machine.boot.undone {
            return None;
        }
        let record = node.record(&skyhook.name);
        let is_ours = record
            .stamp
            .as_ref()
            .is_some_and(|stamp| stamp.has_result());
        let states = record.states.as_ref().ok().filter(|_| is_ours)?;
        let mut keys = states.keys();
        keys.find(|key| !machine.boot.in_effect.contains(*key))
            .cloned()
    }
}
