//! The servers that have the images of a registry: its own server and its mirrors. They are configured in
//! containerd's `hosts.toml`, or in the `registries.conf` of CRI-O. There is no I/O in this file; `load` and `containers`
//! read the files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use regex::Regex;
use reqwest::Url;
use toml::{Table, Value};

pub(crate) mod containers;
mod load;
pub(crate) mod registries_conf;

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

/// What is configured for one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistrySettings {
    /// The registry's own server, which is asked last. If it is `None`, the URL is made from the name of the
    /// registry.
    pub(crate) server: Option<HostSettings>,
    /// Mirrors, in the order in which they are asked.
    pub(crate) hosts: Vec<HostSettings>,
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
            reason: error.message().replace('\n', ", "),
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
                |(pattern, with)| pattern.replace(repository, with).into_owned(),
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
        if !self.is_origin && self.settings.repository.is_none() {
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
        add(&mut endpoints, host, false)?;
    }
    let usual = || {
        let host = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        let name = Url::parse(&format!("http://{host}"))
            .ok()
            .and_then(|url| url.host_str().map(is_loopback));
        let scheme = if insecure || name == Some(true) {
            "http"
        } else {
            "https"
        };
        HostSettings {
            url: format!("{scheme}://{host}"),
            ..HostSettings::default()
        }
    };
    let mut server = settings.server.clone().unwrap_or_else(usual);
    if server.url.is_empty() {
        server.url = usual().url;
        let has_tls = !server.ca.is_empty() || !server.client.is_empty() || server.skip_verify;
        if let (true, Some(rest)) = (has_tls, server.url.strip_prefix("http://")) {
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
    endpoints.push(Endpoint::new(settings.clone(), is_origin)?);
    if let (true, Some(rest)) = (
        settings.plain_fallback,
        settings.url.strip_prefix("https://"),
    ) {
        let plain = HostSettings {
            url: format!("http://{rest}"),
            ca: Vec::new(),
            client: Vec::new(),
            ..settings.clone()
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

/// Reads a `hosts.toml`. Paths in it are relative to `dir`.
pub(crate) fn parse(text: &str, dir: &Path) -> Result<RegistrySettings, HostsError> {
    let path = dir.join("hosts.toml");
    let table: Table = text
        .parse()
        .map_err(|error| HostsError::toml(&path, text, &error))?;
    let reader = Reader { dir, path };
    let mut settings = RegistrySettings::default();
    if let Some(hosts) = table.get("host") {
        let hosts = hosts
            .as_table()
            .ok_or_else(|| reader.wrong("host", "a table"))?;
        for (url, host) in hosts {
            let field = format!("host.{url:?}");
            let host = host
                .as_table()
                .ok_or_else(|| reader.wrong(&field, "a table"))?;
            settings.hosts.push(reader.host(url.clone(), &field, host)?);
        }
    }
    let server = match table.get("server") {
        None => String::new(),
        Some(Value::String(url)) => url.clone(),
        Some(_) => return Err(reader.wrong("server", "a string")),
    };
    let own = [
        "server",
        "ca",
        "client",
        "skip_verify",
        "override_path",
        "header",
        "rewrite",
    ];
    if own.iter().any(|key| table.contains_key(*key)) {
        settings.server = Some(reader.host(server, "", &table)?);
    }
    Ok(settings)
}

struct Reader<'a> {
    dir: &'a Path,
    path: PathBuf,
}

impl Reader<'_> {
    fn wrong(&self, field: &str, want: &'static str) -> HostsError {
        HostsError::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            want,
        }
    }

    fn host(&self, url: String, field: &str, table: &Table) -> Result<HostSettings, HostsError> {
        let name = |key: &str| {
            if field.is_empty() {
                key.to_owned()
            } else {
                format!("{field}.{key}")
            }
        };
        let boolean = |key| match table.get(key) {
            None => Ok(false),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.wrong(&name(key), "true or false")),
        };
        let ca = self.texts(&name("ca"), table.get("ca"))?;
        Ok(HostSettings {
            url,
            capabilities: self.texts(&name("capabilities"), table.get("capabilities"))?,
            ca: ca.iter().map(|path| self.dir.join(path)).collect(),
            client: self.client(&name("client"), table.get("client"))?,
            skip_verify: boolean("skip_verify")?,
            override_path: boolean("override_path")?,
            header: self.map(&name("header"), table.get("header"))?,
            rewrite: self
                .map(&name("rewrite"), table.get("rewrite"))?
                .into_iter()
                .map(|(key, values)| (key, values.concat()))
                .collect(),
            repository: None,
            plain_fallback: false,
        })
    }

    /// Reads a string or an array of strings.
    fn texts(&self, field: &str, value: Option<&Value>) -> Result<Vec<String>, HostsError> {
        let wrong = || self.wrong(field, "a string or an array of strings");
        match value {
            None => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(values)) => {
                let texts = values.iter().map(|value| value.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or_else(wrong)
            }
            Some(_) => Err(wrong()),
        }
    }

    /// Reads a file, an array of files, or an array of pairs of files.
    fn client(
        &self,
        field: &str,
        value: Option<&Value>,
    ) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsError> {
        let wrong = || {
            self.wrong(
                field,
                "a file, files, or pairs of certificate and key files",
            )
        };
        let Some(Value::Array(values)) = value else {
            let files = self.texts(field, value).map_err(|_| wrong())?;
            return Ok(files
                .iter()
                .map(|file| (self.dir.join(file), None))
                .collect());
        };
        let mut pairs = Vec::new();
        for value in values {
            match self
                .texts(field, Some(value))
                .map_err(|_| wrong())?
                .as_slice()
            {
                [both] => pairs.push((self.dir.join(both), None)),
                [certificate, key] => {
                    pairs.push((self.dir.join(certificate), Some(self.dir.join(key))));
                }
                _ => return Err(wrong()),
            }
        }
        Ok(pairs)
    }

    fn map(
        &self,
        field: &str,
        value: Option<&Value>,
    ) -> Result<BTreeMap<String, Vec<String>>, HostsError> {
        let Some(value) = value else {
            return Ok(BTreeMap::new());
        };
        let table = value
            .as_table()
            .ok_or_else(|| self.wrong(field, "a table"))?;
        table
            .iter()
            .map(|(key, value)| {
                Ok((
                    key.clone(),
                    self.texts(&format!("{field}.{key}"), Some(value))?,
                ))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
