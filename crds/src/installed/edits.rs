//! Which entries of a record somebody has edited, while an agent works on the same node.

use std::collections::BTreeMap;

use super::{PackageStates, render_states, states_digest};
use crate::package::PackageStatus;

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
/// entries that the coordinator wrote last. What nobody has edited is as the agent has left it. In a record that was emptied,
/// every entry was removed.
#[must_use]
pub fn with_edits(
    recorded: &PackageStates,
    written: &BTreeMap<String, String>,
    reported: &PackageStates,
) -> PackageStates {
    if recorded.is_empty() {
        return PackageStates::new();
    }
    let is_as_written =
        |(key, status): &(&String, &PackageStatus)| written.get(*key) == Some(&digest(key, status));
    let edited = recorded.iter().filter(|entry| !is_as_written(entry));
    let kept = reported.iter().filter(|(key, _)| {
        let status = recorded.get(*key);
        match status {
            Some(status) => is_as_written(&(*key, status)),
            // Somebody has removed it, or it is there since the last write.
            None => !written.contains_key(*key),
        }
    });
    let all = edited.chain(kept);
    all.map(|(key, status)| (key.clone(), status.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::{Stage, State};

    /// `name stage state`, separated by commas.
    fn states(text: &str) -> PackageStates {
        let entries = text.split(", ").filter(|entry| !entry.is_empty());
        let entries = entries.map(|entry| {
            let parts: Vec<&str> = entry.split(' ').collect();
            let status = PackageStatus {
                name: parts[0].to_owned(),
                version: "1".to_owned(),
                image: "i".to_owned(),
                container_sha: None,
                stage: parts[1].parse_stage(),
                state: parts[2].parse_state(),
                restarts: 0,
            };
            (format!("{}|1", parts[0]), status)
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
