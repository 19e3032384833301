//! Properties of the planner over arbitrary pictures: it never wants what the guard refuses, it decides the same twice, it
//! writes each target once, and never what is there already.

#[path = "properties/history.rs"]
mod history;
#[path = "properties/ledger.rs"]
mod ledger;
#[path = "properties/orders.rs"]
mod orders;
#[path = "properties/picture.rs"]
mod picture;

use std::collections::BTreeSet;

use k8s_openapi::jiff::Timestamp;
use picture::{a_picture, index, settings, with_status};
use proptest::prelude::*;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::{Index, Mono};
use skyhook_fleet::picture::Tally;
use skyhook_fleet::plan::cache::Cache;
use skyhook_fleet::plan::ledger::Ledger;
use skyhook_fleet::plan::pacing::Place;
use skyhook_fleet::plan::{Now, Plan, plan};
use skyhook_fleet::session::{Held, Session};
use skyhook_fleet::settings::Settings;

const MONO: Mono = Mono::from_secs(10_000);

fn now(later: i64) -> Now {
    Now {
        mono: MONO,
        wall: Timestamp::from_second(1_790_000_000 + later).unwrap_or_default(),
    }
}

fn decide(index: &Index, settings: &Settings, later: i64) -> Plan {
    plan(&index.view(settings, now(later)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_guard_refuses_nothing_that_is_planned(picture in a_picture()) {
        let settings = settings(&picture);
        let mut session = Session::new(&settings);
        session.start_from(index(&picture));
        let effects = decide(session.index(), &settings, 0).effects;
        for effect in &effects {
            let begun = session.begin(effect, MONO);
            prop_assert!(!matches!(begun, Err(Held::Refused(_))), "{begun:?}: {effect:?}");
        }
    }

    #[test]
    fn the_ledger_says_what_counting_anew_says(picture in a_picture()) {
        let settings = settings(&picture);
        let cap = settings.max_concurrent_nodes;
        let index = index(&picture);
        let counted = Ledger::of(&index.view(&settings, now(0)));
        prop_assert_eq!(counted.used_in_all(), ledger::used_in_all(&index));
        for skyhook in index.picture().skyhooks().values() {
            prop_assert_eq!(counted.used(skyhook), ledger::used(&index, skyhook));
            // Compartments of policies are counted by the guard.
            for extra in [0, 1].into_iter().filter(|_| skyhook.spec.deployment_policy.is_empty()) {
                let code = counted.refusal(skyhook, Place::default(), extra).map(|reason| reason.code);
                prop_assert_eq!(code, ledger::refusal(&index, cap, skyhook, extra));
            }
        }
        for node in index.picture().nodes().values() {
            prop_assert_eq!(
                counted.has_control_planes_too_many(&node.name),
                ledger::has_control_planes_too_many(&index, &node.name)
            );
            prop_assert_eq!(
                counted.control_plane_refusal(node).is_some(),
                ledger::is_refused_for_control_plane(&index, node)
            );
        }
    }

    #[test]
    fn the_same_picture_gives_the_same_plan(picture in a_picture()) {
        let settings = settings(&picture);
        let index = index(&picture);
        prop_assert_eq!(decide(&index, &settings, 0), decide(&index, &settings, 0));
    }

    /// A number that a node gets is greater than every one that nodes have, unless it is the node's own, or its batch gives it.
    #[test]
    fn no_number_is_given_twice(picture in a_picture()) {
        let settings = settings(&picture);
        let index = index(&picture);
        let mut given = BTreeSet::new();
        for effect in decide(&index, &settings, 0).effects {
            let Effect::ReserveLease { node, spec } = effect else {
                continue;
            };
            let skyhook = spec.skyhook.name.clone();
            let own = orders::kept(&index, &node, &skyhook);
            prop_assert!(own.is_none() || own == spec.order, "{node}: {own:?}, not {:?}", spec.order);
            if own.is_none() && spec.batch.is_none() {
                let greatest = orders::all(&index, &skyhook).into_iter().max();
                prop_assert!(spec.order > greatest, "{node}: {:?} after {greatest:?}", spec.order);
                prop_assert!(given.insert((skyhook, spec.order)), "{node}: {:?} is given twice", spec.order);
            }
        }
    }

    #[test]
    fn nobody_goes_on_before_one_that_has_to_be_complete_everywhere(picture in a_picture()) {
        let settings = settings(&picture);
        let index = index(&picture);
        for effect in decide(&index, &settings, 0).effects {
            let Effect::ReserveLease { node, spec } = effect else {
                continue;
            };
            let skyhook = &index.picture().skyhooks()[&spec.skyhook.name];
            let gate = ledger::gate(&index, skyhook).map(|gate| gate.name.clone());
            prop_assert_eq!(gate, None, "{} gets {}", skyhook.name, node);
        }
    }

    #[test]
    fn every_target_is_written_once_and_none_that_is_busy(picture in a_picture()) {
        let settings = settings(&picture);
        let index = index(&picture);
        let mut seen = BTreeSet::new();
        for effect in decide(&index, &settings, 0).effects {
            let target = effect.target();
            prop_assert!(!index.inflight().is_busy(&target), "{effect:?}");
            prop_assert!(seen.insert(target), "{effect:?}");
        }
    }

    #[test]
    fn nothing_is_written_that_is_there(picture in a_picture()) {
        let settings = settings(&picture);
        let mut index = index(&picture);
        for effect in decide(&index, &settings, 0).effects {
            if let Effect::PatchNode { node, patch, .. } = &effect {
                let held = &index.picture().nodes()[node];
                prop_assert!(!patch.is_empty());
                for (key, value) in &patch.annotations {
                    prop_assert_ne!(held.annotations.get(key), value.as_ref(), "{}", key);
                }
                prop_assert_ne!(patch.unschedulable, Some(held.unschedulable));
                prop_assert_ne!(patch.taints.as_ref(), Some(&held.taints));
            }
            if let Effect::WriteSkyhookStatus { name, status, .. } = effect {
                let held = index.picture().skyhooks().get(&name);
                prop_assert_ne!(held.and_then(|held| held.status.as_ref()), Some(&*status));
                index.apply(with_status(&picture, &name, &status), MONO);
            }
        }
        // Time alone is no reason to write a status again.
        for effect in decide(&index, &settings, 3_600).effects {
            prop_assert!(!matches!(effect, Effect::WriteSkyhookStatus { .. }), "{effect:?}");
        }
    }

    /// After every step of a history the cache gives the plan that an empty one gives: what is to be written, when to look
    /// again, and how far the fleet is.
    #[test]
    fn nothing_that_a_pass_left_behind_changes_a_plan(
        settings in history::a_setting(),
        history in history::a_history(),
    ) {
        let mut replica = history::Replica::new(&settings);
        let mut cache = Cache::default();
        let mut planned = Vec::new();
        for step in &history {
            replica.happens(step, &planned);
            let picture = replica.session.index().picture();
            prop_assert_eq!(picture.tally(), &Tally::of(picture.leases().values()));
            let view = replica.session.index().view(&settings, replica.now());
            let counted = Ledger::of(&view);
            prop_assert_eq!(counted.used_in_all(), ledger::used_in_all(replica.session.index()));
            let (kept, anew) = (cache.plan(&view), plan(&view));
            prop_assert_eq!(&kept, &anew, "after {:?}", step);
            planned = kept.effects;
        }
    }
}
