//! Errors while a stage is prepared.

use std::io;
use std::path::{Path, PathBuf};

use skyhook_oci::package_config::ConfigError;
use skyhook_oci::{RemoveError, RetryClass, StoreError, chain};

use super::env;

/// Why a stage could not be prepared, or its records could not be written.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    #[error("{path}: {action} failed")]
    Io {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    /// A file could not be put in its place on the host, outside of the package's own directories.
    #[error("{path}: {action} failed")]
    Laying {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },
    #[error("the image cannot be unpacked")]
    Unpack(#[source] Box<StoreError>),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("expected config file {0} is missing: add the key to the package's configMap")]
    ExpectedConfig(String),
    #[error("step {step}: argument env:{name} names a variable that is not set")]
    Argument { step: String, name: String },
    #[error(
        "step {number} of mode {mode} cannot run, because the mode has {steps} steps now: config.json on the host was \
         changed while the package was running"
    )]
    NoStep {
        mode: &'static str,
        number: usize,
        steps: usize,
    },
    #[error(transparent)]
    Env(#[from] env::EnvError),
    #[error("the host has neither the image of the package nor a copy of its files")]
    NothingLeft,
    #[error(transparent)]
    Remove(#[from] RemoveError),
}

impl StageError {
    /// The error with its causes. For a read-only file system, also says what the user can do.
    #[must_use]
    pub fn explained(&self) -> String {
        let text = chain(self);
        let cause = std::iter::successors(Some(self as &dyn std::error::Error), |e| e.source())
            .filter_map(|error| error.downcast_ref::<io::Error>())
            .last();
        match (self, cause.map(io::Error::kind)) {
            (
                Self::Unpack(_) | Self::Io { .. } | Self::Remove(_),
                Some(io::ErrorKind::ReadOnlyFilesystem),
            ) => format!(
                "{text}: have packages copied to a file system that can be written (the chart's value copyDirRoot, or \
                 --copy-dir-root)"
            ),
            (Self::Laying { .. }, Some(io::ErrorKind::ReadOnlyFilesystem)) => format!(
                "{text}: this place is read-only on the host, so the package has to put the file elsewhere"
            ),
            (_, _) => text,
        }
    }

    /// Says whether a retry may succeed (transient), or whether the user must change the image or the settings
    /// (terminal).
    #[must_use]
    pub fn retry_class(&self) -> RetryClass {
        match self {
            Self::Unpack(error) if error.is_transient() => RetryClass::Transient,
            Self::Unpack(_)
            | Self::Config(_)
            | Self::ExpectedConfig(_)
            | Self::Argument { .. }
            | Self::NoStep { .. } => RetryClass::Terminal,
            Self::Io { .. }
            | Self::Laying { .. }
            | Self::Env(_)
            | Self::NothingLeft
            | Self::Remove(_) => RetryClass::Transient,
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

pub(super) fn laying_error(
    path: &Path,
    action: &'static str,
) -> impl FnOnce(io::Error) -> StageError + use<> {
    let path = path.to_owned();
    move |source| StageError::Laying {
        path,
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_be_written_comes_with_the_way_out() {
        let read_only = || io::Error::from_raw_os_error(30);
        let path = PathBuf::from("/usr/lib/x");
        let unpack = StoreError::Unpack(Box::new(skyhook_oci::UnpackError::Io {
            what: "create the parent of",
            path: "/var/lib/skyhook/s/aa".into(),
            source: read_only(),
        }));
        for (error, want) in [
            (
                laying_error(&path, "copying from root_dir")(read_only()),
                "/usr/lib/x: copying from root_dir failed: Read-only file system (os error 30): this place is read-only on the host, so the package has to put the file elsewhere",
            ),
            (
                io_error(Path::new("/var/lib/skyhook/s/aa/configmaps"), "creating")(read_only()),
                "/var/lib/skyhook/s/aa/configmaps: creating failed: Read-only file system (os error 30): have packages copied to a file system that can be written (the chart's value copyDirRoot, or --copy-dir-root)",
            ),
            (
                io_error(Path::new("/var/lib/skyhook/s/flags/START"), "writing")(read_only()),
                "/var/lib/skyhook/s/flags/START: writing failed: Read-only file system (os error 30): have packages copied to a file system that can be written (the chart's value copyDirRoot, or --copy-dir-root)",
            ),
            (
                io_error(&path, "reading")(io::Error::from_raw_os_error(2)),
                "/usr/lib/x: reading failed: No such file or directory (os error 2)",
            ),
            (
                StageError::Unpack(Box::new(unpack)),
                "the image cannot be unpacked: cannot create the parent of /var/lib/skyhook/s/aa: Read-only file system (os error 30): have packages copied to a file system that can be written (the chart's value copyDirRoot, or --copy-dir-root)",
            ),
        ] {
            assert_eq!(error.explained(), want);
        }
    }
}
