//! Package versions as Go's `golang.org/x/mod/semver` reads them: an optional `v`, shorthand `1` and `1.2`,
//! precedence without build metadata. The semver crate does the comparing.

use std::cmp::Ordering;

use semver::Version;

/// Not a semantic version.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a semantic version (write for example 1.2.3, v1.2 or 1.2.3-rc.1)")]
pub struct InvalidVersion(pub String);

/// Reads a version, filling in what the shorthand leaves out. Build metadata is kept but never compared.
pub fn parse(text: &str) -> Result<Version, InvalidVersion> {
    let invalid = || InvalidVersion(text.to_owned());
    let bare = text.strip_prefix('v').unwrap_or(text);
    let core = bare.find(['-', '+']).map_or(bare, |at| &bare[..at]);
    let filled = match core.split('.').count() {
        // x/mod takes no pre-release or build after a shorthand.
        1 | 2 if core.len() != bare.len() => return Err(invalid()),
        1 => format!("{core}.0.0"),
        2 => format!("{core}.0"),
        _ => bare.to_owned(),
    };
    Version::parse(&filled).map_err(|_| invalid())
}

/// Compares by precedence: `1.0.0+a` and `1.0.0+b` are equal, as are `1.2` and `1.2.0`.
pub fn compare(a: &str, b: &str) -> Result<Ordering, InvalidVersion> {
    Ok(parse(a)?.cmp_precedence(&parse(b)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_users_write_is_read() {
        for (text, ok) in [
            ("1.2.3", true),
            ("v1.2.3", true),
            ("1", true),
            ("1.2", true),
            ("2024.7.7-test", true),
            ("1.0.0+build", true),
            ("1.2-rc1", false),
            ("01.2.3", false),
            ("1.2.3.4", false),
            ("", false),
            ("latest", false),
            ("vv1", false),
        ] {
            assert_eq!(parse(text).is_ok(), ok, "{text:?}");
        }
    }

    #[test]
    fn precedence_ignores_build_metadata() {
        for (a, b, want) in [
            ("1.2.3", "1.2.4", Ordering::Less),
            ("1.10.0", "1.9.0", Ordering::Greater),
            ("1.0.0", "1.0.0+b", Ordering::Equal),
            ("1.2", "1.2.0", Ordering::Equal),
            ("1.0.0-rc.1", "1.0.0", Ordering::Less),
        ] {
            assert_eq!(compare(a, b), Ok(want), "{a} and {b}");
        }
    }
}
