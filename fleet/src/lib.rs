//! The fleet: which nodes may be interrupted now, and what to write next. Pure: no client, no clock, no files.
//!
//! Changes feed one [`index`], [`plan`] turns the picture into effects, [`guard`] refuses any that would break a safety
//! rule, and [`session`] keeps book of what is under way. The coordinator watches, feeds and writes.

pub mod clocks;
pub mod effect;
pub mod events;
pub mod facts;
pub mod guard;
pub mod index;
pub mod inflight;
pub mod outcome;
pub mod picture;
pub mod plan;
pub mod pods;
pub mod queue;
pub mod references;
pub mod repeats;
pub mod session;
pub mod settings;
pub mod window;

#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
