#![expect(clippy::disallowed_methods, reason = "tests read the clock")]

use std::fs;

use skyhook_crds::lease::Phase;
use skyhook_oci::{Room, StoreConfig};

use super::*;
use crate::journal::Record;
use crate::machine::tests::world::{Spec, World, pkg};
use crate::prepare::tests::store_with;

mod month;

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

#[test]
fn the_image_of_a_forgotten_skyhook_goes_although_no_lease_came_after_it() {
    let mut state = installed();
    assert_eq!(state.run.as_ref().unwrap().ended, Some(Phase::Complete));
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
    let since = SystemTime::now() + Duration::from_secs(1);
    for (gone, want) in [(BTreeSet::new(), 3), (["s".to_owned()].into(), 0)] {
        state.forget(&gone);
        let runs = state.run.iter();
        let entries = runs.flat_map(|run| run.entries.iter().map(|one| (&run.skyhook.name, one)));
        let kept: Vec<Kept> = entries
            .map(|(skyhook, (key, entry))| Kept {
                skyhook: skyhook.clone(),
                key: key.clone(),
                name: entry.name.clone(),
                copy: None,
            })
            .collect();
        collect_images(&store, &kept, since).unwrap();
        let blobs = fs::read_dir(directory.path().join("store/blobs/sha256")).unwrap();
        assert_eq!(blobs.count(), want, "forgotten: {gone:?}");
    }
    assert!(store.pins().unwrap().is_empty());
}
