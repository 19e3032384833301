//! Runs the kubelet's credential provider plugins. They give credentials for private registries of cloud providers. The
//! configuration and the binaries are those of the kubelet.

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

use super::matching::Key;
use super::{Credentials, Login};
use crate::chain;
use crate::no_values::without_values;
use crate::root::Root;

/// The versions of requests and answers. They are the same in all that matters here.
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];
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
    #[error("credential provider {name} cannot be used: {reason}")]
    Provider { name: String, reason: String },
    #[error("credential provider {name} cannot be run")]
    Run {
        name: String,
        source: std::io::Error,
    },
    #[error("credential provider {name} ended with {status}")]
    Exit { name: String, status: String },
    #[error("credential provider {name} did not answer within {} s", timeout.as_secs())]
    Timeout { name: String, timeout: Duration },
    #[error(
        "credential provider {name} answered something that is not a CredentialProviderResponse"
    )]
    Answer { name: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    api_version: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

/// For plugins that want a token of the pod's service account.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
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
    api_version: &'a str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// Runs plugins, and keeps their answers.
#[derive(Debug, Clone)]
pub(crate) struct Plugins {
    /// The directory in which configurations are paths.
    files: Root,
    /// Answers by configuration, plugin, and image or registry.
    cache: Arc<Mutex<BTreeMap<[String; 3], Cached>>>,
}

#[derive(Debug, Clone)]
struct Cached {
    until: Instant,
    credentials: Credentials,
}

/// Plugins that are asked for one image.
#[derive(Debug)]
struct Asked<'a> {
    config: &'a PluginConfig,
    /// The variables of the kubelet. The plugins get them and their own, and none of this process, which may be
    /// secrets. If they are not known, the plugins get those of this process.
    environment: Option<&'a BTreeMap<String, String>>,
}

impl Plugins {
    pub(crate) fn new(files: Root) -> Self {
        Self {
            files,
            cache: Arc::default(),
        }
    }

    /// Reads the kubelet's current configuration of plugins. A file or plugin that cannot be used harms itself alone.
    fn providers(&self, path: &Path) -> Vec<Result<Provider, PluginError>> {
        let files = match files(&self.files, path) {
            Ok(files) => files,
            Err(error) => return vec![Err(error)],
        };
        let mut found = Vec::new();
        for path in files {
            match read(&self.files, &path) {
                Ok(providers) => found.extend(providers),
                Err(error) => found.push(Err(error)),
            }
        }
        found
    }

    /// The credentials that the matching plugins have for `image`. The configuration is read each time, because it
    /// may have been added or changed. If it cannot be used or if a plugin fails, a warning is logged, because the
    /// image may be public or have a pull secret. The error of the pull names it as well.
    pub(crate) async fn credentials(
        &self,
        config: &PluginConfig,
        environment: Option<&BTreeMap<String, String>>,
        image: &str,
    ) -> Credentials {
        let mut credentials = Credentials::anonymous();
        let asked = Asked {
            config,
            environment,
        };
        for provider in self.providers(&config.config) {
            let answer = match provider {
                Ok(provider) if !provider.is_for(image) => continue,
                Ok(provider) => self.ask(&asked, &provider, image).await,
                Err(error) => Err(error),
            };
            let more = answer.unwrap_or_else(|error| {
                let error = chain(&error);
                tracing::warn!(error, image, "credential provider failed");
                Credentials::unusable("credential providers", error)
            });
            credentials = credentials.merge(more);
        }
        credentials
    }

    async fn ask(
        &self,
        asked: &Asked<'_>,
        provider: &Provider,
        image: &str,
    ) -> Result<Credentials, PluginError> {
        if let Some(reason) = provider.problem() {
            let name = provider.name.clone();
            return Err(PluginError::Provider { name, reason });
        }
        let registry = image.split('/').next().unwrap_or(image);
        let now = Instant::now();
        let place = asked.config.bin_dir.to_string_lossy();
        let keys = [image, registry, ""].map(|key| {
            [
                place.clone().into_owned(),
                provider.name.clone(),
                key.to_owned(),
            ]
        });
        {
            let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            let mut fresh = keys.iter().filter_map(|key| cache.get(key));
            if let Some(cached) = fresh.find(|cached| cached.until > now) {
                return Ok(cached.credentials.clone());
            }
        }
        let name = || provider.name.clone();
        let bytes = asked.run(provider, image).await?;
        let answer: Response =
            serde_json::from_slice(&bytes).map_err(|_| PluginError::Answer { name: name() })?;
        if answer.kind != "CredentialProviderResponse" || !is_known(&answer.api_version) {
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
        let logins = answer.auth.unwrap_or_default().into_iter();
        let logins = logins
            .map(|(key, Auth { username, password })| (key, Login::Basic { username, password }));
        let source = format!("credential provider {}", provider.name);
        let credentials = Credentials::from_logins(logins).from_source(&source);
        let duration = go_duration(duration).filter(|duration| !duration.is_zero());
        if let Some(until) = duration.and_then(|duration| now.checked_add(duration)) {
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
}

impl Asked<'_> {
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
        if let Some(environment) = self.environment {
            command.env_clear();
            // The command before the plugin is one of this process.
            command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
            command.envs(environment);
        }
        let variables = provider.env.iter().flatten();
        let variables = variables.map(|variable| (&variable.name, &variable.value));
        let mut child = command
            .args(provider.args.iter().flatten())
            .envs(variables)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let request = Request {
            kind: "CredentialProviderRequest",
            api_version: &provider.api_version,
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

fn read(root: &Root, path: &Path) -> Result<Vec<Result<Provider, PluginError>>, PluginError> {
    let text = root
        .read_to_string(path)
        .map_err(|source| PluginError::Read {
            path: path.to_path_buf(),
            source,
        })?;
    parse(&text, path).map_err(|reason| PluginError::Config {
        path: path.to_path_buf(),
        reason,
    })
}

/// Reads a `CredentialProviderConfig`. A provider that is not valid is an error of its own.
fn parse(text: &str, path: &Path) -> Result<Vec<Result<Provider, PluginError>>, String> {
    #[derive(Deserialize)]
    struct Config {
        kind: String,
        #[serde(default)]
        providers: Vec<serde_yaml_ng::Value>,
    }
    let config: Config =
        serde_yaml_ng::from_str(text).map_err(|error| without_values(&error.to_string()))?;
    if config.kind != "CredentialProviderConfig" {
        return Err(format!(
            "kind is {:?}, must be CredentialProviderConfig",
            config.kind
        ));
    }
    let providers = config.providers.into_iter().enumerate();
    Ok(providers
        .map(|(index, value)| {
            serde_yaml_ng::from_value(value).map_err(|error| PluginError::Config {
                path: path.to_path_buf(),
                reason: format!("providers[{index}]: {}", without_values(&error.to_string())),
            })
        })
        .collect())
}

/// For fuzzing: reads the bytes as a configuration and as an answer.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_anything(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for provider in parse(&text, Path::new("/p.yaml"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let is_usable = provider.problem().is_none();
        assert!(!is_usable || !provider.name.contains('/'));
        provider.is_for("registry.example/team/image");
    }
    if let Ok(answer) = serde_json::from_slice::<Response>(bytes) {
        go_duration(answer.cache_duration.as_deref().unwrap_or_default());
    }
}

fn is_known(api_version: &str) -> bool {
    API_VERSIONS.contains(&api_version)
}

impl Provider {
    fn is_for(&self, image: &str) -> bool {
        let mut patterns = self.match_images.iter();
        patterns.any(|pattern| Key::new(pattern).matches(image))
    }

    /// Why the plugin cannot be asked.
    fn problem(&self) -> Option<String> {
        let Self {
            name,
            api_version,
            default_cache_duration,
            ..
        } = self;
        if !is_known(api_version) {
            return Some(format!(
                "its apiVersion {api_version:?} is none of {}",
                API_VERSIONS.join(", ")
            ));
        }
        if name.is_empty() || name.contains(['/', ' ']) || name == "." || name == ".." {
            return Some(format!("{name:?} is not the name of a file"));
        }
        if go_duration(default_cache_duration).is_none() {
            return Some("its defaultCacheDuration is not a duration".to_owned());
        }
        let attributes = self.token_attributes.as_ref();
        attributes
            .is_some_and(|it| it.require_service_account)
            .then(|| "it needs the token of a pod's service account".to_owned())
    }
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
