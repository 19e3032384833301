//! A slow API server, many nodes that drain for ever, and some that finish: what gives nodes back to users must not wait
//! behind what keeps the drains going.

use serde_json::json;

use super::ending::Affliction;
use super::{Event, World};
use crate::sim::agent::Core;

/// Nodes whose pods are never let go.
const DRAINING: u64 = 100;
/// Nodes that have nothing to drain.
const FINISHING: u64 = 30;
/// All of those have finished by then, in milliseconds.
const PATIENCE: u64 = 20 * 60_000;

impl<C: Core> World<'_, C> {
    pub(super) fn set_up_slow(&mut self) {
        for n in 1..=DRAINING + FINISHING {
            self.add_node();
            if n <= DRAINING {
                let node = format!("worker-{n}");
                self.schedule_pod(&node);
                self.weather.afflicted.insert(node, Affliction::Undrainable);
            }
        }
        self.replicas.push(super::replica::Replica::default());
        self.replicas[0].leads = true;
        self.after(0, Event::StartReplica(0));
        let skyhook = json!({
            "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook",
            "metadata": { "name": "alpha" },
            "spec": { "packages": { "alpha-one": {
                "version": "1.0.0", "image": "example.com/package",
                "interrupt": { "type": "service", "services": ["a"] },
            } } },
        });
        self.after(1_000, Event::Apply(Box::new(skyhook)));
        self.weather.calm_since = Some(0);
        self.after(1_000, Event::Look);
    }

    pub(super) fn look_at_slow(&mut self) {
        let given_back = self.stats.given_back.len();
        self.done = given_back as u64 >= FINISHING;
        if self.now > PATIENCE {
            self.fail(format!("{given_back} of {FINISHING} nodes were given back"));
        }
        self.after(1_000, Event::Look);
    }
}
