//! Skyhooks that are deleted while packages have to be uninstalled.

use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::names;
use skyhook_crds::skyhook::SkyhookStatus;

use super::leases::{effects, grant_and, granted, leased, phase, stamp};
use super::*;
use crate::facts::Goal;
use crate::index::Change;

const AT: &str = "2026-01-01T00:00:00Z";

/// Packages: `name enabled?` with `+` for enabled, `-` for an uninstall block that is not, nothing for no block.
fn packages_of(words: &[&str]) -> Value {
    let packages = words.iter().map(|word| {
        let name = word.trim_end_matches(['+', '-']);
        let mut package = json!({ "version": "1.0.0", "image": "r/p" });
        if word.ends_with('+') {
            package["uninstall"] = json!({ "enabled": true });
        } else if word.ends_with('-') {
            package["uninstall"] = json!({ "enabled": false });
        }
        (name.to_owned(), package)
    });
    Value::Object(packages.collect())
}

fn record(names: &[&str]) -> String {
    let entries = names.iter().map(|name| {
        let entry = json!({
            "name": name, "version": "1.0.0", "image": "r/p", "stage": "config", "state": "complete",
        });
        (format!("{name}|1.0.0"), entry)
    });
    Value::Object(entries.collect()).to_string()
}

/// A Skyhook that is being deleted. Budget 1; on each worker these packages are complete.
fn deleting(packages: Value, records: &[&[&str]]) -> Picture {
    let mut picture = Picture::new()
        .skyhook(&["spec", "packages"], packages)
        .skyhook(&["metadata", "deletionTimestamp"], json!(AT));
    picture.nodes.truncate(records.len());
    for (n, names) in records.iter().enumerate() {
        if !names.is_empty() {
            picture = picture.annotated(n + 1, &names::node_state("s"), &record(names));
        }
    }
    picture
}

fn both() -> Picture {
    deleting(
        packages_of(&["aa+", "bb"]),
        &[&["aa", "bb"], &["bb"], &["aa", "bb"]],
    )
}

/// The stamp of a result that this machine reported.
fn of_machine(machine: &str) -> Stamp {
    Stamp {
        lease: "earlier".to_owned(),
        node_machine_id: machine.to_owned(),
        ..Stamp::default()
    }
}

fn goal(picture: &Picture) -> Goal {
    picture.index().picture.skyhooks()["s"].goal()
}

#[test]
fn a_skyhook_goes_when_nothing_is_left_to_uninstall() {
    let readable = |n: usize, record: &str| both().annotated(n, &names::node_state("s"), record);
    let deselected = |picture: Picture| {
        picture.skyhook(
            &["spec", "nodeSelectors"],
            json!({ "matchLabels": { "a": "b" } }),
        )
    };
    for (name, picture, want) in [
        ("not deleted", Picture::new(), Goal::Normal),
        ("enabled packages are there", both(), Goal::Uninstall),
        (
            "no node has one",
            deleting(packages_of(&["aa+", "bb"]), &[&["bb"], &[]]),
            Goal::Nothing,
        ),
        (
            "none is enabled",
            deleting(packages_of(&["aa", "bb-"]), &[&["aa", "bb"]]),
            Goal::Nothing,
        ),
        (
            "the nodes are not selected any more",
            deselected(both()),
            Goal::Uninstall,
        ),
        ("a record cannot be read", readable(2, "{"), Goal::Uninstall),
        (
            "which does not count when another machine wrote it",
            deleting(packages_of(&["aa+"]), &[&["aa"]])
                .annotated(1, &names::node_state("s"), "{")
                .annotated(1, &names::stamp("s"), &of_machine("another").render()),
            Goal::Nothing,
        ),
        (
            "but counts when this machine did",
            deleting(packages_of(&["aa+"]), &[&["aa"]])
                .annotated(1, &names::node_state("s"), "{")
                .annotated(1, &names::stamp("s"), &of_machine("m").render()),
            Goal::Uninstall,
        ),
        (
            "which does not count without enabled packages",
            deleting(packages_of(&["aa"]), &[&["aa"]]).annotated(1, &names::node_state("s"), "{"),
            Goal::Nothing,
        ),
        (
            "somebody took our finalizer away",
            both().skyhook(&["metadata", "finalizers"], json!(["other/finalizer"])),
            Goal::Nothing,
        ),
        (
            "the spec is not valid",
            both().skyhook(&["spec", "packages", "aa", "version"], json!("x")),
            Goal::Nothing,
        ),
    ] {
        assert_eq!(goal(&picture), want, "{name}");
    }
}

/// The spec of the leases that a pass reserves.
fn reserved(plan: &Plan) -> Vec<InterruptionLeaseSpec> {
    let effects = plan.effects.iter();
    let reserved = effects.filter_map(|effect| match effect {
        Effect::ReserveLease { spec, .. } => Some((**spec).clone()),
        _ => None,
    });
    reserved.collect()
}

#[test]
fn packages_are_uninstalled_under_the_budget_at_a_revision_of_their_own() {
    let picture = both();
    let index = picture.index();
    let checked = index.picture.skyhooks()["s"].checked.clone().unwrap();
    let names: Vec<&String> = checked.data.packages.keys().collect();
    assert_eq!(names, ["aa"]);
    assert!(checked.data.packages["aa"].is_to_go());
    assert_eq!(checked.data.left_behind, ["bb".to_owned()].into());
    let plan = picture.plan_of(&index);
    let leases = reserved(&plan);
    let leases: Vec<(&str, &str)> = leases
        .iter()
        .map(|spec| (spec.node.name.as_str(), spec.revision.as_str()))
        .collect();
    assert_eq!(leases, [("worker-1", checked.revision.as_str())]);
    let mut released = plan.effects.iter();
    assert!(!released.any(|effect| matches!(effect, Effect::ReleaseSkyhook { .. })));
    // Not before the revision is stored.
    let bare = testkit::index(&picture.nodes, &picture.skyhooks, &[], &[]);
    let plan = picture.plan_of(&bare);
    assert_eq!(reserved(&plan), []);
    let creates = plan.effects.iter().any(
        |effect| matches!(effect, Effect::CreateRevision { name, .. } if *name == checked.revision),
    );
    assert!(creates);
}

#[test]
fn a_dependency_that_stays_is_none_of_the_revision() {
    let mut packages = packages_of(&["aa+", "bb", "cc+"]);
    packages["aa"]["dependsOn"] = json!({ "bb": "1.0.0", "cc": "1.0.0" });
    let index = deleting(packages, &[&["aa"]]).index();
    let checked = index.picture.skyhooks()["s"].checked.clone().unwrap();
    let on: Vec<&String> = checked.data.packages["aa"].depends_on.keys().collect();
    assert_eq!(on, ["cc"]);
}

/// worker-1 is worked on, and nobody has edited its record.
fn stamped(picture: Picture, names: &[&str]) -> Picture {
    let record = match names {
        [] => String::new(),
        names => record(names),
    };
    let of_record = Stamp {
        states: states_digest(&record),
        ..granted()
    };
    stamp(picture, of_record)
}

#[test]
fn an_agent_at_work_ends_for_the_revision_that_uninstalls() {
    let working = |words: &[&str], names: &[&str]| {
        let picture = deleting(packages_of(words), &[names]);
        let of_before = json!({ "revision": "s-before-the-deletion" });
        leased(
            stamped(picture, names),
            grant_and(of_before),
            phase("Running"),
        )
    };
    for (name, picture, want) in [
        (
            "its package goes",
            working(&["aa+"], &["aa"]),
            "NewRevision",
        ),
        (
            "it may be installing one: the record does not say so yet",
            working(&["aa+"], &[]),
            "NewRevision",
        ),
        (
            "nothing is to be uninstalled",
            working(&["aa"], &["aa"]),
            "Deleted",
        ),
    ] {
        let index = picture.index();
        let plan = picture.plan_of(&index);
        let stop = plan.effects.iter().find_map(|effect| match effect {
            Effect::StopLease {
                stop: Some(reason), ..
            } => Some(format!("{reason:?}")),
            _ => None,
        });
        assert_eq!(stop.as_deref(), Some(want), "{name}");
        let fact = &index.picture.leases()["worker-1"];
        let lease = fact.lease.as_ref().unwrap();
        let given_up = index.picture.is_given_up(lease);
        assert_eq!(given_up, want == "Deleted", "{name}");
        let clock = index.clocks.lease("worker-1").unwrap();
        assert_eq!(clock.given_up.is_some(), given_up, "{name}");
    }
}

/// An uninstall may last long: nobody gives its lease up.
#[test]
fn a_lease_is_given_up_only_once_nothing_is_left_to_uninstall() {
    let picture = deleting(packages_of(&["aa+"]), &[&["aa"]]);
    let picture = leased(
        stamped(picture, &["aa"]),
        grant_and(json!({ "stop": { "reason": "NewRevision", "since": AT } })),
        phase("Running"),
    );
    let mut index = picture.index();
    let later = Picture {
        now: Mono::from_secs(100_000),
        ..picture.clone()
    };
    let all = effects(&later.plan_of(&index));
    assert!(!all.iter().any(|one| one.contains("Abandon")), "{all:?}");
    // The way out: the package need not be uninstalled.
    let mut edited = picture.skyhooks[0].clone();
    set(
        &mut edited,
        &["spec", "packages", "aa", "uninstall", "enabled"],
        json!(false),
    );
    set(&mut edited, &["metadata", "resourceVersion"], json!("2"));
    set(&mut edited, &["metadata", "generation"], json!(2));
    let edited = serde_json::from_value(edited).unwrap();
    index.apply(Change::Skyhook(Box::new(edited)), Mono::from_secs(100_000));
    assert_eq!(index.picture.skyhooks()["s"].goal(), Goal::Nothing);
    let much_later = Picture {
        now: Mono::from_secs(200_000),
        ..picture
    };
    let all = effects(&much_later.plan_of(&index));
    assert!(all.iter().any(|one| one.contains("Abandon")), "{all:?}");
}

/// What becomes of the goal when a node changes: nothing else tells the coordinator.
#[test]
fn the_last_node_lets_the_skyhook_go() {
    let picture = deleting(packages_of(&["aa+", "bb"]), &[&["aa", "bb"], &["bb"]]);
    let mut index = picture.index();
    let mut cache = crate::plan::cache::Cache::default();
    let now = Now {
        mono: Mono::from_secs(1000),
        wall: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    let first = cache.plan(&index.view(&picture.settings, now));
    assert_eq!(reserved(&first).len(), 1);
    let left = record(&["bb"]);
    let uninstalled = Stamp {
        lease: "l".into(),
        states: states_digest(&left),
        ..Stamp::default()
    };
    let done = picture
        .clone()
        .annotated(1, &names::node_state("s"), &left)
        .annotated(1, &names::stamp("s"), &uninstalled.render())
        .node(1, &["metadata", "resourceVersion"], json!("2"));
    let node = serde_json::from_value(done.nodes[0].clone()).unwrap();
    index.apply(Change::Node(Box::new(node)), Mono::from_secs(1000));
    assert_eq!(index.picture.skyhooks()["s"].goal(), Goal::Nothing);
    let second = cache.plan(&index.view(&picture.settings, now));
    assert_eq!(reserved(&second), []);
    let mut all = second.effects.iter();
    assert!(all.any(|effect| matches!(effect, Effect::ReleaseSkyhook { .. })));
    // A Node that is deleted holds nothing up either.
    let mut index = picture.index();
    index.apply(Change::NodeGone("worker-1".into()), Mono::from_secs(1000));
    assert_eq!(index.picture.skyhooks()["s"].goal(), Goal::Nothing);
}

#[test]
fn a_later_skyhook_waits_for_the_uninstall() {
    let another = |picture: Picture| {
        let later = json!({ "packages": packages(), "priority": 300 });
        picture.another(skyhook("t", later))
    };
    let uninstalling = another(both());
    let nothing = another(deleting(
        packages_of(&["aa", "bb"]),
        &[&["aa", "bb"], &["bb"], &["aa"]],
    ));
    let worker = |picture: &Picture| {
        let plan = picture.plan();
        let of_t = |spec: &InterruptionLeaseSpec| spec.skyhook.name == "t";
        let leases = reserved(&plan).into_iter().filter(of_t);
        leases.map(|spec| spec.node.name).collect::<Vec<_>>()
    };
    // Nothing is to be uninstalled from the second one.
    assert_eq!(worker(&uninstalling), ["worker-2"]);
    // Nor from the third one, once it is another machine than the one that its record is about.
    let stamp = of_machine("another").render();
    let replaced = uninstalling.annotated(3, &names::stamp("s"), &stamp);
    assert_eq!(worker(&replaced), ["worker-2", "worker-3"]);
    assert_eq!(worker(&nothing), ["worker-1", "worker-2", "worker-3"]);
}

/// Without a valid spec nobody knows what to uninstall. That is not kept quiet.
#[test]
fn a_skyhook_that_is_not_valid_tells_what_it_leaves_behind() {
    let broken =
        |picture: Picture| picture.skyhook(&["spec", "packages", "aa", "version"], json!("x"));
    let clean = stamped(deleting(packages_of(&["aa+"]), &[&["aa"], &[]]), &["aa"]);
    let nothing = deleting(packages_of(&["aa+"]), &[&[], &[]]);
    let valid = deleting(packages_of(&["aa"]), &[&["aa"], &[]]);
    for (name, picture, want) in [
        ("packages are there", broken(clean), 1),
        ("nothing is there", broken(nothing), 0),
        ("it is valid", valid, 0),
    ] {
        let plan = picture.plan();
        let mut released = plan.effects.iter();
        let released = released.any(|effect| matches!(effect, Effect::ReleaseSkyhook { .. }));
        assert!(released, "{name}");
        let told = plan.effects.iter();
        let told = told.flat_map(|effect| crate::events::events(&picture.index(), effect));
        let told: Vec<_> = told.filter(|e| e.reason == "PackagesLeftBehind").collect();
        assert_eq!(told.len(), want, "{name}");
        for event in told {
            assert!(event.note.contains("spec.packages"), "{}", event.note);
            assert!(
                event.note.ends_with("its packages stay on: worker-1"),
                "{}",
                event.note
            );
        }
    }
}

fn status(plan: &Plan) -> Option<SkyhookStatus> {
    plan.effects.iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { name, status, .. } if name == "s" => Some((**status).clone()),
        _ => None,
    })
}

#[test]
fn what_holds_a_deletion_up_is_said() {
    let with = |key: &str| both().skyhook(&["metadata", "annotations"], json!({ key: "true" }));
    for (name, picture, want) in [
        ("it goes on", both(), None),
        (
            "paused",
            with(names::PAUSE),
            Some("PausedWithPendingUninstall"),
        ),
        (
            "disabled",
            with(names::DISABLE),
            Some("DisabledWithPendingUninstall"),
        ),
        (
            "a record cannot be read",
            both().annotated(2, &names::node_state("s"), "{"),
            Some("MalformedNodeState"),
        ),
        (
            "paused, and nothing is left",
            deleting(packages_of(&["bb"]), &[&["bb"]]).skyhook(
                &["metadata", "annotations"],
                json!({ names::PAUSE: "true" }),
            ),
            None,
        ),
    ] {
        let plan = picture.plan();
        let status = status(&plan);
        let conditions = status.iter().flat_map(|status| &status.conditions);
        let blocked = conditions
            .clone()
            .find(|one| one.type_ == "DeletionBlocked");
        assert_eq!(blocked.map(|one| one.reason.as_str()), want, "{name}");
        if goal(&picture) == Goal::Uninstall {
            let ready = conditions.clone().find(|one| one.type_ == "Ready").unwrap();
            assert_eq!(
                (&*ready.status, &*ready.reason),
                ("False", "Deleting"),
                "{name}"
            );
            let in_progress = conditions
                .clone()
                .any(|one| one.type_ == "UninstallInProgress");
            assert!(in_progress, "{name}");
        }
        let events = plan
            .effects
            .iter()
            .flat_map(|effect| crate::events::events(&picture.index(), effect));
        let events: Vec<_> = events
            .filter(|one| one.reason == "DeletionBlocked")
            .collect();
        assert_eq!(events.len(), usize::from(want.is_some()), "{name}");
        assert!(events.iter().all(|event| event.warning), "{name}");
    }
}
