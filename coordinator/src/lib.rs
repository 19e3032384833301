//! The coordinator: the shell around [`skyhook_fleet`].
//!
//! A line: [`watch`] streams feed one picture, the fleet's plan turns it into effects, its guard refuses any that would
//! break a safety rule, [`apply`] writes them.

pub mod agents;
pub mod apply;
pub mod config;
pub mod leadership;
pub mod probe;
pub mod publish;
pub mod role;
pub mod run;
pub mod uninstall;
pub mod watch;
