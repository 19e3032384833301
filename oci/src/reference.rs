//! Image references, and the reference that the fields of a package make.
//!
//! A text is parsed by the grammar of the OCI distribution specification (registry with port, path, tag, digest), and
//! may be a short name of Docker Hub. When a reference has a tag and a digest, the digest decides which image is
//! pulled.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// A parsed image reference, complete: registry, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text, or the image fields of a package, do not make a valid reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("image {image:?} is not a valid reference: {reason}")]
    Grammar { image: String, reason: String },
    #[error("image {image:?} has an invalid digest")]
    Digest { image: String, source: DigestError },
    #[error(
        "image {image:?} carries tag {tag:?}, but version is {version:?}: \
         remove the tag or make both equal"
    )]
    TagIsNotVersion {
        image: String,
        tag: String,
        version: String,
    },
    #[error(
        "version {version:?} cannot be an image tag (letters, digits, '_', '.', '-', at most 128)"
    )]
    VersionIsNoTag { version: String },
    #[error("containerSHA {text:?} is not a digest")]
    ContainerSha { text: String, source: DigestError },
    #[error("image {image:?} is pinned to {in_image}, but containerSHA is {container_sha}")]
    TwoDigests {
        image: String,
        in_image: Box<Digest>,
        container_sha: Box<Digest>,
    },
}

impl ReferenceError {
    /// A short name of the error, for queries in logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Grammar { .. } => "reference_grammar",
            Self::Digest { .. } => "reference_digest",
            Self::TagIsNotVersion { .. } => "tag_is_not_version",
            Self::VersionIsNoTag { .. } => "version_is_no_tag",
            Self::ContainerSha { .. } => "container_sha",
            Self::TwoDigests { .. } => "two_digests",
        }
    }
}

impl Reference {
    /// Makes the reference of a package from its fields: `image` (it may have a registry port, a tag or a digest),
    /// `version`, and `containerSHA` if it is set.
    ///
    /// The tag is the version, with `_` in place of `+`. `image` may have the same tag; a different tag is an error.
    /// If there is a digest, it decides which image is pulled, and the tag is only shown to people.
    pub fn for_package(
        image: &str,
        version: &str,
        container_sha: Option<&str>,
    ) -> Result<Self, ReferenceError> {
        let (mut reference, given_tag) = parse(image)?;
        let tag = version.replace('+', "_");
        if !is_tag(&tag) {
            return Err(ReferenceError::VersionIsNoTag {
                version: version.to_owned(),
            });
        }
        if let Some(given) = given_tag
            && given != tag
        {
            let (image, version) = (image.to_owned(), version.to_owned());
            return Err(ReferenceError::TagIsNotVersion {
                image,
                tag: given,
                version,
            });
        }
        reference.tag = Some(tag);
        let pinned = match container_sha.filter(|text| !text.is_empty()) {
            None => None,
            Some(text) => {
                Some(
                    text.parse::<Digest>()
                        .map_err(|source| ReferenceError::ContainerSha {
                            text: text.to_owned(),
                            source,
                        })?,
                )
            }
        };
        match (reference.digest, pinned) {
            (Some(in_image), Some(container_sha)) if in_image != container_sha => {
                let image = image.to_owned();
                return Err(ReferenceError::TwoDigests {
                    image,
                    in_image: Box::new(in_image),
                    container_sha: Box::new(container_sha),
                });
            }
            (in_image, pinned) => reference.digest = pinned.or(in_image),
        }
        Ok(reference)
    }

    /// Registry host as it is written, with its port: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path inside the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `registry/repository`. Pull secrets and credential providers are chosen by this name.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What is requested from the registry: the digest if there is one, else the tag.
    pub(crate) fn manifest_selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Parses a reference. If the text has neither a tag nor a digest, the tag is `latest`.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (mut reference, tag) = parse(text)?;
        reference.tag = tag;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        Ok(reference)
    }
}

/// Returns the reference without its tag, and the tag in the text, if there is one.
fn parse(image: &str) -> Result<(Reference, Option<String>), ReferenceError> {
    let grammar = |reason: &str| ReferenceError::Grammar {
        image: image.to_owned(),
        reason: reason.to_owned(),
    };
    let (named, digest) = match image.split_once('@') {
        None => (image, None),
        Some((named, text)) => {
            let digest = text.parse();
            let wrong = |source| ReferenceError::Digest {
                image: image.to_owned(),
                source,
            };
            (named, Some(digest.map_err(wrong)?))
        }
    };
    let path_start = named.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match named[path_start..].rfind(':') {
        None => (named, None),
        Some(colon) => {
            let tag = &named[path_start + colon + 1..];
            if !is_tag(tag) {
                return Err(grammar(
                    "the tag is not letters, digits, '_', '.', '-', at most 128",
                ));
            }
            (&named[..path_start + colon], Some(tag.to_owned()))
        }
    };
    let (registry, repository) = split_registry(name);
    if !is_registry(registry) {
        return Err(grammar(
            "the registry is not a host name or address with an optional port",
        ));
    }
    if !repository.split('/').all(is_path_component) {
        return Err(grammar(
            "the repository must be lower-case letters and digits in parts separated by '/', with \
             single '.', '_', '__' or '-' inside a part",
        ));
    }
    let repository = match (registry, repository.contains('/')) {
        ("docker.io", false) => format!("library/{repository}"),
        _ => repository.to_owned(),
    };
    if repository.len() > 255 {
        return Err(grammar("the repository has more than 255 characters"));
    }
    let registry = registry.to_owned();
    Ok((
        Reference {
            registry,
            repository,
            tag: None,
            digest,
        },
        tag,
    ))
}

/// Splits a name into registry and repository. The part before the first slash is the registry if it is `localhost`,
/// or if it has a dot, a colon or an upper-case letter. Otherwise the registry is Docker Hub.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io" | "registry-1.docker.io", rest)) => ("docker.io", rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => ("docker.io", name),
    }
}

fn is_registry(text: &str) -> bool {
    let is_port = |port: &str| {
        port.len() <= 5 && port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit())
    };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            return rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_label = |label: &str| {
        let ends = label.starts_with('-') || label.ends_with('-');
        !label.is_empty()
            && !ends
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.len() <= 253 && host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_path_component(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let ends = |end: Option<&u8>| end.is_some_and(|&byte| word(byte));
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.split(|&byte| word(byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= 128
        && bytes.first().is_some_and(|&first| word(first))
        && bytes
            .iter()
            .all(|&byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests;
