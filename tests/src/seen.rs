//! Every version of every Node, from the one ordered stream of them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use skyhook_crds::names;
use skyhook_integration::record::{Record, Recorder};

/// Records for as long as it lives.
pub type NodeRecorder = Recorder<Seen>;

/// All versions of all Nodes.
#[derive(Debug, Default)]
pub struct Seen(BTreeMap<String, Vec<Node>>);

impl Record for Seen {
    type Object = Node;

    fn is(&mut self, node: Node) {
        self.0.entry(node.name_any()).or_default().push(node);
    }

    fn is_gone(&mut self, _: Node) {}
}

impl Seen {
    /// All versions of a Node, the oldest first.
    #[must_use]
    pub fn versions(&self, node: &str) -> &[Node] {
        self.0.get(node).map_or(&[], Vec::as_slice)
    }
}

/// The taints of a Node in their order, each as `key=value:effect`.
#[must_use]
pub fn taints(node: &Node) -> Vec<String> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let show = |taint: &k8s_openapi::api::core::v1::Taint| {
        let value = taint.value.as_deref().unwrap_or_default();
        format!("{}={value}:{}", taint.key, taint.effect)
    };
    taints.into_iter().flatten().map(show).collect()
}

/// True for a Node that is cordoned.
#[must_use]
pub fn is_cordoned(node: &Node) -> bool {
    let spec = node.spec.as_ref();
    spec.and_then(|spec| spec.unschedulable).unwrap_or_default()
}

/// An annotation of a Node.
#[must_use]
pub fn annotation<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.annotations().get(key).map(String::as_str)
}

/// All that Skyhook or NodeWright says on a Node: keys of annotations and labels, and types of conditions.
#[must_use]
pub fn marks(node: &Node) -> Vec<String> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let types = conditions.into_iter().flatten().map(|one| &one.type_);
    let keys = node.annotations().keys().chain(node.labels().keys());
    keys.chain(types)
        .filter(|key| names::is_mark(key))
        .cloned()
        .collect()
}
