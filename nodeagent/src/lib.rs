//! The node agent: it brings one host to the revision that a lease names. It knows nothing of budgets or other nodes.
//!
//! [`machine`] decides and is pure; [`run`] feeds it and performs what it says, through [`host`] (processes, systemd),
//! [`prepare`] (files of a package on the host) and [`lease`] (the API). [`supervise`] is the process that runs one step.

pub mod config;
pub mod host;
pub mod image;
pub mod journal;
pub mod lease;
pub mod local;
pub mod logs;
pub mod machine;
pub mod prepare;
pub mod report;
pub mod run;
pub mod secret;
pub mod supervise;
mod text;
pub mod validate;
