//! `version`: that of the plugin, and that of the operator in the cluster.

use std::cmp::Ordering;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, ListParams};
use skyhook_crds::{image, version};

use crate::args::VersionArgs;
use crate::session::{Session, list};

/// The version of this program.
pub(crate) const OURS: &str = concat!("v", env!("CARGO_PKG_VERSION"));

/// Shows both versions.
pub(crate) async fn run(session: &mut Session<'_>, args: &VersionArgs) -> Result<()> {
    session.print(&format!("Skyhook plugin:\t{OURS}\n"))?;
    if args.client_only {
        return Ok(());
    }
    let namespace = session.global.namespace.clone();
    let deployments: Api<Deployment> = Api::namespaced(session.client().await?, &namespace);
    let params = ListParams::default();
    let found = tokio::time::timeout(args.timeout, list(&deployments, &params)).await;
    let operator = match found {
        Err(_) => Err(format!("no answer within {:?}", args.timeout)),
        Ok(Err(error)) => Err(format!("listing deployments in namespace {namespace:?}: {error:#}")),
        Ok(Ok(all)) => of_operator(&all).ok_or_else(|| {
            format!(
                "unable to determine operator version; no skyhook operator deployment found in namespace {namespace:?}"
            )
        }),
    };
    let operator = operator.unwrap_or_else(|problem| format!("unknown ({problem})"));
    session.print(&format!("Skyhook operator:\t{operator}\n"))
}

/// The version of the operator among Deployments. Its label says it, or else the tag of its image.
pub(crate) fn of_operator(deployments: &[Deployment]) -> Option<String> {
    deployments
        .iter()
        .filter(|one| is_operator(one))
        .find_map(|one| {
            let labels = one.metadata.labels.as_ref();
            let label = labels.and_then(|labels| labels.get("app.kubernetes.io/version"));
            let label = label
                .map(|label| label.trim())
                .filter(|label| !label.is_empty());
            let tags = images(one).filter_map(|image| image::split(image).tag);
            let tag = || tags.into_iter().find(|tag| *tag != "latest");
            label.or_else(tag).map(str::to_owned)
        })
}

fn images(deployment: &Deployment) -> impl Iterator<Item = &str> {
    let pod = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    containers.filter_map(|container| container.image.as_deref())
}

fn is_operator(deployment: &Deployment) -> bool {
    let labels = deployment.metadata.labels.iter().flatten();
    let labels = labels.flat_map(|(key, value)| [key.as_str(), value.as_str()]);
    let mut all = images(deployment).chain(labels);
    all.any(|text| text.to_lowercase().contains("skyhook"))
}

/// True for a semantic version.
pub(crate) fn is_valid(text: &str) -> bool {
    version::parse(text).is_ok()
}

/// True when a version is older than another one. What is no version is not.
pub(crate) fn is_older(text: &str, than: &str) -> bool {
    version::compare(text, than).is_ok_and(|order| order == Ordering::Less)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::testing::object;

    #[test]
    fn the_operator_is_found_by_image_or_label() {
        let deployment = |labels: Value, image: &str| -> Deployment {
            object(json!({
                "metadata": { "name": "d", "labels": labels },
                "spec": {
                    "selector": {}, "template": { "spec": { "containers": [{ "name": "c", "image": image }] } },
                },
            }))
        };
        let labelled = json!({ "app.kubernetes.io/version": " v1.0.0 ", "app.kubernetes.io/name": "skyhook-operator" });
        for (what, deployments, want) in [
            ("none", vec![], None),
            (
                "label",
                vec![deployment(labelled, "r/operator:v9")],
                Some("v1.0.0"),
            ),
            (
                "tag",
                vec![deployment(
                    json!({}),
                    "ghcr.io:5000/nvidia/Skyhook/operator:v0.13.0@sha256:00",
                )],
                Some("v0.13.0"),
            ),
            (
                "latest",
                vec![deployment(json!({}), "skyhook/operator:latest")],
                None,
            ),
            (
                "no tag",
                vec![deployment(json!({}), "localhost:5000/skyhook/operator")],
                None,
            ),
            (
                "another one",
                vec![deployment(json!({}), "nginx:1.0")],
                None,
            ),
        ] {
            assert_eq!(of_operator(&deployments).as_deref(), want, "{what}");
        }
    }
}
