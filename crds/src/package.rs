//! A package of a Skyhook: its image, its configuration, and the interrupts it asks for.

mod check;
mod uninstall;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::EnvVar;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::GoDuration;
use crate::quantity::Quantity;
use crate::stage::{Stage, State};

pub use uninstall::Uninstall;

/// One package. `image` carries no tag: the tag is the version.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Package {
    /// Name of the package. It can be left out: it is the key in `packages`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 43))]
    pub name: String,
    /// Version of the package: a semantic version. It is also the tag of the image, with "_" in place of "+".
    pub version: String,
    /// Image of the package, without a tag.
    pub image: String,
    /// Digest of the image (`sha256:…`). If it is set, only this image is used, whatever the tag points to.
    #[serde(
        rename = "containerSHA",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub container_sha: Option<String>,
    /// Has no effect. It is accepted so that manifests for NVIDIA Skyhook work. The node's agent runs the steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_image_override: Option<String>,
    /// The interrupt that the host needs after the package was installed or upgraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupt: Option<Interrupt>,
    /// The interrupts that the host needs after the configuration has changed. The key of each interrupt is a key of
    /// `configMap`, or a glob that matches such keys.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_interrupts: BTreeMap<String, Interrupt>,
    /// Configuration of the package. Its steps find the value of each key in a file with that name in `configmaps/`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub config_map: BTreeMap<String, String>,
    /// Packages that have to be complete before this one starts, with their versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: BTreeMap<String, String>,
    /// Environment variables of the package's steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// CPU and memory for the package's steps. Set all four fields or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How long a step may go on after it was told to end, for example `2m`. The default is 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_shutdown: Option<GoDuration>,
    /// How long the steps of one stage may take together, checks included, for example `30m`. Then the running step is
    /// ended, and the attempt has failed. `0s` means no limit. The default is a setting of the installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_timeout: Option<GoDuration>,
    /// How often a stage of the package is tried on a node. Then the node gives the package up, until somebody runs it again
    /// or changes it. 0 means that it is tried for ever. The default is a setting of the installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub max_attempts: Option<i32>,
    /// Whether the package can be uninstalled, and whether it is to be. Without it, the package is uninstalled when it is
    /// removed from the spec or gets a lower version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uninstall: Option<Uninstall>,
}

/// CPU and memory for a package's steps.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_request: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_limit: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_request: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Quantity>,
}

/// What has to happen on the host for a change to take effect.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Type of the interrupt. If several packages ask for interrupts, the strongest one is made.
    #[serde(rename = "type")]
    pub kind: InterruptType,
    /// The systemd units to restart. Only for the type `service`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}

/// Types of interrupts, strongest first.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub enum InterruptType {
    Reboot,
    RestartAllServices,
    Service,
    Noop,
}

/// State of one package on one node: an entry of the `nodeState_<skyhook>` annotation. The order of the fields is part
/// of the contract, since tools compare bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PackageStatus {
    pub name: String,
    pub version: String,
    pub image: String,
    #[serde(
        rename = "containerSHA",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub container_sha: Option<String>,
    pub stage: Stage,
    pub state: State,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub restarts: i32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// Key of a package's state: `name|version`.
#[must_use]
pub fn key(name: &str, version: &str) -> String {
    format!("{name}|{version}")
}

/// Name of the package that a key is of.
#[must_use]
pub fn name_of(key: &str) -> &str {
    key.split_once('|').map_or(key, |(name, _)| name)
}

/// True for a name that the API accepts: `^[a-z][-a-z0-9]{0,41}[a-z]$`.
#[must_use]
pub fn is_valid_name(name: &str) -> bool {
    let letter = |c: Option<&u8>| c.is_some_and(u8::is_ascii_lowercase);
    let bytes = name.as_bytes();
    (2..=43).contains(&bytes.len())
        && letter(bytes.first())
        && letter(bytes.last())
        && bytes
            .iter()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
}

impl Package {
    /// Key of the package's state.
    #[must_use]
    pub fn key(&self) -> String {
        key(&self.name, &self.version)
    }

    /// True when the package has to go from every node, whatever version of it is there.
    #[must_use]
    pub fn is_to_go(&self) -> bool {
        self.uninstall.is_some_and(Uninstall::is_due)
    }

    /// True when what is on a host stays there although the package is removed or gets a lower version.
    #[must_use]
    pub fn stays_behind(&self) -> bool {
        self.uninstall.is_some_and(|uninstall| !uninstall.enabled)
    }
}

/// The image tag of a version: `+` is not a tag character and is written `_`.
#[must_use]
pub fn image_tag(version: &str) -> String {
    version.replace('+', "_")
}

impl Interrupt {
    /// The strongest of several interrupts; services of those that restart services are united and sorted.
    #[must_use]
    pub fn merge<'a>(all: impl IntoIterator<Item = &'a Self>) -> Option<Self> {
        let all: Vec<&Self> = all.into_iter().collect();
        let kind = all.iter().map(|i| i.kind).min()?;
        let services: BTreeSet<&String> = match kind {
            InterruptType::Service => all
                .iter()
                .filter(|i| i.kind == kind)
                .flat_map(|i| &i.services)
                .collect(),
            InterruptType::Reboot | InterruptType::RestartAllServices | InterruptType::Noop => {
                BTreeSet::new()
            }
        };
        Some(Self {
            kind,
            services: services.into_iter().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests;
