//! What a Skyhook says about the runtime-required taint.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use serde_json::Value;

use super::{NodeFact, Wants};

/// What a Skyhook says about the runtime-required taint. It is read apart from the rest of the spec: a mistake elsewhere
/// in the spec must not free nodes that are not configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TaintDuty {
    /// Nodes keep the taint until the Skyhook is complete there.
    pub required: bool,
    /// New nodes get the taint. Only together with `required`.
    pub auto: bool,
    /// A node is cordoned when the taint is taken off.
    pub cordon_after: bool,
    /// Selects the nodes. `None` when it is not `required`, or when the selector cannot be read.
    nodes: Option<Wants>,
}

impl TaintDuty {
    /// Reads it from the spec of a Skyhook, as the API server stores it. A `runtimeRequired` of a wrong type counts as
    /// true.
    #[must_use]
    pub(super) fn read(spec: &Value) -> Self {
        let is_set = |field: &str| spec.get(field) == Some(&Value::Bool(true));
        let required = !matches!(
            spec.get("runtimeRequired"),
            None | Some(Value::Null | Value::Bool(false))
        );
        let nodes = spec.get("nodeSelectors").filter(|_| required);
        let nodes: Option<LabelSelector> = match nodes {
            None | Some(Value::Null) => required.then(LabelSelector::default),
            Some(nodes) => serde_json::from_value(nodes.clone()).ok(),
        };
        let nodes = nodes.and_then(|nodes| Selector::try_from(nodes).ok());
        Self {
            required,
            auto: required && is_set("autoTaintNewNodes"),
            cordon_after: required && is_set("runtimeRequiredCordonAfter"),
            nodes: nodes.map(Wants::from),
        }
    }

    /// True when the node has to keep the taint until the Skyhook is complete there.
    #[must_use]
    pub fn covers(&self, node: &NodeFact) -> bool {
        let nodes = self.nodes.as_ref();
        nodes.is_some_and(|nodes| node.labels.are_selected(nodes)) && node.is_host()
    }

    /// True when it is required on nodes of which nobody can tell which ones they are.
    #[must_use]
    pub const fn is_unreadable(&self) -> bool {
        self.required && self.nodes.is_none()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testkit;

    #[test]
    fn what_is_required_is_read_whatever_the_rest_of_the_spec_is() {
        let mut node = testkit::node("n");
        testkit::label(&mut node, "a", "b");
        let selects = json!({ "matchLabels": { "a": "b" } });
        let others = json!({ "matchLabels": { "a": "c" } });
        // Required, auto, cordon, covers the node, cannot be read.
        for (name, spec, want) in [
            ("nothing", json!({}), [false; 5]),
            ("no object", json!(7), [false; 5]),
            (
                "required",
                json!({ "runtimeRequired": true }),
                [true, false, false, true, false],
            ),
            (
                "of another type",
                json!({ "runtimeRequired": "yes" }),
                [true, false, false, true, false],
            ),
            ("null", json!({ "runtimeRequired": null }), [false; 5]),
            (
                "not required",
                json!({ "runtimeRequired": false, "autoTaintNewNodes": true, "nodeSelectors": 7 }),
                [false; 5],
            ),
            (
                "all of it",
                json!({
                    "runtimeRequired": true, "autoTaintNewNodes": true, "runtimeRequiredCordonAfter": true,
                    "nodeSelectors": selects, "packages": 7,
                }),
                [true, true, true, true, false],
            ),
            (
                "on other nodes",
                json!({ "runtimeRequired": true, "nodeSelectors": others }),
                [true, false, false, false, false],
            ),
            (
                "on nobody knows which nodes",
                json!({ "runtimeRequired": true, "nodeSelectors": { "matchLabels": 7 } }),
                [true, false, false, false, true],
            ),
            (
                "with an operator that does not exist",
                json!({
                    "runtimeRequired": true,
                    "nodeSelectors": { "matchExpressions": [{ "key": "a", "operator": "Is", "values": ["b"] }] },
                }),
                [true, false, false, false, true],
            ),
        ] {
            let duty = TaintDuty::read(&spec);
            let given = [
                duty.required,
                duty.auto,
                duty.cordon_after,
                duty.covers(&node),
                duty.is_unreadable(),
            ];
            assert_eq!(given, want, "{name}");
        }
    }
}
