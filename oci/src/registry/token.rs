//! Answers the challenge of a registry: with basic credentials, or with a token from the token server that it names.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

use super::{RegistryError, body, status_error};
use crate::auth::Login;
use crate::auth::challenge::Challenge;
use crate::hosts::Endpoint;

const MAX_ANSWER: u64 = 1 << 20;

/// The `Authorization` header that answers one of the challenges, with this login or without any. `None` if no
/// challenge can be answered with it.
pub(super) async fn answer(
    client: &Client,
    endpoint: &Endpoint,
    repository: &str,
    challenges: &[Challenge],
    login: Option<&Login>,
) -> Result<Option<HeaderValue>, RegistryError> {
    for challenge in challenges {
        match (challenge, login) {
            (Challenge::Basic, Some(Login::Basic { username, password })) => {
                return Ok(header(&basic(username, password)));
            }
            (Challenge::Bearer { .. }, Some(Login::RegistryToken(token))) => {
                return Ok(header(&format!("Bearer {token}")));
            }
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                login,
            ) => {
                let scope = scope.clone().unwrap_or_else(|| {
                    format!("repository:{}:pull", endpoint.repository(repository))
                });
                let request = TokenRequest {
                    realm,
                    service: service.as_deref(),
                    scope: &scope,
                };
                let token = request.send(client, endpoint, login).await?;
                return Ok(header(&format!("Bearer {token}")));
            }
            (Challenge::Basic, _) => {}
        }
    }
    Ok(None)
}

fn basic(username: &str, password: &str) -> String {
    format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    )
}

fn header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

struct TokenRequest<'a> {
    realm: &'a str,
    service: Option<&'a str>,
    scope: &'a str,
}

impl TokenRequest<'_> {
    /// Requests a token from the token server. An identity token is exchanged by OAuth2, everything else by the plain
    /// token request.
    async fn send(
        &self,
        client: &Client,
        endpoint: &Endpoint,
        login: Option<&Login>,
    ) -> Result<String, RegistryError> {
        let what = "a token".to_owned();
        let denied = |host: &str, reason: &str| RegistryError::Denied {
            what: what.clone(),
            host: host.to_owned(),
            reason: reason.to_owned(),
        };
        let mut url = Url::parse(self.realm)
            .map_err(|_| denied(&endpoint.authority, "its token server is not a URL"))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        if url.scheme() != "https" && endpoint.base.scheme() == "https" {
            return Err(denied(
                &host,
                "its token server would get credentials without TLS",
            ));
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(denied(
                &host,
                "the URL of its token server is neither http nor https",
            ));
        }
        let mut fields = vec![("scope", self.scope)];
        fields.extend(self.service.map(|service| ("service", service)));
        let request = if let Some(Login::IdentityToken(token)) = login {
            let identity = [
                ("grant_type", "refresh_token"),
                ("client_id", "skyhook"),
                ("refresh_token", token.as_str()),
            ];
            let mut form = Url::parse("form:")
                .map_err(|_| denied(&host, "the request for a token cannot be written"))?;
            form.query_pairs_mut()
                .extend_pairs(fields)
                .extend_pairs(identity);
            let form = form.query().unwrap_or_default().to_owned();
            let content_type = (
                reqwest::header::CONTENT_TYPE,
                "application/x-www-form-urlencoded",
            );
            client
                .post(url)
                .header(content_type.0, content_type.1)
                .body(form)
        } else {
            url.query_pairs_mut().extend_pairs(fields);
            let request = client.get(url);
            match login {
                Some(Login::Basic { username, password }) => {
                    request.basic_auth(username, Some(password))
                }
                Some(Login::IdentityToken(_) | Login::RegistryToken(_)) | None => request,
            }
        };
        let answer = request.send().await;
        let response = answer.map_err(|source| RegistryError::of_request(&what, &host, source))?;
        let status = response.status();
        if status.is_client_error()
            && !matches!(
                status,
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
            )
        {
            return Err(denied(&host, &format!("it answered {status}")));
        }
        if !status.is_success() {
            return Err(status_error(&what, &host, &response));
        }
        let bytes = body(response, &what, &host, MAX_ANSWER).await?;
        token(&bytes).ok_or_else(|| denied(&host, "its token server gave no token"))
    }
}

fn token(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    // Some servers send both fields, and one of them is empty.
    [answer.token, answer.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_may_have_either_name() {
        for (answer, want) in [
            (r#"{"token": "a"}"#, Some("a")),
            (r#"{"access_token": "b"}"#, Some("b")),
            (r#"{"token": "", "access_token": "b"}"#, Some("b")),
            (r#"{"token": "a", "access_token": ""}"#, Some("a")),
            (r#"{"token": null, "access_token": "b"}"#, Some("b")),
            (r#"{"token": ""}"#, None),
            ("{}", None),
            ("", None),
        ] {
            assert_eq!(token(answer.as_bytes()).as_deref(), want, "{answer}");
        }
    }
}
