//! What helps against each reason for which a node stands still.

use skyhook_crds::lease::{BlockCause, InterruptionLease};
use skyhook_crds::package::name_of;

use super::failure::{Failure, Kind};

/// Where the reason holds.
pub(super) struct Place<'a> {
    pub(super) namespace: &'a str,
    pub(super) skyhook: &'a str,
    pub(super) node: &'a str,
    pub(super) lease: Option<&'a InterruptionLease>,
}

impl Place<'_> {
    /// The package that has failed: the one that the message names, or that the agent works on or has given up.
    fn package(&self, failure: Option<&Failure<'_>>) -> String {
        let status = self.lease.and_then(|lease| lease.status.as_ref());
        let parked = status.and_then(|status| Some(status.parked.as_ref()?.package.as_str()));
        let current = status.and_then(|status| Some(name_of(status.package.as_ref()?)));
        let named = failure.map(|failure| failure.package);
        let found = named.or(parked).or(current);
        found.unwrap_or("PACKAGE").to_owned()
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

    /// What helps against a failure, by what has failed.
    fn failed(&self, message: &str) -> Vec<String> {
        let Self {
            namespace,
            skyhook,
            node,
            ..
        } = self;
        let failure = Failure::of(message);
        let package = self.package(failure.as_ref());
        let edit = format!("kubectl edit skyhook {skyhook}");
        let rerun =
            format!("kubectl skyhook package rerun {package} --skyhook {skyhook} --node {node}");
        let again = format!("try it again: {rerun}");
        match failure.map_or(Kind::Step, |failure| failure.kind()) {
            Kind::Image => vec![
                format!("correct the image or the version of package {package}: {edit}"),
                format!(
                    "the pull secrets that there are: kubectl get secrets -n {namespace} --field-selector \
                     type=kubernetes.io/dockerconfigjson"
                ),
            ],
            Kind::Env => vec![
                format!(
                    "what there is in the namespace: kubectl get secrets,configmaps -n {namespace}"
                ),
                format!("correct the env of package {package}: {edit}"),
            ],
            Kind::Spec => vec![format!("correct package {package}: {edit}")],
            Kind::Interrupt => vec![
                format!("correct the interrupt of package {package}: {edit}"),
                format!("try it again: {rerun} --stage interrupt"),
            ],
            Kind::Step => vec![
                format!(
                    "what the steps wrote: kubectl skyhook package logs {package} -n {namespace} --skyhook {skyhook} --node \
                     {node}"
                ),
                again,
            ],
        }
    }

    /// What helps against pods that do not leave.
    fn drain(&self) -> Vec<String> {
        let Self { skyhook, node, .. } = self;
        let mut help = vec![format!(
            "the pods on the node: kubectl get pods -A -o wide --field-selector spec.nodeName={node}"
        )];
        let blockers = self
            .lease
            .iter()
            .flat_map(|lease| &lease.spec.drain.blockers);
        let edit = |what: &str| format!("{what}: kubectl edit skyhook {skyhook}");
        for blocker in blockers {
            let line = match blocker.cause {
                Some(BlockCause::PodDisruptionBudget) => {
                    let namespace = blocker.pod.split('/').next().unwrap_or_default();
                    format!(
                        "the budgets of such pods: kubectl get poddisruptionbudgets -n {namespace}"
                    )
                }
                Some(BlockCause::UnmanagedPod) => edit(
                    "let the drain delete pods that nothing makes anew, with spec.drain.force: true",
                ),
                Some(BlockCause::EmptyDirData) => edit(
                    "let the drain delete pods with an emptyDir, with spec.drain.deleteEmptyDirData: true",
                ),
                Some(BlockCause::NonInterruptLabels) => {
                    edit("such pods are waited for because of spec.podNonInterruptLabels")
                }
                Some(BlockCause::Unknown) | None => continue,
            };
            if !help.contains(&line) {
                help.push(line);
            }
        }
        help
    }
}

/// What helps. Empty for a reason that goes away by itself.
pub(super) fn of(reason: &str, message: &str, place: &Place<'_>) -> Vec<String> {
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
        "AwaitingDrain" | "Draining" | "DrainTimedOut" => place.drain(),
        "BudgetZero" => one(format!(
            "give it a budget above 0: kubectl edit skyhook {skyhook}"
        )),
        "DeploymentPolicyInvalid" => {
            one("what is wrong with the policy: kubectl skyhook validate -f FILE".to_owned())
        }
        "DeploymentPolicyNotFound" => {
            one("the policies that there are: kubectl get deploymentpolicies".to_owned())
        }
        "AgentsRefused" => one(format!(
            "what the API server says: kubectl get events -n {namespace} --field-selector reason=FailedCreate"
        )),
        "DependencyUninstalled" => one(format!(
            "let the dependency stay, or remove what depends on it: kubectl edit skyhook {skyhook}"
        )),
        "Invalid" => one(format!("correct it: kubectl edit skyhook {skyhook}")),
        "Disabled" => one(format!(
            "let it take part again: kubectl skyhook enable {skyhook}"
        )),
        "GaveUp" | "PackageErroring" => place.failed(message),
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
        "RolloutStateRefused" => vec![
            format!("the state of the roll-out: kubectl get rolloutstate {skyhook} -o yaml"),
            format!(
                "what the coordinator says of it: kubectl logs -n {namespace} -l control-plane=controller-manager --tail 50"
            ),
        ],
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
    #[expect(clippy::too_many_lines, reason = "a table")]
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
            ReasonCode::DependencyUninstalled,
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
            // A new word does not compile before it has a row above.
            match code {
                ReasonCode::AgentNotResponding
                | ReasonCode::AgentTooOld
                | ReasonCode::AutoTaintPending
                | ReasonCode::AwaitingAgent
                | ReasonCode::AwaitingDrain
                | ReasonCode::AwaitingInterrupt
                | ReasonCode::AwaitingNode
                | ReasonCode::BatchUnderWay
                | ReasonCode::BudgetExhausted
                | ReasonCode::BudgetZero
                | ReasonCode::ClusterBudgetExhausted
                | ReasonCode::ControlPlane
                | ReasonCode::Deleted
                | ReasonCode::DependencyUninstalled
                | ReasonCode::DeploymentPolicyInvalid
                | ReasonCode::DeploymentPolicyNotFound
                | ReasonCode::Disabled
                | ReasonCode::DrainTimedOut
                | ReasonCode::Draining
                | ReasonCode::EarlierSkyhook
                | ReasonCode::GaveUp
                | ReasonCode::HostReplaced
                | ReasonCode::InsufficientResources
                | ReasonCode::NewerVersion
                | ReasonCode::NodeIgnored
                | ReasonCode::NodeLeased
                | ReasonCode::NodeNotReturning
                | ReasonCode::NodeNotSupported
                | ReasonCode::NodeStateMalformed
                | ReasonCode::PackageErroring
                | ReasonCode::Paused
                | ReasonCode::Preparing
                | ReasonCode::ResultDoesNotMatch
                | ReasonCode::RolloutStateRefused
                | ReasonCode::RolloutStopped
                | ReasonCode::Settling
                | ReasonCode::TaintNotTolerable => {}
            }
            let code = code.to_string();
            assert_ne!(
                of(&code, "", &place).is_empty(),
                !ends_by_itself(&code),
                "{code}"
            );
        }
    }
}
