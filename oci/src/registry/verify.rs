//! Checks the certificate of a server. It accepts what Go accepts where that is safe, and its errors say what to do.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, SignatureScheme};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

use super::trust::{Trusted, is_for_servers};

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
    UnknownAuthority {
        server: String,
    },
    OutdatedAuthority {
        server: String,
    },
    /// The certificate of the server is one of an authority, and is not trusted itself.
    Authority {
        server: String,
    },
    NoSubjectAltName {
        server: String,
    },
    WrongName {
        server: String,
        names: Vec<String>,
    },
    Algorithm,
}

impl std::error::Error for Advice {}

impl From<Advice> for Error {
    fn from(advice: Advice) -> Self {
        Self::Other(OtherError(Arc::new(advice)))
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownAuthority { server } => write!(
                f,
                "the certificate of {server} is signed by an authority that this host does not trust: add the \
                 authority's certificate to the host's trusted certificates, or name it as ca in the hosts.toml of \
                 the registry"
            ),
            Self::OutdatedAuthority { server } => write!(
                f,
                "the certificate of {server} is signed by an authority whose certificate has expired or is not valid \
                 yet: replace the authority's certificate, or correct the clock of the host"
            ),
            Self::Authority { server } => write!(
                f,
                "the certificate of {server} is one of an authority (CA:TRUE): issue one with CA:FALSE, or add this \
                 very certificate to the host's trusted certificates"
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
        let certificate = ParsedCertificate::try_from(end_entity);
        let certificate = certificate.map_err(|error| match is_old(&error) {
            true => Advice::NoSubjectAltName {
                server: server.clone(),
            }
            .into(),
            false => advised(error),
        })?;
        let parsed = X509Certificate::from_der(end_entity);
        let parsed = parsed.map(|(_, it)| it);
        let parsed = parsed.map_err(|_| Error::from(CertificateError::BadEncoding))?;
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
            Err(error) if is_about_issuer(&error) && self.trusted.has(end_entity) => {
                if !is_for_servers(&parsed) {
                    return Err(CertificateError::InvalidPurpose.into());
                }
            }
            Err(error)
                if is_about_issuer(&error)
                    && self.trusted.is_outdated(parsed.issuer().as_raw()) =>
            {
                return Err(Advice::OutdatedAuthority { server }.into());
            }
            // One that signs itself is not trusted, and can be.
            Err(error) if is_authority(&error) && parsed.issuer() != parsed.subject() => {
                return Err(Advice::Authority { server }.into());
            }
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
fn is_about_issuer(error: &Error) -> bool {
    let unknown = CertificateError::UnknownIssuer;
    matches!(error, Error::InvalidCertificate(reason) if *reason == unknown) || is_authority(error)
}

/// Whether the certificate of the server is one of an authority.
fn is_authority(error: &Error) -> bool {
    matches!(inner(error), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Whether the certificate has version 1. It has no extensions, and so no subjectAltName.
fn is_old(error: &Error) -> bool {
    matches!(inner(error), Some(webpki::Error::UnsupportedCertVersion))
}

/// The error of the library that reads certificates, if the TLS library has no name for it.
fn inner(error: &Error) -> Option<&webpki::Error> {
    let Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error else {
        return None;
    };
    other.downcast_ref()
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
    advice.into()
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
        match verify_tls12_signature(message, certificate, signed, algorithms) {
            Err(error) if is_old(&error) => {
                verify_with_key(message, &key_of(certificate)?, signed, algorithms)
            }
            result => result,
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        match verify_tls13_signature(message, certificate, signed, algorithms) {
            Err(error) if is_old(&error) => {
                let key = key_of(certificate)?;
                verify_tls13_signature_with_raw_key(message, &key, signed, algorithms)
            }
            result => result,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The key of a certificate, also of one that the TLS library does not read.
fn key_of(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) = parsed.map_err(|_| Error::from(CertificateError::BadEncoding))?;
    Ok(parsed.public_key().raw.to_vec().into())
}

/// Checks a signature of TLS 1.2 by the key alone.
fn verify_with_key(
    message: &[u8],
    key: &SubjectPublicKeyInfoDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let key = webpki::RawPublicKeyEntity::try_from(key);
    let key = key.map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let known = algorithms.mapping.iter();
    let mut known = known.filter(|(scheme, _)| *scheme == signed.scheme);
    let signature = signed.signature();
    let is_right = known.any(|(_, algorithms)| {
        let mut algorithms = algorithms.iter();
        algorithms.any(|it| key.verify_signature(*it, message, signature).is_ok())
    });
    match is_right {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}
