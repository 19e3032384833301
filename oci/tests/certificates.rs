//! Which servers are trusted: by the authorities of the host, wherever its distribution has them, and with certificates
//! as people make them.

use std::path::Path;

use rcgen::{Issuer, KeyPair};
use skyhook_oci::{Credentials, Limits, NodeConfig, PullerConfig, Reference, Root, chain};

use crate::host::{Host, hasty};
use crate::image::Image;
use crate::liar::Liar;
use crate::support::file;
use crate::tls::{Certificate, authority, for_this_machine, serve, serve_versions};

const BUNDLE: &str = "etc/ssl/certs/ca-certificates.crt";

/// A host whose files are in a directory. Its registry is said to speak TLS.
struct Node {
    files: tempfile::TempDir,
    host: Host,
    registry: String,
}

impl Node {
    fn new(liar: &Liar, chain: &str, key: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let registry = format!("127.0.0.1:{}", serve(liar, chain, key));
        let hosts = format!("etc/containerd/certs.d/{registry}/hosts.toml");
        let toml = format!("server = \"https://{registry}\"\n");
        file(files.path(), &hosts, &toml, 0o644);
        let config = PullerConfig {
            files: Some(Root::open_host(files.path()).unwrap()),
            node: Some(NodeConfig {
                prefix: Vec::new(),
                timeout: std::time::Duration::from_secs(10),
            }),
            ..hasty()
        };
        let host = Host::with(config, Limits::default());
        Self {
            files,
            host,
            registry,
        }
    }

    fn write(&self, path: &str, text: &str) {
        file(self.files.path(), path, text, 0o644);
    }

    async fn pull(&self) -> Result<(), String> {
        let reference: Reference = format!("{}/team/p:1", self.registry).parse().unwrap();
        let nobody = Credentials::anonymous();
        let pulled = self.host.puller.pull(&reference, &nobody);
        pulled.await.map(drop).map_err(|error| chain(&error))
    }
}

fn liar() -> Liar {
    let image = Image::sized(10);
    Liar::start(move |request| image.answer(request))
}

#[tokio::test]
async fn the_authorities_of_the_host_are_trusted_wherever_they_are_and_as_they_change() {
    let (liar, (ca, issuer)) = (liar(), Certificate::own(authority("company")));
    let (leaf, _) = Certificate::issued(for_this_machine(), &issuer);
    for path in [
        BUNDLE,
        "etc/pki/tls/certs/ca-bundle.crt",
        "etc/ssl/ca-bundle.pem",
        "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "etc/ssl/cert.pem",
        // Directories with a certificate in each file.
        "etc/ssl/certs/company.pem",
        "etc/ssl/certs/0a1b2c3d.0",
        "etc/pki/tls/certs/company.crt",
    ] {
        let node = Node::new(&liar, &leaf.pem, &leaf.key);
        let error = node.pull().await.unwrap_err();
        // A message in a status is short, so the advice must not come late.
        let want = format!(
            "image {}/team/p:1: manifest 1 from 127.0.0.1: the certificate of 127.0.0.1 is signed by an authority that \
             this host does not trust: add the authority's certificate to the host's trusted certificates, or name it as \
             ca in the hosts.toml of the registry",
            node.registry
        );
        assert_eq!(error, want);
        node.write(path, &ca.pem);
        assert_eq!(node.pull().await, Ok(()), "{path}");
    }
    // It is taken away again.
    let node = Node::new(&liar, &leaf.pem, &leaf.key);
    node.write(BUNDLE, &ca.pem);
    assert_eq!(node.pull().await, Ok(()));
    node.write(BUNDLE, &Certificate::own(authority("other")).0.pem);
    node.pull().await.unwrap_err();
}

/// What is in the host's bundle, and what the server sends.
struct Case {
    name: &'static str,
    trusted: String,
    chain: String,
    key: String,
    /// A part of the error, or nothing if the pull succeeds.
    want: &'static str,
}

#[tokio::test]
async fn certificates_are_taken_as_people_make_them_as_far_as_it_is_safe() {
    let liar = liar();
    let (root, root_issuer) = Certificate::own(authority("root"));
    let (middle, middle_issuer) = Certificate::issued(authority("middle"), &root_issuer);
    let (leaf, _) = Certificate::issued(for_this_machine(), &middle_issuer);
    let (direct, _) = Certificate::issued(for_this_machine(), &root_issuer);
    let other = Certificate::own(authority("other")).0.pem;
    let case = |name, trusted: &str, chain: &[&str], key: &str, want| Case {
        name,
        trusted: trusted.to_owned(),
        chain: chain.concat(),
        key: key.to_owned(),
        want,
    };
    let mut cases = vec![
        case(
            "an intermediate",
            &root.pem,
            &[&leaf.pem, &middle.pem],
            &leaf.key,
            "",
        ),
        case(
            "a chain in odd order, with the root and a stranger in it",
            &root.pem,
            &[&leaf.pem, &root.pem, &other, &middle.pem],
            &leaf.key,
            "",
        ),
        case(
            "a chain without its intermediate",
            &root.pem,
            &[&leaf.pem],
            &leaf.key,
            "is signed by an authority that this host does not trust",
        ),
        case(
            "the intermediate is trusted itself",
            &middle.pem,
            &[&leaf.pem],
            &leaf.key,
            "",
        ),
    ];
    let broken = "-----BEGIN CERTIFICATE-----\nMIIBaaaa\n-----END CERTIFICATE-----\n";
    for (name, bundle) in [
        (
            "text before it",
            format!("# Company\nsubject=CN = root\n\n{}", root.pem),
        ),
        ("line ends of Windows", root.pem.replace('\n', "\r\n")),
        ("a byte order mark", format!("\u{feff}{}", root.pem)),
        ("one among others", format!("{other}\n{}", root.pem)),
        ("a broken one before it", format!("{broken}{}", root.pem)),
        ("a key before it", format!("{}{}", direct.key, root.pem)),
        ("no line end after it", root.pem.trim_end().to_owned()),
    ] {
        cases.push(case(name, &bundle, &[&direct.pem], &direct.key, ""));
    }

    let mut own = for_this_machine();
    own.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let signs_itself = Certificate::own(own.clone()).0;
    let (pem, key) = (&signs_itself.pem, &signs_itself.key);
    cases.push(case("one that signs itself, trusted", pem, &[pem], key, ""));
    cases.push(case(
        "one that signs itself, not trusted",
        &root.pem,
        &[pem],
        key,
        "is signed by an authority that this host does not trust",
    ));
    let plain = Certificate::own(for_this_machine()).0;
    cases.push(case(
        "one that signs itself and is no authority",
        &plain.pem,
        &[&plain.pem],
        &plain.key,
        "",
    ));
    cases.push(case(
        "a leaf that is trusted itself",
        &direct.pem,
        &[&direct.pem],
        &direct.key,
        "",
    ));
    let mut expired = own.clone();
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let expired = Certificate::own(expired).0;
    cases.push(case(
        "one that signs itself and is too old, trusted",
        &expired.pem,
        &[&expired.pem],
        &expired.key,
        "certificate expired",
    ));
    let mut expired = for_this_machine();
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let expired = Certificate::issued(expired, &root_issuer).0;
    cases.push(case(
        "a leaf that is too old, trusted itself",
        &expired.pem,
        &[&expired.pem],
        &expired.key,
        "certificate expired",
    ));

    let mut authority_too = for_this_machine();
    authority_too.is_ca = own.is_ca;
    let authority_too = Certificate::issued(authority_too, &root_issuer).0;
    cases.push(case(
        "a server with a certificate of an authority",
        &root.pem,
        &[&authority_too.pem],
        &authority_too.key,
        "is one of an authority (CA:TRUE): issue one with CA:FALSE",
    ));
    let mut for_clients = own.clone();
    for_clients.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let for_clients = Certificate::own(for_clients).0;
    cases.push(case(
        "one for clients alone that signs itself, trusted",
        &for_clients.pem,
        &[&for_clients.pem],
        &for_clients.key,
        "invalid peer certificate",
    ));

    let mut nameless = for_this_machine();
    nameless.subject_alt_names.clear();
    let nameless = Certificate::issued(nameless, &root_issuer).0;
    cases.push(case(
        "a common name alone",
        &root.pem,
        &[&nameless.pem],
        &nameless.key,
        "the certificate of 127.0.0.1 has no subjectAltName, and a common name is not enough: issue it with",
    ));
    let mut stranger = own;
    stranger.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
    let stranger = Certificate::own(stranger).0;
    cases.push(case(
        "another name, trusted itself",
        &stranger.pem,
        &[&stranger.pem],
        &stranger.key,
        "for DnsName(\"other.example\"): issue it with subjectAltName 127.0.0.1",
    ));

    cases.extend(no_authorities());

    // An authority with a certificate of version 1, as openssl makes it without extensions.
    let old = Issuer::new(
        authority("version 1"),
        KeyPair::from_pem(&fixture("v1-root.key")).unwrap(),
    );
    let of_old = Certificate::issued(for_this_machine(), &old).0;
    let old = fixture("v1-root.crt");
    cases.push(case(
        "a root of version 1",
        &old,
        &[&of_old.pem],
        &of_old.key,
        "",
    ));

    for case in cases {
        let node = Node::new(&liar, &case.chain, &case.key);
        node.write(BUNDLE, &case.trusted);
        match node.pull().await {
            Ok(()) => assert_eq!(case.want, "", "{}", case.name),
            Err(error) => {
                let is_wanted = !case.want.is_empty() && error.contains(case.want);
                assert!(is_wanted, "{}: {error}", case.name);
            }
        }
    }
}

fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn a_server_with_a_certificate_of_version_1_is_only_taken_without_a_check() {
    let (liar, certificate, key) = (liar(), fixture("v1-root.crt"), fixture("v1-root.key"));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut node = Node::new(&liar, &certificate, &key);
        let port = serve_versions(&liar, &certificate, &key, &[version]);
        node.registry = format!("127.0.0.1:{port}");
        let hosts = format!("etc/containerd/certs.d/{}/hosts.toml", node.registry);
        let server = format!("server = \"https://{}\"\n", node.registry);
        node.write(&hosts, &server);
        let error = node.pull().await.unwrap_err();
        let want = "the certificate of 127.0.0.1 has no subjectAltName";
        assert!(error.contains(want), "{version:?} {error}");
        node.write(&hosts, &format!("{server}skip_verify = true\n"));
        assert_eq!(node.pull().await, Ok(()), "{version:?}");
        // Another key than that of the certificate.
        let other = Certificate::own(for_this_machine()).0.key;
        let port = serve_versions(&liar, &certificate, &other, &[version]);
        let node = Node {
            registry: format!("127.0.0.1:{port}"),
            ..node
        };
        let hosts = format!("etc/containerd/certs.d/{}/hosts.toml", node.registry);
        let server = format!(
            "server = \"https://{}\"\nskip_verify = true\n",
            node.registry
        );
        node.write(&hosts, &server);
        node.pull().await.unwrap_err();
    }
}

/// Trusted certificates that must not make the certificates that they have signed trusted.
fn no_authorities() -> Vec<Case> {
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
    let untrusted = "is signed by an authority that this host does not trust";
    let mut leaf = for_this_machine();
    leaf.distinguished_name
        .push(rcgen::DnType::CommonName, "leaf");
    let mut says_no = leaf.clone();
    says_no.is_ca = IsCa::ExplicitNoCa;
    let mut signs_lists = authority("signs lists");
    signs_lists.key_usages = vec![KeyUsagePurpose::CrlSign];
    let mut for_mail = authority("for mail");
    for_mail.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
    let mut expired = authority("expired");
    expired.not_after = rcgen::date_time_ymd(2001, 1, 1);
    let mut signs = authority("signs");
    signs.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    signs.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    signs.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    [
        ("the certificate of a server", leaf, untrusted),
        ("one that says that it is no authority", says_no, untrusted),
        (
            "an authority for revocation lists alone",
            signs_lists,
            untrusted,
        ),
        ("an authority for mail alone", for_mail, untrusted),
        (
            "an authority that is too old",
            expired,
            "is signed by an authority whose certificate has expired",
        ),
        ("an authority that says all that it is", signs, ""),
    ]
    .map(|(name, params, want)| {
        let (trusted, issuer) = Certificate::own(params);
        let of_it = Certificate::issued(for_this_machine(), &issuer).0;
        Case {
            name,
            trusted: trusted.pem,
            chain: of_it.pem,
            key: of_it.key,
            want,
        }
    })
    .into()
}

/// The file of an authority that `hosts.toml` names, and files in the form of Docker.
#[tokio::test]
async fn a_file_of_authorities_is_usable_if_one_of_them_is() {
    let (liar, (ca, issuer)) = (liar(), Certificate::own(authority("company")));
    let (leaf, _) = Certificate::issued(for_this_machine(), &issuer);
    let broken = "-----BEGIN CERTIFICATE-----\nMIIBaaaa\n-----END CERTIFICATE-----\n";
    let node = Node::new(&liar, &leaf.pem, &leaf.key);
    let dir = format!("etc/containerd/certs.d/{}", node.registry);
    let toml = format!("server = \"https://{}\"\nca = \"own.crt\"\n", node.registry);
    node.write(&format!("{dir}/hosts.toml"), &toml);
    let named = format!("/{dir}/own.crt has no usable certificate or key: ");
    for (text, want) in [
        ("".to_owned(), "there is no PEM certificate in it"),
        (broken.to_owned(), "none of its certificates can be used"),
        (format!("{broken}{}", ca.pem), ""),
    ] {
        node.write(&format!("{dir}/own.crt"), &text);
        match node.pull().await {
            Ok(()) => assert_eq!(want, "", "{text}"),
            Err(error) => {
                let is_wanted = !want.is_empty() && error.ends_with(&format!("{named}{want}"));
                assert!(is_wanted, "{error}");
            }
        }
    }
    // Without hosts.toml, a registry on this machine with a certificate speaks TLS, or else plain HTTP.
    std::fs::remove_file(node.files.path().join(&dir).join("hosts.toml")).unwrap();
    assert_eq!(node.pull().await, Ok(()));
    let node = Node {
        registry: liar.host(),
        ..Node::new(&liar, &leaf.pem, &leaf.key)
    };
    node.write(
        &format!("etc/containerd/certs.d/{}/ca.crt", node.registry),
        &ca.pem,
    );
    assert_eq!(node.pull().await, Ok(()));
}
