//! The commands. Each is pure functions from objects to text and patches, and a thin run around them.

mod force_release;
mod ignore;
mod leases;
mod lifecycle;
mod logs;
mod node;
mod package;
mod policy;
mod rerun;
mod reset;
mod update_state;
mod version;

pub(crate) use version::OURS;

use anyhow::Result;

use crate::args::{Cli, Command, NodeCommand, PackageCommand, PolicyCommand, candidates};
use crate::session::{Io, Session};
use crate::{explain, progress, support, validate};
use lifecycle::Action;

/// Runs a command line.
pub async fn run(cli: Cli, io: Io<'_>) -> Result<()> {
    let mut session = Session {
        global: cli.global,
        io,
    };
    let session = &mut session;
    session.global.format()?;
    if cli.version {
        return session.print(&format!("Skyhook plugin: {}\n", version::OURS));
    }
    let Some(command) = cli.command else {
        let help = <Cli as clap::CommandFactory>::command().render_help();
        return session.print(&help.to_string());
    };
    match command {
        Command::Status(args) => progress::run(session, &args).await,
        Command::Explain(args) => explain::run(session, &args).await,
        Command::Validate(args) => validate::run(session, &args),
        Command::Pause(args) => lifecycle::run(session, Action::Pause, &args).await,
        Command::Resume(args) => lifecycle::run(session, Action::Resume, &args).await,
        Command::Disable(args) => lifecycle::run(session, Action::Disable, &args).await,
        Command::Enable(args) => lifecycle::run(session, Action::Enable, &args).await,
        Command::Reset(args) => reset::run(session, &args).await,
        Command::UpdateState(args) => update_state::run(session, &args).await,
        Command::ForceRelease(args) => force_release::run(session, &args).await,
        Command::DeploymentPolicy(PolicyCommand::Reset(args)) => policy::run(session, &args).await,
        Command::Node(command) => on_nodes(session, command).await,
        Command::Package(PackageCommand::Status {
            package,
            skyhook,
            node,
        }) => package::status(session, &package, &skyhook, &node).await,
        Command::Package(PackageCommand::Rerun(args)) => rerun::run(session, &args).await,
        Command::Package(PackageCommand::Logs(args)) => logs::run(session, &args).await,
        Command::Version(args) => version::run(session, &args).await,
        Command::Support(args) => support::run(session, &args).await,
        Command::Completion { shell } => Ok(shell.script(session.io.out)?),
        Command::Complete { words } => session.print(&candidates(&words)),
    }
}

async fn on_nodes(session: &mut Session<'_>, command: NodeCommand) -> Result<()> {
    match command {
        NodeCommand::List { skyhook } => node::list_nodes(session, &skyhook).await,
        NodeCommand::Status { patterns, skyhook } => {
            node::status(session, &patterns, skyhook.as_deref()).await
        }
        NodeCommand::Reset {
            patterns,
            skyhook,
            confirm,
        } => reset::run_nodes(session, &patterns, &skyhook, confirm).await,
        NodeCommand::Ignore { patterns } => ignore::run(session, &patterns, true).await,
        NodeCommand::Unignore { patterns } => ignore::run(session, &patterns, false).await,
    }
}
