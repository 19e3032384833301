//! Performs effects. Most effects run as a local task that sends a note at its end.

use std::rc::Rc;

use skyhook_crds::Package;
use skyhook_crds::lease::protocol::{self, AgentDuty};
use skyhook_crds::package::name_of;
use skyhook_crds::revision::RevisionData;
use skyhook_oci::{Credentials, Digest, RetryClass, chain};

use super::agent::{Agent, Note, RunFacts};
use crate::host::exec::{StepEnd, StepRequest, Supervisors};
use crate::host::limits;
use crate::image::{ImageError, Images};
use crate::lease::{ApiError, LeaseApi};
use crate::machine::progress::{Cycle, ImageState};
use crate::machine::{Effect, Entry, Event, Half};
use crate::prepare::env::{self, Sources};
use crate::prepare::{self, Prepared, StageError, StageInput, metadata};
use crate::secret::Secret;

/// A step that has ended, or could not be started.
#[derive(Debug)]
pub(super) struct StepDone {
    pub key: String,
    pub id: u64,
    pub half: Half,
    pub index: usize,
    pub result: Result<(StepEnd, Rc<Prepared>), Failed>,
}

/// Why something failed, and whether a retry may succeed.
#[derive(Debug, Clone)]
pub(super) struct Failed {
    pub reason: String,
    pub class: RetryClass,
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self {
            reason,
            class: RetryClass::Transient,
        }
    }
}

impl From<StageError> for Failed {
    fn from(error: StageError) -> Self {
        Self {
            reason: error.explained(),
            class: error.retry_class(),
        }
    }
}

impl From<ImageError> for Failed {
    fn from(error: ImageError) -> Self {
        Self {
            reason: chain(&error),
            class: error.retry_class(),
        }
    }
}

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
                cell.get_or_try_init(read).await.cloned()
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
                Err(Failed { reason, class }) => {
                    tracing::warn!(package = %key, %reason, ?class, "the image cannot be pulled");
                    Event::ImageFailed { key, reason, class }
                }
            };
            let _sent = notes.send(Note::Event(event));
        });
    }

    /// Builds the task that prepares a stage.
    fn stage_task(&mut self, key: &str, half: Half) -> Result<StageTask, String> {
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
        let skyhook = entry.cycle.as_ref().unwrap_or(&fallback).skyhook.clone();
        let digest: Option<Digest> = entry.image_digest.as_deref().and_then(|d| d.parse().ok());
        let facts = self.run_facts.clone();
        let fetch = facts.is_none().then(|| self.fetch_facts(&revision));
        let fetch: Option<std::pin::Pin<Box<dyn Future<Output = RunFacts>>>> = match fetch {
            Some(future) => Some(Box::pin(future)),
            None => None,
        };
        let mut input = StageInput {
            host: self.host.clone(),
            layout: self.settings.layout.clone(),
            skyhook,
            package,
            stage: entry.stage,
            half,
            digest,
            store: Some(self.images.store.clone()),
            env: Vec::new(),
            secrets: Vec::new(),
            metadata: std::collections::BTreeMap::new(),
            previous: None,
            is_laid_out: false,
        };
        // If this process has prepared the stage, it has done so in this boot: no process survives a reboot.
        let before = self.stages.get(key).filter(|_| half == Half::Check);
        input.is_laid_out = before.is_some_and(|prepared| prepared.has_files_for(&input));
        Ok(StageTask {
            api: self.api.clone(),
            notes: self.notes.clone(),
            facts,
            fetch,
            revision,
            agent_version: self.facts.agent_version.clone(),
            input,
        })
    }

    fn prepare(&mut self, key: String, half: Half) {
        let task = match self.stage_task(&key, half) {
            Ok(task) => task,
            Err(reason) => {
                let class = RetryClass::Transient;
                self.send(Note::Event(Event::StageFailed { key, reason, class }));
                return;
            }
        };
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            let note = match task.run().await {
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

    /// Runs `work` with the prepared stage. After a restart of the agent, `work` has to prepare the stage again.
    fn with_prepared<F, G>(&mut self, key: &str, half: Half, work: F)
    where
        F: FnOnce(Preparation) -> G + 'static,
        G: Future<Output = Note> + 'static,
    {
        let preparation = match (self.stages.get(key), &self.run_facts) {
            (Some(prepared), Some(facts)) => {
                Ok(Preparation::Ready(Rc::clone(prepared), Rc::clone(facts)))
            }
            (_, _) => self
                .stage_task(key, half)
                .map(|task| Preparation::Task(Box::new(task))),
        };
        let notes = self.notes.clone();
        match preparation {
            Ok(preparation) => {
                tokio::task::spawn_local(async move {
                    let note = work(preparation).await;
                    let _sent = notes.send(note);
                });
            }
            Err(reason) => self.send(Note::Event(Event::StageFailed {
                key: key.to_owned(),
                reason,
                class: RetryClass::Transient,
            })),
        }
    }

    fn run_step(&mut self, key: String, id: u64, half: Half, index: usize) {
        let runner = Rc::clone(&self.runner);
        let timeout = self.settings.step_timeout;
        let name = key.clone();
        self.with_prepared(&name, half, move |preparation| async move {
            let result = async {
                let (prepared, facts) = preparation.get(&key).await?;
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
                    label: label(&key, &prepared, half),
                    spec,
                    limits: limits::scope(&resources).map_err(|e| e.to_string())?,
                };
                let end = runner.run(request).await.map_err(|e| chain(&e))?;
                Ok((end, prepared))
            };
            let result = result.await;
            done(key, id, half, index, result)
        });
    }

    fn adopt_step(&mut self, key: String, id: u64, half: Half, index: usize) {
        let runner: Rc<Supervisors> = Rc::clone(&self.runner);
        let name = key.clone();
        let stage_name = self
            .run()
            .and_then(|run| run.entries.get(&key))
            .map(|e| prepare::mode(e.stage, half))
            .unwrap_or_default();
        self.with_prepared(&name, half, move |preparation| async move {
            let label = format!("{}-{stage_name}", name_of(&key));
            let result = async {
                let end = runner.adopt(id, &label).await.map_err(|e| chain(&e))?;
                // Prepare the stage only after the step has ended: files must not change while the step runs.
                let (prepared, _) = preparation.get(&key).await?;
                Ok((end, prepared))
            };
            let result = result.await;
            done(key, id, half, index, result)
        });
    }
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

fn label(key: &str, prepared: &Prepared, half: Half) -> String {
    format!("{}-{}", name_of(key), prepared.mode(half))
}

/// A prepared stage, or the task that prepares it.
enum Preparation {
    Ready(Rc<Prepared>, Rc<RunFacts>),
    Task(Box<StageTask>),
}

impl Preparation {
    async fn get(self, key: &str) -> Result<(Rc<Prepared>, Rc<RunFacts>), Failed> {
        match self {
            Self::Ready(prepared, facts) => Ok((prepared, facts)),
            Self::Task(task) => {
                let notes = task.notes.clone();
                let (prepared, facts) = task.run().await?;
                let _sent = notes.send(Note::Prepared {
                    key: key.to_owned(),
                    prepared: Box::new(prepared.clone()),
                    ready: false,
                });
                Ok((Rc::new(prepared), facts))
            }
        }
    }
}

struct StageTask {
    api: LeaseApi,
    notes: tokio::sync::mpsc::UnboundedSender<Note>,
    facts: Option<Rc<RunFacts>>,
    fetch: Option<std::pin::Pin<Box<dyn Future<Output = RunFacts>>>>,
    revision: Rc<RevisionData>,
    agent_version: String,
    input: StageInput,
}

impl StageTask {
    async fn run(mut self) -> Result<(Prepared, Rc<RunFacts>), Failed> {
        let facts = match (self.facts.take(), self.fetch.take()) {
            (Some(facts), _) => facts,
            (None, Some(fetch)) => {
                let facts = fetch.await;
                let _sent = self.notes.send(Note::Facts(Box::new(facts.clone())));
                Rc::new(facts)
            }
            (None, None) => Rc::new(RunFacts::default()),
        };
        (self.input.env, self.input.secrets) = self.env(&facts).await?;
        self.input.metadata = metadata::files(&facts.node, &self.revision, &self.agent_version);
        let input = self.input;
        let prepared = tokio::task::spawn_blocking(move || prepare::prepare(input))
            .await
            .map_err(|e| e.to_string())??;
        Ok((prepared, facts))
    }

    /// The environment of the package, and the values that come from secrets.
    async fn env(&self, facts: &RunFacts) -> Result<(Vec<(String, Secret)>, Vec<Secret>), String> {
        let package = &self.input.package;
        let needs = env::needs(&package.env);
        let secrets = self.api.secrets(&needs.secrets);
        let secrets = secrets.await.map_err(|e| chain(&e))?;
        let config_maps = self.api.config_maps(&needs.config_maps);
        let config_maps = config_maps.await.map_err(|e| chain(&e))?;
        let resources = package.resources.clone();
        let sources = Sources {
            node: facts.node.clone(),
            namespace: self.api.namespace().to_owned(),
            resources: resources.or_else(|| facts.default_resources.clone()),
            secrets,
            config_maps,
        };
        let values = env::resolve(&package.env, &sources).map_err(|e| e.to_string())?;
        let values = values.into_iter().map(|(name, v)| (name, v.into()));
        let secrets = env::secret_values(&package.env, &sources);
        Ok((values.collect(), secrets))
    }
}

/// Pulls the image. Asks no registry when the store has the image that the cycle started with, or, for an uninstall,
/// any image of the package.
async fn pull(
    credentials: impl AsyncFnOnce() -> Result<Credentials, ApiError>,
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
    let credentials = credentials().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "pull secrets cannot be read: pulling without them");
        Credentials::anonymous()
    });
    Ok(images.pull(package, owner, &credentials).await?)
}
