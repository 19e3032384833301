//! Uninstalls that the spec asks for (`uninstall.apply`), and versions that stay on the host although the revision does not
//! want them.
//!
//! A package without `uninstall` is uninstalled when it is removed from the revision or gets a lower version: see
//! [`super::plan`]. Its interrupt is dropped then. A package whose uninstall is asked for keeps its interrupt:
//!
//! ```text
//! any stage ── uninstall.apply is true ──► uninstall ── no interrupt ──► gone
//!                                          uninstall ── an interrupt ──► uninstall-interrupt ── interrupted ──► gone
//! uninstall ── uninstall.apply is false ─► apply
//! ```
//!
//! The interrupt is decided when the uninstall has succeeded. From then on nothing takes it back: the host no longer has
//! the package, and the change takes effect only with the interrupt.

use std::cmp::Ordering;

use skyhook_crds::package::key;
use skyhook_crds::version::compare;
use skyhook_crds::{Stage, State};

use super::progress::{Cycle, Doing, Entry, ImageState, Progress, Wanted};

/// Settles what an uninstall has left over in the entries that a lease begins with.
pub(super) fn begin(p: &mut Progress) {
    let wanted = &p.wanted;
    for entry in p.entries.values_mut() {
        if entry.stage != Stage::UninstallInterrupt || entry.interrupt().is_some() {
            continue;
        }
        // The journal does not know the interrupt, and the uninstall is still asked for: it is the one of the package.
        let own = wanted.get(&entry.name).filter(|w| w.is_to_go());
        let own = own.filter(|w| w.version == entry.version && entry.state != State::Complete);
        let Some(interrupt) = own.and_then(|w| w.interrupt.clone()) else {
            continue;
        };
        let cycle = entry.cycle.get_or_insert_with(Cycle::default);
        cycle.start = Some(Stage::Uninstall);
        cycle.interrupt = Some(interrupt);
        entry.state = State::Skipped;
    }
    // Nothing of such a version is on the host, and nobody knows an interrupt that is left.
    p.entries
        .retain(|_, e| e.stage != Stage::UninstallInterrupt || e.interrupt().is_some());
}

/// Plans a package that has to go: every version of it that is on the host is uninstalled.
pub(super) fn take_away(p: &mut Progress, name: &str, wanted: &Wanted, now: i64) {
    p.entries
        .retain(|_, e| e.name != name || e.started || !e.is_parked());
    let (revision, skyhook) = (p.revision.clone(), p.skyhook.clone());
    for entry in p.entries.values_mut().filter(|e| e.name == name) {
        entry.left_behind = false;
        if entry.stage == Stage::UninstallInterrupt {
            continue;
        }
        let goes_already = entry.is_taken_away() && !entry.is_parked();
        let before = entry.cycle.take();
        let cycle = if entry.version == wanted.version {
            Cycle {
                revision: revision.clone(),
                // The copy on the host that the package was installed from stays the one in use.
                skyhook: match &before {
                    Some(before) if before.skyhook.uid == skyhook.uid => before.skyhook.clone(),
                    Some(_) | None => skyhook.clone(),
                },
                identity: wanted.identity.clone(),
                content: wanted.config.clone(),
                start: Some(Stage::Uninstall),
                interrupt: wanted.interrupt.clone(),
            }
        } else {
            let installed = before.clone().unwrap_or_else(|| Cycle {
                revision: revision.clone(),
                skyhook: skyhook.clone(),
                ..Cycle::default()
            });
            Cycle {
                start: Some(Stage::Uninstall),
                interrupt: match goes_already {
                    true => installed.interrupt.clone(),
                    false => wanted.interrupt.clone(),
                },
                ..installed
            }
        };
        let is_same = before.as_ref().is_some_and(|before| {
            before.identity == cycle.identity && before.content == cycle.content
        });
        entry.cycle = Some(cycle);
        if entry.version == wanted.version && !is_same {
            entry.image_digest = None;
            entry.image = wanted.image.clone();
            entry.container_sha = wanted.container_sha.clone();
        }
        entry.failures = 0;
        entry.image_state = ImageState::Unknown;
        if goes_already && is_same {
            if let Doing::Retry { at, .. } = &mut entry.doing {
                *at = now;
            }
            continue;
        }
        entry.doing = Doing::Idle;
        entry.attempts = 0;
        entry.restarts = 0;
        entry.say("will be uninstalled");
        entry.set(Stage::Uninstall, State::InProgress, now);
    }
}

/// Marks higher versions of a package that stay on the host when a lower version is installed over them. Forgets the entry of
/// the wanted version if another version was installed over it, so that it is installed again.
pub(super) fn leave_behind(p: &mut Progress, name: &str, wanted: &Wanted) {
    let is_higher =
        |entry: &Entry| compare(&entry.version, &wanted.version) == Ok(Ordering::Greater);
    let mut is_covered = false;
    for entry in p.entries.values_mut().filter(|e| e.name == name) {
        if entry.version == wanted.version {
            is_covered |= entry.left_behind;
        } else if wanted.stays_behind()
            && is_higher(entry)
            && !entry.left_behind
            && entry.started
            && !matches!(entry.stage, Stage::Uninstall | Stage::UninstallInterrupt)
        {
            entry.left_behind = true;
            entry.doing = Doing::Idle;
            entry.say("stays on the host: uninstall.enabled is false");
            is_covered = true;
        } else if !is_higher(entry) {
            // It is replaced, as by any higher version.
            entry.left_behind = false;
        }
    }
    if is_covered {
        p.entries.remove(&key(name, &wanted.version));
    }
}
