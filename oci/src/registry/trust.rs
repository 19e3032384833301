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
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

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

/// Trusted authorities, and the digests of their certificates.
#[derive(Debug, Clone)]
pub(crate) struct Trusted {
    pub(super) roots: Arc<RootCertStore>,
    known: Arc<BTreeSet<Digest>>,
}

impl Trusted {
    /// No authority.
    pub(super) fn none() -> Self {
        Self {
            roots: Arc::new(RootCertStore::empty()),
            known: Arc::default(),
        }
    }

    /// Adds certificates. Returns how many of them can be used.
    pub(super) fn add(&mut self, certificates: Vec<CertificateDer<'static>>) -> usize {
        let known = Arc::make_mut(&mut self.known);
        let roots = Arc::make_mut(&mut self.roots);
        let mut usable = 0;
        for certificate in certificates {
            let digest = Digest::of(&certificate);
            if known.contains(&digest) {
                usable += 1;
            } else if roots.add(certificate).is_ok() {
                known.insert(digest);
                usable += 1;
            }
        }
        usable
    }

    /// Whether this very certificate is trusted.
    pub(super) fn has(&self, certificate: &CertificateDer<'_>) -> bool {
        self.known.contains(&Digest::of(certificate))
    }
}

/// Reads trusted authorities, and keeps them until a file changes.
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
        {
            return trusted.clone();
        }
        let mut trusted = Trusted::none();
        for stamp in &stamps {
            let bytes = roots[usize::from(stamp.of_host)].map(|root| root.read(&stamp.path));
            if let Some(Ok(bytes)) = bytes {
                trusted.add(certificates(&bytes));
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
    assert!(trusted.add(found.clone()) <= count);
    assert!(trusted.roots.len() <= count);
    let known = found.iter().filter(|it| trusted.has(it)).count();
    assert!(known >= trusted.roots.len());
}
