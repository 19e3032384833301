//! The servers that have the images of a registry: its own server and its mirrors. They are configured in
//! containerd's `hosts.toml`, or in the `registries.conf` of CRI-O. There is no I/O in this file; `load` and `containers`
//! read the files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use regex::Regex;
use reqwest::Url;

use crate::no_values::without_values;

pub(crate) mod containers;
mod hosts_toml;
mod load;
pub(crate) mod registries_conf;

pub(crate) use hosts_toml::parse;
pub(crate) use load::load;

/// One server of a registry, with the fields of a `[host."…"]` table in `hosts.toml`.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct HostSettings {
    /// A URL such as `https://mirror:port/path`. If it has no scheme, it is https.
    pub(crate) url: String,
    /// What the server may be asked for: `pull` (requests by digest) and `resolve` (requests by tag). If it is empty,
    /// both.
    pub(crate) capabilities: Vec<String>,
    /// PEM files of authorities that are trusted in addition to those of the system.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of the client certificate and of its key. One file may contain both.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
    /// The URL's path is the API's root: no `/v2` is added.
    pub(crate) override_path: bool,
    pub(crate) header: BTreeMap<String, Vec<String>>,
    /// Regular expressions for the repository. The value replaces the text that matches.
    pub(crate) rewrite: BTreeMap<String, String>,
    /// The name of the repository on this server, if it has another name there. Then the server is no mirror of
    /// containerd's kind, and is not told which registry it is asked for.
    pub(crate) repository: Option<String>,
    /// The server is asked over plain HTTP if it cannot be reached over TLS.
    pub(crate) plain_fallback: bool,
}

/// Leaves out the values of headers, because they may be secrets.
impl fmt::Debug for HostSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostSettings")
            .field("url", &redacted(&self.url))
            .field("capabilities", &self.capabilities)
            .field("ca", &self.ca)
            .field("client", &self.client)
            .field("skip_verify", &self.skip_verify)
            .field("override_path", &self.override_path)
            .field("header", &self.header.keys())
            .field("rewrite", &self.rewrite)
            .field("repository", &self.repository)
            .field("plain_fallback", &self.plain_fallback)
            .finish()
    }
}

impl HostSettings {
    /// Host and port as they are written in the URL.
    fn authority(&self) -> &str {
        let rest = self
            .url
            .split_once("://")
            .map_or(self.url.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest)
    }

    /// Whether there is a setting of TLS.
    fn has_tls(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify
    }
}

/// The host of a registry's own server.
fn own_host(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// The port of `host:port`, if it has one.
fn port(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    port.parse::<u16>().is_ok().then_some(port)
}

/// Whether there is a port, and it is not the usual one of plain HTTP.
fn has_odd_port(authority: &str) -> bool {
    port(authority).is_some_and(|port| port != "80")
}

/// What is configured for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistrySettings {
    /// The registry's own server, which is asked last. If it is `None`, the URL is made from the name of the
    /// registry.
    pub(crate) server: Option<HostSettings>,
    /// Mirrors, in the order in which they are asked.
    pub(crate) hosts: Vec<HostSettings>,
    /// The registry's own server is one of `hosts`, and is not asked once more after them.
    pub(crate) has_own_server: bool,
    /// What is wrong with the configuration. An error of a pull names it.
    pub(crate) problems: Vec<String>,
}

/// Why a registry's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// The error does not show the line, because it may have a secret in it.
    #[error("{}, line {line}, is not TOML: {reason}", path.display())]
    Toml {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error("{}: {field} must be {want}", path.display())]
    Field {
        path: PathBuf,
        field: String,
        want: &'static str,
    },
    #[error("{url:?} is not a registry URL: {reason}")]
    Url { url: String, reason: String },
    #[error("rewrite {pattern:?} is not a regular expression")]
    Rewrite {
        pattern: String,
        source: Box<regex::Error>,
    },
    #[error("header {name:?} is not an HTTP header")]
    Header { name: String },
    #[error("{registry} is blocked by {}", path.display())]
    Blocked { registry: String, path: PathBuf },
}

impl HostsError {
    /// The error of a text that is not TOML.
    pub(crate) fn toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.as_bytes().get(..start).unwrap_or_default();
        Self::Toml {
            path: path.to_path_buf(),
            line: before.iter().filter(|&&byte| byte == b'\n').count() + 1,
            reason: without_values(error.message()),
        }
    }
}

/// A server with checked settings.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// The URL up to the repository, without a slash at its end: `/<repository>/…` is appended.
    pub(crate) base: Url,
    /// Host and port as they are written. Credentials are looked up by this name.
    pub(crate) authority: String,
    pub(crate) settings: HostSettings,
    pub(crate) rewrites: Vec<(Regex, String)>,
    pub(crate) is_origin: bool,
}

impl Endpoint {
    fn new(settings: HostSettings, is_origin: bool) -> Result<Self, HostsError> {
        let written = settings.url.clone();
        let wrong = |reason: &str| HostsError::Url {
            url: redacted(&written),
            reason: reason.into(),
        };
        let (scheme, rest) = settings
            .url
            .split_once("://")
            .unwrap_or(("https", &settings.url));
        let mut base =
            Url::parse(&format!("{scheme}://{rest}")).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(wrong("only http and https are supported"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(wrong("credentials belong in a pull secret"));
        }
        let path = base.path().trim_end_matches('/').to_owned();
        let is_root = settings.override_path || path.ends_with("/v2");
        base.set_path(&if is_root { path } else { format!("{path}/v2") });
        base.set_query(None);
        let host = base
            .host_str()
            .ok_or_else(|| wrong("there is no host"))?
            .to_owned();
        let authority = base
            .port()
            .map_or(host.clone(), |port| format!("{host}:{port}"));
        let rewrites = settings
            .rewrite
            .iter()
            .map(|(pattern, with)| match Regex::new(pattern) {
                Ok(regex) => Ok((regex, with.clone())),
                Err(source) => Err(HostsError::Rewrite {
                    pattern: pattern.clone(),
                    source: Box::new(source),
                }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            base,
            authority,
            settings,
            rewrites,
            is_origin,
        })
    }

    /// Whether this server may be asked. Requests by tag need more trust than requests by digest, because a digest
    /// verifies the answer.
    pub(crate) fn serves(&self, by_digest: bool) -> bool {
        let wanted = if by_digest { "pull" } else { "resolve" };
        let capabilities = &self.settings.capabilities;
        self.is_origin || capabilities.is_empty() || capabilities.iter().any(|it| it == wanted)
    }

    /// Whether this is the server over plain HTTP that is also asked over TLS.
    pub(crate) fn is_plain_fallback(&self) -> bool {
        self.settings.plain_fallback && self.base.scheme() == "http"
    }

    /// The name of a repository on this server.
    pub(crate) fn repository(&self, repository: &str) -> String {
        if let Some(name) = &self.settings.repository {
            return name.clone();
        }
        self.rewrites
            .iter()
            .find(|(pattern, _)| pattern.is_match(repository))
            .map_or_else(
                || repository.to_owned(),
                |(pattern, with)| pattern.replace_all(repository, with).into_owned(),
            )
    }

    /// The URL of `path` (`manifests/…`, `blobs/…`) in a repository of `registry`.
    pub(crate) fn url(&self, registry: &str, repository: &str, path: &str) -> Url {
        let repository = self.repository(repository);
        let mut url = self.base.clone();
        url.set_path(&format!(
            "{}/{repository}/{path}",
            self.base.path().trim_end_matches('/')
        ));
        let is_own = self.is_origin && self.settings.authority() == own_host(registry)
            || self.settings.authority() == registry;
        if !is_own && self.settings.repository.is_none() {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }
}

/// The servers for `registry`, in the order in which they are asked.
pub(crate) fn endpoints(
    registry: &str,
    settings: &RegistrySettings,
    insecure: bool,
) -> Result<Vec<Endpoint>, HostsError> {
    let mut endpoints = Vec::new();
    for host in &settings.hosts {
        let is_origin = settings.has_own_server && host.authority() == registry;
        add(&mut endpoints, host, is_origin)?;
    }
    if settings.has_own_server {
        return Ok(endpoints);
    }
    let usual = || {
        let host = own_host(registry);
        let url = Url::parse(&format!("http://{host}")).ok();
        let is_local = url.is_some_and(|url| url.host_str().is_some_and(is_loopback));
        // As in containerd: a registry on the machine itself is asked over TLS first, and no certificate of it is
        // verified. Then it is asked over plain HTTP, unless its port says which of the two it speaks.
        let (scheme, skip_verify) = match port(host) {
            _ if insecure => ("http", false),
            Some("80") if is_local => ("http", false),
            None | Some("443") if is_local => ("https", true),
            _ if is_local => ("http", true),
            _ => ("https", false),
        };
        HostSettings {
            url: format!("{scheme}://{host}"),
            skip_verify,
            ..HostSettings::default()
        }
    };
    let mut server = settings.server.clone().unwrap_or_else(usual);
    if server.url.is_empty() {
        let usual = usual();
        server.url = usual.url;
        server.skip_verify |= usual.skip_verify;
        if let (true, Some(rest)) = (server.has_tls(), server.url.strip_prefix("http://")) {
            server.url = format!("https://{rest}");
            server.plain_fallback = true;
        }
    }
    add(&mut endpoints, &server, true)?;
    Ok(endpoints)
}

/// Adds the endpoint of a server, and the one for plain HTTP if the server may be asked so.
fn add(
    endpoints: &mut Vec<Endpoint>,
    settings: &HostSettings,
    is_origin: bool,
) -> Result<(), HostsError> {
    let mut settings = settings.clone();
    // As in containerd: if TLS is configured and the port says nothing about the scheme, the scheme may be wrong.
    if let Some(rest) = settings.url.strip_prefix("http://")
        && settings.has_tls()
        && has_odd_port(settings.authority())
    {
        settings.url = format!("https://{rest}");
        settings.plain_fallback = true;
    }
    endpoints.push(Endpoint::new(settings.clone(), is_origin)?);
    if let (true, Some(rest)) = (
        settings.plain_fallback,
        settings.url.strip_prefix("https://"),
    ) {
        let plain = HostSettings {
            url: format!("http://{rest}"),
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            ..settings
        };
        endpoints.push(Endpoint::new(plain, is_origin)?);
    }
    Ok(())
}

/// A URL for an error message. The user name and the password before an `@` are left out.
pub(crate) fn redacted(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("***@{host}"),
        None => url.to_owned(),
    }
}

/// Whether this host name is a name or address of the machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = host.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
