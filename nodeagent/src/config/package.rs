//! Flags of the commands for those who write packages.

use std::path::PathBuf;

use clap::Args;

use super::Form;

/// Flags of `validate`.
#[derive(Args, Debug, Clone)]
pub struct ValidateArgs {
    /// Directory with config.json, skyhook_dir/ and root_dir/.
    pub directory: PathBuf,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Form,
    /// Fail when there are warnings, not only when there are errors.
    #[arg(long)]
    pub strict: bool,
}

/// Flags of `local-run`.
#[derive(Args, Debug, Clone)]
#[command(
    after_help = "Exit codes: 0; 1 when nothing ran; when a stage failed 10 for uninstall, 11 upgrade, 12 apply, \
13 config, 14 interrupt, 15 post-interrupt.

Examples:
  # As a node would install it, but below a directory
  skyhook-agent local-run --root /srv/debian PACKAGE

  # With what a Skyhook says about the package, from the files in a directory
  skyhook-agent local-run -f skyhook.yaml --package tuning PACKAGE

  # The image that the Skyhook names
  skyhook-agent local-run -f skyhook.yaml --package tuning"
)]
pub struct LocalRunArgs {
    /// Directory of a package, or an image reference. With --filename, the image that the Skyhook names is used when this
    /// is left out.
    #[arg(required_unless_present = "filename")]
    pub source: Option<String>,
    /// File with a Skyhook: its package is run, with its configMap, env, interrupt, resources and limits of time.
    #[arg(short, long)]
    pub filename: Option<PathBuf>,
    /// Which package of the Skyhook; may be left out if it has one.
    #[arg(long, requires = "filename")]
    pub package: Option<String>,
    /// Run under this directory instead of /: steps see it as their root directory.
    #[arg(long, default_value = "/")]
    pub root: PathBuf,
    /// Stages to run, in order (uninstall, upgrade, apply, config, interrupt, post-interrupt); a whole install when
    /// unset.
    #[arg(long, value_delimiter = ',', conflicts_with = "upgrade_from")]
    pub stages: Vec<String>,
    /// Run a whole upgrade from this version.
    #[arg(long)]
    pub upgrade_from: Option<String>,
    /// Content of a configMap key, as KEY=FILE. May be given several times.
    #[arg(long = "config-map", value_name = "KEY=FILE")]
    pub config_map: Vec<String>,
    /// Environment of the steps, as NAME=VALUE. May be given several times.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Interrupt after config: noop, reboot, restartAllServices or service:UNIT,UNIT.
    #[arg(long)]
    pub interrupt: Option<String>,
    /// Reboot this machine without a question when the interrupt is a reboot. Without a terminal nobody can be asked, so a
    /// reboot needs this flag.
    #[arg(long)]
    pub allow_reboot: bool,
    /// Go on from what the last run has left: its copy of the package, its flags and its history. By default, a run begins
    /// like the first one on a host.
    #[arg(long)]
    pub again: bool,
    /// Do not limit CPU and memory of the steps. By default they have the resources of the Skyhook's package, or those
    /// that the chart gives packages without any: 500m CPU and 512Mi memory.
    #[arg(long)]
    pub no_limits: bool,
    /// Do not show what the steps print.
    #[arg(short, long)]
    pub quiet: bool,
    /// Say what would run, and run nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Registry (HOST:PORT) to contact without TLS. May be given several times.
    #[arg(long = "insecure-registry", value_delimiter = ',')]
    pub insecure_registries: Vec<String>,
    /// Docker config file with registry credentials. By default, those are used with which docker and podman of the user
    /// who runs this, or who runs sudo, are logged in.
    #[arg(long)]
    pub docker_config: Option<PathBuf>,
    /// Longest time that one step may take, in seconds.
    #[arg(long)]
    pub step_timeout_seconds: Option<u64>,
}
