//! Content digests. The store names each blob by its digest, and hashes the blob to check the digest.
//!
//! The algorithms are those that container runtimes know. A digest with another algorithm is an error that names the
//! algorithm.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a digest is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 3] = [Self::Sha256, Self::Sha384, Self::Sha512];

    /// The name in front of the colon.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        }
    }

    fn ring(self) -> &'static ring::digest::Algorithm {
        match self {
            Self::Sha256 => &ring::digest::SHA256,
            Self::Sha384 => &ring::digest::SHA384,
            Self::Sha512 => &ring::digest::SHA512,
        }
    }

    fn bytes(self) -> usize {
        self.ring().output_len()
    }
}

/// The number of bytes of the longest digest.
const LONGEST: usize = 64;

/// A digest, written as the name of its algorithm, a colon, and lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    /// A shorter digest has zeros at the end.
    bytes: [u8; LONGEST],
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("digest {0:?} has no algorithm: write sha256:<64 hexadecimal digits>")]
    NoAlgorithm(String),
    #[error("digest algorithm {0:?} is not supported: use sha256, sha384 or sha512")]
    Algorithm(String),
    #[error("digest {text:?} is not {digits} lower-case hexadecimal digits after {algorithm}:")]
    Hex {
        text: String,
        algorithm: &'static str,
        digits: usize,
    },
}

/// The digest that content should have, and the one that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    pub want: Digest,
    pub got: Digest,
}

impl Digest {
    /// The SHA-256 digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::with(Algorithm::Sha256, bytes)
    }

    /// The digest of these bytes, computed in the way of `other`. Without another digest it is SHA-256.
    pub(crate) fn like(other: Option<Self>, bytes: &[u8]) -> Self {
        Self::with(
            other.map_or(Algorithm::Sha256, |other| other.algorithm),
            bytes,
        )
    }

    fn with(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// Whether this is the digest of these bytes.
    pub(crate) fn is_of(&self, bytes: &[u8]) -> bool {
        Self::with(self.algorithm, bytes) == *self
    }

    pub(crate) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hexadecimal digits without the algorithm. They are safe as a file name.
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes[..self.algorithm.bytes()])
    }

    /// The digest with these hexadecimal digits. Their number tells the algorithm.
    pub(crate) fn from_hex(digits: &str) -> Option<Self> {
        let mut algorithms = Algorithm::ALL.into_iter();
        let algorithm = algorithms.find(|it| it.bytes() * 2 == digits.len())?;
        format!("{}:{digits}", algorithm.name()).parse().ok()
    }

    /// The first twelve hexadecimal digits, for messages to people.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(12);
        hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (name, digits) = text
            .split_once(':')
            .ok_or_else(|| DigestError::NoAlgorithm(text.to_owned()))?;
        let mut algorithms = Algorithm::ALL.into_iter();
        let algorithm = algorithms
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| DigestError::Algorithm(name.to_owned()))?;
        let length = algorithm.bytes();
        let bad = || DigestError::Hex {
            text: text.to_owned(),
            algorithm: algorithm.name(),
            digits: length * 2,
        };
        if digits.bytes().any(|digit| digit.is_ascii_uppercase()) {
            return Err(bad());
        }
        let mut bytes = [0; LONGEST];
        hex::decode_to_slice(digits, &mut bytes[..length]).map_err(|_| bad())?;
        Ok(Self { algorithm, bytes })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes the digest of a stream.
#[derive(Clone)]
pub(crate) struct Hasher {
    algorithm: Algorithm,
    context: ring::digest::Context,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({})", self.algorithm.name())
    }
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            context: ring::digest::Context::new(algorithm.ring()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
    }

    pub(crate) fn finish(self) -> Digest {
        let found = self.context.finish();
        let mut bytes = [0; LONGEST];
        bytes[..found.as_ref().len()].copy_from_slice(found.as_ref());
        Digest {
            algorithm: self.algorithm,
            bytes,
        }
    }
}

/// Hashes everything that is read through it.
#[derive(Debug)]
pub(crate) struct HashingReader<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> HashingReader<R> {
    pub(crate) fn new(inner: R, algorithm: Algorithm) -> Self {
        Self {
            inner,
            hasher: Hasher::new(algorithm),
        }
    }

    /// The digest of all bytes that were read.
    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_bytes_agree() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        for algorithm in Algorithm::ALL {
            let mut reader = HashingReader::new(&b"abc"[..], algorithm);
            io::copy(&mut reader, &mut io::sink()).unwrap();
            let digest = reader.finish();
            assert!(digest.is_of(b"abc") && !digest.is_of(b"xyz"));
            assert_eq!(Digest::like(Some(digest), b"abc"), digest);
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(Digest::from_hex(&digest.hex()), Some(digest));
        }
        // As `printf abc | sha512sum` prints it.
        let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        assert!(sha512.parse::<Digest>().unwrap().is_of(b"abc"));
    }

    #[test]
    fn every_other_text_is_refused_with_its_reason() {
        let hex = |text: &str, algorithm, digits| DigestError::Hex {
            text: text.to_owned(),
            algorithm,
            digits,
        };
        let table = [
            ("e3b0", DigestError::NoAlgorithm("e3b0".into())),
            ("md5:00", DigestError::Algorithm("md5".into())),
            ("SHA256:00", DigestError::Algorithm("SHA256".into())),
            ("sha256:00", hex("sha256:00", "sha256", 64)),
            ("sha512:00", hex("sha512:00", "sha512", 128)),
            ("", DigestError::NoAlgorithm(String::new())),
        ];
        for (text, want) in table {
            assert_eq!(text.parse::<Digest>(), Err(want));
        }
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let slash = EMPTY.replace('e', "/");
        let longer = EMPTY.replace("sha256", "sha512");
        for (text, algorithm, digits) in [
            (upper, "sha256", 64),
            (slash, "sha256", 64),
            (longer, "sha512", 128),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(hex(&text, algorithm, digits)));
        }
        assert_eq!(Digest::from_hex("e3b0"), None);
    }
}
