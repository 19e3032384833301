//! Counts the requests to the API server.

use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use tower::{Layer, Service};

use super::Metrics;

/// Counts what the client under it asks.
#[derive(Clone, Debug)]
pub struct Counting(pub Metrics);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            metrics: self.0.clone(),
        }
    }
}

/// A client whose requests are counted.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let verb = verb(request.method(), request.uri());
        let metrics = self.metrics.clone();
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            let code = answer.as_ref().ok().map(Response::status);
            metrics.answered(verb, code);
            answer
        }
        .boxed()
    }
}

/// The verb, as a Role names it.
fn verb(method: &Method, uri: &Uri) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        "GET" | "HEAD" => {
            let query = uri.query().unwrap_or_default();
            let watches = query.split('&').any(|one| one == "watch=true");
            match (watches, is_collection(uri.path())) {
                (true, _) => "watch",
                (false, true) => "list",
                (false, false) => "get",
            }
        }
        _ => "other",
    }
}

/// True for the path of all objects of a kind, in a namespace or in all.
fn is_collection(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let prefix = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return false,
    };
    let rest: Vec<&str> = parts.skip(prefix).collect();
    matches!(rest[..], [_] | ["namespaces", _, _])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_are_those_of_roles() {
        for (method, uri, want) in [
            ("GET", "/api/v1/nodes?&labelSelector=a", "list"),
            (
                "GET",
                "/api/v1/nodes?watch=true&timeoutSeconds=290",
                "watch",
            ),
            ("GET", "/api/v1/nodes/worker-1", "get"),
            ("GET", "/api/v1/namespaces/skyhook/pods", "list"),
            ("GET", "/api/v1/namespaces/skyhook/pods/p", "get"),
            ("GET", "/apis/skyhook.nvidia.com/v1alpha1/skyhooks", "list"),
            ("GET", "/apis/skyhook.nvidia.com/v1alpha1/skyhooks/s", "get"),
            (
                "GET",
                "/apis/apps/v1/namespaces/n/controllerrevisions",
                "list",
            ),
            ("GET", "/version", "get"),
            ("POST", "/api/v1/namespaces/n/pods/p/eviction", "create"),
            (
                "PUT",
                "/apis/skyhook.nvidia.com/v1alpha1/skyhooks/s/status",
                "update",
            ),
            ("PATCH", "/api/v1/nodes/worker-1", "patch"),
            (
                "DELETE",
                "/apis/skyhook.nvidia.com/v1alpha1/interruptionleases/n",
                "delete",
            ),
            ("OPTIONS", "/", "other"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(verb(&method, &uri.parse().unwrap()), want, "{method} {uri}");
        }
    }

    #[tokio::test]
    async fn answers_and_their_absence_are_counted() {
        let metrics = Metrics::new(false);
        let server = tower::service_fn(|request: Request<()>| {
            let answer = match request.uri().path() {
                "/api/v1/nodes/gone" => Response::builder().status(404).body(()).unwrap(),
                "/api/v1/nodes/mute" => return std::future::ready(Err("no answer")),
                _ => Response::new(()),
            };
            std::future::ready(Ok(answer))
        });
        let mut client = Counting(metrics.clone()).layer(server);
        for path in ["gone", "mute", "worker-1", "worker-2"] {
            let request = Request::get(format!("/api/v1/nodes/{path}"))
                .body(())
                .unwrap();
            let answer = client.call(request).await;
            assert_eq!(answer.is_err(), path == "mute");
        }
        let text = metrics.text(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        for line in [
            r#"skyhook_api_requests_total{verb="get",code="200"} 2"#,
            r#"skyhook_api_requests_total{verb="get",code="404"} 1"#,
            r#"skyhook_api_requests_total{verb="get",code="error"} 1"#,
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
    }
}
