//! Finds out which Skyhooks of the host are deleted.
//!
//! A Skyhook is missing while the Node has neither its record nor its stamp, and the cluster has none of its revisions. A
//! Node that was registered anew has no record either: there, the revisions tell that the Skyhook still exists.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::names;

use crate::lease::{ApiError, LeaseApi};

/// The Skyhooks of `remembered` that are missing, see above. `None` when the API does not answer.
pub(super) async fn look(
    api: &LeaseApi,
    mut remembered: BTreeMap<String, BTreeSet<String>>,
) -> Option<BTreeSet<String>> {
    if remembered.is_empty() {
        return Some(BTreeSet::new());
    }
    let node = api.node().await.ok()?;
    remembered.retain(|skyhook, _| !shows(&node.annotations, skyhook));
    let exists = async |revision: &str| match api.revision(revision).await {
        Ok(_) => Some(true),
        Err(ApiError::NotFound { .. }) => Some(false),
        Err(_) => None,
    };
    without_revisions(&remembered, exists).await
}

/// True when a Node with these annotations has a record or a stamp of the Skyhook.
fn shows(annotations: &BTreeMap<String, String>, skyhook: &str) -> bool {
    let record = names::node_state(skyhook);
    let keys = [names::successor(&record), record, names::stamp(skyhook)];
    keys.iter().any(|key| annotations.contains_key(key))
}

/// The Skyhooks of which no revision exists. The coordinator keeps the revisions that a Node names, also when the Skyhook
/// is deleted. `exists` returns `None` when the API does not answer.
async fn without_revisions(
    remembered: &BTreeMap<String, BTreeSet<String>>,
    exists: impl AsyncFn(&str) -> Option<bool>,
) -> Option<BTreeSet<String>> {
    let mut without = BTreeSet::new();
    for (skyhook, revisions) in remembered {
        let mut is_without = !revisions.is_empty();
        for revision in revisions {
            is_without = is_without && !exists(revision).await?;
        }
        if is_without {
            without.insert(skyhook.clone());
        }
    }
    Some(without)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[tokio::test]
    async fn a_skyhook_is_missing_when_the_cluster_has_none_of_its_revisions() {
        let mut remembered: BTreeMap<String, BTreeSet<String>> = [
            ("there", set(&["old", "new"])),
            ("gone", set(&["old"])),
            ("of an earlier agent", set(&[])),
        ]
        .map(|(name, revisions)| (name.to_owned(), revisions))
        .into();
        let exists = async |revision: &str| match revision {
            "new" => Some(true),
            "silence" => None,
            _ => Some(false),
        };
        let missing = without_revisions(&remembered, exists).await;
        assert_eq!(missing, Some(set(&["gone"])));
        remembered.insert("unknown".to_owned(), set(&["old", "silence"]));
        let missing = without_revisions(&remembered, exists).await;
        assert_eq!(missing, None, "the API does not answer");
    }

    #[test]
    fn a_record_or_a_stamp_of_any_implementation_is_seen() {
        for (key, want) in [
            ("skyhook.nvidia.com/nodeState_s", true),
            ("skyhook.nvidia.com/stamp_s", true),
            ("nodewright.nvidia.com/nodeState_s", true),
            ("skyhook.nvidia.com/nodeState_s2", false),
            ("skyhook.nvidia.com/status_s", false),
        ] {
            let annotations = [(key.to_owned(), "{}".to_owned())].into();
            assert_eq!(shows(&annotations, "s"), want, "{key}");
        }
    }
}
