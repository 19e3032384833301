//! A quick hash for the tables of answers, which compare the keys as well.

use std::hash::{BuildHasherDefault, Hasher};

/// Builds the hasher.
pub(super) type FastHash = BuildHasherDefault<Fast>;

/// Multiply and rotate, a byte or a word at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fast(u64);

impl Fast {
    const fn take(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Fast {
    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.take(u64::from(*byte));
        }
    }

    fn write_u8(&mut self, n: u8) {
        self.take(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.take(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.take(n as u64);
    }

    fn write_isize(&mut self, n: isize) {
        self.take(n as u64);
    }
}
