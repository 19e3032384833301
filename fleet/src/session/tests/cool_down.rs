//! How long nodes are left alone after a lease.

use super::*;
use crate::clocks::Backoff;
use crate::plan::reason::{ReasonCode, Withdrawal};

#[test]
fn a_node_whose_drain_took_too_long_is_left_alone_however_its_release_is_answered() {
    let settings = Settings::default();
    let lease = serde_json::json!({
        "metadata": {
            "name": "n1", "uid": "l1", "resourceVersion": "5",
            "annotations": { skyhook_crds::names::FORCE_RELEASE: "l1" },
        },
        "spec": {
            "node": { "name": "n1", "uid": "uid-n1" },
            "skyhook": { "name": "s", "uid": "s1" },
            "revision": "r",
            "stop": { "reason": "DrainTimedOut", "since": "2026-11-26T12:00:00Z" },
        },
        "status": { "phase": "Stopped" },
    });
    let release = Effect::ReleaseLease {
        node: "n1".into(),
        at: AsOf {
            uid: "l1".into(),
            resource_version: "5".into(),
        },
    };
    let lost = Outcome::Retry {
        error: "the answer did not come".into(),
    };
    for (what, outcome) in [("answered late", Outcome::Done(None)), ("lost", lost)] {
        let mut session = Session::new(&settings);
        session.index = crate::testkit::index(
            &[crate::testkit::node_object("n1")],
            &[],
            std::slice::from_ref(&lease),
            &[],
        );
        let now = Mono::from_secs(100);
        assert_eq!(session.begin(&release, now), Ok(()), "{what}");
        session.take(Change::LeaseGone("n1".into()), now);
        session.settle(&release, outcome, now);
        let backoff = session.index.clocks.backoff("n1", "s");
        let until = backoff.map(|backoff| (backoff.code, backoff.until));
        let expected = (ReasonCode::DrainTimedOut, now + settings.drain_cool_down);
        assert_eq!(until, Some(expected), "{what}");
    }
}

/// The drain was decided on an earlier list than the one that the picture holds when the write is begun.
#[test]
fn a_node_whose_agent_does_not_answer_says_why_it_is_left_alone() {
    let settings = Settings::default();
    for (why, seconds, message) in [
        (
            Withdrawal::AgentNotResponding,
            300,
            "the node's agent did not accept the lease in time: is its pod running there?",
        ),
        (
            Withdrawal::AgentNotYetThere,
            15,
            "the node has joined lately and its agent has not accepted the lease: it is tried again soon",
        ),
    ] {
        let mut session = Session::new(&settings);
        let withdrawal = Effect::WithdrawLease {
            node: "n1".into(),
            at: AsOf {
                uid: "l1".into(),
                resource_version: "1".into(),
            },
            why,
        };
        session.settle(&withdrawal, Outcome::Done(None), Mono::ZERO);
        let backoff = session.index.clocks.backoff("n1", "s");
        let want = Backoff {
            skyhook: None,
            until: Mono::from_secs(seconds),
            code: ReasonCode::AgentNotResponding,
            message,
        };
        assert_eq!(backoff, Some(&want));
    }
    let mut session = Session::new(&settings);
    let withdrawal = Effect::WithdrawLease {
        node: "n1".into(),
        at: AsOf {
            uid: "l1".into(),
            resource_version: "1".into(),
        },
        why: Withdrawal::NothingToDo,
    };
    session.settle(&withdrawal, Outcome::Done(None), Mono::ZERO);
    assert_eq!(session.index.clocks.backoff("n1", "s"), None);
}

/// A lease whose agent said that it is done, and the node's record.
fn done(state: &str, n: u32) -> Index {
    let skyhook = serde_json::json!({
        "metadata": { "name": "s", "uid": "s1", "resourceVersion": "1", "generation": 1 },
        "spec": { "packages": { "aa": { "version": "1.0.0", "image": "r/a" } } },
    });
    let package = serde_json::json!({
        "name": "aa", "version": "1.0.0", "image": "r/a", "stage": "config", "state": state,
    });
    let skyhooks = [skyhook];
    let revision = {
        let index = crate::testkit::index(&[], &skyhooks, &[], &[]);
        let checked = index.picture.skyhooks()["s"].checked.as_ref().unwrap();
        checked.revision.clone()
    };
    let mut node = crate::testkit::node_object("n1");
    let record = serde_json::json!({ "aa|1.0.0": package }).to_string();
    node["metadata"]["annotations"] = serde_json::json!({
        skyhook_crds::names::node_state("s"): record,
        skyhook_crds::names::stamp("s"): format!(r#"{{"lease":"l{n}","revision":"{revision}"}}"#),
    });
    let lease = serde_json::json!({
        "metadata": { "name": "n1", "uid": format!("l{n}"), "resourceVersion": "5" },
        "spec": {
            "node": { "name": "n1", "uid": "uid-of-n1" },
            "skyhook": { "name": "s", "uid": "s1" },
            "revision": revision,
        },
        "status": { "phase": "Complete", "packages": { "aa|1.0.0": package } },
    });
    crate::testkit::index(&[node], &skyhooks, &[lease], &[])
}

#[test]
fn a_result_that_leaves_work_over_is_not_tried_again_at_once() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let mut now = Mono::from_secs(100);
    let release = |n: u32| Effect::ReleaseLease {
        node: "n1".into(),
        at: AsOf {
            uid: format!("l{n}"),
            resource_version: "5".into(),
        },
    };
    let mut waits = Vec::new();
    for n in 0..9 {
        let clocks = std::mem::take(&mut session.index.clocks);
        session.start_from(done("in_progress", n));
        session.index.clocks = clocks;
        // The answer is lost, and the release is tried again.
        for _ in 0..2 {
            now = session.retry_at.remove(&release(n).target()).unwrap_or(now);
            session.begin(&release(n), now).unwrap();
            let outcome = Outcome::Retry {
                error: "no answer".into(),
            };
            session.settle(&release(n), outcome, now);
        }
        let backoff = session.index.clocks.backoff("n1", "s").unwrap();
        assert_eq!(backoff.code, ReasonCode::ResultDoesNotMatch);
        waits.push(backoff.until.since(now).as_secs());
        assert_eq!(session.index.clocks.backoff("n1", "another"), None);
        now = backoff.until;
        session.expire(now);
    }
    assert_eq!(waits, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
    // One that leaves nothing over ends the row.
    for (n, state, want) in [(9, "complete", None), (10, "in_progress", Some(30))] {
        let clocks = std::mem::take(&mut session.index.clocks);
        session.start_from(done(state, n));
        session.index.clocks = clocks;
        session.begin(&release(n), now).unwrap();
        let backoff = session.index.clocks.backoff("n1", "s");
        let wait = backoff.map(|backoff| backoff.until.since(now).as_secs());
        assert_eq!(wait, want, "{state}");
    }
}

#[test]
fn a_node_whose_agent_is_too_old_is_left_alone_for_that_skyhook() {
    let settings = Settings::default();
    let mut session = Session::new(&settings);
    let lease = serde_json::json!({
        "metadata": { "name": "n1", "uid": "l1", "resourceVersion": "5" },
        "spec": {
            "format": 2,
            "node": { "name": "n1", "uid": "uid-of-n1" },
            "skyhook": { "name": "s", "uid": "s1" },
            "revision": "r",
            "stop": { "reason": "AgentTooOld", "since": "t" },
        },
        "status": { "phase": "Stopped" },
    });
    let nodes = [crate::testkit::node_object("n1")];
    session.start_from(crate::testkit::index(&nodes, &[], &[lease], &[]));
    let now = Mono::from_secs(100);
    let release = Effect::ReleaseLease {
        node: "n1".into(),
        at: AsOf {
            uid: "l1".into(),
            resource_version: "5".into(),
        },
    };
    assert_eq!(session.begin(&release, now), Ok(()));
    let backoff = session.index.clocks.backoff("n1", "s");
    let given = backoff.map(|backoff| (backoff.code, backoff.until));
    let want = (ReasonCode::AgentTooOld, now + settings.agent_backoff);
    assert_eq!(given, Some(want));
    assert_eq!(session.index.clocks.backoff("n1", "another"), None);
}
