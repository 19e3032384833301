//! A blob's stream: decompressed through a window that the tar parser looks into, with both its
//! digests and every limit on its size watched as it passes.

use std::fs::File;
use std::io::{self, BufReader, Read};

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

pub(super) enum Decoder {
    Plain(Box<Raw>),
    Gzip(Box<MultiGzDecoder<BufReader<Raw>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Raw>>>),
}

impl Decoder {
    pub(super) fn new(raw: Raw, compression: Compression) -> io::Result<Self> {
        let buffered = |raw| BufReader::with_capacity(RAW_BUFFER, raw);
        Ok(match compression {
            Compression::None => Self::Plain(Box::new(raw)),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(raw)))),
            Compression::Zstd => Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(
                buffered(raw),
            )?)),
        })
    }

    /// The digest of the whole blob, including what the decoder left unread.
    pub(super) fn finish(self) -> io::Result<Digest> {
        let mut raw = match self {
            Self::Plain(raw) => *raw,
            Self::Gzip(decoder) => decoder.into_inner().into_inner(),
            Self::Zstd(decoder) => decoder.finish().into_inner(),
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
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// The decompressed stream with what the parser looks at, hashed and counted as it passes.
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

    /// Reads more; false at the end of the stream.
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

    /// Passes over what fills a file's last block, as far as it is there.
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
    /// Reads the rest: the blob's digest and the diff ID.
    pub(super) fn finish(mut self) -> Result<(Digest, Digest), LayerError> {
        self.start = self.end;
        while self.fill()? {
            self.start = self.end;
        }
        let blob = self.decoder.finish().map_err(LayerError::Decompress)?;
        Ok((blob, self.hasher.finish()))
    }
}
