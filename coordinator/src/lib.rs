//! The coordinator: decides which nodes may be interrupted now, and keeps the record.
//!
//! A line: [`watch`] streams feed one [`index`], [`plan`] turns the picture into effects, [`guard`] refuses any that
//! would break a safety rule, [`apply`] writes them. `plan` is pure: no clock, no I/O.

pub mod apply;
pub mod cleanup;
pub mod config;
pub mod effect;
pub mod events;
pub mod facts;
pub mod guard;
pub mod index;
pub mod keeper;
pub mod leadership;
pub mod plan;
pub mod pods;
pub mod probe;
pub mod publish;
pub mod queue;
pub mod references;
pub mod run;
pub mod session;
pub mod watch;

#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
