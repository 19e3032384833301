//! How a draining node's pods are listed, and how long a drain lasts.

use super::*;
use crate::plan::cache::Cache;

#[test]
fn lists_are_consistent_only_where_they_are_to_show_that_nothing_is_left() {
    let one = || vec![pod("web", json!({}))];
    let ago = |ms: u64| NOW - Duration::from_millis(ms);
    let draining = json!({ "state": "Draining", "since": wall().to_string() });
    let none = Vec::new;
    // Lists, whether they came from the API server's watch cache, and what is done then.
    for (name, lists, want) in [
        ("the first", vec![], vec!["list"]),
        (
            "pods are left",
            vec![(1000, one(), false)],
            vec!["list cached", "evict web"],
        ),
        (
            "it showed the last pod go: look again at once",
            vec![(1000, one(), false), (0, none(), true)],
            vec!["list"],
        ),
        (
            "what it remembers confirms nothing",
            vec![(1100, none(), true), (100, none(), false)],
            vec![],
        ),
        (
            "nor is it confirmed by that",
            vec![(1100, none(), false), (100, none(), true)],
            vec!["list"],
        ),
        (
            "both were consistent",
            vec![(1100, none(), false), (100, none(), false)],
            vec!["Drained []"],
        ),
        (
            "a cache may have stopped",
            vec![
                (31_000, one(), false),
                (16_000, one(), true),
                (1000, one(), true),
            ],
            vec!["list", "evict web"],
        ),
    ] {
        let cached = lists.iter().filter(|(_, _, cached)| *cached);
        let case = Case {
            drain: draining.clone(),
            cached: cached.map(|(at, _, _)| ago(*at)).collect(),
            ..Case::new(
                lists
                    .iter()
                    .map(|(at, pods, _)| (ago(*at), pods.clone()))
                    .collect(),
            )
        };
        let effects = case.effects();
        let told = effects
            .iter()
            .filter(|effect| !effect.starts_with("Draining"));
        assert_eq!(told.collect::<Vec<_>>(), want, "{name}");
    }
}

#[test]
fn a_clock_that_is_set_back_delays_no_deadline_of_a_drain() {
    let tomorrow = wall() + k8s_openapi::jiff::SignedDuration::from_hours(24);
    let one = || vec![pod("web", json!({}))];
    let mut case = Case {
        drain: json!({ "state": "Draining", "since": tomorrow.to_string() }),
        ..Case::new(vec![(NOW - Duration::from_secs(2), one())])
    };
    // The lease was first seen 1000 seconds ago.
    let pace = "list cached";
    assert!(
        !case.effects().contains(&pace.to_owned()),
        "a drain that takes long is listed every 5 s: {:?}",
        case.effects()
    );
    case.spec["drainConfig"] = json!({ "timeout": "999s" });
    let timed_out = "stop Some(DrainTimedOut)".to_owned();
    assert!(case.effects().contains(&timed_out), "{:?}", case.effects());
    case.spec["drainConfig"] = json!({ "timeout": "1001s" });
    assert!(!case.effects().contains(&timed_out), "{:?}", case.effects());
}

#[test]
fn a_drained_control_plane_node_is_decided_anew_when_another_one_goes_away() {
    let case = Case {
        drain: json!({ "state": "Drained", "since": wall().to_string() }),
        ..Case::new(vec![
            (NOW - Duration::from_millis(1500), Vec::new()),
            (NOW - Duration::from_millis(400), Vec::new()),
        ])
    };
    let mut index = case.index();
    let control_plane = skyhook_crds::names::CONTROL_PLANE;
    index
        .picture
        .edit_node("worker-1", |node| testkit::label(node, control_plane, ""));
    let mut other = testkit::node("worker-2");
    testkit::label(&mut other, control_plane, "");
    index.picture.node(other.clone());
    let settings = Settings::default();
    let now = Now {
        mono: NOW,
        wall: wall(),
    };
    let is_retracted = |plan: &Plan| {
        let mut effects = plan.effects.iter();
        effects.any(|effect| effect.kind() == "SetDrain")
    };
    let mut cache = Cache::default();
    assert!(!is_retracted(&cache.plan(&index.view(&settings, now))));
    other.ready = false;
    index.picture.node(other);
    let view = index.view(&settings, now);
    let (kept, anew) = (cache.plan(&view), plan(&view));
    assert!(is_retracted(&kept));
    assert_eq!(kept, anew);
}
