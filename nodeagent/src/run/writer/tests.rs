use serde_json::json;
use skyhook_crds::InterruptionLease;

use super::*;

fn lease(version: &str, status: &Value) -> InterruptionLease {
    serde_json::from_value(json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "InterruptionLease",
        "metadata": { "name": "worker-1", "uid": "u", "resourceVersion": version, "generation": 1 },
        "spec": {
            "node": { "name": "worker-1", "uid": "n" }, "skyhook": { "name": "s", "uid": "s" },
            "revision": "r",
        },
        "status": status,
    }))
    .expect("a lease")
}

fn status(phase: Phase) -> InterruptionLeaseStatus {
    InterruptionLeaseStatus {
        phase: Some(phase),
        ..InterruptionLeaseStatus::default()
    }
}

fn writer() -> Writer {
    let mut writer = Writer::default();
    writer.begin(&lease("4", &json!({ "phase": "Accepted" })));
    writer
}

/// Starts the next call for a status with this phase, and returns the call.
fn sent(writer: &mut Writer, phase: Phase) -> Call {
    let later = Instant::now() + Duration::from_secs(60);
    match writer.next(status(phase), later) {
        Next::Call(call) => {
            writer.in_flight = true;
            call
        }
        other @ (Next::Nothing | Next::WakeAt(_)) => panic!("no call but {other:?}"),
    }
}

fn answer(
    writer: &mut Writer,
    call: Call,
    result: Result<InterruptionLease, ApiError>,
) -> Option<Event> {
    let written = Written {
        uid: "u".to_owned(),
        call,
        result,
    };
    writer.answered(&written, Instant::now())
}

fn over(call: &Call) -> Option<&str> {
    match call {
        Call::Read => None,
        Call::Write { version, .. } => Some(version),
    }
}

fn conflict() -> Result<InterruptionLease, ApiError> {
    Err(ApiError::Conflict {
        what: "lease status".to_owned(),
    })
}

fn silence() -> Result<InterruptionLease, ApiError> {
    Err(ApiError::Silent {
        what: "lease status".to_owned(),
        problem: "no answer".to_owned(),
    })
}

#[test]
fn every_write_is_over_the_version_that_is_known() {
    let mut writer = writer();
    let call = sent(&mut writer, Phase::Preparing);
    assert_eq!(over(&call), Some("4"));
    let written = lease("7", &json!({ "phase": "Preparing" }));
    assert_eq!(answer(&mut writer, call, Ok(written)), None);
    // The watch shows an older version than the one that was written.
    writer.seen(Some(&lease("5", &json!({ "phase": "Accepted" }))));
    let call = sent(&mut writer, Phase::Complete);
    assert_eq!(over(&call), Some("7"));
}

#[test]
fn what_was_refused_is_read_and_decided_again() {
    for (name, refusal) in [("conflict", conflict()), ("silence", silence())] {
        let mut writer = writer();
        let call = sent(&mut writer, Phase::AwaitingDrain);
        assert_eq!(answer(&mut writer, call, refusal), None, "{name}");
        let read = sent(&mut writer, Phase::AwaitingDrain);
        assert_eq!(read, Call::Read, "{name}");
        // The write had succeeded although its answer was lost.
        let there = lease(
            "9",
            &json!({ "phase": "AwaitingDrain", "needsDrain": null }),
        );
        assert_eq!(answer(&mut writer, read, Ok(there)), None, "{name}");
        let call = sent(&mut writer, Phase::Complete);
        assert_eq!(over(&call), Some("9"), "{name}");
    }
}

#[test]
fn running_is_written_over_drained_alone_and_a_refusal_is_told() {
    let mut writer = writer();
    writer.want_running("6".to_owned());
    let call = sent(&mut writer, Phase::AwaitingDrain);
    let Call::Write {
        version,
        change,
        running,
    } = &call
    else {
        panic!("not a write: {call:?}");
    };
    assert_eq!((&**version, *running), ("6", true));
    assert_eq!(change["phase"], "Running");
    // It is not known whether the write succeeded: write again with the same precondition.
    assert_eq!(answer(&mut writer, call, silence()), None);
    let again = sent(&mut writer, Phase::AwaitingDrain);
    assert_eq!(over(&again), Some("6"));
    let told = answer(&mut writer, again, conflict());
    assert_eq!(told, Some(Event::RunningRefused));
    // The first write may have succeeded: read the lease before the next write.
    assert_eq!(sent(&mut writer, Phase::AwaitingDrain), Call::Read);
}

#[test]
fn running_is_said_even_when_it_stands_there() {
    let mut writer = Writer::default();
    let running = json!({ "observedGeneration": 0, "phase": "Running", "needsDrain": true });
    writer.begin(&lease("4", &running));
    writer.want_running("4".to_owned());
    let call = sent(&mut writer, Phase::Running);
    let written = lease("5", &running);
    let Call::Write { change, .. } = &call else {
        panic!("not a write: {call:?}");
    };
    assert_eq!(*change, json!({ "phase": "Running" }));
    let told = answer(&mut writer, call, Ok(written));
    assert_eq!(told, Some(Event::RunningWritten));
}

#[test]
fn a_lease_that_is_gone_is_not_written_to() {
    for (name, result) in [
        (
            "gone",
            Err(ApiError::NotFound {
                what: "lease".to_owned(),
            }),
        ),
        ("another one", {
            let mut other = lease("9", &Value::Null);
            other.metadata.uid = Some("v".to_owned());
            Ok(other)
        }),
    ] {
        let mut writer = writer();
        let call = sent(&mut writer, Phase::Preparing);
        answer(&mut writer, call, conflict());
        let read = sent(&mut writer, Phase::Preparing);
        answer(&mut writer, read, result);
        let later = Instant::now() + Duration::from_secs(60);
        let next = writer.next(status(Phase::Preparing), later);
        assert_eq!(next, Next::Nothing, "{name}");
    }
}

#[test]
fn a_report_in_a_hurry_is_not_paced_and_settles_when_it_has_arrived() {
    let mut writer = writer();
    let now = Instant::now();
    let next = writer.decide(status(Phase::Preparing), now);
    assert!(matches!(next, Next::WakeAt(_)), "{next:?}");
    writer.hurry();
    let Next::Call(call) = writer.decide(status(Phase::Preparing), now) else {
        panic!("it is written at once");
    };
    assert!(!writer.is_settled());
    writer.in_flight = true;
    assert_eq!(writer.decide(status(Phase::Preparing), now), Next::Nothing);
    assert!(!writer.is_settled(), "the answer may be a refusal");
    let there = serde_json::to_value(status(Phase::Preparing)).unwrap();
    answer(&mut writer, call, Ok(lease("7", &there)));
    assert_eq!(writer.decide(status(Phase::Preparing), now), Next::Nothing);
    assert!(writer.is_settled());
}
