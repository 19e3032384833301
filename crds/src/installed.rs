//! What the annotations of a Node say about the packages on it. Other tools read and edit this record.

mod early;
mod edits;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::package::PackageStatus;
use crate::stage::Stage;

pub use early::{is_early, is_whole, parse_states, with_images};

pub use edits::{digests, with_edits};

/// Package states by `name|version`.
pub type PackageStates = BTreeMap<String, PackageStatus>;

/// The newest form of the record on Nodes that this version writes and understands. The number grows when an older version
/// would misread what a newer one writes. The first form is 0. A record has form 1 while it has the stage
/// `uninstall-interrupt` or a version that is left behind.
pub const FORMAT: u32 = 1;

/// Where the package states of a Node came from (annotation [`crate::names::stamp`]).
///
/// A Node without it was registered anew, or is known from NVIDIA Skyhook alone.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Stamp {
    /// Form of the record. A version of Skyhook that does not know it does not write over the record.
    #[serde(skip_serializing_if = "is_first")]
    pub format: u32,
    /// UID of the lease whose result is recorded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub lease: String,
    /// Revision that the result is of.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    #[serde(rename = "bootID", skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    #[serde(rename = "machineID", skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// A random ID that the agent wrote to the host's disk. If the host has another one, it was installed anew.
    #[serde(rename = "hostID", skip_serializing_if = "String::is_empty")]
    pub host_id: String,
    /// How often each package that was not complete had asked for a reboot, by `name|version`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reboots: BTreeMap<String, u32>,
    /// Boot ID of the last boot before or at `boot_id` that Skyhook did not ask for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub epoch: String,
    /// The machine ID of the Node when the result was recorded. If the Node has another one now, another machine has taken
    /// over its name, and nothing is installed on it.
    #[serde(rename = "nodeMachineID", skip_serializing_if = "String::is_empty")]
    pub node_machine_id: String,
    /// UID of the lease under which the node is worked on now.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub granted: String,
    /// Whether the node was Ready when that lease was granted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub was_ready: bool,
    /// When the drain for the last result took too long (RFC 3339). The node is left alone for a while after that time.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub drain_timed_out: String,
    /// Digest of the package states that the coordinator wrote last. If the states have another digest, somebody has edited
    /// them.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub states: String,
    /// The same for each entry, while the node is worked on: what somebody edits then is told from what the agent changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<BTreeMap<String, String>>,
    /// `SKYHOOK_NODE_ORDER` of the node's last lease. It stays when the node is complete, so that no other node gets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order: Option<i64>,
    /// When the node was first picked (RFC 3339), until it is complete. That long it keeps its `order`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub picked: String,
    /// Another implementation had called the node complete when its record was taken over: it has left no interrupt undone.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
    /// Versions that stay on the host although a lower version of the package was installed over them, by `name|version`:
    /// their package had `uninstall.enabled: false` then.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub left_behind: BTreeSet<String>,
}

impl Stamp {
    /// The stamp of a record with these entries, in the oldest form that says all of it.
    #[must_use]
    pub fn in_form_of(self, states: &PackageStates) -> Self {
        let mut left_behind = self.left_behind;
        left_behind.retain(|key| states.contains_key(key));
        let mut stages = states.values().map(|status| status.stage);
        let is_second =
            !left_behind.is_empty() || stages.any(|stage| stage == Stage::UninstallInterrupt);
        Self {
            format: u32::from(is_second),
            left_behind,
            ..self
        }
    }

    /// The order that the node keeps under its next lease.
    #[must_use]
    pub fn kept_order(&self) -> Option<i64> {
        self.order.filter(|_| !self.picked.is_empty())
    }

    /// True when the last lease of the node ended before the node was complete, and not because pods did not leave.
    #[must_use]
    pub const fn is_in_midst(&self) -> bool {
        !self.picked.is_empty() && self.granted.is_empty() && self.drain_timed_out.is_empty()
    }

    /// True when the Node carries a result of ours.
    #[must_use]
    pub fn has_result(&self) -> bool {
        !self.lease.is_empty()
    }

    /// True when a newer version wrote the record. This version may not understand it, and must not overwrite it.
    #[must_use]
    pub const fn is_newer(&self) -> bool {
        self.format > FORMAT
    }

    /// Reads the annotation. One that cannot be read counts as absent, because only Skyhook writes it. The exception is one
    /// that says that it has a newer form.
    #[must_use]
    pub fn parse(annotation: Option<&str>) -> Option<Self> {
        let annotation = annotation?;
        serde_json::from_str(annotation).ok().or_else(|| {
            let foreign: serde_json::Value = serde_json::from_str(annotation).ok()?;
            let format = u32::try_from(foreign.get("format")?.as_u64()?).unwrap_or(u32::MAX);
            let stamp = Self {
                format,
                ..Self::default()
            };
            stamp.is_newer().then_some(stamp)
        })
    }

    /// The annotation's value.
    #[must_use]
    pub fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
const fn is_first(format: &u32) -> bool {
    *format == 0
}

/// Who cordoned a Node, and what protects it from cluster autoscalers (annotation [`crate::names::CORDON_OWNERS`]).
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct CordonRecord {
    /// Whether the node was unschedulable before the first of us came.
    pub was_unschedulable: bool,
    /// Skyhook to the UID of the lease that it cordoned under.
    pub owners: BTreeMap<String, String>,
    /// Annotations that we set to keep cluster autoscalers from removing the node.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub protects: BTreeSet<String>,
}

impl CordonRecord {
    /// True when the annotation is not needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owners.is_empty() && self.protects.is_empty()
    }

    /// Reads the annotation. If it is absent or cannot be read, no Skyhook holds a cordon.
    #[must_use]
    pub fn parse(annotation: Option<&str>) -> Self {
        annotation
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }

    /// The annotation's value.
    #[must_use]
    pub fn render(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A `nodeState_<skyhook>` annotation that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateProblem {
    #[error(
        "annotation {annotation} cannot be read: {problem}; delete it to have every package applied again, or correct it"
    )]
    Malformed { annotation: String, problem: String },
    #[error(
        "annotation {annotation}: {package} is in a stage that this version does not know: a newer one wrote it; upgrade \
         the coordinator"
    )]
    Newer { annotation: String, package: String },
}

/// The annotation's value: compact JSON, keys sorted.
#[must_use]
pub fn render_states(states: &PackageStates) -> String {
    serde_json::to_string(states).unwrap_or_default()
}

/// Digest of an annotation's value, for [`Stamp::states`].
#[must_use]
pub fn states_digest(value: &str) -> String {
    hex(&Sha256::digest(value.as_bytes())[..8])
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"a|1.0.0":{"name":"a","version":"1.0.0","image":"r/a","stage":"config","state":"complete"}}"#;

    #[test]
    fn a_stamp_of_a_newer_form_is_seen_as_such_whatever_it_holds() {
        for (annotation, want) in [
            (r#"{"lease":"u","revision":"r"}"#, Some((0, false))),
            (r#"{"format":1,"lease":"u"}"#, Some((1, false))),
            (r#"{"format":2,"lease":"u"}"#, Some((2, true))),
            (r#"{"format":7,"lease":{"uid":"u"}}"#, Some((7, true))),
            (
                r#"{"format":99999999999,"lease":[]}"#,
                Some((u32::MAX, true)),
            ),
            (r#"{"lease":{"uid":"u"}}"#, None),
            ("garbage", None),
        ] {
            let stamp = Stamp::parse(Some(annotation));
            let given = stamp.map(|stamp| (stamp.format, stamp.is_newer()));
            assert_eq!(given, want, "{annotation}");
        }
        assert!(!Stamp::default().render().contains("format"));
    }

    #[test]
    fn a_record_has_the_oldest_form_that_says_all_of_it() {
        let states = parse_states("x", Some(STATE), false).unwrap();
        let interrupting = STATE.replace("config", "uninstall-interrupt");
        let interrupting = parse_states("x", Some(&interrupting), false).unwrap();
        let left = Stamp {
            left_behind: ["a|2.0.0".to_owned()].into(),
            ..Stamp::default()
        };
        let higher = states["a|1.0.0"].clone();
        let mut with_left = states.clone();
        with_left.insert("a|2.0.0".to_owned(), higher);
        for (name, stamp, states, want) in [
            ("nothing new", Stamp::default(), &states, 0),
            (
                "an uninstall that waits for its interrupt",
                Stamp::default(),
                &interrupting,
                1,
            ),
            ("a version is left behind", left.clone(), &with_left, 1),
            ("it is there no longer", left, &states, 0),
            (
                "no longer",
                Stamp {
                    format: 1,
                    ..Stamp::default()
                },
                &states,
                0,
            ),
        ] {
            assert_eq!(stamp.in_form_of(states).format, want, "{name}");
        }
    }

    #[test]
    fn states_survive_a_round_trip_byte_for_byte() {
        let states = parse_states("x", Some(STATE), false).unwrap();
        assert_eq!(render_states(&states), STATE);
        assert_eq!(render_states(&PackageStates::new()), "{}");
    }

    #[test]
    fn what_the_reference_wrote_is_read() {
        for (value, entries) in [
            (None, 0),
            (Some(""), 0),
            (Some("{}"), 0),
            (
                Some(
                    r#"{"a|1":{"name":"a","version":"1","image":"i","containerSHA":"sha256:x","stage":"post-interrupt","state":"skipped","restarts":3,"future":1}}"#,
                ),
                1,
            ),
        ] {
            assert_eq!(
                parse_states("x", value, false).unwrap().len(),
                entries,
                "{value:?}"
            );
        }
    }

    #[test]
    fn early_keys_get_their_version() {
        let early = r#"{"a":{"name":"a","version":"1.0.0","image":"r/a","stage":"config","state":"complete"}}"#;
        let states = parse_states("x", Some(early), false).unwrap();
        assert_eq!(render_states(&states), STATE);
        // What a later version wrote of the same package stands.
        let both = early
            .replace("config", "apply")
            .replacen('}', "},\"a|1.0.0\":", 1);
        let both = both.trim_end_matches('}').to_owned()
            + r#"{"name":"a","version":"1.0.0","image":"r/a","stage":"config","state":"complete"}}"#;
        let states = parse_states("x", Some(&both), false).unwrap();
        assert_eq!(render_states(&states), STATE);
    }

    #[test]
    fn malformed_states_name_the_annotation() {
        let error = parse_states("skyhook.nvidia.com/nodeState_s", Some("{"), false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("skyhook.nvidia.com/nodeState_s"), "{error}");
    }

    #[test]
    fn a_stage_of_a_newer_version_is_said_to_be_one() {
        let newer = STATE.replace("config", "quarantine");
        let error = parse_states("x", Some(&newer), false).unwrap_err();
        let want = StateProblem::Newer {
            annotation: "x".into(),
            package: "a|1.0.0".into(),
        };
        assert_eq!(error, want);
        // Nobody is told to delete what a newer version wrote.
        assert!(!error.to_string().contains("delete"), "{error}");
    }

    #[test]
    fn a_node_keeps_its_order_until_it_is_complete() {
        // (order, picked, granted, drain timed out) and: the order that it keeps, whether it is in the midst.
        for (what, order, picked, granted, timed_out, kept, in_midst) in [
            ("never picked", None, "", "", "", None, false),
            ("under a lease", Some(3), "t", "uid", "", Some(3), false),
            ("stopped", Some(3), "t", "", "", Some(3), true),
            ("pods did not leave", Some(3), "t", "", "t", Some(3), false),
            ("complete", Some(3), "", "", "", None, false),
        ] {
            let stamp = Stamp {
                order,
                picked: picked.into(),
                granted: granted.into(),
                drain_timed_out: timed_out.into(),
                ..Stamp::default()
            };
            let given = (stamp.kept_order(), stamp.is_in_midst());
            assert_eq!(given, (kept, in_midst), "{what}");
            assert_eq!(Stamp::parse(Some(&stamp.render())), Some(stamp), "{what}");
        }
    }

    #[test]
    fn a_stamp_of_a_grant_is_not_a_result() {
        let stamp = Stamp {
            granted: "uid".into(),
            ..Stamp::default()
        };
        assert_eq!(Stamp::parse(Some(&stamp.render())), Some(stamp.clone()));
        assert!(!stamp.has_result());
        assert_eq!(Stamp::parse(None), None);
        assert_eq!(Stamp::parse(Some("not json")), None);
    }
}
