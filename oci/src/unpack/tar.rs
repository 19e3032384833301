//! The headers of a tar archive, read in the way of Go's `archive/tar`, with which container runtimes read layers: the
//! formats of V7 Unix, ustar, GNU, star and PAX, with long names and sparse files.
//!
//! Owners and device numbers are not read, because nothing uses them.

use std::io::Read;

use super::window::Window;
use super::{LayerError, lossy};
use crate::limits::{Limit, LimitExceeded};

mod pax;

use pax::Records;

const BLOCK: usize = 512;

/// One entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: MemberKind,
    pub(super) mode: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Bytes of its content that follow in the archive.
    pub(super) stored: u64,
    /// Bytes after the content until the next header.
    pub(super) padding: u64,
    /// Bytes of the file. A sparse file has more of them than are stored.
    pub(super) size: u64,
    /// Where the stored bytes of a sparse file belong.
    pub(super) sparse: Option<Vec<Region>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    File,
    Dir,
    Symlink,
    Link,
    CharDevice,
    BlockDevice,
    Fifo,
    Other(u8),
}

/// A part of a sparse file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What makes bytes no tar archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    #[error("header error: its checksum is wrong")]
    Checksum,
    #[error("header error: {field} is {value:?}, which is not a number that is allowed there")]
    Number { field: &'static str, value: String },
    #[error("PAX error: {0:?} is not a record")]
    Record(String),
    #[error("invalid PAX {key} value: {value:?}")]
    Value { key: &'static str, value: String },
    #[error("header error: one block of zeros is no end, and entries follow it")]
    LoneZeros,
    #[error("a sparse file without the header of GNU tar")]
    SparseFormat,
}

/// The formats that differ in where a header has its fields.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Gnu,
    Star,
}

/// One block of an archive, read as a header.
struct Header([u8; BLOCK]);

impl Header {
    fn text(&self, start: usize, length: usize) -> &[u8] {
        until_nul(&self.0[start..start + length])
    }

    fn number(&self, field: &'static str, start: usize, length: usize) -> Result<i64, TarError> {
        let bytes = &self.0[start..start + length];
        number(bytes).ok_or_else(|| TarError::Number {
            field,
            value: lossy(bytes),
        })
    }

    fn check(&self) -> Result<(), TarError> {
        let want = octal(&self.0[148..156]).ok_or(TarError::Checksum)?;
        let counted = self.0.iter().enumerate().map(|(at, byte)| match at {
            148..156 => b' ',
            _ => *byte,
        });
        let unsigned: i64 = counted.clone().map(i64::from).sum();
        // Some old programs add the bytes up as signed numbers.
        let signed: i64 = counted.map(|byte| i64::from(byte.cast_signed())).sum();
        match want == unsigned || want == signed {
            true => Ok(()),
            false => Err(TarError::Checksum),
        }
    }

    fn format(&self) -> Format {
        match (&self.0[257..263], &self.0[263..265], &self.0[508..512]) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", _, _) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }

    fn name(&self) -> Vec<u8> {
        let prefix = match self.format() {
            Format::V7 => &[],
            Format::Ustar => self.text(345, 155),
            Format::Star => self.text(345, 131),
            Format::Gnu => self.gnu_prefix(),
        };
        let name = self.text(0, 100);
        match prefix {
            [] => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }

    /// In this format there is no prefix, but times. Old versions of Go wrote a prefix nevertheless: it is taken as one
    /// if it cannot be times, as Go does.
    fn gnu_prefix(&self) -> &[u8] {
        let times = [&self.0[345..357], &self.0[357..369]];
        let are_times = times.iter().all(|it| it[0] == 0 || number(it).is_some());
        let prefix = self.text(345, 155);
        match !are_times && prefix.is_ascii() {
            true => prefix,
            false => &[],
        }
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in a header: octal digits, or a big-endian number if the first bit is set.
fn number(bytes: &[u8]) -> Option<i64> {
    if bytes.first().is_none_or(|first| first & 0x80 == 0) {
        return octal(bytes);
    }
    let is_negative = bytes[0] & 0x40 != 0;
    let mut value: u64 = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let byte = if is_negative { !byte } else { *byte };
        let byte = if at == 0 { byte & 0x7f } else { byte };
        if value >> 56 > 0 {
            return None;
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).ok()?;
    Some(if is_negative { !value } else { value })
}

/// Octal digits, with spaces and NULs around them. No digits at all are zero.
fn octal(bytes: &[u8]) -> Option<i64> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = bytes.iter().position(|byte| !is_padding(byte)) else {
        return Some(0);
    };
    let end = bytes.iter().rposition(|byte| !is_padding(byte))? + 1;
    let digits = std::str::from_utf8(until_nul(&bytes[start..end])).ok()?;
    let is_octal = digits.bytes().all(|digit| (b'0'..b'8').contains(&digit));
    if !is_octal {
        return None;
    }
    // Go reads more bits than a length can have.
    u64::from_str_radix(digits, 8).ok().map(u64::cast_signed)
}

/// The next entry; `None` at the end of the archive. The caller reads the content of the entry and its padding.
pub(super) fn next(window: &mut Window<'_, impl Read>) -> Result<Option<Member>, LayerError> {
    let mut records = Records::default();
    let (mut long_name, mut long_link) = (Vec::new(), Vec::new());
    let mut metadata = 0;
    while let Some(header) = header(window)? {
        let flag = header.0[156];
        let size = length(&header, flag)?;
        match flag {
            b'x' | b'g' => {
                let content = special(window, size, &mut metadata)?;
                let read = Records::parse(&content).map_err(LayerError::Tar)?;
                // A global header would give defaults for all entries after it. Container runtimes ignore it, and
                // forget what was read for the next entry.
                (records, long_name, long_link) = match flag {
                    b'x' => (read, long_name, long_link),
                    _ => Default::default(),
                };
            }
            b'L' => long_name = until_nul(&special(window, size, &mut metadata)?).to_vec(),
            b'K' => long_link = until_nul(&special(window, size, &mut metadata)?).to_vec(),
            _ => {
                let member = member(&header, &records, long_name, long_link)?;
                return sparse(window, &header, &records, member).map(Some);
            }
        }
    }
    Ok(None)
}

/// The next block, which is a header; `None` at the end of the archive.
fn header(window: &mut Window<'_, impl Read>) -> Result<Option<Header>, LayerError> {
    // Some programs do not write the end marker, or write half of it.
    let Some(first) = block(window)? else {
        return Ok(None);
    };
    if first != [0; BLOCK] {
        let header = Header(first);
        header.check().map_err(LayerError::Tar)?;
        return Ok(Some(header));
    }
    match block(window)? {
        // Container runtimes refuse such an archive too.
        Some(second) if second != [0; BLOCK] => Err(LayerError::Tar(TarError::LoneZeros)),
        Some(_) | None => Ok(None),
    }
}

/// The next block; `None` at the end of the stream, or if only zeros are left of it.
fn block(window: &mut Window<'_, impl Read>) -> Result<Option<[u8; BLOCK]>, LayerError> {
    loop {
        if let Some(block) = window.data().first_chunk::<BLOCK>() {
            let block = *block;
            window.consume(BLOCK);
            return Ok(Some(block));
        }
        if window.fill()? {
            continue;
        }
        let is_zero = window.data().iter().all(|byte| *byte == 0);
        return if is_zero {
            Ok(None)
        } else {
            Err(LayerError::Truncated)
        };
    }
}

/// The content of an extension header.
fn special(
    window: &mut Window<'_, impl Read>,
    size: u64,
    metadata: &mut u64,
) -> Result<Vec<u8>, LayerError> {
    count_metadata(window, size.saturating_add(BLOCK as u64), metadata)?;
    let mut content = Vec::new();
    window.pass(size, |piece| {
        content.extend_from_slice(piece);
        Ok(())
    })?;
    window.skip_padding(padding(size))?;
    Ok(content)
}

/// Limits the memory for the extension headers in front of one entry.
fn count_metadata(
    window: &Window<'_, impl Read>,
    more: u64,
    metadata: &mut u64,
) -> Result<(), LimitExceeded> {
    *metadata = metadata.saturating_add(more);
    window.limits().check(Limit::MetadataBytes, *metadata)
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn has_content(flag: u8) -> bool {
    !matches!(flag, b'1'..=b'6')
}

/// The length of the content that follows a header. Links, directories and devices have none, whatever their size
/// field says.
fn length(header: &Header, flag: u8) -> Result<u64, LayerError> {
    let size = header.number("size", 124, 12).map_err(LayerError::Tar)?;
    if !has_content(flag) {
        return Ok(0);
    }
    u64::try_from(size).map_err(|_| {
        LayerError::Tar(TarError::Number {
            field: "size",
            value: size.to_string(),
        })
    })
}

fn member(
    header: &Header,
    records: &Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
) -> Result<Member, LayerError> {
    let flag = header.0[156];
    let pick = |long: Vec<u8>, record: Option<&[u8]>, short: Vec<u8>| match (long, record) {
        (long, _) if !long.is_empty() => long,
        (_, Some(record)) => record.to_vec(),
        (_, None) => short,
    };
    let name = pick(long_name, records.get("path"), header.name());
    let link = pick(
        long_link,
        records.get("linkpath"),
        header.text(157, 100).to_vec(),
    );
    let kind = match flag {
        // Old archives have directories as files with a slash at the end.
        0 if name.ends_with(b"/") => MemberKind::Dir,
        0 | b'0' | b'7' | b'S' => MemberKind::File,
        b'1' => MemberKind::Link,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Dir,
        b'6' => MemberKind::Fifo,
        other => MemberKind::Other(other),
    };
    let stored = match records.size().map_err(LayerError::Tar)? {
        _ if kind == MemberKind::Dir || !has_content(flag) => 0,
        Some(size) => size,
        None => length(header, flag)?,
    };
    let mode = header.number("mode", 100, 8).map_err(LayerError::Tar)?;
    let seconds = header.number("mtime", 136, 12).map_err(LayerError::Tar)?;
    let mtime = records.mtime().unwrap_or((seconds, 0));
    Ok(Member {
        name,
        link,
        kind,
        mode: u32::try_from(mode & 0o7777).unwrap_or_default(),
        mtime: if mtime.0 < 0 { (0, 0) } else { mtime },
        stored,
        padding: padding(stored),
        size: stored,
        sparse: None,
    })
}

/// Adds the map of a sparse file, which may be in the header, in the PAX records, or in front of the content.
fn sparse(
    window: &mut Window<'_, impl Read>,
    header: &Header,
    records: &Records,
    mut member: Member,
) -> Result<Member, LayerError> {
    if header.0[156] == b'S' {
        if header.format() != Format::Gnu {
            return Err(LayerError::Tar(TarError::SparseFormat));
        }
        let size = header.number("real size", 483, 12);
        member.size =
            u64::try_from(size.map_err(LayerError::Tar)?).map_err(|_| LayerError::SparseMap)?;
        member.sparse = Some(gnu_map(window, header)?);
        return Ok(member);
    }
    let Some(version) = records.sparse_version() else {
        return Ok(member);
    };
    if member.kind != MemberKind::File {
        return Err(LayerError::SparseMap);
    }
    if let Some(name) = records.get("GNU.sparse.name") {
        member.name = name.to_vec();
    }
    if let Some(size) = records.sparse_size().map_err(LayerError::Tar)? {
        member.size = size;
    }
    member.sparse = Some(match version {
        (1, 0) => {
            let (map, consumed) = pax_map(window, member.stored)?;
            member.stored -= consumed;
            map
        }
        _ => records.sparse_map().ok_or(LayerError::SparseMap)?,
    });
    Ok(member)
}

/// The map in the header of GNU tar, and in the blocks after it.
fn gnu_map(window: &mut Window<'_, impl Read>, header: &Header) -> Result<Vec<Region>, LayerError> {
    const ENTRY: usize = 24;
    let mut map = Vec::new();
    let mut part = header.0[386..483].to_vec();
    let mut metadata = 0;
    loop {
        let entries = part.len() / ENTRY;
        for entry in part.chunks_exact(ENTRY).take(entries) {
            if entry[0] == 0 {
                break;
            }
            map.push(region(number(&entry[..12]), number(&entry[12..]))?);
        }
        let is_last = part[entries * ENTRY] == 0;
        if is_last {
            return Ok(map);
        }
        count_metadata(window, BLOCK as u64, &mut metadata)?;
        part = block(window)?.ok_or(LayerError::Truncated)?.to_vec();
    }
}

fn region(offset: Option<i64>, length: Option<i64>) -> Result<Region, LayerError> {
    let unsigned = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
    match (unsigned(offset), unsigned(length)) {
        (Some(offset), Some(length)) => Ok(Region { offset, length }),
        _ => Err(LayerError::SparseMap),
    }
}

/// The map in front of the content: lines with decimal numbers, padded to whole blocks. Also returns its length.
fn pax_map(
    window: &mut Window<'_, impl Read>,
    stored: u64,
) -> Result<(Vec<Region>, u64), LayerError> {
    let mut text = Vec::new();
    let mut consumed = 0;
    let mut metadata = 0;
    let mut lines = 0;
    let mut wanted = 1;
    loop {
        while lines < wanted {
            consumed += BLOCK as u64;
            if consumed > stored {
                return Err(LayerError::SparseMap);
            }
            count_metadata(window, BLOCK as u64, &mut metadata)?;
            window.pass(BLOCK as u64, |piece| {
                lines += piece.iter().filter(|byte| **byte == b'\n').count();
                text.extend_from_slice(piece);
                Ok(())
            })?;
        }
        let mut numbers = text.split(|byte| *byte == b'\n').map(pax::decimal);
        let count = numbers.next().flatten();
        let count = count.and_then(|count| usize::try_from(count).ok());
        let count = count.ok_or(LayerError::SparseMap)?;
        let all = count.checked_mul(2).and_then(|pairs| pairs.checked_add(1));
        let all = all.ok_or(LayerError::SparseMap)?;
        if all > wanted {
            wanted = all;
            continue;
        }
        let numbers: Vec<_> = numbers.take(2 * count).collect();
        let pairs = numbers.chunks_exact(2);
        let map = pairs.map(|pair| region(pair[0], pair[1]));
        return Ok((map.collect::<Result<_, _>>()?, consumed));
    }
}

#[cfg(test)]
mod tests;
