//! What a coordinator may do, by what it has seen. One action is one request.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::LazyLock;

use foldhash::quality::FixedState;
use skyhook_crds::policy::{CheckedPolicy, CompartmentId, Compartments, DeploymentPolicySpec};
use skyhook_fleet::batches::{
    BatchRef, Batches, Decision, End, Lease as LeaseView, Member, Rollout, Stored as StoredView,
    decide,
};
use skyhook_fleet::facts::Labels;

use super::state::{
    Bits, COMPARTMENTS, Coordinator, Lease, NAMES, NODES, Phase, State, Stored, id,
};
use super::{Config, Mutation};

/// A request of one coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Writes the state.
    Put,
    Reserve(usize),
    Stamp(usize),
    /// Reads the stored state for a lease.
    Check(usize),
    Grant(usize),
    Withdraw(usize),
    Record(usize),
    Release(usize),
    /// Reads the lease of a struck member.
    LookForLease(usize, usize),
    /// Reads the Node of a lease.
    LookForNode(usize),
}

const NODE_NAMES: [&str; NODES] = ["a", "b", "c"];
const STATE: &str = "state";

/// The policy: two compartments by a label, with one ceiling, in batches of 1, 2, 4 and so on; `threshold` failed batches
/// in a row stop them.
fn policy(ceiling: usize, threshold: usize) -> CheckedPolicy {
    let compartment = |name: &str| {
        serde_json::json!({
            "name": name,
            "selector": {"matchLabels": {"c": name}},
            "budget": {"count": ceiling},
            "strategy": {"exponential": {"failureThreshold": threshold, "safetyLimit": 100}},
        })
    };
    let spec: DeploymentPolicySpec = serde_json::from_value(serde_json::json!({
        "default": {"budget": {"count": 1}, "strategy": {"fixed": {}}},
        "compartments": NAMES.map(compartment),
    }))
    .unwrap();
    spec.check().unwrap()
}

/// By ceiling and threshold.
static POLICIES: LazyLock<Vec<[CheckedPolicy; 2]>> = LazyLock::new(|| {
    let with = |ceiling| [1, 2].map(|threshold| policy(ceiling, threshold));
    (1..=NODES).map(with).collect()
});
static LABELS: LazyLock<[Labels; COMPARTMENTS]> =
    LazyLock::new(|| NAMES.map(|name| BTreeMap::from([("c".to_owned(), name.to_owned())]).into()));
static IDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    (0..NODES)
        .flat_map(|node| (0..16).map(move |of| id(node, of)))
        .collect()
});

fn member_id(node: usize, generation: u8) -> &'static str {
    &IDS[node * 16 + usize::from(generation)]
}

/// UID of the state that a coordinator has in its picture. The first write creates the state: before that there is none.
const fn uid(stored: &Stored) -> &'static str {
    if stored.next_batch == 1 { "" } else { STATE }
}

/// True when the state's open batch may lease the node.
fn names(stored: &Stored, node: usize, lease: &Lease) -> bool {
    let spec = stored.spec();
    let batches = Batches::new(StoredView {
        uid: STATE,
        spec: &spec,
    });
    let batch = BatchRef {
        state: STATE,
        number: lease.batch.into(),
    };
    let name = NAMES[usize::from(lease.compartment)];
    batches.names(name, &batch, member_id(node, lease.generation))
}

/// The picture of one coordinator, in the words of what decides.
struct Picture<'a> {
    config: &'a Config,
    coordinator: &'a Coordinator,
}

impl Picture<'_> {
    fn end(&self, node: usize, lease: &Lease) -> End {
        match lease.phase {
            Phase::Complete => End::Complete,
            Phase::Failed => End::Failed,
            Phase::Working if self.coordinator.gone.has(node) => End::Failed,
            Phase::Idle | Phase::Working => End::Not,
        }
    }

    /// Leases that are known, and creates that the watch has not delivered.
    fn slots(&self) -> Vec<(usize, u8)> {
        (0..NODES)
            .flat_map(|node| {
                let present = self.coordinator.nodes[node].compartment;
                let lease = self.coordinator.leases[node];
                let own = self.coordinator.creating.has(node);
                let spec = lease.map(|lease| lease.compartment);
                let of = spec.or(own.then_some(present));
                let other = spec.filter(|spec| *spec != present).map(|_| present);
                of.into_iter().chain(other).map(move |of| (node, of))
            })
            .collect()
    }

    fn used(&self, compartment: u8) -> usize {
        self.slots()
            .iter()
            .filter(|(_, of)| *of == compartment)
            .count()
    }

    fn members(&self, places: &[CompartmentId]) -> Vec<Member<'static>> {
        let seen = self.coordinator;
        let by_name = self.config.mutation == Some(Mutation::CompleteByName);
        let nodes = &seen.nodes[..self.config.nodes];
        nodes
            .iter()
            .enumerate()
            .map(|(at, node)| {
                let named = seen.stored.compartments.iter().flat_map(|c| c.ids());
                let twin = named.copied().find(|id| usize::from(*id / 16) == at);
                let twin = twin.filter(|_| by_name);
                let generation = twin.map_or(node.generation, |id| id % 16);
                let lease = seen.leases[at];
                let own = lease.filter(|lease| lease.generation == node.generation);
                let failed = own.is_some_and(|lease| lease.phase == Phase::Failed);
                Member {
                    node: NODE_NAMES[at],
                    id: member_id(at, generation),
                    compartment: places[at],
                    end: if node.complete {
                        End::Complete
                    } else if failed {
                        End::Failed
                    } else {
                        End::Not
                    },
                    is_eligible: !node.ignored
                        && !node.complete
                        && lease.is_none()
                        && !seen.creating.has(at),
                    rank: (0, at as i64),
                }
            })
            .collect()
    }

    fn with<T>(&self, read: impl FnOnce(&Rollout<'_>, &[Option<LeaseView<'_>>]) -> T) -> T {
        let seen = self.coordinator;
        let spec = seen.stored.spec();
        let policy = &POLICIES[self.config.ceiling - 1][self.config.threshold - 1];
        let nodes = &seen.nodes[..self.config.nodes];
        let labels = nodes
            .iter()
            .map(|node| &LABELS[usize::from(node.compartment)])
            .map(|labels| policy.matches(|one| labels.meet(one)));
        let (compartments, places) = Compartments::sort(policy, labels);
        let leases: Vec<Option<LeaseView<'_>>> = (0..NODES)
            .map(|node| {
                let lease = seen.leases[node]?;
                let end = self.end(node, &lease);
                Some(LeaseView {
                    node: NODE_NAMES[node],
                    id: member_id(node, lease.generation),
                    compartment: NAMES[usize::from(lease.compartment)],
                    present: Some(places[node]),
                    batch: Some(BatchRef {
                        state: STATE,
                        number: lease.batch.into(),
                    }),
                    end,
                    is_leaving: end == End::Complete,
                })
            })
            .collect();
        let members = self.members(&places);
        let used = compartments
            .all()
            .filter_map(|(id, one)| {
                let at = NAMES.iter().position(|name| *name == one.name)?;
                Some((id, self.used(at as u8)))
            })
            .collect();
        let left = self.left();
        let all: Vec<LeaseView<'_>> = leases.iter().flatten().copied().collect();
        let rollout = Rollout {
            compartments: &compartments,
            stored: StoredView {
                uid: uid(&seen.stored),
                spec: &spec,
            },
            members: &members,
            leases: &all,
            used: &used,
            free: NODES,
            left: &left,
            least_order: 0,
            now: "",
        };
        read(&rollout, &leases)
    }

    fn left(&self) -> BTreeSet<(i64, String)> {
        let believed = self.config.mutation == Some(Mutation::LeftUnseen);
        let stored = &self.coordinator.stored;
        let each = stored.compartments.iter().zip(self.coordinator.left);
        each.flat_map(|(one, left)| {
            let members = one.ids().iter().enumerate();
            members
                .filter(move |(at, _)| believed || left.has(*at))
                .map(|(_, id)| (i64::from(one.batch), id.to_string()))
        })
        .collect()
    }

    fn decision(&self) -> Decision {
        self.with(|rollout, _| decide(rollout))
    }

    /// The state that it would write.
    fn write(&self, decision: &Decision) -> Option<Stored> {
        let mut next = Stored::from_spec(decision.write.as_ref()?);
        if self.config.mutation == Some(Mutation::NoLatch) {
            for one in &mut next.compartments {
                one.failed = Bits(0);
            }
            if next == self.coordinator.stored {
                return None;
            }
        }
        Some(next)
    }

    fn fits(&self, lease: &Lease, node: usize) -> bool {
        let present = self.coordinator.nodes[node].compartment;
        [lease.compartment, present]
            .iter()
            .all(|of| self.used(*of) <= self.config.ceiling)
    }

    fn may_release(&self, node: usize) -> bool {
        let mutation = self.config.mutation;
        self.with(|rollout, leases| {
            let Some(lease) = &leases[node] else {
                return false;
            };
            let batches = Batches::new(rollout.stored);
            let newer = lease.batch.is_some_and(|batch| batches.is_newer(&batch));
            match mutation {
                Some(Mutation::NoLatch) => !newer,
                Some(Mutation::ReleaseOldState) => newer || batches.may_release(lease),
                _ => batches.may_release(lease),
            }
        })
    }

    fn may_grant(&self, node: usize) -> bool {
        self.config.mutation == Some(Mutation::NoBarrier)
            || self
                .with(|rollout, leases| leases[node].is_some_and(|lease| rollout.may_grant(&lease)))
    }
}

/// What a coordinator makes of what it has seen.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) write: Option<Stored>,
    /// The batch, by node, in which it may be leased.
    pub(crate) reservable: [Option<u8>; NODES],
    /// Compartment and position of struck members that have to be looked for.
    looks: Vec<(usize, usize)>,
    fits: Bits,
    named: Bits,
    may_grant: Bits,
    may_release: Bits,
}

/// Verdicts by what was seen: many states share it.
pub(crate) type Memo = RefCell<HashMap<Coordinator, Rc<Verdict>, FixedState>>;

pub(crate) fn verdict(config: &Config, memo: &Memo, seen: &Coordinator) -> Rc<Verdict> {
    if let Some(known) = memo.borrow().get(seen) {
        return Rc::clone(known);
    }
    let picture = Picture {
        config,
        coordinator: seen,
    };
    let decision = picture.decision();
    let mut verdict = Verdict {
        write: picture.write(&decision),
        reservable: [None; NODES],
        looks: Vec::new(),
        fits: Bits(0),
        named: Bits(0),
        may_grant: Bits(0),
        may_release: Bits(0),
    };
    for (node, name) in NODE_NAMES.iter().enumerate().take(config.nodes) {
        let batch = decision.reservable.get(*name);
        verdict.reservable[node] = batch.map(|(number, _)| *number as u8);
        if let Some(lease) = seen.leases[node] {
            verdict.fits.set(node, picture.fits(&lease, node));
            let named = names(&seen.stored, node, &lease);
            verdict.named.set(node, named);
            verdict.may_grant.set(node, picture.may_grant(node));
            verdict.may_release.set(node, picture.may_release(node));
        }
    }
    for look in &decision.looks {
        let compartments = &seen.stored.compartments;
        let at = compartments
            .iter()
            .position(|one| i64::from(one.batch) == look.batch);
        let at = at.unwrap();
        let mut ids = compartments[at].ids().iter();
        let position = ids.position(|id| id.to_string() == look.id).unwrap();
        verdict.looks.push((at, position));
    }
    let verdict = Rc::new(verdict);
    memo.borrow_mut().insert(seen.clone(), Rc::clone(&verdict));
    verdict
}

/// What coordinator `who` may do.
pub(crate) fn acts(config: &Config, memo: &Memo, state: &State, who: usize, out: &mut Vec<Act>) {
    let seen = &state.coordinators[who];
    let verdict = verdict(config, memo, seen);
    if seen.is_fresh && verdict.write.is_some() {
        out.push(Act::Put);
    }
    for node in 0..config.nodes {
        let copy = &seen.nodes[node];
        let Some(lease) = seen.leases[node] else {
            if verdict.reservable[node].is_some() && state.leases[node].is_none() {
                out.push(Act::Reserve(node));
            }
            continue;
        };
        let is_current = seen.is_current(node);
        let matches = copy.generation == lease.generation;
        let wanted = matches && !copy.complete && !copy.ignored;
        let stamped = matches && copy.stamp == lease.uid;
        if !lease.granted {
            let is_live = state.leases[node].is_some_and(|live| live.uid == lease.uid)
                || config.mutation == Some(Mutation::StampUnseen);
            if wanted && !stamped && seen.fresh.has(node) && is_live {
                out.push(Act::Stamp(node));
            }
            if wanted && stamped && !seen.checked.has(node) && names(&state.stored, node, &lease) {
                out.push(Act::Check(node));
            }
            let checked = seen.checked.has(node)
                || config.mutation == Some(Mutation::GrantUnseen) && verdict.named.has(node);
            if wanted
                && stamped
                && is_current
                && checked
                && verdict.fits.has(node)
                && verdict.may_grant.has(node)
            {
                out.push(Act::Grant(node));
            }
            let is_newer = lease.batch >= seen.stored.next_batch;
            let unwanted = !wanted || !verdict.fits.has(node) || !verdict.named.has(node);
            if is_current && !is_newer && unwanted {
                out.push(Act::Withdraw(node));
            }
        }
        if lease.phase == Phase::Complete && stamped && seen.fresh.has(node) && !copy.complete {
            out.push(Act::Record(node));
        }
        let recorded = lease.phase == Phase::Complete && stamped && copy.complete;
        let is_over = recorded || lease.granted && seen.gone.has(node);
        if is_current && is_over && verdict.may_release.has(node) {
            out.push(Act::Release(node));
        }
        let is_gone = state.nodes[node].generation != lease.generation;
        if is_gone && lease.granted && !seen.gone.has(node) {
            out.push(Act::LookForNode(node));
        }
    }
    for (at, position) in &verdict.looks {
        let id = seen.stored.compartments[*at].ids()[*position];
        let live = state.leases[usize::from(id / 16)];
        if live.is_none_or(|lease| lease.generation != id % 16) {
            out.push(Act::LookForLease(*at, *position));
        }
    }
}
