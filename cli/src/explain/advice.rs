//! What helps against each reason for which a node stands still.

use skyhook_crds::lease::InterruptionLease;
use skyhook_crds::package::name_of;

/// Where the reason holds.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) skyhook: &'a str,
    pub(super) node: &'a str,
    pub(super) lease: Option<&'a InterruptionLease>,
}

impl Place<'_> {
    /// The package that the agent works on or has given up, or a word in its place.
    fn package(&self) -> String {
        let status = self.lease.and_then(|lease| lease.status.as_ref());
        let parked = status.and_then(|status| Some(status.parked.as_ref()?.package.as_str()));
        let current = status.and_then(|status| Some(name_of(status.package.as_ref()?)));
        parked.or(current).unwrap_or("PACKAGE").to_owned()
    }

    /// Whether the agent has begun. What it has not begun, nobody has to release by force.
    fn is_accepted(&self) -> bool {
        let status = self.lease.and_then(|lease| lease.status.as_ref());
        status.is_some_and(|status| status.phase.is_some())
    }

    fn agent(&self) -> Vec<String> {
        let Self {
            namespace, node, ..
        } = self;
        let pods = format!(
            "the agent's pod on the node: kubectl get pods -n {namespace} -o wide --field-selector spec.nodeName={node}"
        );
        let gone =
            format!("only if the machine will not come back: kubectl skyhook force-release {node}");
        [pods]
            .into_iter()
            .chain(self.is_accepted().then_some(gone))
            .collect()
    }

    fn failed(&self) -> [String; 2] {
        let Self {
            namespace,
            skyhook,
            node,
            ..
        } = self;
        let package = self.package();
        [
            format!(
                "what the steps wrote: kubectl skyhook package logs {package} -n {namespace} --skyhook {skyhook} --node {node}"
            ),
            format!(
                "try it again: kubectl skyhook package rerun {package} --skyhook {skyhook} --node {node}"
            ),
        ]
    }
}

/// What helps. Empty for a reason that goes away by itself.
pub(super) fn of(reason: &str, place: &Place<'_>) -> Vec<String> {
    let Place {
        namespace,
        skyhook,
        node,
        ..
    } = place;
    let one = |text: String| vec![text];
    match reason {
        "AgentNotResponding" | "AwaitingAgent" => place.agent(),
        "AgentTooOld" => one(format!(
            "the agents are updated by their DaemonSet: kubectl get daemonsets -n {namespace}"
        )),
        "AwaitingNode" | "NodeNotReturning" => vec![
            format!("what the node says: kubectl describe node {node}"),
            format!("only if the machine will not come back: kubectl skyhook force-release {node}"),
        ],
        "AwaitingDrain" | "Draining" | "DrainTimedOut" => one(format!(
            "the pods on the node: kubectl get pods -A -o wide --field-selector spec.nodeName={node}"
        )),
        "BudgetZero" => one(format!(
            "give it a budget above 0: kubectl edit skyhook {skyhook}"
        )),
        "DeploymentPolicyInvalid" => {
            one("what is wrong with the policy: kubectl skyhook validate -f FILE".to_owned())
        }
        "DeploymentPolicyNotFound" => {
            one("the policies that there are: kubectl get deploymentpolicies".to_owned())
        }
        "Disabled" => one(format!(
            "let it take part again: kubectl skyhook enable {skyhook}"
        )),
        "GaveUp" | "PackageErroring" => place.failed().into(),
        "InsufficientResources" => one(format!(
            "let the package request less: kubectl edit skyhook {skyhook}"
        )),
        "NewerVersion" => one(format!(
            "the versions of both sides: kubectl skyhook version -n {namespace}"
        )),
        "NodeIgnored" => one(format!(
            "let Skyhooks work on the node again: kubectl skyhook node unignore {node}"
        )),
        "NodeNotSupported" => one(format!(
            "leave the node out of spec.nodeSelectors: kubectl edit skyhook {skyhook}"
        )),
        "NodeStateMalformed" => one(format!(
            "let everything be applied again there: kubectl skyhook node reset {node} --skyhook {skyhook}"
        )),
        "Paused" => one(format!("let it go on: kubectl skyhook resume {skyhook}")),
        "RolloutStateRefused" => one(format!(
            "the state of the roll-out: kubectl get rolloutstate {skyhook} -o yaml"
        )),
        "RolloutStopped" => one(format!(
            "when the cause is gone, begin with the first batch again: kubectl skyhook deployment-policy reset {skyhook}"
        )),
        "TaintNotTolerable" => vec![
            format!("the taints of the node: kubectl describe node {node}"),
            format!("tolerate them in spec.additionalTolerations: kubectl edit skyhook {skyhook}"),
        ],
        _ => Vec::new(),
    }
}

/// Reasons that end without anybody, or that what the chain names next has to end.
pub(super) fn ends_by_itself(reason: &str) -> bool {
    const ALL: [&str; 14] = [
        "AutoTaintPending",
        "AwaitingInterrupt",
        "BatchUnderWay",
        "BudgetExhausted",
        "ClusterBudgetExhausted",
        "ControlPlane",
        "Deleted",
        "EarlierSkyhook",
        "HostReplaced",
        "NodeLeased",
        "Preparing",
        "ResultDoesNotMatch",
        "Settling",
        "",
    ];
    ALL.contains(&reason)
}

#[cfg(test)]
mod tests {
    use skyhook_fleet::plan::reason::ReasonCode;

    use super::*;

    /// Every word that the coordinator writes has something that helps, or needs nothing.
    #[test]
    fn every_reason_is_known() {
        let place = Place {
            namespace: "skyhook",
            skyhook: "s",
            node: "n",
            lease: None,
        };
        for code in [
            ReasonCode::AgentNotResponding,
            ReasonCode::AgentTooOld,
            ReasonCode::AutoTaintPending,
            ReasonCode::AwaitingAgent,
            ReasonCode::AwaitingDrain,
            ReasonCode::AwaitingInterrupt,
            ReasonCode::AwaitingNode,
            ReasonCode::BatchUnderWay,
            ReasonCode::BudgetExhausted,
            ReasonCode::BudgetZero,
            ReasonCode::ClusterBudgetExhausted,
            ReasonCode::ControlPlane,
            ReasonCode::Deleted,
            ReasonCode::DeploymentPolicyInvalid,
            ReasonCode::DeploymentPolicyNotFound,
            ReasonCode::Disabled,
            ReasonCode::DrainTimedOut,
            ReasonCode::Draining,
            ReasonCode::EarlierSkyhook,
            ReasonCode::GaveUp,
            ReasonCode::HostReplaced,
            ReasonCode::InsufficientResources,
            ReasonCode::NewerVersion,
            ReasonCode::NodeIgnored,
            ReasonCode::NodeLeased,
            ReasonCode::NodeNotReturning,
            ReasonCode::NodeNotSupported,
            ReasonCode::NodeStateMalformed,
            ReasonCode::PackageErroring,
            ReasonCode::Paused,
            ReasonCode::Preparing,
            ReasonCode::ResultDoesNotMatch,
            ReasonCode::RolloutStateRefused,
            ReasonCode::RolloutStopped,
            ReasonCode::Settling,
            ReasonCode::TaintNotTolerable,
        ] {
            let code = code.to_string();
            assert_ne!(
                of(&code, &place).is_empty(),
                !ends_by_itself(&code),
                "{code}"
            );
        }
    }
}
