//! How to pull, and when to try again.

use std::path::PathBuf;
use std::time::Duration;

use crate::auth::PluginConfig;
use crate::image::Platform;
use crate::root::Root;

/// How to pull. Proxies are those of the environment variables `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`,
/// in upper or lower case. The authorities that are trusted are those of this process and those of the host in `files`.
#[derive(Debug, Clone)]
pub struct PullerConfig {
    pub platform: Platform,
    /// How many blobs are downloaded at the same time.
    pub parallel_layers: usize,
    /// The directory that is `/` for `hosts_dir`, for the paths in its files, and for the configuration of `plugins`, such
    /// as the root of the host. If it is `None`, this is the root of this process.
    pub files: Option<Root>,
    /// containerd's directory with a `<registry>/hosts.toml` per registry, or several, separated by colons. They are read
    /// for each pull, and may be missing. If it is `None`, `node` says which files are read.
    pub hosts_dir: Option<PathBuf>,
    /// Registries (`host` or `host:port`) that are accessed over plain HTTP. A registry on a loopback address always
    /// is.
    pub insecure: Vec<String>,
    /// The kubelet's credential provider plugins.
    pub plugins: Option<PluginConfig>,
    pub timeouts: Timeouts,
    /// How to use what the host in `files` is configured with.
    pub node: Option<NodeConfig>,
}

/// For an agent on a node: whatever the kubelet and the container runtime of the host can pull, it can pull. Their
/// credentials, credential provider plugins, mirrors and certificates are used. Their proxy is used if the environment of
/// this process names none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The command that runs a program of the host, such as `chroot /host`. If it is empty, programs are run directly.
    pub prefix: Vec<String>,
    /// How long a credential provider plugin may take.
    pub timeout: Duration,
}

impl Default for PullerConfig {
    fn default() -> Self {
        Self {
            platform: Platform::host(),
            parallel_layers: 3,
            files: None,
            hosts_dir: None,
            insecure: Vec::new(),
            plugins: None,
            timeouts: Timeouts::default(),
            node: None,
        }
    }
}

/// How long to wait for a registry. A pull as a whole may take any time, as long as it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    pub connect: Duration,
    /// The longest time in which a server may send no byte at all.
    pub read: Duration,
    /// The longest time of a request whose answer is small, such as a manifest, with its tokens and redirects.
    pub answer: Duration,
    /// A server must send `slow_bytes` of a blob in every `slow_window`. Else the download has stalled, and is continued
    /// with a new connection.
    pub slow_window: Duration,
    pub slow_bytes: u64,
    /// The longest `Retry-After` that a pull itself waits for. With a longer one it fails, and the caller waits.
    pub max_wait: Duration,
    /// The pause before the second try. Each further pause is twice as long.
    pub backoff: Duration,
    /// The highest number of times that one request is sent.
    pub tries: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(60),
            answer: Duration::from_secs(300),
            slow_window: Duration::from_secs(60),
            slow_bytes: 16 << 10,
            max_wait: Duration::from_secs(30),
            backoff: Duration::from_millis(250),
            tries: 5,
        }
    }
}

/// When to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryClass {
    /// Later, with increasing pauses.
    Transient,
    /// Not before this time has passed, because the registry asks for it.
    After(Duration),
    /// Another try fails too, until somebody has changed something.
    Terminal,
}
