//! What people read about the taint.

use super::*;

const NEEDS: &str = "until it has its turn the taint skyhook.nvidia.com=runtime-required:NoSchedule stays: the node waits for \
                     a slot to confirm what is installed";

fn said(picture: &Picture, skyhook: &str, node: &str) -> (String, String) {
    let effects = picture.plan().effects;
    let said = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode {
            node: name, patch, ..
        } if name == node => {
            let text = patch.annotations.get(&names::reason(skyhook))?.as_ref()?;
            serde_json::from_str::<skyhook_crds::skyhook::NodeReason>(text).ok()
        }
        _ => None,
    });
    said.map_or_else(Default::default, |said| (said.reason, said.message))
}

#[test]
fn a_node_that_waits_says_who_keeps_the_taint() {
    let base = || tainted(tainted(required(json!({})), 1, &[OURS]), 2, &[OURS]);
    let zero = base().skyhook(&["spec", "interruptionBudget"], json!({ "count": 0 }));
    let paused = base().skyhook(
        &["metadata", "annotations"],
        json!({ names::PAUSE: "true" }),
    );
    let ignored = base().node(2, &["metadata", "labels", names::IGNORE], json!("true"));
    let earlier = base().another(also(json!({})));
    let disabled = base().skyhook(
        &["metadata", "annotations"],
        json!({ names::DISABLE: "true" }),
    );
    let not_required = tainted(Picture::new(), 2, &["x:PreferNoSchedule"]);
    for (name, picture, skyhook, code, want) in [
        (
            "T5a: the budget is full",
            base(),
            "s",
            "BudgetExhausted",
            format!("waits for a slot of the interruptionBudget; {NEEDS}"),
        ),
        (
            "T5b: budget 0",
            zero,
            "s",
            "BudgetZero",
            format!("interruptionBudget is 0: no node is started until it is raised; {NEEDS}"),
        ),
        (
            "T5b: paused",
            paused,
            "s",
            "Paused",
            format!("the Skyhook is paused; {NEEDS}"),
        ),
        (
            "another Skyhook goes first",
            earlier,
            "t",
            "EarlierSkyhook",
            format!("Skyhook s goes first on this node and is not complete there; {NEEDS}"),
        ),
        (
            "T4f: ignored",
            ignored,
            "s",
            "NodeIgnored",
            "label skyhook.nvidia.com/ignore=true keeps every Skyhook off; the taint \
             skyhook.nvidia.com=runtime-required:NoSchedule stays while the label is there"
                .to_owned(),
        ),
        (
            "disabled",
            disabled,
            "s",
            "Disabled",
            "the Skyhook is disabled".to_owned(),
        ),
        (
            "somebody else's taint",
            not_required,
            "s",
            "TaintNotTolerable",
            "taint x:PreferNoSchedule is not tolerated: add it to spec.additionalTolerations"
                .to_owned(),
        ),
    ] {
        let given = said(&picture, skyhook, "worker-2");
        assert_eq!(given, (code.to_owned(), want), "{name}");
    }
}

#[test]
fn a_skyhook_that_waits_for_all_nodes_of_another_says_who_keeps_the_taint() {
    // S12: y goes first everywhere, and is complete on worker-1 alone. Both nodes carry the taint.
    let first = |tolerations: Value| {
        let spec =
            json!({ "priority": 1, "sequencing": "all", "additionalTolerations": tolerations });
        let picture = required(json!({})).another(skyhook("y", spec));
        let picture = picture.annotated(1, &names::node_state("y"), &complete("1.0.0"));
        tainted(tainted(picture, 1, &[OURS]), 2, &[OURS])
    };
    let gate = "Skyhook y goes first (sequencing: all) and is not complete on all of its nodes";
    let waits = ("EarlierSkyhook".to_owned(), format!("{gate}; {NEEDS}"));
    let tolerating = first(json!([{ "key": names::GROUP, "operator": "Exists" }]));
    assert_eq!(said(&tolerating, "s", "worker-1"), waits);
    assert_eq!(tolerating.reserved(), ["y/worker-2", "y/worker-3"]);
    let circle = first(json!([]));
    assert_eq!(said(&circle, "s", "worker-1"), waits);
    assert_eq!(circle.reserved(), ["y/worker-3"]);
    let named = format!(
        "taint {OURS} is not tolerated: it stays until every runtimeRequired Skyhook is complete here, and those that come \
         later wait for this one: set spec.runtimeRequired, or add it to spec.additionalTolerations"
    );
    let why = said(&circle, "y", "worker-2");
    assert_eq!(why, ("TaintNotTolerable".to_owned(), named));
}

#[test]
fn a_circle_of_taints_is_named() {
    let tolerating = json!([{ "key": "node.kubernetes.io/not-ready", "operator": "Exists" }]);
    let with = |picture: Picture, other: &str| tainted(picture, 1, &[other, OURS]);
    let cilium = "node.cilium.io/agent-not-ready:NoSchedule";
    let not_ready = "node.kubernetes.io/not-ready:NoSchedule";
    let circle = |taint: &str| {
        format!(
            "; what takes {taint} off may itself wait for the taint {OURS}, which goes when this Skyhook is complete here"
        )
    };
    for (name, picture, want) in [
        (
            "T8a",
            with(required(json!({})), cilium),
            format!(
                "taint {cilium} is not tolerated: add it to spec.additionalTolerations{}",
                circle(cilium)
            ),
        ),
        (
            "T8b: not Ready",
            with(required(json!({})), not_ready),
            format!(
                "the node is not Ready: it is taken when it is, or before that with a toleration of {not_ready} in \
                 spec.additionalTolerations{}",
                circle(not_ready)
            ),
        ),
        (
            "T10f: not required",
            tainted(Picture::new(), 1, &[OURS]),
            format!(
                "taint {OURS} is not tolerated: it stays until every runtimeRequired Skyhook is complete here, and those \
                 that come later wait for this one: set spec.runtimeRequired, or add it to spec.additionalTolerations"
            ),
        ),
    ] {
        let given = said(&picture, "s", "worker-1");
        assert_eq!(given, ("TaintNotTolerable".to_owned(), want), "{name}");
    }
    let tolerated = with(
        required(json!({ "additionalTolerations": tolerating })),
        not_ready,
    );
    assert_eq!(tolerated.reserved(), ["s/worker-1"], "T8b");
    let nodewrights = "nodewright.nvidia.com=runtime-required:NoSchedule";
    for (name, taint, want) in [
        ("T10f", nodewrights, "s/worker-1"),
        ("T10d", "skyhook.nvidia.com=other:NoSchedule", "s/worker-1"),
        (
            "T10e",
            "skyhook.nvidia.com=runtime-required:NoExecute",
            "s/worker-2",
        ),
    ] {
        let picture = tainted(required(json!({})), 1, &[taint]);
        assert_eq!(picture.reserved(), [want], "{name}");
    }
}

#[test]
fn a_skyhook_that_is_not_valid_says_what_becomes_of_the_taint() {
    let invalid = |more: Value| {
        let mut spec = json!({ "packages": 7 });
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key] = value;
        }
        let picture = Picture::new().skyhook(&["spec"], spec);
        let effects = picture.plan().effects;
        effects.iter().find_map(|effect| match effect {
            Effect::WriteSkyhookStatus { status, .. } => {
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
                ready.map(|ready| ready.message.clone())
            }
            _ => None,
        })
    };
    let problem = invalid(json!({})).unwrap();
    assert!(problem.starts_with("spec cannot be read"), "{problem}");
    assert_eq!(
        invalid(json!({ "runtimeRequired": true })),
        Some(format!(
            "{problem}; meanwhile the taint {OURS} stays on its nodes"
        ))
    );
    let unreadable = json!({ "runtimeRequired": true, "nodeSelectors": { "matchLabels": 7 } });
    let said = invalid(unreadable).unwrap();
    let end =
        format!("; until its nodeSelectors can be read, the taint {OURS} is taken off no node");
    assert!(said.ends_with(&end), "{said}");
}
