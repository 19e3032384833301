//! Writes of revisions.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::{Api, Patch};
use kube::core::Request;
use serde_json::json;
use skyhook_crds::names;
use skyhook_crds::revision::RevisionData;

use super::{Applier, ApplyError, failed, guard, guarded_delete, manager, post, written_for};
use skyhook_fleet::effect::{AsOf, Effect};
use skyhook_fleet::facts::RevisionFact;
use skyhook_fleet::index::Change;

impl Applier {
    fn revisions(&self) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Makes the writes that are about revisions.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the caller picks these effects"
    )]
    pub(super) async fn revision(&self, effect: &Effect) -> Result<Option<Change>, ApplyError> {
        match effect {
            Effect::CreateRevision {
                name,
                skyhook,
                skyhook_uid,
                number,
                data,
            } => {
                let of = (skyhook.as_str(), skyhook_uid.as_str());
                self.create_revision(name, of, *number, data).await
            }
            Effect::RenumberRevision { name, at, number } => {
                self.renumber_revision(name, at, *number).await
            }
            Effect::DisownRevision {
                name,
                at,
                skyhook_uid,
            } => self.disown_revision(name, at, skyhook_uid).await,
            Effect::PruneRevision {
                name,
                at,
                skyhook,
                not_of,
            } => {
                if let Some(owner) = not_of {
                    self.check_gone(skyhook, owner, name).await?;
                }
                self.prune_revision(name, at).await
            }
            _ => Ok(None),
        }
    }

    async fn create_revision(
        &self,
        name: &str,
        (skyhook, skyhook_uid): (&str, &str),
        number: i64,
        data: &RevisionData,
    ) -> Result<Option<Change>, ApplyError> {
        let revision = ControllerRevision {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some([(names::REVISION_OF.to_owned(), skyhook.to_owned())].into()),
                annotations: Some(written_for(skyhook_uid)),
                ..ObjectMeta::default()
            },
            data: serde_json::to_value(data).ok().map(RawExtension),
            revision: number,
        };
        let failed = |source| failed("create", "controllerrevision", name, source);
        let source = match self.create_escaped(&revision).await {
            Ok(created) => return Ok(Some(Change::Revision(Box::new(created)))),
            Err(source) => source,
        };
        if !is_conflict(&source) {
            return Err(failed(source));
        }
        let mended = self.mend_revision(revision).await.map_err(failed)?;
        let mended = mended.ok_or_else(|| failed(source))?;
        Ok(Some(Change::Revision(Box::new(mended))))
    }

    /// Creates a revision. When somebody patches it later, the API server writes its data anew, with escapes for some
    /// characters, and refuses the patch if the bytes of the data have changed by that. So the escapes are there from the
    /// beginning.
    async fn create_escaped(
        &self,
        revision: &ControllerRevision,
    ) -> Result<ControllerRevision, kube::Error> {
        let json = serde_json::to_string(revision).map_err(kube::Error::SerdeError)?;
        let request = Request::new(self.revisions().resource_url());
        let request = request.create(&post(), escaped(&json).into_bytes());
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request(request).await
    }

    /// Repairs a revision of ours that exists although the watch does not show it: somebody removed the label that the
    /// watch selects by. The label is put back. Returns `None` if the revision is not ours.
    async fn mend_revision(
        &self,
        wanted: ControllerRevision,
    ) -> Result<Option<ControllerRevision>, kube::Error> {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let Some(there) = self.revisions().get_opt(&name).await? else {
            return Ok(None);
        };
        let labels = wanted.metadata.labels.clone();
        let owner = RevisionFact::new(there.clone()).owner;
        if there.data != wanted.data || owner != RevisionFact::new(wanted).owner {
            return Ok(None);
        }
        let at = AsOf {
            uid: there.metadata.uid.unwrap_or_default(),
            resource_version: there.metadata.resource_version.unwrap_or_default(),
        };
        let mut metadata = guard(&at);
        metadata["labels"] = json!(labels);
        let body = json!({ "metadata": metadata });
        let api = self.revisions();
        let mended = api.patch(&name, &manager(), &Patch::Merge(&body)).await?;
        Ok(Some(mended))
    }

    async fn renumber_revision(
        &self,
        name: &str,
        at: &AsOf,
        number: i64,
    ) -> Result<Option<Change>, ApplyError> {
        let body = json!({ "metadata": guard(at), "revision": number });
        let written = self
            .revisions()
            .patch(name, &manager(), &Patch::Merge(&body))
            .await;
        let written =
            written.map_err(|source| failed("patch", "controllerrevision", name, source))?;
        Ok(Some(Change::Revision(Box::new(written))))
    }

    /// Notes the owner of a revision in an annotation, in place of its owner references.
    async fn disown_revision(
        &self,
        name: &str,
        at: &AsOf,
        skyhook_uid: &str,
    ) -> Result<Option<Change>, ApplyError> {
        let mut metadata = guard(at);
        metadata["annotations"] = json!(written_for(skyhook_uid));
        metadata["ownerReferences"] = json!(null);
        let body = json!({ "metadata": metadata });
        let api = self.revisions();
        let written = api.patch(name, &manager(), &Patch::Merge(&body)).await;
        let written =
            written.map_err(|source| failed("patch", "controllerrevision", name, source))?;
        Ok(Some(Change::Revision(Box::new(written))))
    }

    async fn prune_revision(&self, name: &str, at: &AsOf) -> Result<Option<Change>, ApplyError> {
        let deleted = self.revisions().delete(name, &guarded_delete(at)).await;
        deleted.map_err(|source| failed("delete", "controllerrevision", name, source))?;
        Ok(Some(Change::RevisionGone(name.to_owned())))
    }
}

/// JSON in which the characters that Go escapes are escapes. These characters are in strings alone.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_escapes_is_escaped_and_means_the_same() {
        let text = json!({ "a": "1 > 0 && <b>\u{2028}\u{2029}é\n" }).to_string();
        let got = escaped(&text);
        assert_eq!(
            got,
            r#"{"a":"1 \u003e 0 \u0026\u0026 \u003cb\u003e\u2028\u2029é\n"}"#
        );
        let read: serde_json::Value = serde_json::from_str(&got).unwrap();
        assert_eq!(read.to_string(), text);
    }
}
