//! `kubectl-skyhook`: parses the command line, runs it, and says what went wrong.
#![expect(
    clippy::disallowed_methods,
    reason = "the shell of the program reads the environment"
)]

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use skyhook_cli::args::Cli;
use skyhook_cli::session::{Io, Screen};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let failed = error.use_stderr();
            let printed = error.print();
            return if failed || printed.is_err() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let (stdout, stderr, stdin) = (std::io::stdout(), std::io::stderr(), std::io::stdin());
    let screen = screen(&stdout);
    let (mut out, mut err, mut input) = (stdout.lock(), stderr.lock(), stdin.lock());
    let io = Io {
        out: &mut out,
        err: &mut err,
        input: &mut input,
        screen,
    };
    let done = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(skyhook_cli::run(cli, io)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has read enough of it.
        Err(error) if is_closed(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody to tell if this fails too.
            let _told = writeln!(err, "Error: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes. Some libraries repeat the cause in the error itself: then it is not said twice.
fn told(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn is_closed(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn screen(stdout: &std::io::Stdout) -> Screen {
    let is_terminal = stdout.is_terminal();
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let size = rustix::termios::tcgetwinsize(stdout).ok();
    let or = |given: Option<u16>, usual: usize| match given {
        Some(given) if given > 0 => usize::from(given),
        Some(_) | None => usual,
    };
    let usual = Screen::default();
    Screen {
        is_terminal,
        colours: is_terminal && !no_colour && !dumb,
        width: or(size.map(|size| size.ws_col), usual.width),
        height: or(size.map(|size| size.ws_row), usual.height),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let cause = std::io::Error::other("no such file");
        let repeated = anyhow::Error::new(cause).context("cannot read a: no such file");
        let error = repeated.context("initializing kubernetes client");
        let want = "initializing kubernetes client: cannot read a: no such file";
        assert_eq!(told(&error), want);
    }
}
