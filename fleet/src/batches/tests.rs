//! Tables of what is decided about batches, with numbers worked by hand.

use skyhook_crds::policy::{CheckedPolicy, DEFAULT_COMPARTMENT, DeploymentPolicySpec, Matches};
use skyhook_crds::rollout::CompartmentState;

use super::*;

const STATE: &str = "state";
/// Number of the open batch.
const OPEN: i64 = 5;

fn policy(budget: usize, strategy: &str) -> CheckedPolicy {
    let json = format!(
        r#"{{ "default": {{ "budget": {{ "count": {budget} }}, "strategy": {strategy} }}, "compartments": [] }}"#
    );
    let spec: DeploymentPolicySpec = serde_json::from_str(&json).unwrap();
    spec.check().unwrap()
}

/// Nodes of one compartment, each named by a letter, with the leases that are there.
#[derive(Clone, Debug, Default)]
struct World {
    nodes: Vec<Member<'static>>,
    leases: Vec<Lease<'static>>,
    state: CompartmentState,
    left: BTreeSet<(i64, String)>,
    used: usize,
    free: usize,
}

impl World {
    fn new() -> Self {
        Self {
            state: CompartmentState::new(1),
            free: 100,
            ..Self::default()
        }
    }

    /// An eligible node.
    fn node(mut self, name: &'static str) -> Self {
        self.nodes.push(Member {
            node: name,
            id: name,
            compartment: CompartmentId::default(),
            end: End::Not,
            is_eligible: true,
            rank: (1, 0),
        });
        self
    }

    /// A lease of the node that was added last, in a batch; 0: in none.
    fn lease(mut self, batch: i64, end: End) -> Self {
        let node = self.nodes.last_mut().unwrap();
        node.is_eligible = false;
        node.end = end;
        self.leases.push(Lease {
            node: node.node,
            id: node.id,
            compartment: DEFAULT_COMPARTMENT,
            present: Some(CompartmentId::default()),
            batch: (batch != 0).then_some(BatchRef {
                state: STATE,
                number: batch,
            }),
            end,
            is_leaving: end == End::Complete,
        });
        self.used += 1;
        self
    }

    /// The open batch has these members, each in the state that its letter says: **w**orks, complete (**k**), **F**ailed
    /// just now, **f**ailed and kept, **e**ligible, **s**trayed (cannot be leased), struck (**x**), struck and **l**eft,
    /// struck and works all the same (**y**).
    fn batch(mut self, fates: &str) -> Self {
        self.state.batch = OPEN;
        for (at, (fate, name)) in fates.chars().zip(["a", "b", "c"]).enumerate() {
            self.state.members.push(name.to_owned());
            if "fF".contains(fate) {
                self = self.node(name).lease(OPEN, End::Failed);
            } else if "wy".contains(fate) {
                self = self.node(name).lease(OPEN, End::Not);
            } else {
                self = self.node(name);
            }
            let node = self.nodes.last_mut().unwrap();
            node.is_eligible = fate == 'e';
            if fate == 'k' {
                node.end = End::Complete;
            }
            if fate == 'f' {
                self.state.latch(at);
            }
            if "xly".contains(fate) {
                self.state.strike(at);
            }
            if fate == 'l' {
                self.left.insert((OPEN, name.to_owned()));
            }
        }
        self
    }

    fn decide(&self, policy: &CheckedPolicy) -> Decision {
        let all = vec![Matches::default(); self.nodes.len()];
        let (compartments, places) = Compartments::sort(policy, all.into_iter());
        let mut nodes = self.nodes.clone();
        for (node, place) in nodes.iter_mut().zip(&places) {
            node.compartment = *place;
        }
        let spec = RolloutStateSpec {
            next_batch: OPEN + 1,
            compartments: [(DEFAULT_COMPARTMENT.to_owned(), self.state.clone())].into(),
            ..RolloutStateSpec::default()
        };
        decide(&Rollout {
            compartments: &compartments,
            stored: Stored {
                uid: STATE,
                spec: &spec,
            },
            members: &nodes,
            leases: &self.leases,
            used: &places.iter().map(|place| (*place, self.used)).collect(),
            free: self.free,
            left: &self.left,
            least_order: 0,
            now: "t",
        })
    }

    /// What is decided, in words.
    fn told(&self, policy: &CheckedPolicy) -> String {
        let decision = self.decide(policy);
        let mut told = Vec::new();
        if let Some(write) = &decision.write {
            let after = &write.compartments[DEFAULT_COMPARTMENT];
            if after.shown > self.state.shown {
                let how = if after.last_batch_failed {
                    "failed"
                } else {
                    "ok"
                };
                told.push(format!("judged {how} of {}", after.last_batch_size));
            }
            if after.batch != self.state.batch && after.is_open() {
                told.push(format!("opens {}", after.members.join("")));
            }
            if after.batch == self.state.batch {
                told.push(format!("struck {:?}", after.struck));
            }
            if after.stopped.is_some() && self.state.stopped.is_none() {
                told.push("stops".to_owned());
            }
        }
        let looks = decision
            .looks
            .iter()
            .map(|look| format!("looks for {}", look.id));
        told.extend(looks);
        let leases = decision
            .reservable
            .keys()
            .map(|node| format!("leases {node}"));
        told.extend(leases);
        told.extend(decision.holds.values().map(|hold| match hold {
            Hold::Stopped { failures, .. } => format!("stopped after {failures}"),
            Hold::Slots { by, .. } => format!("slots of {}", by.join("")),
            Hold::Cap => "cluster-wide slots".to_owned(),
            Hold::EarlierBatch { by } => format!("waits for {}", by.join("")),
        }));
        told.join(", ")
    }
}

#[test]
fn a_batch_ends_when_no_member_works_or_could_be_started() {
    let policy = policy(10, r#"{ "fixed": { "initialBatch": 2 } }"#);
    for (fates, want) in [
        ("www", ""),
        ("kkw", ""),
        ("kke", "leases c"),
        // Two of three succeeded, 66 %, and all have to.
        ("kkF", "judged failed of 3, opens de"),
        ("kkf", "judged failed of 3, opens de"),
        ("kkk", "judged ok of 3, opens de"),
        // Nobody is struck while another one works.
        ("kws", ""),
        ("kks", "struck [2]"),
        ("kss", "struck [1, 2]"),
        ("kkx", "looks for c"),
        ("kky", ""),
        // Who left is not counted.
        ("kkl", "judged ok of 2, opens de"),
        ("kfl", "judged failed of 2, opens de"),
        // All left before anybody ended: the next batch is opened without a judgement.
        ("lll", "opens de"),
    ] {
        let world = World::new().batch(fates).node("d").node("e");
        assert_eq!(world.told(&policy), want, "{fates}");
    }
    // Nobody else could be started: nothing is written again and again.
    assert_eq!(World::new().batch("lll").told(&policy), "");
    // Neither could one that waits for a slot. What it waits for is said.
    let mut full = World::new().batch("lll").node("z").lease(1, End::Failed);
    full.used = 10;
    assert_eq!(full.node("d").told(&policy), "slots of z");
    // Everything is complete: the reset that follows needs the numbers of the last batch.
    assert_eq!(World::new().batch("kkk").told(&policy), "");
}

#[test]
fn a_member_does_not_wait_for_slots_that_failed_nodes_hold() {
    for (fates, ceiling, want) in [
        ("fe", 2, "leases b"),
        ("fe", 1, "struck [1], leases b"),
        // It works, and will give its slot back.
        ("we", 1, "leases b"),
        ("wfe", 2, "leases c"),
        ("ffe", 2, "struck [2], leases c"),
    ] {
        let policy = policy(ceiling, r#"{ "fixed": { "initialBatch": 3 } }"#);
        let world = World::new().batch(fates).node("d");
        assert_eq!(world.told(&policy), want, "{fates} below {ceiling}");
    }
}

#[test]
fn a_batch_is_as_large_as_slots_allow() {
    for (name, ceiling, used, free, want) in [
        ("all of it", 10, 0, 100, "opens abc"),
        ("below the ceiling", 2, 0, 100, "opens ab"),
        ("others hold slots: 4 - 3", 4, 3, 100, "opens a"),
        ("the cap over all Skyhooks", 10, 0, 2, "opens ab"),
        ("no slot is left", 4, 4, 100, "slots of z"),
        ("nor one of the cap", 4, 1, 0, "cluster-wide slots"),
    ] {
        let policy = policy(ceiling, r#"{ "fixed": { "initialBatch": 3 } }"#);
        let mut world = World::new().node("z").lease(1, End::Failed);
        world = world.node("a").node("b").node("c").node("d");
        (world.used, world.free) = (used, free);
        assert_eq!(world.told(&policy), want, "{name}");
    }
}

#[test]
fn a_batch_waits_for_slots_that_are_given_back_in_a_moment() {
    for (name, ceiling, is_leaving, want) in [
        ("it would be cut", 2, true, ""),
        ("it would be cut, and the host is away", 2, false, "opens a"),
        ("there is no slot", 1, true, ""),
        (
            "there is no slot, and the host is away",
            1,
            false,
            "slots of z",
        ),
        ("there are enough slots", 4, true, "opens abc"),
    ] {
        let policy = policy(ceiling, r#"{ "fixed": { "initialBatch": 3 } }"#);
        let mut world = World::new().node("z").lease(1, End::Complete);
        world.leases[0].is_leaving = is_leaving;
        let world = world.node("a").node("b").node("c").node("d");
        assert_eq!(world.told(&policy), want, "{name}");
    }
}

#[test]
fn who_began_is_picked_first_then_the_oldest_then_by_name_and_the_own_node_last() {
    let policy = policy(10, r#"{ "fixed": { "initialBatch": 4 } }"#);
    let mut world = World::new()
        .node("a")
        .node("b")
        .node("c")
        .node("d")
        .node("e");
    for (at, rank) in [(2, 7), (1, 9), (1, 9), (0, 99), (1, 3)]
        .into_iter()
        .enumerate()
    {
        world.nodes[at].rank = rank;
    }
    assert_eq!(world.told(&policy), "opens debc");
}

#[test]
fn a_batch_is_not_opened_before_earlier_leases_have_ended() {
    let policy = policy(10, r#"{ "fixed": {} }"#);
    for (name, batch, end, want) in [
        ("of an earlier run", 2, End::Not, "waits for z"),
        // There was no strategy when it was created.
        ("of no batch", 0, End::Not, "waits for z"),
        ("it is complete", 2, End::Complete, "opens a"),
        ("it has failed", 2, End::Failed, "opens a"),
    ] {
        let world = World::new().node("z").lease(batch, end).node("a");
        assert_eq!(world.told(&policy), want, "{name}");
    }
    // Its compartment was renamed: it counts where its node is now. Another compartment's lease does not.
    let mut renamed = World::new().node("z").lease(2, End::Not).node("a");
    renamed.leases[0].compartment = "old-name";
    assert_eq!(renamed.told(&policy), "waits for z");
    renamed.leases[0].present = None;
    assert_eq!(renamed.told(&policy), "opens a");
}

/// Failed batches in a row, below the safety limit. Ten nodes: each that has ended is 10 %.
#[test]
fn failures_in_a_row_stop_below_the_safety_limit() {
    let strategy = r#"{ "fixed": { "initialBatch": 3, "failureThreshold": 2, "safetyLimit": 50, "batchThreshold": 60 } }"#;
    let policy = policy(10, strategy);
    for (name, fates, before, others_done, want) in [
        ("the first", "kFF", 0, 0, "judged failed of 3, opens def"),
        (
            "the second, 30 %",
            "kFF",
            1,
            0,
            "judged failed of 3, stops, stopped after 2",
        ),
        (
            "the second, 50 %",
            "kFF",
            1,
            2,
            "judged failed of 3, opens fgh",
        ),
        // Two of three are 66 %.
        ("enough succeeded", "kkF", 1, 0, "judged ok of 3, opens def"),
    ] {
        let mut world = World::new().batch(fates);
        world.state.consecutive_failures = before;
        for (at, node) in ["d", "e", "f", "g", "h", "i", "j"].into_iter().enumerate() {
            world = world.node(node);
            if at < others_done {
                let node = world.nodes.last_mut().unwrap();
                (node.end, node.is_eligible) = (End::Complete, false);
            }
        }
        assert_eq!(world.told(&policy), want, "{name}");
    }
    let mut stopped = World::new().node("a");
    stopped.state.stopped = Some("t".into());
    stopped.state.consecutive_failures = 2;
    assert_eq!(stopped.told(&policy), "stopped after 2");
    // Members that hold no lease yet get none either.
    let mut stopped = World::new().batch("kee");
    stopped.state.stopped = Some("t".into());
    assert_eq!(stopped.told(&policy), "");
}

#[test]
fn an_edited_strategy_keeps_the_members_and_judges_by_its_thresholds() {
    let strict = policy(10, r#"{ "fixed": { "initialBatch": 1 } }"#);
    let lenient = policy(
        10,
        r#"{ "exponential": { "initialBatch": 1, "batchThreshold": 60 } }"#,
    );
    let world = |fates| World::new().batch(fates).node("d").node("e");
    assert_eq!(world("kew").told(&strict), "leases b");
    assert_eq!(world("kew").told(&lenient), "leases b");
    assert_eq!(world("kkF").told(&strict), "judged failed of 3, opens d");
    // Twice as many as the three that ended, and two are left.
    assert_eq!(world("kkF").told(&lenient), "judged ok of 3, opens de");
}

#[test]
fn a_lease_goes_once_its_failure_is_kept() {
    let state = |failed: &[i32]| {
        let mut state = CompartmentState::new(1);
        (state.batch, state.members) = (OPEN, vec!["a".to_owned()]);
        state.failed = failed.to_vec();
        RolloutStateSpec {
            next_batch: OPEN + 1,
            compartments: [("c".to_owned(), state)].into(),
            ..RolloutStateSpec::default()
        }
    };
    let lease = |uid: &'static str, number: i64, end: End| Lease {
        node: "a",
        id: "a",
        compartment: "c",
        present: None,
        batch: Some(BatchRef { state: uid, number }),
        end,
        is_leaving: false,
    };
    for (name, failed, lease, want) in [
        ("complete", &[][..], lease(STATE, OPEN, End::Complete), true),
        ("failed", &[], lease(STATE, OPEN, End::Failed), false),
        ("kept", &[0], lease(STATE, OPEN, End::Failed), true),
        ("judged", &[], lease(STATE, OPEN - 1, End::Failed), true),
        (
            "opened later",
            &[],
            lease(STATE, OPEN + 1, End::Complete),
            false,
        ),
        (
            "of another state, which may be the newer one",
            &[],
            lease("other", OPEN - 1, End::Failed),
            false,
        ),
    ] {
        let spec = state(failed);
        let batches = Batches::new(Stored {
            uid: STATE,
            spec: &spec,
        });
        assert_eq!(batches.may_release(&lease), want, "{name}");
    }
}
