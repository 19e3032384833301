//! Removes old copy directories of packages.
//!
//! | copy directories | which stay |
//! |---|---|
//! | of a package in the journal | the one in use, and the newest of the others |
//! | of other packages of a Skyhook in the journal | none: these packages are uninstalled |
//! | of a Skyhook that is not in the journal | those of the last seven days: the journal may have been lost |
//!
//! A directory counts as a copy directory if it contains `config.json` and its name has the form that the agent and
//! NVIDIA Skyhook use.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use skyhook_oci::{Root, chain, remove_left_over_unpacks};

use super::Kept;

/// How long the copy directories of a Skyhook that is not in the journal stay.
const UNKNOWN: Duration = Duration::from_secs(7 * 86_400);

/// Removes temporary directories that killed unpacks have left.
pub(super) fn remove_left_overs(files: &Root, copies: &str) {
    for skyhook in files.list(copies).unwrap_or_default() {
        let removed = files
            .directory(Path::new(copies).join(&skyhook))
            .map(|directory| remove_left_over_unpacks(&directory));
        if let Ok(Err(error)) = removed {
            tracing::warn!(skyhook = %skyhook.display(), error = %chain(&error), "the files of an interrupted unpack cannot be removed");
        }
    }
}

/// Removes the copy directories that are no longer needed. `known` are the Skyhooks in the journal at the time `since`,
/// and `kept` are their packages. Copy directories that were unpacked later stay.
pub(super) fn remove_old(
    files: &Root,
    copies: &str,
    known: &BTreeSet<String>,
    kept: &[Kept],
    since: SystemTime,
) {
    for skyhook in files.list(copies).unwrap_or_default() {
        let Ok(directory) = files.directory(Path::new(copies).join(&skyhook)) else {
            continue;
        };
        let there = copies_in(&directory);
        let of_skyhook: Vec<&Kept> = kept
            .iter()
            .filter(|kept| skyhook.to_str() == Some(&kept.skyhook))
            .collect();
        // A Skyhook in the journal may have no package: all of its packages are uninstalled.
        let is_known = skyhook.to_str().is_some_and(|name| known.contains(name));
        let until = match is_known {
            true => Some(since),
            false => since.checked_sub(UNKNOWN),
        };
        let Some(until) = until else { continue };
        for name in old(there, &of_skyhook, until) {
            match directory.remove_tree(&name) {
                Ok(()) => tracing::info!(copy = %name, "removed an old copy of a package"),
                Err(error) => {
                    tracing::warn!(copy = %name, error = %chain(&error), "an old copy of a package cannot be removed");
                }
            }
        }
    }
}

/// Names of the copy directories of a Skyhook, with the time at which each was unpacked. This is the directory's ctime:
/// its mtime is that of the directory in the image.
fn copies_in(directory: &Root) -> Vec<(SystemTime, String)> {
    let mut there = Vec::new();
    for name in directory.list("").unwrap_or_default() {
        let Some(name) = name.to_str().filter(|name| is_copy(name)) else {
            continue;
        };
        if directory.exists(Path::new(name).join("config.json"))
            && let Ok(metadata) = directory.metadata(name)
        {
            let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
            let nanoseconds = u32::try_from(metadata.ctime_nsec()).unwrap_or(0);
            let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
            there.push((changed, name.to_owned()));
        }
    }
    there
}

/// True for `<package>-<version>-<UID of the Skyhook>-<generation>`.
fn is_copy(name: &str) -> bool {
    const UID: usize = 36;
    let Some((rest, generation)) = name.rsplit_once('-') else {
        return false;
    };
    let uid = rest.len().checked_sub(UID).and_then(|at| rest.get(at..));
    let is_uid = |uid: &str| {
        let parts: Vec<&str> = uid.split('-').collect();
        parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
            && parts.concat().bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    !generation.is_empty()
        && generation.bytes().all(|byte| byte.is_ascii_digit())
        && uid.is_some_and(is_uid)
}

/// The copy directories to remove: those that were unpacked before `until`, are not in use, and are not the newest
/// unused one of a package in the journal.
fn old(mut there: Vec<(SystemTime, String)>, kept: &[&Kept], until: SystemTime) -> Vec<String> {
    there.sort();
    let in_use: BTreeSet<&String> = kept.iter().filter_map(|k| k.copy.as_ref()).collect();
    let package = |copy: &str| {
        kept.iter()
            .map(|k| k.name.as_str())
            .filter(|name| {
                copy.strip_prefix(name)
                    .and_then(|rest| rest.strip_prefix('-'))
                    .is_some_and(|rest| {
                        rest.trim_start_matches('v')
                            .starts_with(|c: char| c.is_ascii_digit())
                    })
            })
            .max_by_key(|name| name.len())
            .map(str::to_owned)
    };
    let mut previous = BTreeSet::new();
    let mut old = Vec::new();
    for (unpacked, copy) in there.into_iter().rev() {
        if in_use.contains(&copy) {
            continue;
        }
        let is_previous = package(&copy).is_some_and(|name| previous.insert(name));
        if !is_previous && unpacked < until {
            old.push(copy);
        }
    }
    old
}

#[cfg(test)]
mod tests;
