//! Files of a stage: `configmaps/`, `node-metadata/` and `root_dir/`.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's file handling"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};

use skyhook_oci::remove_tree;

use super::{StageError, io_error};
use crate::host::Host;

/// `configmaps/`, one file per key with exactly the value's bytes. There is none without a configMap.
pub(super) fn write_config(
    copy_dir: &Path,
    config: &BTreeMap<String, String>,
) -> Result<(), StageError> {
    if config.is_empty() {
        return Ok(());
    }
    write_all(&copy_dir.join("configmaps"), config)
}

/// Writes every file, replacing what is there; what else is there stays.
pub(super) fn write_all(
    directory: &Path,
    files: &BTreeMap<String, String>,
) -> Result<(), StageError> {
    fs::create_dir_all(directory).map_err(io_error(directory, "creating"))?;
    for (name, content) in files {
        let path = directory.join(name);
        // A step may have put a symlink or a directory in its place.
        match fs::symlink_metadata(&path) {
            Ok(m) if m.is_dir() => remove_tree(&path)?,
            Ok(m) if m.is_symlink() => {
                fs::remove_file(&path).map_err(io_error(&path, "replacing"))?;
            }
            Ok(_) | Err(_) => {}
        }
        fs::write(&path, content).map_err(io_error(&path, "writing"))?;
    }
    Ok(())
}

/// Copies a folder over another, with modes and symlinks; what else is there stays.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
            continue;
        }
        if fs::symlink_metadata(&target).is_ok() {
            fs::remove_file(&target)?;
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Lays `root_dir/` over the host's `/`: mode and time are kept, the host's symlinks are followed inside its root.
pub(super) fn copy_root_dir(root_dir: &Path, host: &Host) -> Result<(), StageError> {
    if !root_dir.is_dir() {
        return Ok(());
    }
    let mut left: Vec<PathBuf> = vec![PathBuf::new()];
    while let Some(relative) = left.pop() {
        let source = root_dir.join(&relative);
        for entry in fs::read_dir(&source).map_err(io_error(&source, "reading"))? {
            let entry = entry.map_err(io_error(&source, "reading"))?;
            let inside = relative.join(entry.file_name());
            let from = root_dir.join(&inside);
            let metadata = fs::metadata(&from).map_err(io_error(&from, "reading"))?;
            if metadata.is_dir() {
                left.push(inside);
            } else {
                copy_file(&from, &metadata, host, &inside)?;
            }
        }
    }
    Ok(())
}

fn copy_file(
    from: &Path,
    metadata: &fs::Metadata,
    host: &Host,
    inside: &Path,
) -> Result<(), StageError> {
    let wanted = Path::new("/").join(inside);
    let to = host
        .resolve(&wanted)
        .map_err(io_error(&wanted, "finding its place on the host"))?;
    let copy = || -> io::Result<()> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        // Beside it and renamed: a program that runs can be replaced, and nobody sees half a file.
        let mut name = to
            .file_name()
            .ok_or_else(|| io::Error::other("it has no name"))?
            .to_owned();
        name.push(".skyhook-new");
        let temporary = to.with_file_name(name);
        fs::copy(from, &temporary)?;
        fs::set_permissions(&temporary, metadata.permissions())?;
        let times = FileTimes::new().set_modified(metadata.modified()?);
        File::options()
            .write(true)
            .open(&temporary)?
            .set_times(times)?;
        fs::rename(&temporary, &to)
    };
    copy().map_err(io_error(&to, "copying from root_dir"))
}

/// Copies the agent's `/etc/resolv.conf` over the host's, for packages that ask for it.
pub(super) fn copy_resolv(host: &Host) -> Result<(), StageError> {
    let source = Path::new("/etc/resolv.conf");
    let to = host
        .resolve(source)
        .map_err(io_error(source, "finding its place on the host"))?;
    fs::copy(source, &to)
        .map(drop)
        .map_err(io_error(&to, "copying resolv.conf"))
}
