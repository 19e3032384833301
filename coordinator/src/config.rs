//! Flags, checked once.

use std::time::Duration;

use clap::Parser;
use skyhook_fleet::taints::RuntimeTaint;

/// Grants interruption leases for the nodes of a cluster and keeps the record of what is installed on them.
#[derive(Parser, Clone, Debug)]
#[command(name = "skyhook-coordinator", version)]
pub struct Settings {
    /// Namespace of the installation: revisions and events live there.
    #[arg(long, env = "NAMESPACE", default_value = "skyhook")]
    pub namespace: String,

    /// Name of this replica, for grants and leader election.
    #[arg(long, env = "POD_NAME", default_value = "skyhook-coordinator")]
    pub identity: String,

    /// Nodes that may be worked on at once over all Skyhooks, as a count; unset leaves it to their budgets.
    #[arg(long, env = "MAX_CONCURRENT_NODES", value_parser = at_least_one)]
    pub max_concurrent_nodes: Option<usize>,

    /// How long a granted lease may stay without being accepted by the node's agent.
    #[arg(long, env = "ACCEPT_TIMEOUT", default_value = "2m", value_parser = some_time)]
    pub accept_timeout: Duration,

    /// How long a node is left alone after its agent did not respond.
    #[arg(long, env = "AGENT_BACKOFF", default_value = "5m", value_parser = duration)]
    pub agent_backoff: Duration,

    /// How long a node is left alone after its drain ran out of time.
    #[arg(long, env = "DRAIN_COOL_DOWN", default_value = "10m", value_parser = duration)]
    pub drain_cool_down: Duration,

    /// The node that this replica runs on: it is taken last.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: Option<String>,

    /// How long a node may stay away in mid-run before its Skyhook says that it does not return.
    #[arg(long, env = "NODE_RETURN_TIMEOUT", default_value = "15m", value_parser = duration)]
    pub node_return_timeout: Duration,

    /// Bring a node to its packages again after a reboot that Skyhook did not ask for.
    #[arg(long, env = "REAPPLY_ON_REBOOT", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub reapply_on_reboot: bool,

    /// Taint, as key=value:effect, that keeps pods off a node until every runtimeRequired Skyhook is complete there.
    #[arg(long, env = "RUNTIME_REQUIRED_TAINT", default_value_t)]
    pub runtime_required_taint: RuntimeTaint,

    /// Stand for election among the replicas; without it, this one always leads.
    #[arg(long, env = "LEADER_ELECTION", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub leader_election: bool,

    /// Role that is kept to the secrets and config maps that Skyhooks refer to; unset keeps none.
    #[arg(long, env = "REFERENCES_ROLE")]
    pub references_role: Option<String>,

    /// DaemonSet of the agents: Skyhooks say why when its pods are refused.
    #[arg(long, env = "AGENT_DAEMON_SET")]
    pub agent_daemon_set: Option<String>,

    /// Requests in flight at once.
    #[arg(long, env = "MAX_IN_FLIGHT", default_value = "16", value_parser = at_least_one)]
    pub max_in_flight: usize,

    /// Address for /readyz and /livez; unset serves none.
    #[arg(long, env = "PROBE_ADDRESS")]
    pub probe_address: Option<std::net::SocketAddr>,

    /// Address for /metrics; unset serves none.
    #[arg(long, env = "METRICS_ADDRESS")]
    pub metrics_address: Option<std::net::SocketAddr>,

    /// Serve what NodeWright measures under its names as well.
    #[arg(long, env = "NODEWRIGHT_METRICS", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub nodewright_metrics: bool,
}

impl Settings {
    /// What decisions need of it.
    #[must_use]
    pub fn fleet(&self) -> skyhook_fleet::settings::Settings {
        skyhook_fleet::settings::Settings {
            namespace: self.namespace.clone(),
            max_concurrent_nodes: self.max_concurrent_nodes,
            accept_timeout: self.accept_timeout,
            agent_backoff: self.agent_backoff,
            drain_cool_down: self.drain_cool_down,
            node_name: self.node_name.clone(),
            node_return_timeout: self.node_return_timeout,
            reapply_on_reboot: self.reapply_on_reboot,
            runtime_taint: self.runtime_required_taint.clone(),
            max_in_flight: self.max_in_flight,
        }
    }
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    skyhook_crds::duration::GoDuration(text.to_owned())
        .value()
        .map_err(|e| e.to_string())
}

fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        time => Ok(time),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be 1 or more".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("it must be a number".to_owned()),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::parse_from(["skyhook-coordinator"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_is_what_decisions_take_for_granted() {
        let fleet = Settings::default().fleet();
        let assumed = skyhook_fleet::settings::Settings::default();
        assert_eq!(fleet, assumed);
    }

    #[test]
    fn settings_with_which_nothing_would_ever_happen_are_refused() {
        for (flag, problem) in [
            ("--max-in-flight=0", "it must be 1 or more"),
            ("--max-concurrent-nodes=0", "it must be 1 or more"),
            ("--max-in-flight=many", "it must be a number"),
            ("--accept-timeout=0s", "it must be longer than nothing"),
            (
                "--runtime-required-taint=k=v",
                "--runtime-required-taint must have the form key=value:effect or key:effect",
            ),
        ] {
            let refused = Settings::try_parse_from(["skyhook-coordinator", flag]).unwrap_err();
            assert!(refused.to_string().contains(problem), "{refused}");
        }
    }
}
