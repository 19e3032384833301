//! What is on a host, as text.

use std::fmt::Write as _;

use skyhook_oci::progress::size;

use super::{Directory, OnHost, StepDirectory, StepState, doing};
use crate::machine::progress::Entry;
use crate::text::plain;

/// The whole text. It has a line for each package, step, image and directory.
pub(super) fn of(shown: &OnHost) -> String {
    let mut text = String::new();
    put(
        &mut text,
        &format!("agent {}: {}", shown.agent_version, shown.agent),
    );
    let or_unknown = |id: &Option<String>| id.clone().unwrap_or_else(|| "unknown".to_owned());
    for (what, id) in [
        ("machine", &shown.machine_id),
        ("boot", &shown.boot_id),
        ("host", &shown.host_id),
    ] {
        put(&mut text, &format!("{what} {}", or_unknown(id)));
    }
    journal(&mut text, shown);
    text.push('\n');
    if shown.steps.is_empty() {
        put(&mut text, "no step runs");
    }
    for step in &shown.steps {
        put(&mut text, &of_step(step));
    }
    text.push('\n');
    images(&mut text, shown);
    text.push('\n');
    for directory in &shown.disk {
        put(&mut text, &of_directory(directory));
    }
    text
}

fn put(text: &mut String, line: &str) {
    text.push_str(&plain(line));
    text.push('\n');
}

fn journal(text: &mut String, shown: &OnHost) {
    let journal = &shown.journal;
    let written = journal
        .written
        .map(|at| format!(", written {}", seconds(at)));
    let written = written.unwrap_or_default();
    put(text, &format!("\njournal {}{written}", journal.path));
    if let Some(problem) = &journal.problem {
        put(text, &format!("  {problem}"));
        return;
    }
    let Some(state) = &journal.content else {
        put(text, "  there is none: this host had no lease yet");
        return;
    };
    if let Some(run) = &state.run {
        let how = match (run.ended, run.stop) {
            (Some(phase), _) => format!("ended {phase:?}"),
            (None, Some(stop)) => format!("stops: {:?}", stop.reason),
            (None, None) if run.held => "paused".to_owned(),
            (None, None) => "works".to_owned(),
        };
        put(
            text,
            &format!(
                "  {}: lease {}, revision {}: {how}",
                run.skyhook.name, run.lease, run.revision
            ),
        );
        if let Some(why) = run.hindrance() {
            put(text, &format!("    nothing runs: {why}"));
        }
        if let Some(wave) = &run.wave {
            let members: Vec<&str> = wave.members.iter().map(String::as_str).collect();
            put(
                text,
                &format!("    interrupt of {}: {:?}", members.join(", "), wave.at),
            );
        }
        run.entries.values().for_each(|entry| of_entry(text, entry));
    }
    for (name, record) in &state.skyhooks {
        let (lease, revision) = (&record.lease, &record.revision);
        put(
            text,
            &format!("  {name}: last lease {lease}, revision {revision}"),
        );
        record
            .entries
            .values()
            .for_each(|entry| of_entry(text, entry));
    }
}

fn of_entry(text: &mut String, entry: &Entry) {
    let (stage, state) = (entry.stage.as_str(), entry.state.as_str());
    let mut line = format!("    {} {} {stage} {state}", entry.name, entry.version);
    if !entry.since.is_empty() {
        let _written = write!(line, " since {}", entry.since);
    }
    let now = doing(&entry.doing);
    if now != "-" {
        let _written = write!(line, ": {now}");
    }
    if entry.attempts > 0 {
        let _written = write!(line, ", {} attempts failed", entry.attempts);
    }
    put(text, &line);
    for line in entry.message.lines() {
        put(text, &format!("      {line}"));
    }
}

fn of_step(step: &StepDirectory) -> String {
    let state = match step.state {
        StepState::Running => "runs",
        StepState::Ended => "has ended",
        StepState::LostWithHost => "was lost when the host went down",
        StepState::LeftOver => "is left over",
    };
    match (&step.package, &step.mode, step.index) {
        (Some(package), Some(mode), Some(index)) => {
            format!("step {}: {package} {mode}[{index}] {state}", step.id)
        }
        _ => format!("step {} {state}", step.id),
    }
}

fn images(text: &mut String, shown: &OnHost) {
    let (store, contents) = (&shown.images, &shown.images.contents);
    let (blobs, partial) = (size(contents.blob_bytes), size(contents.partial_bytes));
    put(
        text,
        &format!(
            "images {}: {blobs}, and {partial} downloaded in part",
            store.path
        ),
    );
    if let Some(problem) = &store.problem {
        put(text, &format!("  {problem}"));
    }
    for image in &contents.images {
        let references = match image.references.as_slice() {
            [] => "no reference".to_owned(),
            all => all.join(", "),
        };
        let bytes = image.bytes.map_or_else(|| "damaged".to_owned(), size);
        let mut line = format!("  {references}: {bytes}, {}", image.manifest);
        if let Some(used) = image.used {
            let _written = write!(line, ", used {}", seconds(used));
        }
        if !image.pinned_by.is_empty() {
            let _written = write!(line, ", needed by {}", image.pinned_by.join(", "));
        }
        put(text, &line);
    }
}

fn of_directory(directory: &Directory) -> String {
    let Directory {
        path,
        bytes,
        file_system_bytes,
        free_bytes,
    } = directory;
    let used = format!("disk {path}: {}", size(*bytes));
    match (file_system_bytes, free_bytes) {
        (Some(whole), Some(free)) => {
            format!("{used}; {} of {} are free", size(*free), size(*whole))
        }
        _ => used,
    }
}

fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
