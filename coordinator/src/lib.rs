//! The coordinator: the shell around [`skyhook_fleet`].
//!
//! The streams of [`watch`] feed one picture. The fleet's plan turns the picture into effects. Its guard refuses
//! effects that would break a safety rule. [`apply`] writes the others.

pub mod agents;
pub mod apply;
pub mod config;
pub mod debounce;
pub mod leadership;
pub mod metrics;
pub mod probe;
pub mod publish;
pub mod report;
pub mod role;
pub mod run;
pub mod server;
pub mod uninstall;
pub mod watch;
