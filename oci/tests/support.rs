//! A real registry and real images for tests: docker-registry, umoci and skopeo as processes.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Whether these programs are installed. If one is missing, the test is skipped with a message, and fails in CI.
pub(crate) fn tools(names: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let missing: Vec<_> = names
        .iter()
        .filter(|name| {
            !path
                .split(':')
                .any(|dir| Path::new(dir).join(name).exists())
        })
        .collect();
    if missing.is_empty() {
        return true;
    }
    let why = format!("{missing:?} not found (apt-get install docker-registry skopeo umoci)");
    let thread = std::thread::current();
    skyhook_testkit::cannot_run(thread.name().unwrap_or("a test"), &why);
    false
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("the program starts");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A certificate authority. It writes its own certificate, and those that it issues, to a directory.
struct Authority<'a> {
    dir: &'a Path,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path) -> Self {
        Self::named("tests", dir)
    }

    fn named(name: &str, dir: &'a Path) -> Self {
        let mut params = rcgen::CertificateParams::default();
        let common_name = rcgen::DnType::CommonName;
        params.distinguished_name.push(common_name, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        file(dir, "ca.crt", &certificate.pem(), 0o644);
        let issuer = rcgen::Issuer::new(params, key);
        Self { dir, issuer }
    }

    /// Issues a certificate for `name`, and writes the files `NAME.pem` and `NAME.key`.
    fn issue(&self, name: &str) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        file(self.dir, &format!("{name}.pem"), &certificate.pem(), 0o644);
        file(
            self.dir,
            &format!("{name}.key"),
            &key.serialize_pem(),
            0o600,
        );
    }
}

/// Issues a certificate of another authority: `stranger.pem` and `stranger.key`.
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the benchmark borrows this file")
)]
pub(crate) fn issue_strangers_certificate(dir: &Path) {
    Authority::named("strangers", dir).issue("stranger");
}

/// The section `tls` in the registry's configuration, with the certificate that [`Authority`] issued.
fn tls(certificates: &Path) -> String {
    let dir = certificates.display();
    format!("  tls:\n    certificate: {dir}/127.0.0.1.pem\n    key: {dir}/127.0.0.1.key\n")
}

/// A docker-registry process on a free port of the loopback address. It is killed when this value is dropped.
pub(crate) struct Registry {
    child: Child,
    pub(crate) port: u16,
    dir: TempDir,
}

impl Registry {
    /// `http` is YAML for the section `http:` (tls). `beside` is YAML that follows this section (auth).
    pub(crate) fn start(http: &str, beside: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let root = dir.path().join("data");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\n\
             storage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n{http}{beside}",
            root.display()
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("config");
        let child = Command::new("docker-registry")
            .args(["serve", path.to_str().expect("utf-8")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts");
        let registry = Self { child, port, dir };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub(crate) fn plain() -> Self {
        Self::start("", "")
    }

    /// A registry with TLS and its own certificate authority. The user is `user` and the password is `hunter2`. The
    /// certificate of the authority is `ca.crt` in `certificates`.
    pub(crate) fn secured(certificates: &Path) -> Self {
        Authority::new(certificates).issue("127.0.0.1");
        let users = "user:$2y$05$abcdefghijklmnopqrstuuoXuKqgZXLiJqzfmMXDDhSFPIvxV7t8.\n";
        let users = file(certificates, "htpasswd", users, 0o644);
        Self::start(
            &tls(certificates),
            &format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                users.display()
            ),
        )
    }

    /// A registry with TLS that wants a client certificate of the same authority: `client.pem` and `client.key`.
    pub(crate) fn mutual(certificates: &Path) -> Self {
        let authority = Authority::new(certificates);
        authority.issue("127.0.0.1");
        authority.issue("client");
        let clients = format!(
            "    clientcas:\n      - {}/ca.crt\n",
            certificates.display()
        );
        Self::start(&(tls(certificates) + &clients), "")
    }

    /// The directory of the registry's storage, for the benchmark.
    #[cfg_attr(test, expect(dead_code, reason = "the benchmark borrows this file"))]
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Requests that skopeo has no command for, written as plain HTTP.
impl Registry {
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let accept = "application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.v2+json";
        let request = format!(
            "GET /v2/{repository}/manifests/{tag} HTTP/1.0\r\nHost: {}\r\nAccept: {accept}\r\n\r\n",
            self.host()
        );
        let answer = self.exchange(request.as_bytes());
        let end = answer
            .windows(4)
            .position(|it| it == b"\r\n\r\n")
            .expect("a head")
            + 4;
        assert!(
            answer.starts_with(b"HTTP/1.0 200"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
        answer[end..].to_vec()
    }

    /// Uploads an index of these images. Its first entry is an attestation, as buildkit makes one.
    pub(crate) fn put_index(&self, repository: &str, tag: &str, images: &[(&str, Vec<u8>)]) {
        let entry = |bytes: &[u8], os: &str, architecture: &str| {
            let document: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
            let oci = "application/vnd.oci.image.manifest.v1+json";
            serde_json::json!({"mediaType": document["mediaType"].as_str().unwrap_or(oci),
                "digest": skyhook_oci::Digest::of(bytes), "size": bytes.len(),
                "platform": {"os": os, "architecture": architecture}})
        };
        let mut entries = vec![entry(&images[0].1, "unknown", "unknown")];
        entries.extend(
            images
                .iter()
                .map(|(arch, bytes)| entry(bytes, "linux", arch)),
        );
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": media_type,
            "manifests": entries})
        .to_string();
        let request = format!(
            "PUT /v2/{repository}/manifests/{tag} HTTP/1.0\r\nHost: {}\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\n\r\n{index}",
            self.host(),
            index.len()
        );
        let answer = self.exchange(request.as_bytes());
        assert!(
            answer.starts_with(b"HTTP/1.0 201"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }

    fn exchange(&self, request: &[u8]) -> Vec<u8> {
        let mut stream =
            std::net::TcpStream::connect(("127.0.0.1", self.port)).expect("a registry");
        stream.write_all(request).expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        answer
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            self.child.wait().expect("a killed child ends");
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// An OCI layout in which umoci builds images, layer by layer.
pub(crate) struct Layout {
    dir: TempDir,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Self { dir };
        run("umoci", &["init", "--layout", &layout.path()]);
        layout
    }

    pub(crate) fn path(&self) -> String {
        self.dir
            .path()
            .join("oci")
            .to_str()
            .expect("utf-8")
            .to_owned()
    }

    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.path())
    }

    pub(crate) fn new_image(&self, tag: &str, architecture: &str) {
        let image = self.image(tag);
        run("umoci", &["new", "--image", &image]);
        run(
            "umoci",
            &[
                "config",
                "--image",
                &image,
                "--os",
                "linux",
                "--architecture",
                architecture,
            ],
        );
    }

    /// Unpacks the image, lets `change` edit the root file system, and packs the difference as a new layer.
    pub(crate) fn layer(&self, tag: &str, change: impl FnOnce(&Path)) {
        let bundle = tempfile::tempdir().expect("a directory");
        let bundle = bundle.path().join("b");
        let (image, text) = (self.image(tag), bundle.to_str().expect("utf-8").to_owned());
        let rootless: &[&str] = if rustix::process::geteuid().is_root() {
            &[]
        } else {
            &["--rootless"]
        };
        run(
            "umoci",
            &[&["unpack"], rootless, &["--image", &image, &text]].concat(),
        );
        change(&bundle.join("rootfs"));
        run("umoci", &["repack", "--image", &image, &text]);
    }

    /// Pushes an image through a directory without compression, so that skopeo compresses it as `extra` says.
    pub(crate) fn push_decompressed(&self, tag: &str, to: &str, extra: &[&str]) {
        let plain = tempfile::tempdir().expect("a directory");
        let dir = format!("dir:{}", plain.path().display());
        run(
            "skopeo",
            &[
                "copy",
                "-q",
                "--dest-decompress",
                &format!("oci:{}", self.image(tag)),
                &dir,
            ],
        );
        let to = format!("docker://{to}");
        run(
            "skopeo",
            &[
                &["copy", "-q", "--dest-tls-verify=false"],
                extra,
                &[&dir, &to],
            ]
            .concat(),
        );
    }

    pub(crate) fn push(&self, tag: &str, to: &str, extra: &[&str]) {
        let (from, to) = (format!("oci:{}", self.image(tag)), format!("docker://{to}"));
        run(
            "skopeo",
            &[
                &["copy", "-q", "--dest-tls-verify=false"],
                extra,
                &[&from, &to],
            ]
            .concat(),
        );
    }
}

pub(crate) fn file(root: &Path, path: &str, content: &str, mode: u32) -> PathBuf {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("a parent")).expect("parents");
    fs::write(&path, content).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
    path
}

/// Every path below `dir` with its mode and content, or with the target of the symlink. The result is sorted, so that
/// whole directories can be compared.
pub(crate) fn listing(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, below: &str, lines: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir)
            .expect("a directory")
            .map(Result::unwrap)
            .collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
            let mode = entry.metadata().expect("metadata").permissions().mode() & 0o7777;
            if kind.is_symlink() {
                lines.push(format!(
                    "{name} -> {}",
                    fs::read_link(path).expect("a target").display()
                ));
            } else if kind.is_dir() {
                lines.push(format!("{name}/ {mode:o}"));
                walk(&path, &format!("{name}/"), lines);
            } else {
                let text = fs::read(&path).expect("content");
                let text = String::from_utf8_lossy(text.get(..40).unwrap_or(&text)).into_owned();
                lines.push(format!("{name} {mode:o} {text}"));
            }
        }
    }
    let mut lines = Vec::new();
    walk(dir, "", &mut lines);
    lines
}
