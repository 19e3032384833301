//! What decisions need of a lease.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use skyhook_crds::lease::InterruptionLeaseSpec;
use skyhook_crds::{InterruptionLease, names, rollout};

use super::{WireLease, report};

/// A lease. A lease that cannot be decoded still takes a slot.
#[derive(Clone, Debug)]
pub struct LeaseFact {
    pub node: String,
    pub uid: String,
    pub resource_version: String,
    /// Set by the force-release annotation: release without waiting for a result.
    pub forced: bool,
    /// What stands for its node in a batch; empty if the UID of its node cannot be read. That can be read of most leases
    /// that cannot be decoded.
    pub member: String,
    pub lease: Result<Box<InterruptionLease>, String>,
}

impl LeaseFact {
    /// The lease as the watch delivered it.
    #[must_use]
    pub fn new(object: WireLease) -> Self {
        let metadata = object.metadata;
        let node_uid = object.spec.pointer("/node/uid");
        let member = node_uid
            .and_then(serde_json::Value::as_str)
            .map(rollout::member);
        let spec: Result<InterruptionLeaseSpec, String> =
            serde_json::from_value(object.spec).map_err(|e| format!("spec cannot be read: {e}"));
        let status = if object.status.is_null() {
            Ok(None)
        } else {
            serde_json::from_value(object.status)
                .map(|status| Some(report::without_unused(status)))
                .map_err(|e| format!("status cannot be read: {e}"))
        };
        let force = metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(names::FORCE_RELEASE));
        Self {
            forced: force.is_some() && force == metadata.uid.as_ref(),
            member: member.unwrap_or_default(),
            node: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            lease: spec.and_then(|spec| {
                status.map(|status| {
                    let metadata = ObjectMeta {
                        managed_fields: None,
                        ..metadata
                    };
                    Box::new(InterruptionLease {
                        metadata,
                        spec,
                        status,
                    })
                })
            }),
        }
    }

    /// UID of the Skyhook that the lease is for; `None` when the lease cannot be decoded.
    #[must_use]
    pub fn skyhook_uid(&self) -> Option<&str> {
        self.lease
            .as_ref()
            .ok()
            .map(|lease| lease.spec.skyhook.uid.as_str())
    }
}
