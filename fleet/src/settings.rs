//! Settings of the coordinator that decisions depend on.

use std::time::Duration;

use crate::taints::RuntimeTaint;

/// The settings. The coordinator program checks them once, at its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Namespace of the installation.
    pub namespace: String,
    /// How many nodes may be worked on at the same time over all Skyhooks. If unset, only the Skyhooks' own budgets
    /// apply.
    pub max_concurrent_nodes: Option<usize>,
    /// How long a granted lease may stay without being accepted by the node's agent.
    pub accept_timeout: Duration,
    /// How long a node is left alone after its agent did not respond.
    pub agent_backoff: Duration,
    /// How long a node is left alone after its drain ran out of time.
    pub drain_cool_down: Duration,
    /// The node that the coordinator itself runs on. This node is the last to get a lease.
    pub node_name: Option<String>,
    /// How long a node may be not Ready while work on it is under way, before its Skyhook says that it does not return.
    pub node_return_timeout: Duration,
    /// Apply the packages of a node again after a reboot that Skyhook did not ask for.
    pub reapply_on_reboot: bool,
    /// The taint that keeps pods off a node until every runtimeRequired Skyhook is complete there.
    pub runtime_taint: RuntimeTaint,
    /// How many writes may be under way at once.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        Self {
            namespace: "skyhook".to_owned(),
            max_concurrent_nodes: None,
            accept_timeout: 2 * MINUTE,
            agent_backoff: 5 * MINUTE,
            drain_cool_down: 10 * MINUTE,
            node_name: None,
            node_return_timeout: 15 * MINUTE,
            reapply_on_reboot: false,
            runtime_taint: RuntimeTaint::default(),
            max_in_flight: 16,
        }
    }
}
