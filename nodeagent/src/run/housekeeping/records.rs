//! Removes old records of packages: flags of steps, flags of interrupts, and the history.
//!
//! | records | which stay |
//! |---|---|
//! | flags of a version | those of the versions in the journal, and the newest [`NEWEST`] of the others of a Skyhook |
//! | flags of an interrupt | the same |
//! | history of a package | the newest [`NEWEST`] of a Skyhook |
//! | all of a Skyhook that is not in the journal | those of the newest [`SKYHOOKS`]: the journal may have been lost |
//! | all of a Skyhook that is deleted | none |
//!
//! NVIDIA Skyhook never removes records. A step with `idempotence: false` does not run again while the flag of its
//! version is there, so flags outlive their version, but not without a limit.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::AtFlags;
use skyhook_crds::package::key;
use skyhook_oci::{RemoveError, Root, chain};

use super::Kept;

/// How many records of a kind stay for each Skyhook, besides those of the versions in the journal.
const NEWEST: usize = 200;
/// The records of how many Skyhooks stay that are not in the journal.
const SKYHOOKS: usize = 64;

const FLAGS: &str = "flags";
const INTERRUPT_FLAGS: &str = "interrupts/flags";
const HISTORY: &str = "history";
/// Directories of a Skyhook that have nothing but records.
const OF_RECORDS: [&str; 3] = [FLAGS, "interrupts", HISTORY];

/// Removes the records that are no longer needed. `known` are the Skyhooks in the journal at the time `since`, `kept`
/// are their packages, and `gone` are Skyhooks that are deleted. Records that were written later stay.
pub(super) fn remove_old(
    files: &Root,
    copies: &str,
    known: &BTreeSet<String>,
    kept: &[Kept],
    gone: &BTreeSet<String>,
    since: SystemTime,
) {
    let mut unknown = Vec::new();
    for skyhook in files.list(copies).unwrap_or_default() {
        let Ok(directory) = files.directory(Path::new(copies).join(&skyhook)) else {
            continue;
        };
        let of_skyhook: Vec<&Kept> = kept
            .iter()
            .filter(|kept| skyhook.to_str() == Some(&kept.skyhook))
            .collect();
        let is_in = |names: &BTreeSet<String>| skyhook.to_str().is_some_and(|s| names.contains(s));
        if of_skyhook.is_empty() && is_in(gone) {
            remove_all(files, copies, &skyhook, &directory, since);
        } else if is_in(known) {
            bound(&directory, &of_skyhook, since);
        } else if let Some(written) = newest(&directory) {
            unknown.push((written, skyhook, directory));
        }
    }
    unknown.sort_by(|one, other| (&other.0, &other.1).cmp(&(&one.0, &one.1)));
    for (at, (_, skyhook, directory)) in unknown.into_iter().enumerate() {
        if at < SKYHOOKS {
            bound(&directory, &[], since);
        } else {
            remove_all(files, copies, &skyhook, &directory, since);
        }
    }
}

/// Removes all records of a Skyhook, and its directory if nothing else is in there.
fn remove_all(files: &Root, copies: &str, skyhook: &OsStr, directory: &Root, since: SystemTime) {
    if newest(directory).is_some_and(|written| written >= since) {
        return;
    }
    for name in OF_RECORDS {
        report(directory.remove_tree(name));
    }
    if let Ok(entry) = files.entry_itself(Path::new(copies).join(skyhook)) {
        // It is no error that a directory with other files stays.
        let _removed = rustix::fs::unlinkat(entry.dir(), entry.name(), AtFlags::REMOVEDIR);
    }
}

/// Removes the oldest records of a Skyhook.
fn bound(directory: &Root, kept: &[&Kept], since: SystemTime) {
    let in_use = |name: &OsStr, is_of: &dyn Fn(&str, &Kept) -> bool| {
        name.to_str()
            .is_some_and(|name| kept.iter().any(|kept| is_of(name, kept)))
    };
    // The name of a package in its `config.json` may differ from that in the Skyhook: compare versions only.
    let is_version = |version: &str, kept: &Kept| kept.key == key(&kept.name, version);
    let mut flags = Vec::new();
    for package in directory.list(FLAGS).unwrap_or_default() {
        let package = Path::new(FLAGS).join(package);
        for version in directory.list(&package).unwrap_or_default() {
            if !in_use(&version, &is_version) {
                flags.push(package.join(version));
            }
        }
    }
    // `<skyhook>-<UID>-<generation>_<package>_<version>`
    let is_interrupt = |id: &str, kept: &Kept| {
        let version = id.rsplit_once(&format!("_{}_", kept.name));
        version.is_some_and(|(_, version)| is_version(version, kept))
    };
    let in_directory =
        |parent: &str| -> Vec<OsString> { directory.list(parent).unwrap_or_default() };
    let interrupts = in_directory(INTERRUPT_FLAGS)
        .into_iter()
        .filter(|id| !in_use(id, &is_interrupt))
        .map(|id| Path::new(INTERRUPT_FLAGS).join(id))
        .collect();
    let history = in_directory(HISTORY)
        .into_iter()
        .map(|file| Path::new(HISTORY).join(file))
        .collect();
    for records in [flags, interrupts, history] {
        for record in oldest(directory, records, since) {
            report(directory.remove_tree(record));
        }
    }
    // A package without flags needs no directory. `list` fails for the files in `flags`.
    for package in in_directory(FLAGS) {
        let package = Path::new(FLAGS).join(package);
        if directory.list(&package).is_ok_and(|names| names.is_empty()) {
            report(directory.remove_tree(package));
        }
    }
}

/// All records but the newest.
fn oldest(directory: &Root, records: Vec<PathBuf>, since: SystemTime) -> Vec<PathBuf> {
    let mut dated: Vec<(SystemTime, PathBuf)> = records
        .into_iter()
        .filter_map(|record| Some((written(directory, &record)?, record)))
        .collect();
    dated.sort();
    let over = dated.len().saturating_sub(NEWEST);
    let over = dated.into_iter().take(over);
    over.filter(|(written, _)| *written < since)
        .map(|(_, record)| record)
        .collect()
}

/// When a record was last written.
fn written(directory: &Root, record: &Path) -> Option<SystemTime> {
    directory.metadata(record).ok()?.modified().ok()
}

/// When a record of the Skyhook was last written. `None` if it has none.
fn newest(directory: &Root) -> Option<SystemTime> {
    OF_RECORDS
        .iter()
        .flat_map(|parent| {
            let parent = Path::new(parent);
            let names = directory.list(parent).unwrap_or_default();
            let inside = names.into_iter().map(|name| parent.join(name));
            inside.chain([parent.to_path_buf()]).collect::<Vec<_>>()
        })
        .filter_map(|record| written(directory, &record))
        .max()
}

fn report(removed: Result<(), RemoveError>) {
    if let Err(error) = removed {
        tracing::warn!(error = %chain(&error), "an old record of a package cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;
    use std::time::Duration;

    use super::*;

    struct Copies(tempfile::TempDir);

    impl Copies {
        /// Creates an empty file. A higher `age` means an older file.
        fn make(&self, path: &str, age: u64) {
            let path = self.0.path().join(path);
            let parent = path.parent().unwrap();
            fs::create_dir_all(parent).unwrap();
            fs::write(&path, "").unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - age);
            for path in path.ancestors().take(4) {
                fs::File::open(path).unwrap().set_modified(time).unwrap();
            }
        }

        fn names(&self, path: &str) -> Vec<String> {
            let files = Root::open(self.0.path()).unwrap();
            let names = files.list(path).unwrap_or_default();
            names
                .into_iter()
                .map(|n| n.into_string().unwrap())
                .collect()
        }

        fn remove_old(&self, known: &[&str], kept: &[Kept], gone: &[&str]) {
            let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let files = Root::open(self.0.path()).unwrap();
            let since = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000);
            remove_old(&files, "/", &names(known), kept, &names(gone), since);
        }
    }

    fn copies() -> Copies {
        Copies(tempfile::tempdir().unwrap())
    }

    fn kept(skyhook: &str, name: &str, version: &str) -> Kept {
        Kept {
            skyhook: skyhook.into(),
            key: key(name, version),
            name: name.into(),
            copy: None,
        }
    }

    #[test]
    fn of_many_versions_the_newest_and_those_in_the_journal_keep_their_flags() {
        let copies = copies();
        for n in 0..300_u16 {
            let age = u64::from(300 - n);
            copies.make(&format!("s/flags/aa/1.0.{n}/step_x"), age);
            copies.make(
                &format!("s/interrupts/flags/s-uid-{n}_aa_1.0.{n}/node_restart_0.complete"),
                age,
            );
        }
        copies.make("s/flags/bb/1.0.7/step_x", 500);
        copies.make("s/flags/START", 1);
        copies.make("s/history/aa.json", 1);
        let kept = [kept("s", "aa", "1.0.7")];
        copies.remove_old(&["s"], &kept, &[]);
        let flags = copies.names("s/flags/aa");
        assert_eq!(flags.len(), NEWEST + 1);
        let interrupts = copies.names("s/interrupts/flags");
        assert_eq!(interrupts.len(), NEWEST + 1);
        for (n, want) in [(7, true), (99, false), (100, true), (299, true)] {
            let name = format!("1.0.{n}");
            assert_eq!(flags.contains(&name), want, "{n}");
            let name = format!("s-uid-{n}_aa_1.0.{n}");
            assert_eq!(interrupts.contains(&name), want, "{n}");
        }
        assert_eq!(copies.names("s/flags"), ["START", "aa", "bb"]);
        assert_eq!(copies.names("s/history"), ["aa.json"]);
    }

    #[test]
    fn a_deleted_skyhook_without_packages_keeps_no_record() {
        let copies = copies();
        for skyhook in ["gone", "installed", "there", "of-a-package"] {
            copies.make(&format!("{skyhook}/flags/aa/1.0.0/step_x"), 10);
            copies.make(&format!("{skyhook}/history/aa.json"), 10);
            copies.make(&format!("{skyhook}/interrupts/flags/id/no_op.complete"), 10);
        }
        copies.make("of-a-package/data", 10);
        let kept = [kept("installed", "aa", "1.0.0")];
        let known = ["gone", "installed", "there", "of-a-package"];
        fs::create_dir_all(copies.0.path().join("empty")).unwrap();
        copies.remove_old(
            &known,
            &kept,
            &["gone", "installed", "of-a-package", "empty"],
        );
        assert_eq!(copies.names(""), ["installed", "of-a-package", "there"]);
        assert_eq!(copies.names("of-a-package"), ["data"]);
        for stays in ["installed", "there"] {
            assert_eq!(copies.names(&format!("{stays}/flags/aa")), ["1.0.0"]);
            assert_eq!(copies.names(stays).len(), 3);
        }
    }

    #[test]
    fn of_many_skyhooks_that_are_not_in_the_journal_the_newest_keep_their_records() {
        let copies = copies();
        for n in 0..100_u64 {
            copies.make(&format!("s{n:02}/flags/aa/1.0.0/step_x"), 100 - n);
        }
        copies.make("other/data", 1_000);
        copies.remove_old(&["s07"], &[], &[]);
        let names = copies.names("");
        assert_eq!(names.len(), SKYHOOKS + 2);
        for (name, want) in [
            ("s07", true),
            ("s35", false),
            ("s36", true),
            ("other", true),
        ] {
            assert_eq!(names.contains(&name.to_owned()), want, "{name}");
        }
    }

    /// The next lease may have started already.
    #[test]
    fn what_was_written_meanwhile_stays() {
        let copies = copies();
        copies.make("gone/flags/aa/1.0.0/step_x", 10);
        fs::write(copies.0.path().join("gone/flags/START"), "").unwrap();
        copies.remove_old(&["gone"], &[], &["gone"]);
        assert_eq!(copies.names("gone/flags"), ["START", "aa"]);
    }
}
