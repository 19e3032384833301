//! Command line flags and environment variables of the agent, and their checks.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;

use crate::host::interrupt::Patience;
use crate::image::{ImageArgs, Registries};
use crate::lease::PULL_SECRET;
use crate::machine::progress::{Limits, RebootCap};
use crate::prepare::Layout;

mod look;
mod package;

pub use look::{Form, LogsArgs, ShowArgs};
pub use package::{LocalRunArgs, ValidateArgs};

/// Runs Skyhook packages on this host.
#[derive(Parser, Debug)]
#[command(name = "skyhook-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Watch this node's interruption lease and do what it says.
    Run(Box<RunArgs>),
    /// Exit with 0 when an agent runs on this host, does not hang, and has reached the API.
    Ready(ReadyArgs),
    /// Run a package on this machine, or under a directory, without a cluster.
    LocalRun(Box<LocalRunArgs>),
    /// Check a package and say what is wrong with it.
    Validate(ValidateArgs),
    /// Show what steps on this host have printed.
    Logs(LogsArgs),
    /// Show what is on this host: journal, steps, images, disk.
    Show(ShowArgs),
    /// Run one step; started by the agent itself.
    #[command(hide = true)]
    Supervise,
    /// Run a program with another root directory; started by the agent itself.
    #[command(hide = true)]
    InRoot(InRootArgs),
}

/// Arguments of `in-root`.
#[derive(Args, Debug, Clone)]
pub struct InRootArgs {
    pub root: PathBuf,
    pub program: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<String>,
}

/// Where the agent keeps its state.
#[derive(Args, Debug, Clone)]
pub struct StateArgs {
    /// Path of the host's root directory: / when the agent runs as a unit of the host, its mount point when it runs in
    /// a pod.
    #[arg(long, env = "SKYHOOK_HOST_ROOT", default_value = "/")]
    pub host_root: PathBuf,
    /// Directory on the host for the agent's journal, images and running steps.
    #[arg(
        long,
        env = "SKYHOOK_STATE_DIR",
        default_value = "/var/lib/skyhook-agent"
    )]
    pub state_dir: PathBuf,
}

/// Where packages are put on the host, and where their steps log.
#[derive(Args, Debug, Clone)]
pub struct LayoutArgs {
    /// Directory on the host for package files, flags and history.
    #[arg(long, env = "COPY_DIR_ROOT", default_value = "/var/lib/skyhook")]
    pub copy_dir_root: String,
    /// Directory on the host for step logs.
    #[arg(long, env = "AGENT_LOG_ROOT", default_value = "/var/log/skyhook")]
    pub log_root: String,
}

impl LayoutArgs {
    /// The directories, without a slash at the end.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout {
            copy_root: self.copy_dir_root.trim_end_matches('/').to_owned(),
            log_root: self.log_root.trim_end_matches('/').to_owned(),
        }
    }
}

/// Flags of `ready`.
#[derive(Args, Debug, Clone)]
pub struct ReadyArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Fail only when an agent runs and its main loop hangs: for a liveness probe.
    #[arg(long)]
    pub live: bool,
}

/// Flags of `run`.
#[derive(Args, Debug, Clone)]
pub struct RunArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Name of this Node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Namespace of the installation.
    #[arg(long, env = "NAMESPACE", default_value = "skyhook")]
    pub namespace: String,
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Registry (HOST:PORT) to contact without TLS. May be given several times.
    #[arg(
        long = "insecure-registry",
        env = "INSECURE_REGISTRIES",
        value_delimiter = ','
    )]
    pub insecure_registries: Vec<String>,
    /// Secret in the namespace with registry credentials. May be given several times. The secret node-init-secret is
    /// used as well when it exists.
    #[arg(
        long = "image-pull-secret",
        env = "IMAGE_PULL_SECRETS",
        value_delimiter = ','
    )]
    pub image_pull_secrets: Vec<String>,
    /// Longest time that one step may take, in seconds; no limit when unset.
    #[arg(long, env = "STEP_TIMEOUT_SECONDS")]
    pub step_timeout_seconds: Option<u64>,
    /// Longest time that the steps of one stage may take together, in seconds, for packages without `stageTimeout`; no
    /// limit when unset or 0.
    #[arg(long, env = "STAGE_TIMEOUT_SECONDS")]
    pub stage_timeout_seconds: Option<u64>,
    /// How often a stage is tried, for packages without `maxAttempts`; for ever when unset or 0.
    #[arg(long, env = "MAX_ATTEMPTS")]
    pub max_attempts: Option<u32>,
    #[command(flatten)]
    pub step_defaults: StepDefaults,
    /// Run all packages again after a reboot that Skyhook did not ask for.
    #[arg(long, env = "REAPPLY_ON_REBOOT", default_value_t = false, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub reapply_on_reboot: bool,
    /// Longest time that the restart of one unit may take, in seconds.
    #[arg(long, env = "UNIT_TIMEOUT_SECONDS", default_value_t = 600)]
    pub unit_timeout_seconds: u64,
    /// How long a reboot waits for programs that inhibit a shutdown, in seconds. Then the host reboots anyway.
    #[arg(long, env = "INHIBITOR_TIMEOUT_SECONDS", default_value_t = 300)]
    pub inhibitor_timeout_seconds: u64,
    /// How long the host may take to go down for a reboot before the agent reports an error, in seconds.
    #[arg(long, env = "REBOOT_TIMEOUT_SECONDS", default_value_t = 600)]
    pub reboot_timeout_seconds: u64,
    /// How many reboots one version of a package may ask for until it is complete.
    #[arg(long, env = "SKYHOOK_REBOOT_CAP", default_value_t = RebootCap::default().0, value_parser = clap::value_parser!(u32).range(1..))]
    pub reboot_cap: u32,
    /// Directory on the host with settings of registries (mirrors, certificates) in containerd's form, or several,
    /// separated by colons. Those of the host's container runtime are used when unset.
    #[arg(long, env = "REGISTRY_HOSTS_DIR")]
    pub registry_hosts_dir: Option<PathBuf>,
    /// The kubelet's credential provider configuration on the host: a file, or a directory of them. What the kubelet
    /// itself is told is used when unset.
    #[arg(
        long,
        env = "IMAGE_CREDENTIAL_PROVIDER_CONFIG",
        requires = "image_credential_provider_bin_dir"
    )]
    pub image_credential_provider_config: Option<PathBuf>,
    /// Directory on the host with the kubelet's credential provider plugins.
    #[arg(
        long,
        env = "IMAGE_CREDENTIAL_PROVIDER_BIN_DIR",
        requires = "image_credential_provider_config"
    )]
    pub image_credential_provider_bin_dir: Option<PathBuf>,
    #[command(flatten)]
    pub images: ImageArgs,
}

/// Requests and limits for the steps of packages without `resources`, when no LimitRange in the namespace has defaults.
#[derive(Args, Debug, Clone, Default)]
pub struct StepDefaults {
    /// CPU that such a step gets when the host is busy, as a Kubernetes quantity.
    #[arg(long, env = "DEFAULT_CPU_REQUEST", value_parser = cpu)]
    pub default_cpu_request: Option<Quantity>,
    /// Maximum CPU that such a step gets.
    #[arg(long, env = "DEFAULT_CPU_LIMIT", value_parser = cpu)]
    pub default_cpu_limit: Option<Quantity>,
    /// Memory that such a step keeps when the host is short of memory.
    #[arg(long, env = "DEFAULT_MEMORY_REQUEST", value_parser = memory)]
    pub default_memory_request: Option<Quantity>,
    /// Maximum memory that such a step may use.
    #[arg(long, env = "DEFAULT_MEMORY_LIMIT", value_parser = memory)]
    pub default_memory_limit: Option<Quantity>,
}

impl StepDefaults {
    fn resources(self) -> Option<Resources> {
        let resources = Resources {
            cpu_request: self.default_cpu_request,
            cpu_limit: self.default_cpu_limit,
            memory_request: self.default_memory_request,
            memory_limit: self.default_memory_limit,
        };
        (resources != Resources::default()).then_some(resources)
    }
}

fn cpu(text: &str) -> Result<Quantity, String> {
    let quantity = Quantity(text.to_owned());
    quantity.milli().map_err(|e| e.to_string())?;
    Ok(quantity)
}

fn memory(text: &str) -> Result<Quantity, String> {
    let quantity = Quantity(text.to_owned());
    quantity.bytes().map_err(|e| e.to_string())?;
    Ok(quantity)
}

/// The checked settings of `run`.
#[derive(Debug, Clone)]
pub struct Settings {
    pub node: String,
    pub namespace: String,
    pub host_root: PathBuf,
    /// A path in the host's file system.
    pub state_dir: PathBuf,
    pub layout: Layout,
    pub registries: Registries,
    pub images: ImageArgs,
    pub pull_secrets: Vec<String>,
    pub step_timeout: Option<Duration>,
    /// Limits of packages that set none themselves.
    pub limits: Limits,
    /// Requests and limits of steps when neither their package nor the namespace has any.
    pub step_resources: Option<Resources>,
    pub reapply_on_reboot: bool,
    pub reboot_cap: RebootCap,
    pub patience: Patience,
}

/// A flag whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    #[error("--{flag} is {value:?}: it must be an absolute path without spaces")]
    Path { flag: &'static str, value: String },
}

impl RunArgs {
    /// Checks the flags and converts them into settings.
    pub fn settings(self) -> Result<Settings, InvalidSetting> {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        for (flag, value) in [
            ("copy-dir-root", &self.layout.copy_dir_root),
            ("log-root", &self.layout.log_root),
            ("state-dir", &text(&self.state.state_dir)),
            ("host-root", &text(&self.state.host_root)),
        ] {
            if !value.starts_with('/') || value.contains(char::is_whitespace) {
                return Err(InvalidSetting::Path {
                    flag,
                    value: value.clone(),
                });
            }
        }
        let usual = PULL_SECRET.to_owned();
        let mut pull_secrets: Vec<String> = Vec::new();
        for name in self.image_pull_secrets.into_iter().chain([usual]) {
            if !name.is_empty() && !pull_secrets.contains(&name) {
                pull_secrets.push(name);
            }
        }
        Ok(Settings {
            node: self.node_name,
            namespace: self.namespace,
            host_root: self.state.host_root,
            state_dir: self.state.state_dir,
            layout: self.layout.layout(),
            registries: Registries {
                insecure: self
                    .insecure_registries
                    .into_iter()
                    .filter(|r| !r.is_empty())
                    .collect(),
                hosts_dir: self
                    .registry_hosts_dir
                    .filter(|dir| !dir.as_os_str().is_empty()),
                plugins: self
                    .image_credential_provider_config
                    .zip(self.image_credential_provider_bin_dir),
                as_node: true,
            },
            images: self.images,
            pull_secrets,
            step_timeout: self.step_timeout_seconds.map(Duration::from_secs),
            limits: Limits {
                stage_timeout_ms: self
                    .stage_timeout_seconds
                    .map(|seconds| seconds.saturating_mul(1000)),
                max_attempts: self.max_attempts,
            },
            step_resources: self.step_defaults.resources(),
            reapply_on_reboot: self.reapply_on_reboot,
            reboot_cap: RebootCap(self.reboot_cap),
            patience: Patience {
                job: Duration::from_secs(self.unit_timeout_seconds),
                inhibited: Duration::from_secs(self.inhibitor_timeout_seconds),
                going_down: Duration::from_secs(self.reboot_timeout_seconds),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> Result<RunArgs, clap::Error> {
        let cli =
            Cli::try_parse_from([&["skyhook-agent", "run", "--node-name=n"], flags].concat())?;
        let Command::Run(args) = cli.command else {
            panic!("it is run");
        };
        Ok(*args)
    }

    #[test]
    fn what_steps_may_use_by_default_is_a_quantity() {
        let quantity = |text: &str| Some(Quantity(text.to_owned()));
        let flags = ["--default-cpu-limit=500m", "--default-memory-request=256Mi"];
        let want = Resources {
            cpu_limit: quantity("500m"),
            memory_request: quantity("256Mi"),
            ..Resources::default()
        };
        let settings = parse(&flags).unwrap().settings().unwrap();
        assert_eq!(settings.step_resources, Some(want));
        assert_eq!(parse(&[]).unwrap().settings().unwrap().step_resources, None);
        let refused = parse(&["--default-memory-limit=much"])
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--default-memory-limit"), "{refused}");
        assert!(refused.contains("not a Kubernetes quantity"), "{refused}");
    }

    /// Secrets may hold several logins for the same images, of which the first is tried first.
    #[test]
    fn pull_secrets_keep_the_order_in_which_they_are_given() {
        let flags = ["zebra", "", "ape", "zebra"].map(|name| format!("--image-pull-secret={name}"));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let settings = parse(&flags).unwrap().settings().unwrap();
        assert_eq!(settings.pull_secrets, ["zebra", "ape", PULL_SECRET]);
        let usual = parse(&[]).unwrap().settings().unwrap().pull_secrets;
        assert_eq!(usual, [PULL_SECRET]);
    }

    #[test]
    fn attempts_are_not_limited_unless_a_flag_says_so() {
        for (flags, stage_timeout_ms, max_attempts) in [
            (&[][..], None, None),
            (
                &["--stage-timeout-seconds=1800", "--max-attempts=4"],
                Some(1_800_000),
                Some(4),
            ),
        ] {
            let want = Limits {
                stage_timeout_ms,
                max_attempts,
            };
            let settings = parse(flags).unwrap().settings().unwrap();
            assert_eq!(settings.limits, want, "{flags:?}");
        }
    }

    #[test]
    fn directories_are_absolute_and_have_no_spaces() {
        for (flag, value) in [
            ("state-dir", "var/lib/skyhook-agent"),
            ("host-root", "host"),
            ("copy-dir-root", "/var/lib/sky hook"),
            ("log-root", "log"),
        ] {
            let args = parse(&[&format!("--{flag}={value}")]).unwrap();
            let error = args.settings().unwrap_err();
            let value = value.to_owned();
            assert_eq!(error, InvalidSetting::Path { flag, value });
        }
    }
}
