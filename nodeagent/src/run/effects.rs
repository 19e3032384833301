//! Performs effects. Most effects run as a local task that sends a note at its end.

use std::collections::BTreeMap;
use std::future::ready;
use std::rc::Rc;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use skyhook_crds::Package;
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::package::name_of;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::{Credentials, Digest, RetryClass, chain};

use super::agent::Agent;
use super::note::{Failed, Note, RunFacts, StepDone};
use crate::host::exec::{StepEnd, StepRequest};
use crate::host::limits;
use crate::image::Images;
use crate::lease::{ApiError, LeaseApi};
use crate::machine::attempts::{StepLimit, step_limit};
use crate::machine::progress::{Cycle, ImageState};
use crate::machine::{Effect, Entry, Event, Half, room};
use crate::prepare::env::{self, Sources};
use crate::prepare::{self, Prepared, StageInput, metadata};
use crate::secret::Secret;

/// A prepared stage, and the facts about the node that its steps need.
type Ready = (Rc<Prepared>, Rc<RunFacts>);

impl Agent {
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::PullImage { key } => self.pull(key),
            Effect::PrepareStage { key, half } => self.prepare(key, half),
            Effect::RunStep {
                key,
                id,
                half,
                index,
            } => self.run_step(key, id, half, index),
            Effect::AdoptStep {
                key,
                id,
                half,
                index,
            } => self.adopt_step(key, id, half, index),
            Effect::EndStep { id } => self.runner.end(id),
            Effect::WriteRunning { resource_version } => {
                self.writer.want_running(resource_version);
            }
            Effect::LookAtLease => self.look(),
            Effect::LookAtNode => self.look_at_node(),
            Effect::PrepareInterrupt { owner, interrupt } => {
                self.prepare_interrupt(owner, interrupt);
            }
            Effect::CallOffInterrupt => self.call_off_interrupt(),
            Effect::Interrupt {
                owner,
                interrupt,
                before,
            } => self.interrupt(&owner, interrupt, before),
        }
    }

    fn look(&self) {
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let uid = self.run().map(|run| run.lease.clone()).unwrap_or_default();
        tokio::task::spawn_local(async move {
            let stands = match api.lease().await {
                Ok(lease) => {
                    lease.metadata.uid.as_deref() == Some(&uid)
                        && protocol::agent_duty(&lease, &lease.spec.node.uid) == AgentDuty::Work
                }
                // Without an answer the interrupt continues: the lease asked for this work when the wave started.
                Err(ApiError::Silent { .. }) => true,
                Err(
                    ApiError::NotFound { .. }
                    | ApiError::Conflict { .. }
                    | ApiError::Refused { .. }
                    | ApiError::Malformed { .. },
                ) => false,
            };
            let _sent = notes.send(Note::Event(Event::LeaseLooked { lease: uid, stands }));
        });
    }

    /// Reads the Node again, and tells the machine what packages request and it does not have.
    fn look_at_node(&self) {
        let revision = self.run().map(|run| run.revision.clone());
        let data = revision.and_then(|name| self.journal.revision(&name).ok());
        let Some(data) = data else { return };
        let (facts, notes) = (self.fetch_facts(&data), self.notes.clone());
        tokio::task::spawn_local(async move {
            let facts = facts.await;
            // A Node that could not be read says nothing, and the packages go on waiting.
            if facts.node.uid.is_empty() {
                return;
            }
            let defaults = facts.default_resources.as_ref();
            let lacking = room::lacking(&data.packages, defaults, &facts.node.allocatable);
            let _sent = notes.send(Note::Facts(Box::new(facts)));
            let _sent = notes.send(Note::Event(Event::NodeLooked { lacking }));
        });
    }

    /// The revision and the package from the start of the cycle. Steps use these, and not the latest ones.
    fn content(&mut self, entry: &Entry) -> Result<(Rc<RevisionData>, Package), String> {
        let bare = Package {
            name: entry.name.clone(),
            version: entry.version.clone(),
            image: entry.image.clone(),
            container_sha: entry.container_sha.clone(),
            ..Package::default()
        };
        let Some(cycle) = &entry.cycle else {
            return Ok((Rc::new(RevisionData::default()), bare));
        };
        let revision = match self.revisions.get(&cycle.revision) {
            Some(revision) => Rc::clone(revision),
            None => {
                let revision = self
                    .journal
                    .revision(&cycle.revision)
                    .map_err(|e| chain(&e))?;
                let revision = Rc::new(revision);
                self.revisions
                    .insert(cycle.revision.clone(), Rc::clone(&revision));
                revision
            }
        };
        let package = revision
            .packages
            .get(&entry.name)
            .filter(|p| p.version == entry.version)
            .cloned()
            .unwrap_or(bare);
        Ok((revision, package))
    }

    fn pull(&mut self, key: String) {
        let Some(entry) = self.run().and_then(|run| run.entries.get(&key)).cloned() else {
            return;
        };
        let leaving = self.run().is_some_and(|run| !run.is_wanted(&entry));
        if matches!(entry.image_state, ImageState::Pulling { attempts } if attempts > 0) {
            // A pull has failed: read the pull secrets again, because they may have been wrong.
            self.credentials = Rc::default();
        }
        let package = match self.content(&entry) {
            Ok((_, package)) => package,
            Err(reason) => {
                let class = RetryClass::Transient;
                self.send(Note::Event(Event::ImageFailed { key, reason, class }));
                return;
            }
        };
        let owner = self
            .run()
            .map(|run| format!("{}/{key}", run.skyhook.name))
            .unwrap_or_default();
        let (api, notes) = (self.api.clone(), self.notes.clone());
        let secrets = self.settings.pull_secrets.clone();
        let (cell, images) = (Rc::clone(&self.credentials), self.images.clone());
        tokio::task::spawn_local(async move {
            let known = entry.image_digest.as_deref().and_then(|d| d.parse().ok());
            let credentials = async || {
                let read = || async { api.credentials(&secrets).await };
                cell.get_or_init(read).await.clone()
            };
            let pulled = pull(credentials, &images, &package, &owner, known, leaving).await;
            let event = match pulled {
                Ok(digest) => Event::ImageReady {
                    key,
                    digest: Some(digest.to_string()),
                },
                // An uninstall does not need the image: the copy directory on the host is enough.
                Err(Failed { reason, .. }) if leaving => {
                    tracing::warn!(package = %key, %reason, "the image cannot be pulled: using the copy on the host");
                    Event::ImageReady { key, digest: None }
                }
                Err(Failed { reason, class }) => Event::ImageFailed { key, reason, class },
            };
            let _sent = notes.send(Note::Event(event));
        });
    }

    /// Everything that a stage is prepared from, except for what has to be read from the API, and the revision.
    fn stage_input(
        &mut self,
        key: &str,
        half: Half,
    ) -> Result<(StageInput, Rc<RevisionData>), String> {
        let entry = self
            .run()
            .and_then(|run| run.entries.get(key))
            .cloned()
            .ok_or_else(|| format!("{key} is not in the journal"))?;
        let (revision, package) = self.content(&entry)?;
        let fallback = Cycle {
            skyhook: self
                .run()
                .map(|run| run.skyhook.clone())
                .unwrap_or_default(),
            ..Cycle::default()
        };
        let mut input = StageInput {
            host: self.host.clone(),
            layout: self.settings.layout.clone(),
            skyhook: entry.cycle.as_ref().unwrap_or(&fallback).skyhook.clone(),
            package,
            stage: entry.stage,
            digest: entry.image_digest.as_deref().and_then(|d| d.parse().ok()),
            store: Some(self.images.store.clone()),
            env: Vec::new(),
            secrets: Vec::new(),
            metadata: BTreeMap::new(),
            previous: None,
            order: self.run().and_then(|run| run.order),
            is_laid_out: false,
            shares_image: shares_image(&revision, &entry),
        };
        // If this process has prepared the stage, it has done so in this boot: no process survives a reboot.
        let before = self.stages.get(key).filter(|_| half == Half::Check);
        input.is_laid_out = before.is_some_and(|prepared| prepared.has_files_for(&input));
        Ok((input, revision))
    }

    /// The facts about the node. After a restart of the agent, they are read when the future is awaited.
    fn facts_for(&self, revision: &RevisionData) -> LocalBoxFuture<'static, Rc<RunFacts>> {
        if let Some(facts) = &self.run_facts {
            return ready(Rc::clone(facts)).boxed_local();
        }
        let (fetch, notes) = (self.fetch_facts(revision), self.notes.clone());
        async move {
            let facts = fetch.await;
            let _sent = notes.send(Note::Facts(Box::new(facts.clone())));
            Rc::new(facts)
        }
        .boxed_local()
    }

    /// Prepares a stage when the future is awaited.
    fn preparing(
        &mut self,
        key: &str,
        half: Half,
    ) -> impl Future<Output = Result<(Prepared, Rc<RunFacts>), Failed>> + use<> {
        let input = self.stage_input(key, half);
        let input = input.map(|(input, revision)| (input, self.facts_for(&revision), revision));
        let (api, agent_version) = (self.api.clone(), self.facts.agent_version.clone());
        async move {
            let (mut input, facts, revision) = input?;
            let facts = facts.await;
            (input.env, input.secrets) = environment(&api, &input.package, &facts).await?;
            input.metadata = metadata::files(&facts.node, &revision, &agent_version);
            let prepared = tokio::task::spawn_blocking(move || prepare::prepare(input))
                .await
                .map_err(|e| e.to_string())??;
            Ok((prepared, facts))
        }
    }

    /// The prepared stage. If this process has not prepared it yet, as after a restart of the agent, it is prepared
    /// when the future is awaited.
    fn prepared(
        &mut self,
        key: &str,
        half: Half,
    ) -> LocalBoxFuture<'static, Result<Ready, Failed>> {
        if let (Some(prepared), Some(facts)) = (self.stages.get(key), &self.run_facts) {
            return ready(Ok((Rc::clone(prepared), Rc::clone(facts)))).boxed_local();
        }
        let (preparing, notes) = (self.preparing(key, half), self.notes.clone());
        let key = key.to_owned();
        async move {
            let (prepared, facts) = preparing.await?;
            let _sent = notes.send(Note::Prepared {
                key,
                prepared: Box::new(prepared.clone()),
                ready: false,
            });
            Ok((Rc::new(prepared), facts))
        }
        .boxed_local()
    }

    fn prepare(&mut self, key: String, half: Half) {
        let (preparing, notes) = (self.preparing(&key, half), self.notes.clone());
        tokio::task::spawn_local(async move {
            let note = match preparing.await {
                Ok((prepared, _)) => Note::Prepared {
                    key,
                    prepared: Box::new(prepared),
                    ready: true,
                },
                Err(Failed { reason, class }) => {
                    tracing::warn!(package = %key, %reason, ?class, "the stage cannot be prepared");
                    Note::Event(Event::StageFailed { key, reason, class })
                }
            };
            let _sent = notes.send(note);
        });
    }

    /// What limits the time of the package's step that runs now or is started next.
    pub(super) fn step_limit(&self, key: &str) -> Option<StepLimit> {
        step_limit(self.run()?, key, self.settings.step_timeout)
    }

    fn run_step(&mut self, key: String, id: u64, half: Half, index: usize) {
        let preparing = self.prepared(&key, half);
        let (runner, notes) = (Rc::clone(&self.runner), self.notes.clone());
        let timeout = self.step_limit(&key).map(StepLimit::duration);
        tokio::task::spawn_local(async move {
            let result = async {
                let (prepared, facts) = preparing.await?;
                let mut spec = prepared.spec(half, index)?;
                spec.directory = runner.directory(id).1;
                spec.limits = facts.limits.clone();
                spec.timeout_ms = timeout.and_then(|t| u64::try_from(t.as_millis()).ok());
                let resources = prepared
                    .resources()
                    .or_else(|| facts.default_resources.clone())
                    .unwrap_or_default();
                let request = StepRequest {
                    id,
                    label: label(&key, prepared.mode(half)),
                    spec,
                    limits: limits::scope(&resources).map_err(|e| e.to_string())?,
                };
                let end = runner.run(request).await.map_err(|e| chain(&e))?;
                Ok((end, prepared))
            };
            let result = result.await;
            let _sent = notes.send(done(key, id, half, index, result));
        });
    }

    fn adopt_step(&mut self, key: String, id: u64, half: Half, index: usize) {
        let mode = self
            .run()
            .and_then(|run| run.entries.get(&key))
            .map(|e| prepare::mode(e.stage, half))
            .unwrap_or_default();
        let preparing = self.prepared(&key, half);
        let (runner, notes) = (Rc::clone(&self.runner), self.notes.clone());
        tokio::task::spawn_local(async move {
            let label = label(&key, mode);
            let result = async {
                let end = runner.adopt(id, &label).await.map_err(|e| chain(&e))?;
                // Prepare the stage only after the step has ended: files must not change while the step runs.
                let (prepared, _) = preparing.await?;
                Ok((end, prepared))
            };
            let result = result.await;
            let _sent = notes.send(done(key, id, half, index, result));
        });
    }
}

/// True when another package of the revision has the image of this one.
fn shares_image(revision: &RevisionData, entry: &Entry) -> bool {
    let mut packages = revision.packages.iter();
    packages.any(|(name, package)| *name != entry.name && package.image == entry.image)
}

fn done(
    key: String,
    id: u64,
    half: Half,
    index: usize,
    result: Result<(StepEnd, Rc<Prepared>), Failed>,
) -> Note {
    Note::StepDone(Box::new(StepDone {
        key,
        id,
        half,
        index,
        result,
    }))
}

/// A part of the name of a step's scope.
fn label(key: &str, mode: &str) -> String {
    format!("{}-{mode}", name_of(key))
}

/// The environment of the package, and the values that come from secrets.
async fn environment(
    api: &LeaseApi,
    package: &Package,
    facts: &RunFacts,
) -> Result<(Vec<(String, Secret)>, Vec<Secret>), String> {
    let needs = env::needs(&package.env);
    let secrets = api.secrets(&needs.secrets).await.map_err(|e| chain(&e))?;
    let config_maps = api.config_maps(&needs.config_maps);
    let config_maps = config_maps.await.map_err(|e| chain(&e))?;
    let resources = package.resources.clone();
    let sources = Sources {
        node: facts.node.clone(),
        namespace: api.namespace().to_owned(),
        resources: resources.or_else(|| facts.default_resources.clone()),
        secrets,
        config_maps,
    };
    let values = env::resolve(&package.env, &sources).map_err(|e| e.to_string())?;
    let values = values.into_iter().map(|(name, v)| (name, v.into()));
    let secrets = env::secret_values(&package.env, &sources);
    Ok((values.collect(), secrets))
}

/// Pulls the image. Asks no registry when the store has the image that the cycle started with, or, for an uninstall,
/// any image of the package.
async fn pull(
    credentials: impl AsyncFnOnce() -> Credentials,
    images: &Images,
    package: &Package,
    owner: &str,
    known: Option<Digest>,
    leaving: bool,
) -> Result<Digest, Failed> {
    if let Some(digest) = known
        && images.store.image(&digest).is_ok()
    {
        return Ok(digest);
    }
    if leaving && let Some(digest) = images.kept(package) {
        return Ok(digest);
    }
    images
        .pull(package, owner, &credentials().await)
        .await
        .map_err(|error| {
            tracing::warn!(package = %package.name, kind = error.kind(), class = ?error.retry_class(), reason = %chain(&error), "the image cannot be pulled");
            error.into()
        })
}
