//! Counts the reboots that each package asks for. The count is raised once for each reboot, before systemd is asked,
//! and at the cap no further reboot is asked for.

use std::collections::BTreeSet;

use skyhook_crds::State;
use skyhook_crds::package::InterruptType;

use super::progress::{Entry, Progress};

/// Members of the wave that the next interrupt is for. A member that has reached the cap takes part only in a reboot
/// that another member asks for.
pub(super) fn participants(p: &Progress) -> BTreeSet<String> {
    let members = || p.wave.iter().flat_map(|wave| &wave.members);
    if members().any(|key| wants_reboot(p, key) && !is_capped(p, key)) {
        return members().cloned().collect();
    }
    members()
        .filter(|key| !is_capped(p, key))
        .cloned()
        .collect()
}

/// True when every member of the wave has reached the cap.
pub(super) fn is_refused(p: &Progress) -> bool {
    p.wave.as_ref().is_some_and(|wave| !wave.members.is_empty()) && participants(p).is_empty()
}

pub(super) fn wants_reboot(p: &Progress, key: &str) -> bool {
    let interrupt = p.entries.get(key).and_then(Entry::interrupt);
    interrupt.is_some_and(|interrupt| interrupt.kind == InterruptType::Reboot)
}

/// True for a package that has reached the cap. A reboot that is already counted for the current wave is left out of
/// the count here.
pub(super) fn is_capped(p: &Progress, key: &str) -> bool {
    let is_counted = p.wave.as_ref().is_some_and(|w| w.counted.contains(key));
    let count = p.reboots.get(key).copied().unwrap_or_default();
    wants_reboot(p, key) && count.saturating_sub(u32::from(is_counted)) >= p.reboot_cap.0
}

/// Counts a reboot before systemd is asked, because the answer may be lost.
pub(super) fn count(p: &mut Progress) {
    let rebooting: BTreeSet<String> = participants(p)
        .into_iter()
        .filter(|key| wants_reboot(p, key) && !is_capped(p, key))
        .collect();
    for key in &rebooting {
        *p.reboots.entry(key.clone()).or_default() += 1;
    }
    if let Some(wave) = &mut p.wave {
        wave.counted = rebooting;
    }
}

/// Undoes the last count, because systemd was not asked.
pub(super) fn uncount(p: &mut Progress) {
    let Some(wave) = &mut p.wave else { return };
    for key in std::mem::take(&mut wave.counted) {
        if let Some(count) = p.reboots.get_mut(&key) {
            *count = count.saturating_sub(1);
        }
    }
    p.reboots.retain(|_, count| *count > 0);
}

/// Keeps packages that have reached the cap at the interrupt stage, and sets their messages.
pub(super) fn refuse(p: &mut Progress, now: i64) {
    let participants = participants(p);
    let Some(wave) = &p.wave else { return };
    let why = if wave.reboot_asked.as_ref() == Some(&p.boot_id) {
        "the boot ID of the host is still the same. Where it never changes (a container as a node) nobody can tell whether it was rebooted"
    } else {
        "the package has not completed since. A host that loses /var/lib/skyhook-agent at each boot forgets \
         that it was rebooted"
    };
    let refused = wave.members.difference(&participants);
    for key in refused.cloned().collect::<Vec<_>>() {
        let times = match p.reboots.get(&key) {
            None | Some(1) => "once".to_owned(),
            Some(count) => format!("{count} times"),
        };
        let cap = p.reboot_cap.0;
        if let Some(entry) = p.entries.get_mut(&key) {
            entry.say(&format!(
                "a reboot was asked for {times} for this version (the cap is {cap}), and {why}. No further reboot is \
                 asked for: change the package's version, configuration or interrupt"
            ));
            entry.set(entry.interrupt_stage(), State::Erroring, now);
        }
    }
}
