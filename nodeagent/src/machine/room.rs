//! Packages whose steps request more than the node has. Kubernetes' scheduler would hold a pod with such requests for ever,
//! so the agent starts no stage of such a package. Other packages go on.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;
use skyhook_crds::{Package, Stage};

use super::progress::{Entry, Progress};
use super::retry;
use crate::machine::Effect;

/// How often the Node is read while a package requests more than it has. A node may get more, for example in a virtual
/// machine.
const LOOK_MS: i64 = 300_000;

/// What packages request and the node does not have, by package, in words. `defaults` are for packages without resources.
/// A resource of which the Node does not say how much it has is left out.
#[must_use]
pub fn lacking(
    packages: &BTreeMap<String, Package>,
    defaults: Option<&Resources>,
    allocatable: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let lacks = packages.iter().filter_map(|(name, package)| {
        let resources = package.resources.as_ref().or(defaults)?;
        Some((name.clone(), lacks(resources, allocatable)?))
    });
    lacks.collect()
}

fn lacks(resources: &Resources, allocatable: &BTreeMap<String, String>) -> Option<String> {
    // As for a container, a limit without a request is the request.
    let requests = [
        ("cpu", &resources.cpu_request, &resources.cpu_limit),
        ("memory", &resources.memory_request, &resources.memory_limit),
    ];
    let lacks = requests.into_iter().filter_map(|(what, request, limit)| {
        let request = request.as_ref().or(limit.as_ref())?;
        let has = Quantity(allocatable.get(what)?.clone());
        let is_more = request.milli().ok()? > has.milli().ok()?;
        is_more.then(|| format!("{what} {request}, and the node has {has}"))
    });
    let lacks: Vec<String> = lacks.collect();
    (!lacks.is_empty()).then(|| format!("requests {}", lacks.join(", and ")))
}

/// What the package requests and the node does not have.
#[must_use]
pub fn of<'a>(p: &'a Progress, entry: &Entry) -> Option<&'a String> {
    let wanted = p.wanted.get(&entry.name).filter(|_| p.is_wanted(entry))?;
    // The interrupt after an uninstall runs no step.
    let runs = !entry.is_done() && entry.stage != Stage::UninstallInterrupt;
    wanted.lacks.as_ref().filter(|_| runs)
}

/// True when the package, or one that it waits for, requests more than the node has.
pub(super) fn is_waited_for(p: &Progress, entry: &Entry) -> bool {
    waits(p, &entry.name, &mut BTreeSet::new())
}

/// `seen` are the packages that were looked at before.
fn waits<'a>(p: &'a Progress, name: &'a str, seen: &mut BTreeSet<&'a str>) -> bool {
    if p.is_complete(name) || !seen.insert(name) {
        return false;
    }
    p.wanted.get(name).is_some_and(|wanted| {
        let mut dependencies = wanted.depends_on.iter();
        wanted.lacks.is_some() || dependencies.any(|name| waits(p, name, seen))
    })
}

/// Sets what packages lack, with their messages.
pub(super) fn set(p: &mut Progress, lacking: &BTreeMap<String, String>) {
    for (name, wanted) in &mut p.wanted {
        wanted.lacks = lacking.get(name).cloned();
    }
    say(p);
}

/// Sets the messages of packages that wait for a larger node.
pub(super) fn say(p: &mut Progress) {
    let keys: Vec<String> = p.entries.keys().cloned().collect();
    for key in keys {
        let Some(entry) = p.entries.get(&key) else {
            continue;
        };
        let lacks = of(p, entry).cloned();
        let waited = entry.message.starts_with(WAITS);
        let Some(entry) = p.entries.get_mut(&key) else {
            continue;
        };
        match lacks {
            Some(lacks) => entry.say(&format!("{WAITS}{lacks}")),
            None if waited => entry.message.clear(),
            None => {}
        }
    }
}

const WAITS: &str = "waits for a node that is larger: the package ";

/// Asks for the Node when it is time to look again.
pub(super) fn advance(p: &mut Progress, now: i64, effects: &mut Vec<Effect>) {
    let Some(at) = wake_at(p) else { return };
    if retry::is_due(at, now) {
        p.node_seen_at = now;
        effects.push(Effect::LookAtNode);
    }
}

/// When the Node is read again.
pub(super) fn wake_at(p: &Progress) -> Option<i64> {
    let mut entries = p.entries.values();
    let waits = entries.any(|entry| of(p, entry).is_some());
    waits.then_some(p.node_seen_at + LOOK_MS)
}
