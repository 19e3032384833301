//! The command line: flags and commands, with the names that users of NVIDIA Skyhook's plugin know.

mod completion;
mod global;

use clap::{Args, Parser, Subcommand};
pub use completion::Shell;
pub(crate) use completion::candidates;
pub use global::{Connection, Global};

/// Look into and steer what Skyhook does to the nodes of a cluster.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-skyhook",
    bin_name = "kubectl skyhook",
    after_help = "Examples:
  # How far are the roll-outs, and who is being worked on
  kubectl skyhook status --watch

  # Why does it stand still, and which command helps
  kubectl skyhook explain gpu-init
  kubectl skyhook explain worker-1

  # What is wrong with a manifest, without a cluster
  kubectl skyhook validate -f skyhook.yaml"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    /// Print the version of the plugin.
    #[arg(long)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show how far Skyhooks are, who is being worked on, and how long the rest takes.
    #[command(after_help = "Examples:
  # All Skyhooks
  kubectl skyhook status

  # One, with its nodes, as it goes on
  kubectl skyhook status gpu-init --watch")]
    Status(StatusArgs),
    /// Say why a node or a Skyhook stands still, and which command helps.
    #[command(after_help = "Examples:
  kubectl skyhook explain worker-1
  kubectl skyhook explain gpu-init -o json")]
    Explain(Named),
    /// Say what is wrong with Skyhooks and DeploymentPolicies in files, without a cluster.
    #[command(after_help = "Examples:
  kubectl skyhook validate -f skyhook.yaml -f policy.yaml
  helm template . | kubectl skyhook validate -f -
  kubectl skyhook validate -f skyhook.yaml -o json")]
    Validate(ValidateArgs),
    /// Pause a Skyhook: nothing new begins, and what runs stops before its next step.
    #[command(after_help = "Examples:
  kubectl skyhook pause gpu-init
  kubectl skyhook pause gpu-init --confirm")]
    Pause(Confirmed),
    /// Let a paused Skyhook go on.
    #[command(after_help = "Examples:
  kubectl skyhook resume gpu-init --confirm")]
    Resume(Confirmed),
    /// Take a Skyhook out of the roll-out.
    #[command(after_help = "Examples:
  kubectl skyhook disable gpu-init --confirm")]
    Disable(Confirmed),
    /// Take a disabled Skyhook into the roll-out again.
    #[command(after_help = "Examples:
  kubectl skyhook enable gpu-init --confirm")]
    Enable(Confirmed),
    /// Reset all nodes of a Skyhook: all packages run again from the beginning.
    #[command(
        long_about = "Reset all nodes of a Skyhook: all packages run again from the beginning.

The batch state and the order of the nodes are reset as well, unless --skip-batch-reset is given. With --package, one
package runs again on each node, and the batch state stays.",
        after_help = "Examples:
  # Preview
  kubectl skyhook reset gpu-init --dry-run

  # Reset the nodes, and leave the batch state alone
  kubectl skyhook reset gpu-init --skip-batch-reset --confirm

  # One package on all nodes
  kubectl skyhook reset gpu-init --package shellscript:1.0.0 --confirm"
    )]
    Reset(ResetArgs),
    /// Write the state of a package into the records of nodes.
    #[command(
        long_about = "Write the state of a package into the records of nodes.

This is a last resort: nobody checks whether the package can have come to this stage and state. Pause the Skyhook before.",
        after_help = "Examples:
  # pkg 1.0.0 is complete wherever it is on record
  kubectl skyhook update-state gpu-init pkg 1.0.0 config complete --confirm

  # On one node
  kubectl skyhook update-state gpu-init pkg 1.0.0 config complete --node worker-1 --confirm

  # A new entry on selected nodes
  kubectl skyhook update-state gpu-init pkg 1.0.0 apply in_progress -l role=gpu --add --confirm"
    )]
    UpdateState(UpdateStateArgs),
    /// Give back the slot of a node whose agent will not come back.
    #[command(
        long_about = "Give back the slot of a node whose agent will not come back.

The lease of the node ends without a result. If the agent is alive after all, it may still be in the middle of a step: use
this for machines that are gone or switched off.",
        after_help = "Examples:
  kubectl skyhook force-release worker-1"
    )]
    ForceRelease(ForceReleaseArgs),
    /// Work with the batches of a roll-out.
    #[command(name = "deployment-policy", visible_alias = "dp", subcommand)]
    DeploymentPolicy(PolicyCommand),
    /// Work with nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Work with packages.
    #[command(subcommand, visible_alias = "pkg")]
    Package(PackageCommand),
    /// Put everything that a maintainer asks for into one archive, without secrets.
    #[command(
        long_about = "Put everything that a maintainer asks for into one archive, without secrets.

It holds the objects of Skyhook, what is Skyhook's about nodes, events, revisions, and the ends of the logs of the coordinator
and the agents. With --hosts, it holds as well what is on the agents' hosts, and the output of the steps there, which needs the
verbs create and get for pods/exec in the namespace of the installation. Secrets are never read, and what looks like a secret
is masked. What could not be had is said.",
        after_help = "Examples:
  kubectl skyhook support

  # With what is on the hosts of two nodes
  kubectl skyhook support --node worker-1 --node worker-2 --hosts --file /tmp/support.tar.gz"
    )]
    Support(SupportArgs),
    /// Show the versions of the plugin and of the operator.
    #[command(after_help = "Examples:
  kubectl skyhook version
  kubectl skyhook version --client-only")]
    Version(VersionArgs),
    /// Print the completion script of a shell.
    #[command(after_help = "Examples:
  # For this shell
  source <(kubectl skyhook completion bash)

  # For `kubectl skyhook <TAB>`: an executable file of this name in the PATH
  kubectl skyhook completion kubectl > /usr/local/bin/kubectl_complete-skyhook
  chmod +x /usr/local/bin/kubectl_complete-skyhook")]
    Completion {
        /// The shell, or kubectl.
        shell: Shell,
    },
    /// What kubectl asks for when it completes `kubectl skyhook …`.
    #[command(name = "__complete", hide = true, disable_help_flag = true)]
    Complete {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
}

/// Commands about the batches of a roll-out.
#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// Begin with the first batch again.
    #[command(after_help = "Examples:
  kubectl skyhook deployment-policy reset gpu-init --dry-run
  kubectl skyhook dp reset gpu-init --confirm")]
    Reset(Confirmed),
}

/// Commands about nodes.
#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// List all nodes that have a record of a Skyhook.
    #[command(after_help = "Examples:
  kubectl skyhook node list --skyhook gpu-init
  kubectl skyhook node list --skyhook gpu-init -o json")]
    List {
        /// Name of the Skyhook.
        #[arg(long)]
        skyhook: String,
    },
    /// Show what is on record for nodes.
    #[command(after_help = "Examples:
  kubectl skyhook node status
  kubectl skyhook node status worker-1 'gpu-.*' -o wide")]
    Status {
        /// Names of nodes, or regular expressions.
        patterns: Vec<String>,
        /// Only this Skyhook.
        #[arg(long)]
        skyhook: Option<String>,
    },
    /// Reset nodes: all packages of a Skyhook run there again from the beginning.
    #[command(after_help = "Examples:
  kubectl skyhook node reset worker-1 --skyhook gpu-init --dry-run
  kubectl skyhook node reset 'gpu-.*' --skyhook gpu-init --confirm")]
    Reset {
        /// Names of nodes, or regular expressions.
        #[arg(required = true)]
        patterns: Vec<String>,
        /// Name of the Skyhook.
        #[arg(long)]
        skyhook: String,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Keep every Skyhook away from nodes.
    #[command(after_help = "Examples:
  kubectl skyhook node ignore worker-1 worker-2")]
    Ignore {
        /// Names of nodes, or regular expressions.
        #[arg(required = true)]
        patterns: Vec<String>,
    },
    /// Let Skyhooks work on nodes again.
    #[command(after_help = "Examples:
  kubectl skyhook node unignore 'worker-.*'")]
    Unignore {
        /// Names of nodes, or regular expressions.
        #[arg(required = true)]
        patterns: Vec<String>,
    },
}

/// Commands about packages.
#[derive(Subcommand, Debug)]
pub enum PackageCommand {
    /// Show how far a package is on each node.
    #[command(after_help = "Examples:
  kubectl skyhook package status shellscript --skyhook gpu-init
  kubectl skyhook package status shellscript --skyhook gpu-init --node 'worker-.*' -o json")]
    Status {
        /// Name of the package.
        package: String,
        /// Name of the Skyhook.
        #[arg(long)]
        skyhook: String,
        /// Name of a node, or a regular expression; any number of times.
        #[arg(long)]
        node: Vec<String>,
    },
    /// Run a package again on nodes.
    #[command(after_help = "Examples:
  # From the beginning
  kubectl skyhook package rerun shellscript --skyhook gpu-init --node worker-1

  # From one stage on
  kubectl skyhook package rerun shellscript --skyhook gpu-init --node 'worker-.*' --stage config")]
    Rerun(RerunArgs),
    /// Show what the steps of a package have printed on nodes.
    #[command(
        long_about = "Show what the steps of a package have printed on nodes.

The logs are on the nodes. They are read through the agents' pods, which needs the verbs create and get for pods/exec in the
namespace of the installation. Of each step its last run is shown.",
        after_help = "Examples:
  kubectl skyhook package logs shellscript --skyhook gpu-init --node worker-1
  kubectl skyhook package logs shellscript --skyhook gpu-init --node worker-1 --stage config --tail 20

  # What is printed from now on
  kubectl skyhook package logs shellscript --skyhook gpu-init --node worker-1 -f"
    )]
    Logs(LogsArgs),
}

/// Skips the question.
#[derive(Args, Clone, Copy, Debug)]
pub struct Confirm {
    /// Do it without asking.
    #[arg(short = 'y', long = "confirm")]
    pub confirm: bool,
}

/// A Skyhook, and whether to ask.
#[derive(Args, Debug)]
pub struct Confirmed {
    /// Name of the Skyhook.
    pub name: String,
    #[command(flatten)]
    pub confirm: Confirm,
}

/// A node or a Skyhook.
#[derive(Args, Debug)]
pub struct Named {
    /// Name of a node or of a Skyhook.
    pub name: String,
}

/// Arguments of `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Name of one Skyhook; its nodes are shown as well.
    pub name: Option<String>,
    /// Go on until Ctrl-C.
    #[arg(short, long)]
    pub watch: bool,
}

/// Arguments of `validate`.
#[derive(Args, Debug)]
pub struct ValidateArgs {
    /// A file with manifests, or `-` for the standard input; any number of times.
    #[arg(short, long = "filename", required = true)]
    pub filename: Vec<String>,
}

/// Arguments of `reset`.
#[derive(Args, Debug)]
pub struct ResetArgs {
    /// Name of the Skyhook.
    pub name: String,
    #[command(flatten)]
    pub confirm: Confirm,
    /// Leave the batch state and the order of the nodes alone.
    #[arg(long)]
    pub skip_batch_reset: bool,
    /// Only this package, as NAME or NAME:VERSION.
    #[arg(long)]
    pub package: Option<String>,
}

/// Arguments of `update-state`.
#[derive(Args, Debug)]
pub struct UpdateStateArgs {
    /// Name of the Skyhook.
    pub name: String,
    /// Name of the package.
    pub package: String,
    /// Version of the package, as in the Skyhook.
    pub package_version: String,
    /// The stage.
    pub stage: String,
    /// The state.
    pub state: String,
    /// Name of a node; any number of times.
    #[arg(long)]
    pub node: Vec<String>,
    /// Only nodes with these labels.
    #[arg(short = 'l', long, conflicts_with = "node")]
    pub selector: Option<String>,
    #[command(flatten)]
    pub confirm: Confirm,
    /// Write an entry on nodes that have none. Needs --node or --selector.
    #[arg(long)]
    pub add: bool,
}

/// Arguments of `package rerun`.
#[derive(Args, Debug)]
pub struct RerunArgs {
    /// Name of the package.
    pub package: String,
    /// Name of the Skyhook.
    #[arg(long)]
    pub skyhook: String,
    /// Name of a node, or a regular expression; any number of times.
    #[arg(long, required = true)]
    pub node: Vec<String>,
    /// The stage to begin with: apply, config, interrupt or post-interrupt.
    #[arg(long)]
    pub stage: Option<String>,
    #[command(flatten)]
    pub confirm: Confirm,
}

/// Arguments of `package logs`.
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Name of the package.
    pub package: String,
    /// Name of the Skyhook.
    #[arg(long)]
    pub skyhook: String,
    /// Name of a node, or a regular expression; any number of times. All nodes that have the package on record when
    /// there is none.
    #[arg(long)]
    pub node: Vec<String>,
    /// Only this stage and its checks: uninstall, upgrade, apply, config or post-interrupt.
    #[arg(long)]
    pub stage: Option<String>,
    /// Go on with what is printed from now on, until Ctrl-C.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last lines of each run of a step; -1 for all.
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    pub tail: i64,
    /// All runs whose logs are kept, not the last one alone.
    #[arg(long)]
    pub all: bool,
}

/// Arguments of `force-release`.
#[derive(Args, Debug)]
pub struct ForceReleaseArgs {
    /// Name of the node.
    pub node: String,
    #[command(flatten)]
    pub confirm: Confirm,
}

/// Arguments of `support`.
#[derive(Args, Debug)]
pub struct SupportArgs {
    /// The file to write. It must not exist. By default skyhook-support-TIME.tar.gz in this directory.
    #[arg(long)]
    pub file: Option<std::path::PathBuf>,
    /// Name of a node whose agent is asked, or a regular expression; any number of times. Without it, at most 20: those
    /// that are worked on and those whose agents do not run come first.
    #[arg(long)]
    pub node: Vec<String>,
    /// Ask the agents what is on their hosts, and what the steps there have printed.
    #[arg(long)]
    pub hosts: bool,
    /// How many lines of each log.
    #[arg(long, default_value_t = 2000)]
    pub tail: u32,
}

/// Arguments of `version`.
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// How long to wait for the API server.
    #[arg(long, default_value = "10s", value_parser = global::duration)]
    pub timeout: std::time::Duration,
    /// Do not ask the cluster.
    #[arg(long)]
    pub client_only: bool,
}
