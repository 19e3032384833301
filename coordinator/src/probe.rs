//! `/livez` and `/readyz` over plain HTTP, for the kubelet's probes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers probes until the process ends. Ready means that every kind was listed completely.
pub async fn serve(address: SocketAddr, ready: watch::Receiver<bool>) {
    let listener = match TcpListener::bind(&*places(address)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "--probe-address cannot be listened on; probes will fail");
            return;
        }
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let ready = *ready.borrow();
                tokio::spawn(async move {
                    match tokio::time::timeout(PATIENCE, answer(stream, ready)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "probe broke off"),
                        Err(_) => tracing::debug!("probe said nothing"),
                    }
                });
            }
            Err(error) => {
                // For example, no file descriptor is free. Another try at once would only waste CPU time.
                tracing::warn!(%error, "probe not accepted");
                tokio::time::sleep(PATIENCE / 5).await;
            }
        }
    }
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

async fn answer(mut stream: TcpStream, ready: bool) -> std::io::Result<()> {
    let mut request = [0_u8; 1024];
    let length = stream.read(&mut request).await?;
    let (status, body) = reply(&request[..length], ready);
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

fn reply(request: &[u8], ready: bool) -> (&'static str, &'static str) {
    let path = request
        .split(|byte| *byte == b' ')
        .nth(1)
        .unwrap_or_default();
    match (path, ready) {
        (b"/livez" | b"/healthz", _) | (b"/readyz", true) => ("200 OK", "ok"),
        (b"/readyz", false) => ("503 Service Unavailable", "the first list is not complete"),
        _ => ("404 Not Found", "not found"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_there_is_no_ipv6_probes_are_answered_over_ipv4() {
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

    #[test]
    fn replies() {
        for (request, ready, want) in [
            ("GET /livez HTTP/1.1", false, "200 OK"),
            ("GET /readyz HTTP/1.1", false, "503 Service Unavailable"),
            ("GET /readyz HTTP/1.1", true, "200 OK"),
            ("GET / HTTP/1.1", true, "404 Not Found"),
            ("", true, "404 Not Found"),
        ] {
            assert_eq!(reply(request.as_bytes(), ready).0, want, "{request}");
        }
    }
}
