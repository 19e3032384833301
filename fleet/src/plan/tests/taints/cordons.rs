//! T2: nodes that are cordoned when their taint is taken off.

use super::*;

#[test]
fn the_node_is_cordoned_afterwards_where_somebody_wants_it() {
    let after = || required(json!({ "runtimeRequiredCordonAfter": true }));
    let base = || between(after());
    const CORDONED: [&str; 3] = [OFF[0], "cordon", "runtimeRequiredCordon: true"];
    let wants_cordon = json!({
        "runtimeRequired": true, "runtimeRequiredCordonAfter": true,
        "interruptionBudget": { "count": 1 },
    });
    let both = between(required(json!({})))
        .another(skyhook("t", wants_cordon))
        .annotated(1, &names::node_state("t"), &complete("1.0.0"));
    // Skyhook t drains the node, and is not required.
    let draining = || {
        let mut status = with_package("AwaitingDrain", "in_progress");
        status["needsDrain"] = json!(true);
        let spec = json!({ "drain": { "state": "Draining", "since": "2023-11-14T22:13:10Z" } });
        let held = Stamp {
            granted: "lease".into(),
            was_ready: true,
            ..Stamp::default()
        };
        let mut picture = leased(base(), grant_and(spec), status)
            .another(skyhook("t", json!({ "priority": 300 })))
            .annotated(1, &names::stamp("t"), &held.render())
            .annotated(1, &names::cordon("t"), "true")
            .annotated(
                1,
                names::CORDON_OWNERS,
                &cordons(false, &[("t", "lease")], &[]),
            )
            .node(1, &["spec", "unschedulable"], json!(true));
        let checked = picture.index().picture.skyhooks()["t"].checked.clone();
        let lease = &mut picture.leases[0]["spec"];
        lease["skyhook"] = json!({ "name": "t", "uid": "uid-of-t" });
        lease["revision"] = json!(checked.unwrap().revision);
        picture
    };
    let held = format!("cordon-owners: {}", cordons(true, &[("t", "lease")], &[]));
    for (name, picture, want) in [
        ("T2a", base(), &CORDONED[..]),
        ("T2b: no taint there", done(after()), &NOTHING),
        (
            "T2c: another holds a cordon",
            draining(),
            &[OFF[0], &held, "runtimeRequiredCordon: true"],
        ),
        ("T2d: one of two wants it", both, &CORDONED),
    ] {
        assert_eq!(written(&picture, "worker-1"), want, "{name}");
    }
    // T2c: what the other one gives back leaves the node cordoned.
    let node = draining().index().picture.nodes()["worker-1"].clone();
    let patch = NodePatch::default()
        .annotation(names::RUNTIME_REQUIRED_CORDON, Some("true".into()))
        .annotation(
            names::CORDON_OWNERS,
            Some(cordons(true, &[("t", "lease")], &[])),
        );
    let node = testkit::patched(&node, &patch);
    let given_back = testkit::patched(&node, &cordon::give_back(&node, ["t"]));
    assert!(given_back.unschedulable && given_back.cordon.owners.is_empty());
}

#[test]
fn the_cordon_after_the_taint_stays_until_somebody_uncordons() {
    let mark = names::RUNTIME_REQUIRED_CORDON;
    let marked = |unschedulable: bool| {
        done(required(json!({}))).annotated(1, mark, "true").node(
            1,
            &["spec", "unschedulable"],
            json!(unschedulable),
        )
    };
    assert_eq!(
        written(&marked(true), "worker-1"),
        NOTHING,
        "T2i, T2h: it stays"
    );
    let gone = ["runtimeRequiredCordon goes"];
    assert_eq!(written(&marked(false), "worker-1"), gone, "T2e");
    let effects = marked(false).plan().effects;
    let why = effects.iter().find_map(|effect| match effect {
        Effect::PatchNode { why, .. } => Some(why.contains(&Cause::Uncordoned)),
        _ => None,
    });
    assert_eq!(why, Some(true), "T2e");
    let successor = done(required(json!({}))).annotated(1, &names::successor(mark), "true");
    let gone = ["nodewright.nvidia.com/runtimeRequiredCordon goes"];
    assert_eq!(written(&successor, "worker-1"), gone, "T2e: NodeWright's");

    // Somebody has uncordoned the node, and has put the taint there again: it is cordoned with its mark.
    let again = required(json!({ "runtimeRequiredCordonAfter": true })).annotated(1, mark, "true");
    let again = written(&between(again), "worker-1");
    let cordoned: Vec<&String> = again
        .iter()
        .filter(|line| !line.starts_with("taints"))
        .collect();
    assert_eq!(cordoned, ["cordon"], "T2e: {again:?}");

    // T2f: a drain needs the cordon, and the annotation goes all the same.
    let mut status = with_package("AwaitingDrain", "in_progress");
    status["needsDrain"] = json!(true);
    let spec = json!({ "drain": { "state": "Draining", "since": "2023-11-14T22:13:10Z" } });
    let draining = leased(
        stamp(Picture::new().annotated(1, mark, "true"), granted()),
        grant_and(spec),
        status,
    );
    let taken = format!("cordon-owners: {}", cordons(false, &[("s", "lease")], &[]));
    let want = ["cordon", taken.as_str(), "runtimeRequiredCordon goes"];
    assert_eq!(written(&draining, "worker-1"), want, "T2f");
    let node = draining.index().picture.nodes()["worker-1"].clone();
    let patch = cordon::take(&node, "s", "lease").annotation(mark, None);
    let node = testkit::patched(&node, &patch);
    let node = testkit::patched(&node, &cordon::give_back(&node, ["s"]));
    assert!(!node.unschedulable, "T2f: it is uncordoned afterwards");

    // C6: the drain of a node that was cordoned with its taint gets no mark of a Skyhook, and leaves it cordoned.
    let cordoned = draining.node(1, &["spec", "unschedulable"], json!(true));
    let taken = format!("cordon-owners: {}", cordons(true, &[("s", "lease")], &[]));
    assert_eq!(written(&cordoned, "worker-1"), [taken], "C6");
    let marks = |picture: &Picture| {
        let effects = picture.plan().effects.into_iter();
        let marks = effects.filter_map(|effect| match effect {
            Effect::PatchNode { patch, .. } => patch.annotations.get(&names::cordon("s")).cloned(),
            _ => None,
        });
        marks.flatten().count()
    };
    assert_eq!(marks(&cordoned), 0, "C6");

    // T2g and T2h: a cordon of NVIDIA Skyhook, and one that is taken later.
    for (name, owners) in [("T2g", true), ("T2h", false)] {
        let mut node = testkit::node("n");
        node.unschedulable = true;
        let mut patch = NodePatch::default().annotation(mark, Some("true".into()));
        if owners {
            patch = patch.annotation(&names::cordon("s"), Some("true".into()));
        }
        let node = testkit::patched(&node, &patch);
        assert!(node.cordon.was_unschedulable, "{name}");
        let node = testkit::patched(&node, &cordon::take(&node, "s", "lease"));
        let node = testkit::patched(&node, &cordon::give_back(&node, ["s"]));
        assert!(node.unschedulable, "{name}");
        assert!(node.annotations.contains_key(mark), "{name}");
    }
}
