//! `SKYHOOK_NODE_ORDER`: which node gets which number, and how long it keeps it.

use super::leases::{effects, grant_and, granted, leased, phase, stamp};
use super::*;
use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::skyhook::SkyhookStatus;

const PICKED: &str = "2023-11-14T22:00:00Z";

/// Leases that are reserved in a plan: each node with its number.
fn reserved(plan: Plan) -> Vec<(String, Option<i64>)> {
    let effects = plan.effects.into_iter();
    let reserved = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { node, spec } => Some((node, spec.order)),
        _ => None,
    });
    reserved.collect()
}

fn numbers(picture: &Picture) -> Vec<(String, Option<i64>)> {
    reserved(picture.plan())
}

/// What [`numbers`] gives for these.
fn on(want: &[(usize, i64)]) -> Vec<(String, Option<i64>)> {
    want.iter()
        .map(|(n, order)| (format!("worker-{n}"), Some(*order)))
        .collect()
}

fn budget(count: usize) -> Picture {
    Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "count": count }))
}

/// A stamp of a node that is complete, or that is to go on.
fn numbered(order: i64, picked: &str) -> Stamp {
    Stamp {
        order: Some(order),
        picked: picked.into(),
        ..Stamp::default()
    }
}

fn stamped(picture: Picture, n: usize, stamp: &Stamp) -> Picture {
    picture.annotated(n, "skyhook.nvidia.com/stamp_s", &stamp.render())
}

/// Worker `n` has been complete under number `order`.
fn is_done(picture: Picture, n: usize, order: i64) -> Picture {
    let states = complete("1.0.0");
    let stamp = Stamp {
        states: states_digest(&states),
        ..numbered(order, "")
    };
    stamped(picture, n, &stamp).annotated(n, "skyhook.nvidia.com/nodeState_s", &states)
}

fn ordered(order: i64) -> Value {
    json!({ "order": order })
}

fn status_of(picture: &Picture) -> SkyhookStatus {
    let effects = picture.plan().effects.into_iter();
    let mut statuses = effects.filter_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(*status),
        _ => None,
    });
    statuses.next().expect("a status is written")
}

/// The stamp that a plan writes on worker-1.
fn written(picture: &Picture) -> Stamp {
    let effects = picture.plan().effects.into_iter();
    let mut stamps = effects.filter_map(|effect| match effect {
        Effect::PatchNode { node, patch, .. } if node == "worker-1" => {
            let stamp = patch.annotations.get("skyhook.nvidia.com/stamp_s")?.clone();
            Stamp::parse(stamp.as_deref())
        }
        _ => None,
    });
    stamps.next().expect("a stamp is written")
}

#[test]
fn the_next_number_is_greater_than_all_that_nodes_have() {
    let of_another = {
        let mut picture = leased(budget(3), ordered(9), json!(null));
        picture.leases[0]["spec"]["skyhook"] = json!({ "name": "t", "uid": "uid-of-t" });
        picture
    };
    let unselected = is_done(budget(1), 3, 6)
        .skyhook(
            &["spec", "nodeSelectors"],
            json!({ "matchLabels": { "pick": "me" } }),
        )
        .node(1, &["metadata", "labels", "pick"], json!("me"));
    let shown = |offset: i64| {
        let status = json!({ "status": "in_progress", "nodeOrderOffset": offset });
        budget(1).skyhook(&["status"], status)
    };
    let emptied = |n| {
        let stamp = Stamp {
            states: "what was written".into(),
            ..numbered(20, "")
        };
        stamped(budget(1), n, &stamp)
    };
    for (what, picture, want) in [
        ("the first", budget(1), on(&[(1, 0)])),
        ("three at once", budget(3), on(&[(1, 0), (2, 1), (3, 2)])),
        (
            "after a node that is complete",
            is_done(budget(1), 3, 7),
            on(&[(1, 8)]),
        ),
        (
            "after a lease",
            leased(budget(3), ordered(4), json!(null)),
            on(&[(2, 5), (3, 6)]),
        ),
        (
            "a lease of another Skyhook",
            of_another,
            on(&[(2, 0), (3, 1)]),
        ),
        ("a node that is not selected", unselected, on(&[(1, 7)])),
        ("numbers of Nodes that are gone", shown(12), on(&[(1, 12)])),
        (
            "less than what nodes have",
            is_done(shown(2), 3, 7),
            on(&[(1, 8)]),
        ),
        ("a record that somebody emptied", emptied(3), on(&[(1, 0)])),
    ] {
        assert_eq!(numbers(&picture), want, "{what}");
    }
}

#[test]
fn a_lease_that_is_being_created_has_its_number() {
    let picture = budget(3);
    let mut index = picture.index();
    let spec = InterruptionLeaseSpec {
        skyhook: skyhook_crds::lease::SkyhookRef {
            name: "s".into(),
            uid: "uid-of-s".into(),
            generation: 1,
        },
        order: Some(3),
        ..InterruptionLeaseSpec::default()
    };
    index.begins(&Effect::ReserveLease {
        node: "worker-2".into(),
        spec: Box::new(spec),
    });
    let given = reserved(picture.plan_of(&index));
    assert_eq!(given, on(&[(1, 4), (3, 5)]));
}

#[test]
fn a_node_keeps_its_number_until_it_is_complete() {
    let emptied = Stamp {
        states: "what was written".into(),
        ..numbered(1, PICKED)
    };
    for (what, picture, want) in [
        (
            "it goes on, and first",
            stamped(budget(1), 3, &numbered(0, PICKED)),
            on(&[(3, 0)]),
        ),
        (
            "others get the numbers after it",
            stamped(budget(3), 3, &numbered(5, PICKED)),
            on(&[(3, 5), (1, 6), (2, 7)]),
        ),
        (
            "no agent took its last lease: it waits its turn",
            stamped(
                budget(1),
                3,
                &Stamp {
                    granted: "gone".into(),
                    ..numbered(0, PICKED)
                },
            ),
            on(&[(1, 1)]),
        ),
        (
            "it was complete, and has something to do again",
            stamped(budget(1), 1, &numbered(5, "")),
            on(&[(1, 6)]),
        ),
        (
            "somebody emptied its record",
            stamped(budget(2), 2, &emptied),
            on(&[(1, 0), (2, 1)]),
        ),
    ] {
        assert_eq!(numbers(&picture), want, "{what}");
    }
}

#[test]
fn the_stamp_has_the_number_of_the_lease() {
    let mut reserved = leased(budget(1), ordered(4), json!(null));
    reserved.leases[0]["metadata"]["creationTimestamp"] = json!("2023-11-14T22:10:00Z");
    let at_grant = written(&reserved);
    assert_eq!(at_grant.order, Some(4));
    assert_eq!(at_grant.picked, "2023-11-14T22:10:00Z");
    let again = written(&stamped(reserved, 1, &numbered(4, PICKED)));
    assert_eq!((again.order, again.picked.as_str()), (Some(4), PICKED));
}

#[test]
fn a_result_ends_the_claim_to_the_number_only_when_the_node_is_complete() {
    let at_work = |stop: Option<&str>, state: &str| {
        let before = Stamp {
            order: Some(4),
            picked: PICKED.into(),
            ..granted()
        };
        let mut spec = grant_and(ordered(4));
        if let Some(reason) = stop {
            spec["stop"] = json!({ "reason": reason, "since": "t" });
        }
        leased(stamp(budget(1), before), spec, phase(state))
    };
    let emptied = |picture: Picture| {
        let before = Stamp {
            order: Some(4),
            picked: PICKED.into(),
            states: "what was written".into(),
            ..granted()
        };
        stamp(picture, before)
    };
    for (what, picture, order, picked) in [
        ("complete", at_work(None, "Complete"), Some(4), ""),
        (
            "stopped",
            at_work(Some("NewRevision"), "Stopped"),
            Some(4),
            PICKED,
        ),
        (
            "pods did not leave",
            at_work(Some("DrainTimedOut"), "Stopped"),
            Some(4),
            PICKED,
        ),
        (
            "complete, and its record was emptied meanwhile",
            emptied(at_work(None, "Complete")),
            None,
            "",
        ),
        (
            "stopped, because its record was emptied",
            emptied(at_work(Some("Edited"), "Stopped")),
            None,
            "",
        ),
    ] {
        let stamp = written(&picture);
        assert_eq!(
            (stamp.order, stamp.picked.as_str()),
            (order, picked),
            "{what}"
        );
    }
}

#[test]
fn a_lease_does_not_take_a_number_from_its_node() {
    let other = leased(
        stamp(budget(1), numbered(2, PICKED)),
        ordered(4),
        json!(null),
    );
    assert_eq!(
        effects(&other.plan()),
        ["WithdrawLease the node keeps another SKYHOOK_NODE_ORDER"]
    );
    let same = leased(
        stamp(budget(1), numbered(4, PICKED)),
        ordered(4),
        json!(null),
    );
    assert_eq!(effects(&same.plan()), ["PatchNode grant"]);
    // An earlier version of the coordinator created it.
    let none = leased(
        stamp(budget(1), numbered(2, PICKED)),
        json!({}),
        json!(null),
    );
    assert_eq!(effects(&none.plan()), ["PatchNode grant"]);
    assert_eq!(written(&none).order, Some(2));
}

/// Two replicas that both lead may have given the same number.
#[test]
fn of_two_leases_with_one_number_one_is_granted() {
    let other = |more: Value| {
        let mut lease = json!({
            "metadata": {
                "name": "worker-2", "uid": "lease-2", "resourceVersion": "6", "generation": 1,
                "creationTimestamp": "2023-11-14T22:10:01Z",
            },
            "spec": {
                "node": { "name": "worker-2", "uid": "uid-of-worker-2" },
                "skyhook": { "name": "s", "uid": "uid-of-s" }, "order": 4,
            },
        });
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            set(&mut lease, &["spec", &key], value);
        }
        lease
    };
    let both = |created: &str, other: Value| {
        let mut picture = leased(stamp(budget(3), granted()), ordered(4), json!(null));
        picture.leases[0]["metadata"]["creationTimestamp"] = json!(created);
        let revision = picture.leases[0]["spec"]["revision"].clone();
        picture.leases.push(other);
        picture.leases[1]["spec"]["revision"] = revision;
        picture
    };
    let working = |mut picture: Picture| {
        picture.leases[1]["status"] = phase("Preparing");
        picture
    };
    let on_first = |picture: &Picture| {
        let mut effects = effects(&picture.plan());
        effects.retain(|effect| effect.starts_with("Grant") || effect.starts_with("Withdraw"));
        effects
    };
    let taken = "WithdrawLease another node has its SKYHOOK_NODE_ORDER";
    let (older, younger) = ("2023-11-14T22:10:00Z", "2023-11-14T22:10:02Z");
    for (what, picture, want) in [
        (
            "the other has another number",
            both(younger, other(ordered(5))),
            vec!["GrantLease"],
        ),
        (
            "the other is younger and is withdrawn first",
            both(older, other(json!({}))),
            vec![taken],
        ),
        (
            "the other is older",
            both(younger, other(json!({}))),
            vec![taken],
        ),
        (
            "the other is granted, though younger",
            working(both(
                older,
                other(json!({ "granted": { "by": "c", "at": "t" } })),
            )),
            vec![taken],
        ),
        (
            "the other is of a batch",
            both(
                older,
                other(json!({ "batch": { "state": "u", "number": 1 } })),
            ),
            // The Skyhook has no batches, so that one goes as well.
            vec![taken, "WithdrawLease no open batch has the node"],
        ),
        (
            "the other is of another Skyhook",
            both(
                younger,
                other(json!({ "skyhook": { "name": "s", "uid": "an earlier one" } })),
            ),
            vec![
                "WithdrawLease its Node or its Skyhook is gone",
                "GrantLease",
            ],
        ),
    ] {
        let mut given = on_first(&picture);
        given.sort_unstable();
        let mut want: Vec<String> = want.into_iter().map(str::to_owned).collect();
        want.sort_unstable();
        assert_eq!(given, want, "{what}");
    }
}

#[test]
fn the_guard_grants_no_number_twice() {
    let picture = leased(stamp(budget(3), granted()), ordered(4), json!(null));
    let grant = || Effect::GrantLease {
        node: "worker-1".into(),
        at: version("lease", "5"),
        batch: None,
    };
    let settings = Settings::default();
    let check = |picture: &Picture| crate::guard::check(&picture.index(), &settings, &grant());
    assert_eq!(check(&picture), Ok(()));
    let mut both = picture;
    let mut second = both.leases[0].clone();
    second["metadata"]["name"] = json!("worker-2");
    second["metadata"]["uid"] = json!("lease-2");
    second["spec"]["node"] = json!({ "name": "worker-2", "uid": "uid-of-worker-2" });
    both.leases.push(second);
    assert_eq!(check(&both), Err(crate::guard::Broken::GrantOrderTaken));
    both.leases[1]["spec"]["order"] = json!(5);
    assert_eq!(check(&both), Ok(()));
}

#[test]
fn the_status_says_who_was_picked_when_and_which_number_comes_next() {
    let mut picture = leased(is_done(budget(2), 3, 0), ordered(1), json!(null));
    picture.leases[0]["metadata"]["creationTimestamp"] = json!("2023-11-14T22:10:00Z");
    // Worker-2 gets number 2 now, and it is shown when its lease is there.
    assert_eq!(numbers(&picture), on(&[(2, 2)]));
    let status = status_of(&picture);
    assert_eq!(status.node_order_offset, 2);
    assert_eq!(status.node_order_shown, None);
    let priority = |status: &SkyhookStatus| {
        let entries = status.node_priority.iter();
        let entries = entries.map(|(node, at)| format!("{node} {at}"));
        entries.collect::<Vec<_>>()
    };
    assert_eq!(priority(&status), ["worker-1 2023-11-14T22:10:00Z"]);
    // The stamp knows better when it was picked first. A node that is complete was picked, and is no more.
    let before = Stamp {
        order: Some(1),
        picked: PICKED.into(),
        ..granted()
    };
    let status = status_of(&stamp(picture, before));
    assert_eq!(priority(&status), [format!("worker-1 {PICKED}")]);
}
