//! The files of `node-metadata/`, in which steps can read about their Node and the Skyhook's packages.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use skyhook_crds::revision::RevisionData;

/// The properties of a Node that the agent needs.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub struct NodeFacts {
    pub name: String,
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub internal_ip: String,
    /// Allocatable resources (CPU, memory and others), as Kubernetes quantities.
    pub allocatable: BTreeMap<String, String>,
}

impl NodeFacts {
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let status = node.status.as_ref();
        let internal_ip = status
            .and_then(|s| s.addresses.as_ref())
            .and_then(|all| all.iter().find(|a| a.type_ == "InternalIP"))
            .map(|a| a.address.clone())
            .unwrap_or_default();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            annotations: node.metadata.annotations.clone().unwrap_or_default(),
            internal_ip,
            allocatable: status
                .and_then(|s| s.allocatable.as_ref())
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.0.clone()))
                .collect(),
        }
    }
}

/// Names and contents of the files in `node-metadata/`.
#[must_use]
pub fn files(
    node: &NodeFacts,
    revision: &RevisionData,
    agent_version: &str,
) -> BTreeMap<String, String> {
    let packages: Map<String, Value> = revision
        .packages
        .iter()
        .map(|(name, p)| {
            let mut package = json!({ "name": name, "version": p.version, "image": p.image });
            if let Some(image) = &p.agent_image_override {
                package["agentImageOverride"] = json!(image);
            }
            if let Some(interrupt) = &p.interrupt {
                package["interrupt"] = json!(interrupt);
            }
            if !p.config_interrupts.is_empty() {
                package["configInterrupts"] = json!(p.config_interrupts);
            }
            (name.clone(), package)
        })
        .collect();
    let packages = json!({ "agentVersion": agent_version, "packages": packages });
    [
        ("annotations.json", json!(node.annotations)),
        ("labels.json", json!(node.labels)),
        ("packages.json", packages),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_string()))
    .collect()
}
