//! Registry credentials: how they are read, and which of them are for an image. No `Debug` output and no error
//! contains a secret.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

pub(crate) mod challenge;
pub(crate) mod matching;
pub(crate) mod plugin;

pub use plugin::PluginConfig;

/// A user name and password, or a token that is used in their place.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token (`identitytoken` in a docker config).
    IdentityToken(String),
    /// A bearer token for the registry itself (`registrytoken`).
    RegistryToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic(***)",
            Self::IdentityToken(_) => "IdentityToken(***)",
            Self::RegistryToken(_) => "RegistryToken(***)",
        })
    }
}

/// Logins, each with a pattern for the registries or repositories that it is for.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    entries: Vec<(String, Login)>,
}

/// Why a pull secret cannot be used. The error names the place in the secret, but never its content.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the docker config is not valid (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("auths[{key:?}].auth is not base64 of user:password")]
    Auth { key: String },
}

impl Credentials {
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads a `.dockerconfigjson` (`{"auths": {…}}`) or a legacy `.dockercfg` (the map alone).
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, AuthError> {
        #[derive(Deserialize)]
        struct Config {
            auths: BTreeMap<String, Entry>,
        }
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Entry {
            auth: String,
            username: String,
            password: String,
            identitytoken: String,
            registrytoken: String,
        }
        let json = |error: serde_json::Error| AuthError::Json {
            line: error.line(),
            column: error.column(),
        };
        let value: serde_json::Value = serde_json::from_slice(bytes).map_err(json)?;
        let auths: BTreeMap<String, Entry> = match value.get("auths") {
            Some(_) => serde_json::from_value::<Config>(value).map_err(json)?.auths,
            None => serde_json::from_value(value).map_err(json)?,
        };
        let mut entries = Vec::new();
        for (key, entry) in auths {
            let login = if !entry.identitytoken.is_empty() {
                Login::IdentityToken(entry.identitytoken)
            } else if !entry.registrytoken.is_empty() {
                Login::RegistryToken(entry.registrytoken)
            } else if !entry.auth.is_empty() {
                let decoded = STANDARD.decode(entry.auth.trim()).ok();
                let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
                let pair = text.as_deref().and_then(|text| text.split_once(':'));
                let Some((username, password)) = pair else {
                    return Err(AuthError::Auth { key });
                };
                Login::Basic {
                    username: username.into(),
                    password: password.into(),
                }
            } else if !entry.username.is_empty() {
                Login::Basic {
                    username: entry.username,
                    password: entry.password,
                }
            } else {
                continue;
            };
            entries.push((key, login));
        }
        Ok(Self { entries })
    }

    /// Appends the logins of another secret.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.entries.extend(other.entries);
        self
    }

    /// The logins for `registry/repository`, without duplicates. The login with the most specific pattern is the
    /// first.
    pub(crate) fn matching(&self, name: &str) -> Vec<Login> {
        let mut found: Vec<(usize, &Login)> = self
            .entries
            .iter()
            .filter_map(|(pattern, login)| {
                matching::specificity(pattern, name).map(|specificity| (specificity, login))
            })
            .collect();
        found.sort_by_key(|(specificity, _)| std::cmp::Reverse(*specificity));
        let mut logins: Vec<Login> = Vec::new();
        for (_, login) in found {
            if !logins.contains(login) {
                logins.push(login.clone());
            }
        }
        logins
    }
}

#[cfg(test)]
mod tests;
