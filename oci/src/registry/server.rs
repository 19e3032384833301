//! Requests to one server of a registry: with an authorization for its own origin, and through redirects.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use reqwest::header::{
    ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Client, Response, StatusCode, Url};

use super::{RegistryError, redirect, token};
use crate::auth::Match;
use crate::auth::challenge::{self, Challenge};
use crate::hosts::Endpoint;

const MAX_REDIRECTS: u32 = 5;

/// An endpoint with its client, its logins, and what is known of its authentication.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) endpoint: Endpoint,
    pub(super) client: Client,
    pub(super) logins: Vec<Match>,
    /// Headers from the configuration. They are sent to this endpoint's own origin only.
    pub(super) headers: HeaderMap,
    pub(super) access: Mutex<Access>,
    /// Whether the server has spoken TLS in this session, even with a certificate that is not trusted. Its plain form
    /// shares this.
    pub(super) speaks_tls: Arc<AtomicBool>,
    /// Whether it has asked for a client certificate, and there was none for it.
    pub(super) wants_certificate: Arc<AtomicBool>,
}

/// What a server has said about authentication.
#[derive(Debug, Default, Clone)]
pub(super) struct Access {
    /// The authorization that it accepted last.
    pub(super) authorization: Option<HeaderValue>,
    /// The authentication that it asked for last.
    pub(super) challenges: Vec<Challenge>,
}

/// A request without its URL.
pub(super) struct Ask<'a> {
    pub(super) what: &'a str,
    pub(super) accept: &'a str,
    pub(super) range: Option<&'a str>,
}

impl Server {
    pub(super) fn access(&self) -> Access {
        let access = self.access.lock();
        access.unwrap_or_else(|poison| poison.into_inner()).clone()
    }

    pub(super) fn remember(&self, authorization: HeaderValue) {
        let access = self.access.lock();
        let mut access = access.unwrap_or_else(|poison| poison.into_inner());
        access.authorization = Some(authorization);
    }

    pub(super) fn remember_challenges(&self, challenges: &[Challenge]) {
        let access = self.access.lock();
        let mut access = access.unwrap_or_else(|poison| poison.into_inner());
        access.challenges = challenges.to_vec();
    }

    pub(super) async fn send(
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
        let host = url.host_str().unwrap_or_default();
        let answer = request.send().await;
        let answer = answer.map_err(|source| {
            let mut error = RegistryError::of_request(ask.what, host, source);
            if let RegistryError::Http {
                wants_certificate, ..
            } = &mut error
            {
                *wants_certificate = self.wants_certificate.load(Ordering::Relaxed);
            }
            error
        });
        let is_unreachable = matches!(answer, Err(RegistryError::Http { .. }));
        if url.scheme() == "https" && url.origin() == self.endpoint.base.origin() && !is_unreachable
        {
            self.speaks_tls.store(true, Ordering::Relaxed);
        }
        answer
    }

    /// Whether this is the plain form of a server that has answered over TLS. Then it is not asked again: it must not
    /// get credentials without TLS, and its first answer says more.
    pub(super) fn has_answered(&self) -> bool {
        self.endpoint.is_plain_fallback() && self.speaks_tls.load(Ordering::Relaxed)
    }

    /// Follows redirects. The authorization is sent only to the origin that it is for.
    pub(super) async fn follow(
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
            if let Some(reason) = redirect::problem(&url, &next) {
                return Err(refused(reason));
            }
            url = next;
            let authorization = if url.origin() == origin.origin() {
                self.access().authorization
            } else {
                None
            };
            response = self.send(ask, &url, authorization).await?;
        }
    }
}

pub(super) fn challenges(response: &Response) -> Vec<Challenge> {
    let headers = response.headers().get_all(WWW_AUTHENTICATE);
    let texts = headers.iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(challenge::parse).collect()
}
