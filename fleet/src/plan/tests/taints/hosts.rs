//! Nodes that are none: Windows, virtual-kubelet, Fargate.

use super::*;
use crate::facts::NodeFact;
use skyhook_crds::skyhook::SkyhookStatus;

const KINDS: [(&str, &str); 3] = [
    ("kubernetes.io/os", "windows"),
    ("type", "virtual-kubelet"),
    ("eks.amazonaws.com/compute-type", "fargate"),
];

/// The first nodes are no hosts.
fn strange(picture: Picture, count: usize) -> Picture {
    (1..=count).fold(picture, |picture, n| {
        let (key, value) = KINDS[(n - 1) % KINDS.len()];
        picture.node(n, &["metadata", "labels", key], json!(value))
    })
}

fn status(picture: &Picture) -> SkyhookStatus {
    let effects = picture.plan().effects;
    let status = effects.into_iter().find_map(|effect| match effect {
        Effect::WriteSkyhookStatus { status, .. } => Some(*status),
        _ => None,
    });
    status.expect("a status is written")
}

fn ready(status: &SkyhookStatus) -> &str {
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    ready.map_or("", |ready| ready.message.as_str())
}

fn with_nodes(picture: Picture, count: usize) -> Picture {
    let nodes = (1..=count).map(|n| testkit::node_object(&format!("worker-{n}")));
    Picture {
        nodes: nodes.collect(),
        ..picture
    }
}

#[test]
fn what_is_no_host_is_not_selected() {
    // F15a: nothing is counted, and one summary says how many there are.
    let picture = strange(with_nodes(required(json!({})), 4), 3);
    let picture = tainted(picture, 1, &[OURS]);
    let status_ = status(&picture);
    assert_eq!(status_.complete_nodes, "0/1");
    let names: Vec<&String> = status_.node_status.keys().collect();
    assert_eq!(names, ["worker-4"]);
    let reason = &status_.reasons["NodeNotSupported"];
    assert_eq!(
        (reason.nodes, reason.examples.as_slice()),
        (
            3,
            ["worker-1", "worker-2", "worker-3"]
                .map(str::to_owned)
                .as_slice()
        )
    );
    let end = "; 3 selected nodes are left out: Windows, virtual-kubelet or Fargate";
    assert!(ready(&status_).ends_with(end), "{}", ready(&status_));
    assert_eq!(picture.reserved(), ["s/worker-4"]);
    assert_eq!(written(&picture, "worker-1"), NOTHING);
    let one = status(&strange(with_nodes(Picture::new(), 2), 1));
    let end = "; 1 selected node is left out: Windows, virtual-kubelet or Fargate";
    assert!(ready(&one).ends_with(end), "{}", ready(&one));

    // F15b: no host at all.
    let nobody = status(&strange(Picture::new(), 3));
    assert_eq!(nobody.complete_nodes, "0/0");
    assert_eq!(nobody.status, skyhook_crds::stage::Status::Complete);
    assert_eq!(
        ready(&nobody),
        "0/0 nodes complete; 3 selected nodes are left out: Windows, virtual-kubelet or Fargate"
    );
}

#[test]
fn which_nodes_are_hosts() {
    for (label, want) in [
        (None, true),
        (Some(("kubernetes.io/os", "linux")), true),
        (Some(KINDS[0]), false),
        (Some(KINDS[1]), false),
        (Some(KINDS[2]), false),
        (Some(("type", "worker")), true),
        (Some(("eks.amazonaws.com/compute-type", "ec2")), true),
    ] {
        let mut node = testkit::node("n");
        if let Some((key, value)) = label {
            testkit::label(&mut node, key, value);
        }
        assert_eq!(node.is_host(), want, "{label:?}");
    }
}

#[test]
fn a_node_that_turns_out_to_be_none_gives_its_lease_back() {
    // F15c: the label comes while an agent works.
    let running = |picture: Picture| {
        leased(
            stamp(picture, granted()),
            grant_and(json!({})),
            with_package("Running", "in_progress"),
        )
    };
    let stops = |picture: &Picture| -> Vec<Option<StopReason>> {
        let effects = picture.plan().effects;
        let stops = effects.iter().filter_map(|effect| match effect {
            Effect::StopLease { stop, .. } => Some(*stop),
            _ => None,
        });
        stops.collect()
    };
    assert_eq!(stops(&running(Picture::new())), []);
    let labelled = running(strange(Picture::new(), 1));
    assert_eq!(stops(&labelled), [Some(StopReason::Deleted)]);
    // What the Node says of the Skyhook goes.
    let told = strange(Picture::new(), 1).annotated(1, &names::status("s"), "complete");
    let effects = told.plan().effects;
    let forgotten = effects.iter().any(|effect| match effect {
        Effect::PatchNode { node, patch, .. } => {
            node == "worker-1" && patch.annotations.get(&names::status("s")) == Some(&None)
        }
        _ => false,
    });
    assert!(forgotten);
}

/// F15e: half of four hosts, and the guard counts as the planner does.
#[test]
fn a_share_of_the_nodes_is_a_share_of_the_hosts() {
    let picture = Picture::new().skyhook(&["spec", "interruptionBudget"], json!({ "percent": 50 }));
    let mut picture = with_nodes(picture, 8);
    for n in 1..=4 {
        picture = picture.node(n, &["metadata", "labels", KINDS[0].0], json!(KINDS[0].1));
    }
    assert_eq!(picture.reserved(), ["s/worker-5", "s/worker-6"]);
    let grants = |leases: usize| {
        let mut all = Vec::new();
        let mut granted = picture.clone();
        for n in 5..5 + leases {
            let name = format!("worker-{n}");
            let uid = format!("lease-{name}");
            let mut one = leased(Picture::new(), json!({}), Value::Null).leases[0].clone();
            one["metadata"]["name"] = json!(name);
            one["metadata"]["uid"] = json!(uid);
            one["spec"]["node"] = json!({ "name": name, "uid": format!("uid-of-{name}") });
            let revision = granted.index().picture.skyhooks()["s"].checked.clone();
            one["spec"]["revision"] = json!(revision.unwrap().revision);
            let stamp = Stamp {
                granted: uid,
                ..Stamp::default()
            };
            granted = granted.annotated(n, &names::stamp("s"), &stamp.render());
            all.push(one);
        }
        granted.leases = all;
        let index = granted.index();
        let grant = Effect::GrantLease {
            node: "worker-5".into(),
            at: version("lease-worker-5", "5"),
            batch: None,
        };
        guard::check(&index, &granted.settings, &grant)
    };
    assert_eq!(grants(2), Ok(()));
    assert_eq!(grants(3), Err(Broken::GrantBeyondBudget));
    let hosts = picture.index();
    let hosts = hosts.picture.nodes().values();
    assert_eq!(hosts.filter(|node: &&NodeFact| node.is_host()).count(), 4);
}
