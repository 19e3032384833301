//! Taints of Nodes: the runtime-required taint, and which taints a Skyhook tolerates.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::core::v1::{Taint, Toleration};
use skyhook_crds::names;

use crate::facts::{NodeFact, SkyhookFact};

/// The taint that keeps pods off a node until every runtimeRequired Skyhook is complete there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeTaint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// Why a text is not a runtime-required taint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTaint {
    #[error("--runtime-required-taint must have the form key=value:effect or key:effect")]
    Form,
    #[error(
        "--runtime-required-taint: the effect {0:?} must be NoSchedule, PreferNoSchedule or NoExecute"
    )]
    Effect(String),
    #[error("--runtime-required-taint: {0:?} must be a key that Kubernetes takes for a taint")]
    Key(String),
    #[error("--runtime-required-taint: {0:?} must be a value that Kubernetes takes for a taint")]
    Value(String),
    #[error(
        "--runtime-required-taint: the key has {length} characters; it must have {} at most, because an annotation of the \
         Node has it in its name",
        names::MAX_TAINT_KEY
    )]
    TooLong { length: usize },
}

impl Default for RuntimeTaint {
    fn default() -> Self {
        Self {
            key: names::GROUP.to_owned(),
            value: "runtime-required".to_owned(),
            effect: NO_SCHEDULE.to_owned(),
        }
    }
}

impl FromStr for RuntimeTaint {
    type Err = InvalidTaint;

    fn from_str(text: &str) -> Result<Self, InvalidTaint> {
        let (taint, effect) = text.rsplit_once(':').ok_or(InvalidTaint::Form)?;
        let (key, value) = taint.split_once('=').unwrap_or((taint, ""));
        if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
            return Err(InvalidTaint::Effect(effect.to_owned()));
        }
        if key.len() > names::MAX_TAINT_KEY {
            return Err(InvalidTaint::TooLong { length: key.len() });
        }
        let (prefix, name) = key.split_once('/').unwrap_or(("a", key));
        // The characters of a name are those of a label's value.
        if !names::is_label_value(prefix) || !names::is_label_value(name) {
            return Err(InvalidTaint::Key(key.to_owned()));
        }
        if !value.is_empty() && !names::is_label_value(value) {
            return Err(InvalidTaint::Value(value.to_owned()));
        }
        Ok(Self {
            key: key.to_owned(),
            value: value.to_owned(),
            effect: effect.to_owned(),
        })
    }
}

impl fmt::Display for RuntimeTaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.taint()))
    }
}

impl RuntimeTaint {
    /// The taint as a Node has it.
    #[must_use]
    pub fn taint(&self) -> Taint {
        Taint {
            key: self.key.clone(),
            value: Some(self.value.clone()).filter(|value| !value.is_empty()),
            effect: self.effect.clone(),
            time_added: None,
        }
    }

    /// True for the configured taint and for the two default ones. Values do not count.
    fn matches(&self, taint: &Taint) -> bool {
        let is_default = [names::GROUP, names::SUCCESSOR].contains(&taint.key.as_str())
            && taint.effect == NO_SCHEDULE;
        is_default || (taint.key == self.key && taint.effect == self.effect)
    }
}

/// True for a runtime-required taint, and for a taint that we put on the node before the setting was changed.
#[must_use]
pub fn is_ours(runtime: &RuntimeTaint, node: &NodeFact, taint: &Taint) -> bool {
    runtime.matches(taint) || is_put_by_us(node, taint)
}

/// True when an annotation of the Node says that we put the taint there.
#[must_use]
pub fn is_put_by_us(node: &NodeFact, taint: &Taint) -> bool {
    let key = names::auto_taint(&taint.key);
    let says = |key: &str| {
        node.annotations
            .get(key)
            .is_some_and(|value| value == "true")
    };
    says(&key) || says(&names::successor(&key))
}

/// The first taint of ours on the node.
pub(crate) fn ours<'a>(runtime: &RuntimeTaint, node: &'a NodeFact) -> Option<&'a Taint> {
    let mut taints = node.taints.iter();
    taints.find(|taint| is_ours(runtime, node, taint))
}

const NO_SCHEDULE: &str = "NoSchedule";

/// Taints that say that a node is not Ready.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The rule of NVIDIA Skyhook, for taints of any effect. A taint is tolerated in three cases: it is the unschedulable
/// taint; one of the Skyhook's own tolerations matches it; it is a runtime-required taint, and the Skyhook is
/// runtimeRequired.
pub(crate) fn is_tolerated(
    runtime: &RuntimeTaint,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    taint: &Taint,
) -> bool {
    let unschedulable = taint.key == names::UNSCHEDULABLE_TAINT && taint.effect == NO_SCHEDULE;
    unschedulable
        || (skyhook.taint.required && is_ours(runtime, node, taint))
        || skyhook
            .spec
            .additional_tolerations
            .iter()
            .any(|t| tolerates(t, taint))
}

/// Kubernetes' rule: an empty key with Exists matches all keys, an empty effect matches all effects.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

/// The taint as kubectl shows it.
pub(crate) fn show(taint: &Taint) -> String {
    match taint.value.as_deref().filter(|value| !value.is_empty()) {
        Some(value) => format!("{}={value}:{}", taint.key, taint.effect),
        None => format!("{}:{}", taint.key, taint.effect),
    }
}

/// The message about a taint that is not tolerated: what it means, and what an administrator can do.
pub(crate) fn intolerable(
    runtime: &RuntimeTaint,
    skyhook: &SkyhookFact,
    node: &NodeFact,
    taint: &Taint,
) -> String {
    let shown = show(taint);
    if is_ours(runtime, node, taint) {
        return format!(
            "taint {shown} is not tolerated: it stays until every runtimeRequired Skyhook is complete here, and those that \
             come later wait for this one: set spec.runtimeRequired, or add it to spec.additionalTolerations"
        );
    }
    // What takes the other taint off may be kept off itself by ours.
    let circle = ours(runtime, node).filter(|_| skyhook.taint.covers(node));
    let circle = circle.map_or_else(String::new, |ours| {
        format!(
            "; what takes {shown} off may itself wait for the taint {}, which goes when this Skyhook is complete here",
            show(ours)
        )
    });
    if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) {
        format!(
            "the node is not Ready: it is taken when it is, or before that with a toleration of {shown} in \
             spec.additionalTolerations{circle}"
        )
    } else {
        format!("taint {shown} is not tolerated: add it to spec.additionalTolerations{circle}")
    }
}
#[cfg(test)]
mod tests;
