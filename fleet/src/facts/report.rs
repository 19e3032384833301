//! What decisions need of an agent's report.

use skyhook_crds::lease::InterruptionLeaseStatus;
use skyhook_crds::stage::State;

/// Leaves out what nobody reads here: digests of images, times, and most messages. A failing node says 2 KiB in each
/// message. Of its packages, only the message of the first one that fails is read, and then the message about all of them is
/// not. If one has given up, only what it says about that is read.
pub(super) fn without_unused(mut status: InterruptionLeaseStatus) -> InterruptionLeaseStatus {
    let mut fails = status.parked.is_some();
    for package in status.packages.values_mut() {
        package.image_digest = None;
        package.since = None;
        if fails || package.state != State::Erroring {
            package.message = String::new();
        }
        fails |= package.state == State::Erroring;
    }
    if fails {
        status.message = String::new();
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_all_that_a_failing_node_says_one_message_is_kept() {
        let read = |states: [&str; 3]| {
            let mut packages = serde_json::Map::new();
            for (name, state) in ["aa", "bb", "cc"].into_iter().zip(states) {
                let report = json!({
                    "name": name, "version": "1.0.0", "image": "r", "stage": "apply", "state": state,
                    "message": name, "imageDigest": "sha256:0",
                });
                packages.insert(format!("{name}|1.0.0"), report);
            }
            let status = json!({ "phase": "Erroring", "message": "all", "packages": packages });
            let status = without_unused(serde_json::from_value(status).unwrap());
            assert!(status.packages.values().all(|p| p.image_digest.is_none()));
            let packages = status.packages.into_values().map(|package| package.message);
            let said: Vec<String> = packages.chain([status.message]).collect();
            said.join(",")
        };
        let parked =
            json!({ "package": "bb", "stage": "apply", "attempts": 3, "message": "gave up" });
        let status = json!({ "phase": "Erroring", "message": "all", "parked": parked, "packages": {
            "bb|1.0.0": {
                "name": "bb", "version": "1.0.0", "image": "r", "stage": "apply", "state": "erroring", "message": "bb",
            },
        } });
        let status = without_unused(serde_json::from_value(status).unwrap());
        assert_eq!(
            (&*status.message, &*status.packages["bb|1.0.0"].message),
            ("", "")
        );
        assert_eq!(
            status.parked.map(|parked| parked.message).as_deref(),
            Some("gave up")
        );
        assert_eq!(read(["complete", "erroring", "erroring"]), ",bb,,");
        assert_eq!(read(["complete", "in_progress", "complete"]), ",,,all");
    }
}
