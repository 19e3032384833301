//! A Skyhook that is deleted, and another one that is made under its name.

use skyhook_crds::installed::{Stamp, states_digest};
use skyhook_crds::names;
use skyhook_crds::revision::RevisionData;

use super::*;
use crate::index::Change;

const EARLIER: &str = "uid of an earlier Skyhook";

fn revision(name: &str, number: i64, owner: &str, data: &Value) -> Value {
    json!({
        "metadata": {
            "name": name, "uid": format!("uid-of-{name}"), "resourceVersion": "1",
            "labels": { names::REVISION_OF: "s" },
            "annotations": { names::WRITTEN_FOR: owner },
        },
        "revision": number,
        "data": data,
    })
}

fn package(config: Option<&str>, uninstall: Option<bool>) -> Value {
    let mut package = json!({ "version": "1.0.0", "image": "r/aa" });
    if let Some(config) = config {
        package["configMap"] = json!({ "key": config });
    }
    if let Some(enabled) = uninstall {
        package["uninstall"] = json!({ "enabled": enabled });
    }
    package
}

/// What a revision of a Skyhook with these packages holds.
fn data(packages: &Value) -> Value {
    let picture = Picture::new().skyhook(&["spec", "packages"], packages.clone());
    let index = testkit::index(&picture.nodes, &picture.skyhooks, &[], &[]);
    let checked = index.picture.skyhooks()["s"].checked.clone().unwrap();
    serde_json::to_value(&checked.data).unwrap()
}

/// worker-1 as an earlier Skyhook has left it, which had these packages at its fifth revision.
struct Left {
    packages: Value,
    record: String,
}

impl Left {
    fn complete(packages: Value) -> Self {
        Self {
            packages,
            record: complete("1.0.0"),
        }
    }

    /// The Skyhook of now, with these packages. None of its revisions is stored.
    fn index(&self, packages: &Value) -> (Picture, Index) {
        let mut picture = Picture::new().skyhook(&["spec", "packages"], packages.clone());
        picture.nodes.truncate(1);
        let stamp = Stamp {
            lease: "of the earlier one".into(),
            revision: "s-earlier".into(),
            states: states_digest(&self.record),
            ..Stamp::default()
        };
        let picture = picture
            .annotated(1, &names::node_state("s"), &self.record)
            .annotated(1, &names::stamp("s"), &stamp.render());
        let revisions = [revision("s-earlier", 5, EARLIER, &data(&self.packages))];
        let index = testkit::index(&picture.nodes, &picture.skyhooks, &[], &revisions);
        (picture, index)
    }
}

/// The revision that a pass stores, and its number.
fn stored(plan: &Plan) -> Option<(RevisionData, i64, Value)> {
    plan.effects.iter().find_map(|effect| match effect {
        Effect::CreateRevision {
            name,
            skyhook,
            skyhook_uid,
            number,
            data,
        } => Some((
            (**data).clone(),
            *number,
            json!({ "name": name, "skyhook": skyhook, "uid": skyhook_uid }),
        )),
        _ => None,
    })
}

/// Whether worker-1 gets a lease once the revision is stored.
fn is_leased(left: &Left, packages: &Value) -> bool {
    let (picture, mut index) = left.index(packages);
    let (data, number, created) = stored(&picture.plan_of(&index)).expect("a revision");
    assert_eq!(number, 6, "it comes after those of the earlier Skyhook");
    assert_eq!(created["uid"], "uid-of-s");
    let name = created["name"].as_str().unwrap();
    let data = serde_json::to_value(data).unwrap();
    let revision = revision(name, number, "uid-of-s", &data);
    let revision = serde_json::from_value(revision).unwrap();
    index.apply(Change::Revision(Box::new(revision)), Mono::ZERO);
    let plan = picture.plan_of(&index);
    assert!(stored(&plan).is_none(), "it is stored once");
    let mut effects = plan.effects.iter();
    effects.any(|effect| matches!(effect, Effect::ReserveLease { .. }))
}

#[test]
fn what_has_not_changed_is_complete_at_once_and_the_rest_is_an_edit() {
    let unchanged = json!({ "aa": package(Some("x"), None) });
    let middle = Left {
        packages: unchanged.clone(),
        record: complete("1.0.0").replace("config", "apply"),
    };
    let done = Left::complete(unchanged.clone());
    for (name, left, packages, want) in [
        ("nothing has changed", &done, unchanged.clone(), false),
        (
            "the configuration",
            &done,
            json!({ "aa": package(Some("y"), None) }),
            true,
        ),
        (
            "another package came",
            &done,
            json!({ "aa": package(Some("x"), None), "bb": package(None, None) }),
            true,
        ),
        ("it is in the middle", &middle, unchanged.clone(), true),
        (
            "the package was removed",
            &done,
            json!({ "bb": package(None, None) }),
            true,
        ),
    ] {
        assert_eq!(is_leased(left, &packages), want, "{name}");
    }
}

#[test]
fn what_the_earlier_skyhook_left_behind_stays() {
    let both = json!({ "aa": package(None, Some(false)), "bb": package(None, None) });
    for (enabled, want) in [(false, vec!["aa"]), (true, vec![])] {
        let mut earlier = both.clone();
        earlier["aa"] = package(None, Some(enabled));
        let left = Left::complete(earlier);
        let (picture, index) = left.index(&json!({ "bb": package(None, None) }));
        let (data, _, _) = stored(&picture.plan_of(&index)).expect("a revision");
        let stays: Vec<&str> = data.left_behind.iter().map(String::as_str).collect();
        assert_eq!(stays, want, "{enabled}");
    }
}

/// What becomes of the revisions of Skyhook `s`.
fn fates(plan: &Plan) -> Vec<String> {
    let effects = plan.effects.iter();
    let fates = effects.filter_map(|effect| match effect {
        Effect::PruneRevision { name, not_of, .. } => Some(format!("prune {name} {not_of:?}")),
        Effect::DisownRevision {
            name, skyhook_uid, ..
        } => Some(format!("disown {name} {skyhook_uid}")),
        Effect::ReleaseSkyhook { name, .. } => Some(format!("release {name}")),
        _ => None,
    });
    fates.collect()
}

#[test]
fn a_revision_outlives_its_skyhook_as_long_as_something_names_it() {
    let owned = |uid: &str| {
        let mut owned = revision("s-owned", 3, uid, &Value::Null);
        owned["metadata"]["annotations"] = Value::Null;
        owned["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "v1", "kind": "Skyhook", "name": "s", "uid": uid }]);
        owned
    };
    let of = |uid: &str| {
        vec![
            revision("s-stamped", 1, uid, &Value::Null),
            revision("s-nobody", 2, uid, &Value::Null),
        ]
    };
    let deleted = |revisions: Vec<Value>, is_there: bool| {
        let mut picture = Picture::new();
        if is_there {
            let at = json!("2026-01-01T00:00:00Z");
            picture = picture.skyhook(&["metadata", "deletionTimestamp"], at);
        } else {
            picture.skyhooks.clear();
        }
        let stamp = Stamp {
            lease: "l".into(),
            revision: "s-stamped".into(),
            ..Stamp::default()
        };
        let picture = picture
            .annotated(1, &names::node_state("s"), &complete("1.0.0"))
            .annotated(1, &names::stamp("s"), &stamp.render());
        let index = testkit::index(&picture.nodes, &picture.skyhooks, &[], &revisions);
        fates(&picture.plan_of(&index))
    };
    let uid = "uid-of-s";
    assert_eq!(deleted(of(uid), true), ["release s", "prune s-nobody None"]);
    assert_eq!(
        deleted(of(uid), false),
        [format!("prune s-nobody Some({uid:?})")]
    );
    // One of before that the garbage collector would delete with the Skyhook.
    assert_eq!(
        deleted(vec![owned(uid)], true),
        [format!("disown s-owned {uid}")]
    );
    assert_eq!(deleted(vec![owned(uid)], false), [] as [String; 0]);
}

/// An earlier Skyhook of this name has revisions: only those that Nodes name stay.
#[test]
fn revisions_of_an_earlier_skyhook_go_when_nothing_names_them() {
    let left = Left::complete(packages());
    let (picture, mut index) = left.index(&packages());
    let another = revision("s-forgotten", 4, EARLIER, &Value::Null);
    let another = serde_json::from_value(another).unwrap();
    index.apply(Change::Revision(Box::new(another)), Mono::ZERO);
    let fates = fates(&picture.plan_of(&index));
    assert_eq!(fates, [format!("prune s-forgotten Some({EARLIER:?})")]);
}
