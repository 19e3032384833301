//! Whose turn it is: which packages may work on the host now, and which do.

use skyhook_crds::Stage;

use super::left::is_left_behind;
use super::progress::{Doing, Entry, Progress};

/// True while a step of the package runs or is being prepared.
pub(super) fn is_running(entry: &Entry) -> bool {
    match entry.doing {
        Doing::Preparing { .. } | Doing::Step(_) => true,
        Doing::Idle | Doing::Ready(_) | Doing::Retry { .. } | Doing::GaveUp { .. } => false,
    }
}

/// True for a version that is being uninstalled, or whose interrupt after that is left.
pub(super) fn is_leaving(p: &Progress, entry: &Entry) -> bool {
    match entry.stage {
        Stage::UninstallInterrupt => true,
        Stage::Uninstall => !p.is_wanted(entry) && !entry.is_parked() && !is_left_behind(p, entry),
        Stage::Upgrade
        | Stage::Apply
        | Stage::Config
        | Stage::Interrupt
        | Stage::PostInterrupt
        | Stage::Unknown => false,
    }
}

/// True when the dependencies are complete and, for a serial Skyhook, it is the turn of this package.
pub(super) fn is_turn(p: &Progress, entry: &Entry) -> bool {
    let dependencies = || {
        p.wanted
            .get(&entry.name)
            .is_some_and(|w| w.depends_on.iter().all(|d| p.is_complete(d)))
    };
    (is_leaving(p, entry) || (p.is_wanted(entry) && !entry.is_parked() && dependencies()))
        && (!p.serial || serial_turn(p).as_deref() == Some(entry.name.as_str()))
}

/// The package that a serial Skyhook works on: first packages to uninstall, then others in the order of dependencies
/// and names.
fn serial_turn(p: &Progress) -> Option<String> {
    let leaving = p.entries.values().find(|e| is_leaving(p, e));
    leaving.map(|e| e.name.clone()).or_else(|| {
        p.wanted
            .iter()
            .find(|(name, w)| {
                let can_start = w.depends_on.iter().all(|d| p.is_complete(d));
                !w.is_to_go() && !p.is_complete(name) && can_start
            })
            .map(|(name, _)| name.clone())
    })
}
