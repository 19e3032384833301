//! The control plane's keys, certificates and static tokens.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// Good only for a server that lives as long as one test, on an address of this machine.
pub(super) const ADMIN_TOKEN: &str = "skyhook-harness-admin";

/// Writes all of it into `dir` and returns the certificate authority.
pub(super) fn write(dir: &Path, address: Ipv4Addr) -> Result<String> {
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
        [Ipv4Addr::LOCALHOST, address].map(|ip| rcgen::SanType::IpAddress(IpAddr::V4(ip)));
    certificate.subject_alt_names.extend(addresses);
    certificate
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    let certificate = certificate.signed_by(&server, &issuer)?.pem();

    let accounts = KeyPair::generate()?;
    let admin = format!("{ADMIN_TOKEN},admin,admin,system:masters\n");
    for (name, content) in [
        ("ca.crt", ca.as_str()),
        ("server.crt", &certificate),
        ("server.key", &server.serialize_pem()),
        ("sa.key", &accounts.serialize_pem()),
        ("sa.pub", &accounts.public_key_pem()),
        ("tokens.csv", &admin),
    ] {
        fs::write(dir.join(name), content)?;
    }
    Ok(ca)
}
