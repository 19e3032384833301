//! What a scrape shows, by name, labels and value.

use std::collections::{BTreeMap, BTreeSet};

use skyhook_crds::lease::DrainState;
use skyhook_crds::stage::{Stage, State, Status};
use skyhook_fleet::plan::reason::ReasonCode;
use skyhook_fleet::plan::tallies::leases::{BlockerKind, LeaseCounts, LeasePhase};
use skyhook_fleet::plan::tallies::packages::PackageCounts;
use skyhook_fleet::plan::{BatchCounts, CompartmentCounts, SkyhookCounts};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn counts() -> SkyhookCounts {
    SkyhookCounts {
        status: Status::InProgress,
        since: Some(at(100)),
        nodes: 6,
        by_status: [(Status::InProgress, 2), (Status::Complete, 4)].into(),
        by_reason: [(ReasonCode::Draining, 2)].into(),
        packages: [(
            "tuning|1.0.0".to_owned(),
            PackageCounts {
                by_state: [(State::Complete, 5), (State::Erroring, 1)].into(),
                by_stage: [(Stage::Config, 5), (Stage::Apply, 1)].into(),
                ended: [(Stage::Config, 5)].into(),
                restarts: 3,
            },
        )]
        .into(),
        packages_omitted: 0,
        leases: LeaseCounts {
            by_phase: [
                (LeasePhase::AwaitingDrain, (2, Some(at(150)))),
                (LeasePhase::Reserved, (1, None)),
            ]
            .into(),
            by_drain: [(DrainState::Draining, 2)].into(),
            by_blocker: [(BlockerKind::PodDisruptionBudget, 2)].into(),
        },
        policy: "careful".to_owned(),
        compartments: [(
            "gpu".to_owned(),
            CompartmentCounts {
                ceiling: 3,
                used: 2,
                matched: 6,
                in_progress: 2,
                complete: 4,
                strategy: "linear",
                batches: BatchCounts {
                    current: 2,
                    consecutive_failures: 1,
                    should_stop: true,
                },
            },
        )]
        .into(),
    }
}

fn fleet(counts: SkyhookCounts) -> Fleet {
    Fleet {
        skyhooks: [("s".to_owned(), counts)].into(),
        slots_used: 3,
        slots: Some(10),
        leases_unreadable: 1,
    }
}

fn pass(fleet: Fleet) -> Pass {
    Pass {
        fleet: Arc::new(fleet),
        held_back: HeldBack {
            queued: 7,
            refused: 2,
            repeated: 1,
        },
        lag: Duration::from_millis(1500),
    }
}

/// The samples of a scrape.
fn samples(text: &str) -> BTreeSet<&str> {
    assert!(text.ends_with("# EOF\n"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let all: Vec<&str> = lines.collect();
    let unique: BTreeSet<&str> = all.iter().copied().collect();
    assert_eq!(all.len(), unique.len(), "no sample is there twice");
    unique
}

/// Fails unless the samples of metrics whose names begin with `prefix`, and that are not 0, are these.
fn expect(text: &str, prefix: &str, want: &[&str]) {
    let all = samples(text);
    let found: BTreeSet<&str> = all
        .into_iter()
        .filter(|line| line.starts_with(prefix) && !line.ends_with("} 0"))
        .collect();
    let want: BTreeSet<&str> = want.iter().copied().collect();
    assert_eq!(found, want);
}

#[test]
fn what_nvidia_skyhook_measures_has_its_names_and_labels() {
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts())), at(200));
    let text = metrics.text(at(210));
    expect(
        &text,
        "skyhook_status{",
        &[r#"skyhook_status{skyhook_name="s",status="in_progress"} 1"#],
    );
    expect(
        &text,
        "skyhook_node_status_count",
        &[
            r#"skyhook_node_status_count{skyhook_name="s",status="complete"} 4"#,
            r#"skyhook_node_status_count{skyhook_name="s",status="in_progress"} 2"#,
        ],
    );
    expect(
        &text,
        "skyhook_node_target_count",
        &[r#"skyhook_node_target_count{skyhook_name="s"} 6"#],
    );
    let package = r#"skyhook_name="s",package_name="tuning",package_version="1.0.0""#;
    let of_package = |metric: &str, more: &str, value: i32| {
        format!("skyhook_package_{metric}_count{{{package}{more}}} {value}")
    };
    let want = [
        of_package("state", r#",state="complete""#, 5),
        of_package("state", r#",state="erroring""#, 1),
        of_package("stage", r#",stage="config""#, 5),
        of_package("stage", r#",stage="apply""#, 1),
        of_package("restarts", "", 3),
    ];
    let want: Vec<&str> = want.iter().map(String::as_str).collect();
    expect(&text, "skyhook_package_s", &want[..4]);
    expect(&text, "skyhook_package_r", &want[4..]);
    let place =
        r#"skyhook_name="s",policy_name="careful",compartment_name="gpu",strategy="linear""#;
    let want = [
        ("matched_nodes", 6),
        ("ceiling", 3),
        ("in_progress", 2),
        ("completed", 4),
        ("progress_percent", 66),
        ("current_batch", 2),
        ("consecutive_failures", 1),
        ("should_stop", 1),
    ];
    let want = want.map(|(name, value)| format!("skyhook_rollout_{name}{{{place}}} {value}"));
    let want: Vec<&str> = want.iter().map(String::as_str).collect();
    expect(&text, "skyhook_rollout_", &want);
    // Values that are 0 are there as well, so that a query finds them.
    let all = samples(&text);
    let count = |name: &str| all.iter().filter(|line| line.starts_with(name)).count();
    assert_eq!(count("skyhook_status{"), 8);
    assert_eq!(count("skyhook_node_status_count{"), 8);
    assert_eq!(count("skyhook_package_state_count{"), 5);
    assert_eq!(count("skyhook_package_stage_count{"), 7);
    assert_eq!(count("nodewright_"), 0);
}

#[test]
fn the_names_of_nodewright_have_the_same_values() {
    let metrics = Metrics::new(true);
    metrics.passed(pass(fleet(counts())), at(200));
    let text = metrics.text(at(210));
    let all = samples(&text);
    let theirs: BTreeSet<String> = all
        .iter()
        .filter(|line| line.starts_with("nodewright_"))
        .map(|line| line.replace("nodewright_", "skyhook_"))
        .collect();
    let shared = [
        "skyhook_status{",
        "skyhook_node_status_count{",
        "skyhook_node_target_count{",
        "skyhook_package_state_count{",
        "skyhook_package_stage_count{",
        "skyhook_package_restarts_count{",
        "skyhook_rollout_",
    ];
    let ours: BTreeSet<String> = all
        .iter()
        .filter(|line| shared.iter().any(|name| line.starts_with(name)))
        .map(|line| (*line).to_owned())
        .collect();
    assert_eq!(theirs, ours);
    assert_eq!(ours.len(), 8 + 8 + 1 + 5 + 7 + 1 + 8);
}

#[test]
fn what_stands_still_says_so() {
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts())), at(200));
    let text = metrics.text(at(210));
    expect(
        &text,
        "skyhook_node_reason_count",
        &[r#"skyhook_node_reason_count{skyhook_name="s",reason="Draining"} 2"#],
    );
    expect(
        &text,
        "skyhook_lease_count",
        &[
            r#"skyhook_lease_count{skyhook_name="s",phase="AwaitingDrain"} 2"#,
            r#"skyhook_lease_count{skyhook_name="s",phase="Reserved"} 1"#,
        ],
    );
    expect(
        &text,
        "skyhook_lease_phase_seconds",
        &[r#"skyhook_lease_phase_seconds{skyhook_name="s",phase="AwaitingDrain"} 60.0"#],
    );
    expect(
        &text,
        "skyhook_drain_",
        &[
            r#"skyhook_drain_count{skyhook_name="s",state="Draining"} 2"#,
            r#"skyhook_drain_blocked_count{skyhook_name="s",cause="PodDisruptionBudget"} 2"#,
        ],
    );
    let place =
        r#"{skyhook_name="s",policy_name="careful",compartment_name="gpu",strategy="linear"}"#;
    let [used, free] = ["used 2", "free 1"].map(|text| {
        let (name, value) = text.split_once(' ').unwrap();
        format!("skyhook_slots_{name}{place} {value}")
    });
    expect(&text, "skyhook_slots_", &[&used, &free]);
    let plain = [
        "skyhook_cluster_slots_used 3",
        "skyhook_cluster_slots_free 7",
        "skyhook_leases_unreadable 1",
        "skyhook_leader 1",
        "skyhook_watch_lag_seconds 1.5",
        r#"skyhook_effects_held_back{cause="queued"} 7"#,
        r#"skyhook_effects_held_back{cause="refused"} 2"#,
        r#"skyhook_effects_held_back{cause="repeated"} 1"#,
        r#"skyhook_status_seconds{skyhook_name="s",status="in_progress"} 110.0"#,
        r#"skyhook_progress_seconds{skyhook_name="s"} 10.0"#,
        r#"skyhook_package_versions_omitted{skyhook_name="s"} 0"#,
    ];
    let all = samples(&text);
    for line in plain {
        assert!(all.contains(line), "{line} is not in {text}");
    }
}

/// The value of a metric of Skyhook `s`.
fn value(metrics: &Metrics, name: &str, second: i64) -> Option<String> {
    let text = metrics.text(at(second));
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(&format!("{name}{{skyhook_name=\"s\"")))?;
    line.rsplit_once(' ').map(|(_, value)| value.to_owned())
}

#[test]
fn progress_is_a_complete_node_or_the_end_of_a_stage_and_no_new_attempt() {
    let metrics = Metrics::new(false);
    let since = |counts: SkyhookCounts, second| {
        metrics.passed(pass(fleet(counts)), at(second));
        value(&metrics, "skyhook_progress_seconds", second)
    };
    let with = |change: fn(&mut SkyhookCounts)| {
        let mut counts = counts();
        change(&mut counts);
        counts
    };
    let seconds = |seconds: i64| Some(format!("{seconds}.0"));
    assert_eq!(since(counts(), 1000), seconds(0));
    let tries = |counts: &mut SkyhookCounts| {
        let package = counts.packages.get_mut("tuning|1.0.0").unwrap();
        package.by_state = [(State::Complete, 5), (State::InProgress, 1)].into();
        package.restarts += 1;
    };
    assert_eq!(since(with(tries), 1010), seconds(10));
    assert_eq!(since(counts(), 1020), seconds(20), "it failed again");
    let ends = |counts: &mut SkyhookCounts| {
        let package = counts.packages.get_mut("tuning|1.0.0").unwrap();
        package.ended = [(Stage::Config, 5), (Stage::Apply, 1)].into();
    };
    assert_eq!(since(with(ends), 1030), seconds(0));
    let goes_on = since(counts(), 1040);
    assert_eq!(goes_on, seconds(10), "the next stage begins");
    let completes = |counts: &mut SkyhookCounts| {
        counts.by_status = [(Status::InProgress, 1), (Status::Complete, 5)].into();
    };
    assert_eq!(since(with(completes), 1050), seconds(0));
    let is_over = |counts: &mut SkyhookCounts| counts.status = Status::Complete;
    assert_eq!(since(with(is_over), 1060), None, "nothing is left to do");
}

#[test]
fn a_status_that_no_condition_dates_is_as_old_as_it_was_seen() {
    let metrics = Metrics::new(false);
    let since = |status, second| {
        let counts = SkyhookCounts {
            status,
            since: None,
            ..counts()
        };
        metrics.passed(pass(fleet(counts)), at(second));
        value(&metrics, "skyhook_status_seconds", second).unwrap()
    };
    assert_eq!(since(Status::Waiting, 1000), "0.0");
    assert_eq!(since(Status::Waiting, 1030), "30.0");
    assert_eq!(since(Status::Blocked, 1040), "0.0");
    // A wall clock that was set back makes nothing negative.
    assert_eq!(
        value(&metrics, "skyhook_status_seconds", 900).unwrap(),
        "0.0"
    );
}

#[test]
fn what_is_gone_has_no_series() {
    let metrics = Metrics::new(true);
    metrics.passed(pass(fleet(counts())), at(200));
    let without_package = SkyhookCounts {
        packages: BTreeMap::new(),
        compartments: BTreeMap::new(),
        ..counts()
    };
    metrics.passed(pass(fleet(without_package)), at(201));
    let text = metrics.text(at(201));
    assert!(!text.contains("package_name"), "{text}");
    assert!(!text.contains("compartment_name"), "{text}");
    assert!(text.contains("skyhook_name=\"s\""), "{text}");
    metrics.passed(pass(Fleet::default()), at(202));
    let text = metrics.text(at(202));
    assert!(!text.contains("_name=\"s\""), "{text}");
    assert!(!text.contains("skyhook_cluster_slots_free "), "{text}");
}

#[test]
fn a_replica_that_does_not_lead_says_nothing_of_the_fleet() {
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts())), at(200));
    metrics.rests();
    let text = metrics.text(at(210));
    assert!(!text.contains("skyhook_name"), "{text}");
    assert!(samples(&text).contains("skyhook_leader 0"), "{text}");
    metrics.passed(pass(fleet(counts())), at(300));
    let moved = value(&metrics, "skyhook_progress_seconds", 305);
    assert_eq!(moved.as_deref(), Some("5.0"), "it looks anew");
}

#[test]
fn names_from_annotations_cannot_break_the_text() {
    let strange = "a\"b\\c\nd|1.0.0";
    let mut counts = counts();
    counts.packages = [(strange.to_owned(), PackageCounts::default())].into();
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts)), at(200));
    let text = metrics.text(at(200));
    let want = r#"skyhook_package_restarts_count{skyhook_name="s",package_name="a\"b\\c\nd",package_version="1.0.0"} 0"#;
    assert!(samples(&text).contains(want), "{text}");
}

#[test]
fn what_this_replica_does_is_counted() {
    let metrics = Metrics::new(false);
    let effect = Effect::SurveyPods {
        node: "worker-1".into(),
        lease_uid: "u".into(),
        consistent: true,
    };
    let failed = Outcome::Retry { error: "no".into() };
    metrics.ended(&effect, &Outcome::Done(None));
    metrics.ended(&effect, &failed);
    metrics.ended(&effect, &failed);
    metrics.is_unsafe(&effect);
    metrics.planned(Duration::from_millis(50));
    metrics.broke(Kind::Lease);
    let text = metrics.text(at(0));
    let all = samples(&text);
    for line in [
        r#"skyhook_effects_total{effect="SurveyPods",outcome="done"} 1"#,
        r#"skyhook_effects_total{effect="SurveyPods",outcome="failed"} 2"#,
        r#"skyhook_effects_total{effect="SurveyPods",outcome="unsafe"} 1"#,
        "skyhook_plan_seconds_count 1",
        r#"skyhook_plan_seconds_bucket{le="0.02"} 0"#,
        r#"skyhook_plan_seconds_bucket{le="0.1"} 1"#,
        r#"skyhook_watch_breaks_total{kind="Lease"} 1"#,
    ] {
        assert!(all.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn the_number_of_series_is_bounded_as_stated() {
    let series = |counts: SkyhookCounts, with_nodewright| {
        let metrics = Metrics::new(with_nodewright);
        metrics.passed(pass(fleet(counts)), at(200));
        let text = metrics.text(at(200));
        let all = samples(&text);
        let count = |word: &str| all.iter().filter(|line| line.contains(word)).count();
        (
            count("_name=\"s\""),
            count("package_name="),
            count("compartment_name="),
        )
    };
    let most = || SkyhookCounts {
        by_reason: ReasonCode::ALL.into_iter().map(|code| (code, 1)).collect(),
        leases: LeaseCounts {
            by_phase: LeasePhase::ALL
                .into_iter()
                .map(|phase| (phase, (1, Some(at(1)))))
                .collect(),
            ..LeaseCounts::default()
        },
        ..counts()
    };
    let (all, packages, compartments) = series(most(), false);
    assert_eq!((packages, compartments), (13, 10));
    assert!(all - packages - compartments <= 90, "{all}");
    let (both, more_packages, more_compartments) = series(most(), true);
    assert_eq!((more_packages, more_compartments), (2 * 13, 10 + 8));
    assert_eq!(both - all, 17 + 8 + 13);
}

#[tokio::test]
async fn scrapes_are_answered() {
    let listener = server::listen("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts())), at(200));
    tokio::spawn(serve(address, metrics, || at(210)));
    tokio::task::yield_now().await;
    let ask = async |line: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: pod\r\n\r\n");
        server::tests::asked(address, &request).await
    };
    let said = ask("GET /metrics").await;
    assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
    let content = format!("content-type: {OPEN_METRICS}\r\n");
    assert!(said.contains(&content), "{said}");
    assert!(said.ends_with("# EOF\n"), "{said}");
    assert!(said.contains("skyhook_leader 1\n"), "{said}");
    let said = ask("GET /").await;
    assert!(said.starts_with("HTTP/1.1 404 Not Found\r\n"), "{said}");
    let said = ask("POST /metrics").await;
    assert!(
        said.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"),
        "{said}"
    );
}

/// The page has every metric and every label, and no other metric.
#[test]
fn the_page_about_metrics_names_all_of_them() {
    let metrics = Metrics::new(false);
    metrics.passed(pass(fleet(counts())), at(200));
    metrics.answered("get", None);
    metrics.broke(Kind::Node);
    let effect = Effect::ReserveLease {
        node: "worker-1".into(),
        spec: Box::default(),
    };
    metrics.is_unsafe(&effect);
    let text = metrics.text(at(200));
    let described = |line: &str| {
        let rest = line.strip_prefix("# TYPE ")?;
        let (name, kind) = rest.split_once(' ')?;
        let suffix = if kind == "counter" { "_total" } else { "" };
        Some(format!("{name}{suffix}"))
    };
    let served: BTreeSet<String> = text.lines().filter_map(described).collect();
    let page = include_str!("../../../docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter_map(|line| line.split_once('`'));
    let told: BTreeSet<String> = rows.map(|(name, _)| name.to_owned()).collect();
    assert_eq!(told, served);
    let labels: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('{')?.1.split_once('}'))
        .flat_map(|(labels, _)| labels.split("\","))
        .filter_map(|label| label.split_once('=').map(|(name, _)| name))
        .collect();
    for label in labels {
        let is_told = page.contains(&format!("`{label}`"));
        assert!(is_told || label == "le", "{label}");
    }
}
