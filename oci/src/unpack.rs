//! Unpacks the layers of an image to a directory on disk.
//!
//! 1. Each layer is decompressed, several at a time. The files of the package are written to a scratch directory,
//!    which is hidden and lies beside the target. All other files are skipped. The digest of the blob and the diff ID
//!    of its content are checked.
//! 2. The layers are merged in memory by the rules of the OCI image specification: whiteouts, opaque directories,
//!    hard links. If several entries of a layer have the same path, the last one is used.
//! 3. Only then the target is written. A failure before that leaves the target as it was, and the
//!    scratch directory is removed in any case.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::chain;
use crate::digest::{Digest, HashingReader};
use crate::image::Layer;
use crate::limits::{Budget, Limits};
use crate::remove::{RemoveError, remove_at};
use crate::replace::{self, Lock};
use crate::root::Root;
use crate::space::Room;

mod entry;
mod error;
pub(crate) mod layer;
mod layer_dir;
pub(crate) mod name;
mod place;
mod tar;
mod target;
pub(crate) mod tree;
mod window;

pub use error::{EntryError, LayerError, UnpackError};
pub use tar::TarError;
pub use target::Target;

use error::lossy;
use layer_dir::LayerDir;

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    pub path: PathBuf,
    pub entries: u64,
}

/// One layer with its diff ID and the open file of its blob.
pub(crate) struct Source {
    pub(crate) layer: Layer,
    pub(crate) diff_id: Digest,
    pub(crate) blob: File,
}

/// How to unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackOptions {
    /// Unpack into a directory that exists: the entries of the package replace entries of the same name, and all
    /// other entries stay. Without `overlay` the target must not exist, and it gets its name when it is complete.
    pub overlay: bool,
    /// How many layers are decompressed at the same time.
    pub threads: usize,
}

impl Default for UnpackOptions {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            overlay: false,
            threads: threads(cpus),
        }
    }
}

/// How many layers are decompressed at the same time on a host with so many CPUs. The agent's memory is limited, and
/// each thread has its buffers.
fn threads(cpus: usize) -> usize {
    cpus.min(4)
}

/// Unpacks `sources` into `target`. The first source is the lowest layer. Blocks this thread.
pub(crate) fn unpack(
    sources: Vec<Source>,
    target: &Target,
    options: UnpackOptions,
    limits: &Limits,
    room: Room,
) -> Result<Unpacked, UnpackError> {
    let mut result = unpack_into(sources, target, options, limits, room);
    if let Err(UnpackError::Io { source, .. }) = &mut result
        && let Some(root) = target.root()
    {
        RemoveError::show_io_as(source, |path| root.shown(path));
    }
    result
}

fn unpack_into(
    sources: Vec<Source>,
    target: &Target,
    options: UnpackOptions,
    limits: &Limits,
    room: Room,
) -> Result<Unpacked, UnpackError> {
    let place = target.open()?;
    let io = |what| {
        let path = target.display_path();
        move |errno: Errno| UnpackError::Io {
            what,
            path,
            source: errno.into(),
        }
    };
    let scratch = Scratch::create(&place.parent, &place.name, target)?;
    let layers: Vec<OwnedFd> = (0..sources.len())
        .map(|index| scratch.subdir(&format!("layer{index}")))
        .collect::<Result<_, _>>()
        .map_err(io("create a scratch directory for"))?;
    let budget = Budget::new(limits);
    let root = merge(
        read_all(sources, &layers, options.threads, room, &budget)?,
        &budget,
    )?;
    let root = root.ok_or(UnpackError::NoPackage)?;
    let files = place::Files::new(scratch.fd.as_fd(), &layers, &root);
    let failed = |(name, source): (Vec<u8>, io::Error)| UnpackError::Io {
        what: "write",
        path: target.display_path().join(lossy(&name)),
        source,
    };
    if options.overlay {
        let existing = match rustix::fs::mkdirat(&place.parent, &*place.name, Mode::RWXU) {
            Ok(()) => false,
            Err(Errno::EXIST) => true,
            Err(errno) => return Err(io("create")(errno)),
        };
        let at = place::open_dir(&place.parent, &place.name).map_err(io("open"))?;
        place::fill(&files, &at, &root, existing).map_err(failed)?;
    } else {
        let at = scratch
            .subdir("root")
            .map_err(io("create a scratch directory for"))?;
        place::fill(&files, &at, &root, false).map_err(failed)?;
        let name = place.name.as_slice();
        match place::rename(&scratch.fd, b"root", &place.parent, name, false) {
            Ok(()) => {}
            Err(Errno::EXIST | Errno::NOTEMPTY) => {
                return Err(UnpackError::TargetExists(target.display_path()));
            }
            Err(errno) => return Err(io("rename")(errno)),
        }
    }
    Ok(Unpacked {
        path: target.display_path(),
        entries: count(&root),
    })
}

fn count(dir: &tree::Dir) -> u64 {
    let below = |node: &tree::Node| match node {
        tree::Node::Dir(dir) => count(dir),
        tree::Node::File(_) | tree::Node::Symlink { .. } => 1,
    };
    1 + dir.children.values().map(below).sum::<u64>()
}

type ReadLayer = (Digest, Vec<entry::LayerEntry>);

/// Reads all layers, `threads` at a time. When several fail, the error of the lowest layer is returned.
fn read_all(
    sources: Vec<Source>,
    layers: &[OwnedFd],
    threads: usize,
    room: Room,
    budget: &Budget<'_>,
) -> Result<Vec<ReadLayer>, UnpackError> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<ReadLayer, UnpackError>>>> =
        sources.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(source) = sources.get(index) else {
                return;
            };
            let result = read_one(index, source, LayerDir::new(&layers[index], room), budget);
            if result.is_err() {
                next.store(sources.len(), Ordering::Relaxed);
            }
            *results[index]
                .lock()
                .unwrap_or_else(|poison| poison.into_inner()) = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, sources.len().max(1)) {
            scope.spawn(work);
        }
        work();
    });
    let results: Vec<_> = results
        .into_iter()
        .map(|slot| {
            slot.into_inner()
                .unwrap_or_else(|poison| poison.into_inner())
        })
        .collect();
    let count = results.len();
    let read: Vec<ReadLayer> = results.into_iter().flatten().collect::<Result<_, _>>()?;
    debug_assert_eq!(
        read.len(),
        count,
        "a layer is only left out after a failure"
    );
    Ok(read)
}

fn read_one(
    index: usize,
    source: &Source,
    scratch: LayerDir<'_>,
    budget: &Budget<'_>,
) -> Result<ReadLayer, UnpackError> {
    let Source {
        layer,
        diff_id,
        blob,
    } = source;
    let position = u32::try_from(index).unwrap_or(u32::MAX);
    let reader = blob.try_clone().map_err(|source| UnpackError::Io {
        what: "read the blob",
        path: layer.digest.hex().into(),
        source,
    })?;
    let digest = layer.digest;
    match layer::read(position, layer, *diff_id, reader, &scratch, budget) {
        Ok(entries) => Ok((digest, entries)),
        Err(LayerError::Damaged) => Err(UnpackError::Damaged(digest)),
        // A damaged blob can cause any error: report the damage, and not the error.
        Err(error) if error.is_transient() || is_intact(blob, layer) => Err(UnpackError::Layer {
            layer: digest,
            source: Box::new(error),
        }),
        Err(_) => Err(UnpackError::Damaged(digest)),
    }
}

/// Whether the blob still has its digest.
fn is_intact(mut blob: &File, layer: &Layer) -> bool {
    let mut reader = HashingReader::new(blob, layer.digest.algorithm());
    let read = blob
        .rewind()
        .and_then(|()| io::copy(&mut reader, &mut io::sink()));
    read.is_ok() && reader.finish() == layer.digest
}

/// Merges the layers into one directory tree.
fn merge(layers: Vec<ReadLayer>, budget: &Budget<'_>) -> Result<Option<tree::Dir>, UnpackError> {
    let failed = |layer, source: LayerError| UnpackError::Layer {
        layer,
        source: Box::new(source),
    };
    let mut tree = tree::Tree::new(budget);
    let last = layers.last().map(|(layer, _)| *layer);
    for (layer, entries) in layers {
        tree.apply(entries)
            .map_err(|(path, error)| failed(layer, error.at(&path)))?;
    }
    match (tree.into_root(), last) {
        (Ok(root), _) => Ok(root),
        (Err(error), Some(layer)) => Err(failed(layer, error.at(b""))),
        (Err(_), None) => Ok(None),
    }
}

/// The suffix of the names of scratch directories.
const UNPACKING: &[u8] = b".unpacking";

/// The scratch directory: a hidden directory beside the target. It is removed when this value is dropped.
struct Scratch<'a> {
    parent: &'a OwnedFd,
    name: Vec<u8>,
    fd: OwnedFd,
}

impl<'a> Scratch<'a> {
    /// Makes and locks the scratch directory: only one unpack per target may run at a time. Files that an earlier
    /// unpack has left are removed.
    fn create(parent: &'a OwnedFd, name: &[u8], target: &Target) -> Result<Self, UnpackError> {
        let io = |what| {
            let path = target.display_path();
            move |errno: Errno| UnpackError::Io {
                what,
                path,
                source: errno.into(),
            }
        };
        let name = [b".", name, UNPACKING].concat();
        let fd = loop {
            match rustix::fs::mkdirat(parent, &*name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(io("create a scratch directory beside")(errno)),
            }
            let fd = match place::open_dir(parent, &name) {
                Ok(fd) => fd,
                // Another process has removed it as left over.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(io("open the scratch directory beside")(errno)),
            };
            match replace::lock(&fd, parent, &name) {
                Ok(Lock::Held) => break fd,
                Ok(Lock::Gone) => {}
                Ok(Lock::Busy) => return Err(UnpackError::TargetBusy(target.display_path())),
                Err(errno) => return Err(io("lock the scratch directory beside")(errno)),
            }
        };
        let scratch = Self { parent, name, fd };
        scratch.clear().map_err(|source| UnpackError::Io {
            what: "clear the scratch directory beside",
            path: target.display_path(),
            source,
        })?;
        Ok(scratch)
    }

    fn subdir(&self, name: &str) -> rustix::io::Result<OwnedFd> {
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)?;
        place::open_dir(&self.fd, name.as_bytes())
    }

    fn clear(&self) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            match entry.file_name().to_bytes() {
                b"." | b".." => {}
                name => remove_at(&self.fd, name).map_err(RemoveError::into_io)?,
            }
        }
        Ok(())
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let Err(error) = remove_at(self.parent, &self.name) {
            tracing::warn!(error = %chain(&error), "a scratch directory cannot be removed; the next unpack removes it");
        }
    }
}

/// Removes scratch directories in `parent` that were left by killed unpacks. The directory of a running unpack stays.
pub fn remove_left_over_unpacks(parent: &Root) -> Result<(), RemoveError> {
    let failed = |source| RemoveError::Io {
        path: parent.shown(parent.path()),
        source,
    };
    for name in parent.list("").map_err(failed)? {
        let name = name.as_bytes();
        if !(name.starts_with(b".") && name.ends_with(UNPACKING)) {
            continue;
        }
        let Ok(scratch) = place::open_dir(parent, name) else {
            continue;
        };
        // An unpack may have replaced the directory since it was opened. The new one is its own.
        if replace::lock(&scratch, parent, name) == Ok(Lock::Held) {
            remove_at(parent, name).map_err(|error| error.shown_as(|path| parent.shown(path)))?;
        }
    }
    Ok(())
}

/// The parts of unpacking that have no I/O, for fuzzing: an archive becomes entries, and entries become a tree.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use std::io::Read;

    use super::entry::LayerEntry;
    use super::layer::filter as filter_window;
    use super::window::Window;
    use super::{LayerError, tree};
    use crate::digest::Algorithm;
    use crate::limits::Budget;

    pub(crate) fn filter(
        bytes: impl Read,
        budget: &Budget<'_>,
    ) -> Result<Vec<LayerEntry>, LayerError> {
        let mut window = Window::new(bytes, 1 << 20, Algorithm::Sha256, budget);
        filter_window(0, &mut window, None, budget)
    }

    pub(crate) fn merge(
        layers: [Vec<LayerEntry>; 2],
        budget: &Budget<'_>,
    ) -> Result<Option<tree::Dir>, super::EntryError> {
        let mut tree = tree::Tree::new(budget);
        for entries in layers {
            tree.apply(entries).map_err(|(_, error)| error)?;
        }
        tree.into_root()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "tests make files")]

    use std::fs;
    use std::sync::atomic::AtomicBool;

    use rustix::fs::OFlags;

    use super::*;

    #[test]
    fn a_host_with_many_cpus_needs_no_more_memory() {
        assert_eq!([1, 2, 64].map(threads), [1, 2, 4]);
    }

    /// One thread removes what killed unpacks have left, while another one begins unpacks.
    #[test]
    fn a_scratch_directory_is_not_removed_between_its_opening_and_its_lock() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(directory.path()).unwrap();
        let parent = rustix::fs::openat(&root, ".", OFlags::PATH, Mode::empty()).unwrap();
        let target = Target::in_root(&root, "/package");
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    remove_left_over_unpacks(&root).unwrap();
                }
            });
            let mut begun = 0;
            while begun < 500 {
                match Scratch::create(&parent, b"package", &target) {
                    Ok(scratch) => {
                        let made = scratch.subdir("layer0");
                        let is_there = directory.path().join(".package.unpacking").exists();
                        if made.is_err() || !is_there {
                            is_done.store(true, Ordering::Relaxed);
                        }
                        assert!(
                            made.is_ok() && is_there,
                            "{begun}: it was removed: {made:?}"
                        );
                        begun += 1;
                    }
                    // The other thread has the lock for a moment.
                    Err(UnpackError::TargetBusy(_)) => {}
                    Err(error) => {
                        is_done.store(true, Ordering::Relaxed);
                        panic!("{begun}: {}", chain(&error));
                    }
                }
            }
            is_done.store(true, Ordering::Relaxed);
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
