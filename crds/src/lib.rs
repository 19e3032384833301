//! The API of Skyhook: custom resources, and everything that the coordinator, the node agent and the
//! command line must agree on. No I/O, no clock, no async.
//!
//! Who writes what:
//!
//! | object | field | writer |
//! |---|---|---|
//! | [`Skyhook`] | `spec` | the administrator |
//! | [`Skyhook`] | `status`, the finalizer | coordinator |
//! | [`DeploymentPolicy`] | `spec` | the administrator |
//! | [`InterruptionLease`] | the object, `spec`, the finalizer | coordinator |
//! | [`InterruptionLease`] | `status` | the agent of the node that it is named after |
//! | [`RolloutState`] | everything | coordinator |
//! | `apps/v1 ControllerRevision` | everything ([`revision`]) | coordinator |
//! | `v1 Node` | annotations and labels in [`names`], `unschedulable`, `taints` | coordinator |
//!
//! The pure rules of the lease (who may write what, and when) are in [`lease::protocol`].

pub mod admission;
pub mod conditions;
pub mod duration;
pub mod field;
pub mod glob;
pub mod graph;
pub mod image;
pub mod installed;
pub mod lease;
pub mod names;
pub mod package;
pub mod policy;
pub mod quantity;
pub mod revision;
pub mod rollout;
mod selector;
pub mod skyhook;
pub mod stage;
pub mod version;

pub use lease::{InterruptionLease, InterruptionLeaseSpec, InterruptionLeaseStatus};
pub use package::{Interrupt, InterruptType, Package, Uninstall};
pub use policy::{DeploymentPolicy, DeploymentPolicySpec};
pub use rollout::{RolloutState, RolloutStateSpec};
pub use skyhook::{Skyhook, SkyhookSpec, SkyhookStatus};
pub use stage::{Stage, State, Status};
