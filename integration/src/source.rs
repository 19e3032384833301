//! Where the checkout is. Clones of it may share a target directory, so what was compiled in can name another one.

use std::path::{Path, PathBuf};

/// Folders of package sources.
pub const PACKAGES: [&str; 2] = ["examples/packages", "integration/fixtures/packages"];

/// `path` in the checkout: `SKYHOOK_SOURCE` (set by the Makefile), else the one that cargo runs this from, else the one
/// that this was built from.
#[must_use]
pub fn source(path: &str) -> PathBuf {
    let package = || {
        let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let package = package.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned());
        package.parent().map(Path::to_owned).unwrap_or_default()
    };
    std::env::var_os("SKYHOOK_SOURCE")
        .map_or_else(package, PathBuf::from)
        .join(path)
}
