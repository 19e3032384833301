//! Checks the certificate of a server. It accepts what Go accepts where that is safe, and its errors say what to do.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};

use super::trust::Trusted;

/// Checks that the certificate is for the server's name and is signed by a trusted authority, or is trusted itself.
#[derive(Debug)]
pub(super) struct TrustedServer {
    pub(super) trusted: Trusted,
    pub(super) provider: Arc<CryptoProvider>,
}

/// For `skip_verify`: every certificate is accepted. Content is still verified by its digest.
#[derive(Debug)]
pub(super) struct AnyServer(pub(super) Arc<CryptoProvider>);

/// Why a certificate is not accepted, and what to do about it.
#[derive(Debug)]
enum Advice {
    UnknownAuthority { server: String },
    NoSubjectAltName { server: String },
    WrongName { server: String, names: Vec<String> },
    Algorithm,
}

impl std::error::Error for Advice {}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAuthority { server } => write!(
                f,
                "the certificate of {server} is signed by an authority that this host does not trust: add the \
                 authority's certificate to the host's trusted certificates, or name it as ca in the hosts.toml of \
                 the registry"
            ),
            Self::NoSubjectAltName { server } => write!(
                f,
                "the certificate of {server} has no subjectAltName, and a common name is not enough: issue it with \
                 subjectAltName {server}"
            ),
            Self::WrongName { server, names } => write!(
                f,
                "the certificate of {server} is for {}: issue it with subjectAltName {server}",
                names.join(", ")
            ),
            Self::Algorithm => f.write_str(
                "a certificate of the server has a key or a signature that is not supported: use RSA with 2048 bits \
                 or more, ECDSA with P-256 or P-384, or Ed25519, and SHA-256 or better",
            ),
        }
    }
}

impl ServerCertVerifier for TrustedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let server = server_name.to_str().into_owned();
        let advised = |error| advised(error, &server);
        let certificate = ParsedCertificate::try_from(end_entity).map_err(advised)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.trusted.roots,
            intermediates,
            now,
            algorithms,
        );
        match signed {
            Ok(()) => {}
            // People make registries with one certificate that signs itself. Go accepts it if it is trusted itself.
            Err(error) if is_about_issuer(&error) && self.trusted.has(end_entity) => {}
            Err(error) => return Err(advised(error)),
        }
        verify_server_name(&certificate, server_name).map_err(advised)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Whether only the issuer of the certificate is in doubt: it is unknown, or the certificate is one of an authority. The
/// period of validity is checked before both.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the TLS library has many more errors, and more may come"
)]
fn is_about_issuer(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => matches!(
            other.downcast_ref::<webpki::Error>(),
            Some(webpki::Error::CaUsedAsEndEntity)
        ),
        _ => false,
    }
}

/// The error with advice, if there is any.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum of the TLS library has many more errors, and more may come"
)]
fn advised(error: Error, server: &str) -> Error {
    let server = server.to_owned();
    let Error::InvalidCertificate(reason) = &error else {
        return error;
    };
    let advice = match reason {
        _ if is_about_issuer(&error) => Advice::UnknownAuthority { server },
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            Advice::NoSubjectAltName { server }
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names = presented.clone();
            Advice::WrongName { server, names }
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            Advice::Algorithm
        }
        _ => return error,
    };
    Error::Other(OtherError(Arc::new(advice)))
}

/// The advice in an error of a request, if there is any. Errors of I/O do not tell their inner error as their source.
pub(super) fn advice(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if let Some(Error::Other(OtherError(other))) = error.downcast_ref() {
        return other.downcast_ref::<Advice>().map(ToString::to_string);
    }
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => advice(error.get_ref()?),
        None => advice(error.source()?),
    }
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
