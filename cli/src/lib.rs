//! The plugin `kubectl skyhook`: looks into and steers what Skyhook does to the nodes of a cluster. It writes annotations
//! and labels of Nodes and Skyhooks, the batch state of Skyhooks, and the order to release a lease by force. It decides
//! nothing: the coordinator obeys what it writes.

mod agents;
pub mod args;
mod commands;
mod connect;
mod edit;
mod explain;
pub mod output;
mod patterns;
mod progress;
mod record;
pub mod session;
mod support;
#[cfg(test)]
mod testing;
mod validate;

pub use commands::run;
