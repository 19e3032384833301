//! The node agent: it installs the packages of a revision on one host. A lease names the revision. The agent knows
//! nothing about budgets or other nodes.
//!
//! [`machine`] makes all decisions and has no side effects. [`run`] sends events to it and performs its effects, with
//! the help of [`host`] (processes, systemd), [`prepare`] (files of a package on the host) and [`lease`] (the
//! Kubernetes API). [`supervise`] is the process that runs one step. [`look`] shows what is on the host.

pub mod config;
pub mod host;
pub mod image;
pub mod journal;
pub mod lease;
pub mod local;
pub mod located;
pub mod logs;
pub mod look;
pub mod machine;
pub mod prepare;
pub mod report;
pub mod run;
pub mod secret;
pub mod supervise;
mod text;
pub mod validate;
