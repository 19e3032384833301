//! Why a stage cannot begin.

use std::io;
use std::path::{Path, PathBuf};

use skyhook_oci::manifest::ManifestError;
use skyhook_oci::{RemoveError, RetryClass, StoreError, chain};

use super::env;

/// Why a stage cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("{path}: {action} failed: {source}")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    #[error("the image cannot be unpacked: {}", chain(&**.0))]
    Unpack(Box<StoreError>),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("expected config file {0} is missing: add the key to the package's configMap")]
    ExpectedConfig(String),
    #[error("step {step}: argument env:{name} names a variable that is not set")]
    Argument { step: String, name: String },
    #[error("step {step}: {path} does not exist in the package")]
    NoStep { step: String, path: String },
    #[error(transparent)]
    Env(#[from] env::EnvError),
    #[error("neither image nor copy of the package is on the host")]
    NothingLeft,
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

impl StageError {
    /// Whether another try may help, or another image or other settings are needed.
    #[must_use]
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Unpack(error) if error.is_transient() => RetryClass::Transient,
            Self::Unpack(_)
            | Self::Manifest(_)
            | Self::ExpectedConfig(_)
            | Self::Argument { .. }
            | Self::NoStep { .. } => RetryClass::Terminal,
            Self::Io { .. } | Self::Env(_) | Self::NothingLeft | Self::Remove(_) => {
                RetryClass::Transient
            }
        }
    }
}

pub(crate) fn io_error(
    path: &Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> StageError + use<> {
    let path = path.to_owned();
    move |source| StageError::Io {
        path,
        action,
        source,
    }
}
