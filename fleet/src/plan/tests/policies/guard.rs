//! What the guard refuses.

use super::*;

#[test]
fn the_guard_counts_compartments_and_asks_for_batches_itself() {
    use crate::guard::{Broken, check};
    let open = with_batch(exponential(), &[1], &json!({}));
    let lease = leased(stamp(open, granted()), in_batch(json!({})), json!(null));
    let mut planned = lease.plan().effects.into_iter();
    let grant = planned.find(|effect| effect.kind() == "GrantLease");
    let grant = grant.unwrap();
    let checked =
        |picture: &Picture, effect: &Effect| check(&picture.index(), &picture.settings, effect);
    assert_eq!(checked(&lease, &grant), Ok(()));
    let mut unasked = grant.clone();
    if let Effect::GrantLease { batch, .. } = &mut unasked {
        *batch = None;
    }
    assert_eq!(checked(&lease, &unasked), Err(Broken::GrantUnasked));
    let mut closed = lease.clone();
    closed.rollouts[0]["spec"]["compartments"]["gpu"]["batch"] = json!(0);
    assert_eq!(checked(&closed, &grant), Err(Broken::GrantOutsideBatch));
    let mut earlier = lease.leases[0].clone();
    earlier["metadata"]["name"] = json!("worker-2");
    earlier["metadata"]["uid"] = json!("other");
    earlier["spec"]["node"] = json!({ "name": "worker-2", "uid": "uid-of-worker-2" });
    earlier["spec"]["granted"] = json!({ "by": "c", "at": "t" });
    earlier["spec"]["batch"]["number"] = json!(2);
    earlier["status"] = with_package("Running", "in_progress");
    for (phase, allowed) in [
        ("Running", Err(Broken::GrantBeforeBatchEnded)),
        ("Complete", Ok(())),
    ] {
        let mut held_up = lease.clone();
        earlier["status"]["phase"] = json!(phase);
        held_up.leases.push(earlier.clone());
        assert_eq!(checked(&held_up, &grant), allowed, "{phase}");
    }
    let mut lowered = lease.clone();
    lowered.policies[0]["spec"]["compartments"][0]["budget"] = json!({ "count": 1 });
    let mut other = lease.leases[0].clone();
    other["metadata"]["name"] = json!("worker-2");
    other["metadata"]["uid"] = json!("other");
    other["spec"]["node"] = json!({ "name": "worker-2", "uid": "uid-of-worker-2" });
    lowered.leases.push(other);
    assert_eq!(checked(&lowered, &grant), Err(Broken::GrantBeyondBudget));
    let mut loses = lease
        .index()
        .picture
        .rollout_of("s")
        .unwrap()
        .spec
        .clone()
        .unwrap();
    std::sync::Arc::make_mut(&mut loses)
        .compartments
        .get_mut("gpu")
        .unwrap()
        .members
        .clear();
    let write = Effect::WriteRollout {
        name: "s".into(),
        skyhook_uid: "uid-of-s".into(),
        goes_with_owner: true,
        at: Some(version(STATE, "9")),
        spec: Box::new((*loses).clone()),
    };
    assert_eq!(checked(&lease, &write), Err(Broken::RolloutLost));
    let mut newer = lease;
    newer.rollouts[0]["spec"]["format"] = json!(1);
    assert_eq!(checked(&newer, &write), Err(Broken::NewerRollout));
}

#[test]
fn the_guard_lets_a_lease_go_whose_result_is_on_the_node() {
    use crate::guard::check;
    let open = with_batch(exponential(), &[1], &json!({}));
    let result = Stamp {
        lease: "lease".into(),
        ..granted()
    };
    // The watch of the leases is behind that of the Nodes.
    let behind = leased(
        stamp(open, result),
        in_batch(grant_and(json!({}))),
        with_package("Erroring", "erroring"),
    );
    let mut planned = behind.plan().effects.into_iter();
    let release = planned.find(|effect| effect.kind() == "ReleaseLease");
    let release = release.unwrap();
    assert_eq!(check(&behind.index(), &behind.settings, &release), Ok(()));
}
