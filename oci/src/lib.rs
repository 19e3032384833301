//! Package images: a reference becomes a resolved digest, verified layers, and only the package's
//! files on disk. Knows nothing of Kubernetes.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use skyhook_oci::{Credentials, Puller, PullerConfig, Reference, Root, Store, StoreConfig, Target, UnpackOptions};
//!
//! let store = Store::open("/var/lib/skyhook/images", StoreConfig::default())?;
//! let puller = Puller::new(store.clone(), PullerConfig::default());
//! let reference = Reference::for_package("ghcr.io/nvidia/skyhook-packages/tuning", "1.1.4", None)?;
//! let secret = std::fs::read("/var/run/secrets/pull/.dockerconfigjson")?;
//! let credentials = Credentials::from_docker_config(&secret)?;
//! let pulled = puller.pull(&reference, &credentials).await?;
//! store.pin("tuning|1.1.4", &pulled.manifest_digest)?;
//! let target = Target::in_root(&Root::open("/host")?, "/var/lib/skyhook/s/tuning-1.1.4");
//! store.unpack(&pulled.manifest_digest, &target, UnpackOptions::default()).await?;
//! // Later, without the registry:
//! let digest = store.lookup(&reference);
//! # let _ = digest; Ok(())
//! # }
//! ```
//!
//! # Guarantees
//! - Every byte that is used was hashed: manifest, config and layers by their digests, the
//!   content of layers by their diff IDs. A blob or a target appears under its name complete or
//!   not at all, also across a crash.
//! - No entry of a layer can write, link or chmod outside the target.
//! - A credential is sent to the registry it is for and to the token server that registry names,
//!   and is in no log, error or Debug.
//! - Errors have a `kind()` for metrics and say whether to try again: [`PullError::retry_class`],
//!   [`StoreError::is_transient`].
//!
//! [`package_config`] reads a package's `config.json`; [`progress::show`] draws what a pull tells.
//!
//! # What the owner of a store does
//! - [`Store::pin`] what is installed or running, [`Store::unpin`] it when it is gone, and
//!   [`Store::collect`] now and then: nothing is removed otherwise.
//! - Flush the file system of what was unpacked, or unpack again (`overlay`) when the boot ID has
//!   changed since: the store is flushed to disk, what is unpacked is not.
//! - On a damaged blob ([`StoreError::is_transient`]) pull again, then unpack.
//!
//! # How it compares
//! `make bench-oci`, on images of 200 MB of mixed text and binaries in 6 gzip layers, the same in
//! zstd, and 20,000 small files; registry and directories in memory, median seconds of 5 runs, 2
//! cores (AMD EPYC with SHA extensions), each run a process of its own:
//!
//! | image | ours | skopeo + umoci | decompress and tar | our peak MiB |
//! |---|---|---|---|---|
//! | gzip | 0.41 | 1.82 | 1.08 | 27 |
//! | zstd | 0.44 | 1.95 | 0.59 | 27 |
//! | small | 0.31 | 2.09 | 0.21 | 27 |
//!
//! `speedup_gzip` 4.4, `speedup_zstd` 4.5, `speedup_small_files` 6.8, `floor_ratio_gzip` 0.76 (our
//! time over that of `gzip -dc | tar x`, divided by cores), `peak_mib` 27.
//!
//! Candidates on that machine, MB/s of what comes out. gzip as a stream: zlib-ng 581, **zlib-rs
//! 509**, miniz_oxide 377; libdeflate 565, but only with the whole layer in memory. SHA-256: **ring
//! 1941**, sha2 1944. zlib-rs is taken over zlib-ng because what it reads is hostile and it is
//! memory-safe, and because it needs no cmake; ring because TLS brings it anyway and it is fast also
//! where the CPU has no SHA extensions.

pub mod auth;
mod beneath;
mod chain;
pub mod digest;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hosts;
pub mod image;
pub mod limits;
pub mod package_config;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
mod remove;
mod replace;
mod root;
pub mod store;
pub mod unpack;

pub use auth::{AuthError, Credentials, PluginConfig};
pub use chain::chain;
pub use digest::{Digest, DigestError};
pub use hosts::{HostSettings, HostsError, RegistrySettings};
pub use image::{ImageError, Platform};
pub use limits::Limits;
pub use progress::{Event, Progress};
pub use pull::{PullError, Pulled, Puller, PullerConfig, RetryClass};
pub use reference::{Reference, ReferenceError};
pub use registry::{ProxyConfig, RegistryError, Timeouts};
pub use remove::{RemoveError, mounts_below, remove_tree};
pub use replace::{Disk, Durability, NewFile, replace_file, replace_on};
pub use root::{Entry, Root, names};
pub use store::{Collected, Room, Store, StoreConfig, StoreError, StoredImage};
pub use unpack::{Target, UnpackError, UnpackOptions, Unpacked, remove_left_over_unpacks};
