//! The control plane's keys, certificates and static tokens.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SigningKey,
};
use serde_json::{Value, json};

/// Good only for a server that lives as long as one test, on an address of this machine.
pub(super) const ADMIN_TOKEN: &str = "skyhook-harness-admin";

/// The first address for Services, which is that of the Service `kubernetes`.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// What the kubelet of a node logs in with.
pub(super) fn kubelet_token(node: &str) -> String {
    format!("skyhook-harness-kubelet-{node}")
}

/// Writes all of it into `dir` and returns the certificate authority.
pub(super) fn write(dir: &Path, address: Ipv4Addr, kubelets: &[String]) -> Result<String> {
    fs::create_dir_all(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    authority
        .distinguished_name
        .push(DnType::CommonName, "skyhook-harness");
    let key = KeyPair::generate()?;
    let ca = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);

    let server = KeyPair::generate()?;
    let names = ["localhost", "kubernetes", "kubernetes.default.svc"].map(str::to_owned);
    let mut certificate = CertificateParams::new(names)?;
    let addresses =
        [Ipv4Addr::LOCALHOST, address, SERVICE].map(|ip| rcgen::SanType::IpAddress(IpAddr::V4(ip)));
    certificate.subject_alt_names.extend(addresses);
    certificate
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    let certificate = certificate.signed_by(&server, &issuer)?.pem();

    let accounts = KeyPair::generate()?;
    let mut tokens = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
    for node in kubelets {
        let token = kubelet_token(node);
        tokens += &format!("{token},system:node:{node},{node},system:nodes\n");
    }
    for (name, content) in [
        ("ca.crt", ca.as_str()),
        ("server.crt", &certificate),
        ("server.key", &server.serialize_pem()),
        ("sa.key", &accounts.serialize_pem()),
        ("sa.pub", &accounts.public_key_pem()),
        ("tokens.csv", &tokens),
    ] {
        fs::write(dir.join(name), content)?;
    }
    Ok(ca)
}

/// A token (JWT, ES256) with these claims, signed by the key for service accounts.
pub(super) fn sign_token(dir: &Path, claims: &Value) -> Result<String> {
    let key = KeyPair::from_pem(&fs::read_to_string(dir.join("sa.key"))?)?;
    let header = json!({"alg": "ES256", "typ": "JWT"});
    let signed = format!(
        "{}.{}",
        base64url(header.to_string().as_bytes()),
        base64url(claims.to_string().as_bytes())
    );
    let signature = fixed_signature(&key.sign(signed.as_bytes())?)?;
    Ok(format!("{signed}.{}", base64url(&signature)))
}

/// As a JWT wants a signature: two numbers of 32 bytes, not the ASN.1 that certificates have.
fn fixed_signature(der: &[u8]) -> Result<Vec<u8>> {
    let mut rest = der.get(2..).context("a signature has a header")?;
    let mut fixed = Vec::new();
    for _ in 0..2 {
        let length = usize::from(*rest.get(1).context("a number has a length")?);
        let number = rest.get(2..2 + length).context("a number has its bytes")?;
        let number = &number[number.iter().take_while(|byte| **byte == 0).count()..];
        fixed.resize(fixed.len() + 32 - number.len(), 0);
        fixed.extend(number);
        rest = &rest[2 + length..];
    }
    Ok(fixed)
}

fn base64url(bytes: &[u8]) -> String {
    // ByteString is base64 in JSON.
    json!(ByteString(bytes.to_vec()))
        .as_str()
        .unwrap_or_default()
        .trim_end_matches('=')
        .replace('+', "-")
        .replace('/', "_")
}
