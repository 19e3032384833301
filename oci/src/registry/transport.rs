//! HTTP clients: TLS roots, client certificates, proxies, timeouts. The clients do not follow redirects: the caller
//! decides which credentials the next request has.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Proxy};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DistinguishedName, SignatureScheme};
use webpki::EndEntityCert;

use super::trust::{self, Trusted};
use super::verify::{AnyServer, TrustedServer};
use super::{Net, RegistryError};
use crate::hosts::{Endpoint, HostSettings, HostsError};
use crate::root::Root;

/// How much a server may send before the client has taken it, of one blob and of all blobs together.
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;
const HTTP2_FRAME: u32 = 256 << 10;

/// A client for one endpoint, and whether the server has asked for a client certificate that the client does not have.
/// The paths of its certificates are paths in `files`.
pub(super) fn client(
    endpoint: &Endpoint,
    net: &Net<'_>,
) -> Result<(Client, Arc<AtomicBool>), RegistryError> {
    let uses_tls = endpoint.base.scheme() == "https";
    let lacking = Arc::default();
    let tls = tls(&endpoint.settings, net, uses_tls, &lacking)?;
    let proxies = net.proxies.clone();
    let client = Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("skyhook/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(net.timeouts.connect)
        .read_timeout(net.timeouts.read)
        .pool_max_idle_per_host(8)
        // A window of 64 KiB, which is usual in HTTP/2, would slow distant registries down.
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_max_frame_size(HTTP2_FRAME)
        .proxy(Proxy::custom(move |url| proxies.for_url(url)))
        .build()
        .map_err(RegistryError::Client)?;
    Ok((client, lacking))
}

pub(super) fn headers(settings: &HostSettings) -> Result<HeaderMap, HostsError> {
    let mut map = HeaderMap::new();
    for (name, values) in &settings.header {
        let wrong = || HostsError::Header { name: name.clone() };
        for value in values {
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            value.set_sensitive(true);
            map.append(header, value);
        }
    }
    Ok(map)
}

/// The settings of TLS. The server chooses HTTP/2 if it speaks it.
fn tls(
    settings: &HostSettings,
    net: &Net<'_>,
    used: bool,
    lacking: &Arc<AtomicBool>,
) -> Result<ClientConfig, RegistryError> {
    let mut config = authenticated_tls(settings, net, used, lacking)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn authenticated_tls(
    settings: &HostSettings,
    net: &Net<'_>,
    used: bool,
    lacking: &Arc<AtomicBool>,
) -> Result<ClientConfig, RegistryError> {
    let files = net.files;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let builder = builder.dangerous();
    let builder = if settings.skip_verify {
        builder.with_custom_certificate_verifier(Arc::new(AnyServer(Arc::clone(&provider))))
    } else {
        let server = TrustedServer {
            trusted: trusted(settings, net, used)?,
            provider: Arc::clone(&provider),
        };
        builder.with_custom_certificate_verifier(Arc::new(server))
    };
    let pairs = settings
        .client
        .iter()
        .map(|(certificate, key)| {
            let key_path = key.as_ref().unwrap_or(certificate);
            let chain = certificates(files, certificate)?;
            let key = PrivateKeyDer::from_pem_slice(&read(files, key_path)?)
                .map_err(|error| unusable(key_path, &error))?;
            let pair = CertifiedKey::from_der(chain, key, &provider)
                .map_err(|error| unusable(certificate, &error))?;
            Ok(Arc::new(pair))
        })
        .collect::<Result<_, RegistryError>>()?;
    let lacking = Arc::clone(lacking);
    Ok(builder.with_client_cert_resolver(Arc::new(Clients { pairs, lacking })))
}

/// The client certificates of a registry. The server says which issuers it accepts.
#[derive(Debug)]
struct Clients {
    pairs: Vec<Arc<CertifiedKey>>,
    /// Becomes true when the server asks and there is none for it.
    lacking: Arc<AtomicBool>,
}

impl ResolvesClientCert for Clients {
    /// The first certificate with an issuer that the server accepts. If there is none, the first one that the server
    /// can check: an intermediate authority may connect it with an accepted one.
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self
            .pairs
            .iter()
            .filter(|it| it.key.choose_scheme(schemes).is_some());
        let chosen = usable
            .clone()
            .find(|it| it.cert.iter().any(|one| is_issued_by(one, issuers)))
            .or_else(|| usable.next());
        if chosen.is_none() {
            self.lacking.store(true, Ordering::Relaxed);
        }
        chosen.cloned()
    }

    fn has_certs(&self) -> bool {
        !self.pairs.is_empty()
    }
}

fn is_issued_by(certificate: &CertificateDer<'_>, issuers: &[&[u8]]) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
        let issuer = DistinguishedName::in_sequence(certificate.issuer());
        issuers.contains(&issuer.as_ref())
    })
}

/// The trusted authorities: those of the host and those of the settings. Plain HTTP needs none.
fn trusted(settings: &HostSettings, net: &Net<'_>, used: bool) -> Result<Trusted, RegistryError> {
    if !used {
        return Ok(Trusted::none());
    }
    let mut trusted = net.trust.current(net.files);
    for path in &settings.ca {
        // As in Go, a file is usable if one of its certificates is.
        if trusted.add(certificates(net.files, path)?, trust::now()) == 0 {
            return Err(unusable(path, &"none of its certificates can be used"));
        }
    }
    Ok(trusted)
}

fn certificates(files: &Root, path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let found = trust::certificates(&read(files, path)?);
    if found.is_empty() {
        return Err(unusable(path, &"there is no PEM certificate in it"));
    }
    Ok(found)
}

fn read(files: &Root, path: &Path) -> Result<Vec<u8>, HostsError> {
    files.read(path).map_err(|source| HostsError::Read {
        path: path.to_path_buf(),
        source,
    })
}

fn unusable(path: &Path, reason: &dyn std::fmt::Display) -> RegistryError {
    RegistryError::Certificate {
        path: path.to_path_buf(),
        reason: reason.to_string(),
    }
}
