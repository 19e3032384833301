//! `skyhook-agent local-run`: runs a package on this machine, or under a directory, without a cluster.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: files, clock and process"
)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use skyhook_crds::lease::SkyhookRef;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Package, Stage};
use skyhook_oci::package_config::PackageConfig;
use skyhook_oci::{Credentials, Digest, Reference, Root, Store, chain};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::LocalRunArgs;
use crate::host::Host;
use crate::host::exec::{StepEnd, StepRequest, Supervisors};
use crate::host::interrupt::{Interrupter, Patience};
use crate::host::systemd::{Bus, ScopeLimits};
use crate::image::{ImageArgs, Images, Registries};
use crate::machine::{Half, attempts::StepLimit};
use crate::prepare::{self, Layout, Prepared, StageInput};
use crate::supervise::Spec;

mod bar;

use bar::Bar;

/// The exit code when a stage fails.
const fn exit_code(stage: Stage) -> u8 {
    match stage {
        Stage::Uninstall => 10,
        Stage::Upgrade => 11,
        Stage::Apply => 12,
        Stage::Config => 13,
        Stage::Interrupt => 14,
        Stage::PostInterrupt => 15,
        Stage::UninstallInterrupt | Stage::Unknown => 1,
    }
}

/// Runs the package. Exit codes: 0, 1 (nothing ran), or 10 to 15 for the stage that failed, in the order uninstall,
/// upgrade, apply, config, interrupt, post-interrupt.
pub fn main(args: LocalRunArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, run(args)),
        Err(e) => Err(anyhow!(e)),
    };
    match result {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(stage)) => ExitCode::from(exit_code(stage)),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The end of one stage, for the summary.
struct Done {
    stage: Stage,
    took: Duration,
    problem: Option<String>,
}

struct LocalRun {
    host: Host,
    package: Package,
    digest: Option<Digest>,
    store: Option<Store>,
    previous: Option<String>,
    scratch: PathBuf,
    bus: Option<Rc<Bus>>,
    timeout: Option<Duration>,
    next_step: u64,
    /// Number of the running step.
    running: Rc<Cell<Option<u64>>>,
}

async fn run(args: LocalRunArgs) -> anyhow::Result<Option<Stage>> {
    let interrupt = args.interrupt.as_deref().map(parse_interrupt).transpose()?;
    let stages = stages(&args, interrupt.is_some())?;
    let root =
        fs::canonicalize(&args.root).with_context(|| format!("--root {}", args.root.display()))?;
    let scratch = tempfile::Builder::new()
        .prefix("skyhook-local-run-")
        .tempdir()
        .context("make a temporary directory")?;
    let running = Rc::new(Cell::new(None));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let all = async {
        let directory = scratch.path().to_owned();
        let mut run = LocalRun::new(&args, root, directory, interrupt, Rc::clone(&running)).await?;
        if args.dry_run {
            return run.describe(&stages).map(|()| None);
        }
        run.all(&stages).await
    };
    tokio::select! {
        done = all => return done,
        _ = terminate.recv() => {}
        _ = interrupted.recv() => {}
    }
    if let Some(id) = running.get() {
        eprintln!("\nending the running step; this can take as long as its grace period");
        let steps = scratch.path().join("steps");
        let runner = Supervisors::new(None, steps.clone(), steps);
        runner.end(id);
        while runner.is_running(id) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    bail!("stopped by a signal: the current stage is not complete");
}

fn stages(args: &LocalRunArgs, has_interrupt: bool) -> anyhow::Result<Vec<Stage>> {
    if !args.stages.is_empty() {
        return args
            .stages
            .iter()
            .map(|name| {
                Stage::ALL
                    .into_iter()
                    .filter(|stage| *stage != Stage::UninstallInterrupt)
                    .find(|s| s.as_str() == name)
                    .ok_or_else(|| anyhow!("--stages: {name:?} is not a stage"))
            })
            .collect();
    }
    let first = if args.upgrade_from.is_some() {
        Stage::Upgrade
    } else {
        Stage::Apply
    };
    Ok(std::iter::successors(Some(first), |s| s.next(has_interrupt)).collect())
}

fn parse_interrupt(text: &str) -> anyhow::Result<Interrupt> {
    let (kind, services) = text.split_once(':').unwrap_or((text, ""));
    let kind = match kind {
        "noop" => InterruptType::Noop,
        "reboot" => InterruptType::Reboot,
        "restartAllServices" => InterruptType::RestartAllServices,
        "service" => InterruptType::Service,
        _ => bail!("--interrupt {text:?}: write noop, reboot, restartAllServices or service:UNIT"),
    };
    let services: Vec<String> = services
        .split(',')
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect();
    if services.is_empty() == (kind == InterruptType::Service) {
        bail!(
            "--interrupt {text:?}: service takes units (service:cron,rsyslog), the others take none"
        );
    }
    Ok(Interrupt { kind, services })
}

fn pairs(flag: &str, given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    given
        .iter()
        .map(|text| {
            text.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .with_context(|| format!("--{flag} {text:?}: it has no ="))
        })
        .collect()
}

impl LocalRun {
    async fn new(
        args: &LocalRunArgs,
        root: PathBuf,
        scratch: PathBuf,
        interrupt: Option<Interrupt>,
        running: Rc<Cell<Option<u64>>>,
    ) -> anyhow::Result<Self> {
        let mut config_map = BTreeMap::new();
        for (key, file) in pairs("config-map", &args.config_map)? {
            let content =
                fs::read_to_string(&file).with_context(|| format!("--config-map {file}"))?;
            config_map.insert(key, content);
        }
        let mut env = Vec::new();
        for (name, value) in pairs("env", &args.env)? {
            env.push(k8s_openapi::api::core::v1::EnvVar {
                name,
                value: Some(value),
                value_from: None,
            });
        }
        let bus = Rc::new(Bus::of(&Root::open("/")?));
        let has_bus = root == Path::new("/") && bus.is_there().await;
        let mut run = Self {
            host: Host::open(&root)?,
            package: Package {
                config_map,
                env,
                interrupt,
                ..Package::default()
            },
            digest: None,
            store: None,
            previous: args.upgrade_from.clone(),
            scratch,
            bus: has_bus.then_some(bus),
            timeout: args.step_timeout_seconds.map(Duration::from_secs),
            next_step: 1,
            running,
        };
        run.fetch(args).await?;
        Ok(run)
    }

    /// Fetches the package's files. Those of a directory are copied to the package's copy directory at once.
    async fn fetch(&mut self, args: &LocalRunArgs) -> anyhow::Result<()> {
        let directory = Path::new(&args.source);
        let staged = self.scratch.join("package");
        if directory.is_dir() {
            fs::create_dir(&staged)?;
            prepare::files::copy_tree(directory, Root::open(&staged)?.as_fd())?;
        } else {
            let reference: Reference = args
                .source
                .parse()
                .with_context(|| format!("{} is neither a directory nor an image", args.source))?;
            let registries = Registries {
                insecure: args.insecure_registries.clone(),
                ..Registries::default()
            };
            let store = self.scratch.join("images");
            let limits = ImageArgs::default();
            let images = Images::open(&store, &Root::open("/")?, registries, &limits)?;
            let credentials = match &args.docker_config {
                Some(file) => Credentials::from_docker_config(&fs::read(file)?)?,
                None => Credentials::anonymous(),
            };
            let errors = std::io::stderr();
            let is_terminal = errors.is_terminal();
            let progress = skyhook_oci::progress::show(errors, is_terminal);
            let digest = images
                .pull_reference(&reference, &credentials, &progress)
                .await?;
            let target = skyhook_oci::Target::path(&staged);
            images
                .store
                .unpack_with(
                    &digest,
                    &target,
                    skyhook_oci::UnpackOptions::default(),
                    &progress,
                )
                .await?;
            self.digest = Some(digest);
            self.store = Some(images.store);
        }
        let (config, _) =
            skyhook_oci::package_config::load(&Root::open(&staged)?)?.into_result()?;
        self.package.name = config.package_name.replace('_', "-");
        self.package.version = config.package_version;
        self.package.image.clone_from(&args.source);
        // An image is unpacked into the copy directory later, when its first stage is prepared.
        if self.digest.is_none() && !args.dry_run {
            let copy = prepare::copy_dir(&layout(), &skyhook(), &self.package);
            let copy = self.host.files.create_dirs(copy)?;
            prepare::files::copy_tree(&staged, copy.as_fd())?;
        }
        Ok(())
    }

    fn config(&self) -> anyhow::Result<PackageConfig> {
        let report = skyhook_oci::package_config::load(&Root::open(self.scratch.join("package"))?)?;
        Ok(report.into_result()?.0)
    }

    fn describe(&self, stages: &[Stage]) -> anyhow::Result<()> {
        let config = self.config()?;
        println!(
            "{} {} would run",
            config.package_name, config.package_version
        );
        for stage in stages {
            if *stage == Stage::Interrupt {
                println!("  interrupt: {}", self.interrupt_text());
                continue;
            }
            for half in [Half::Main, Half::Check] {
                let mode = prepare::mode(*stage, half);
                for step in config.modes.get(mode).into_iter().flatten() {
                    let arguments = step.arguments.join(" ");
                    println!("  {mode}: {} ({} {arguments})", step.name, step.path);
                }
            }
        }
        Ok(())
    }

    fn interrupt_text(&self) -> String {
        self.package
            .interrupt
            .as_ref()
            .map_or_else(|| "none".to_owned(), crate::machine::wave::describe)
    }

    async fn all(&mut self, stages: &[Stage]) -> anyhow::Result<Option<Stage>> {
        let config = self.config()?;
        let total: usize = stages
            .iter()
            .map(|stage| {
                [Half::Main, Half::Check]
                    .into_iter()
                    .filter_map(|half| config.modes.get(prepare::mode(*stage, half)))
                    .map(Vec::len)
                    .sum::<usize>()
                    .max(1)
            })
            .sum();
        let mut bar = Bar::new(total);
        let mut all = Vec::new();
        for stage in stages {
            let begin = Instant::now();
            let problem = if *stage == Stage::Interrupt {
                self.interrupt(&mut bar).await
            } else {
                self.stage(*stage, &mut bar).await
            };
            let failed = problem.is_err();
            all.push(Done {
                stage: *stage,
                took: begin.elapsed(),
                problem: problem.err(),
            });
            if failed {
                break;
            }
        }
        bar.end();
        println!("{} {}", config.package_name, config.package_version);
        for done in &all {
            let seconds = done.took.as_secs_f64();
            match &done.problem {
                None => println!("  {:<15} ok      {seconds:.2} s", done.stage.as_str()),
                Some(problem) => {
                    println!(
                        "  {:<15} FAILED  {seconds:.2} s: {problem}",
                        done.stage.as_str()
                    );
                }
            }
        }
        let logs = self.host.files.locate(layout().log_root)?;
        println!("  logs below {}", logs.display());
        Ok(all
            .into_iter()
            .find(|d| d.problem.is_some())
            .map(|d| d.stage))
    }

    async fn interrupt(&self, bar: &mut Bar) -> Result<(), String> {
        bar.next(&self.interrupt_text());
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

    async fn stage(&mut self, stage: Stage, bar: &mut Bar) -> Result<(), String> {
        let sources = prepare::env::Sources::default();
        let env = prepare::env::resolve(&self.package.env, &sources).map_err(|e| e.to_string())?;
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
        for (index, runs) in prepared.plan.main.clone().into_iter().enumerate() {
            bar.next(&prepared.step_name(Half::Main, index));
            if runs {
                self.step(&prepared, Half::Main, index).await?;
            }
        }
        let mut failed = Vec::new();
        for index in 0..prepared.plan.checks {
            bar.next(&prepared.step_name(Half::Check, index));
            failed.extend(self.step(&prepared, Half::Check, index).await.err());
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

    async fn step(&mut self, prepared: &Prepared, half: Half, index: usize) -> Result<(), String> {
        let id = self.next_step;
        self.next_step += 1;
        let steps = self.scratch.join("steps");
        let runner = Supervisors::new(self.bus.clone(), steps.clone(), steps);
        let mut spec = prepared.spec(half, index).map_err(|e| chain(&e))?;
        spec.directory = runner.directory(id).1;
        self.keep_inside(&mut spec)
            .map_err(|e| format!("the step's directories cannot be opened: {e}"))?;
        spec.timeout_ms = self.timeout.and_then(|t| u64::try_from(t.as_millis()).ok());
        let request = StepRequest {
            id,
            label: format!("{}-local", self.package.name),
            spec,
            limits: ScopeLimits::default(),
        };
        let name = prepared.step_name(half, index);
        self.running.set(Some(id));
        let end = runner.run(request).await.map_err(|e| chain(&e));
        self.running.set(None);
        let result = match end? {
            StepEnd::Finished(result) => result,
            StepEnd::NotStarted => return Err(format!("{name} was not started")),
            StepEnd::Lost { problem } => return Err(format!("{name} was lost: {problem}")),
        };
        let judged = prepared.judge(half, index, &result, self.timeout.map(StepLimit::Step));
        prepared
            .note_step(half, index, judged.is_ok())
            .map_err(|e| chain(&e))?;
        judged
    }
}

fn layout() -> Layout {
    Layout {
        copy_root: "/var/lib/skyhook".to_owned(),
        log_root: "/var/log/skyhook".to_owned(),
    }
}

fn skyhook() -> SkyhookRef {
    SkyhookRef {
        name: "local-run".to_owned(),
        uid: "local".to_owned(),
        generation: 1,
    }
}
