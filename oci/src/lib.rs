//! Pulls package images from an OCI registry into a store on disk, verifies them, and unpacks the files of the
//! package that is in the image. This crate does not use the Kubernetes API.
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
//! - A pull has no deadline. It fails when too few bytes arrive for too long, or when several tries were in vain. What
//!   was received of a layer stays in the store, and the next pull continues it.
//! - All content is hashed: manifests, configs and layers must have their digests, and the decompressed content of a
//!   layer must have its diff ID. A blob in the store gets its name only when it is complete, also if there is a
//!   power cut. A directory that an image is unpacked to without `overlay` gets its name only when it is complete,
//!   also if the process is killed.
//! - No entry of a layer can make an unpack write a file, make a link or change a mode outside the target directory.
//! - A credential is sent only to the registry that it is for, and to the token server that this registry names. No
//!   log line, no error and no `Debug` output contains a credential.
//! - Errors have a `kind()` for queries in logs, and tell whether another try can succeed: [`PullError::retry_class`],
//!   [`StoreError::is_transient`].
//!
//! [`package_config`] reads the `config.json` of a package. [`progress::show`] draws the progress of a pull.
//!
//! # What the user of a store must do
//! - Pin each image that is installed or running ([`Store::pin`]), and remove the pins of images that are not needed
//!   any more ([`Store::unpin_others`]). Call [`Store::collect`] regularly: no other function removes images.
//! - The store is flushed to disk, but unpacked files are not. Either flush their file system after an unpack, or
//!   unpack again (with `overlay`) when the boot ID of the node has changed.
//! - When an unpack fails because a blob is damaged ([`StoreError::kind`] is `blob_damaged`), pull the image again
//!   and then unpack it.
//!
//! # How it compares
//! `make bench-oci` measures three images: `gzip` has 200 MB of text files and binaries in 6 gzip layers, `zstd` has
//! the same files in zstd layers, and `small` has 20,000 small files. The registry and all directories are in memory,
//! and each run is a new process. The table has the median seconds of 5 runs on 2 cores (AMD EPYC with SHA
//! extensions):
//!
//! | image | ours | skopeo + umoci | decompress and tar | our peak MiB |
//! |---|---|---|---|---|
//! | gzip | 0.41 | 1.82 | 1.08 | 27 |
//! | zstd | 0.44 | 1.95 | 0.59 | 27 |
//! | small | 0.31 | 2.09 | 0.21 | 27 |
//!
//! At the end it kills a pull of 200 MB after 90 % and starts it again: `resume_saved_percent` is the part of the
//! received bytes that are not downloaded again.
//!
//! `speedup_gzip` 4.4, `speedup_zstd` 4.5, `speedup_small_files` 6.8, `floor_ratio_gzip` 0.76 (our time, divided by
//! the time that `gzip -dc | tar x` would take if it used all cores), `peak_mib` 27.
//!
//! Libraries that were compared on that machine, in MB/s of decompressed or hashed bytes. Streaming gzip: zlib-ng
//! 581, **zlib-rs 509**, miniz_oxide 377. libdeflate has 565, but needs the whole layer in memory. SHA-256: **ring
//! 1941**, sha2 1944. zlib-rs is used and not zlib-ng, because its input is not trusted and zlib-rs is memory-safe,
//! and because zlib-rs needs no cmake. ring is used because the TLS library needs it anyway, and because it is also
//! fast on CPUs without SHA extensions.

mod access;
pub mod auth;
mod beneath;
mod chain;
pub mod config;
pub mod digest;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod hosts;
pub mod image;
pub mod limits;
mod no_values;
mod node;
pub mod package_config;
pub mod progress;
mod proxy;
pub mod pull;
pub mod reference;
pub mod registry;
mod remove;
mod replace;
mod root;
mod space;
pub mod store;
pub mod unpack;

pub use auth::{AuthError, Credentials, PluginConfig};
pub use chain::chain;
pub use config::{NodeConfig, PullerConfig, RetryClass, Timeouts};
pub use digest::{Digest, DigestError, Mismatch};
pub use hosts::HostsError;
pub use image::{ImageError, Platform};
pub use limits::Limits;
pub use progress::{PullEvent, PullProgress};
pub use pull::{PullError, Pulled, Puller};
pub use reference::{Reference, ReferenceError};
pub use registry::RegistryError;
pub use remove::{RemoveError, mounts_below, remove_tree};
pub use replace::{Disk, Durability, NewFile, replace_file, replace_on};
pub use root::{Entry, Root, kind_of_file, names};
pub use space::Room;
pub use store::{Collected, Contents, ImageContents, Store, StoreConfig, StoreError, StoredImage};
pub use unpack::{Target, UnpackError, UnpackOptions, Unpacked, remove_left_over_unpacks};
