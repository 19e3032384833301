//! Somebody else takes back what the coordinator writes, again and again, on a real API server: it writes it again, less
//! and less often, and has it as it should be once it is left alone.

#![expect(
    clippy::disallowed_methods,
    reason = "how many writes a time of fighting costs is what is measured"
)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::ApiResource;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};
use skyhook_coordinator::config::Settings;
use skyhook_crds::{Skyhook, names};
use skyhook_integration::install::NAMESPACE;
use skyhook_integration::rollout::wait_complete;
use skyhook_integration::wait::{MINUTE, eventually};
use skyhook_tests::bench::{Fixture, InProcess, status};

/// How long each fight lasts.
const FIGHT: Duration = Duration::from_secs(10);
/// Writes in that time: at 0, 0, 1, 3 and 7 s, one for what was under way, and for each what else there is to say of it.
const MOST: u64 = 10;

fn skyhook(packages: Value) -> Value {
    json!({
        "apiVersion": "skyhook.nvidia.com/v1alpha1", "kind": "Skyhook", "metadata": { "name": "sample" },
        "spec": { "packages": packages },
    })
}

/// An object, and how to take something off it.
struct Fighter<'a> {
    fixture: &'a Fixture,
    api: Api<DynamicObject>,
    name: String,
}

impl<'a> Fighter<'a> {
    fn new<K: Resource<DynamicType = ()>>(fixture: &'a Fixture, name: &str) -> Self {
        let kind = ApiResource::erase::<K>(&());
        Self {
            fixture,
            api: Api::all_with(fixture.client.clone(), &kind),
            name: name.to_owned(),
        }
    }

    /// Takes back what is there whenever it is there, and says how often that was, and how many requests of this verb and
    /// resource others made meanwhile.
    async fn fight(
        &self,
        is_there: impl Fn(&DynamicObject) -> bool,
        take_back: &Value,
        (verb, resource): (&str, &str),
    ) -> anyhow::Result<(u64, u64)> {
        let before = self.fixture.plane.request_counts().await?;
        let own_resource = ["nodes", "skyhooks"].contains(&resource);
        let (mut taken, started) = (0, Instant::now());
        while started.elapsed() < FIGHT {
            let object = self.api.get(&self.name).await?;
            if is_there(&object) {
                let patch = Patch::Merge(take_back);
                self.api
                    .patch(&self.name, &PatchParams::default(), &patch)
                    .await?;
                taken += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let counts = self.fixture.plane.request_counts().await?.since(&before);
        let key = (verb.to_owned(), resource.to_owned());
        let all = counts.0.get(&key).copied().unwrap_or_default();
        let written = if own_resource { all - taken } else { all };
        println!(
            "{} {resource}: taken back {taken} times, {written} writes",
            self.name
        );
        Ok((taken, written))
    }
}

async fn holds<T>(
    within: Duration,
    ask: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    eventually(within, ask).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_and_a_finalizer_that_others_remove() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    let package = json!({ "something": { "version": "1.0.0", "image": "example.com/something" } });
    fixture.skyhook(skyhook(package)).await?;
    wait_complete(fixture.client.clone(), "sample", MINUTE).await?;

    let label = names::status("sample");
    let fighter = Fighter::new::<Node>(&fixture, "worker-0");
    let is_labelled = |node: &DynamicObject| node.labels().contains_key(&label);
    let off = json!({ "metadata": { "labels": { label.as_str(): null } } });
    let (taken, written) = fighter
        .fight(is_labelled, &off, ("PATCH", "nodes/status"))
        .await?;
    ensure!(taken >= 3, "it gave up: {taken}");
    ensure!(written <= MOST, "{written} writes of a label in {FIGHT:?}");
    holds(MINUTE, async || {
        let node = fighter.api.get("worker-0").await?;
        ensure!(is_labelled(&node), "the label is not back");
        Ok(())
    })
    .await?;

    let fighter = Fighter::new::<Skyhook>(&fixture, "sample");
    let is_ours = |skyhook: &DynamicObject| !skyhook.finalizers().is_empty();
    let off = json!({ "metadata": { "finalizers": null } });
    let (taken, written) = fighter.fight(is_ours, &off, ("PATCH", "skyhooks")).await?;
    ensure!(taken >= 3, "it gave up: {taken}");
    ensure!(
        written <= MOST,
        "{written} writes of a finalizer in {FIGHT:?}"
    );
    coordinator.stop().await
}

/// As a reboot daemon does that uncordons whatever it finds cordoned.
#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_that_others_take_off_in_mid_drain() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    let pods: Api<Pod> = Api::namespaced(fixture.client.clone(), "default");
    let pod = serde_json::from_value(json!({
        "metadata": { "name": "train", "labels": { "keep": "me" } },
        "spec": { "nodeName": "worker-0", "containers": [{ "name": "c", "image": "example.com/c" }] },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    let mut skyhook = skyhook(json!({ "something": {
        "version": "1.0.0", "image": "example.com/something", "interrupt": { "type": "reboot" },
    } }));
    skyhook["spec"]["podNonInterruptLabels"] = json!({ "matchLabels": { "keep": "me" } });
    fixture.skyhook(skyhook).await?;
    let fighter = Fighter::new::<Node>(&fixture, "worker-0");
    let is_cordoned = |node: &DynamicObject| node.data["spec"]["unschedulable"] == true;
    holds(MINUTE, async || {
        let node = fighter.api.get("worker-0").await?;
        ensure!(is_cordoned(&node), "it is not cordoned");
        Ok(())
    })
    .await?;
    let off = json!({ "spec": { "unschedulable": null } });
    let (taken, written) = fighter.fight(is_cordoned, &off, ("PATCH", "nodes")).await?;
    ensure!(taken >= 3, "it gave up: {taken}");
    ensure!(written <= MOST, "{written} cordons in {FIGHT:?}");
    let force = kube::api::DeleteParams::default().grace_period(0);
    pods.delete("train", &force).await?;
    fixture
        .until("sample", 2 * MINUTE, |s| status(s) == "complete")
        .await?;
    coordinator.stop().await
}

/// The watch selects revisions by a label: one that lost it is there, and cannot be created.
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_lost_its_label_gets_it_back() -> anyhow::Result<()> {
    let fixture = Fixture::start().await?;
    let coordinator = InProcess::start(fixture.client.clone(), Settings::default());
    let package = json!({ "something": { "version": "1.0.0", "image": "example.com/something" } });
    fixture.skyhook(skyhook(package)).await?;
    let revisions: Api<ControllerRevision> = Api::namespaced(fixture.client.clone(), NAMESPACE);
    let labelled = ListParams::default().labels(names::REVISION_OF);
    let written = holds(MINUTE, async || {
        let revision = revisions.list(&labelled).await?.items.pop();
        revision.context("the revision is not written")
    })
    .await?;
    let before = fixture.plane.request_counts().await?;
    let off = json!({ "metadata": { "labels": null } });
    let name = written.name_any();
    revisions
        .patch(&name, &PatchParams::default(), &Patch::Merge(&off))
        .await?;
    holds(MINUTE, async || {
        let there = revisions.list(&labelled).await?.items;
        let uids: Vec<_> = there.iter().map(ResourceExt::uid).collect();
        ensure!(uids == [written.uid()], "labelled are {uids:?}");
        Ok(())
    })
    .await?;
    let _agents = fixture.workers(1, Duration::ZERO).await?;
    wait_complete(fixture.client.clone(), "sample", MINUTE).await?;
    let counts = fixture.plane.request_counts().await?.since(&before);
    let creates = counts
        .0
        .get(&("POST".to_owned(), "controllerrevisions".to_owned()));
    ensure!(
        creates.copied().unwrap_or_default() <= 2,
        "{creates:?} creates"
    );
    coordinator.stop().await
}
