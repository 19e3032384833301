//! How leases end that no agent ends, and which time counts for that.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a filter for the effect that a test is about"
)]

use super::leases::{effects, grant_and, granted, leased, phase, stamp, with_package};
use super::*;
use skyhook_crds::installed::Stamp;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Objects that arrive at given times, and what is planned for worker-1 later.
struct Timeline {
    picture: Picture,
    index: crate::index::Index,
}

impl Timeline {
    /// The objects of `picture` arrive at time zero.
    fn new(picture: Picture) -> Self {
        let index = picture.index();
        Self { picture, index }
    }

    /// From `at` on, the Skyhook and the lease are those of `picture`.
    fn then(mut self, at: Duration, picture: Picture) -> Self {
        let at = Mono::after(at);
        let object = &picture.skyhooks[0];
        let skyhook = Box::new(serde_json::from_value(object.clone()).unwrap());
        self.index.apply(crate::index::Change::Skyhook(skyhook), at);
        let lease = Box::new(serde_json::from_value(picture.leases[0].clone()).unwrap());
        self.index.apply(crate::index::Change::Lease(lease), at);
        self.picture = picture;
        self
    }

    fn at(&self, now: Duration) -> Vec<String> {
        let picture = Picture {
            now: Mono::after(now),
            ..self.picture.clone()
        };
        let all = effects(&picture.plan_of(&self.index));
        all.into_iter()
            .filter(|effect| !effect.starts_with("PatchNode"))
            .collect()
    }
}

fn running(picture: Picture, stop: Option<&str>) -> Picture {
    let spec = stop.map_or(
        json!({}),
        |reason| json!({ "stop": { "reason": reason, "since": "2026-01-01T00:00:00Z" } }),
    );
    leased(stamp(picture, granted()), grant_and(spec), phase("Running"))
}

fn annotated(key: &str) -> Picture {
    let key = format!("skyhook.nvidia.com/{key}");
    Picture::new().skyhook(&["metadata", "annotations", &key], json!("true"))
}

fn deleted() -> Picture {
    Picture::new().skyhook(
        &["metadata", "deletionTimestamp"],
        json!("2026-01-01T00:00:00Z"),
    )
}

#[test]
fn a_long_pause_leaves_the_agent_its_time_to_stop() {
    let paused = Timeline::new(running(annotated("pause"), Some("Paused")));
    assert_eq!(paused.at(HOUR), Vec::<String>::new());
    let disabled = paused.then(HOUR, running(annotated("disable"), Some("Paused")));
    assert_eq!(disabled.at(HOUR), vec!["StopLease Some(Disabled)"]);
    let told = disabled.then(HOUR, running(annotated("disable"), Some("Disabled")));
    assert_eq!(told.at(HOUR + MINUTE), Vec::<String>::new());
    // The gracefulShutdown of the package, and one minute.
    assert_eq!(told.at(HOUR + 2 * MINUTE), vec!["AbandonLease"]);
}

#[test]
fn a_skyhook_is_deleted_whatever_its_leases_were_told_before() {
    for reason in ["NewRevision", "Edited", "DrainTimedOut", "Disabled"] {
        let gone = Timeline::new(running(Picture::new(), Some(reason)))
            .then(HOUR, running(deleted(), Some(reason)));
        assert_eq!(gone.at(HOUR + MINUTE), Vec::<String>::new(), "{reason}");
        assert_eq!(gone.at(HOUR + 2 * MINUTE), vec!["AbandonLease"], "{reason}");
    }
}

#[test]
fn a_finished_agent_on_a_node_that_does_not_come_back_holds_up_no_deletion() {
    let not_ready = json!([{ "type": "Ready", "status": "False" }]);
    for (name, path, value) in [
        ("not Ready", ["status", "conditions"], not_ready),
        (
            "another boot",
            ["status", "nodeInfo"],
            json!({ "bootID": "another", "machineID": "m" }),
        ),
    ] {
        let finished = |picture: Picture| {
            let picture = stamp(picture, granted()).node(1, &path, value.clone());
            leased(
                picture,
                grant_and(json!({})),
                with_package("Complete", "complete"),
            )
        };
        let waits = Timeline::new(finished(Picture::new()));
        assert_eq!(waits.at(2 * HOUR), Vec::<String>::new(), "{name}: it may");
        for gone in [deleted(), annotated("disable")] {
            let gone = Timeline::new(finished(Picture::new())).then(HOUR, finished(gone));
            assert_eq!(gone.at(HOUR + MINUTE), Vec::<String>::new(), "{name}");
            assert_eq!(gone.at(HOUR + 2 * MINUTE), vec!["AbandonLease"], "{name}");
        }
    }
}

#[test]
fn a_skyhook_that_is_deleted_says_what_it_waits_for() {
    let ready = |picture: &Picture| {
        let status = picture.plan().effects.into_iter().find_map(|e| match e {
            Effect::WriteSkyhookStatus { status, .. } => Some(*status),
            _ => None,
        });
        let conditions = status.map(|status| status.conditions).unwrap_or_default();
        let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
        ready.map(|ready| (ready.status, ready.reason, ready.message))
    };
    let waits = |message: &str| Some(("False".into(), "Deleting".into(), message.into()));
    let leased = running(deleted(), None);
    assert_eq!(ready(&leased), waits("waits for the leases of: worker-1"));
    let owners = r#"{"wasUnschedulable":false,"owners":{"s":"lease"}}"#;
    let cordoned = deleted().annotated(2, skyhook_crds::names::CORDON_OWNERS, owners);
    assert_eq!(
        ready(&cordoned),
        waits("gives back the cordons of: worker-2")
    );
    assert_eq!(ready(&deleted()), None, "it goes");
}

#[test]
fn a_drain_has_all_its_time_after_a_pause() {
    let draining = |picture: Picture, stop: serde_json::Value| {
        let drain = json!({ "state": "Draining", "since": "2023-11-14T21:13:20Z" });
        let picture = picture.skyhook(&["spec", "drainConfig"], json!({ "timeout": "10m" }));
        leased(
            stamp(picture, granted()),
            grant_and(json!({ "drain": drain, "stop": stop })),
            json!({ "phase": "AwaitingDrain", "needsDrain": true, "bootID": "boot-of-worker-1" }),
        )
    };
    let paused = json!({ "reason": "Paused", "since": "2026-01-01T00:00:00Z" });
    let told = |timeline: &Timeline, now| {
        timeline
            .at(now)
            .contains(&"StopLease Some(DrainTimedOut)".to_owned())
    };
    // The drain began an hour before the wall-clock time of the tests.
    let on = Timeline::new(draining(Picture::new(), json!(null)));
    assert!(told(&on, HOUR), "{:?}", on.at(HOUR));
    let resumed = Timeline::new(draining(annotated("pause"), paused))
        .then(HOUR, draining(Picture::new(), json!(null)));
    assert!(!told(&resumed, HOUR + 9 * MINUTE));
    assert!(told(&resumed, HOUR + 10 * MINUTE));
}

#[test]
fn a_lease_that_cannot_be_read_goes_when_an_administrator_says_so() {
    let unreadable = |annotation: &str| {
        let mut picture = running(Picture::new(), None);
        let lease = &mut picture.leases[0];
        lease["spec"]["drain"] = json!("a later version's");
        lease["metadata"]["annotations"] =
            json!({ "skyhook.nvidia.com/force-release": annotation });
        Timeline::new(picture)
    };
    assert_eq!(unreadable("another lease").at(HOUR), Vec::<String>::new());
    let forced = unreadable("lease");
    assert_eq!(forced.at(HOUR), vec!["ReleaseLease"]);
    let plan = forced.picture.plan_of(&forced.index);
    for effect in &plan.effects {
        crate::guard::check(&forced.index, &forced.picture.settings, effect).unwrap();
    }
}

#[test]
fn of_two_control_plane_nodes_that_were_reserved_at_once_one_is_withdrawn() {
    let label = ["metadata", "labels", skyhook_crds::names::CONTROL_PLANE];
    let picture = Picture::new()
        .node(1, &label, json!(""))
        .node(2, &label, json!(""))
        .skyhook(&["spec", "interruptionBudget"], json!({ "count": 2 }));
    let mut picture = leased(stamp(picture, granted()), json!({}), json!(null));
    let mut second = picture.leases[0].clone();
    second["metadata"]["name"] = json!("worker-2");
    second["metadata"]["uid"] = json!("second");
    second["spec"]["node"] = json!({ "name": "worker-2", "uid": "uid-of-worker-2" });
    for (lease, created) in [(&mut picture.leases[0], 1), (&mut second, 2)] {
        let time = format!("2026-01-01T00:00:0{created}Z");
        lease["metadata"]["creationTimestamp"] = json!(time);
    }
    let only = Timeline::new(picture.clone());
    assert_eq!(only.at(HOUR), vec!["GrantLease"]);
    picture.leases.push(second);
    let both = Timeline::new(picture);
    assert_eq!(
        both.at(HOUR),
        vec!["WithdrawLease it does not fit the budget"],
        "and nothing is granted meanwhile"
    );
    let grant = Effect::GrantLease {
        node: "worker-1".into(),
        at: version("lease", "5"),
        batch: None,
    };
    assert_eq!(
        crate::guard::check(&both.index, &both.picture.settings, &grant),
        Err(crate::guard::Broken::GrantBeyondBudget)
    );
}

#[test]
fn one_lease_beyond_the_cap_is_one_that_is_withdrawn() {
    let mut picture = Picture::new();
    picture.settings.max_concurrent_nodes = Some(2);
    for (n, name) in [(2, "t"), (3, "u")] {
        let selector = json!({ "matchLabels": { "for": name } });
        let other = skyhook(name, json!({ "nodeSelectors": selector }));
        picture = picture
            .node(n, &["metadata", "labels", "for"], json!(name))
            .another(other);
    }
    let selector = json!({ "matchLabels": { "for": "s" } });
    picture = picture
        .node(1, &["metadata", "labels", "for"], json!("s"))
        .skyhook(&["spec", "nodeSelectors"], selector);
    let index = picture.index();
    for (n, name) in [(1, "s"), (2, "t"), (3, "u")] {
        let checked = index.picture.skyhooks()[name].checked.as_ref().unwrap();
        picture.leases.push(json!({
            "metadata": {
                "name": format!("worker-{n}"), "uid": format!("lease-{n}"), "resourceVersion": "5",
                "creationTimestamp": format!("2026-01-01T00:00:0{n}Z"),
            },
            "spec": {
                "node": { "name": format!("worker-{n}"), "uid": format!("uid-of-worker-{n}") },
                "skyhook": { "name": name, "uid": format!("uid-of-{name}") },
                "revision": checked.revision,
            },
        }));
    }
    let withdrawn = |effect: &Effect| match effect {
        Effect::WithdrawLease { node, .. } => Some(node.clone()),
        _ => None,
    };
    let withdrawn: Vec<String> = picture
        .plan()
        .effects
        .iter()
        .filter_map(withdrawn)
        .collect();
    assert_eq!(withdrawn, ["worker-3"], "the youngest");
}

/// The replica that gave the drain up may be gone: the Node says when that was.
#[test]
fn a_node_whose_drain_took_too_long_is_left_alone_after_a_change_of_the_leader() {
    let stop = json!({ "reason": "DrainTimedOut", "since": "2023-11-14T22:13:00Z" });
    let stopped = leased(
        stamp(Picture::new(), granted()),
        grant_and(json!({ "stop": stop })),
        phase("Stopped"),
    );
    let written = stopped.plan().effects.into_iter().find_map(|e| match e {
        Effect::PatchNode { patch, .. } => {
            patch.annotations.get("skyhook.nvidia.com/stamp_s").cloned()
        }
        _ => None,
    });
    let written = written.flatten().expect("the result is recorded");
    // The time of every plan here is 2023-11-14T22:13:20Z.
    let recorded = Stamp::parse(Some(&written)).expect("it is a stamp");
    assert_eq!(recorded.drain_timed_out, "2023-11-14T22:13:20Z");

    let cool_down = Settings::default().drain_cool_down;
    assert_eq!(cool_down, 10 * MINUTE);
    let next = |drain_timed_out: &str, seen_for: Duration| {
        let stamp = Stamp {
            drain_timed_out: drain_timed_out.to_owned(),
            ..recorded.clone()
        };
        let picture = Picture {
            // The objects arrive at the time 0.
            now: Mono::after(seen_for),
            ..Picture::new().annotated(1, "skyhook.nvidia.com/stamp_s", &stamp.render())
        };
        let wakes = picture.plan().wake_at;
        (picture.reason("s", "worker-1"), picture.reserved(), wakes)
    };
    let second = Duration::from_secs(1);
    let blocked = || "DrainTimedOut".to_owned();
    let other = || vec!["s/worker-2".to_owned()];
    let left = |left: Duration, now: Duration| Some(Mono::after(now + left));
    // Just given up by another replica. From two seconds on, the other nodes say something too.
    let (reason, reserved, wakes) = next("2023-11-14T22:13:20Z", 2 * second);
    assert_eq!((reason, reserved), (blocked(), other()));
    assert_eq!(wakes, left(cool_down - 2 * second, 2 * second));
    // Almost over, by the time on the Node.
    let (reason, reserved, wakes) = next("2023-11-14T22:03:30Z", 2 * second);
    assert_eq!((reason, reserved), (blocked(), other()));
    assert_eq!(wakes, left(10 * second, 2 * second));
    // The clock of the other replica was two hours ahead: this is no reason to wait longer than the cool-down.
    let ahead = "2023-11-15T00:13:20Z";
    let (reason, reserved, wakes) = next(ahead, cool_down - second);
    assert_eq!((reason, reserved), (blocked(), other()));
    assert_eq!(wakes, left(second, cool_down - second));
    for (since, seen_for) in [
        ("2023-11-14T22:03:20Z", second),
        (ahead, cool_down),
        ("", second),
    ] {
        let (_, reserved, _) = next(since, seen_for);
        assert_eq!(reserved, ["s/worker-1"], "{since} seen for {seen_for:?}");
    }
    // The next grant forgets it.
    let again = Stamp {
        drain_timed_out: "2023-11-14T22:03:20Z".into(),
        granted: String::new(),
        ..granted()
    };
    let reserved = leased(stamp(Picture::new(), again), json!({}), json!(null));
    let stamped = reserved.plan().effects.into_iter().find_map(|e| match e {
        Effect::PatchNode { patch, .. } => {
            patch.annotations.get("skyhook.nvidia.com/stamp_s").cloned()
        }
        _ => None,
    });
    let stamped = Stamp::parse(stamped.flatten().as_deref()).expect("the Node is stamped");
    assert_eq!(
        (stamped.granted.as_str(), stamped.drain_timed_out.as_str()),
        ("lease", "")
    );
}
