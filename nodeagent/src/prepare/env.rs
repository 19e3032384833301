//! The `env` of a package: literal values, and values from Secrets, ConfigMaps, the Node and the package's resources.
//! These functions read nothing from the API: the caller fetches the objects that [`needs`] names.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource};
use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;

use super::metadata::NodeFacts;
use crate::secret::Secret;

/// Why a variable has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    #[error("env {variable}: {kind} {name} does not exist")]
    NoObject {
        variable: String,
        kind: &'static str,
        name: String,
    },
    #[error("env {variable}: {kind} {name} has no key {key}")]
    NoKey {
        variable: String,
        kind: &'static str,
        name: String,
        key: String,
    },
    #[error(
        "env {variable}: key {key} of secret {name} is not UTF-8 text, and an environment variable can hold nothing else"
    )]
    NotText {
        variable: String,
        name: String,
        key: String,
    },
    #[error(
        "env {variable}: fieldRef {path} is not supported. Supported are metadata.name, metadata.uid, \
         metadata.namespace, metadata.labels['…'], metadata.annotations['…'], spec.nodeName, status.hostIP, \
         status.hostIPs, status.podIP and status.podIPs"
    )]
    Field { variable: String, path: String },
    #[error("env {variable}: resourceFieldRef {resource}: {problem}")]
    Resource {
        variable: String,
        resource: String,
        problem: String,
    },
    #[error("env {variable}: valueFrom names a source that is not supported")]
    Source { variable: String },
}

/// Names of the Secrets and ConfigMaps that an `env` refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    pub secrets: BTreeSet<String>,
    pub config_maps: BTreeSet<String>,
}

/// The objects that the values come from.
#[derive(Clone, Default)]
pub struct Sources {
    pub node: NodeFacts,
    pub namespace: String,
    pub resources: Option<Resources>,
    /// The Secrets that exist: name, then key, then value. The ConfigMaps have the same form.
    pub secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
}

impl std::fmt::Debug for Sources {
    /// Shows the names of the Secrets, but not their values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources")
            .field("node", &self.node.name)
            .field("secrets", &self.secrets.keys())
            .field("config_maps", &self.config_maps.keys())
            .finish_non_exhaustive()
    }
}

/// The objects that the caller has to fetch for `env`.
#[must_use]
pub fn needs(env: &[EnvVar]) -> Needs {
    let mut needs = Needs::default();
    for source in env.iter().filter_map(|v| v.value_from.as_ref()) {
        needs
            .secrets
            .extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
        needs
            .config_maps
            .extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
    }
    needs
}

/// The variables with their values, in order. `$(NAME)` in a literal value is replaced as in Kubernetes. An optional
/// variable whose object or key is missing is left out.
pub fn resolve(env: &[EnvVar], sources: &Sources) -> Result<Vec<(String, String)>, EnvError> {
    let mut values: Vec<(String, String)> = Vec::new();
    for variable in env {
        let value = match &variable.value_from {
            Some(source) => from_source(&variable.name, source, sources)?,
            None => Some(expand(variable.value.as_deref().unwrap_or(""), &values)),
        };
        if let Some(value) = value {
            values.push((variable.name.clone(), value));
        }
    }
    Ok(values)
}

/// The values that come from Secrets. The supervisor masks them in the output of steps.
#[must_use]
pub fn secret_values(env: &[EnvVar], sources: &Sources) -> Vec<Secret> {
    env.iter()
        .filter_map(|variable| variable.value_from.as_ref()?.secret_key_ref.as_ref())
        .filter_map(|r| sources.secrets.get(&r.name)?.get(&r.key))
        .filter_map(|value| std::str::from_utf8(value).ok())
        .map(Secret::from)
        .collect()
}

fn from_source(
    variable: &str,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    if let Some(r) = &source.secret_key_ref {
        let object = sources.secrets.get(&r.name);
        let text = |bytes: &Vec<u8>| {
            String::from_utf8(bytes.clone()).map_err(|_| EnvError::NotText {
                variable: variable.to_owned(),
                name: r.name.clone(),
                key: r.key.clone(),
            })
        };
        let value = object
            .map(|data| data.get(&r.key).map(text).transpose())
            .transpose()?;
        return present(variable, "secret", &r.name, &r.key, r.optional, value);
    }
    if let Some(r) = &source.config_map_key_ref {
        let object = sources.config_maps.get(&r.name);
        let value = object.map(|data| data.get(&r.key).cloned());
        return present(variable, "config map", &r.name, &r.key, r.optional, value);
    }
    if let Some(r) = &source.field_ref {
        return field(variable, &r.field_path, sources).map(Some);
    }
    if let Some(r) = &source.resource_field_ref {
        let divisor = r.divisor.as_ref().map(|q| Quantity(q.0.clone()));
        return resource(variable, &r.resource, divisor, sources).map(Some);
    }
    Err(EnvError::Source {
        variable: variable.to_owned(),
    })
}

/// The value if it is there, or `None` if it is missing and optional. `value` is `None` when the object is missing, and
/// `Some(None)` when the object has no such key.
fn present(
    variable: &str,
    kind: &'static str,
    name: &str,
    key: &str,
    optional: Option<bool>,
    value: Option<Option<String>>,
) -> Result<Option<String>, EnvError> {
    match value {
        Some(Some(value)) => Ok(Some(value)),
        None | Some(None) if optional == Some(true) => Ok(None),
        None => Err(EnvError::NoObject {
            variable: variable.to_owned(),
            kind,
            name: name.to_owned(),
        }),
        Some(None) => Err(EnvError::NoKey {
            variable: variable.to_owned(),
            kind,
            name: name.to_owned(),
            key: key.to_owned(),
        }),
    }
}

fn field(variable: &str, path: &str, sources: &Sources) -> Result<String, EnvError> {
    let node = &sources.node;
    let keyed = |prefix: &str, map: &BTreeMap<String, String>| {
        let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
        Some(map.get(key).cloned().unwrap_or_default())
    };
    let known = match path {
        "metadata.name" | "spec.nodeName" => Some(node.name.clone()),
        "metadata.uid" => Some(node.uid.clone()),
        "metadata.namespace" => Some(sources.namespace.clone()),
        "status.hostIP" | "status.hostIPs" | "status.podIP" | "status.podIPs" => {
            Some(node.internal_ip.clone())
        }
        _ => keyed("metadata.labels['", &node.labels)
            .or_else(|| keyed("metadata.annotations['", &node.annotations)),
    };
    known.ok_or_else(|| EnvError::Field {
        variable: variable.to_owned(),
        path: path.to_owned(),
    })
}

fn resource(
    variable: &str,
    name: &str,
    divisor: Option<Quantity>,
    sources: &Sources,
) -> Result<String, EnvError> {
    let failed = |problem: String| EnvError::Resource {
        variable: variable.to_owned(),
        resource: name.to_owned(),
        problem,
    };
    let resources = sources.resources.clone().unwrap_or_default();
    let allocatable = |key: &str| {
        sources
            .node
            .allocatable
            .get(key)
            .map(|q| Quantity(q.clone()))
    };
    // As in a container: without a limit, the value is the node's allocatable amount.
    let quantity = match name {
        "limits.cpu" => resources.cpu_limit.or_else(|| allocatable("cpu")),
        "limits.memory" => resources.memory_limit.or_else(|| allocatable("memory")),
        "requests.cpu" => resources.cpu_request.or(Some(Quantity("0".into()))),
        "requests.memory" => resources.memory_request.or(Some(Quantity("0".into()))),
        _ => {
            return Err(failed(
                "it is not supported. These are: limits.cpu, limits.memory, requests.cpu, requests.memory".into(),
            ));
        }
    };
    let quantity = quantity
        .ok_or_else(|| failed("neither the package nor the Node has a value for it".into()))?;
    let value = quantity.milli().map_err(|e| failed(e.to_string()))?;
    let divisor = divisor.unwrap_or_else(|| Quantity("0".into()));
    let divisor = match divisor.milli().map_err(|e| failed(e.to_string()))? {
        // As in a container: Kubernetes writes a divisor that is not set as zero.
        0 => 1000,
        divisor @ 1.. => divisor,
        ..0 => return Err(failed(format!("divisor {} must be positive", divisor.0))),
    };
    Ok((value / divisor + i128::from(value % divisor != 0)).to_string())
}

/// Replaces `$(NAME)` by the value of an earlier variable. An unknown `$(NAME)` stays as it is, and `$$(NAME)` becomes
/// `$(NAME)`.
fn expand(value: &str, known: &[(String, String)]) -> String {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('$') {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        if let Some(tail) = after.strip_prefix("$$") {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix("$(").and_then(|r| r.split_once(')'))
        {
            match known.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = &after[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
