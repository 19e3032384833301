//! Reads one layer: parses its archive, writes the files of the package to the scratch directory, and compares the
//! digest of the blob and the diff ID.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use tar_core::parse::{ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, PaxExtensions, SparseEntry};

use super::entry::{Kind, LayerEntry, Meta};
use super::name::{self, Meaning};
use super::window::{Decoder, Window};
use super::{EntryError, LayerError};
use crate::digest::Digest;
use crate::image::Layer;
use crate::limits::{Budget, Limit, LimitExceeded};

/// The header of an entry in the archive.
struct Header {
    /// None when the entry does not belong to the package.
    entry: Option<LayerEntry>,
    /// Bytes of the entry's content in the archive.
    stored: u64,
    /// Bytes of the file. A sparse file has more of them than are stored.
    size: u64,
    sparse: Option<Vec<SparseEntry>>,
}

/// Reads one layer, and writes the package's files to `scratch`, an empty directory of the layer's own.
///
/// If this returns entries, the blob has its digest and its content has its diff ID.
pub(super) fn read(
    position: u32,
    layer: &Layer,
    diff_id: Digest,
    blob: File,
    scratch: &OwnedFd,
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
        return Err(LayerError::DiffId { want: diff_id, got });
    }
    Ok(entries)
}

/// Reads an archive to its end. Without a scratch directory, contents are skipped.
pub(super) fn filter(
    position: u32,
    window: &mut Window<'_, impl Read>,
    scratch: Option<&OwnedFd>,
    budget: &Budget<'_>,
) -> Result<Vec<LayerEntry>, LayerError> {
    let limits = budget.limits;
    let mut parser = Parser::new(tar_core::parse::Limits {
        max_metadata_size: u32::try_from(limits.metadata_bytes).unwrap_or(u32::MAX),
        max_path_len: Some(u32::try_from(limits.path_bytes).unwrap_or(u32::MAX)),
        ..tar_core::parse::Limits::default()
    });
    let mut entries = Vec::new();
    let mut files = 0;
    while let Some(header) = next(&mut parser, window, budget)? {
        let padding = header.stored.next_multiple_of(512) - header.stored;
        match &header.entry {
            Some(LayerEntry {
                kind: Kind::File(_),
                path,
                meta,
            }) => {
                budget.take_package_bytes(header.size)?;
                match scratch {
                    Some(scratch) => write_file(scratch, files, *meta, &header, window)
                        .map_err(|error| error.at(path))?,
                    None => window.pass(header.stored, |_| Ok(()))?,
                }
            }
            Some(_) | None => window.pass(header.stored, |_| Ok(()))?,
        }
        // Some programs do not write the padding of the last file: the archive ends here.
        window.skip_padding(padding)?;
        if let Some(mut entry) = header.entry {
            if let Kind::File(id) = &mut entry.kind {
                *id = (position, files);
                files += 1;
            }
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// The next header; None at the end of the archive.
fn next(
    parser: &mut Parser,
    window: &mut Window<'_, impl Read>,
    budget: &Budget<'_>,
) -> Result<Option<Header>, LayerError> {
    loop {
        let (consumed, header) = match parser.parse(window.data()).map_err(tar_error(budget))? {
            ParseEvent::NeedData { min_bytes } => {
                // A chain of extension blocks could need any amount of memory. No valid entry needs as much as this.
                let allowed = budget.limits.metadata_bytes;
                if min_bytes as u64 > allowed.saturating_mul(2) {
                    let limit = Limit::MetadataBytes;
                    return Err(LimitExceeded { limit, allowed }.into());
                }
                match window.fill()? {
                    true => continue,
                    // Some programs do not write the end marker, or write half of it.
                    false if window.data().iter().all(|&byte| byte == 0) => return Ok(None),
                    false => return Err(LayerError::Truncated),
                }
            }
            ParseEvent::Entry { consumed, entry } => (consumed, header(&entry, None, budget)?),
            ParseEvent::SparseEntry {
                consumed,
                entry,
                sparse_map,
                real_size,
            } => (
                consumed,
                header(&entry, Some((sparse_map, real_size)), budget)?,
            ),
            ParseEvent::GlobalExtensions { consumed, .. } => {
                window.consume(consumed);
                continue;
            }
            ParseEvent::End { .. } => return Ok(None),
        };
        window.consume(consumed);
        return Ok(Some(header));
    }
}

/// The parser knows the limits and has its own errors for them. They are converted to errors that name the limit.
fn tar_error(budget: &Budget<'_>) -> impl Fn(tar_core::parse::ParseError) -> LayerError {
    use tar_core::parse::ParseError;
    let (path_bytes, metadata_bytes) = (budget.limits.path_bytes, budget.limits.metadata_bytes);
    let over = |limit, allowed| LayerError::Limit(LimitExceeded { limit, allowed });
    move |error| {
        if let ParseError::PathTooLong { .. } = error {
            over(Limit::PathBytes, path_bytes)
        } else if let ParseError::MetadataTooLarge { .. } = error {
            over(Limit::MetadataBytes, metadata_bytes)
        } else {
            LayerError::Tar(error)
        }
    }
}

/// Reads a header in the same way as Go's archive/tar, which container runtimes use: links, directories and devices
/// have no content, whatever their size field says.
fn header(
    parsed: &ParsedEntry<'_>,
    sparse: Option<(Vec<SparseEntry>, u64)>,
    budget: &Budget<'_>,
) -> Result<Header, LayerError> {
    budget.take_scanned_entry()?;
    let is_header_only = matches!(
        parsed.entry_type,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    );
    let is_old_dir = parsed.entry_type == EntryType::Regular && parsed.path.ends_with(b"/");
    let has_content = !is_header_only && !is_old_dir;
    let stored = if has_content { parsed.size } else { 0 };
    let size = sparse.as_ref().map_or(stored, |(_, real_size)| *real_size);
    let place = name::place(&parsed.path).map_err(|error| error.at(&parsed.path))?;
    let entry = match place {
        Meaning::Outside => None,
        Meaning::Whiteout(path) => Some(LayerEntry {
            path,
            kind: Kind::Whiteout,
            meta: meta(parsed),
        }),
        Meaning::Opaque(path) => Some(LayerEntry {
            path,
            kind: Kind::Opaque,
            meta: meta(parsed),
        }),
        Meaning::Inside(path) => {
            let kind = kind(parsed, has_content).map_err(|error| error.at(&parsed.path))?;
            Some(LayerEntry {
                path,
                kind,
                meta: meta(parsed),
            })
        }
    };
    if let Some(entry) = &entry {
        budget.take_package_entry()?;
        budget
            .limits
            .check(Limit::PathBytes, entry.path.len() as u64)?;
    }
    Ok(Header {
        entry,
        stored,
        size,
        sparse: sparse.map(|(map, _)| map),
    })
}

fn kind(parsed: &ParsedEntry<'_>, has_content: bool) -> Result<Kind, EntryError> {
    let target = || parsed.link_target.as_deref().unwrap_or_default();
    match parsed.entry_type {
        EntryType::Directory => Ok(Kind::Dir),
        EntryType::Regular if !has_content => Ok(Kind::Dir),
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => {
            if parsed.mode & 0o6000 != 0 {
                return Err(EntryError::SetId);
            }
            Ok(Kind::File((0, 0)))
        }
        EntryType::Symlink => match target() {
            b"" => Err(EntryError::EmptyTarget),
            target if target.contains(&0) => Err(EntryError::Nul),
            target => Ok(Kind::Symlink(target.to_vec())),
        },
        EntryType::Link => name::link_target(target()).map(Kind::Hardlink),
        EntryType::Char => Err(EntryError::Special("a character device")),
        EntryType::Block => Err(EntryError::Special("a block device")),
        EntryType::Fifo => Err(EntryError::Special("a named pipe")),
        other @ (EntryType::GnuLongName
        | EntryType::GnuLongLink
        | EntryType::XHeader
        | EntryType::XGlobalHeader
        | EntryType::Other(_)) => Err(EntryError::UnknownType(other.to_byte())),
    }
}

fn meta(parsed: &ParsedEntry<'_>) -> Meta {
    let nanoseconds = parsed.pax.and_then(fraction).unwrap_or(0);
    let seconds = i64::try_from(parsed.mtime).unwrap_or(0);
    Meta {
        mode: parsed.mode & 0o7777,
        mtime: (seconds, nanoseconds),
    }
}

/// The nanoseconds in the PAX `mtime`. The parser only returns the seconds.
fn fraction(pax: &[u8]) -> Option<u32> {
    let extensions = PaxExtensions::new(pax).filter_map(Result::ok);
    let last = extensions
        .filter(|extension| extension.key() == Ok("mtime"))
        .last()?;
    let (_, digits) = last.value().ok()?.split_once('.')?;
    let digits = digits.get(..9).unwrap_or(digits);
    let value: u32 = digits.parse().ok()?;
    Some(value * 10u32.pow(9 - u32::try_from(digits.len()).ok()?))
}

fn write_file(
    scratch: &OwnedFd,
    name: u32,
    meta: Meta,
    header: &Header,
    window: &mut Window<'_, impl Read>,
) -> Result<(), LayerError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(scratch, name.to_string(), flags, Mode::from_raw_mode(0o600))
        .map_err(|error| LayerError::Write(error.into()))?;
    let mut file = File::from(file);
    match &header.sparse {
        None => window.pass(header.stored, |piece| {
            file.write_all(piece).map_err(LayerError::Write)
        })?,
        Some(map) => write_sparse(&file, map, header, window)?,
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(meta.mode))
        .and_then(|()| rustix::fs::futimens(&file, &meta.timestamps()))
        .map_err(|error| LayerError::Write(error.into()))
}

/// Writes the regions of a sparse file; its holes stay holes.
fn write_sparse(
    file: &File,
    map: &[SparseEntry],
    header: &Header,
    window: &mut Window<'_, impl Read>,
) -> Result<(), LayerError> {
    let mut stored = 0u64;
    let mut end = 0u64;
    for region in map {
        let region_end = region.offset.checked_add(region.length);
        let fits = region_end.is_some_and(|region_end| region_end <= header.size);
        stored = stored.saturating_add(region.length);
        if region.offset < end || !fits || stored > header.stored {
            return Err(LayerError::SparseMap);
        }
        end = region.offset + region.length;
        let mut offset = region.offset;
        window.pass(region.length, |piece| {
            file.write_all_at(piece, offset)
                .map_err(LayerError::Write)?;
            offset += piece.len() as u64;
            Ok(())
        })?;
    }
    if stored != header.stored {
        return Err(LayerError::SparseMap);
    }
    file.set_len(header.size).map_err(LayerError::Write)
}
