//! The OCI distribution API over HTTP: manifests and blobs of one repository, from the registry's server or from a
//! mirror.
//!
//! A credential is sent only to the endpoint that it is for, and to the token server that this endpoint names. After
//! a redirect to another origin, the request has no credentials, except a token that every client can get.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that speaks HTTP"
)]

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode, Url};

use crate::auth::challenge::{self, Challenge};
use crate::auth::{Credentials, Login};
use crate::chain;
use crate::config::PullerConfig;
use crate::digest::Digest;
use crate::hosts::{self, Endpoint, HostsError};
use crate::image;
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::reference::Reference;
use crate::root::Root;

mod error;
mod token;
mod transport;

pub use error::RegistryError;

const MAX_REDIRECTS: u32 = 5;

/// Talks to one repository for one pull.
#[derive(Debug)]
pub(crate) struct Session {
    registry: String,
    repository: String,
    hosts: Vec<Server>,
}

/// An endpoint with its client, its logins, and the authorization that it accepted last.
#[derive(Debug)]
struct Server {
    endpoint: Endpoint,
    client: Client,
    logins: Vec<Login>,
    /// Headers from the configuration. They are sent to this endpoint's own origin only.
    headers: HeaderMap,
    authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index, as the registry sent it.
#[derive(Debug)]
pub(crate) struct RawManifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) content_type: Option<String>,
}

/// A blob's body, and which host sends it.
#[derive(Debug)]
pub(crate) struct BlobBody {
    pub(crate) response: Response,
    /// The position of that host in the list of hosts.
    pub(crate) host_index: usize,
    pub(crate) host: String,
}

impl Session {
    /// Reads the configuration of the registry each time, because certificates and mirrors may have changed.
    pub(crate) fn open(
        reference: &Reference,
        credentials: &Credentials,
        config: &PullerConfig,
    ) -> Result<Self, RegistryError> {
        let registry = reference.registry();
        let files = config.files.clone().map_or_else(
            || {
                let path = Path::new("/");
                Root::open(path).map_err(|source| HostsError::Read {
                    path: path.to_path_buf(),
                    source,
                })
            },
            Ok,
        )?;
        let settings = match &config.hosts_dir {
            Some(dir) => hosts::load(&files, dir, registry)?,
            None => hosts::RegistrySettings::default(),
        };
        let insecure = config.insecure.iter().any(|name| name == registry);
        let mut hosts = Vec::new();
        for endpoint in hosts::endpoints(registry, &settings, insecure)? {
            let client = transport::client(&endpoint, &files, &config.timeouts)?;
            let logins = if endpoint.is_origin {
                credentials.matching(&reference.name())
            } else {
                let repository = endpoint.repository(reference.repository());
                credentials.matching(&format!("{}/{repository}", endpoint.authority))
            };
            let headers = transport::headers(&endpoint.settings)?;
            let authorization = Mutex::new(None);
            hosts.push(Server {
                endpoint,
                client,
                logins,
                headers,
                authorization,
            });
        }
        let (registry, repository) = (registry.to_owned(), reference.repository().to_owned());
        Ok(Self {
            registry,
            repository,
            hosts,
        })
    }

    pub(crate) fn has_one_host(&self) -> bool {
        self.hosts.len() == 1
    }

    /// Requests a manifest or index by tag or by digest. If `want` is given, the document must have this digest.
    pub(crate) async fn manifest(
        &self,
        selector: &str,
        want: Option<Digest>,
        limits: &Limits,
    ) -> Result<RawManifest, RegistryError> {
        let what = format!("manifest {selector}");
        let path = format!("manifests/{selector}");
        let mut failed = None;
        for host in self
            .hosts
            .iter()
            .filter(|host| host.endpoint.serves(want.is_some()))
        {
            let result = self.manifest_from(host, &what, &path, want, limits).await;
            match result {
                Ok(manifest) => return Ok(manifest),
                Err(error) => failed = Some(passed_over(host, error)),
            }
        }
        Err(failed.unwrap_or(RegistryError::NoHost { what }))
    }

    async fn manifest_from(
        &self,
        host: &Server,
        what: &str,
        path: &str,
        want: Option<Digest>,
        limits: &Limits,
    ) -> Result<RawManifest, RegistryError> {
        let response = self.get(host, what, path, image::ACCEPT, None).await?;
        let content_type = response.headers().get(CONTENT_TYPE);
        let content_type = content_type
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let authority = &host.endpoint.authority;
        let bytes = body(response, what, authority, limits.manifest_bytes).await?;
        let digest = Digest::of(&bytes);
        match want {
            Some(want) if want != digest => {
                let host = authority.clone();
                Err(RegistryError::WrongDigest {
                    host,
                    want,
                    got: digest,
                })
            }
            _ => Ok(RawManifest {
                bytes,
                digest,
                content_type,
            }),
        }
    }

    /// Requests a blob. The host at position `first` is asked first. Only this host is asked for the bytes after
    /// `from`: the others are asked for the whole blob, because bytes of two hosts must not be mixed. The status of
    /// the response tells whether it is a part or the whole blob.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        from: u64,
        first: usize,
    ) -> Result<BlobBody, RegistryError> {
        let what = format!("blob {digest}");
        let path = format!("blobs/{digest}");
        let mut failed = None;
        for step in 0..self.hosts.len() {
            let range = (from > 0 && step == 0).then(|| format!("bytes={from}-"));
            let host_index = (first + step) % self.hosts.len();
            let host = &self.hosts[host_index];
            if !host.endpoint.serves(true) {
                continue;
            }
            match self.get(host, &what, &path, "*/*", range.as_deref()).await {
                Ok(response) => {
                    let host = host.endpoint.authority.clone();
                    return Ok(BlobBody {
                        response,
                        host_index,
                        host,
                    });
                }
                Err(error) => failed = Some(passed_over(host, error)),
            }
        }
        Err(failed.unwrap_or(RegistryError::NoHost { what }))
    }

    /// Sends a request, answers challenges and follows redirects until there is a successful answer.
    async fn get(
        &self,
        host: &Server,
        what: &str,
        path: &str,
        accept: &str,
        range: Option<&str>,
    ) -> Result<Response, RegistryError> {
        let url = host.endpoint.url(&self.registry, &self.repository, path);
        let ask = Ask {
            what,
            accept,
            range,
        };
        let mut logins = host.logins.iter().map(Some).chain([None]);
        let known = host.known_authorization();
        let mut response = host.send(&ask, &url, known).await?;
        while response.status() == StatusCode::UNAUTHORIZED {
            let challenges = challenges(&response);
            let denied = || RegistryError::Denied {
                what: what.to_owned(),
                host: host.endpoint.authority.clone(),
                reason: match host.logins.len() {
                    0 => "it requires credentials, and there are none for it: add a pull secret"
                        .to_owned(),
                    count => format!("none of the {count} credentials for it is accepted"),
                },
            };
            let login = logins.next().ok_or_else(denied)?;
            let answer = token::answer(
                &host.client,
                &host.endpoint,
                &self.repository,
                &challenges,
                login,
            );
            match answer.await {
                Ok(Some(authorization)) => {
                    response = host.send(&ask, &url, Some(authorization.clone())).await?;
                    if response.status() != StatusCode::UNAUTHORIZED {
                        host.remember(authorization);
                    }
                }
                Ok(None) => {}
                // The token server does not accept this login: try the next one.
                Err(RegistryError::Denied { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let response = host.follow(&ask, &self.repository, url, response).await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if range.is_some() => Ok(response),
            _ => Err(status_error(what, &host.endpoint.authority, &response)),
        }
    }
}

/// A request without its URL.
struct Ask<'a> {
    what: &'a str,
    accept: &'a str,
    range: Option<&'a str>,
}

impl Server {
    fn known_authorization(&self) -> Option<HeaderValue> {
        self.authorization
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
            .clone()
    }

    fn remember(&self, authorization: HeaderValue) {
        *self
            .authorization
            .lock()
            .unwrap_or_else(|poison| poison.into_inner()) = Some(authorization);
    }

    async fn send(
        &self,
        ask: &Ask<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        let mut request = self.client.get(url.clone()).header(ACCEPT, ask.accept);
        if url.origin() == self.endpoint.base.origin() {
            request = request.headers(self.headers.clone());
        }
        if let Some(range) = ask.range {
            request = request.header(RANGE, range);
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|source| RegistryError::Http {
            what: ask.what.to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            source: source.without_url(),
        })
    }

    /// Follows redirects. The authorization is sent only to the origin that it is for.
    async fn follow(
        &self,
        ask: &Ask<'_>,
        repository: &str,
        origin: Url,
        mut response: Response,
    ) -> Result<Response, RegistryError> {
        let refused = |reason| RegistryError::Redirect {
            what: ask.what.to_owned(),
            host: self.endpoint.authority.clone(),
            reason,
        };
        let mut url = origin.clone();
        let mut redirects = 0;
        loop {
            // The other server gets none of our credentials, but it may want a token that anybody can get.
            if response.status() == StatusCode::UNAUTHORIZED && url.origin() != origin.origin() {
                let (client, endpoint) = (&self.client, &self.endpoint);
                let challenges = challenges(&response);
                let answer = token::answer(client, endpoint, repository, &challenges, None);
                let Some(authorization) = answer.await? else {
                    return Ok(response);
                };
                return self.send(ask, &url, Some(authorization)).await;
            }
            if !response.status().is_redirection() {
                return Ok(response);
            }
            redirects += 1;
            if redirects > MAX_REDIRECTS {
                return Err(refused("more than 5 times"));
            }
            let location = response
                .headers()
                .get(LOCATION)
                .and_then(|value| value.to_str().ok());
            let location = location
                .ok_or_else(|| refused("without saying where to (there is no Location header)"))?;
            let next = url
                .join(location)
                .map_err(|_| refused("to something that is not a URL"))?;
            if !matches!(next.scheme(), "http" | "https") {
                return Err(refused("to a URL that is neither http nor https"));
            }
            if url.scheme() == "https" && next.scheme() == "http" {
                return Err(refused(
                    "from https to http: the registry does not know that its proxy speaks TLS, so set X-Forwarded-Proto there",
                ));
            }
            url = next;
            let authorization = if url.origin() == origin.origin() {
                self.known_authorization()
            } else {
                None
            };
            response = self.send(ask, &url, authorization).await?;
        }
    }
}

fn challenges(response: &Response) -> Vec<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    let texts = headers.iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(challenge::parse).collect()
}

/// Logs the failure of a mirror. If the pull succeeds with the next host, this log line is the only sign of the
/// failure.
fn passed_over(host: &Server, error: RegistryError) -> RegistryError {
    if !host.endpoint.is_origin {
        let reason = chain(&error);
        tracing::warn!(
            host = host.endpoint.authority,
            reason,
            "a mirror does not serve the request: asking the next server"
        );
    }
    error
}

/// Converts the status of a response into an error.
fn status_error(what: &str, host: &str, response: &Response) -> RegistryError {
    let (what, host, status) = (what.to_owned(), host.to_owned(), response.status());
    match status {
        StatusCode::NOT_FOUND => RegistryError::NotFound { what, host },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
            what,
            host,
            reason: format!("it answered {status}"),
        },
        _ => {
            let retry_after = retry_after(response, SystemTime::now());
            RegistryError::Status {
                what,
                host,
                status,
                retry_after,
            }
        }
    }
}

/// Reads `Retry-After`, which is a number of seconds or a date.
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?;
    let date: SystemTime = date.timestamp().into();
    Some(date.duration_since(now).unwrap_or_default())
}

/// Reads a body of at most `allowed` bytes.
async fn body(
    mut response: Response,
    what: &str,
    host: &str,
    allowed: u64,
) -> Result<Vec<u8>, RegistryError> {
    let (what, host) = (what.to_owned(), host.to_owned());
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(None) => return Ok(bytes),
            Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > allowed => {
                let source = LimitExceeded {
                    limit: Limit::ManifestBytes,
                    allowed,
                };
                return Err(RegistryError::Limit { what, host, source });
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Err(source) => {
                return Err(RegistryError::Http {
                    what,
                    host,
                    source: source.without_url(),
                });
            }
        }
    }
}
