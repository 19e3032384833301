//! The state of a roll-out that has none yet: as the Skyhook's status shows it, which is the only copy that is left when
//! somebody has deleted the state, and all there is of a roll-out that NVIDIA Skyhook began.

use skyhook_crds::rollout::{self, CompartmentState, RolloutStateSpec};

use crate::plan::scan::Row;
use crate::plan::{View, seconds};

use super::anew::wanted_revision;

pub(super) fn state(view: &View<'_>, row: &Row<'_>) -> RolloutStateSpec {
    let skyhook = row.skyhook;
    let now = seconds(view.now.wall);
    let shown = skyhook.status.iter().flat_map(|s| &s.compartment_statuses);
    let compartments = shown.filter_map(|(name, status)| {
        let batch = status.batch_state.as_ref()?;
        let state = CompartmentState {
            run: status.run.unwrap_or(1),
            ..CompartmentState::imported(batch, &now)
        };
        Some((name.clone(), state))
    });
    let order_shown = skyhook.status.as_ref().and_then(|s| s.node_order_shown);
    RolloutStateSpec {
        format: rollout::FORMAT,
        policy: skyhook.spec.deployment_policy.clone(),
        policy_generation: skyhook.generation,
        revision: wanted_revision(view, skyhook).unwrap_or_default(),
        next_batch: 1,
        next_order: skyhook.status.as_ref().map_or(0, |s| s.node_order_offset),
        order_run: order_shown.map_or(0, |shown| shown.run),
        compartments: compartments.collect(),
    }
}

/// True when nothing has happened in any compartment. Otherwise the state is stored at once, also when no batch can be
/// opened: since when a compartment has stopped would be another time in each pass.
pub(super) fn is_new(state: &RolloutStateSpec) -> bool {
    let mut all = state.compartments.values();
    all.all(|one| *one == CompartmentState::new(1))
}
