//! `skyhook-agent`: the node agent, and the supervisor that it starts for each step.

use std::process::ExitCode;

use clap::Parser as _;
use skyhook_nodeagent::config::{Cli, Command};
use skyhook_nodeagent::{host, local, look, run, supervise, validate};

fn main() -> ExitCode {
    // Start a supervisor without parsing the command line: it should need little memory.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "supervise")
    {
        return match supervise::main() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    let result = match Cli::parse().command {
        Command::Run(args) => run::main(*args),
        Command::Ready(args) => run::ready(&args),
        Command::LocalRun(args) => return local::main(&args),
        Command::Validate(args) => validate::main(&args),
        Command::Logs(args) => look::logs::main(&args),
        Command::Show(args) => look::show::main(&args),
        Command::Supervise => Ok(()),
        Command::InRoot(args) => host::in_root(&args.root, &args.program, &args.arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
