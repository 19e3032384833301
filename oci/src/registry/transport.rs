//! HTTP clients: TLS roots, client certificates, proxies, timeouts. The clients do not follow redirects: the caller
//! decides which credentials the next request has.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use reqwest::Client;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme,
};
use webpki::EndEntityCert;

use super::RegistryError;
use crate::config::Timeouts;
use crate::hosts::{Endpoint, HostSettings, HostsError};
use crate::root::Root;

/// How much a server may send before the client has taken it, of one blob and of all blobs together.
const HTTP2_STREAM_WINDOW: u32 = 1 << 20;
const HTTP2_CONNECTION_WINDOW: u32 = 4 << 20;
const HTTP2_FRAME: u32 = 256 << 10;

/// A client for one endpoint. The paths of its certificates are paths in `files`. A loopback address is never reached
/// through a proxy from the environment.
pub(super) fn client(
    endpoint: &Endpoint,
    files: &Root,
    timeouts: &Timeouts,
) -> Result<Client, RegistryError> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(tls(
            &endpoint.settings,
            files,
            endpoint.base.scheme() == "https",
        )?)
        .user_agent(concat!("skyhook/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(timeouts.connect)
        .read_timeout(timeouts.read)
        .pool_max_idle_per_host(8)
        // A window of 64 KiB, which is usual in HTTP/2, would slow distant registries down.
        .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .http2_max_frame_size(HTTP2_FRAME);
    if endpoint.is_loopback {
        builder = builder.no_proxy();
    }
    builder.build().map_err(RegistryError::Client)
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
fn tls(settings: &HostSettings, files: &Root, used: bool) -> Result<ClientConfig, RegistryError> {
    let mut config = authenticated_tls(settings, files, used)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn authenticated_tls(
    settings: &HostSettings,
    files: &Root,
    used: bool,
) -> Result<ClientConfig, RegistryError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions");
    let builder = if settings.skip_verify {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(Arc::clone(&provider))))
    } else {
        builder.with_root_certificates(roots(settings, files, used)?)
    };
    if settings.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let clients = settings
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
    Ok(builder.with_client_cert_resolver(Arc::new(Clients(clients))))
}

/// The client certificates of a registry. The server says which issuers it accepts.
#[derive(Debug)]
struct Clients(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Clients {
    /// The first certificate with an issuer that the server accepts. If there is none, the first one that the server
    /// can check: an intermediate authority may connect it with an accepted one.
    fn resolve(&self, issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut usable = self
            .0
            .iter()
            .filter(|it| it.key.choose_scheme(schemes).is_some());
        usable
            .clone()
            .find(|it| it.cert.iter().any(|one| is_issued_by(one, issuers)))
            .or_else(|| usable.next())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

fn is_issued_by(certificate: &CertificateDer<'_>, issuers: &[&[u8]]) -> bool {
    EndEntityCert::try_from(certificate).is_ok_and(|certificate| {
        let issuer = DistinguishedName::in_sequence(certificate.issuer());
        issuers.contains(&issuer.as_ref())
    })
}

/// The trusted authorities: those of the system and those of the settings. Plain HTTP needs none.
fn roots(
    settings: &HostSettings,
    files: &Root,
    used: bool,
) -> Result<RootCertStore, RegistryError> {
    static SYSTEM: OnceLock<RootCertStore> = OnceLock::new();
    if !used {
        return Ok(RootCertStore::empty());
    }
    let mut roots = SYSTEM
        .get_or_init(|| {
            let found = rustls_native_certs::load_native_certs();
            for error in &found.errors {
                tracing::warn!(%error, "some of the system's certificates cannot be read");
            }
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            roots
        })
        .clone();
    for path in &settings.ca {
        for certificate in certificates(files, path)? {
            roots
                .add(certificate)
                .map_err(|error| unusable(path, &error))?;
        }
    }
    Ok(roots)
}

fn certificates(files: &Root, path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(&read(files, path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, &error))?;
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

/// For `skip_verify`: every certificate is accepted. Content is still verified by its digest.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
