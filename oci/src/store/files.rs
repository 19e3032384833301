//! Small functions for the files of the store.

#![expect(
    clippy::disallowed_methods,
    reason = "this file is the shell that reads records"
)]

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use crate::replace::{Durability, is_in_the_making, replace_file};

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io {
        what,
        path: path.to_path_buf(),
        source,
    }
}

/// The files in `dir`, without temporary files that are being written.
pub(super) fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|source| failed("list", dir, source))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| failed("list", dir, source))?;
        if !is_in_the_making(&entry.file_name()) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

pub(super) fn read_record<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

pub(super) fn write_record(path: &Path, record: &impl Serialize) -> Result<(), StoreError> {
    let text =
        serde_json::to_vec(record).map_err(|source| failed("encode", path, source.into()))?;
    replace_file(path, &text, Durability::PowerCut).map_err(|source| failed("write", path, source))
}

pub(super) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove", path, source))
        }
        _ => Ok(()),
    }
}

pub(super) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(path);
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| failed("flush", parent, source))
}
