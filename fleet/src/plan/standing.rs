//! The standing of each selected node for each Skyhook, before new leases are decided.

mod work;

use std::collections::BTreeMap;

use skyhook_crds::package::Package;
use skyhook_crds::revision::{self, Work};
use skyhook_crds::{installed, names};

use super::View;
use super::reason::{Reason, ReasonCode};
use crate::clocks::Mono;
use crate::facts::{Checked, LeaseFact, NodeFact, Origin, SkyhookFact};
use crate::taints;
pub(crate) use work::{outstanding, owed};

/// Why a node gets no lease after a drain that took too long.
pub(crate) const DRAIN_TIMED_OUT: &str =
    "pods did not leave before the drain's deadline; the node is tried again later";

/// The standing of a node for a Skyhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Every package of the revision is installed.
    Complete,
    /// The node has a lease for this Skyhook, or such a lease is being created.
    Leased,
    /// The node cannot get a lease before a problem is solved, for example a taint that is not tolerated.
    Blocked(Reason),
    /// The node waits for its turn: for a slot, for an earlier Skyhook, or for the end of another lease.
    Waiting(Reason),
    /// The node may get a lease.
    Eligible,
}

/// What holds a node up, apart from the node itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held<'a> {
    /// Name of the Skyhook that has to be complete on the node first.
    pub(super) earlier: Option<&'a str>,
    /// Name of the Skyhook that has to be complete on all of its nodes first.
    pub(super) gate: Option<&'a str>,
    /// The node is to be tainted before anything else is written there.
    pub(super) pending: bool,
}

/// Finds the standing of one selected node.
pub(super) fn judge(
    view: &View<'_>,
    skyhook: &SkyhookFact,
    checked: &Checked,
    node: &NodeFact,
    held: Held<'_>,
) -> Standing {
    let lease = view.picture.leases().get(&node.name);
    let ours = lease.and_then(LeaseFact::skyhook_uid) == Some(skyhook.uid.as_str())
        || view.inflight.creating(&node.name) == Some(skyhook.uid.as_str());
    if ours {
        return Standing::Leased;
    }
    if held.pending {
        let message = format!(
            "the taint {} is put on the node before anything else is written there",
            view.settings.runtime_taint
        );
        return Standing::Blocked(Reason::new(ReasonCode::AutoTaintPending, message));
    }
    if let Some(reason) = newer_record(skyhook, node) {
        return Standing::Blocked(reason);
    }
    match outstanding(view.picture, skyhook, checked, node) {
        Ok(work) if work.is_empty() => return Standing::Complete,
        Ok(work) if revision::is_idle(&work) => return Standing::Blocked(blocked(checked, &work)),
        Ok(_) => {}
        Err(reason) => return Standing::Blocked(reason),
    }
    if node.is_ignored() {
        let message = format!("label {}=true keeps every Skyhook off", names::IGNORE);
        return Standing::Blocked(Reason::new(ReasonCode::NodeIgnored, message));
    }
    if node.record(&skyhook.name).origin != Origin::Ours {
        let message = "the record of the implementation that was here before is being taken over";
        return Standing::Waiting(Reason::new(ReasonCode::Settling, message));
    }
    if let Some(reason) = missing_policy(view, skyhook) {
        return Standing::Blocked(reason);
    }
    let runtime = &view.settings.runtime_taint;
    if let Some(taint) = node
        .taints
        .iter()
        .find(|taint| !taints::is_tolerated(runtime, skyhook, node, taint))
    {
        let message = taints::intolerable(runtime, skyhook, node, taint);
        return Standing::Blocked(Reason::new(ReasonCode::TaintNotTolerable, message));
    }
    if let Some(earlier) = held.earlier {
        let message =
            format!("Skyhook {earlier} goes first on this node and is not complete there");
        return Standing::Waiting(Reason::new(ReasonCode::EarlierSkyhook, message));
    }
    if let Some(gate) = held.gate {
        let message = format!(
            "Skyhook {gate} goes first (sequencing: all) and is not complete on all of its nodes"
        );
        return Standing::Waiting(Reason::new(ReasonCode::EarlierSkyhook, message));
    }
    if let Some(lease) = lease {
        return Standing::Waiting(leased(lease, node));
    }
    if view.inflight.creating(&node.name).is_some() {
        let message = "a lease of the node is being created for another Skyhook";
        return Standing::Waiting(Reason::new(ReasonCode::NodeLeased, message));
    }
    if let Some(backoff) = view
        .clocks
        .backoff(&node.name, &skyhook.name)
        .filter(|backoff| backoff.until > view.now.mono)
    {
        return Standing::Blocked(Reason::new(backoff.code, backoff.message));
    }
    if left_alone_until(view, node).is_some() {
        return Standing::Blocked(Reason::new(ReasonCode::DrainTimedOut, DRAIN_TIMED_OUT));
    }
    Standing::Eligible
}

/// The reason where all that is left depends on packages that were uninstalled.
fn blocked(checked: &Checked, work: &BTreeMap<String, Work>) -> Reason {
    let packages = &checked.data.packages;
    let is_to_go = |name: &&String| packages.get(*name).is_some_and(Package::is_to_go);
    let said = work.keys().filter_map(|name| {
        let gone = packages.get(name)?.depends_on.keys().find(is_to_go)?;
        Some(format!(
            "package {name} is blocked: dependency {gone} has been uninstalled"
        ))
    });
    let said: Vec<String> = said.collect();
    let message = format!(
        "{}. Set uninstall.apply of the dependency to false, or remove the package",
        said.join("; ")
    );
    Reason::new(ReasonCode::DependencyUninstalled, message)
}

/// The reason while the node is leased for another Skyhook.
fn leased(lease: &LeaseFact, node: &NodeFact) -> Reason {
    let message = match &lease.lease {
        Ok(lease) => format!(
            "the node is worked on for Skyhook {}",
            lease.spec.skyhook.name
        ),
        Err(problem) => format!(
            "the node's InterruptionLease {problem}: correct it, or when nothing runs on the node, give its slot back: {}",
            force_release(&node.name, &lease.uid)
        ),
    };
    Reason::new(ReasonCode::NodeLeased, message)
}

/// Until when the node gets no lease because its last drain took too long; `None` if there is no such time, or if it is
/// over. The time is on the Node, so another replica that begins to lead knows it as well.
pub(super) fn left_alone_until(view: &View<'_>, node: &NodeFact) -> Option<Mono> {
    let (since, seen) = view.clocks.undrained(&node.name)?;
    let passed = view.age(since, Some(seen));
    let left = view.settings.drain_cool_down.checked_sub(passed)?;
    (!left.is_zero()).then(|| view.now.mono + left)
}

/// The reason when a newer version of Skyhook wrote the node's record.
pub(super) fn newer_record(skyhook: &SkyhookFact, node: &NodeFact) -> Option<Reason> {
    let stamp = node.record(&skyhook.name).stamp.as_ref();
    let stamp = stamp.filter(|stamp| stamp.is_newer())?;
    let message = format!(
        "the node's record was written by a newer version (form {}, this one knows {}): upgrade the coordinator, or \
         delete the node's annotation {} to have its packages applied again",
        stamp.format,
        installed::FORMAT,
        names::stamp(&skyhook.name)
    );
    Some(Reason::new(ReasonCode::NewerVersion, message))
}

/// The command with which an administrator gives back a lease's slot by force.
pub(super) fn force_release(node: &str, lease_uid: &str) -> String {
    format!(
        "kubectl annotate interruptionlease {node} {}={lease_uid}",
        names::FORCE_RELEASE
    )
}

/// Why the Skyhook cannot start because of the DeploymentPolicy that it names.
fn missing_policy(view: &View<'_>, skyhook: &SkyhookFact) -> Option<Reason> {
    let policy = &skyhook.spec.deployment_policy;
    if policy.is_empty() {
        None
    } else if let Some(fact) = view.picture.policies().get(policy) {
        fact.checked.as_ref().err()?;
        // The message is written on each Node. What is wrong may be a long text, and is written on the Skyhook alone.
        let message = format!(
            "deploymentPolicy {policy:?} is not valid: see the condition {} of the Skyhook",
            super::INVALID
        );
        Some(Reason::new(ReasonCode::DeploymentPolicyInvalid, message))
    } else {
        Some(Reason::new(
            ReasonCode::DeploymentPolicyNotFound,
            format!("deploymentPolicy {policy:?} not found"),
        ))
    }
}
