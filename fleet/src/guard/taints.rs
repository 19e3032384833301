//! Rules about the runtime-required taint.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Taint;
use skyhook_crds::names;

use super::Broken;
use crate::effect::NodePatch;
use crate::facts::{NodeFact, SkyhookFact};
use crate::index::Index;
use crate::plan::cause::Cause;
use crate::plan::{standing, taint};
use crate::settings::Settings;
use crate::taints;

/// Says which rule a write to a Node would break, if any.
pub(super) fn check(
    index: &Index,
    settings: &Settings,
    node: &str,
    patch: &NodePatch,
    why: &BTreeSet<Cause>,
) -> Result<(), Broken> {
    // A write to a Node that is gone fails: its UID is a precondition.
    let Some(node) = index.picture.nodes().get(node) else {
        return Ok(());
    };
    let is_ours = |taint: &&Taint| taints::is_ours(&settings.runtime_taint, node, taint);
    let after = patch.taints.as_ref().unwrap_or(&node.taints);
    if let Some(after) = &patch.taints {
        let others = |taints: &'_ [Taint]| -> Vec<Taint> {
            taints.iter().filter(|t| !is_ours(t)).cloned().collect()
        };
        if others(&node.taints) != others(after) {
            return Err(Broken::TaintNotOurs);
        }
        let mut gone = node.taints.iter().filter(|taint| !after.contains(taint));
        gone.try_for_each(|gone| untaint(index, node, gone))?;
    }
    let is_marked = || {
        let mut set = patch
            .annotations
            .iter()
            .filter(|(_, value)| value.is_some());
        set.any(|(key, _)| names::is_mark(key))
    };
    let is_protected = || {
        let mut skyhooks = index.picture.skyhooks().values();
        skyhooks.any(|skyhook| skyhook.taints_new(node))
    };
    // A node that has joined with the taint may lose it with the first write: all that requires it is complete there.
    let carries = |taints: &[Taint]| taints.iter().any(|taint| is_ours(&taint));
    let has_taint = carries(&node.taints) || carries(after);
    let is_first = node.is_new() && !node.is_ignored() && !why.contains(&Cause::Grant);
    if is_first && !has_taint && is_marked() && is_protected() {
        return Err(Broken::FirstMark);
    }
    Ok(())
}

/// A taint of ours may go when all Skyhooks that require it are complete on the node, and one that no Skyhook requires only
/// when we have put it there.
fn untaint(index: &Index, node: &NodeFact, gone: &Taint) -> Result<(), Broken> {
    let all = || index.picture.skyhooks().values();
    if all().any(SkyhookFact::requires_unknown) {
        return Err(Broken::UntaintEarly);
    }
    let mut required = all().filter(|skyhook| skyhook.requires(node)).peekable();
    if required.peek().is_none() && !taints::is_put_by_us(node, gone) {
        return Err(Broken::TaintNotOurs);
    }
    if required.all(|skyhook| is_complete(index, skyhook, node)) {
        Ok(())
    } else {
        Err(Broken::UntaintEarly)
    }
}

fn is_complete(index: &Index, skyhook: &SkyhookFact, node: &NodeFact) -> bool {
    let lease = index.picture.lease_of(&node.name, &skyhook.uid);
    let is_recorded = lease.is_none_or(|fact| {
        let lease = fact.lease.as_deref();
        lease.is_ok_and(|lease| taint::is_recorded(lease, node))
    });
    is_recorded
        && skyhook.checked.as_ref().is_ok_and(|checked| {
            let work = standing::outstanding(&index.picture, skyhook, checked, node);
            work.is_ok_and(|work| work.is_empty())
        })
}
