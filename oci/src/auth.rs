//! Registry credentials: how they are read, and which of them are for an image. No `Debug` output and no error
//! contains a secret.

use std::fmt;
use std::sync::Arc;

pub(crate) mod challenge;
mod docker_config;
pub(crate) mod matching;
pub(crate) mod plugin;

pub use plugin::PluginConfig;

use matching::Key;

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

/// Logins, each with a key that says which registries or repositories it is for.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// Groups of logins. All logins of a group that match an image are tried before those of the next group.
    groups: Vec<Group>,
}

/// Logins that are sorted together, such as those of all pull secrets.
#[derive(Debug, Clone, Default)]
struct Group {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

#[derive(Debug, Clone)]
struct Entry {
    key: Key,
    login: Login,
    /// Where the login is from, for messages, such as `the pull secret team-a`.
    source: Arc<str>,
}

/// Something that cannot be used. The text never contains a secret.
#[derive(Debug, Clone)]
struct Problem {
    /// The images that it matters for. `None` means all of them.
    key: Option<Key>,
    source: Arc<str>,
    text: String,
}

/// A login that is for an image.
#[derive(Debug, Clone)]
pub(crate) struct Match {
    pub(crate) login: Login,
    pub(crate) source: Arc<str>,
}

/// Why a pull secret cannot be used. The error names the place in the secret, but never its content.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    #[error("the docker config is not valid JSON (line {line}, column {column})")]
    Json { line: usize, column: usize },
    #[error("{field} of the docker config is not a JSON object")]
    Object { field: &'static str },
}

impl Credentials {
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// Reads a `.dockerconfigjson` (`{"auths": {…}}`) or a legacy `.dockercfg` (the map alone). An entry that cannot be
    /// used is left out, and is named when no other login opens a registry that it is for.
    pub fn from_docker_config(bytes: &[u8]) -> Result<Self, AuthError> {
        let (entries, problems) = docker_config::read(bytes)?;
        let source: Arc<str> = "a docker config".into();
        let entries = entries.into_iter().map(|(key, login)| Entry {
            key: Key::new(&key),
            login,
            source: Arc::clone(&source),
        });
        let problems = problems.into_iter().map(|(key, text)| Problem {
            key: Some(Key::new(&key)),
            source: Arc::clone(&source),
            text,
        });
        Ok(Self::of(entries.collect(), problems.collect()))
    }

    /// Logins that are not from a docker config, with the keys of their registries.
    pub(crate) fn from_logins(logins: impl IntoIterator<Item = (String, Login)>) -> Self {
        let entries = logins.into_iter().map(|(key, login)| Entry {
            key: Key::new(&key),
            login,
            source: "unknown".into(),
        });
        Self::of(entries.collect(), Vec::new())
    }

    /// No login at all, because `source` cannot be used. The text must not contain a secret.
    #[must_use]
    pub fn unusable(source: &str, text: impl Into<String>) -> Self {
        let problem = Problem {
            key: None,
            source: source.into(),
            text: text.into(),
        };
        Self::of(Vec::new(), vec![problem])
    }

    fn of(entries: Vec<Entry>, problems: Vec<Problem>) -> Self {
        Self {
            groups: vec![Group { entries, problems }],
        }
    }

    /// Says where all these credentials are from. Messages name it.
    #[must_use]
    pub fn from_source(mut self, source: &str) -> Self {
        let source: Arc<str> = source.into();
        for group in &mut self.groups {
            for entry in &mut group.entries {
                entry.source = Arc::clone(&source);
            }
            for problem in &mut group.problems {
                problem.source = Arc::clone(&source);
            }
        }
        self
    }

    /// Adds the logins of another secret. They are sorted together with those that are there.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        if self.groups.is_empty() {
            self.groups.push(Group::default());
        }
        for (index, group) in other.groups.into_iter().enumerate() {
            match self.groups.get_mut(index) {
                Some(own) => {
                    own.entries.extend(group.entries);
                    own.problems.extend(group.problems);
                }
                None => self.groups.push(group),
            }
        }
        self
    }

    /// Adds logins that are tried after all those that are there.
    #[must_use]
    pub(crate) fn then(mut self, later: Self) -> Self {
        self.groups.extend(later.groups);
        self
    }

    /// The logins for `registry/repository` in the order in which the kubelet tries them, each once.
    pub(crate) fn matching(&self, name: &str) -> Vec<Match> {
        let mut matches: Vec<Match> = Vec::new();
        for group in &self.groups {
            let mut found: Vec<&Entry> = group
                .entries
                .iter()
                .filter(|entry| entry.key.matches(name))
                .collect();
            found.sort_by(|a, b| b.key.cmp(&a.key));
            for Entry { login, source, .. } in found {
                if !matches.iter().any(|known| known.login == *login) {
                    let (login, source) = (login.clone(), Arc::clone(source));
                    matches.push(Match { login, source });
                }
            }
        }
        matches
    }

    /// What could not be used for `registry/repository`, for messages.
    pub(crate) fn problems(&self, name: &str) -> Vec<String> {
        self.groups
            .iter()
            .flat_map(|group| &group.problems)
            .filter(|problem| problem.key.as_ref().is_none_or(|key| key.matches(name)))
            .map(|Problem { source, text, .. }| format!("{source}: {text}"))
            .collect()
    }

    /// Everything that could not be used, for the log.
    #[must_use]
    pub fn all_problems(&self) -> Vec<String> {
        let problems = self.groups.iter().flat_map(|group| &group.problems);
        problems
            .map(|Problem { source, text, .. }| format!("{source}: {text}"))
            .collect()
    }
}

#[cfg(test)]
mod tests;
