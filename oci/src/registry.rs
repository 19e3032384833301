//! The OCI distribution API over HTTP: manifests and blobs of one repository, from the registry's server or from a
//! mirror.
//!
//! A credential is sent only to the endpoint that it is for, and to the token server that this endpoint names. After
//! a redirect to another origin, the request has no credentials, except a token that every client can get.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that speaks HTTP"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use crate::auth::{Credentials, Match};
use crate::chain;
use crate::config::Timeouts;
use crate::digest::{Digest, Mismatch};
use crate::hosts::{self, RegistrySettings};
use crate::image;
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::proxy::Proxies;
use crate::reference::Reference;
use crate::root::Root;

mod error;
mod redirect;
mod server;
mod token;
mod transport;
mod trust;
mod verify;

pub use error::RegistryError;
pub(crate) use trust::TrustStore;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use trust::read_certificates;

use server::{Access, Ask, Server};

/// What every connection of a session needs.
#[derive(Debug)]
pub(crate) struct Net<'a> {
    /// The directory in which the paths of certificates are paths.
    pub(crate) files: &'a Root,
    pub(crate) trust: &'a TrustStore,
    pub(crate) proxies: &'a Arc<Proxies>,
    pub(crate) timeouts: &'a Timeouts,
}

/// Talks to one repository for one pull.
#[derive(Debug)]
pub(crate) struct Session {
    registry: String,
    repository: String,
    hosts: Vec<Server>,
    /// Credentials and settings that could not be used, for messages.
    problems: Vec<String>,
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
    /// Sets up a client for each server of the registry.
    pub(crate) fn open(
        reference: &Reference,
        credentials: &Credentials,
        settings: &RegistrySettings,
        insecure: bool,
        net: &Net<'_>,
    ) -> Result<Self, RegistryError> {
        let registry = reference.registry();
        let name = reference.name();
        let mut hosts: Vec<Server> = Vec::new();
        let mut problems = credentials.problems(&name);
        for endpoint in hosts::endpoints(registry, settings, insecure)? {
            let (client, wants_certificate) = transport::client(&endpoint, net)?;
            let repository = endpoint.repository(reference.repository());
            let there = format!("{}/{repository}", endpoint.authority);
            let mut logins = match endpoint.is_origin {
                true => credentials.matching(&name),
                false => credentials.matching(&there),
            };
            if endpoint.is_origin && endpoint.settings.repository.is_some() {
                logins.extend(credentials.matching(&there));
            }
            problems.extend(credentials.problems(&there));
            let headers = transport::headers(&endpoint.settings)?;
            // The plain form of a server comes right after it.
            let speaks_tls = match hosts.last() {
                Some(twin) if endpoint.is_plain_fallback() => Arc::clone(&twin.speaks_tls),
                _ => Arc::default(),
            };
            hosts.push(Server {
                endpoint,
                client,
                logins,
                headers,
                access: std::sync::Mutex::default(),
                speaks_tls,
                wants_certificate,
            });
        }
        problems.extend(settings.problems.iter().cloned());
        problems.extend(net.proxies.problems.iter().cloned());
        let problems: BTreeSet<String> = problems.into_iter().collect();
        Ok(Self {
            registry: registry.to_owned(),
            repository: reference.repository().to_owned(),
            hosts,
            problems: problems.into_iter().collect(),
        })
    }

    /// The registry that the reference names.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
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
            if host.has_answered() {
                continue;
            }
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
        let digest = Digest::like(want, &bytes);
        match want {
            Some(want) if want != digest => {
                let (host, got) = (authority.clone(), digest);
                let digests = Box::new(Mismatch { want, got });
                Err(RegistryError::WrongDigest { host, digests })
            }
            _ => Ok(RawManifest {
                bytes,
                digest,
                content_type,
            }),
        }
    }

    /// Requests a blob from the byte `from` on. The host at position `first` is asked first. The status of the response
    /// tells whether it is the rest or the whole blob.
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
            let range = (from > 0).then(|| format!("bytes={from}-"));
            let host_index = (first + step) % self.hosts.len();
            let host = &self.hosts[host_index];
            if !host.endpoint.serves(true) || host.has_answered() {
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
        let Access {
            authorization,
            mut challenges,
        } = host.access();
        let mut response = host.send(&ask, &url, authorization).await?;
        let mut token_server = None;
        // Some registries answer 404 to a login that may not see the repository, and 403 to one that has expired.
        while is_about_access(response.status(), &host.logins) {
            let asked_for = server::challenges(&response);
            if !asked_for.is_empty() {
                challenges = asked_for;
                host.remember_challenges(&challenges);
            }
            let Some(login) = logins.next() else {
                break;
            };
            let answer = token::answer(
                &host.client,
                &host.endpoint,
                &self.repository,
                &challenges,
                login.map(|found| &found.login),
            );
            match answer.await {
                Ok(Some(authorization)) => {
                    let next = host.send(&ask, &url, Some(authorization.clone())).await?;
                    if !is_about_access(next.status(), &host.logins) {
                        host.remember(authorization);
                    }
                    response = most_telling(response, next);
                }
                Ok(None) => {}
                // The token server does not accept this login: try the next one.
                Err(error @ RegistryError::Denied { .. }) => token_server = Some(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        let origin = url.origin();
        let response = host.follow(&ask, &self.repository, url, response).await?;
        match response.status() {
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
                if response.url().origin() != origin =>
            {
                Err(RegistryError::RedirectTarget {
                    what: what.to_owned(),
                    host: response.url().host_str().unwrap_or_default().to_owned(),
                    status,
                })
            }
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if range.is_some() => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(RegistryError::Denied {
                what: what.to_owned(),
                host: host.endpoint.authority.clone(),
                reason: self.refusal(host, response.status(), token_server),
            }),
            StatusCode::NOT_FOUND if !host.logins.is_empty() || !self.problems.is_empty() => {
                Err(RegistryError::NotFound {
                    what: what.to_owned(),
                    host: host.endpoint.authority.clone(),
                    tried: format!(" ({})", self.tried(host)),
                })
            }
            _ => Err(status_error(what, &host.endpoint.authority, &response)),
        }
    }

    /// Why the server refuses, with all that was tried.
    fn refusal(&self, host: &Server, status: StatusCode, token_server: Option<String>) -> String {
        let advice = match host.logins.len() {
            0 => "it requires credentials, and there are none for it: add a pull secret",
            _ => "no credentials for it are accepted",
        };
        let token_server = token_server.map_or_else(String::new, |text| format!("{text}; "));
        let tried = self.tried(host);
        format!("{advice} (it answered {status}; {token_server}{tried})")
    }

    /// What was tried to get access, and what could not be.
    fn tried(&self, host: &Server) -> String {
        let mut sources: Vec<&str> = Vec::new();
        for found in &host.logins {
            if !sources.contains(&&*found.source) {
                sources.push(&found.source);
            }
        }
        sources.push("no credentials");
        let mut text = format!("tried: {}", sources.join(", "));
        if !self.problems.is_empty() {
            text.push_str("; cannot be used: ");
            text.push_str(&self.problems.join("; "));
        }
        text
    }
}

/// Whether another login may get another answer.
fn is_about_access(status: StatusCode, logins: &[Match]) -> bool {
    match status {
        StatusCode::UNAUTHORIZED => true,
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => !logins.is_empty(),
        _ => false,
    }
}

/// Which of two answers an error is made from. That something does not exist says more than that a login is missing, but
/// only the answer to the last login can be a success.
fn most_telling(before: Response, next: Response) -> Response {
    match (before.status(), next.status()) {
        (StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => before,
        _ => next,
    }
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
        StatusCode::NOT_FOUND => RegistryError::NotFound {
            what,
            host,
            tried: String::new(),
        },
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
                    wants_certificate: false,
                    source: source.without_url(),
                });
            }
        }
    }
}
