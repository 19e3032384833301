//! The records of a PAX header: what they say about the next entry, instead of its header.

use std::collections::BTreeMap;

use super::super::lossy;
use super::{Region, TarError};

/// The records of one header, by key. Of several records with the same key, the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

const OFFSET: &[u8] = b"GNU.sparse.offset";
const LENGTH: &[u8] = b"GNU.sparse.numbytes";
const MAP: &[u8] = b"GNU.sparse.map";

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarError> {
        let mut records = BTreeMap::new();
        let mut map: Vec<Vec<u8>> = Vec::new();
        while !bytes.is_empty() {
            let wrong = || TarError::Record(lossy(bytes.get(..40).unwrap_or(bytes)));
            let (key, value, rest) = record(bytes).ok_or_else(wrong)?;
            // The oldest form of a sparse map is a sequence of records with the same two keys.
            if key == OFFSET || key == LENGTH {
                let is_next = (key == OFFSET) == map.len().is_multiple_of(2);
                if !is_next || value.contains(&b',') {
                    return Err(wrong());
                }
                map.push(value.to_vec());
            } else {
                records.insert(key.to_vec(), value.to_vec());
            }
            bytes = rest;
        }
        if !map.is_empty() {
            records.insert(MAP.to_vec(), map.join(&b','));
        }
        Ok(Self(records))
    }

    /// The value of a record. An empty value means that there is none.
    pub(super) fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.0.get(key.as_bytes())?;
        (!value.is_empty()).then_some(value)
    }

    fn length(&self, key: &'static str) -> Result<Option<u64>, TarError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let length = decimal(value).and_then(|value| u64::try_from(value).ok());
        let value = || lossy(value);
        length.map(Some).ok_or_else(|| TarError::Value {
            key,
            value: value(),
        })
    }

    /// The length of the content in the archive.
    pub(super) fn size(&self) -> Result<Option<u64>, TarError> {
        self.length("size")
    }

    /// Seconds and nanoseconds. A time that nobody can read is the one of the header.
    pub(super) fn mtime(&self) -> Option<(i64, u32)> {
        let text = std::str::from_utf8(self.get("mtime")?).ok()?;
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = fraction.get(..9).unwrap_or(fraction);
        if !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
            return None;
        }
        let nanoseconds = format!("{digits:0<9}").parse().ok()?;
        Some((seconds.parse().ok()?, nanoseconds))
    }

    /// The version of the form of a sparse map. `None` if the file is not sparse, or in a form that nobody knows.
    pub(super) fn sparse_version(&self) -> Option<(u8, u8)> {
        let part = |key| self.get(key).unwrap_or_default();
        match (part("GNU.sparse.major"), part("GNU.sparse.minor")) {
            (b"0", b"0") => Some((0, 0)),
            (b"0", b"1") => Some((0, 1)),
            (b"1", b"0") => Some((1, 0)),
            (b"", b"") => self.get("GNU.sparse.map").map(|_| (0, 1)),
            _ => None,
        }
    }

    /// The size of a sparse file with its holes.
    pub(super) fn sparse_size(&self) -> Result<Option<u64>, TarError> {
        match self.length("GNU.sparse.size")? {
            Some(size) => Ok(Some(size)),
            None => self.length("GNU.sparse.realsize"),
        }
    }

    /// The map in the records. `None` if it is not pairs of numbers.
    pub(super) fn sparse_map(&self) -> Option<Vec<Region>> {
        let Some(text) = self.get("GNU.sparse.map") else {
            return Some(Vec::new());
        };
        let numbers: Vec<u64> = text
            .split(|byte| *byte == b',')
            .map(|number| u64::try_from(decimal(number)?).ok())
            .collect::<Option<_>>()?;
        let pairs = numbers.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return None;
        }
        let region = |pair: &[u64]| Region {
            offset: pair[0],
            length: pair[1],
        };
        Some(pairs.map(region).collect())
    }
}

pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The first record: its key, its value, and the bytes after it. A record is its own length, a space, the key, `=`, the
/// value and a line feed.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (whole, rest) = bytes.split_at_checked(length)?;
    let text = whole.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = text.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&text[..equals], &text[equals + 1..]);
    (!key.is_empty()).then_some((key, value, rest))
}
