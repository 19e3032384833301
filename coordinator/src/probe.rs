//! `/livez` and `/readyz` over plain HTTP, for the kubelet's probes.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::watch;

use crate::server;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers probes until the process ends. Ready means that every kind was listed completely.
pub async fn serve(address: SocketAddr, ready: watch::Receiver<bool>) {
    let listener = match server::listen(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "--probe-address cannot be listened on; probes will fail");
            return;
        }
    };
    let handler = move |request: http::Request<hyper::body::Incoming>| {
        let (status, body) = reply(request.uri().path(), *ready.borrow());
        std::future::ready(server::plain(status, body))
    };
    server::serve(listener, PATIENCE, handler).await;
}

fn reply(path: &str, ready: bool) -> (StatusCode, &'static str) {
    match (path, ready) {
        ("/livez" | "/healthz", _) | ("/readyz", true) => (StatusCode::OK, "ok"),
        ("/readyz", false) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the first list is not complete",
        ),
        _ => (StatusCode::NOT_FOUND, "not found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        for (path, ready, want) in [
            ("/livez", false, 200),
            ("/healthz", false, 200),
            ("/readyz", false, 503),
            ("/readyz", true, 200),
            ("/", true, 404),
            ("", true, 404),
        ] {
            assert_eq!(reply(path, ready).0, want, "{path}");
        }
    }

    #[tokio::test]
    async fn the_kubelet_is_answered() {
        let listener = server::listen("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (ready, is_ready) = watch::channel(false);
        tokio::spawn(serve(address, is_ready));
        let probe = async |path: &str| {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: pod\r\nUser-Agent: kube-probe\r\n\r\n");
            server::tests::asked(address, &request).await
        };
        tokio::task::yield_now().await;
        let said = probe("/readyz").await;
        assert!(
            said.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
            "{said}"
        );
        assert!(
            said.ends_with("\r\n\r\nthe first list is not complete"),
            "{said}"
        );
        ready.send_replace(true);
        let said = probe("/readyz").await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(probe("/livez").await.ends_with("\r\n\r\nok"));
    }
}
