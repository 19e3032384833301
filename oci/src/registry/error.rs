//! Why a request to a registry failed, and when to send it again.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

use super::verify::advice;
use crate::config::RetryClass;
use crate::digest::Mismatch;
use crate::hosts::HostsError;
use crate::limits::LimitExceeded;

/// Why a request to a registry failed. `what` is the requested object, `host` is the server.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("the HTTP client cannot be set up")]
    Client(#[source] reqwest::Error),
    #[error("the registry's configuration cannot be used")]
    Hosts(#[from] HostsError),
    #[error("{} has no usable certificate or key: {reason}", path.display())]
    Certificate { path: PathBuf, reason: String },
    /// `wants_certificate`: the server asked for a client certificate, and there was none for it. It closes the
    /// connection then, and whether its reason arrives is a matter of chance.
    #[error("{what} from {host}{}", certificate_hint(*wants_certificate))]
    Http {
        what: String,
        host: String,
        wants_certificate: bool,
        source: reqwest::Error,
    },
    #[error("{what} from {host}: {reason}")]
    Untrusted {
        what: String,
        host: String,
        reason: String,
    },
    /// `tried` says which credentials were tried, because some registries hide what a login may not see.
    #[error("{host} does not have {what}{tried}")]
    NotFound {
        what: String,
        host: String,
        tried: String,
    },
    #[error("{host} refuses {what}: {reason}")]
    Denied {
        what: String,
        host: String,
        reason: String,
    },
    #[error("{host} answered {status} to {what}")]
    Status {
        what: String,
        host: String,
        status: StatusCode,
        retry_after: Option<Duration>,
    },
    /// `host` is no server of the registry, and knows none of its logins.
    #[error("{host}, to which the registry redirects, answered {status} to {what}")]
    RedirectTarget {
        what: String,
        host: String,
        status: StatusCode,
    },
    #[error("{host} redirects the request for {what} {reason}")]
    Redirect {
        what: String,
        host: String,
        reason: &'static str,
    },
    #[error("{host} sent content with the digest {} instead of {}", digests.got, digests.want)]
    WrongDigest {
        host: String,
        digests: Box<Mismatch>,
    },
    #[error("{host} sent {got} bytes of {what} instead of {want}")]
    WrongSize {
        what: String,
        host: String,
        want: u64,
        got: u64,
    },
    #[error("{host} sends {what} slower than {bytes} bytes in {} s", window.as_secs())]
    Slow {
        what: String,
        host: String,
        bytes: u64,
        window: Duration,
    },
    #[error("{host} did not send {what} within {} s", limit.as_secs())]
    NoAnswer {
        what: String,
        host: String,
        limit: Duration,
    },
    #[error("{what} from {host}")]
    Limit {
        what: String,
        host: String,
        source: LimitExceeded,
    },
    #[error("no server may be asked for {what}: give one the capability in hosts.toml")]
    NoHost { what: String },
}

impl RegistryError {
    /// The error of a request that got no answer. What is wrong with a certificate is told without the layers between.
    pub(super) fn of_request(what: &str, host: &str, source: reqwest::Error) -> Self {
        let (what, host) = (what.to_owned(), host.to_owned());
        match advice(&source) {
            Some(reason) => Self::Untrusted { what, host, reason },
            None => Self::Http {
                what,
                host,
                wants_certificate: false,
                source: source.without_url(),
            },
        }
    }

    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Client(_) => "http_client",
            Self::Hosts(_) | Self::NoHost { .. } => "hosts",
            Self::Certificate { .. } | Self::Untrusted { .. } => "certificate",
            Self::Http { .. } => "http",
            Self::NotFound { .. } => "not_found",
            Self::Denied { .. } => "denied",
            Self::Status { status, .. } if *status == StatusCode::TOO_MANY_REQUESTS => {
                "too_many_requests"
            }
            Self::Status { .. } | Self::RedirectTarget { .. } => "http_status",
            Self::Redirect { .. } => "redirect",
            Self::WrongDigest { .. } => "wrong_digest",
            Self::WrongSize { .. } => "wrong_size",
            Self::Slow { .. } | Self::NoAnswer { .. } => "slow",
            Self::Limit { .. } => "limit",
        }
    }

    /// Whether another try can succeed. A broken or wrong response may be caused by a cache or the network. A missing
    /// image stays missing until somebody pushes it, and a refusal stays until somebody corrects a secret.
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Status {
                retry_after: Some(after),
                ..
            } => RetryClass::After(*after),
            Self::Status { status, .. } if is_transient(*status) => RetryClass::Transient,
            // Somebody may be about to make the host trust it.
            Self::Http { .. }
            // The signature in the URL may have expired. The next try gets another URL.
            | Self::RedirectTarget { .. }
            | Self::Untrusted { .. }
            | Self::WrongDigest { .. }
            | Self::WrongSize { .. }
            | Self::Slow { .. }
            | Self::NoAnswer { .. } => RetryClass::Transient,
            Self::Status { .. }
            | Self::Client(_)
            | Self::Hosts(_)
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Certificate { .. }
            | Self::Redirect { .. }
            | Self::Limit { .. }
            | Self::NoHost { .. } => RetryClass::Terminal,
        }
    }
}

fn certificate_hint(wants_certificate: bool) -> &'static str {
    match wants_certificate {
        true => {
            " (it wants a client certificate: name one that it accepts in the registry's hosts.toml)"
        }
        false => "",
    }
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
        )
}
