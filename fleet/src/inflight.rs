//! Which writes are under way, and which finished writes the watches have not delivered yet. The session owns this.
//!
//! Guarantees: no decision is made about an object while a write to it is under way, or while its watch has not
//! delivered a finished write. A lease that is being created takes a slot from the start of the write until the lease
//! watch delivers the lease, or until the write fails.
//!
//! Caveats: this process waits for a watch no longer than [`STALE`]. A write that failed without an answer may have
//! created its lease all the same. The budget holds then as well, because a lease is granted only if all delivered
//! leases fit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skyhook_crds::lease::InterruptionLeaseSpec;

use crate::clocks::Mono;
use crate::effect::{Effect, Target};
use crate::picture::{Changed, Kind, Picture};

/// How long a watch may lag behind a write before the write is tried again anyway.
const STALE: Duration = Duration::from_secs(5);
/// How long the time of a target's last write is remembered.
pub(crate) const REMEMBERED: Duration = Duration::from_secs(60);

/// A lease that is being created.
#[derive(Debug)]
struct Create {
    lease: Box<InterruptionLeaseSpec>,
    /// When the API server confirmed the creation; `None` while there is no answer.
    answered: Option<Mono>,
}

/// Writes under way.
#[derive(Debug, Default)]
pub struct Inflight {
    busy: BTreeSet<Target>,
    /// Objects whose watch has not yet delivered our last write: the version that was written over.
    stale: BTreeMap<Target, (String, Mono)>,
    /// Leases that are being created and that the lease watch has not delivered, by node. They take slots.
    creating: BTreeMap<String, Create>,
    /// Leases that were deleted, and whose deletion the watch has not delivered yet: node to UID.
    removed: BTreeMap<String, (String, Mono)>,
    /// When a target was last written.
    written: BTreeMap<Target, Mono>,
    lease_list_began: Mono,
}

impl Inflight {
    /// True while no decision should be made about a target: a write is under way, or the watch has not delivered a
    /// finished write.
    #[must_use]
    pub fn is_unsettled(&self, target: &Target) -> bool {
        self.busy.contains(target)
            || self.stale.contains_key(target)
            || matches!(target, Target::Lease(node) if self.removed.contains_key(node))
    }

    /// True while a write of the target is under way.
    #[must_use]
    pub fn is_busy(&self, target: &Target) -> bool {
        self.busy.contains(target)
    }

    /// How many writes are under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.busy.len()
    }

    /// UID of the Skyhook that a node's lease is being created for.
    #[must_use]
    pub fn creating(&self, node: &str) -> Option<&str> {
        self.create(node).map(|spec| spec.skyhook.uid.as_str())
    }

    /// The lease of a node that is being created.
    #[must_use]
    pub fn create(&self, node: &str) -> Option<&InterruptionLeaseSpec> {
        self.creating.get(node).map(|create| &*create.lease)
    }

    /// Every lease that is being created: the name of its node, and its spec.
    pub fn creates(&self) -> impl Iterator<Item = (&str, &InterruptionLeaseSpec)> {
        self.creating
            .iter()
            .map(|(node, create)| (node.as_str(), &*create.lease))
    }

    /// When a target was last written, if that is not long ago.
    #[must_use]
    pub fn written(&self, target: &Target) -> Option<Mono> {
        self.written.get(target).copied()
    }

    /// The times at which this process stops to wait for watches that lag.
    pub(crate) fn patience_ends(&self) -> impl Iterator<Item = Mono> {
        let since = self.stale.values().chain(self.removed.values());
        since.map(|(_, since)| *since + STALE)
    }

    /// How long the watches have not delivered a write that the API server has confirmed: the longest such time, and at most
    /// [`STALE`].
    #[must_use]
    pub fn lag(&self, now: Mono) -> Duration {
        let objects = self.stale.values().chain(self.removed.values());
        let objects = objects.map(|(_, since)| *since);
        let creates = self.creating.values().filter_map(|one| one.answered);
        let since = objects.chain(creates).min();
        since.map_or(Duration::ZERO, |since| now.since(since).min(STALE))
    }

    /// A write begins.
    pub(crate) fn begins(&mut self, effect: &Effect) {
        self.busy.insert(effect.target());
        if let Effect::ReserveLease { node, spec } = effect {
            let create = Create {
                lease: spec.clone(),
                answered: None,
            };
            self.creating.insert(node.clone(), create);
        }
    }

    /// A write has ended, with success or not. Returns true if it was under way.
    pub(crate) fn ends(&mut self, target: &Target) -> bool {
        self.busy.remove(target)
    }

    /// A write succeeded.
    pub(crate) fn is_done(&mut self, target: Target, now: Mono) {
        self.written.insert(target, now);
    }

    /// A write succeeded and returned no object: no decision is made about the object until the watch delivers it.
    pub(crate) fn awaits(&mut self, effect: &Effect, picture: &Picture, now: Mono) {
        if let Effect::ReserveLease { node, .. } = effect
            && let Some(create) = self.creating.get_mut(node)
        {
            create.answered = Some(now);
        }
        let target = effect.target();
        let is_new = matches!(effect, Effect::WriteRollout { at: None, .. });
        if is_new && picture.held(&target).is_none() {
            self.stale.insert(target, (String::new(), now));
            return;
        }
        self.await_watch(effect, picture, now);
    }

    /// A write failed: the object has changed since the decision, or the API server did not accept the write or did not
    /// answer.
    pub(crate) fn is_refused(&mut self, effect: &Effect, picture: &Picture, now: Mono) {
        if let Effect::ReserveLease { node, .. } = effect {
            self.creating.remove(node);
        }
        self.await_watch(effect, picture, now);
    }

    /// Stops to wait for the watch of an object.
    pub(crate) fn is_settled(&mut self, target: &Target) {
        self.stale.remove(target);
    }

    /// A lease was deleted. The watch may still deliver earlier versions of it.
    pub(crate) fn has_removed(&mut self, node: &str, uid: &str, picture: &Picture, now: Mono) {
        if picture.leases().get(node).is_some_and(|l| l.uid == uid) {
            self.removed.insert(node.to_owned(), (uid.to_owned(), now));
        }
    }

    /// Waits for the watch to deliver a newer version than the one that was decided on, unless it was faster than the
    /// answer.
    fn await_watch(&mut self, effect: &Effect, picture: &Picture, now: Mono) {
        let (target, at) = (effect.target(), effect.decided_on());
        let held = picture.held(&target).map(|(_, version)| version);
        if let Some(at) = at.filter(|at| held == Some(&at.resource_version)) {
            self.stale
                .insert(target, (at.resource_version.clone(), now));
        }
    }

    /// Takes in a change of the picture.
    pub(crate) fn saw(&mut self, changed: &Changed, now: Mono) {
        match changed {
            Changed::Came {
                target,
                uid,
                version,
                ..
            } => {
                if self.stale.get(target).is_some_and(|(v, _)| v != version) {
                    self.stale.remove(target);
                }
                if let Target::Lease(node) = target {
                    self.creating.remove(node);
                    if self.removed.get(node).is_some_and(|(gone, _)| gone != uid) {
                        self.removed.remove(node);
                    }
                }
            }
            Changed::Gone { target, .. } => {
                if let Target::Lease(node) = target {
                    self.stale.remove(target);
                    self.removed.remove(node);
                    self.creating.remove(node);
                }
            }
            Changed::ListBegins(Kind::Lease) => self.lease_list_began = now,
            Changed::Listed {
                kind: Kind::Lease,
                gone,
            } => {
                for node in gone {
                    self.stale.remove(&Target::Lease(node.clone()));
                    self.removed.remove(node);
                }
                // A lease whose creation was confirmed before the list began, and that is not in the list, was deleted
                // since.
                let began = self.lease_list_began;
                self.creating
                    .retain(|_, create| create.answered.is_none_or(|at| at >= began));
            }
            Changed::ListBegins(_) | Changed::Listed { .. } | Changed::Other(_) => {}
        }
    }

    /// Forgets entries whose time is over.
    pub(crate) fn expire(&mut self, now: Mono) {
        self.stale.retain(|_, (_, since)| *since + STALE > now);
        self.removed.retain(|_, (_, since)| *since + STALE > now);
        self.written.retain(|_, at| *at + REMEMBERED > now);
    }
}

#[cfg(test)]
impl Inflight {
    /// The names of all fields. A new field does not compile before it is named here; then a test asks for its row.
    pub(crate) fn fields() -> [&'static str; 6] {
        let Self {
            busy: _,
            stale: _,
            creating: _,
            removed: _,
            written: _,
            lease_list_began: _,
        } = Self::default();
        [
            "busy",
            "stale",
            "creating",
            "removed",
            "written",
            "lease_list_began",
        ]
    }

    /// Notes by hand that a target was written.
    pub(crate) fn set_written(&mut self, target: Target, at: Mono) {
        self.written.insert(target, at);
    }

    /// Notes by hand that a write is under way.
    pub(crate) fn set_busy(&mut self, target: Target) {
        self.busy.insert(target);
    }
}

#[cfg(test)]
mod tests;
