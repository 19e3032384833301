#![expect(clippy::disallowed_methods, reason = "tests read the clock")]

use std::fs;

use skyhook_crds::lease::Phase;
use skyhook_oci::{Room, StoreConfig};

use super::*;
use crate::journal::Record;
use crate::machine::tests::world::{Spec, World, pkg};
use crate::prepare::tests::store_with;

mod month;

#[tokio::test]
async fn skyhooks_are_gone_when_the_cluster_has_none_of_their_revisions() {
    let record = |revisions: &[&str]| -> BTreeSet<String> {
        revisions.iter().map(|r| (*r).to_owned()).collect()
    };
    let remembered: BTreeMap<String, BTreeSet<String>> = [
        ("there", record(&["old", "new"])),
        ("gone", record(&["old"])),
        ("unknown", record(&["old", "silence"])),
        ("of an earlier agent", record(&[])),
    ]
    .map(|(name, revisions)| (name.to_owned(), revisions))
    .into();
    let exists = async |revision: &str| match revision {
        "new" => Some(true),
        "silence" => None,
        _ => Some(false),
    };
    let gone = gone(&remembered, exists).await;
    assert_eq!(gone, record(&["gone"]));
}

/// The journal of an agent that has installed the package `aa` of the Skyhook `s`.
fn installed() -> State {
    let mut world = World::new();
    world.lease(&Spec::of(&[pkg("aa", "1.0.0")]));
    world.settle();
    State {
        run: world.run,
        ..State::default()
    }
}

#[test]
fn the_skyhook_of_the_last_lease_is_remembered_when_its_work_has_ended() {
    let mut state = installed();
    let revisions: BTreeSet<String> = ["s-1".to_owned()].into();
    let with_s: BTreeMap<_, _> = [("s".to_owned(), revisions.clone())].into();
    assert_eq!(remembered(&state), with_s);
    // An earlier lease of the same Skyhook is remembered as well.
    let record = Record {
        revision: "s-0".into(),
        ..Record::default()
    };
    state.skyhooks.insert("s".into(), record);
    assert_eq!(remembered(&state)["s"].len(), 2);
    state.skyhooks.clear();
    state.run.as_mut().unwrap().ended = None;
    assert_eq!(remembered(&state), BTreeMap::new(), "it is worked on");
}

#[tokio::test]
async fn the_image_of_a_deleted_skyhook_goes_although_no_lease_came_after_it() {
    let state = installed();
    let run = state.run.as_ref().unwrap();
    assert_eq!(run.ended, Some(Phase::Complete));
    let directory = tempfile::tempdir().unwrap();
    let (_, manifest) = store_with(directory.path(), 1000, "{}");
    let small = StoreConfig {
        max_bytes: 0,
        room: Room {
            percent: 0,
            bytes: 0,
            after_pull: 0,
        },
        ..StoreConfig::default()
    };
    let store = Store::open(directory.path().join("store"), small).unwrap();
    store.pin("s/aa|1.0.0", &manifest).unwrap();
    let kept: Vec<Kept> = run
        .entries
        .iter()
        .map(|(key, entry)| Kept {
            skyhook: run.skyhook.name.clone(),
            key: key.clone(),
            name: entry.name.clone(),
            copy: None,
        })
        .collect();
    let since = SystemTime::now() + Duration::from_secs(1);
    for (is_there, want) in [(true, 3), (false, 0)] {
        let gone = gone(&remembered(&state), async |_| Some(is_there)).await;
        collect_images(&store, &kept, &gone, since).unwrap();
        let blobs = fs::read_dir(directory.path().join("store/blobs/sha256")).unwrap();
        assert_eq!(blobs.count(), want, "the Skyhook is there: {is_there}");
    }
    assert!(store.pins().unwrap().is_empty());
}
