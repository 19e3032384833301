//! Cordons and their owners: how a cordon is taken and given back, and the sweep over cordons whose owner is gone. A
//! drain takes a cordon for a Skyhook, and the write of the result gives it back.
//!
//! A cordon is taken with one write: the owner, the former value of `unschedulable`, and `unschedulable` itself. When
//! the last owner gives the cordon back, the former value is restored. Giving back never cordons a node.
//!
//! A node that somebody else cordoned gets no `cordon_<skyhook>`, because NVIDIA Skyhook and NodeWright uncordon a node
//! that has such a mark. The record of owners alone says who needs the cordon.

mod sweep;

use skyhook_crds::installed::CordonRecord;
use skyhook_crds::names;

use crate::effect::NodePatch;
use crate::facts::NodeFact;

pub(super) use sweep::sweep;

/// True when the node is cordoned under this lease by any Skyhook.
#[must_use]
pub fn is_held_for(node: &NodeFact, lease_uid: &str) -> bool {
    node.unschedulable && node.cordon.owners.values().any(|uid| uid == lease_uid)
}

/// True when the node is cordoned for this very lease.
#[must_use]
pub fn is_held(node: &NodeFact, skyhook: &str, lease_uid: &str) -> bool {
    node.unschedulable
        && node
            .cordon
            .owners
            .get(skyhook)
            .is_some_and(|uid| uid == lease_uid)
}

/// True when the Skyhook owns a cordon of the node, under any lease.
#[must_use]
pub fn is_started(node: &NodeFact, skyhook: &str) -> bool {
    node.cordon.owners.contains_key(skyhook)
}

/// Cordons the node for a lease.
#[must_use]
pub fn take(node: &NodeFact, skyhook: &str, lease_uid: &str) -> NodePatch {
    let mut record = node.cordon.clone();
    // If somebody uncordoned the node in between, the node will be left uncordoned.
    if record.owners.is_empty() || !node.unschedulable {
        record.was_unschedulable = node.unschedulable;
    }
    record
        .owners
        .insert(skyhook.to_owned(), lease_uid.to_owned());
    let mark = (!record.was_unschedulable).then(|| "true".to_owned());
    let mut patch = NodePatch::default()
        .annotation(&names::cordon(skyhook), mark)
        .cordon(&record);
    patch.unschedulable = Some(true);
    patch
}

/// Gives back the cordons of some Skyhooks.
#[must_use]
pub fn give_back<'a>(node: &NodeFact, skyhooks: impl IntoIterator<Item = &'a str>) -> NodePatch {
    let mut record = node.cordon.clone();
    let mut patch = NodePatch::default();
    let mut given = false;
    for skyhook in skyhooks {
        if record.owners.remove(skyhook).is_some() {
            patch = unmarked(patch, skyhook);
            given = true;
        }
    }
    if !given {
        return patch;
    }
    if record.owners.is_empty() && !record.was_unschedulable {
        patch.unschedulable = Some(false);
    }
    patch.cordon(&record)
}

/// Removes all owners from a node that somebody uncordoned. A later cordon belongs to the person or tool that sets it.
#[must_use]
pub fn forget(node: &NodeFact) -> NodePatch {
    let owners = node.cordon.owners.keys();
    owners
        .fold(NodePatch::default(), |patch, owner| unmarked(patch, owner))
        .cordon(&CordonRecord {
            protects: node.cordon.protects.clone(),
            ..CordonRecord::default()
        })
}

/// Removes the mark of a Skyhook, NodeWright's as well.
fn unmarked(patch: NodePatch, skyhook: &str) -> NodePatch {
    let mark = names::cordon(skyhook);
    patch
        .annotation(&names::successor(&mark), None)
        .annotation(&mark, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit;

    /// Takes and gives back in the order given; says whether the node is cordoned after each.
    fn play(unschedulable: bool, steps: &[(&str, bool)]) -> Vec<bool> {
        let mut node = testkit::node("worker-1");
        node.unschedulable = unschedulable;
        let mut seen = Vec::new();
        for (skyhook, takes) in steps {
            let patch = if *takes {
                take(&node, skyhook, "uid")
            } else {
                give_back(&node, [*skyhook])
            };
            node = testkit::patched(&node, &patch);
            seen.push(node.unschedulable);
        }
        assert!(
            node.annotations.keys().all(|key| !key.contains("cordon"))
                || !node.cordon.owners.is_empty()
        );
        seen
    }

    #[test]
    fn the_last_owner_restores_what_was_there() {
        for (name, before, steps, want) in [
            (
                "one owner",
                false,
                vec![("a", true), ("a", false)],
                vec![true, false],
            ),
            (
                "two owners",
                false,
                vec![("a", true), ("b", true), ("a", false), ("b", false)],
                vec![true, true, true, false],
            ),
            (
                "an administrator's cordon",
                true,
                vec![("a", true), ("a", false)],
                vec![true, true],
            ),
            ("never ours", true, vec![("a", false)], vec![true]),
            (
                "given back twice",
                false,
                vec![("a", true), ("a", false), ("a", false)],
                vec![true, false, false],
            ),
        ] {
            assert_eq!(play(before, &steps), want, "{name}");
        }
    }

    #[test]
    fn a_cordon_of_somebody_else_gets_no_mark() {
        // Each step: whether an administrator uncordons the node first, who takes or gives back, whether the node is
        // cordoned afterwards, the record, and who has a mark.
        let owned = |was: bool, owners: &[&str]| {
            let owners = owners
                .iter()
                .map(|owner| ((*owner).to_owned(), "uid".to_owned()));
            CordonRecord {
                was_unschedulable: was,
                owners: owners.collect(),
                ..CordonRecord::default()
            }
        };
        let none = CordonRecord::default();
        for (name, before, steps) in [
            (
                "an ordinary node",
                false,
                vec![
                    (false, "s", true, true, owned(false, &["s"]), vec!["s"]),
                    (false, "s", false, false, none.clone(), vec![]),
                ],
            ),
            (
                "a node that an administrator cordoned",
                true,
                vec![
                    (false, "s", true, true, owned(true, &["s"]), vec![]),
                    (false, "s", false, true, none.clone(), vec![]),
                ],
            ),
            (
                "two Skyhooks on such a node",
                true,
                vec![
                    (false, "s", true, true, owned(true, &["s"]), vec![]),
                    (false, "t", true, true, owned(true, &["s", "t"]), vec![]),
                    (false, "s", false, true, owned(true, &["t"]), vec![]),
                    (false, "t", false, true, none.clone(), vec![]),
                ],
            ),
            (
                "the administrator uncordons it during the drain",
                true,
                vec![
                    (false, "s", true, true, owned(true, &["s"]), vec![]),
                    (true, "s", true, true, owned(false, &["s"]), vec!["s"]),
                    (false, "s", false, false, none, vec![]),
                ],
            ),
        ] {
            let mut node = testkit::node("worker-1");
            node.unschedulable = before;
            for (n, (uncordons, skyhook, takes, cordoned, record, marked)) in
                steps.into_iter().enumerate()
            {
                node.unschedulable &= !uncordons;
                let patch = if takes {
                    take(&node, skyhook, "uid")
                } else {
                    give_back(&node, [skyhook])
                };
                node = testkit::patched(&node, &patch);
                let marks = node.annotations.iter();
                let marks = marks.filter_map(|(key, value)| {
                    let owner = key.strip_prefix(&names::cordon(""))?;
                    (value == "true").then_some(owner)
                });
                let marks: Vec<&str> = marks.collect();
                let given = (node.unschedulable, &node.cordon, marks);
                assert_eq!(given, (cordoned, &record, marked), "{name}, step {n}");
            }
        }
    }

    #[test]
    fn a_mark_of_nodewright_goes_with_ours() {
        let node = testkit::node("worker-1");
        let node = testkit::patched(&node, &take(&node, "s", "one"));
        let theirs = "nodewright.nvidia.com/cordon_s";
        for patch in [give_back(&node, ["s"]), forget(&node)] {
            assert_eq!(patch.annotations[theirs], None);
            assert_eq!(patch.annotations[&names::cordon("s")], None);
        }
    }

    /// The command line of NVIDIA Skyhook removes the mark and knows nothing of the record.
    #[test]
    fn a_reset_of_nvidia_skyhook_changes_nothing_about_a_cordon() {
        for was in [false, true] {
            let mut node = testkit::node("worker-1");
            node.unschedulable = was;
            let node = testkit::patched(&node, &take(&node, "s", "one"));
            let reset = NodePatch::default().annotation(&names::cordon("s"), None);
            let node = testkit::patched(&node, &reset);
            assert!(is_held(&node, "s", "one"));
            let left = testkit::patched(&node, &give_back(&node, ["s"]));
            assert_eq!(
                (left.unschedulable, left.cordon),
                (was, CordonRecord::default())
            );
        }
    }

    #[test]
    fn who_uncordons_has_the_last_word() {
        let node = testkit::node("worker-1");
        let mut node = testkit::patched(&node, &take(&node, "a", "one"));
        node.unschedulable = false;
        let forgotten = testkit::patched(&node, &forget(&node));
        assert!(forgotten.cordon.owners.is_empty() && !forgotten.unschedulable);
        // From here on, an administrator has cordoned the node.
        let theirs = NodeFact {
            unschedulable: true,
            ..forgotten
        };
        let ours = testkit::patched(&theirs, &take(&theirs, "a", "one"));
        assert!(testkit::patched(&ours, &give_back(&ours, ["a"])).unschedulable);
        // An administrator cordons the node first, and uncordons it while our cordon is on.
        let mut first = testkit::node("worker-1");
        first.unschedulable = true;
        let mut first = testkit::patched(&first, &take(&first, "a", "one"));
        first.unschedulable = false;
        let again = testkit::patched(&first, &take(&first, "a", "one"));
        assert!(!testkit::patched(&again, &give_back(&again, ["a"])).unschedulable);
    }

    #[test]
    fn a_cordon_of_another_lease_is_not_held() {
        let node = testkit::node("worker-1");
        let node = testkit::patched(&node, &take(&node, "a", "one"));
        assert!(is_held(&node, "a", "one"));
        assert!(!is_held(&node, "a", "two"));
        assert!(!is_held(&node, "b", "one"));
    }
}
