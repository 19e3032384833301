use serde_json::{Value, json};

use super::*;

/// What a later version writes: names that this one does not know, in every place that has an enum.
#[test]
fn a_lease_of_a_later_version_can_be_read() {
    let spec: InterruptionLeaseSpec = serde_json::from_value(json!({
        "format": 3,
        "node": { "name": "n", "uid": "u" },
        "skyhook": { "name": "s", "uid": "u" },
        "revision": "r",
        "installed": { "a|1": {
            "name": "a", "version": "1", "image": "i", "stage": "quarantine", "state": "postponed",
        } },
        "drain": {
            "state": "Emptying",
            "blockers": [{ "pod": "ns/a", "reason": "r", "cause": "Quota" }, { "pod": "ns/b", "reason": "r" }],
        },
        "stop": { "reason": "Moved", "since": "" },
        "batch": { "state": "u", "number": 1 },
    }))
    .unwrap();
    assert_eq!(spec.format, 3);
    assert_eq!(spec.drain.state, DrainState::Unknown);
    let causes: Vec<_> = spec.drain.blockers.iter().map(|one| one.cause).collect();
    assert_eq!(causes, [Some(BlockCause::Unknown), None]);
    assert_eq!(spec.stop.map(|stop| stop.reason), Some(StopReason::Unknown));
    let installed = &spec.installed["a|1"];
    assert_eq!(
        (installed.stage, installed.state),
        (Stage::Unknown, State::Unknown)
    );
    let status: InterruptionLeaseStatus = serde_json::from_value(json!({
        "phase": "Uninstalling", "stage": "quarantine", "state": "postponed",
    }))
    .unwrap();
    assert_eq!(
        (status.phase, status.stage, status.state),
        (
            Some(Phase::Unknown),
            Some(Stage::Unknown),
            Some(State::Unknown)
        )
    );
    assert!(!Phase::Unknown.is_terminal());
}

#[test]
fn names_that_are_not_known_are_never_written() {
    for (name, written) in [
        ("phase", serde_json::to_value(Phase::Unknown)),
        ("stop", serde_json::to_value(StopReason::Unknown)),
        ("drain", serde_json::to_value(DrainState::Unknown)),
        ("cause", serde_json::to_value(BlockCause::Unknown)),
        ("stage", serde_json::to_value(Stage::Unknown)),
    ] {
        assert!(written.is_err(), "{name}");
    }
    // NVIDIA Skyhook writes this one.
    assert_eq!(serde_json::to_value(State::Unknown).unwrap(), "unknown");
}

#[test]
fn a_cause_is_called_the_same_everywhere() {
    for (cause, blocks) in [
        (BlockCause::PodDisruptionBudget, true),
        (BlockCause::UnmanagedPod, true),
        (BlockCause::EmptyDirData, true),
        (BlockCause::NonInterruptLabels, false),
    ] {
        assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        assert_eq!(cause.blocks(), blocks, "{}", cause.as_str());
    }
    let without = Blocker {
        pod: "ns/a".to_owned(),
        ..Blocker::default()
    };
    let written = serde_json::to_value(without).unwrap();
    assert_eq!(written, json!({ "pod": "ns/a", "reason": "" }));
}

#[test]
fn the_schema_has_only_names_that_are_known() {
    let schema = |value: schemars::Schema| serde_json::to_value(value).unwrap();
    for (name, schema, some) in [
        ("phase", schema(schemars::schema_for!(Phase)), "Stopped"),
        (
            "stop",
            schema(schemars::schema_for!(StopReason)),
            "AgentTooOld",
        ),
        (
            "drain",
            schema(schemars::schema_for!(DrainState)),
            "Drained",
        ),
        (
            "cause",
            schema(schemars::schema_for!(BlockCause)),
            "EmptyDirData",
        ),
        ("stage", schema(schemars::schema_for!(Stage)), "apply"),
    ] {
        let names = names(&schema);
        assert!(names.contains(&some.to_owned()), "{name}: {names:?}");
        let unknown = names.iter().any(|one| one.eq_ignore_ascii_case("unknown"));
        assert!(!unknown, "{name}: {names:?}");
    }
}

/// All values that a schema allows.
fn names(schema: &Value) -> Vec<String> {
    match schema {
        Value::Array(all) => all.iter().flat_map(names).collect(),
        Value::Object(all) => {
            let own = all.iter().filter(|(key, _)| key.as_str() == "const");
            let own = own.filter_map(|(_, value)| value.as_str().map(str::to_owned));
            let listed = all.get("enum").and_then(Value::as_array).into_iter();
            let listed = listed.flatten().filter_map(|one| one.as_str());
            own.chain(listed.map(str::to_owned))
                .chain(all.get("oneOf").map(names).unwrap_or_default())
                .collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

#[test]
fn an_agent_is_too_old_for_a_lease_that_needs_more_than_it_knows() {
    for (name, phase, knows, lease_form, revision_form, want) in [
        ("the first form", Some(Phase::Erroring), 0, 0, 0, false),
        ("the lease needs more", Some(Phase::Erroring), 0, 1, 0, true),
        ("the revision does", Some(Phase::Erroring), 0, 0, 1, true),
        ("it knows both", Some(Phase::Running), 2, 1, 2, false),
        ("nobody has accepted", None, 0, 1, 1, false),
    ] {
        let spec = InterruptionLeaseSpec {
            format: lease_form,
            ..InterruptionLeaseSpec::default()
        };
        let mut lease = InterruptionLease::new("n", spec);
        lease.status = Some(InterruptionLeaseStatus {
            format: knows,
            phase,
            ..InterruptionLeaseStatus::default()
        });
        let given = protocol::is_agent_too_old(&lease, revision_form);
        assert_eq!(given, want, "{name}");
    }
}
