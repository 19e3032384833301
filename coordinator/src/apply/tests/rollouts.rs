//! Reads that come before decisions about roll-outs.

use skyhook_crds::rollout;
use skyhook_fleet::batches::Look;

use super::*;

/// The answer to a GET of an object that is not there.
fn missing() -> Value {
    let mut answer = status(404, "not found");
    answer["reason"] = json!("NotFound");
    answer
}

/// A lease as the API server holds it.
fn lease(node: &str, skyhook_uid: &str) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "InterruptionLease",
        "metadata": { "name": node, "uid": "l", "resourceVersion": "1" },
        "spec": {
            "node": { "name": node, "uid": format!("uid-of-{node}") },
            "skyhook": { "name": "x", "uid": skyhook_uid },
            "revision": "r",
        },
    })
}

fn list(items: &[Value]) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "InterruptionLeaseList",
        "metadata": { "resourceVersion": "9" }, "items": items,
    })
}

#[tokio::test]
async fn a_member_has_left_unless_this_skyhook_has_leased_its_node() {
    let undecodable = |node: Value| {
        let mut lease = lease("n1", "own");
        lease["spec"]["skyhook"] = json!("nonsense");
        lease["spec"]["node"] = node;
        lease
    };
    let of = |uid: &str| json!({ "name": "n", "uid": uid });
    for (name, leases, left) in [
        ("no lease", vec![], true),
        ("its own", vec![lease("n1", "own")], false),
        ("of another Skyhook", vec![lease("n1", "other")], true),
        ("of another node", vec![lease("n2", "own")], true),
        (
            "undecodable, of its node",
            vec![undecodable(of("uid-of-n1"))],
            false,
        ),
        (
            "undecodable, of another node",
            vec![undecodable(of("uid-of-n2"))],
            true,
        ),
        (
            "undecodable, of an unknown node",
            vec![undecodable(json!({}))],
            false,
        ),
    ] {
        let look = Look {
            state: "state".into(),
            batch: 3,
            id: rollout::member("uid-of-n1"),
        };
        let (applier, asked) = answering(vec![(200, list(&leases))]);
        let effect = Effect::LookForLeases {
            skyhook: "s".into(),
            skyhook_uid: "own".into(),
            looks: vec![look.clone()],
        };
        let outcome = applier.apply(&effect, "t").await;
        let Outcome::Done(Some(Change::Left { looks, .. })) = outcome else {
            panic!("{name}: {outcome:?}");
        };
        assert_eq!(looks.contains(&look), left, "{name}");
        let path = "GET /apis/skyhook.nvidia.com/v1alpha1/interruptionleases";
        assert_eq!(lines(&asked), [path]);
    }
}

#[tokio::test]
async fn a_state_that_a_get_does_not_show_is_gone() {
    let live = |uid: &str| {
        json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "RolloutState",
            "metadata": { "name": "s", "uid": uid, "resourceVersion": "1" }, "spec": {},
        })
    };
    for (name, code, answer, gone) in [
        ("none", 404, missing(), &["old", "older"][..]),
        ("another", 200, live("newer"), &["old", "older"]),
        ("one of them", 200, live("old"), &["older"]),
    ] {
        let (applier, asked) = answering(vec![(code, answer)]);
        let effect = Effect::LookForState {
            skyhook: "s".into(),
            states: vec!["old".into(), "older".into()],
        };
        let outcome = applier.apply(&effect, "t").await;
        let Outcome::Done(Some(Change::StatesGone { skyhook, states })) = outcome else {
            panic!("{name}: {outcome:?}");
        };
        assert_eq!(
            (skyhook.as_str(), &states[..]),
            (
                "s",
                &gone.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..]
            ),
            "{name}"
        );
        let get = "GET /apis/skyhook.nvidia.com/v1alpha1/rolloutstates/s";
        assert_eq!(lines(&asked), [get]);
    }
    // Another failure says nothing.
    let (applier, _) = answering(vec![(403, status(403, "no"))]);
    let effect = Effect::LookForState {
        skyhook: "s".into(),
        states: vec!["old".into()],
    };
    let outcome = applier.apply(&effect, "t").await;
    assert!(matches!(outcome, Outcome::Refused { .. }), "{outcome:?}");
}

#[tokio::test]
async fn the_state_of_a_skyhook_that_is_there_is_not_deleted() {
    let skyhook = |uid: &str| {
        json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
            "metadata": { "name": "s", "uid": uid, "resourceVersion": "1" }, "spec": {},
        })
    };
    let get = "GET /apis/skyhook.nvidia.com/v1alpha1/skyhooks/s";
    let delete = "DELETE /apis/skyhook.nvidia.com/v1alpha1/rolloutstates/s";
    let deleted = || (200, status(200, "deleted"));
    for (name, not_of, answers, asked_for) in [
        ("its own", None, vec![deleted()], vec![delete]),
        (
            "made anew",
            Some("owner"),
            vec![(200, skyhook("another")), deleted()],
            vec![get, delete],
        ),
        (
            "gone",
            Some("owner"),
            vec![(404, missing()), deleted()],
            vec![get, delete],
        ),
        (
            "there",
            Some("owner"),
            vec![(200, skyhook("owner"))],
            vec![get],
        ),
    ] {
        let (applier, asked) = answering(answers);
        let effect = Effect::DeleteRollout {
            name: "s".into(),
            at: AsOf {
                uid: "u".into(),
                resource_version: "1".into(),
            },
            not_of: not_of.map(str::to_owned),
        };
        let outcome = applier.apply(&effect, "t").await;
        assert_eq!(lines(&asked), asked_for, "{name}");
        let is_stale = matches!(outcome, Outcome::Stale);
        assert_eq!(
            is_stale,
            asked_for.len() == 1 && not_of.is_some(),
            "{name}: {outcome:?}"
        );
    }
}
