//! The agent on real hosts: interrupts, deaths around them, faults of the host, and what published packages need. One
//! program, so that two of them run at a time.
#![expect(clippy::disallowed_methods, reason = "tests are shell")]

mod attempts;
mod deletions;
mod faults;
mod interrupts;
mod packages;
mod paths;
mod power;
mod registries;
mod rollout;
mod uninstall;
