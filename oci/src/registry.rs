//! The distribution API over HTTP: manifests and blobs of one repository.

use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Client, Response, StatusCode};

use crate::auth::{Credentials, Login};
use crate::digest::Digest;
use crate::image;
use crate::limits::{Limit, LimitExceeded, Limits};
use crate::pull::{PullerConfig, RetryClass};
use crate::reference::Reference;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
    #[error("{what} from {host}")]
    Http {
        what: String,
        host: String,
        source: reqwest::Error,
    },
    #[error("{host} answered {status} to {what}")]
    Status {
        what: String,
        host: String,
        status: StatusCode,
    },
    #[error("{host} sent {got} for {want}")]
    WrongDigest {
        host: String,
        want: Digest,
        got: Digest,
    },
    #[error("{what}")]
    Limit {
        what: &'static str,
        source: LimitExceeded,
    },
}

impl RegistryError {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "http_client",
            Self::Http { .. } => "http",
            Self::Status { .. } => "http_status",
            Self::WrongDigest { .. } => "wrong_digest",
            Self::Limit { .. } => "limit",
        }
    }

    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Http { .. } | Self::Status { .. } | Self::WrongDigest { .. } => {
                RetryClass::Transient
            }
            Self::Client(_) | Self::Limit { .. } => RetryClass::Terminal,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Registry {
    client: Client,
    insecure: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    host: String,
    base: String,
    login: Option<Login>,
}

impl Registry {
    pub(crate) fn new(config: &PullerConfig) -> Result<Self, RegistryError> {
        let roots = rustls::RootCertStore::empty();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(Duration::from_secs(30))
            .build()
            .map_err(RegistryError::Client)?;
        Ok(Self {
            client,
            insecure: config.insecure.clone(),
        })
    }

    pub(crate) fn session(&self, reference: &Reference, credentials: &Credentials) -> Session {
        let host = reference.registry();
        let plain = is_loopback(host) || self.insecure.iter().any(|name| name == host);
        let scheme = if plain { "http" } else { "https" };
        let login = credentials
            .matching(&reference.name())
            .first()
            .map(|&login| login.clone());
        let base = format!("{scheme}://{host}/v2/{}", reference.repository());
        Session {
            client: self.client.clone(),
            host: host.to_owned(),
            base,
            login,
        }
    }
}

/// Whether this registry is on the machine itself.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

impl Session {
    async fn get(&self, what: &str, path: &str, accept: &str) -> Result<Response, RegistryError> {
        let mut request = self
            .client
            .get(format!("{}/{path}", self.base))
            .header(ACCEPT, accept);
        if let Some(Login::Basic { username, password }) = &self.login {
            request = request.basic_auth(username, Some(password));
        }
        let response = request
            .send()
            .await
            .map_err(|source| self.http(what, source))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let (what, host) = (what.to_owned(), self.host.clone());
        Err(RegistryError::Status { what, host, status })
    }

    fn http(&self, what: &str, source: reqwest::Error) -> RegistryError {
        let source = source.without_url();
        RegistryError::Http {
            what: what.to_owned(),
            host: self.host.clone(),
            source,
        }
    }

    /// A manifest or index: its bytes, their digest, and the registry's content type.
    pub(crate) async fn manifest(
        &self,
        selector: &str,
        want: Option<Digest>,
        limits: &Limits,
    ) -> Result<(Vec<u8>, Digest, Option<String>), RegistryError> {
        let mut response = self
            .get(
                "the manifest",
                &format!("manifests/{selector}"),
                image::ACCEPT,
            )
            .await?;
        let content_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk(&mut response).await? {
            bytes.extend_from_slice(&chunk);
            limits
                .check(Limit::ManifestBytes, bytes.len() as u64)
                .map_err(|source| RegistryError::Limit {
                    what: "the manifest",
                    source,
                })?;
        }
        let got = Digest::of(&bytes);
        match want {
            Some(want) if want != got => Err(RegistryError::WrongDigest {
                host: self.host.clone(),
                want,
                got,
            }),
            _ => Ok((bytes, got, content_type)),
        }
    }

    pub(crate) async fn blob(&self, digest: &Digest) -> Result<Response, RegistryError> {
        self.get("a blob", &format!("blobs/{digest}"), "*/*").await
    }

    pub(crate) async fn chunk(
        &self,
        response: &mut Response,
    ) -> Result<Option<bytes::Bytes>, RegistryError> {
        response
            .chunk()
            .await
            .map_err(|source| self.http("a body", source))
    }
}
