use serde_json::json;

use super::*;

fn lease(uid: &str, number: i64) -> Value {
    json!({
        "metadata": { "uid": uid },
        "spec": {
            "skyhook": { "uid": "s" },
            "compartment": "a",
            "batch": { "state": "state", "number": number },
        },
    })
}

fn policy(name: &str, count: u64) -> Value {
    json!({ "spec": { "compartments": [{ "name": name, "budget": { "count": count } }] } })
}

#[test]
fn one_lease_too_many_is_seen() {
    let mut paced = Paced::default();
    paced.respecified(10, &policy("a", 2));
    paced.respecified(20, &policy("a", 1));
    let mut grant = |uid: &str, since: u64| {
        let lease = lease(uid, 1);
        paced.decided(0, &lease, since);
        paced.granted(Some(0), uid, &lease)
    };
    assert_eq!(grant("lease-1", 25), None);
    // Whoever has not seen the second form of the policy goes by the first.
    assert_eq!(grant("lease-2", 15), None);
    assert_eq!(grant("lease-3", 15), Some((3, 2)));
    assert_eq!(grant("lease-4", 25), Some((4, 1)));
    for uid in ["lease-1", "lease-2", "lease-3", "lease-4"] {
        paced.released(uid);
    }
    let lease = lease("lease-5", 1);
    paced.decided(0, &lease, 25);
    assert_eq!(paced.granted(Some(0), "lease-5", &lease), None);
}

#[test]
fn a_batch_that_goes_on_after_a_later_one_began_is_seen() {
    let mut paced = Paced::default();
    let mut begins = |number: i64, run: i64| {
        let batch = Batch::of(&lease("lease-1", number)).unwrap();
        paced.begins(&batch, run)
    };
    assert_eq!(begins(3, 1), None);
    assert_eq!(begins(4, 1), None);
    assert_eq!(begins(4, 1), None);
    assert_eq!(begins(3, 1), Some(4));
    // After a reset, leases of before may still be granted.
    assert_eq!(begins(3, 2), None);
}
