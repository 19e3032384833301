//! The certificates of the authorities that are trusted: those of the host, as its container runtime trusts them, and
//! those of this container. They are read again when a file has changed.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that finds certificates"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::x509::X509Version;

use crate::digest::Digest;
use crate::root::Root;

/// Bundles of certificates. The first one that exists is read, as Go does it.
const BUNDLES: [&str; 6] = [
    // Debian, Ubuntu, Gentoo
    "/etc/ssl/certs/ca-certificates.crt",
    // Fedora, RHEL 6
    "/etc/pki/tls/certs/ca-bundle.crt",
    // openSUSE
    "/etc/ssl/ca-bundle.pem",
    // OpenELEC
    "/etc/pki/tls/cacert.pem",
    // CentOS, RHEL 7
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    // Alpine
    "/etc/ssl/cert.pem",
];
/// Directories with a certificate in each file. They are read besides the bundle.
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];
/// A longer file is no certificate.
const MAX_FILE: u64 = 16 << 20;

/// Trusted authorities, and the digests of all trusted certificates.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    pub(super) roots: Arc<RootCertStore>,
    known: Arc<BTreeSet<Digest>>,
    /// The names of authorities whose certificates are not valid now, as they are encoded.
    outdated: Arc<BTreeSet<Vec<u8>>>,
    /// When a certificate begins or ceases to be valid, in seconds of Unix time.
    until: i64,
    /// When the certificates were read. If this is in the future, the clock was corrected.
    read: i64,
}

impl Trusted {
    /// No authority.
    pub(super) fn none() -> Self {
        Self {
            roots: Arc::new(RootCertStore::empty()),
            known: Arc::default(),
            outdated: Arc::default(),
            until: i64::MAX,
            read: i64::MIN,
        }
    }

    /// Adds certificates, as they are at the time `now`. Returns how many of them are certificates. As in Go, only one
    /// that may sign others becomes an authority. Each other one is trusted only as the certificate of a server.
    pub(super) fn add(&mut self, certificates: Vec<CertificateDer<'static>>, now: i64) -> usize {
        let known = Arc::make_mut(&mut self.known);
        let roots = Arc::make_mut(&mut self.roots);
        let mut usable = 0;
        for certificate in certificates {
            let digest = Digest::of(&certificate);
            if known.contains(&digest) {
                usable += 1;
                continue;
            }
            let Ok((_, parsed)) = X509Certificate::from_der(&certificate) else {
                continue;
            };
            let validity = parsed.validity();
            let begin = validity.not_before.timestamp();
            let end = validity.not_after.timestamp();
            let changes = [begin, end.saturating_add(1)];
            let next = changes.into_iter().filter(|&change| change > now).min();
            self.until = self.until.min(next.unwrap_or(i64::MAX));
            let may_sign = may_sign(&parsed);
            if !(begin..=end).contains(&now) {
                if may_sign {
                    let name = parsed.subject().as_raw().to_vec();
                    Arc::make_mut(&mut self.outdated).insert(name);
                }
                usable += 1;
            } else if !may_sign || roots.add(certificate.clone()).is_ok() {
                known.insert(digest);
                usable += 1;
            }
        }
        usable
    }

    /// Whether an authority with this encoded name would be trusted if its certificate were valid now.
    pub(super) fn is_outdated(&self, name: &[u8]) -> bool {
        self.outdated.contains(name)
    }

    /// Whether this very certificate is trusted.
    pub(super) fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        self.known.contains(&Digest::of(certificate))
    }
}

/// Whether a certificate is one of an authority for servers. Certificates of version 1 cannot say whether they are.
fn may_sign(certificate: &X509Certificate<'_>) -> bool {
    if certificate.version() != X509Version::V3 {
        return true;
    }
    let is_authority = certificate.basic_constraints();
    let is_authority = is_authority.is_ok_and(|it| it.is_some_and(|it| it.value.ca));
    let usage = certificate.key_usage();
    let signs = usage.is_ok_and(|it| it.is_none_or(|it| it.value.key_cert_sign()));
    is_authority && signs && is_for_servers(certificate)
}

/// Whether a certificate may be used for TLS servers.
pub(super) fn is_for_servers(certificate: &X509Certificate<'_>) -> bool {
    let usage = certificate.extended_key_usage();
    usage.is_ok_and(|it| it.is_none_or(|it| it.value.any || it.value.server_auth))
}

/// The time now, in seconds of Unix time.
pub(super) fn now() -> i64 {
    let now = UnixTime::now().as_secs();
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Reads trusted authorities, and keeps them until a file changes, or a certificate begins or ceases to be valid.
#[derive(Debug, Clone, Default)]
pub(crate) struct TrustStore {
    kept: Arc<Mutex<Option<Kept>>>,
}

/// The files, and what was in them.
type Kept = (Vec<Stamp>, Trusted);

/// A file at one time. Another one means that the certificates must be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    of_host: bool,
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl TrustStore {
    /// The authorities that this process and the host with these files trust.
    pub(crate) fn current(&self, files: &Root) -> Trusted {
        self.at(files, now())
    }

    fn at(&self, files: &Root, now: i64) -> Trusted {
        let own = Root::open("/").ok();
        let roots: [Option<&Root>; 2] = match &own {
            Some(own) if files.is_own() => [Some(own), None],
            own => [own.as_ref(), Some(files)],
        };
        let mut stamps = Vec::new();
        for (of_host, root) in [false, true].into_iter().zip(roots) {
            let variable = |name: &str| {
                let value = (!of_host).then(|| std::env::var_os(name));
                value.flatten().map(PathBuf::from)
            };
            if let Some(root) = root {
                let places = (variable("SSL_CERT_FILE"), variable("SSL_CERT_DIR"));
                stamps.extend(find(root, of_host, places));
            }
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, trusted)) = &*kept
            && *known == stamps
            && now < trusted.until
            && trusted.read <= now
        {
            return trusted.clone();
        }
        let mut trusted = Trusted::none();
        trusted.read = now;
        for stamp in &stamps {
            let bytes = roots[usize::from(stamp.of_host)].map(|root| root.read(&stamp.path));
            if let Some(Ok(bytes)) = bytes {
                trusted.add(certificates(&bytes), now);
            }
        }
        tracing::debug!(
            files = stamps.len(),
            authorities = trusted.roots.len(),
            "read the trusted authorities"
        );
        *kept = Some((stamps, trusted.clone()));
        trusted
    }
}

/// The files with certificates. `places` replace the usual file and directory.
fn find(root: &Root, of_host: bool, places: (Option<PathBuf>, Option<PathBuf>)) -> Vec<Stamp> {
    let (bundle, directory) = places;
    let mut found: BTreeMap<(u64, u64), Stamp> = BTreeMap::new();
    let bundles = match bundle {
        Some(file) => vec![file],
        None => BUNDLES.map(PathBuf::from).to_vec(),
    };
    if let Some(stamp) = bundles
        .iter()
        .find_map(|path| stamp(root, path.clone(), of_host))
    {
        found.insert((stamp.device, stamp.inode), stamp);
    }
    let directories = match directory {
        Some(directories) => std::env::split_paths(&directories).collect(),
        None => DIRECTORIES.map(PathBuf::from).to_vec(),
    };
    for directory in &directories {
        for name in root.list(directory).unwrap_or_default() {
            // Many names are links to the same file.
            if let Some(stamp) = stamp(root, directory.join(name), of_host) {
                found.entry((stamp.device, stamp.inode)).or_insert(stamp);
            }
        }
    }
    found.into_values().collect()
}

fn stamp(root: &Root, path: PathBuf, of_host: bool) -> Option<Stamp> {
    let metadata = root.metadata(&path).ok()?;
    let is_usable = metadata.is_file() && metadata.len() <= MAX_FILE;
    is_usable.then(|| Stamp {
        path,
        of_host,
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// The certificates in a PEM file. As in Go, everything else in it is skipped. Editors of Windows write a byte order
/// mark before the first line.
pub(super) fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    let pem = pem.strip_prefix("\u{feff}".as_bytes()).unwrap_or(pem);
    CertificateDer::pem_slice_iter(pem).flatten().collect()
}

/// For fuzzing: reads the bytes as a PEM file, and adds what is in it to a store.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_certificates(bytes: &[u8]) {
    let found = certificates(bytes);
    let mut trusted = Trusted::none();
    let count = found.len();
    assert!(trusted.add(found.clone(), now()) <= count);
    assert!(trusted.roots.len() <= count);
    let known = found.iter().filter(|it| trusted.has(it)).count();
    assert!(known >= trusted.roots.len());
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn authorities_come_and_go_with_their_time_though_no_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2101, 1, 1);
        params.not_after = date_time_ymd(2102, 1, 1);
        let (begin, end) = (
            params.not_before.unix_timestamp(),
            params.not_after.unix_timestamp(),
        );
        let pem = params
            .self_signed(&KeyPair::generate().unwrap())
            .unwrap()
            .pem();
        std::fs::create_dir_all(dir.path().join("etc/ssl")).unwrap();
        std::fs::write(dir.path().join("etc/ssl/cert.pem"), &pem).unwrap();
        let certificate = certificates(pem.as_bytes()).remove(0);
        let (store, files) = (TrustStore::default(), Root::open(dir.path()).unwrap());
        // The clock of a machine may also be set back.
        for (now, want) in [
            (begin - 1, false),
            (begin, true),
            (end, true),
            (end + 1, false),
            (end, true),
            (begin - 1, false),
        ] {
            assert_eq!(store.at(&files, now).has(&certificate), want, "{now}");
        }
    }
}
