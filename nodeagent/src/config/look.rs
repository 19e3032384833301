//! Flags of the commands that show what is on the host.

use clap::{Args, ValueEnum};
use skyhook_crds::Stage;

use super::{LayoutArgs, StateArgs};

/// The form of what is shown.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Text,
    Json,
}

/// Flags of `logs`.
#[derive(Args, Debug, Clone)]
pub struct LogsArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Only those of this Skyhook.
    #[arg(long)]
    pub skyhook: Option<String>,
    /// Only those of this package.
    #[arg(long)]
    pub package: Option<String>,
    /// Only those of this stage and its checks: uninstall, upgrade, apply, config or post-interrupt.
    #[arg(long, value_parser = stage)]
    pub stage: Option<Stage>,
    /// Only the last lines of each run of a step; -1 for all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
    /// All runs that there are. Otherwise of each package the version that ran last, and of each of its steps the last
    /// run.
    #[arg(long)]
    pub all: bool,
    /// Go on with what is printed from now on, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// With --follow: end when the standard input ends, so that nothing is left when a connection breaks.
    #[arg(long, requires = "follow")]
    pub while_stdin: bool,
    /// Form of the output. JSON has one object in each line.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Form,
}

/// Flags of `show`.
#[derive(Args, Debug, Clone)]
pub struct ShowArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub layout: LayoutArgs,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Form,
}

fn stage(text: &str) -> Result<Stage, String> {
    match Stage::ALL.into_iter().find(|stage| stage.as_str() == text) {
        Some(Stage::Interrupt | Stage::UninstallInterrupt) => Err(
            "an interrupt has no steps, so it prints nothing; `show` says how far it is".to_owned(),
        ),
        Some(stage) => Ok(stage),
        None => Err("this is not a stage".to_owned()),
    }
}
