//! Batches of many members: what is looked up for each of them is found once in a pass.

use super::*;
use crate::guard::{self, places};

/// `many` nodes in one open batch of `gpu`, each with a lease that is stamped and not granted.
fn stamped(many: usize) -> Picture {
    let mut picture = paced(&json!({
        "budget": { "percent": 100 }, "strategy": { "fixed": { "initialBatch": many } },
    }));
    picture.nodes = (1..=many)
        .map(|n| testkit::node_object(&format!("worker-{n}")))
        .collect();
    for n in 1..=many {
        picture = picture.node(n, &["metadata", "labels"], json!({ "gpu": "yes" }));
    }
    let members: Vec<usize> = (1..=many).collect();
    let mut picture = with_batch(picture, &members, &json!({}));
    let lease = leased(picture.clone(), in_batch(json!({})), json!(null)).leases;
    for n in 1..=many {
        let name = format!("worker-{n}");
        let mut lease = lease[0].clone();
        lease["metadata"]["name"] = json!(name);
        lease["metadata"]["uid"] = json!(format!("lease-{n}"));
        lease["spec"]["node"] = json!({ "name": name, "uid": format!("uid-of-{name}") });
        let stamp = Stamp {
            granted: format!("lease-{n}"),
            ..granted()
        };
        picture = picture.annotated(n, "skyhook.nvidia.com/stamp_s", &stamp.render());
        picture.leases.push(lease);
    }
    picture
}

#[test]
fn the_guard_counts_compartments_once_for_all_grants_of_a_pass() {
    let picture = stamped(30);
    let index = picture.index();
    let effects = picture.plan_of(&index).effects;
    let grants: Vec<&Effect> = effects
        .iter()
        .filter(|effect| effect.kind() == "GrantLease")
        .collect();
    assert_eq!(grants.len(), 30);
    let mut counts = guard::Counts::default();
    places::counted::take();
    let mut check = |index: &Index, grant: &Effect| {
        guard::check_counted(index, &mut counts, &picture.settings, grant)
    };
    for grant in &grants {
        assert_eq!(check(&index, grant), Ok(()));
    }
    assert_eq!(places::counted::take(), 1);
    // A lease too many is noticed all the same, and so is another policy.
    let mut more = picture.index();
    let mut lease = picture.leases[0].clone();
    lease["metadata"]["name"] = json!("another");
    let lease = serde_json::from_value(lease).unwrap();
    more.apply(crate::index::Change::Lease(Box::new(lease)), Mono::ZERO);
    assert_eq!(
        check(&more, grants[0]),
        Err(guard::Broken::GrantBeyondBudget)
    );
    let mut lowered = picture.clone();
    lowered.policies[0]["spec"]["compartments"][0]["budget"] = json!({ "count": 3 });
    let mut index = index;
    let policy = serde_json::from_value(lowered.policies[0].clone()).unwrap();
    index.apply(crate::index::Change::Policy(Box::new(policy)), Mono::ZERO);
    assert_eq!(
        check(&index, grants[0]),
        Err(guard::Broken::GrantBeyondBudget)
    );
    assert_eq!(places::counted::take(), 1);
}
