//! The names in a layer: what they mean, and which of them are refused. There is no I/O in this file.
//!
//! The names in a layer are relative to the root of the image. A leading `/` and the component `.` are ignored, and `..`
//! goes up by one component, but not above the root, as container runtimes do. A name that leads out of the package's
//! directory is a name like any other outside of it, and is not looked at any further.

use super::EntryError;

/// The only directory that is taken from an image.
pub(crate) const PACKAGE_DIR: &[u8] = b"skyhook-package";

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What an entry of a layer means for the package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The entry does not belong to the package. It is skipped.
    Outside,
    /// The entry has this path below the package's directory, with `/` between the components. The path of the
    /// package's directory itself is empty.
    Inside(Vec<u8>),
    /// A whiteout: the lower layers' entry at this path is removed. An empty path means the whole package.
    Whiteout(Vec<u8>),
    /// An opaque directory: the lower layers' entries below this path are removed.
    Opaque(Vec<u8>),
}

/// Reads the name of an entry.
pub(crate) fn place(name: &[u8]) -> Result<Meaning, EntryError> {
    let parts = components(name);
    let Some((first, rest)) = parts.split_first() else {
        return Ok(Meaning::Outside);
    };
    if *first != PACKAGE_DIR {
        return Ok(at_image_root(first, rest.is_empty()));
    }
    if rest.iter().any(|part| part.contains(&0)) {
        return Err(EntryError::Nul);
    }
    if rest.iter().any(|part| part.len() > 255) {
        return Err(EntryError::ComponentTooLong);
    }
    let Some((last, parents)) = rest.split_last() else {
        return Ok(Meaning::Inside(Vec::new()));
    };
    if parents.iter().any(|part| part.starts_with(WHITEOUT)) {
        return Err(EntryError::BelowWhiteout);
    }
    if *last == OPAQUE {
        return Ok(Meaning::Opaque(parents.join(&b'/')));
    }
    if last.starts_with(WHITEOUT_META) {
        return Ok(Meaning::Outside);
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(Meaning::Inside(rest.join(&b'/'))),
        Some(b"" | b"." | b"..") => Err(EntryError::EmptyWhiteout),
        Some(hidden) => {
            let mut parts = parents.to_vec();
            parts.push(hidden);
            Ok(Meaning::Whiteout(parts.join(&b'/')))
        }
    }
}

/// An entry in the root of the image. Only two of them concern the package: whiteouts that remove all of it.
fn at_image_root(first: &[u8], alone: bool) -> Meaning {
    let hides_all = first == OPAQUE || first.strip_prefix(WHITEOUT) == Some(PACKAGE_DIR);
    if alone && hides_all {
        Meaning::Whiteout(Vec::new())
    } else {
        Meaning::Outside
    }
}

/// The path below the package's directory that a hard link points to. `None` if it points to something else.
pub(crate) fn link_target(name: &[u8]) -> Result<Option<Vec<u8>>, EntryError> {
    match place(name)? {
        Meaning::Inside(path) if !path.is_empty() => Ok(Some(path)),
        Meaning::Inside(_) | Meaning::Outside | Meaning::Whiteout(_) | Meaning::Opaque(_) => {
            Ok(None)
        }
    }
}

/// The components of a name, from the root of the image on.
fn components(name: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_placed() {
        let inside = |path: &str| Ok(Meaning::Inside(path.into()));
        let whiteout = |path: &str| Ok(Meaning::Whiteout(path.into()));
        let opaque = |path: &str| Ok(Meaning::Opaque(path.into()));
        let table = [
            ("", Ok(Meaning::Outside)),
            ("./", Ok(Meaning::Outside)),
            ("bin/sh", Ok(Meaning::Outside)),
            ("skyhook-package-2/x", Ok(Meaning::Outside)),
            ("skyhook-package", inside("")),
            ("./skyhook-package/", inside("")),
            ("/skyhook-package//a/./b", inside("a/b")),
            ("skyhook-package/a/.wh.b", whiteout("a/b")),
            (".wh.skyhook-package", whiteout("")),
            (".wh..wh..opq", whiteout("")),
            ("bin/.wh..wh..opq", Ok(Meaning::Outside)),
            (".wh.bin", Ok(Meaning::Outside)),
            ("skyhook-package/.wh..wh..opq", opaque("")),
            ("skyhook-package/a/.wh..wh..opq", opaque("a")),
            ("skyhook-package/.wh..wh.plnk", Ok(Meaning::Outside)),
            ("skyhook-package/.wh.", Err(EntryError::EmptyWhiteout)),
            ("skyhook-package/.wh...", Err(EntryError::EmptyWhiteout)),
            ("skyhook-package/.wh.a/b", Err(EntryError::BelowWhiteout)),
            ("skyhook-package/../etc/passwd", Ok(Meaning::Outside)),
            ("../../etc/passwd", Ok(Meaning::Outside)),
            ("skyhook-package/..", Ok(Meaning::Outside)),
            ("skyhook-package/.", inside("")),
            ("skyhook-package/a/..", inside("")),
            ("bin/../skyhook-package/x", inside("x")),
            ("../skyhook-package/a/../b", inside("b")),
            ("skyhook-package/../../skyhook-package/b", inside("b")),
            ("skyhook-package/a/../.wh.b", whiteout("b")),
            ("bin/../.wh.skyhook-package", whiteout("")),
            ("etc/a\0b", Ok(Meaning::Outside)),
            ("skyhook-package/a\0b", Err(EntryError::Nul)),
        ];
        for (name, want) in table {
            assert_eq!(place(name.as_bytes()), want, "{name:?}");
        }
        let long = format!("skyhook-package/{}", "x".repeat(256));
        assert_eq!(place(long.as_bytes()), Err(EntryError::ComponentTooLong));
        let outside = format!("var/{}", "x".repeat(256));
        assert_eq!(place(outside.as_bytes()), Ok(Meaning::Outside));
    }

    #[test]
    fn hard_links_point_into_the_package() {
        for (target, want) in [
            ("/skyhook-package/a", Some("a")),
            ("skyhook-package/b/../a", Some("a")),
            ("skyhook-package/../a", None),
            ("etc/passwd", None),
            ("skyhook-package", None),
            ("skyhook-package/.wh.a", None),
            ("", None),
        ] {
            let want = want.map(|path| path.as_bytes().to_vec());
            assert_eq!(link_target(target.as_bytes()), Ok(want), "{target}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_outside(name in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut full = b"skyhook-package/".to_vec();
            full.extend(name);
            if let Ok(Meaning::Inside(path) | Meaning::Whiteout(path) | Meaning::Opaque(path)) = place(&full) {
                prop_assert!(!path.starts_with(b"/") && !path.contains(&0));
                prop_assert!(path.split(|&b| b == b'/').all(|part| part != b".." && part != b"."));
            }
        }
    }
}
