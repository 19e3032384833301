//! The crate from outside: against Debian's docker-registry with images made by umoci and skopeo,
//! and against a registry that lies.

#![expect(
    clippy::disallowed_methods,
    reason = "tests build images and look at what is on disk"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::too_many_lines, reason = "tables of cases")]

mod access;
mod bombs;
mod host;
mod hostile;
mod image;
mod keeping;
mod liar;
mod lying;
mod real;
mod servers;
mod support;
mod trust;
mod unpacking;
