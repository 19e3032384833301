//! The decompressed stream of a blob, with a buffer (the window) from which the tar parser reads. While the stream is
//! read, the digest of the blob and the diff ID are computed, and the limits on its size are checked.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flate2::bufread::MultiGzDecoder;
use zstd::stream::raw::{DParameter, Operation as _};

use super::LayerError;
use crate::digest::{Algorithm, Digest, Hasher, HashingReader};
use crate::limits::{Budget, Limit, LimitExceeded, Limits};

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
    Zstd(Box<Frames>),
}

impl Decoder {
    /// Starts to read a blob. Its first bytes alone tell how it is compressed, because some registries and builders
    /// give layers a wrong media type. A blob that starts in another way is an archive without compression, such as
    /// one with the headers of V7 Unix, or an empty one.
    pub(super) fn new(mut blob: File, algorithm: Algorithm) -> io::Result<Self> {
        let mut start = Vec::new();
        (&mut blob).take(MAGIC).read_to_end(&mut start)?;
        blob.rewind()?;
        let raw = HashingReader::new(blob, algorithm);
        let buffered = |raw| BufReader::with_capacity(RAW_BUFFER, raw);
        Ok(match compression(&start) {
            Compression::None => Self::Plain(Box::new(raw)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(raw)))),
            Compression::Zstd => Self::Zstd(Box::new(Frames::new(raw)?)),
        })
    }

    /// The digest of the whole blob, including what the decoder left unread.
    pub(super) fn finish(self) -> io::Result<Digest> {
        let mut raw = match self {
            Self::Plain(raw) => *raw,
            Self::Gzip(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd(frames) => frames.raw,
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
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// Decompresses a zstd blob, which consists of frames. Each frame has a window of its own, so the header of each one
/// is looked at before the decoder reads it.
pub(super) struct Frames {
    raw: Raw,
    decoder: zstd::stream::raw::Decoder<'static>,
    /// Compressed bytes that the decoder has not read yet: those from `start` to `end`.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The next compressed byte is the first of a frame.
    is_between_frames: bool,
    /// The lock, from the first frame with a large window on.
    alone: Option<MutexGuard<'static, ()>>,
}

impl Frames {
    fn new(raw: Raw) -> io::Result<Self> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
        Ok(Self {
            raw,
            decoder,
            buffer: vec![0; RAW_BUFFER],
            start: 0,
            end: 0,
            is_between_frames: true,
            alone: None,
        })
    }

    /// The next compressed bytes: at least `count`, except at the end of the blob.
    fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.end - self.start < count {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < count {
            match self.raw.read(&mut self.buffer[self.end..])? {
                0 => break,
                read => self.end += read,
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }
}

impl Read for Frames {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while !out.is_empty() {
            if self.is_between_frames {
                let header = self.peek(ZSTD_HEADER)?;
                if header.is_empty() {
                    break;
                }
                if zstd_window(header) > ZSTD_MANY && self.alone.is_none() {
                    self.alone = Some(LARGE_WINDOW.lock().unwrap_or_else(PoisonError::into_inner));
                }
                self.is_between_frames = false;
            }
            let is_end = self.peek(1)?.is_empty();
            let input = &self.buffer[self.start..self.end];
            let status = self.decoder.run_on_buffers(input, out)?;
            self.start += status.bytes_read;
            self.is_between_frames = status.remaining == 0;
            if status.bytes_written > 0 {
                return Ok(status.bytes_written);
            }
            if is_end && !self.is_between_frames {
                let message = "the last zstd frame is incomplete";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
            }
        }
        Ok(0)
    }
}

/// The number of first bytes that tell how a blob is compressed.
const MAGIC: u64 = 4;
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The size of the largest zstd frame header.
const ZSTD_HEADER: usize = 18;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// How a blob that starts with these bytes is compressed.
fn compression(start: &[u8]) -> Compression {
    if start.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if start.starts_with(&ZSTD_MAGIC) || is_skippable(start) {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// Whether a zstd frame that starts with these bytes has no content. The decoder skips it.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The window of a frame that starts with these bytes, as a power of two, rounded up. If the bytes do not tell it, the
/// largest window.
fn zstd_window(start: &[u8]) -> u32 {
    const SINGLE_SEGMENT: u8 = 0x20;
    if is_skippable(start) {
        return 0;
    }
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
    /// `algorithm` is how the digest of the stream is computed.
    pub(super) fn new(
        decoder: D,
        blob_size: u64,
        algorithm: Algorithm,
        budget: &'a Budget<'a>,
    ) -> Self {
        let allowed = blob_size
            .saturating_mul(budget.limits.ratio)
            .max(RATIO_FLOOR);
        let (hasher, buffer) = (Hasher::new(algorithm), vec![0; WINDOW]);
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

    pub(super) fn limits(&self) -> &'a Limits {
        self.budget.limits
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
        assert_eq!(zstd_window(&skippable(4)), 0);
    }

    /// A frame without content, of this size.
    fn skippable(size: usize) -> Vec<u8> {
        let mut frame = vec![0x50, 0x2a, 0x4d, 0x18];
        frame.extend(u32::try_from(size).unwrap().to_le_bytes());
        frame.resize(frame.len() + size, 0);
        frame
    }

    /// A frame that does not state the size of its content, with a window of this size.
    fn frame(window: u32, content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(window).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn decoder(blob: &[u8]) -> Decoder {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(blob).unwrap();
        file.rewind().unwrap();
        Decoder::new(file, Algorithm::Sha256).unwrap()
    }

    fn is_alone(decoder: &Decoder) -> bool {
        match decoder {
            Decoder::Zstd(frames) => frames.alone.is_some(),
            Decoder::Plain(_) | Decoder::Gzip(_) => false,
        }
    }

    #[test]
    fn a_later_frame_with_a_large_window_is_decoded_alone() {
        let blob = [frame(20, b"small"), frame(ZSTD_MANY + 1, b"large")].concat();
        let mut decoder = decoder(&blob);
        let mut small = [0; 5];
        decoder.read_exact(&mut small).unwrap();
        assert_eq!((&small, is_alone(&decoder)), (b"small", false));
        let mut rest = Vec::new();
        decoder.read_to_end(&mut rest).unwrap();
        assert_eq!((rest.as_slice(), is_alone(&decoder)), (&b"large"[..], true));
        assert_eq!(decoder.finish().unwrap(), Digest::of(&blob));
    }

    #[test]
    fn frames_may_begin_anywhere_in_the_buffer() {
        let content = vec![b'x'; 1 << 20];
        for before_end in 0..=ZSTD_HEADER {
            let mut blob = skippable(RAW_BUFFER - 8 - before_end);
            for _ in 0..3 {
                blob.extend(frame(20, &content));
            }
            let mut decoder = decoder(&blob);
            let mut got = Vec::new();
            decoder.read_to_end(&mut got).unwrap();
            assert_eq!(got.len(), 3 << 20, "{before_end}");
            assert!(!is_alone(&decoder), "{before_end}");
            assert_eq!(decoder.finish().unwrap(), Digest::of(&blob));
        }
    }

    #[test]
    fn a_blob_that_ends_within_a_frame_is_an_error() {
        let whole = frame(20, b"content");
        for length in 5..whole.len() {
            let mut got = Vec::new();
            let error = decoder(&whole[..length]).read_to_end(&mut got).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length}");
        }
    }

    #[test]
    fn the_first_bytes_say_how_a_blob_is_compressed() {
        for (start, want) in [
            (&[0x1f, 0x8b, 8, 0][..], Compression::Gzip),
            (&[0x1f, 0x8b], Compression::None),
            (&ZSTD_MAGIC, Compression::Zstd),
            (&[0x50, 0x2a, 0x4d, 0x18, 4], Compression::Zstd),
            (&[0x5f, 0x2a, 0x4d, 0x18, 4], Compression::Zstd),
            (&[0x60, 0x2a, 0x4d, 0x18, 4], Compression::None),
            (b"skyhook-package/", Compression::None),
            (b"", Compression::None),
        ] {
            assert_eq!(compression(start), want, "{start:?}");
        }
    }
}
