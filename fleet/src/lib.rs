//! The fleet: which nodes may be interrupted now, and what to write next. Pure: no client, no clock, no files.
//!
//! Changes feed one [`index`], [`plan`] turns the picture into effects, [`guard`] refuses any that would break a safety
//! rule, and [`session`] keeps track of the writes that are under way. The coordinator watches, feeds and writes.
//!
//! Several types describe a state. The table says for each type what it is the state of, who computes it, from what,
//! and who reads it:
//!
//! | name | of | computed by | from | read by |
//! |---|---|---|---|---|
//! | `Stage`, `State` | a package on a node | the node's agent | the host's journal | dependencies, people |
//! | `Phase` | a run of an agent under a lease | the node's agent | its packages and interrupts | the lease protocol |
//! | `DrainState` | a node that drains | `plan::drain` | lists of its pods | the agent: may it interrupt now |
//! | `LeaseState` | a lease | `plan::lease` | lease, Node, Skyhook | `plan::lease`: what is written next |
//! | `Work` | a package that a node lacks | `crds::revision` | the Node's record, the revision | `Standing` |
//! | `Standing` | a node with a Skyhook | `plan::standing`, then `plan::admit` | Node, lease, earlier Skyhooks, slots | all later passes |
//! | `Verdict` | a pod on a node that drains | `pods` | the pod, the drain's options | `plan::drain` |
//! | `Status`, `Reason` | a node, and a Skyhook | `plan::verdict`, `plan::status` | `Standing`, lease | people, programs |
//! | `RolloutStateSpec` | a roll-out in batches | `batches` | Nodes, leases, the stored state | `plan::rollouts`: who may be leased |
//! | `Outcome` | a write | the coordinator | the API server's answer | `session` |

pub mod batches;
pub mod clocks;
pub mod effect;
pub mod events;
pub mod facts;
pub mod guard;
pub mod index;
pub mod inflight;
pub mod outcome;
pub mod picture;
pub mod plan;
pub mod pods;
pub mod queue;
pub mod references;
pub mod repeats;
pub mod session;
pub mod settings;
pub mod taints;
pub mod window;

#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
