//! The HTTP server of this process. It answers one small request per connection, for the kubelet and for what reads
//! metrics.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long the listener rests after it could not accept a connection.
const REST: Duration = Duration::from_secs(1);

/// Connections that are open at the same time. Others wait to be accepted.
const CONNECTIONS: usize = 32;

/// A complete answer.
pub type Answer = Response<Full<Bytes>>;

/// An answer of plain text.
pub(crate) fn plain(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain", body)
}

/// An answer of some content type.
pub(crate) fn answer(status: StatusCode, content: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let content = http::HeaderValue::from_static(content);
    answer.headers_mut().insert(header::CONTENT_TYPE, content);
    answer
}

/// Listens on an address, or on what stands in for it: see [`places`].
pub async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(&*places(address)).await
}

/// The addresses to listen on, of which the first that works is used. The kubelet sends probes to the pod's IP, which
/// may be an IPv4 or an IPv6 address. `[::]` accepts both. On a host without IPv6, only the IPv4 address works.
fn places(address: SocketAddr) -> Vec<SocketAddr> {
    let mut places = vec![address];
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        places.push(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())));
    }
    places
}

/// Answers requests until the process ends. A connection may take `patience` in all.
pub async fn serve<H, F>(listener: TcpListener, patience: Duration, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    match tokio::time::timeout(patience, converse(stream, handler)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "an HTTP request broke off"),
                        Err(_) => tracing::debug!("an HTTP request took too long"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // For example, no file descriptor is free. Another try at once would only waste CPU time.
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Answers one request, and closes the connection.
async fn converse<H, F>(stream: TcpStream, handler: H) -> hyper::Result<()>
where
    H: Fn(Request<Incoming>) -> F,
    F: Future<Output = Answer>,
{
    let service = service_fn(|request| {
        let answer = handler(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut connection = http1::Builder::new();
    connection.keep_alive(false);
    let io = TokioIo::new(stream);
    connection.serve_connection(io, service).await
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Sends a request as it is, and returns everything that comes back until the connection is closed.
    pub(crate) async fn asked(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn where_there_is_no_ipv6_requests_are_answered_over_ipv4() {
        let any: SocketAddr = "[::]:8081".parse().unwrap();
        let want: Vec<SocketAddr> = ["[::]:8081", "0.0.0.0:8081"]
            .map(|a| a.parse().unwrap())
            .into();
        assert_eq!(places(any), want);
        let one: SocketAddr = "[::1]:8081".parse().unwrap();
        assert_eq!(places(one), [one]);
        // No host has an address from the range for documentation. It cannot be listened on, as [::] cannot without
        // IPv6.
        let places = ["[2001:db8::1]:0", "127.0.0.1:0"].map(|a| a.parse().unwrap());
        let listener = TcpListener::bind(&places[..]).await.unwrap();
        assert!(listener.local_addr().unwrap().is_ipv4());
    }

    #[tokio::test]
    async fn a_connection_is_closed_after_its_request_and_when_nothing_comes() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let handler = |request: Request<Incoming>| {
            let said = request.uri().path().to_owned();
            std::future::ready(plain(StatusCode::OK, said))
        };
        let patience = Duration::from_millis(200);
        tokio::spawn(serve(listener, patience, handler));
        let said = asked(address, "GET /this HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(said.ends_with("\r\n\r\n/this"), "{said}");
        assert!(said.contains("connection: close"), "{said}");
        let said = asked(address, "nonsense\r\n\r\n").await;
        assert!(said.starts_with("HTTP/1.1 400 "), "{said}");
        assert_eq!(asked(address, "").await, "", "closed without a request");
        // More of them than may be open at once do not keep others out for longer than the patience.
        let mut silent = Vec::new();
        for _ in 0..=CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let said = asked(address, "GET /that HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(said.ends_with("/that"), "{said}");
    }
}
