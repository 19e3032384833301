//! What waits while the state of a roll-out is not known, or may be another one.

use super::*;
use crate::index::Change;

/// A lease of worker-1 in batch 3, under which an agent works, and whose Node was replaced.
fn replaced(picture: Picture) -> Picture {
    let spec = in_batch(grant_and(json!({})));
    let picture = leased(picture, spec, with_package("Running", "in_progress"));
    picture.node(1, &["metadata", "uid"], json!("another"))
}

fn looks(plan: &Plan) -> Vec<String> {
    let effects = plan.effects.iter();
    let states = effects.filter_map(|effect| match effect {
        Effect::LookForState { states, .. } => Some(states.clone()),
        _ => None,
    });
    states.flatten().collect()
}

fn of(plan: &Plan) -> Vec<String> {
    let all = effects(plan).into_iter();
    all.filter(|effect| !effect.starts_with("PatchNode"))
        .collect()
}

fn gone(state: &str) -> Change {
    Change::StatesGone {
        skyhook: "s".into(),
        states: vec![state.into()],
    }
}

#[test]
fn a_lease_of_a_state_that_is_not_in_the_picture_waits_for_a_look() {
    let mut another = with_batch(exponential(), &[2], &json!({}));
    another.rollouts[0]["metadata"]["uid"] = json!("an older one");
    for (name, picture) in [("none", exponential()), ("another", another)] {
        // The watch of the states is behind. Nobody knows here whether the failure is kept.
        let failed = replaced(picture.clone());
        assert_eq!(of(&failed.plan()), Vec::<String>::new(), "{name}");
        assert_eq!(looks(&failed.plan()), [STATE], "{name}");
        let mut index = failed.index();
        index.apply(gone(STATE), Mono::ZERO);
        let plan = failed.plan_of(&index);
        assert_eq!(of(&plan), ["ReleaseLeaseOfGoneNode"], "{name}");
        assert_eq!(looks(&plan), Vec::<String>::new(), "{name}");

        // The same with a lease that is not granted yet.
        let reserved = leased(stamp(picture, granted()), in_batch(json!({})), json!(null));
        assert_eq!(on_leases(&reserved), Vec::<String>::new(), "{name}");
        let mut index = reserved.index();
        index.apply(gone(STATE), Mono::ZERO);
        let withdrawn = "WithdrawLease no open batch has the node";
        assert_eq!(of(&reserved.plan_of(&index)), [withdrawn], "{name}");
    }
}

#[test]
fn the_guard_keeps_a_lease_of_a_state_that_is_not_in_the_picture() {
    use crate::guard::{Broken, check};
    let failed = replaced(exponential());
    let mut index = failed.index();
    let release = Effect::ReleaseLeaseOfGoneNode {
        node: "worker-1".into(),
        at: version("lease", "5"),
        node_uid: "uid-of-worker-1".into(),
    };
    assert_eq!(
        check(&index, &failed.settings, &release),
        Err(Broken::ReleaseUnkept)
    );
    index.apply(gone(STATE), Mono::ZERO);
    assert_eq!(check(&index, &failed.settings, &release), Ok(()));
    // It is forgotten with the last lease that names it.
    index.apply(Change::LeaseGone("worker-1".into()), Mono::ZERO);
    index.expire(Mono::ZERO);
    assert!(!index.clocks().is_state_gone("s", STATE));
}
