//! A server that speaks TLS and passes what it hears on to a [`Liar`], and certificates as people make them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::liar::Liar;

/// A certificate and its key.
pub(crate) struct Certificate {
    pub(crate) pem: String,
    pub(crate) key: String,
}

/// The parameters of a certificate for 127.0.0.1.
pub(crate) fn for_this_machine() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, "registry");
    params
}

/// The parameters of a certificate of an authority.
pub(crate) fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
}

impl Certificate {
    /// A certificate that signs itself.
    pub(crate) fn own(params: CertificateParams) -> (Self, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let (pem, text) = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
        (Self { pem, key: text }, Issuer::new(params, key))
    }

    pub(crate) fn issued(
        params: CertificateParams,
        issuer: &Issuer<'_, KeyPair>,
    ) -> (Self, Issuer<'static, KeyPair>) {
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, issuer).unwrap().pem();
        let text = key.serialize_pem();
        (Self { pem, key: text }, Issuer::new(params, key))
    }
}

/// Starts a server in front of `liar`. The first certificate of the chain is the one of the key. Returns the port.
pub(crate) fn serve(liar: &Liar, chain: &str, key: &str) -> u16 {
    serve_versions(liar, chain, key, rustls::DEFAULT_VERSIONS)
}

/// The same with these versions of TLS.
pub(crate) fn serve_versions(
    liar: &Liar,
    chain: &str,
    key: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> u16 {
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // This takes also certificates that the TLS library does not read.
    let key = provider.key_provider.load_private_key(key).unwrap();
    let certified = SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(certified));
    let (config, behind) = (Arc::new(config), liar.host());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, behind) = (Arc::clone(&config), behind.clone());
            // A client that does not trust the server ends the handshake.
            std::thread::spawn(move || pass_on(stream, config, &behind).ok());
        }
    });
    port
}

/// Passes one request without a body on, and its answer back.
fn pass_on(stream: TcpStream, config: Arc<ServerConfig>, behind: &str) -> std::io::Result<()> {
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut client = StreamOwned::new(connection, stream);
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        request.extend_from_slice(&byte);
    }
    let mut server = TcpStream::connect(behind)?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    client.write_all(&answer)?;
    client.conn.send_close_notify();
    client.flush()
}
