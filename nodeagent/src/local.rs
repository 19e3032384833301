//! `skyhook-agent local-run`: runs a package on this machine, or under a directory, without a cluster.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: files, clock and process"
)]

use std::cell::Cell;
use std::fs;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use skyhook_crds::lease::SkyhookRef;
use skyhook_crds::package::InterruptType;
use skyhook_crds::{Package, Stage};
use skyhook_oci::package_config::PackageConfig;
use skyhook_oci::{Digest, Root, Store};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::LocalRunArgs;
use crate::host::Host;
use crate::host::exec::Supervisors;
use crate::host::systemd::Bus;
use crate::machine::Half;
use crate::prepare::{self, Layout};

mod bar;
mod credentials;
mod limits;
mod output;
mod question;
mod source;
mod steps;
mod wanted;

use bar::Bar;
use limits::Limits;
use wanted::Wanted;

/// The directories of all runs below those of the layout.
const NAME: &str = "local-run";

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
pub fn main(args: &LocalRunArgs) -> ExitCode {
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
    limits: Limits,
    /// Whether to reboot without a question.
    may_reboot: bool,
    /// Whether to show what the steps print.
    shows: bool,
    next_step: u64,
    /// Number of the running step.
    running: Rc<Cell<Option<u64>>>,
}

async fn run(args: &LocalRunArgs) -> anyhow::Result<Option<Stage>> {
    let wanted = Wanted::of(args)?;
    let reboots = wanted.stages.contains(&Stage::Interrupt)
        && (wanted.package.interrupt.as_ref()).is_some_and(|it| it.kind == InterruptType::Reboot);
    if reboots && !args.dry_run && !args.allow_reboot && !std::io::stdin().is_terminal() {
        bail!(
            "the interrupt is a reboot of this machine, and there is no terminal to ask at: give --allow-reboot, or --stages \
             without the interrupt"
        );
    }
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
        let stages = wanted.stages.clone();
        let host = Host::open(&root)?;
        // Two runs would write the same files.
        let _lock = match args.dry_run {
            true => None,
            false => Some(begin(&host, args.again)?),
        };
        let directory = scratch.path().to_owned();
        let mut run = LocalRun::new(args, host, wanted, directory, Rc::clone(&running)).await?;
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

/// Keeps other runs away while what it returns exists, and removes what the last run has left, unless this one goes on
/// from it.
fn begin(host: &Host, again: bool) -> anyhow::Result<OwnedFd> {
    let Layout {
        copy_root,
        log_root,
    } = layout();
    let failed = || {
        let root = host.files.path().display();
        format!("files below {root} cannot be written: run this as root, or give --root")
    };
    let logs = host.files.create_dirs(format!("{log_root}/{NAME}"));
    let logs = logs.with_context(failed)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = openat(logs.as_fd(), ".", flags, Mode::empty()).with_context(failed)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .context("another local-run writes the same files: wait for its end")?;
    if !again {
        let files = format!("{copy_root}/{NAME}");
        (host.files.remove_tree(files)).context("what the last run has left cannot be removed")?;
    }
    Ok(lock)
}

impl LocalRun {
    async fn new(
        args: &LocalRunArgs,
        host: Host,
        wanted: Wanted,
        scratch: PathBuf,
        running: Rc<Cell<Option<u64>>>,
    ) -> anyhow::Result<Self> {
        let bus = Rc::new(Bus::of(&Root::open("/")?));
        let has_bus = host.files.path() == Path::new("/") && bus.is_there().await;
        let bus = has_bus.then_some(bus);
        let limits = Limits::of(args, &wanted.package, bus.as_deref()).await?;
        let mut run = Self {
            host,
            digest: None,
            store: None,
            previous: args.upgrade_from.clone(),
            scratch,
            bus,
            limits,
            may_reboot: args.allow_reboot,
            shows: !args.quiet,
            next_step: 1,
            running,
            package: wanted.package,
        };
        run.fetch(args, &wanted.source).await?;
        Ok(run)
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
        eprintln!("{}", self.limits.describe());
        let mut bar = Bar::new(total, !self.shows);
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
        println!("  logs below {}", logs.join(NAME).display());
        Ok(all
            .into_iter()
            .find(|d| d.problem.is_some())
            .map(|d| d.stage))
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
        name: NAME.to_owned(),
        uid: "local".to_owned(),
        generation: 1,
    }
}
