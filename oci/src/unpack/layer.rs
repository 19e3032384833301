//! Reads one layer: parses its archive, writes the files of the package to the scratch directory, and compares the
//! digest of the blob and the diff ID.

use std::fs::File;
use std::io::Read;

use rustix::fs::Mode;

use super::entry::{Kind, LayerEntry, Meta};
use super::layer_dir::LayerDir;
use super::name::{self, Meaning};
use super::tar::{self, Member, MemberKind, Region};
use super::window::{Decoder, Window};
use super::{EntryError, LayerError};
use crate::digest::{Digest, Mismatch};
use crate::image::Layer;
use crate::limits::{Budget, Limit};

/// Reads one layer, and writes the package's files to `scratch`, an empty directory of the layer's own.
///
/// If this returns entries, the blob has its digest and its content has its diff ID.
pub(super) fn read(
    position: u32,
    layer: &Layer,
    diff_id: Digest,
    blob: File,
    scratch: &LayerDir<'_>,
    budget: &Budget<'_>,
) -> Result<Vec<LayerEntry>, LayerError> {
    let decoder = Decoder::new(blob, layer.digest.algorithm()).map_err(LayerError::Decompress)?;
    let mut window = Window::new(decoder, layer.size, diff_id.algorithm(), budget);
    let entries = filter(position, &mut window, Some(scratch), budget)?;
    let (blob_digest, got) = window.finish()?;
    if blob_digest != layer.digest {
        return Err(LayerError::Damaged);
    }
    if got != diff_id {
        let digests = Mismatch { want: diff_id, got };
        return Err(LayerError::DiffId(Box::new(digests)));
    }
    Ok(entries)
}

/// Reads an archive to its end. Without a scratch directory, contents are skipped.
pub(super) fn filter(
    position: u32,
    window: &mut Window<'_, impl Read>,
    scratch: Option<&LayerDir<'_>>,
    budget: &Budget<'_>,
) -> Result<Vec<LayerEntry>, LayerError> {
    let mut entries = Vec::new();
    let mut files = 0;
    while let Some(member) = tar::next(window)? {
        let mut entry = entry(&member, budget)?;
        match &mut entry {
            Some(LayerEntry {
                kind: Kind::File(id),
                path,
                meta,
            }) => {
                budget.take_package_bytes(member.size)?;
                match scratch {
                    Some(scratch) => write_file(scratch, files, *meta, &member, window)
                        .map_err(|error| error.at(path))?,
                    None => window.pass(member.stored, |_| Ok(()))?,
                }
                *id = (position, files);
                files += 1;
            }
            Some(_) | None => window.pass(member.stored, |_| Ok(()))?,
        }
        // Some programs do not write the padding of the last file: the archive ends here.
        window.skip_padding(member.padding)?;
        entries.extend(entry);
    }
    Ok(entries)
}

/// What an entry of the archive means for the package. `None` if it does not belong to the package.
fn entry(member: &Member, budget: &Budget<'_>) -> Result<Option<LayerEntry>, LayerError> {
    budget.take_scanned_entry()?;
    let place = name::place(&member.name).map_err(|error| error.at(&member.name))?;
    let (path, kind) = match place {
        Meaning::Outside => return Ok(None),
        Meaning::Whiteout(path) => (path, Kind::Whiteout),
        Meaning::Opaque(path) => (path, Kind::Opaque),
        Meaning::Inside(path) => {
            let kind = kind(member).map_err(|error| error.at(&member.name))?;
            let Some(kind) = kind else {
                budget.warn(
                    &member.name,
                    "left out a hard link to a file outside of /skyhook-package",
                );
                return Ok(None);
            };
            (path, kind)
        }
    };
    budget.take_package_entry()?;
    let target = match &kind {
        Kind::Symlink(target) | Kind::Hardlink(target) => target.len(),
        Kind::Dir | Kind::File(_) | Kind::Whiteout | Kind::Opaque => 0,
    };
    for length in [path.len(), target] {
        budget.limits.check(Limit::PathBytes, length as u64)?;
        budget.take_names_bytes(length)?;
    }
    let mut mode = member.mode;
    if matches!(kind, Kind::File(_)) && mode & SET_ID != 0 {
        budget.warn(&member.name, "dropped the setuid and setgid bits of a file");
        mode &= !SET_ID;
    }
    let mtime = member.mtime;
    Ok(Some(LayerEntry {
        path,
        kind,
        meta: Meta { mode, mtime },
    }))
}

/// The bits with which a program runs as another user or group.
const SET_ID: u32 = 0o6000;

/// The longest target of a symlink on Linux.
const LONGEST_TARGET: usize = 4095;

/// What an entry of the package is. `None` for a hard link to a file of the image that is not in the package.
fn kind(member: &Member) -> Result<Option<Kind>, EntryError> {
    match member.kind {
        MemberKind::Dir => Ok(Some(Kind::Dir)),
        MemberKind::File => Ok(Some(Kind::File((0, 0)))),
        MemberKind::Symlink => match member.link.as_slice() {
            b"" => Err(EntryError::EmptyTarget),
            target if target.len() > LONGEST_TARGET => {
                Err(EntryError::TargetTooLong(LONGEST_TARGET))
            }
            target if target.contains(&0) => Err(EntryError::Nul),
            target => Ok(Some(Kind::Symlink(target.to_vec()))),
        },
        MemberKind::Link => Ok(name::link_target(&member.link)?.map(Kind::Hardlink)),
        MemberKind::CharDevice => Err(EntryError::Special("a character device")),
        MemberKind::BlockDevice => Err(EntryError::Special("a block device")),
        MemberKind::Fifo => Err(EntryError::Special("a named pipe")),
        MemberKind::Other(flag) => Err(EntryError::UnknownType(flag)),
    }
}

fn write_file(
    scratch: &LayerDir<'_>,
    name: u32,
    meta: Meta,
    member: &Member,
    window: &mut Window<'_, impl Read>,
) -> Result<(), LayerError> {
    let file = scratch.create(name, member.stored)?;
    match &member.sparse {
        None => {
            let mut offset = 0;
            window.pass(member.stored, |piece| {
                scratch.write(&file, piece, offset, member.stored - offset)?;
                offset += piece.len() as u64;
                Ok(())
            })?;
        }
        Some(map) => write_sparse(scratch, &file, map, member, window)?,
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(meta.mode))
        .and_then(|()| rustix::fs::futimens(&file, &meta.timestamps()))
        .map_err(|error| LayerError::Write(error.into()))
}

/// Writes the regions of a sparse file; its holes stay holes.
fn write_sparse(
    scratch: &LayerDir<'_>,
    file: &File,
    map: &[Region],
    member: &Member,
    window: &mut Window<'_, impl Read>,
) -> Result<(), LayerError> {
    let mut stored = 0u64;
    let mut end = 0u64;
    for region in map {
        let region_end = region.offset.checked_add(region.length);
        let fits = region_end.is_some_and(|region_end| region_end <= member.size);
        stored = stored.saturating_add(region.length);
        if region.offset < end || !fits || stored > member.stored {
            return Err(LayerError::SparseMap);
        }
        end = region.offset + region.length;
        let region_end = end;
        let mut offset = region.offset;
        window.pass(region.length, |piece| {
            scratch.write(file, piece, offset, region_end - offset)?;
            offset += piece.len() as u64;
            Ok(())
        })?;
    }
    if stored != member.stored {
        return Err(LayerError::SparseMap);
    }
    file.set_len(member.size).map_err(LayerError::Write)
}
