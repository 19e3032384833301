//! Prepares a stage: puts the package's files on the host, and builds the specifications of the stage's steps.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use skyhook_crds::lease::SkyhookRef;
use skyhook_crds::package::Resources;
use skyhook_crds::{Package, Stage};
use skyhook_oci::package_config::{self, PackageConfig, Step};
use skyhook_oci::{Digest, Store, Target, UnpackOptions};

use crate::host::Host;
use crate::machine::attempts::StepLimit;
use crate::machine::{Half, StepPlan};
use crate::secret::Secret;
use crate::supervise::{LogFile, ProcessLimit, Spec, StepResult};

pub mod env;
mod error;
pub mod files;
pub mod flags;
mod host_file;
pub mod metadata;
mod root_dir;

pub use error::StageError;
pub(crate) use error::io_error;
use error::laying_error;
use files::PackageDir;
use flags::{Owner, Records};
use root_dir::FileSystems;

/// Directories of the host that Skyhook uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// By default `/var/lib/skyhook`: copy directories of packages, flags and history.
    pub copy_root: String,
    /// By default `/var/log/skyhook`: logs of steps.
    pub log_root: String,
}

/// Everything that a stage is prepared from.
#[derive(Clone, Debug)]
pub struct StageInput {
    pub host: Host,
    pub layout: Layout,
    pub skyhook: SkyhookRef,
    pub package: Package,
    pub stage: Stage,
    pub digest: Option<Digest>,
    pub store: Option<Store>,
    /// Environment variables of the package. `valueFrom` is replaced by the values.
    pub env: Vec<(String, Secret)>,
    /// Values to mask in the output of steps.
    pub secrets: Vec<Secret>,
    /// Files of `node-metadata/`: name and content.
    pub metadata: BTreeMap<String, String>,
    /// The version before the upgrade. `None` means the current version in the history.
    pub previous: Option<String>,
    /// `SKYHOOK_NODE_ORDER`; `None` when it is not known.
    pub order: Option<i64>,
    /// True when the files of this stage were put on the host after its last boot: see [`Prepared::has_files_for`].
    pub is_laid_out: bool,
    /// Another package of the Skyhook has the same image.
    pub shares_image: bool,
}

/// A stage whose files are on the host, so that its steps can run.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub stage: Stage,
    pub config: PackageConfig,
    pub plan: StepPlan,
    host: Host,
    layout: Layout,
    skyhook: SkyhookRef,
    package: Package,
    /// Path of the package's copy directory in the host's file system.
    copy_dir: String,
    env: BTreeMap<String, Secret>,
    secrets: Vec<Secret>,
    previous: String,
    digest: Option<Digest>,
    owner: Owner,
}

/// Puts the stage's files on the host, and decides which steps run.
pub fn prepare(input: StageInput) -> Result<Prepared, StageError> {
    let copy_dir = copy_dir(&input.layout, &input.skyhook, &input.package);
    let config_json = Path::new(&copy_dir).join("config.json");
    let is_laid_out = input.is_laid_out && input.host.files.exists(config_json);
    let directory = if is_laid_out {
        open(&input.host, &copy_dir)?
    } else {
        unpack(&input, &copy_dir)?
    };
    let config = read_config(&input.package, &directory)?;
    if input.stage != Stage::Uninstall {
        expect_config_files(&config, &directory)?;
    }
    let mut env = base_env(&input, &copy_dir);
    let always = env
        .get("OVERLAY_ALWAYS_RUN_STEP")
        .is_some_and(|v| v == "true");
    let copy_resolv = env.remove("COPY_RESOLV").is_some_and(|v| v == "true");
    if !is_laid_out {
        lay_over_host(
            &input,
            &directory,
            copy_resolv && !input.host.files.is_own(),
        )?;
    }
    let owner = Owner {
        key: input.package.name.clone(),
        shares_image: input.shares_image,
    };
    let records = Records::of(
        &input.host,
        &input.layout,
        &input.skyhook,
        &config,
        owner.clone(),
    );
    let previous = input
        .previous
        .clone()
        .unwrap_or_else(|| records.previous_version());
    if matches!(input.stage, Stage::Upgrade) {
        env.insert(
            "CURRENT_VERSION".into(),
            config.package_version.clone().into(),
        );
        env.insert("PREVIOUS_VERSION".into(), previous.clone().into());
    }
    records.note_start()?;
    let mut prepared = Prepared {
        stage: input.stage,
        plan: StepPlan::default(),
        config,
        host: input.host,
        layout: input.layout,
        skyhook: input.skyhook,
        package: input.package,
        copy_dir,
        env,
        secrets: input.secrets,
        previous,
        digest: input.digest,
        owner,
    };
    let main = prepared.steps(Half::Main);
    prepared.plan = StepPlan {
        main: main
            .iter()
            .map(|step| always || !records.is_flagged(input.stage, step))
            .collect(),
        checks: prepared.steps(Half::Check).len(),
    };
    Ok(prepared)
}

/// Puts the package's files into its copy directory. Without an image, the files that are there already are used.
fn unpack(input: &StageInput, copy_dir: &str) -> Result<PackageDir, StageError> {
    let files = &input.host.files;
    match (&input.store, &input.digest) {
        (Some(store), Some(digest)) => {
            let target = Target::in_root(files, copy_dir);
            let options = UnpackOptions {
                overlay: true,
                ..UnpackOptions::default()
            };
            store
                .unpack_blocking(digest, &target, options)
                .map_err(|e| StageError::Unpack(Box::new(e.shown_in(files))))?;
        }
        (None, _) | (_, None) if files.exists(Path::new(copy_dir).join("config.json")) => {}
        (None, _) | (_, None) => return Err(StageError::NothingLeft),
    }
    let directory = open(&input.host, copy_dir)?;
    directory.write_config(&input.package.config_map)?;
    directory.write_all("node-metadata", &input.metadata)?;
    Ok(directory)
}

fn open(host: &Host, copy_dir: &str) -> Result<PackageDir, StageError> {
    PackageDir::open(host, copy_dir).map_err(io_error(Path::new(copy_dir), "opening"))
}

fn read_config(package: &Package, directory: &PackageDir) -> Result<PackageConfig, StageError> {
    let report = package_config::load(&directory.files)
        .map_err(io_error(&directory.path.join("config.json"), "reading"))?;
    let (config, warnings) = report.into_result()?;
    for warning in warnings {
        tracing::debug!(package = %package.name, %warning, "config.json");
    }
    Ok(config)
}

fn expect_config_files(config: &PackageConfig, directory: &PackageDir) -> Result<(), StageError> {
    let is_missing = |file: &&String| !directory.files.exists(Path::new("configmaps").join(file));
    match config.expected_config_files.iter().find(is_missing) {
        Some(file) => Err(StageError::ExpectedConfig(file.clone())),
        None => Ok(()),
    }
}

/// Copies `root_dir/` and, on request, `/etc/resolv.conf` to the host, and flushes the file systems that were written.
/// The files must be on the disk before the journal says that the stage's files are on the host.
fn lay_over_host(
    input: &StageInput,
    directory: &PackageDir,
    copy_resolv: bool,
) -> Result<(), StageError> {
    let mut written = FileSystems::default();
    written
        .note(&directory.files)
        .map_err(io_error(&directory.path, "opening"))?;
    if input.stage != Stage::Uninstall {
        root_dir::lay(directory, &input.host, &mut written)?;
    }
    if copy_resolv {
        root_dir::copy_resolv(&input.host, &mut written)?;
    }
    written
        .sync()
        .map_err(io_error(&directory.path, "flushing the file system of"))
}

/// Path of a package's copy directory in the host's file system.
#[must_use]
pub fn copy_dir(layout: &Layout, skyhook: &SkyhookRef, package: &Package) -> String {
    format!(
        "{}/{}/{}-{}-{}-{}",
        layout.copy_root,
        skyhook.name,
        package.name,
        package.version,
        skyhook.uid,
        skyhook.generation
    )
}

/// The ID in `SKYHOOK_RESOURCE_ID`: `<skyhook>-<uid>-<generation>_<package>_<version>`.
#[must_use]
pub fn resource_id(skyhook: &SkyhookRef, package: &str, version: &str) -> String {
    format!(
        "{}-{}-{}_{package}_{version}",
        skyhook.name, skyhook.uid, skyhook.generation
    )
}

fn base_env(input: &StageInput, copy_dir: &str) -> BTreeMap<String, Secret> {
    let skyhook = &input.skyhook;
    let defaults = [
        (
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        ("HOME", "/root"),
        ("COPY_RESOLV", "false"),
        ("OVERLAY_ALWAYS_RUN_STEP", "false"),
        ("SKYHOOK_AGENT_WRITE_LOGS", "true"),
        ("SKYHOOK_AGENT_BUFFER_LIMIT", "8192"),
    ];
    let ours = [
        (
            "SKYHOOK_RESOURCE_ID",
            resource_id(skyhook, &input.package.name, &input.package.version),
        ),
        (
            "SKYHOOK_ROOT_DIR",
            format!("{}/{}", input.layout.copy_root, skyhook.name),
        ),
        (
            "SKYHOOK_LOG_DIR",
            format!("{}/{}", input.layout.log_root, skyhook.name),
        ),
        ("STEP_ROOT", format!("{copy_dir}/skyhook_dir")),
        ("SKYHOOK_DIR", copy_dir.to_owned()),
    ];
    let order = input.order.map(|order| order.to_string().into());
    defaults
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.into()))
        .chain(input.env.iter().cloned())
        .chain(ours.into_iter().map(|(k, v)| (k.to_owned(), v.into())))
        .chain(order.map(|order| ("SKYHOOK_NODE_ORDER".to_owned(), order)))
        .collect()
}

impl Prepared {
    /// True when `input` needs the same files that were put on the host for this stage. Then `prepare` does not write
    /// the package again, for example when a failed check is retried.
    #[must_use]
    pub fn has_files_for(&self, input: &StageInput) -> bool {
        let copy_dir = copy_dir(&input.layout, &input.skyhook, &input.package);
        self.stage == input.stage && self.digest == input.digest && self.copy_dir == copy_dir
    }

    /// The steps of one half of the stage.
    #[must_use]
    pub fn steps(&self, half: Half) -> &[Step] {
        self.config
            .modes
            .get(self.mode(half))
            .map_or(&[], Vec::as_slice)
    }

    /// Requests and limits of CPU and memory in the package's specification.
    #[must_use]
    pub fn resources(&self) -> Option<Resources> {
        self.package.resources.clone()
    }

    /// Name of the mode in `config.json` that holds the steps of this half.
    #[must_use]
    pub fn mode(&self, half: Half) -> &'static str {
        mode(self.stage, half)
    }

    /// The specification of a step for its supervisor. Also makes the step's file executable.
    pub fn spec(&self, half: Half, index: usize) -> Result<Spec, StageError> {
        let step = self.step(half, index)?;
        let path = format!("{}/skyhook_dir/{}", self.copy_dir, step.path);
        make_executable(&self.host, Path::new(&path))?;
        let mut env = self.env.clone();
        let of_step = step.env.clone().into_iter();
        env.extend(of_step.map(|(name, value)| (name, value.into())));
        for fixed in ["STEP_ROOT", "SKYHOOK_DIR"] {
            if let Some(value) = self.env.get(fixed) {
                env.insert(fixed.to_owned(), value.clone());
            }
        }
        let arguments = self.arguments(step, &env)?;
        let is_true = |name: &str| env.get(name).is_some_and(|v| v == "true");
        let buffer_limit = env
            .get("SKYHOOK_AGENT_BUFFER_LIMIT")
            .and_then(|v| v.reveal().parse().ok())
            .unwrap_or(8192);
        let log = is_true("SKYHOOK_AGENT_WRITE_LOGS").then(|| LogFile {
            directory: PathBuf::from(format!(
                "{}/{}/{}/{}",
                self.layout.log_root,
                self.skyhook.name,
                self.config.package_name,
                self.config.package_version
            )),
            step: step.path.clone(),
            package: self.package.name.clone(),
            mode: self.mode(half).to_owned(),
        });
        Ok(Spec {
            directory: PathBuf::new(),
            callers_directory: PathBuf::new(),
            root: PathBuf::from("/"),
            enter_host: true,
            program: path,
            arguments,
            environment: env.into_iter().collect(),
            secrets: self.secrets.clone(),
            working_directory: self.copy_dir.clone(),
            log,
            buffer_limit,
            limits: Vec::<ProcessLimit>::new(),
            memory_limit: None,
            grace_ms: self.grace_ms(),
            timeout_ms: None,
        })
    }

    fn grace_ms(&self) -> u64 {
        let given = self.package.graceful_shutdown.as_ref();
        let grace = given.and_then(|grace| grace.value().ok());
        let millis = grace.and_then(|grace| u64::try_from(grace.as_millis()).ok());
        millis.unwrap_or(30_000)
    }

    fn step(&self, half: Half, index: usize) -> Result<&Step, StageError> {
        self.steps(half)
            .get(index)
            .ok_or_else(|| StageError::NoStep {
                mode: self.mode(half),
                number: index + 1,
                steps: self.steps(half).len(),
            })
    }

    fn arguments(
        &self,
        step: &Step,
        env: &BTreeMap<String, Secret>,
    ) -> Result<Vec<Secret>, StageError> {
        if step.upgrade_step {
            return Ok(vec![
                self.previous.clone().into(),
                self.config.package_version.clone().into(),
            ]);
        }
        step.arguments
            .iter()
            .map(|argument| match argument.strip_prefix("env:") {
                None => Ok(argument.clone().into()),
                Some(name) => env.get(name).cloned().ok_or_else(|| StageError::Argument {
                    step: step.name.clone(),
                    name: name.to_owned(),
                }),
            })
            .collect()
    }

    /// Says whether a step succeeded. A step that the agent ended, or that took longer than `limit`, has failed with any
    /// exit code. The error is a message for the user.
    pub fn judge(
        &self,
        half: Half,
        index: usize,
        result: &StepResult,
        limit: Option<StepLimit>,
    ) -> Result<(), String> {
        let step = self.steps(half).get(index);
        let is_success =
            |code: i32| step.is_some_and(|step| step.returncodes.contains(&i64::from(code)));
        if !result.ended && !result.timed_out && result.code.is_some_and(is_success) {
            return Ok(());
        }
        let name = self.step_name(half, index);
        let limit = limit.map(StepLimit::describe);
        Err(format!("{name} {}", result.describe(limit.as_deref())))
    }

    /// Name of a step in messages to the user.
    #[must_use]
    pub fn step_name(&self, half: Half, index: usize) -> String {
        let name = self.steps(half).get(index).map_or("?", |s| &s.name);
        format!("{} step {name}", self.mode(half))
    }

    /// Writes the end of a step to the records on the host: a flag for a successful step of the main half, a line in
    /// `check_results` for a check.
    pub fn note_step(&self, half: Half, index: usize, success: bool) -> Result<(), StageError> {
        let step = self.step(half, index)?;
        match half {
            Half::Main if success => self.records().set_flag(step),
            Half::Main => Ok(()),
            Half::Check => self.records().note_check(&step.path, success, index),
        }
    }

    /// Writes to the records on the host that the stage is done. May be called more than once.
    pub fn note_done(&self) -> Result<(), StageError> {
        let records = self.records();
        records.note_all_checked(self.mode(Half::Main))?;
        match self.stage {
            Stage::Apply | Stage::Upgrade => records.note_version(&self.config.package_version),
            Stage::Uninstall => {
                records.note_version("uninstalled")?;
                records.remove_flags()
            }
            Stage::Config
            | Stage::Interrupt
            | Stage::PostInterrupt
            | Stage::UninstallInterrupt
            | Stage::Unknown => Ok(()),
        }
    }

    fn records(&self) -> Records {
        let owner = self.owner.clone();
        Records::of(&self.host, &self.layout, &self.skyhook, &self.config, owner)
    }
}

/// Name of the mode in `config.json` that holds the steps of a half of a stage.
#[must_use]
pub fn mode(stage: Stage, half: Half) -> &'static str {
    match half {
        Half::Main => stage.as_str(),
        Half::Check => stage.check().unwrap_or("interrupt-check"),
    }
}

fn make_executable(host: &Host, path: &Path) -> Result<(), StageError> {
    let file = host.files.open_file(path);
    let file = file.map_err(io_error(path, "finding the step"))?;
    let metadata = file.metadata();
    let mut permissions = metadata
        .map_err(io_error(path, "finding the step"))?
        .permissions();
    let mode = permissions.mode();
    if mode & 0o111 != 0o111 {
        permissions.set_mode(mode | 0o111);
        file.set_permissions(permissions)
            .map_err(io_error(path, "making the step executable"))?;
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
