//! The harness itself: what tests rely on when they say "reboot" or "cut off".

use std::sync::Arc;

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use skyhook_integration::controlplane::{ControlPlane, Options};
use skyhook_integration::run::Run;

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_starts_answers_counts_and_comes_back_with_its_data() -> Result<()> {
    let run = Arc::new(Run::start()?);
    let options = Options {
        audit: true,
        ..Options::default()
    };
    let mut plane = ControlPlane::start(run, &options).await?;
    let namespaces: Api<Namespace> = Api::all(plane.client());
    let before = plane.request_counts().await?;
    let mine = Namespace {
        metadata: kube::core::ObjectMeta {
            name: Some("mine".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    namespaces
        .create(&kube::api::PostParams::default(), &mine)
        .await?;
    let key = ("POST".to_owned(), "namespaces".to_owned());
    let made = plane.request_counts().await?.since(&before);
    assert_eq!(made.0.get(&key), Some(&1), "{made:?}");
    let by_admin = plane.audit_counts()?.of(|user| user == "admin");
    assert!(
        by_admin
            .0
            .iter()
            .any(|(key, n)| key.verb == "create" && key.resource == "namespaces" && *n == 1),
        "{by_admin:?}"
    );

    plane.stop_apiserver().await?;
    assert!(namespaces.get("mine").await.is_err());
    plane.start_apiserver().await?;
    namespaces.get("mine").await?;
    let version = plane.kubectl(&["version", "-o", "json"]).await?;
    assert!(version.contains("v1.36"), "{version}");
    Ok(())
}
