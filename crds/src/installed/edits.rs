//! Which entries of a record somebody has edited, while an agent works on the same node.

use std::collections::{BTreeMap, BTreeSet};

use super::{PackageStates, render_states, states_digest};
use crate::package::{PackageStatus, name_of};

/// A digest of each entry, for [`super::Stamp::entries`].
#[must_use]
pub fn digests(states: &PackageStates) -> BTreeMap<String, String> {
    let digests = states
        .iter()
        .map(|(key, status)| (key.clone(), digest(key, status)));
    digests.collect()
}

fn digest(key: &str, status: &PackageStatus) -> String {
    let mut digest = states_digest(&render_states(&[(key.to_owned(), status.clone())].into()));
    digest.truncate(8);
    digest
}

/// What an agent reports at the end, with the edits of the record that it was stopped for. `written` are the digests of the
/// entries that the coordinator wrote last. A package with an entry that somebody has changed, added or removed is as in the
/// record, with all of its versions. Any other package is as the agent has left it. In a record that was emptied, every
/// package was removed.
#[must_use]
pub fn with_edits(
    recorded: &PackageStates,
    written: &BTreeMap<String, String>,
    reported: &PackageStates,
) -> PackageStates {
    if recorded.is_empty() {
        return PackageStates::new();
    }
    let there = digests(recorded);
    let keys = there.keys().chain(written.keys());
    let edited = keys.filter(|key| there.get(*key) != written.get(*key));
    let edited: BTreeSet<&str> = edited.map(|key| name_of(key)).collect();
    let is_edited = |key: &str| edited.contains(name_of(key));
    let kept = recorded.iter().filter(|(key, _)| is_edited(key));
    let others = reported.iter().filter(|(key, _)| !is_edited(key));
    let all = kept.chain(others);
    all.map(|(key, status)| (key.clone(), status.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Stage, State};

    /// `name stage state`, and a version if it is not 1, separated by commas.
    fn states(text: &str) -> PackageStates {
        let entries = text.split(", ").filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| {
            let parts: Vec<&str> = entry.split(' ').collect();
            let status = PackageStatus {
                name: parts[0].to_owned(),
                version: parts.get(3).unwrap_or(&"1").to_string(),
                image: "i".to_owned(),
                container_sha: None,
                stage: parts[1].parse_stage(),
                state: parts[2].parse_state(),
                restarts: 0,
            };
            (format!("{}|{}", status.name, status.version), status)
        });
        entries.collect()
    }

    trait Parse {
        fn parse_stage(self) -> Stage;
        fn parse_state(self) -> State;
    }

    impl Parse for &str {
        fn parse_stage(self) -> Stage {
            serde_json::from_value(self.into()).unwrap()
        }

        fn parse_state(self) -> State {
            serde_json::from_value(self.into()).unwrap()
        }
    }

    #[test]
    fn what_nobody_has_edited_is_as_the_agent_left_it() {
        for (name, written, recorded, reported, want) in [
            (
                "a rerun of aa while bb goes on",
                "aa config complete, bb config in_progress",
                "aa apply in_progress, bb config in_progress",
                "aa config complete, bb config complete",
                "aa apply in_progress, bb config complete",
            ),
            (
                "aa is removed while bb goes on",
                "aa config complete, bb apply in_progress",
                "bb apply in_progress",
                "aa config complete, bb config in_progress",
                "bb config in_progress",
            ),
            (
                "aa is run again from the stage that it was in, and has failed since",
                "aa config complete",
                "aa config in_progress",
                "aa config complete",
                "aa config in_progress",
            ),
            (
                "bb has begun since",
                "aa config in_progress",
                "aa apply in_progress",
                "aa config complete, bb apply in_progress",
                "aa apply in_progress, bb apply in_progress",
            ),
            (
                "bb was uninstalled since",
                "aa config complete, bb uninstall in_progress",
                "aa apply in_progress, bb uninstall in_progress",
                "aa config complete",
                "aa apply in_progress",
            ),
            (
                "somebody adds cc",
                "aa config complete",
                "aa config complete, cc config complete",
                "aa config complete",
                "aa config complete, cc config complete",
            ),
            (
                "aa is edited at its old version while it is upgraded",
                "aa config complete 1, bb config in_progress",
                "aa apply in_progress 1, bb config in_progress",
                "aa config complete 2, bb config complete",
                "aa apply in_progress 1, bb config complete",
            ),
            (
                "all is removed, and bb has begun since",
                "aa config complete",
                "",
                "aa config complete, bb apply in_progress",
                "",
            ),
        ] {
            let written = digests(&states(written));
            let got = with_edits(&states(recorded), &written, &states(reported));
            assert_eq!(got, states(want), "{name}");
        }
    }
}
