//! What decisions need of a revision.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use skyhook_crds::revision::RevisionData;

/// A revision.
#[derive(Clone, Debug)]
pub struct RevisionFact {
    pub name: String,
    pub uid: String,
    pub resource_version: String,
    /// UID of the Skyhook that owns it.
    pub owner: String,
    pub number: i64,
    pub data: Option<Arc<RevisionData>>,
}

impl RevisionFact {
    /// The slim copy of a `ControllerRevision`.
    #[must_use]
    pub fn new(object: ControllerRevision) -> Self {
        Self {
            name: object.metadata.name.unwrap_or_default(),
            uid: object.metadata.uid.unwrap_or_default(),
            resource_version: object.metadata.resource_version.unwrap_or_default(),
            owner: object
                .metadata
                .owner_references
                .unwrap_or_default()
                .into_iter()
                .find(|owner| owner.kind == "Skyhook")
                .map(|owner| owner.uid)
                .unwrap_or_default(),
            number: object.revision,
            data: object
                .data
                .and_then(|data| RevisionData::read(data.0).ok())
                .map(Arc::new),
        }
    }
}
