//! What has to go from a host or stays there although the revision does not want it, and what waits for that.

use std::collections::BTreeSet;

use super::progress::{Entry, Progress, Wanted};

/// True for a version that stays on the host, and of which nothing runs.
#[must_use]
pub fn is_left_behind(p: &Progress, entry: &Entry) -> bool {
    entry.left_behind
        || (p.left_behind.contains(&entry.name) && !p.wanted.contains_key(&entry.name))
}

/// True when nothing is left to do for a package of the revision.
pub(super) fn is_settled(p: &Progress, name: &str) -> bool {
    let is_there = || p.entries.values().any(|entry| entry.name == name);
    match p.wanted.get(name) {
        Some(wanted) if wanted.is_to_go() => !is_there(),
        Some(_) => p.is_complete(name) || is_blocked(p, name),
        None => true,
    }
}

/// True for a package that is not complete and depends on one that was uninstalled: it waits until that one is installed
/// again.
pub(super) fn is_blocked(p: &Progress, name: &str) -> bool {
    let mut seen = BTreeSet::new();
    !p.is_complete(name) && waits_for_gone(p, name, &mut seen)
}

fn waits_for_gone<'a>(p: &'a Progress, name: &'a str, seen: &mut BTreeSet<&'a str>) -> bool {
    let Some(wanted) = p.wanted.get(name).filter(|_| seen.insert(name)) else {
        return false;
    };
    wanted.depends_on.iter().any(|dependency| {
        let to_go = p.wanted.get(dependency).is_some_and(Wanted::is_to_go);
        to_go || (!p.is_complete(dependency) && waits_for_gone(p, dependency, seen))
    })
}
