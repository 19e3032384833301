//! Which writes are under way, or finished and not delivered yet.

use super::*;

fn reserve(skyhook: &str) -> Effect {
    let mut spec = skyhook_crds::lease::InterruptionLeaseSpec::default();
    spec.skyhook.uid = format!("uid-of-{skyhook}");
    spec.skyhook.name = skyhook.to_owned();
    Effect::ReserveLease {
        node: "worker-1".into(),
        spec: Box::new(spec),
    }
}

fn stop() -> Effect {
    Effect::StopLease {
        node: "worker-1".into(),
        at: version("lease", "5"),
        stop: None,
        revision: None,
        message: "",
    }
}

fn release() -> Effect {
    Effect::ReleaseLease {
        node: "worker-1".into(),
        at: version("lease", "5"),
    }
}

fn patch(replica: &Replica) -> Effect {
    let node = &replica.index.picture.nodes()["worker-1"];
    Effect::PatchNode {
        node: "worker-1".into(),
        at: version(&node.uid, &node.resource_version),
        patch: NodePatch::default(),
        why: BTreeSet::new(),
    }
}

#[test]
fn what_is_decided_on_the_writes_under_way() {
    let recorded = || {
        let recorded = Stamp {
            lease: "lease".into(),
            ..granted()
        };
        let done = with_package("Complete", "complete");
        leased(stamp(Picture::new(), recorded), grant_and(json!({})), done)
    };
    let paused = || {
        let spec = json!({ "stop": { "reason": "Paused", "since": "2023-11-14T22:13:00Z" } });
        let status = with_package("Running", "in_progress");
        leased(stamp(Picture::new(), granted()), grant_and(spec), status)
    };
    let creating = || {
        Replica::with(&Picture::new(), |replica| {
            replica.index.begins(&reserve("s"));
        })
    };
    let failed = || {
        let mut status = with_package("Erroring", "erroring");
        status["packages"]["aa|1.0.0"]["message"] = json!("exit code 1");
        leased(
            stamp(Picture::new(), granted()),
            grant_and(json!({})),
            status,
        )
    };
    compare([
        (
            "Inflight.busy: a write of the lease begins",
            Replica::of(&paused()),
            |replica| replica.index.begins(&stop()),
        ),
        (
            "Inflight.busy: it ends without an answer",
            Replica::with(&paused(), |replica| replica.index.begins(&stop())),
            |replica| {
                replica.index.ends(&stop());
                let now = replica.now;
                replica.index.is_refused(&stop(), false, now);
            },
        ),
        (
            "Inflight.stale: the watch has not delivered the write",
            Replica::of(&paused()),
            |replica| {
                let now = replica.now;
                replica.index.is_done(&stop(), None, now);
            },
        ),
        (
            "Inflight.stale: the watch lags for too long",
            Replica::with(&paused(), |replica| {
                let now = replica.now;
                replica.index.is_done(&stop(), None, now);
            }),
            |replica| replica.passes(5),
        ),
        (
            "Inflight.removed: the lease is deleted",
            Replica::of(&recorded()),
            |replica| {
                let now = replica.now;
                replica.index.is_done(&release(), None, now);
            },
        ),
        (
            "Inflight.removed: the watch lags for too long",
            Replica::with(&recorded(), |replica| {
                let now = replica.now;
                replica.index.is_done(&release(), None, now);
            }),
            |replica| replica.passes(5),
        ),
        (
            "Inflight.creating: a lease is being created",
            Replica::of(&Picture::new()),
            |replica| replica.index.begins(&reserve("s")),
        ),
        (
            "Create.skyhook_uid: it is for another Skyhook",
            Replica::of(&Picture::new()),
            |replica| replica.index.begins(&reserve("t")),
        ),
        (
            "Inflight.creating: the API server refuses it",
            creating(),
            |replica| {
                replica.index.ends(&reserve("s"));
                let now = replica.now;
                replica.index.is_refused(&reserve("s"), false, now);
            },
        ),
        (
            "Create.answered, Inflight.lease_list_began: a later list does not have it",
            creating(),
            |replica| {
                replica.index.ends(&reserve("s"));
                let now = replica.now;
                replica.index.is_done(&reserve("s"), None, now);
                replica.passes(1);
                replica.take(Change::ListBegins(Kind::Lease));
                replica.take(Change::Synced(Kind::Lease));
            },
        ),
        (
            "Inflight.written: a reason waits until the Node may be written again",
            Replica::of(&failed()),
            |replica| {
                let write = patch(replica);
                let now = replica.now;
                replica.index.is_done(&write, None, now);
                replica.lease(|lease| {
                    lease["status"]["packages"]["aa|1.0.0"]["message"] = json!("exit code 2");
                });
            },
        ),
        (
            "Inflight.written: it may be written again",
            Replica::with(&failed(), |replica| {
                let target = Target::Node("worker-1".into());
                let now = replica.now + Duration::from_millis(500);
                replica.index.inflight.set_written(target, now);
            }),
            |replica| {
                replica.lease(|lease| {
                    lease["status"]["packages"]["aa|1.0.0"]["message"] = json!("exit code 2");
                });
                let _waits = replica.plans();
                replica.passes(2);
            },
        ),
    ]);
    let rows = [
        "busy",
        "stale",
        "creating",
        "removed",
        "written",
        "lease_list_began",
    ];
    assert_eq!(Inflight::fields(), rows, "each needs a row above");
}
