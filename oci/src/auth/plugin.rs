//! Runs the kubelet's credential provider plugins (`credentialprovider.kubelet.k8s.io/v1`). They give credentials for
//! private registries of cloud providers. The configuration and the binaries are those of the kubelet.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that runs plugins"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Credentials, Login, matching};
use crate::chain;
use crate::root::Root;

const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
const MAX_ANSWER: u64 = 1 << 20;

/// Where the kubelet's plugins are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// The kubelet's `--image-credential-provider-config`: a file, or a directory of them. A path in
    /// [`PullerConfig::files`](crate::PullerConfig::files).
    pub config: PathBuf,
    /// The kubelet's `--image-credential-provider-bin-dir`. If `prefix` changes the root, this is a path in the new
    /// root.
    pub bin_dir: PathBuf,
    /// The command that runs a plugin, such as `chroot /host`. If it is empty, the plugin is run directly.
    pub prefix: Vec<String>,
    pub timeout: Duration,
}

/// Why plugins cannot be used. The error never contains the answer of a plugin.
#[derive(Debug, thiserror::Error)]
enum PluginError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Config { path: PathBuf, reason: String },
    #[error("credential provider {name} cannot be run")]
    Run {
        name: String,
        source: std::io::Error,
    },
    #[error("credential provider {name} ended with {status}")]
    Exit { name: String, status: String },
    #[error("credential provider {name} did not answer within {} s", timeout.as_secs())]
    Timeout { name: String, timeout: Duration },
    #[error("credential provider {name} answered something that is not a v1 response")]
    Answer { name: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    api_version: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
}

#[derive(Debug, Clone, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The plugins of this host, and a cache of their answers.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    config: Arc<PluginConfig>,
    /// The directory in which the configuration is a path. `None` means the root of this process.
    files: Option<Root>,
    cache: Arc<Mutex<BTreeMap<(String, String), Cached>>>,
}

#[derive(Debug, Clone)]
struct Cached {
    until: Instant,
    credentials: Credentials,
}

impl Plugins {
    pub(crate) fn new(config: PluginConfig, files: Option<Root>) -> Self {
        Self {
            config: Arc::new(config),
            files,
            cache: Arc::new(Mutex::new(BTreeMap::new())),
        }
    }

    /// Reads the kubelet's current configuration of plugins.
    fn providers(&self) -> Result<Vec<Provider>, PluginError> {
        let path = &self.config.config;
        let root = Root::or_own(self.files.as_ref()).map_err(|source| PluginError::Read {
            path: path.clone(),
            source,
        })?;
        let mut providers = Vec::new();
        for path in files(&root, path)? {
            providers.extend(read(&root, &path)?);
        }
        Ok(providers)
    }

    /// The credentials that the matching plugins have for `image`. The configuration is read each time, because it
    /// may have been added or changed. If it cannot be used or if a plugin fails, a warning is logged, because the
    /// image may be public or have a pull secret.
    pub(crate) async fn credentials(&self, image: &str) -> Credentials {
        let mut credentials = Credentials::anonymous();
        let providers = self.providers().unwrap_or_else(|error| {
            let error = chain(&error);
            tracing::warn!(
                error,
                image,
                "the image is pulled without credential providers"
            );
            Vec::new()
        });
        for provider in &providers {
            let is_match = |pattern: &String| matching::specificity(pattern, image).is_some();
            if !provider.match_images.iter().any(is_match) {
                continue;
            }
            match self.ask(provider, image).await {
                Ok(more) => credentials = credentials.merge(more),
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(
                        provider = provider.name,
                        error,
                        image,
                        "credential provider failed"
                    );
                }
            }
        }
        credentials
    }

    async fn ask(&self, provider: &Provider, image: &str) -> Result<Credentials, PluginError> {
        let registry = image.split('/').next().unwrap_or(image);
        let now = Instant::now();
        let keys = [image, registry, ""].map(|key| (provider.name.clone(), key.to_owned()));
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let mut fresh = keys.iter().filter_map(|key| cache.get(key));
            if let Some(cached) = fresh.find(|cached| cached.until > now) {
                return Ok(cached.credentials.clone());
            }
        }
        let name = || provider.name.clone();
        let bytes = self.run(provider, image).await?;
        let answer: Response =
            serde_json::from_slice(&bytes).map_err(|_| PluginError::Answer { name: name() })?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != API_VERSION {
            return Err(PluginError::Answer { name: name() });
        }
        let [by_image, by_registry, global] = keys;
        let key = match answer.cache_key_type.as_str() {
            "Image" => by_image,
            "Registry" => by_registry,
            "Global" => global,
            _ => return Err(PluginError::Answer { name: name() }),
        };
        let duration = answer
            .cache_duration
            .as_deref()
            .unwrap_or(&provider.default_cache_duration);
        let entries = answer
            .auth
            .into_iter()
            .map(|(pattern, Auth { username, password })| {
                (pattern, Login::Basic { username, password })
            });
        let credentials = Credentials {
            entries: entries.collect(),
        };
        if let Some(until) = go_duration(duration).and_then(|duration| now.checked_add(duration)) {
            let cached = Cached {
                until,
                credentials: credentials.clone(),
            };
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            cache.retain(|_, cached| cached.until > now);
            cache.insert(key, cached);
        }
        Ok(credentials)
    }

    async fn run(&self, provider: &Provider, image: &str) -> Result<Vec<u8>, PluginError> {
        let name = || provider.name.clone();
        let failed = |source| PluginError::Run {
            name: name(),
            source,
        };
        let binary = self.config.bin_dir.join(&provider.name);
        let mut command = match self.config.prefix.split_first() {
            None => Command::new(&binary),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(&binary);
                command
            }
        };
        let variables = provider
            .env
            .iter()
            .map(|variable| (&variable.name, &variable.value));
        let mut child = command
            .args(&provider.args)
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let request = Request {
            kind: "CredentialProviderRequest",
            api_version: API_VERSION,
            image,
        };
        let request = serde_json::to_vec(&request).map_err(|error| failed(error.into()))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let talk = async {
            if let Some(mut stdin) = stdin {
                // A plugin that does not read its input may still answer.
                match stdin.write_all(&request).await {
                    Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                        return Err(error);
                    }
                    _ => {}
                }
            }
            let mut bytes = Vec::new();
            if let Some(stdout) = stdout {
                stdout.take(MAX_ANSWER).read_to_end(&mut bytes).await?;
            }
            Ok((bytes, child.wait().await?))
        };
        let timeout = self.config.timeout;
        match tokio::time::timeout(timeout, talk).await {
            Err(_) => Err(PluginError::Timeout {
                name: name(),
                timeout,
            }),
            Ok(Err(source)) => Err(failed(source)),
            Ok(Ok((bytes, status))) if status.success() => Ok(bytes),
            Ok(Ok((_, status))) => Err(PluginError::Exit {
                name: name(),
                status: status.to_string(),
            }),
        }
    }
}

fn files(root: &Root, path: &Path) -> Result<Vec<PathBuf>, PluginError> {
    if !root.metadata(path).is_ok_and(|found| found.is_dir()) {
        return Ok(vec![path.to_path_buf()]);
    }
    let names = root.list(path).map_err(|source| PluginError::Read {
        path: path.to_path_buf(),
        source,
    })?;
    let mut files: Vec<PathBuf> = names.into_iter().map(|name| path.join(name)).collect();
    let known = |file: &PathBuf| {
        file.extension()
            .is_some_and(|it| it == "yaml" || it == "yml" || it == "json")
    };
    files.retain(known);
    Ok(files)
}

fn read(root: &Root, path: &Path) -> Result<Vec<Provider>, PluginError> {
    let text = root
        .read_to_string(path)
        .map_err(|source| PluginError::Read {
            path: path.to_path_buf(),
            source,
        })?;
    parse(&text).map_err(|reason| PluginError::Config {
        path: path.to_path_buf(),
        reason,
    })
}

/// Reads a `CredentialProviderConfig`.
fn parse(text: &str) -> Result<Vec<Provider>, String> {
    #[derive(Deserialize)]
    struct Config {
        kind: String,
        providers: Vec<Provider>,
    }
    let config: Config = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
    if config.kind != "CredentialProviderConfig" {
        return Err(format!(
            "kind is {:?}, must be CredentialProviderConfig",
            config.kind
        ));
    }
    for provider in &config.providers {
        if provider.api_version != API_VERSION {
            let Provider {
                name, api_version, ..
            } = provider;
            return Err(format!(
                "provider {name} has apiVersion {api_version:?}, only {API_VERSION:?} is supported"
            ));
        }
        if provider.name.is_empty() || provider.name.contains('/') || provider.name == ".." {
            return Err(format!(
                "provider name {:?} is not the name of a file",
                provider.name
            ));
        }
        if go_duration(&provider.default_cache_duration).is_none() {
            return Err(format!(
                "provider {}: defaultCacheDuration is not a duration",
                provider.name
            ));
        }
    }
    Ok(config.providers)
}

/// A duration as Go writes it: `12h`, `1h30m0s`, `1.5s`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let seconds = match &rest[..unit] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests;
