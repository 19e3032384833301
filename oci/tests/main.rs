//! The crate from outside: against Debian's docker-registry with images made by umoci and skopeo,
//! and against a registry that lies.

#![expect(
    clippy::disallowed_methods,
    reason = "tests build images and look at what is on disk"
)]

mod access;
mod host;
mod hostile;
mod image;
mod keeping;
mod liar;
mod lying;
mod real;
mod support;
mod unpacking;
