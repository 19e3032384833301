//! Counts the packages that are installed on nodes, including packages that the Skyhook no longer lists.

use std::collections::BTreeMap;

use crate::facts::SkyhookFact;
use crate::plan::View;

/// Bytes that packages and their counts may take in the status.
const LONGEST: usize = 8 * 1024;

/// For each package: how many nodes carry any version of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) packages: BTreeMap<String, i32>,
    /// Packages for which there is no room.
    pub(super) omitted: i32,
    /// Nodes whose package states cannot be read.
    pub(super) unreadable: i32,
}

impl Installed {
    pub(super) fn of(view: &View<'_>, skyhook: &SkyhookFact) -> Self {
        let (packages, unreadable) = counts(view, skyhook);
        let (packages, omitted) =
            bounded(packages, |name| skyhook.spec.packages.contains_key(name));
        Self {
            packages,
            omitted,
            unreadable,
        }
    }
}

/// Keeps as many packages as there is room for: first those that the Skyhook lists, then those on most nodes.
fn bounded(
    packages: BTreeMap<String, i32>,
    is_wanted: impl Fn(&str) -> bool,
) -> (BTreeMap<String, i32>, i32) {
    // The quotes, the colon, the comma and the digits of the count.
    let size = |name: &str| name.len() + 15;
    if packages.keys().map(|name| size(name)).sum::<usize>() <= LONGEST {
        return (packages, 0);
    }
    let mut all: Vec<(String, i32)> = packages.into_iter().collect();
    all.sort_by_key(|(name, count)| (!is_wanted(name), std::cmp::Reverse(*count)));
    let (mut kept, mut omitted, mut room) = (BTreeMap::new(), 0, LONGEST);
    for (name, count) in all {
        match room.checked_sub(size(&name)) {
            Some(left) if omitted == 0 => {
                room = left;
                kept.insert(name, count);
            }
            Some(_) | None => omitted += 1,
        }
    }
    (kept, omitted)
}

/// For each package: how many nodes, selected or not, carry any version of it. The second value counts the nodes whose
/// package states cannot be read.
fn counts(view: &View<'_>, skyhook: &SkyhookFact) -> (BTreeMap<String, i32>, i32) {
    let mut counts: BTreeMap<String, i32> = BTreeMap::new();
    let mut unreadable = 0;
    for node in view.picture.nodes().values() {
        let mut packages: Vec<&str> = match node.records.get(&skyhook.name).map(|r| &r.states) {
            Some(Ok(states)) => states.values().map(|state| state.name.as_str()).collect(),
            Some(Err(_)) => {
                unreadable += 1;
                Vec::new()
            }
            None => Vec::new(),
        };
        // Packages of a granted lease's revision may be on the host before the record lists them.
        let lease = view.picture.lease_of(&node.name, &skyhook.uid);
        let lease = lease.and_then(|fact| fact.lease.as_ref().ok());
        if let Some(lease) = lease.filter(|lease| lease.spec.granted.is_some()) {
            let revision = view.picture.revisions().get(&lease.spec.revision);
            let data = revision.and_then(|revision| revision.data.as_ref());
            // What has to go is not installed.
            let installed = data.iter().flat_map(|data| &data.packages);
            let installed = installed.filter(|(_, package)| !package.is_to_go());
            packages.extend(installed.map(|(name, _)| name.as_str()));
        }
        packages.sort_unstable();
        packages.dedup();
        for package in packages {
            match counts.get_mut(package) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(package.to_owned(), 1);
                }
            }
        }
    }
    (counts, unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_have_a_bound_and_those_that_are_wanted_and_on_most_nodes_are_listed() {
        let few: BTreeMap<String, i32> = [("a".to_owned(), 1), ("b".to_owned(), 2)].into();
        assert_eq!(bounded(few.clone(), |_| false), (few, 0));
        let name = |n: i32| format!("package-{n:04}");
        let many: BTreeMap<String, i32> = (0..2000).map(|n| (name(n), n)).collect();
        let (kept, omitted) = bounded(many, |package| package == name(0));
        assert_eq!(omitted + i32::try_from(kept.len()).unwrap(), 2000);
        assert!(kept.contains_key(&name(0)) && kept.contains_key(&name(1999)));
        assert!(!kept.contains_key(&name(1)));
        let bytes = serde_json::to_vec(&kept).unwrap().len();
        assert!(bytes <= LONGEST && bytes > LONGEST * 7 / 10, "{bytes}");
    }
}
