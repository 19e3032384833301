//! `skyhook-agent logs`: what the steps on this host have printed.
//!
//! A text line is as in the log (`[out]` or `[err]`, the time, the text), without what a terminal would obey. Above the
//! lines of each run is a line of the form `=== SKYHOOK/PACKAGE VERSION MODE STARTED STEP ===`. Values of secrets were
//! masked when the log was written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use skyhook_crds::Package;
use skyhook_oci::Root;
use skyhook_oci::package_config;

use crate::config::{Form, LogsArgs};
use crate::host::Host;
use crate::journal::{Journal, State};
use crate::logs::{Line, Named, Reader, Run, Selected, Stream, Wish, find, select};
use crate::prepare::{Layout, copy_dir};
use crate::text::plain;

/// How often the logs are looked at with `--follow`, in milliseconds.
const PAUSE_MS: u16 = 500;

/// Shows the logs.
pub fn main(args: &LogsArgs) -> anyhow::Result<()> {
    let shown = Shown {
        form: args.output,
        out: io::BufWriter::new(io::stdout().lock()),
        last: None,
    };
    match run(args, shown) {
        // Whoever reads the output has read enough of it.
        Err(error) if is_closed(&error) => Ok(()),
        other => other,
    }
}

fn is_closed(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn run(args: &LogsArgs, mut shown: Shown<impl Write>) -> anyhow::Result<()> {
    let host = Host::open(&args.state.host_root)?;
    let layout = args.layout.layout();
    let root = host.locate(&layout.log_root)?;
    // Without a journal, the name of a package is that in its config.json, as far as anybody knows.
    let state = host.locate(&args.state.state_dir).ok();
    let state = state.and_then(|state| Journal::look(&state).ok().flatten());
    let state = state.unwrap_or_default();
    let wish = Wish {
        skyhook: args.skyhook.clone(),
        package: args.package.as_ref().map(|package| Named {
            name: package.clone(),
            in_config: names(&entries(&state), package, &layout, |directory| {
                name_in(&host, directory)
            }),
        }),
        stage: args.stage,
        all: args.all,
    };
    let look = || select(find(root.path()), &wish);
    let selected = look();
    if let Some(note) = note(&selected, &wish, &layout.log_root) {
        eprintln!("{note}");
    }
    let tail = usize::try_from(args.tail).ok();
    let mut following = Following::default();
    following.show(selected, tail, !args.follow, &mut shown)?;
    while args.follow && !is_over(args.while_stdin)? {
        following.show(look(), None, false, &mut shown)?;
    }
    Ok(())
}

/// Waits a while. True when nobody reads the output any more or, with `while_stdin`, the input has ended.
fn is_over(while_stdin: bool) -> anyhow::Result<bool> {
    let (input, output) = (io::stdin(), io::stdout());
    let mut polled = vec![PollFd::new(output.as_fd(), PollFlags::empty())];
    if while_stdin {
        polled.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
    }
    // An error (EINTR) has the same effect as the end of the pause.
    let _woken = poll(&mut polled, PollTimeout::from(PAUSE_MS));
    let seen = |at: usize| polled.get(at).and_then(PollFd::revents);
    // Only errors and the end of the output were asked for.
    if seen(0).is_some_and(|seen| !seen.is_empty()) {
        return Ok(true);
    }
    if seen(1).is_none_or(|seen| seen.is_empty()) {
        return Ok(false);
    }
    ended(input.as_fd())
}

fn ended(input: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let mut ignored = [0_u8; 1024];
    let read = nix::unistd::read(input, &mut ignored).context("the standard input")?;
    Ok(read == 0)
}

/// Name, version and copy directory of the packages in the journal.
fn entries(state: &State) -> Vec<(String, Package, Option<skyhook_crds::lease::SkyhookRef>)> {
    let of_run = state.run.iter().flat_map(|run| run.entries.values());
    let of_records = state.skyhooks.values();
    let of_records = of_records.flat_map(|record| record.entries.values());
    of_run
        .chain(of_records)
        .map(|entry| {
            let package = Package {
                name: entry.name.clone(),
                version: entry.version.clone(),
                ..Package::default()
            };
            let skyhook = entry.cycle.as_ref().map(|cycle| cycle.skyhook.clone());
            (entry.name.clone(), package, skyhook)
        })
        .collect()
}

/// The names that a package may have in its `config.json`. They need not be that in the Skyhook.
fn names(
    entries: &[(String, Package, Option<skyhook_crds::lease::SkyhookRef>)],
    package: &str,
    layout: &Layout,
    in_config: impl Fn(&str) -> Option<String>,
) -> BTreeSet<String> {
    let of_package = entries.iter().filter(|(name, ..)| name == package);
    let configured = of_package.filter_map(|(_, package, skyhook)| {
        in_config(&copy_dir(layout, skyhook.as_ref()?, package))
    });
    configured.chain([package.to_owned()]).collect()
}

fn name_in(host: &Host, directory: &str) -> Option<String> {
    let package: Root = host.files.directory(directory).ok()?;
    let report = package_config::load(&package).ok()?;
    Some(report.config?.package_name)
}

/// What the user should know besides the logs.
fn note(selected: &Selected, wish: &Wish, log_root: &str) -> Option<String> {
    let left_out = selected.without_stage;
    if left_out > 0 {
        return Some(format!(
            "{left_out} runs are left out, because their stage is not known: an earlier version of the agent wrote them, or \
             {log_root} is on a file system without extended attributes. Without --stage they are shown"
        ));
    }
    if !selected.runs.is_empty() {
        return None;
    }
    let what = match (&wish.package, wish.stage) {
        (None, None) => "no step has a log".to_owned(),
        (Some(_), None) => "no step of this package has a log".to_owned(),
        (_, Some(stage)) => format!("no step of {} has a log", stage.as_str()),
    };
    Some(format!(
        "{what} in {log_root}: none has run, its log was removed since, or SKYHOOK_AGENT_WRITE_LOGS is not \"true\""
    ))
}

/// The runs whose logs are shown, and how far.
#[derive(Default)]
struct Following {
    readers: BTreeMap<PathBuf, Open>,
}

struct Open {
    run: Run,
    reader: Reader,
    /// A later run of the step has begun, so this one is read to its end.
    is_old: bool,
}

impl Following {
    /// Shows what is new. `tail`: of each run that was not shown before, only that many lines.
    fn show(
        &mut self,
        selected: Selected,
        tail: Option<usize>,
        is_over: bool,
        shown: &mut Shown<impl Write>,
    ) -> anyhow::Result<()> {
        for open in self.readers.values_mut() {
            open.is_old = true;
        }
        for run in selected.runs {
            let open = self
                .readers
                .entry(run.path.clone())
                .or_insert_with(|| Open {
                    reader: Reader::of(&run),
                    run,
                    is_old: true,
                });
            open.is_old = false;
        }
        // Those that started first come first.
        let mut all: Vec<&mut Open> = self.readers.values_mut().collect();
        all.sort_by(|a, b| a.run.cmp(&b.run));
        for open in all {
            let mut kept = VecDeque::new();
            while let Some(line) = open.reader.next(is_over || open.is_old)? {
                match tail {
                    None => shown.line(&open.run, &line)?,
                    Some(tail) => {
                        kept.push_back(line);
                        kept.drain(..kept.len().saturating_sub(tail));
                    }
                }
            }
            for line in kept {
                shown.line(&open.run, &line)?;
            }
        }
        self.readers.retain(|_, open| !open.is_old);
        Ok(shown.out.flush()?)
    }
}

/// The output.
struct Shown<W: Write> {
    form: Form,
    out: W,
    /// The run of the line that was written last.
    last: Option<PathBuf>,
}

/// A line, and what printed it.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    run: &'a Run,
    #[serde(flatten)]
    line: &'a Line,
}

impl<W: Write> Shown<W> {
    fn line(&mut self, run: &Run, line: &Line) -> anyhow::Result<()> {
        match self.form {
            Form::Json => {
                serde_json::to_writer(&mut self.out, &Printed { run, line })
                    .map_err(io::Error::from)?;
                self.out.write_all(b"\n")?;
            }
            Form::Text => {
                if self.last.as_ref() != Some(&run.path) {
                    writeln!(self.out, "{}", heading(run))?;
                    self.last = Some(run.path.clone());
                }
                let mark = match line.stream {
                    Stream::Out => "[out]",
                    Stream::Err => "[err]",
                };
                let text = plain(&line.text);
                // A progress bar, which goes back to the start of its line, becomes several ones.
                for part in text
                    .split('\n')
                    .filter(|part| !part.is_empty() || text.is_empty())
                {
                    writeln!(self.out, "{mark}{} {part}", line.time)?;
                }
            }
        }
        Ok(())
    }
}

fn heading(run: &Run) -> String {
    let Run {
        started,
        skyhook,
        package,
        version,
        step,
        mode,
        is_named: _,
        path: _,
    } = run;
    let mode = mode.as_deref().unwrap_or("-");
    plain(&format!(
        "=== {skyhook}/{package} {version} {mode} {started} {step} ==="
    ))
}

#[cfg(test)]
mod tests;
