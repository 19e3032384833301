//! `skyhook-agent show`: what is on this host: the journal, the steps, the images, the disk.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's look at the host"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;
use skyhook_oci::{Contents, chain};

use crate::config::{Form, ReadyArgs, ShowArgs};
use crate::host::Host;
use crate::host::disk::disk_bytes;
use crate::journal::{Journal, State};
use crate::located::Located;
use crate::machine::progress::{Cursor, Doing, Half};
use crate::prepare::mode;
use crate::run;
use crate::supervise::RESULT;

mod text;

/// Shows what is on the host.
pub fn main(args: &ShowArgs) -> anyhow::Result<()> {
    let shown = look(args)?;
    let text = match args.output {
        Form::Text => text::of(&shown),
        Form::Json => serde_json::to_string_pretty(&shown)? + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads the output has read enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What is on the host. What could not be found out is `None`, and a problem says why.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct OnHost {
    /// Version of this program.
    agent_version: String,
    /// `ready`, or why no agent is ready.
    agent: String,
    machine_id: Option<String>,
    boot_id: Option<String>,
    host_id: Option<String>,
    journal: JournalFile,
    steps: Vec<StepDirectory>,
    images: ImageStore,
    disk: Vec<Directory>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct JournalFile {
    path: String,
    /// When it was written last.
    written: Option<Timestamp>,
    /// Its content, as it is in the file.
    content: Option<Box<State>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// Names of the copies of revisions.
    revisions: BTreeSet<String>,
}

/// A directory of a step. It is removed when the journal says that the step has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct StepDirectory {
    id: u64,
    /// `name|version`; `None` when the journal does not know the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    package: Option<String>,
    /// Name of the mode in `config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    /// Number of the step in its mode, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    state: StepState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum StepState {
    /// According to the journal it runs, and it has no result.
    Running,
    /// It has a result, which the agent has not taken yet.
    Ended,
    /// The host was rebooted since it was started.
    LostWithHost,
    /// The journal does not know it: it is removed later.
    LeftOver,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct ImageStore {
    path: String,
    #[serde(flatten)]
    contents: Contents,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    path: String,
    /// Bytes of the files in it.
    bytes: u64,
    /// Size of its file system.
    file_system_bytes: Option<u64>,
    /// Bytes of its file system that are free.
    free_bytes: Option<u64>,
}

fn look(args: &ShowArgs) -> anyhow::Result<OnHost> {
    let host = Host::open(&args.state.host_root)?;
    let state = host.locate(&args.state.state_dir)?;
    let layout = args.layout.layout();
    let ready = run::ready(&ReadyArgs {
        state: args.state.clone(),
        live: false,
    });
    let journal = journal(&state);
    let boot_id = host.boot_id().ok();
    let cursors = cursors(journal.content.as_deref());
    let images = state.join("images");
    let (contents, problem) = match Contents::of(images.path()) {
        Ok(contents) => (contents, None),
        Err(error) => (
            Contents::default(),
            Some(chain(&error.shown_in(&host.files))),
        ),
    };
    let host_id = fs::read_to_string(state.join("host-id").path());
    Ok(OnHost {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        agent: match ready {
            Ok(()) => "ready".to_owned(),
            Err(error) => format!("{error:#}"),
        },
        machine_id: host.machine_id().ok(),
        host_id: host_id.ok().map(|text| text.trim().to_owned()),
        steps: steps(state.join("steps").path())
            .into_iter()
            .map(|(id, has_result)| step(id, has_result, &cursors, boot_id.as_deref()))
            .collect(),
        boot_id,
        images: ImageStore {
            path: images.to_string(),
            contents,
            problem,
        },
        disk: [
            args.state.state_dir.as_path(),
            Path::new(&layout.copy_root),
            Path::new(&layout.log_root),
        ]
        .into_iter()
        .filter_map(|path| Some(directory(&host.locate(path).ok()?)))
        .collect(),
        journal,
    })
}

fn journal(state: &Located) -> JournalFile {
    let path = state.join("journal");
    let written = fs::metadata(path.path()).and_then(|metadata| metadata.modified());
    let (content, problem) = match Journal::look(state) {
        Ok(content) => (content.map(Box::new), None),
        Err(error) => (None, Some(chain(&error))),
    };
    let revisions = fs::read_dir(state.join("revisions").path());
    JournalFile {
        written: written.ok().and_then(|at| Timestamp::try_from(at).ok()),
        path: path.to_string(),
        content,
        problem,
        revisions: revisions
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|file| {
                let name = file.file_name().into_string().ok()?;
                name.strip_suffix(".json").map(str::to_owned)
            })
            .collect(),
    }
}

/// The steps that run according to the journal: package, mode and cursor.
fn cursors(state: Option<&State>) -> Vec<(String, &'static str, Cursor)> {
    let run = state.and_then(|state| state.run.as_ref());
    let entries = run.into_iter().flat_map(|run| &run.entries);
    entries
        .filter_map(|(key, entry)| match &entry.doing {
            Doing::Step(cursor) => {
                Some((key.clone(), mode(entry.stage, cursor.half), cursor.clone()))
            }
            Doing::Idle
            | Doing::Preparing { .. }
            | Doing::Ready(_)
            | Doing::Retry { .. }
            | Doing::GaveUp { .. } => None,
        })
        .collect()
}

/// Number of each step directory, and whether the step has a result.
fn steps(directory: &Path) -> Vec<(u64, bool)> {
    let mut found: Vec<(u64, bool)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id = entry.file_name().to_str()?.parse().ok()?;
            Some((id, entry.path().join(RESULT).exists()))
        })
        .collect();
    found.sort_unstable();
    found
}

fn step(
    id: u64,
    has_result: bool,
    cursors: &[(String, &'static str, Cursor)],
    boot_id: Option<&str>,
) -> StepDirectory {
    let known = cursors.iter().find(|(_, _, cursor)| cursor.id == id);
    let state = match known {
        None => StepState::LeftOver,
        Some(_) if has_result => StepState::Ended,
        Some((_, _, cursor)) if boot_id.is_some_and(|boot| boot != cursor.boot_id) => {
            StepState::LostWithHost
        }
        Some(_) => StepState::Running,
    };
    StepDirectory {
        id,
        package: known.map(|(key, ..)| key.clone()),
        mode: known.map(|(_, mode, _)| (*mode).to_owned()),
        index: known.map(|(_, _, cursor)| cursor.index),
        state,
    }
}

fn directory(at: &Located) -> Directory {
    let space = rustix::fs::statvfs(at.path()).ok();
    Directory {
        path: at.to_string(),
        bytes: disk_bytes(at.path()),
        file_system_bytes: space
            .as_ref()
            .map(|space| space.f_blocks.saturating_mul(space.f_frsize)),
        free_bytes: space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)),
    }
}

/// What an entry of the journal does, in a few words.
fn doing(doing: &Doing) -> String {
    let half = |half: &Half| match half {
        Half::Main => "steps",
        Half::Check => "checks",
    };
    let time = |at: i64| {
        let time = Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH);
        time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    match doing {
        Doing::Idle => "-".to_owned(),
        Doing::Preparing { half: of } => format!("prepares the {}", half(of)),
        Doing::Ready(cursor) => format!("step {} is next", cursor.id),
        Doing::Step(cursor) => format!("step {} runs", cursor.id),
        Doing::Retry { at, half: of } => format!("runs the {} again at {}", half(of), time(*at)),
        Doing::GaveUp { at, .. } => format!("gave up at {}", time(*at)),
    }
}

#[cfg(test)]
mod tests;
