//! The `image` of a package, split into repository, tag and digest.
//!
//! Whether a registry could have such a repository is the OCI client's to say. NVIDIA Skyhook cuts at the
//! first colon and so loses registry ports; here a tag is what follows the first colon after the last slash.

/// An image split into its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageParts<'a> {
    /// Registry and path, without tag or digest.
    pub repository: &'a str,
    pub tag: Option<&'a str>,
    /// `sha256:…`, without the `@`.
    pub digest: Option<&'a str>,
}

/// Splits an image reference.
#[must_use]
pub fn split(image: &str) -> ImageParts<'_> {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[path..].find(':') {
        Some(colon) => ImageParts {
            repository: &name[..path + colon],
            tag: Some(&name[path + colon + 1..]),
            digest,
        },
        None => ImageParts {
            repository: name,
            tag: None,
            digest,
        },
    }
}

/// True for what may be an image: it names a repository without spaces, and a digest is one.
#[must_use]
pub fn is_valid(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    !name.is_empty()
        && !name.starts_with([':', '/'])
        && !name.contains([' ', '\t', '\r', '\n'])
        && digest.is_none_or(is_digest)
}

/// True for `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_digests_survive() {
        for (image, repository, tag, digest) in [
            ("ghcr.io/a/b", "ghcr.io/a/b", None, None),
            ("ghcr.io/a/b:1.0", "ghcr.io/a/b", Some("1.0"), None),
            ("localhost:5000/x", "localhost:5000/x", None, None),
            ("localhost:5000/x:1", "localhost:5000/x", Some("1"), None),
            ("r/x@sha256:ab", "r/x", None, Some("sha256:ab")),
            ("r:1/x:2@sha256:ab", "r:1/x", Some("2"), Some("sha256:ab")),
            ("busybox:latest", "busybox", Some("latest"), None),
            ("r/x:1:2", "r/x", Some("1:2"), None),
        ] {
            assert_eq!(
                split(image),
                ImageParts {
                    repository,
                    tag,
                    digest
                },
                "{image}"
            );
        }
    }
}
