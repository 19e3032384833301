//! Checks that need a GET right before a write.

use kube::api::Api;

use super::{Applier, ApplyError, failed};
use skyhook_fleet::effect::LiveCheck;
use skyhook_fleet::facts::{LeaseFact, WireLease};

impl Applier {
    /// Checks the conditions in `check` on the node's lease with a GET, because the watch may lag. Without a condition,
    /// this does nothing.
    pub(super) async fn check_live(&self, node: &str, check: &LiveCheck) -> Result<(), ApplyError> {
        if *check == LiveCheck::default() {
            return Ok(());
        }
        let api: Api<WireLease> = Api::all(self.client.clone());
        let live = api.get_opt(node).await;
        let live = live
            .map_err(|source| failed("get", "interruptionlease", node, source))?
            .map(LeaseFact::new);
        let same =
            check.lease.is_none() || live.as_ref().map(|lease| &lease.uid) == check.lease.as_ref();
        let free = live.as_ref().is_none_or(|fact| match &fact.lease {
            Ok(lease) => !check.not_for.contains(&lease.spec.skyhook.name),
            Err(_) => check.not_for.is_empty(),
        });
        if same && free {
            return Ok(());
        }
        Err(ApplyError::OtherLease {
            node: node.to_owned(),
        })
    }
}
