//! Requests about all objects of a kind: many at once, and none of them stops the others.

use std::fmt::Debug;
use std::future::Future;

use futures::{StreamExt as _, stream};
use kube::api::{Api, DeleteParams, ListParams, PartialObjectMeta, Patch, PatchParams};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;
use skyhook_crds::names;

/// Requests in flight at once. With one after the other, thousands of leases would take minutes.
const WIDTH: usize = 32;

/// Objects in one answer to a list.
const PAGE: u32 = 500;

/// Some requests have failed. The others were carried out.
#[derive(Debug, thiserror::Error)]
#[error("{failed} of {tried} requests have failed, the first with")]
pub(super) struct Failed {
    failed: usize,
    tried: usize,
    source: kube::Error,
}

/// The metadata of all objects of a kind. There are none if the kind itself is gone, because somebody has deleted its
/// CRD.
pub(super) async fn all<K>(api: &Api<K>) -> kube::Result<Vec<PartialObjectMeta<K>>>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = match api.list_metadata(&params).await {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        objects.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(objects);
        }
    }
}

/// Deletes those of these objects that are not being deleted yet.
pub(super) async fn delete<K>(api: &Api<K>, objects: &[PartialObjectMeta<K>]) -> Result<(), Failed>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let living = objects
        .iter()
        .filter(|object| object.metadata.deletion_timestamp.is_none());
    each(living, async |object| {
        let params = DeleteParams::default();
        api.delete(&object.name_any(), &params).await.map(drop)
    })
    .await
}

/// Takes a finalizer away from those of these objects that have it.
pub(super) async fn strip<K>(
    api: &Api<K>,
    objects: &[PartialObjectMeta<K>],
    finalizer: &str,
) -> Result<(), Failed>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let held = objects
        .iter()
        .filter(|object| object.finalizers().iter().any(|held| held == finalizer));
    each(held, async |object| {
        let metadata = &object.metadata;
        let kept = object.finalizers().iter();
        let kept: Vec<&String> = kept.filter(|held| *held != finalizer).collect();
        let body = json!({"metadata": {
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
            "finalizers": kept,
        }});
        merge(api, &object.name_any(), &body).await
    })
    .await
}

/// Changes an object by a merge patch.
pub(super) async fn merge<K>(api: &Api<K>, name: &str, body: &serde_json::Value) -> kube::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    let params = PatchParams {
        field_manager: Some(names::COORDINATOR.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(body);
    api.patch_metadata(name, &params, &patch).await.map(drop)
}

/// Sends a request for each of these. It is no failure if an object is gone already or has changed in between: the next
/// look shows what is left to do.
pub(super) async fn each<T, F>(
    objects: impl IntoIterator<Item = T>,
    request: impl Fn(T) -> F,
) -> Result<(), Failed>
where
    F: Future<Output = kube::Result<()>>,
{
    let answers = stream::iter(objects).map(request).buffer_unordered(WIDTH);
    let answers: Vec<kube::Result<()>> = answers.map(forgive).collect().await;
    let tried = answers.len();
    let mut errors = answers.into_iter().filter_map(Result::err);
    match errors.next() {
        None => Ok(()),
        Some(source) => Err(Failed {
            failed: 1 + errors.count(),
            tried,
            source,
        }),
    }
}

/// Accepts that an object is gone already or has changed in between.
pub(super) fn forgive<T>(answer: kube::Result<T>) -> kube::Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
