//! Tests of the public API: with Debian's docker-registry and images that umoci and skopeo made, and with a registry
//! that sends wrong answers.

#![expect(
    clippy::disallowed_methods,
    reason = "tests build images and look at what is on disk"
)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::too_many_lines, reason = "tables of cases")]

mod access;
mod bombs;
mod builders;
mod certificates;
mod ending;
mod host;
mod hostile;
mod image;
mod keeping;
mod layers;
mod liar;
mod lying;
mod node;
mod published;
mod real;
mod resuming;
mod room;
mod servers;
mod support;
mod tls;
mod trust;
mod unpacking;
