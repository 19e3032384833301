//! The `registries.conf` of CRI-O (containers-registries.conf, version 2): which servers have the images of a
//! repository. No I/O.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{HostSettings, HostsError, RegistrySettings};

/// The registries of a file, or of several files laid over each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistriesConf {
    registries: Vec<Registry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    prefix: String,
    endpoint: Endpoint,
    blocked: bool,
    mirrors: Vec<Mirror>,
    /// The file that it is from.
    path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Endpoint {
    location: String,
    insecure: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    endpoint: Endpoint,
    by_tag: bool,
    by_digest: bool,
}

/// The file as it is written. Fields that have nothing to do with pulls are left out.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Document {
    registry: Vec<RegistryTable>,
    /// Version 1 of the file.
    registries: Version1,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Version1 {
    insecure: List,
    block: List,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct List {
    registries: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct RegistryTable {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<MirrorTable>,
    mirror_by_digest_only: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct MirrorTable {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

/// Reads one file.
pub(crate) fn parse(text: &str, path: &Path) -> Result<RegistriesConf, HostsError> {
    let document: Document =
        toml::from_str(text).map_err(|error| HostsError::toml(path, text, &error))?;
    let wrong = |field: String, want: &'static str| HostsError::Field {
        path: path.to_path_buf(),
        field,
        want,
    };
    let mut registries = Vec::new();
    for table in document.registry {
        let location = location(&table.location);
        let prefix = match location_or(&table.prefix, location) {
            "" => {
                let field = "registry.location".to_owned();
                return Err(wrong(field, "the name of a registry, without a scheme"));
            }
            prefix => prefix.to_owned(),
        };
        let is_pattern = prefix.starts_with("*.");
        let location = match location {
            // A pattern without a location: the image keeps its name.
            "" if is_pattern => "",
            "" => &prefix,
            location => location,
        };
        if location.contains("://") || prefix.contains("://") {
            let field = format!("registry {prefix:?}");
            return Err(wrong(field, "written without a scheme"));
        }
        let mut mirrors = Vec::new();
        for mirror in &table.mirror {
            let field = |name: &str| format!("registry {prefix:?}: mirror.{name}");
            let location = self::location(&mirror.location);
            if location.is_empty() || location.contains("://") {
                let want = "the name of a registry, without a scheme";
                return Err(wrong(field("location"), want));
            }
            let (by_tag, by_digest) = match mirror.pull_from_mirror.as_str() {
                "" | "all" => (!table.mirror_by_digest_only, true),
                "digest-only" => (false, true),
                "tag-only" => (true, false),
                _ => {
                    let want = "all, digest-only or tag-only";
                    return Err(wrong(field("pull-from-mirror"), want));
                }
            };
            mirrors.push(Mirror {
                endpoint: Endpoint {
                    location: location.to_owned(),
                    insecure: mirror.insecure,
                },
                by_tag,
                by_digest,
            });
        }
        registries.push(Registry {
            endpoint: Endpoint {
                location: location.to_owned(),
                insecure: table.insecure,
            },
            prefix,
            blocked: table.blocked,
            mirrors,
            path: path.to_path_buf(),
        });
    }
    let Version1 { insecure, block } = document.registries;
    for name in insecure.registries.iter().chain(&block.registries) {
        let prefix = location(name).to_owned();
        registries.push(Registry {
            endpoint: Endpoint {
                location: prefix.clone(),
                insecure: insecure.registries.contains(name),
            },
            prefix,
            blocked: block.registries.contains(name),
            mirrors: Vec::new(),
            path: path.to_path_buf(),
        });
    }
    Ok(RegistriesConf { registries })
}

fn location(text: &str) -> &str {
    text.trim_end_matches('/')
}

fn location_or<'a>(prefix: &'a str, other: &'a str) -> &'a str {
    match location(prefix) {
        "" => other,
        prefix => prefix,
    }
}

impl RegistriesConf {
    /// Adds the registries of a later file. One with the same prefix replaces the earlier one.
    pub(crate) fn lay_over(&mut self, later: Self) {
        self.registries
            .retain(|old| !later.registries.iter().any(|new| new.prefix == old.prefix));
        self.registries.extend(later.registries);
    }

    /// The servers of the image `reference` (`registry/repository:tag@digest`), which is asked for by digest or by tag.
    /// `None` if there is nothing about it.
    pub(crate) fn settings(
        &self,
        reference: &str,
        by_digest: bool,
    ) -> Result<Option<RegistrySettings>, HostsError> {
        let mut found: Option<(usize, &Registry)> = None;
        for registry in &self.registries {
            let is_longer = found.is_none_or(|(_, it)| registry.prefix.len() > it.prefix.len());
            if let Some(length) = matched(reference, &registry.prefix)
                && is_longer
            {
                found = Some((length, registry));
            }
        }
        let Some((length, registry)) = found else {
            return Ok(None);
        };
        if registry.blocked {
            return Err(HostsError::Blocked {
                registry: registry.prefix.clone(),
                path: registry.path.clone(),
            });
        }
        let rest = &reference[length..];
        let mirrors = registry.mirrors.iter();
        let hosts = mirrors
            .filter(|mirror| {
                if by_digest {
                    mirror.by_digest
                } else {
                    mirror.by_tag
                }
            })
            .map(|mirror| mirror.endpoint.settings(reference, rest));
        Ok(Some(RegistrySettings {
            hosts: hosts.collect(),
            server: Some(registry.endpoint.settings(reference, rest)),
            ..RegistrySettings::default()
        }))
    }
}

impl Endpoint {
    /// The server, with the name that the image has on it. `rest` is the part of the reference after the prefix.
    fn settings(&self, reference: &str, rest: &str) -> HostSettings {
        let whole = match self.location.as_str() {
            "" => reference.to_owned(),
            location => format!("{location}{rest}"),
        };
        let (host, repository) = whole.split_once('/').unwrap_or((&whole, ""));
        let repository = repository.split([':', '@']).next().unwrap_or(repository);
        let host = match host {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        HostSettings {
            url: format!("https://{host}"),
            skip_verify: self.insecure,
            plain_fallback: self.insecure,
            repository: Some(repository.to_owned()),
            ..HostSettings::default()
        }
    }
}

/// How much of the reference the prefix is for: the whole prefix, or the host if the prefix is a pattern such as
/// `*.example.com`. A prefix may end with a tag or a digest.
fn matched(reference: &str, prefix: &str) -> Option<usize> {
    let length = match prefix.strip_prefix('*') {
        Some(suffix) => {
            let before = |at: &usize| !reference[..*at].contains('/');
            let at = reference.find(suffix).filter(before)?;
            at + suffix.len()
        }
        None => reference.starts_with(prefix).then_some(prefix.len())?,
    };
    let rest = &reference[length..];
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then_some(length)
}

#[cfg(test)]
mod tests;
