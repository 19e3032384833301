//! Objects of an arbitrary picture, as the API server has them.

use serde_json::{Value, json};
use skyhook_crds::installed::{CordonRecord, Stamp, states_digest};
use skyhook_crds::names;

use super::{ALease, ANode, ASkyhook, ATaint, NAMES, VERSION};

fn package(skyhook: &ASkyhook) -> Value {
    let mut package = json!({ "version": VERSION, "image": "example.com/one" });
    if skyhook.interrupts {
        package["interrupt"] = json!({ "type": "reboot" });
    }
    if skyhook.invalid {
        package["dependsOn"] = json!({ "one": VERSION });
    }
    package
}

pub(in super::super) fn skyhook_object(at: usize, skyhook: &ASkyhook) -> Value {
    let name = NAMES[at];
    let mut metadata = json!({
        "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7", "generation": 3, "annotations": {},
        "creationTimestamp": "2026-01-01T00:00:00Z",
    });
    if skyhook.adopted {
        metadata["finalizers"] = json!([names::SKYHOOK_FINALIZER]);
    }
    if skyhook.deleting {
        metadata["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    for (annotation, set) in [
        (names::PAUSE, skyhook.paused),
        (names::DISABLE, skyhook.disabled),
    ] {
        if set {
            metadata["annotations"][annotation] = json!("true");
        }
    }
    let mut spec = json!({ "priority": skyhook.priority, "packages": { "one": package(skyhook) } });
    if skyhook.selects {
        spec["nodeSelectors"] = json!({ "matchLabels": { "tier": "a" } });
    }
    if skyhook.unreadable {
        spec["nodeSelectors"] = json!({ "matchLabels": 7 });
    }
    spec["runtimeRequired"] = json!(skyhook.required);
    spec["autoTaintNewNodes"] = json!(skyhook.auto);
    spec["runtimeRequiredCordonAfter"] = json!(skyhook.cordon_after);
    match skyhook.budget {
        0 => spec["interruptionBudget"] = json!({ "count": 0 }),
        1 => spec["interruptionBudget"] = json!({ "count": 1 }),
        2 => spec["interruptionBudget"] = json!({ "percent": 50 }),
        3 => spec["interruptionBudget"] = json!({ "count": 3, "countUnavailable": true }),
        _ => {}
    }
    if skyhook.policy {
        spec["deploymentPolicy"] = json!("tuned");
    }
    if skyhook.all {
        spec["sequencing"] = json!("all");
    }
    match skyhook.drains {
        0 => {}
        1 => spec["drainConfig"] = json!({ "timeout": "90s" }),
        2 => {
            spec["drainConfig"] =
                json!({ "force": false, "deleteEmptyDirData": false, "gracePeriod": "1500ms" })
        }
        _ => {
            spec["drainConfig"] =
                json!({ "ignoreDaemonSets": false, "disableEviction": true, "timeout": "0s" })
        }
    }
    let mut object = json!({ "metadata": metadata, "spec": spec });
    if skyhook.has_status {
        object["status"] =
            json!({ "status": "in_progress", "observedGeneration": 2, "completeNodes": "0/1" });
    }
    object
}

fn states(record: u8) -> Option<String> {
    let (stage, state) = match record {
        0 => return None,
        1 => return Some("{".to_owned()),
        2 => ("apply", "in_progress"),
        3 => ("config", "complete"),
        _ => ("config", "erroring"),
    };
    let entry = json!({ "name": "one", "version": VERSION, "image": "example.com/one", "stage": stage, "state": state });
    Some(json!({ format!("one|{VERSION}"): entry }).to_string())
}

pub(in super::super) fn node_object(name: &str, node: &ANode, revisions: &[String]) -> Value {
    let mut annotations = json!({});
    let lease_uid = format!("lease-{name}");
    let mut owners = CordonRecord {
        was_unschedulable: node.was_unschedulable,
        ..CordonRecord::default()
    };
    for (at, skyhook) in NAMES.iter().enumerate() {
        let (record, stamped, edited) = node.records[at];
        let states = states(record);
        if let Some(states) = &states {
            annotations[names::node_state(skyhook)] = json!(states);
        }
        let mut stamp = Stamp {
            states: states_digest(states.as_deref().unwrap_or_default()),
            ..Stamp::default()
        };
        if edited {
            stamp.states = "another".to_owned();
        }
        match stamped {
            1 => stamp.granted.clone_from(&lease_uid),
            2 => stamp.lease.clone_from(&lease_uid),
            3 => stamp.lease = "another".to_owned(),
            _ => {}
        }
        if matches!(stamped, 2 | 3) {
            stamp.revision = revisions.get(at).cloned().unwrap_or_default();
            "boot".clone_into(&mut stamp.epoch);
            if edited {
                // In the middle of the time in which histories happen.
                "2026-09-21T16:55:00Z".clone_into(&mut stamp.drain_timed_out);
            }
        }
        if record != 2 {
            stamp.order = Some(i64::from(record + stamped));
        }
        if matches!(stamped, 1 | 3) {
            "2026-01-01T00:00:00Z".clone_into(&mut stamp.picked);
        }
        if stamped > 0 {
            annotations[names::stamp(skyhook)] = json!(stamp.render());
        }
        left_by_others(node.foreign[at], skyhook, &mut annotations);
        let owner = match node.cordons[at] {
            0 => continue,
            1 => lease_uid.clone(),
            _ => "another".to_owned(),
        };
        owners.owners.insert((*skyhook).to_owned(), owner);
    }
    if node.taint.new {
        annotations = json!({});
        owners = CordonRecord::default();
    }
    mark(&node.taint, &mut annotations, &mut owners);
    if !owners.is_empty() {
        annotations[names::CORDON_OWNERS] = json!(owners.render());
    }
    let mut labels = json!({ "tier": if node.tier { "a" } else { "b" } });
    if node.control_plane {
        labels[names::CONTROL_PLANE] = json!("");
    }
    if node.ignored {
        labels[names::IGNORE] = json!("true");
    }
    if node.taint.windows {
        labels["kubernetes.io/os"] = json!("windows");
    }
    json!({
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "resourceVersion": "9", "labels": labels, "annotations": annotations,
        },
        "spec": { "unschedulable": node.unschedulable, "taints": taints(node) },
        "status": {
            "nodeInfo": { "bootID": "boot" },
            "conditions": [{ "type": "Ready", "status": if node.ready { "True" } else { "False" } }],
        },
    })
}

/// What other implementations have left of a Skyhook.
fn left_by_others(form: u8, skyhook: &str, annotations: &mut Value) {
    let theirs = |key: String| names::successor(&key);
    let (state, status) = (names::node_state(skyhook), names::status(skyhook));
    match form {
        1 | 2 => {
            annotations[theirs(state)] = json!(states(form + 2));
            let word = if form == 1 { "complete" } else { "in_progress" };
            annotations[theirs(status)] = json!(word);
        }
        3 => annotations[theirs(state)] = json!("{"),
        4 => annotations[theirs(names::cordon(skyhook))] = json!("true"),
        5 | 6 => {
            let mut entry = json!({ "name": "one", "stage": "config", "state": "complete" });
            if form == 5 {
                entry["version"] = json!(VERSION);
            }
            annotations[state] = json!(json!({ "one": entry }).to_string());
            annotations[names::version(skyhook)] = json!("v0.5.0");
        }
        _ => {}
    }
}

fn taints(node: &ANode) -> Vec<Value> {
    let taint = |key: &str, effect: &str| json!({ "key": key, "effect": effect });
    let (ours, nodewrights) = (
        taint(names::GROUP, "NoSchedule"),
        taint(names::SUCCESSOR, "NoSchedule"),
    );
    let mut taints = match node.taint.kind {
        0 => Vec::new(),
        1 => vec![ours],
        2 => vec![nodewrights],
        3 => vec![nodewrights, ours],
        4 => vec![taint("earlier", "NoExecute")],
        _ => vec![taint(names::GROUP, "NoExecute")],
    };
    if node.tainted {
        taints.insert(taints.len() / 2, taint("special", "NoSchedule"));
    }
    taints
}

/// What a Node says about the runtime-required taint, and about what keeps autoscalers off.
fn mark(taint: &ATaint, annotations: &mut Value, owners: &mut CordonRecord) {
    let key = if taint.kind == 4 {
        "earlier"
    } else {
        names::GROUP
    };
    let key = names::auto_taint(key);
    match (taint.new, taint.mark) {
        (false, 1) => annotations[key] = json!("true"),
        (false, 2) => annotations[key] = json!("false"),
        (false, 3) => annotations[names::successor(&key)] = json!("true"),
        (_, _) => {}
    }
    if taint.cordoned && !taint.new {
        annotations[names::RUNTIME_REQUIRED_CORDON] = json!("true");
    }
    let [first, second] = names::PROTECTIONS;
    if !taint.new && matches!(taint.protects, 1 | 3 | 4) {
        owners.protects = names::PROTECTIONS.map(str::to_owned).into();
    }
    match taint.protects {
        0 => {}
        1 | 2 => {
            annotations[first] = json!("true");
            annotations[second] = json!("true");
        }
        3 => {
            annotations[first] = json!("false");
            annotations[second] = json!("true");
        }
        _ => annotations[second] = json!("true"),
    }
}

/// What a drain waits for, in two of three cases.
fn blockers(form: u8, drain: &str) -> Value {
    let cause = match (drain, form % 3) {
        (_, 0) | ("NotRequested" | "Drained", _) => return json!([]),
        ("Waiting", _) => json!("NonInterruptLabels"),
        (_, 1) => json!("PodDisruptionBudget"),
        (_, _) => Value::Null,
    };
    json!([{ "pod": "default/pod-0", "reason": "it stays", "cause": cause }])
}

pub(in super::super) fn lease_object(name: &str, lease: &ALease, revisions: &[String]) -> Value {
    let skyhook = NAMES.get(lease.skyhook).unwrap_or(&"gone");
    let mut metadata = json!({
        "name": name, "uid": format!("lease-{name}"), "resourceVersion": "8", "generation": 2,
        "creationTimestamp": "2026-01-01T00:00:00Z", "finalizers": [names::LEASE_FINALIZER],
    });
    if lease.deleting {
        metadata["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
    }
    let drain = ["NotRequested", "Waiting", "Draining", "Drained"][usize::from(lease.drain) % 4];
    let revision = revisions
        .get(lease.skyhook)
        .filter(|_| lease.right_revision);
    let mut spec = json!({
        "node": { "name": name, "uid": if lease.right_node { format!("uid-{name}") } else { "another".to_owned() } },
        "skyhook": { "name": skyhook, "uid": format!("uid-{skyhook}") },
        "revision": revision.cloned().unwrap_or_else(|| "another".to_owned()),
        "drain": {
            "state": drain,
            "since": "2026-01-01T00:00:00Z",
            "blockers": blockers(lease.package, drain),
        },
    });
    let form = 4 * lease.phase + lease.drain + u8::from(lease.needs_drain);
    super::policies::into_lease(&mut spec, form);
    if lease.package != 3 {
        spec["order"] = json!((lease.phase + lease.drain) % 4);
    }
    if lease.granted {
        spec["granted"] = json!({ "by": "x", "at": "2026-01-01T00:00:00Z" });
    }
    let reasons = [
        "NewRevision",
        "Paused",
        "Disabled",
        "Deleted",
        "Edited",
        "DrainTimedOut",
    ];
    if let Some(reason) = reasons.get(usize::from(lease.stop)) {
        spec["stop"] = json!({ "reason": reason, "since": "2026-01-01T00:00:00Z" });
    }
    let phases = [
        "Accepted",
        "Preparing",
        "AwaitingDrain",
        "Running",
        "Erroring",
        "Complete",
        "Stopped",
    ];
    let mut object = json!({ "metadata": metadata, "spec": spec });
    let epochs = ["", "boot", "another boot"];
    if let Some(phase) = phases.get(usize::from(lease.phase)) {
        let packages: Value = states(lease.package + 1)
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(json!({}));
        object["status"] = json!({
            "phase": phase, "needsDrain": lease.needs_drain, "bootID": "boot", "machineID": "m", "packages": packages,
            "epoch": epochs[usize::from(lease.epoch) % epochs.len()],
        });
    }
    if lease.malformed {
        object["spec"]["node"] = json!(1);
    }
    object
}
