//! The way between a kube client and the server in memory: requests queue up until the world lets them arrive.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::sync::oneshot;
use tower::Service;

use super::api::{Request, Response};

/// A request under way.
#[derive(Debug)]
pub struct Sent {
    pub request: Request,
    pub reply: oneshot::Sender<Response>,
}

/// Requests that a client has sent and nobody has picked up.
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<VecDeque<Sent>>>);

impl Wire {
    /// A client that sends here.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.clone(), "default")
    }

    /// The oldest request that was sent.
    #[must_use]
    pub fn take(&self) -> Option<Sent> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

/// The answer never came.
#[derive(Debug, thiserror::Error)]
#[error("the connection broke")]
struct Broken;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let queue = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let body = if bytes.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(&bytes)?
            };
            let content_type = parts.headers.get(http::header::CONTENT_TYPE);
            let request = Request {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: query(parts.uri.query().unwrap_or_default()),
                content_type: content_type
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default()
                    .to_owned(),
                body,
            };
            let (reply, answer) = oneshot::channel();
            let sent = Sent { request, reply };
            queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_back(sent);
            let response = answer.await.map_err(|_| Broken)?;
            let body = serde_json::to_vec(&response.body)?;
            Ok(http::Response::builder()
                .status(response.code)
                .body(Body::from(body))?)
        })
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| {
            (
                key.to_owned(),
                value
                    .replace("%3D", "=")
                    .replace("%2C", ",")
                    .replace("%2F", "/"),
            )
        })
        .collect()
}
