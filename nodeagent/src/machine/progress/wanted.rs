//! What a revision asks for: the parts of each package that the machine needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use skyhook_crds::Package;
use skyhook_crds::package::{Interrupt, Uninstall};
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
    #[serde(default, skip_serializing_if = "Limits::is_unset")]
    pub limits: Limits,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uninstall: Option<Uninstall>,
    /// What the package requests and the node does not have, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
}

/// How long and how often a stage of a package is tried. They are no part of the identity: a change of them restarts
/// nothing.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// How long the steps of one attempt may take together. 0: no limit. `None`: the default holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage_timeout_ms: Option<u64>,
    /// How often a stage is tried. 0: for ever. `None`: the default holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
}

impl Limits {
    /// The limits that a package sets itself.
    #[must_use]
    pub fn of(package: &Package) -> Self {
        let timeout = package.stage_timeout.as_ref();
        Self {
            stage_timeout_ms: timeout.and_then(|timeout| timeout.value().ok()).map(millis),
            max_attempts: package
                .max_attempts
                .and_then(|most| u32::try_from(most).ok()),
        }
    }

    /// These limits, and `default` for those that are not set.
    #[must_use]
    pub fn or(self, default: Self) -> Self {
        Self {
            stage_timeout_ms: self.stage_timeout_ms.or(default.stage_timeout_ms),
            max_attempts: self.max_attempts.or(default.max_attempts),
        }
    }

    /// How long the steps of one attempt may take together; `None`: as long as they like.
    #[must_use]
    pub fn stage_timeout_ms(self) -> Option<u64> {
        self.stage_timeout_ms.filter(|timeout| *timeout > 0)
    }

    /// How often a stage is tried; `None`: for ever.
    #[must_use]
    pub fn max_attempts(self) -> Option<u32> {
        self.max_attempts.filter(|most| *most > 0)
    }

    /// True when no limit is set.
    pub(super) fn is_unset(&self) -> bool {
        *self == Self::default()
    }
}

/// In milliseconds, rounded up: a duration that is not zero stays a limit.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
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
            limits: Limits::of(package),
            uninstall: package.uninstall,
            lacks: None,
        }
    }

    /// True when every version of the package has to go from the host.
    #[must_use]
    pub fn is_to_go(&self) -> bool {
        self.uninstall.is_some_and(Uninstall::is_due)
    }

    /// True when a higher version stays on the host when a lower one is installed.
    #[must_use]
    pub fn stays_behind(&self) -> bool {
        self.uninstall.is_some_and(|uninstall| !uninstall.enabled)
    }

    /// The parts of every package of a revision, on a node that lacks this for packages.
    #[must_use]
    pub fn of_revision_on(
        data: &RevisionData,
        lacking: &BTreeMap<String, String>,
    ) -> BTreeMap<String, Self> {
        let mut wanted = Self::of_revision(data);
        for (name, wanted) in &mut wanted {
            wanted.lacks = lacking.get(name).cloned();
        }
        wanted
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
