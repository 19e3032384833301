//! Runs the steps of a stage, and the interrupt.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use skyhook_crds::Stage;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_oci::chain;

use super::bar::Bar;
use super::output::Output;
use super::{LocalRun, layout, question, skyhook};
use crate::host::exec::{StepEnd, StepRequest, Supervisors};
use crate::host::interrupt::{Interrupter, Patience};
use crate::machine::Half;
use crate::machine::attempts::StepLimit;
use crate::prepare::env::Sources;
use crate::prepare::{self, Prepared, StageInput};
use crate::supervise::Spec;

/// How often the logs of a running step are looked at.
const LOOK: Duration = Duration::from_millis(100);

impl LocalRun {
    pub(super) async fn interrupt(&self, bar: &mut Bar) -> Result<(), String> {
        bar.next(&self.interrupt_text());
        let is_reboot = |it: &Interrupt| it.kind == InterruptType::Reboot;
        if self.package.interrupt.as_ref().is_some_and(is_reboot) && !self.may_reboot {
            let question =
                "The interrupt reboots this machine, and what runs here ends. Reboot it?";
            if !question::yes(question).await {
                return Err("the machine was not rebooted".to_owned());
            }
        }
        match (&self.package.interrupt, &self.bus) {
            (None, _) => Ok(()),
            (Some(interrupt), Some(bus)) => {
                let interrupter = Interrupter {
                    bus,
                    root: self.host.files.path(),
                    patience: Patience::default(),
                    waits: &|what| eprintln!("{what}"),
                };
                let done = async {
                    let before = interrupter.prepare(interrupt).await?;
                    interrupter.execute(interrupt, &before).await
                };
                done.await.map_err(|e| chain(&e))
            }
            (Some(interrupt), None) if interrupt.kind == InterruptType::Noop => Ok(()),
            (Some(_), None) => Err(
                "systemd cannot be reached from here: --root is given, or there is no system bus"
                    .to_owned(),
            ),
        }
    }

    pub(super) async fn stage(&mut self, stage: Stage, bar: &mut Bar) -> Result<(), String> {
        let sources = Sources {
            resources: self.package.resources.clone(),
            ..Sources::default()
        };
        let env = prepare::env::resolve(&self.package.env, &sources);
        let env = env.map_err(|e| format!("{e}. Give a value with --env NAME=VALUE"))?;
        // One machine alone is the first, unless somebody says otherwise.
        let names_order = env.iter().any(|(name, _)| name == "SKYHOOK_NODE_ORDER");
        let env = env.into_iter().map(|(name, value)| (name, value.into()));
        let input = StageInput {
            host: self.host.clone(),
            layout: layout(),
            skyhook: skyhook(),
            package: self.package.clone(),
            stage,
            digest: self.digest,
            store: self.store.clone(),
            env: env.collect(),
            secrets: Vec::new(),
            metadata: BTreeMap::new(),
            previous: self.previous.clone(),
            order: (!names_order).then_some(0),
            is_laid_out: false,
            shares_image: false,
        };
        let prepared = prepare::prepare(input).map_err(|e| e.explained())?;
        let mut spent = Duration::ZERO;
        for (index, runs) in prepared.plan.main.clone().into_iter().enumerate() {
            bar.next(&prepared.step_name(Half::Main, index));
            if runs {
                self.step(&prepared, Half::Main, index, &mut spent).await?;
            } else {
                bar.note("it ran before, and is not run again");
            }
        }
        let mut failed = Vec::new();
        for index in 0..prepared.plan.checks {
            bar.next(&prepared.step_name(Half::Check, index));
            let done = self.step(&prepared, Half::Check, index, &mut spent).await;
            failed.extend(done.err());
        }
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        prepared.note_done().map_err(|e| chain(&e))
    }

    /// Makes the step and its logs stay below the root directory. Symlinks are resolved here, inside the root
    /// directory, because the supervisor does not do so.
    fn keep_inside(&self, spec: &mut Spec) -> std::io::Result<()> {
        let files = &self.host.files;
        spec.root = files.path().to_owned();
        spec.enter_host = false;
        let directory = files.locate(&spec.working_directory)?;
        let inside = directory.strip_prefix(files.path()).unwrap_or(&directory);
        spec.working_directory = Path::new("/").join(inside).to_string_lossy().into_owned();
        if let Some(log) = &mut spec.log {
            log.directory = files.create_dirs(&log.directory)?.path().to_owned();
        }
        Ok(())
    }

    /// Runs a step. `spent`: how long the steps of the stage ran so far.
    async fn step(
        &mut self,
        prepared: &Prepared,
        half: Half,
        index: usize,
        spent: &mut Duration,
    ) -> Result<(), String> {
        let id = self.next_step;
        self.next_step += 1;
        let steps = self.scratch.join("steps");
        let runner = Supervisors::new(self.bus.clone(), steps.clone(), steps);
        let mut spec = prepared.spec(half, index).map_err(|e| chain(&e))?;
        spec.directory = runner.directory(id).1;
        self.keep_inside(&mut spec)
            .map_err(|e| format!("the step's directories cannot be opened: {e}"))?;
        let name = prepared.step_name(half, index);
        let limit = self.limits.time(*spent);
        let timeout = limit.map(StepLimit::duration);
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(format!(
                "{name} was not started: the stageTimeout is used up"
            ));
        }
        spec.timeout_ms = timeout.and_then(|t| u64::try_from(t.as_millis()).ok());
        spec.limits.clone_from(&self.limits.process);
        let output = spec.log.as_ref().filter(|_| self.shows).map(Output::of);
        let request = StepRequest {
            id,
            // The scope of an earlier run may still have processes.
            label: format!("{}-local-{}", self.package.name, std::process::id()),
            spec,
            limits: self.limits.scope,
        };
        self.running.set(Some(id));
        let end = show_while(output, runner.run(request)).await;
        self.running.set(None);
        let result = match end.map_err(|e| chain(&e))? {
            StepEnd::Finished(result) => result,
            StepEnd::NotStarted => return Err(format!("{name} was not started")),
            StepEnd::Lost { problem } => return Err(format!("{name} was lost: {problem}")),
        };
        *spent += Duration::from_millis(result.took_ms);
        let judged = prepared.judge(half, index, &result, limit);
        prepared
            .note_step(half, index, judged.is_ok())
            .map_err(|e| chain(&e))?;
        judged
    }
}

/// Awaits the end of a step, and shows meanwhile what it prints.
async fn show_while<T>(mut output: Option<Output>, step: impl Future<Output = T>) -> T {
    let mut step = std::pin::pin!(step);
    loop {
        let end = tokio::time::timeout(LOOK, &mut step).await;
        if let Some(output) = &mut output {
            output.show(end.is_ok());
        }
        if let Ok(end) = end {
            return end;
        }
    }
}
