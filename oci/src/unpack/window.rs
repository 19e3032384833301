//! The decompressed stream of a blob, with a buffer (the window) from which the tar parser reads. While the stream is
//! read, the digest of the blob and the diff ID are computed, and the limits on its size are checked.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::bufread::MultiGzDecoder;

use super::LayerError;
use crate::digest::{Digest, Hasher, HashingReader};
use crate::image::Compression;
use crate::limits::{Budget, Limit, LimitExceeded};

/// Decompressed bytes that every layer may have, whatever its ratio.
const RATIO_FLOOR: u64 = 64 << 20;
const WINDOW: usize = 256 << 10;
const RAW_BUFFER: usize = 128 << 10;

type Raw = HashingReader<File>;

/// The largest zstd window that is accepted, as a power of two: 128 MiB, which is also the default limit of zstd.
const ZSTD_WINDOW: u32 = 27;
/// Several layers with windows up to this size (8 MiB, as `zstd -19` has) may be unpacked at the same time.
const ZSTD_MANY: u32 = 23;
/// A layer with a larger window holds this lock, so only one such layer is unpacked at a time.
static LARGE_WINDOW: Mutex<()> = Mutex::new(());

pub(super) enum Decoder {
    Plain(Box<Raw>),
    Gzip(Box<MultiGzDecoder<BufReader<Raw>>>),
    Zstd {
        decoder: Box<zstd::stream::read::Decoder<'static, BufReader<Raw>>>,
        /// The lock that a decoder with a large window holds.
        _alone: Option<MutexGuard<'static, ()>>,
    },
}

impl Decoder {
    /// Starts to read a blob. Its first bytes tell how it is compressed, because some registries and builders give
    /// layers a wrong media type. `labelled` is used if the first bytes do not tell.
    pub(super) fn new(mut blob: File, labelled: Compression) -> io::Result<Self> {
        let mut start = Vec::new();
        (&mut blob).take(TAR_MAGIC_END).read_to_end(&mut start)?;
        blob.rewind()?;
        let raw = HashingReader::new(blob);
        let buffered = |raw| BufReader::with_capacity(RAW_BUFFER, raw);
        Ok(match compression(&start).unwrap_or(labelled) {
            Compression::None => Self::Plain(Box::new(raw)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(raw)))),
            Compression::Zstd => {
                let alone = (zstd_window(&start) > ZSTD_MANY)
                    .then(|| LARGE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered(raw))?;
                decoder.window_log_max(ZSTD_WINDOW)?;
                Self::Zstd {
                    decoder: Box::new(decoder),
                    _alone: alone,
                }
            }
        })
    }

    /// The digest of the whole blob, including what the decoder left unread.
    pub(super) fn finish(self) -> io::Result<Digest> {
        let mut raw = match self {
            Self::Plain(raw) => *raw,
            Self::Gzip(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd { decoder, .. } => decoder.finish().into_inner(),
        };
        io::copy(&mut raw, &mut io::sink())?;
        Ok(raw.finish())
    }
}

impl Read for Decoder {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(raw) => raw.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd { decoder, .. } => decoder.read(buffer),
        }
    }
}

const TAR_MAGIC: usize = 257;
const TAR_MAGIC_END: u64 = 262;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// How a blob that starts with these bytes is compressed, if they tell.
fn compression(start: &[u8]) -> Option<Compression> {
    let is_skippable = |start: &[u8]| matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    if start.starts_with(&[0x1f, 0x8b]) {
        Some(Compression::Gzip)
    } else if start.starts_with(&ZSTD_MAGIC) || is_skippable(start) {
        Some(Compression::Zstd)
    } else if start
        .get(TAR_MAGIC..)
        .is_some_and(|magic| magic.starts_with(b"ustar"))
    {
        Some(Compression::None)
    } else {
        None
    }
}

/// The window of the first frame, as a power of two, rounded up. If the bytes do not tell it, the largest window.
fn zstd_window(start: &[u8]) -> u32 {
    const SINGLE_SEGMENT: u8 = 0x20;
    match start.strip_prefix(&ZSTD_MAGIC) {
        // A frame with this flag has a window as large as its content. The size of the content is stored in one to
        // eight bytes.
        Some([descriptor, rest @ ..]) if descriptor & SINGLE_SEGMENT != 0 => {
            let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
            let length = [1, 2, 4, 8][usize::from(descriptor >> 6)];
            let Some(field) = rest.get(dictionary..dictionary + length) else {
                return ZSTD_WINDOW;
            };
            let mut bytes = [0; 8];
            bytes[..length].copy_from_slice(field);
            let content = u64::from_le_bytes(bytes) + if length == 2 { 256 } else { 0 };
            u64::BITS - content.saturating_sub(1).leading_zeros()
        }
        Some([_, window, ..]) => 10 + u32::from(window >> 3) + u32::from(window & 7 != 0),
        Some(_) | None => ZSTD_WINDOW,
    }
}

/// The decompressed stream, and the buffer from which the parser reads. All bytes are hashed and counted.
pub(super) struct Window<'a, D> {
    decoder: D,
    hasher: Hasher,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    total: u64,
    allowed: u64,
    budget: &'a Budget<'a>,
}

impl<'a, D: Read> Window<'a, D> {
    pub(super) fn new(decoder: D, blob_size: u64, budget: &'a Budget<'a>) -> Self {
        let allowed = blob_size
            .saturating_mul(budget.limits.ratio)
            .max(RATIO_FLOOR);
        let (hasher, buffer) = (Hasher::new(), vec![0; WINDOW]);
        Self {
            decoder,
            hasher,
            buffer,
            start: 0,
            end: 0,
            total: 0,
            allowed,
            budget,
        }
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads more bytes into the buffer. Returns false at the end of the stream.
    pub(super) fn fill(&mut self) -> Result<bool, LayerError> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let count = self
            .decoder
            .read(&mut self.buffer[self.end..])
            .map_err(LayerError::Decompress)?;
        self.hasher.update(&self.buffer[self.end..self.end + count]);
        self.end += count;
        self.total += count as u64;
        self.budget.take_stream(count as u64)?;
        if self.total > self.allowed {
            let allowed = self.budget.limits.ratio;
            return Err(LimitExceeded {
                limit: Limit::Ratio,
                allowed,
            }
            .into());
        }
        Ok(count > 0)
    }

    /// Passes `count` bytes to `sink`, in pieces.
    pub(super) fn pass(
        &mut self,
        mut count: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        while count > 0 {
            if self.start == self.end && !self.fill()? {
                return Err(LayerError::Truncated);
            }
            let piece = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(self.end - self.start);
            sink(&self.buffer[self.start..self.start + piece])?;
            self.start += piece;
            count -= piece as u64;
        }
        Ok(())
    }

    /// Skips the padding of a file's last block, which may be incomplete or missing.
    pub(super) fn skip_padding(&mut self, mut count: u64) -> Result<(), LayerError> {
        while count > 0 && (self.start < self.end || self.fill()?) {
            let piece = usize::try_from(count)
                .unwrap_or(usize::MAX)
                .min(self.end - self.start);
            self.start += piece;
            count -= piece as u64;
        }
        Ok(())
    }
}

impl Window<'_, Decoder> {
    /// Reads the rest of the stream. Returns the digest of the blob and the diff ID.
    pub(super) fn finish(mut self) -> Result<(Digest, Digest), LayerError> {
        self.start = self.end;
        while self.fill()? {
            self.start = self.end;
        }
        let blob = self.decoder.finish().map_err(LayerError::Decompress)?;
        Ok((blob, self.hasher.finish()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn windows_of_frames() {
        let content = vec![b'x'; 3 << 20];
        // A frame of unknown size has the configured window. A frame of known size, if that is smaller, has a window
        // as large as its content.
        for (log, size, want) in [(27, None, 27), (20, None, 20), (27, Some(100), 7)] {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(log).unwrap();
            encoder.set_pledged_src_size(size).unwrap();
            let length = size.map_or(content.len(), |size| usize::try_from(size).unwrap());
            encoder.write_all(&content[..length]).unwrap();
            let frame = encoder.finish().unwrap();
            assert_eq!(zstd_window(&frame), want, "{log} {size:?}");
        }
        assert_eq!(zstd_window(b"anything else"), ZSTD_WINDOW);
        assert_eq!(zstd_window(&ZSTD_MAGIC), ZSTD_WINDOW);
    }

    #[test]
    fn the_first_bytes_say_how_a_blob_is_compressed() {
        let tar = [&[b'a'; TAR_MAGIC][..], b"ustar"].concat();
        for (start, want) in [
            (&[0x1f, 0x8b, 8][..], Some(Compression::Gzip)),
            (&ZSTD_MAGIC, Some(Compression::Zstd)),
            (&[0x50, 0x2a, 0x4d, 0x18, 4], Some(Compression::Zstd)),
            (&tar, Some(Compression::None)),
            (b"rubbish", None),
            (b"", None),
        ] {
            assert_eq!(compression(start), want, "{start:?}");
        }
    }
}
