//! What a revision asks for: the parts of each package that the machine needs.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyhook_crds::Package;
use skyhook_crds::package::Interrupt;
use skyhook_crds::revision::{RevisionData, config_digests};

/// The parts of a package in a revision that the machine needs.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    pub version: String,
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_sha: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub depends_on: BTreeSet<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<Interrupt>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_interrupts: BTreeMap<String, Interrupt>,
    /// Digests of the configMap's values, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config: BTreeMap<String, String>,
    /// Digest of image, env, resources and agent image. A change of it restarts a cycle that is not complete.
    pub identity: String,
}

impl Wanted {
    /// The parts of `package`.
    #[must_use]
    pub fn of(package: &Package) -> Self {
        let identity = serde_json::json!([
            package.image,
            package.container_sha,
            package.env,
            package.resources,
            package.agent_image_override,
        ]);
        let digest = Sha256::digest(identity.to_string().as_bytes());
        Self {
            version: package.version.clone(),
            image: package.image.clone(),
            container_sha: package.container_sha.clone(),
            depends_on: package.depends_on.keys().cloned().collect(),
            interrupt: package.interrupt.clone(),
            config_interrupts: package.config_interrupts.clone(),
            config: config_digests(&package.config_map),
            identity: hex::encode(&digest[..16]),
        }
    }

    /// The parts of every package of a revision.
    #[must_use]
    pub fn of_revision(data: &RevisionData) -> BTreeMap<String, Self> {
        data.packages
            .iter()
            .map(|(name, package)| (name.clone(), Self::of(package)))
            .collect()
    }
}
