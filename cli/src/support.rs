//! `support`: one archive of what a maintainer asks for: objects, logs, and what is on hosts. It has no Secrets, and what
//! looks like a secret is masked in it.
#![expect(
    clippy::disallowed_methods,
    reason = "the shell of this command reads the clock"
)]

mod archive;
mod gather;
mod mask;
mod nodes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::args::SupportArgs;
use crate::output::Format;
use crate::session::Session;
use mask::Masker;

/// What was gathered, as it is.
#[derive(Debug, Default)]
struct Gathered {
    /// Objects, by the name of their kind.
    objects: BTreeMap<&'static str, Vec<Value>>,
    /// Texts, by the name of their file.
    texts: BTreeMap<String, String>,
    /// What could not be had, and why.
    missing: Vec<String>,
}

/// Runs `support`.
pub(crate) async fn run(session: &mut Session<'_>, args: &SupportArgs) -> Result<()> {
    let now = Timestamp::now();
    let path = args.file.clone().unwrap_or_else(|| default_file(now));
    let shown = path.display();
    if session.global.dry_run {
        return session.print(&format!("[dry-run] Would write {shown}\n"));
    }
    if path.exists() {
        bail!("{shown} exists: name another file with --file");
    }
    let gathered = gather::all(session, args).await?;
    let files = bundle(gathered, now);
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let bytes = archive::write(&path, &files, seconds)?;
    let about = files.get(ABOUT).map_or("", String::as_str);
    session.print(&format!("{about}\nWrote {shown} ({bytes} bytes)\n"))
}

fn default_file(now: Timestamp) -> PathBuf {
    let time = now.strftime("%Y%m%d-%H%M%S");
    format!("skyhook-support-{time}.tar.gz").into()
}

/// The file that says what the archive holds.
const ABOUT: &str = "README.txt";

/// The files of the archive. Nothing gets into it that was not masked.
fn bundle(gathered: Gathered, now: Timestamp) -> BTreeMap<String, String> {
    let Gathered {
        objects,
        texts,
        mut missing,
    } = gathered;
    let mut masker = Masker::default();
    objects
        .values()
        .flatten()
        .for_each(|object| masker.learn(object));
    let mut files = BTreeMap::new();
    let mut holds = Vec::new();
    for (kind, mut all) in objects {
        all.iter_mut().for_each(|object| masker.object(object));
        let name = format!("objects/{kind}.yaml");
        match Format::Yaml.data(&all) {
            Ok(text) => {
                holds.push(format!("{name}: {}", all.len()));
                files.insert(name, text.unwrap_or_default());
            }
            Err(error) => missing.push(format!("{kind}: {error}")),
        }
    }
    for (name, text) in texts {
        let text = masker.text(&text).into_owned();
        holds.push(format!("{name}: {} lines", text.lines().count()));
        files.insert(name, text);
    }
    let missing = missing.iter().map(|what| masker.text(what).into_owned());
    let about = about(&holds, &missing.collect::<Vec<_>>(), now);
    files.insert(ABOUT.to_owned(), about);
    files
}

fn about(holds: &[String], missing: &[String], now: Timestamp) -> String {
    let list = |lines: &[String]| {
        let lines = lines.iter().map(|line| format!("  {line}\n"));
        lines.collect::<String>()
    };
    let missing = if missing.is_empty() {
        "Everything that was asked for could be had.\n".to_owned()
    } else {
        format!("What could not be had:\n{}", list(missing))
    };
    format!(
        "Skyhook, {}\n\nWhat there is:\n{}\n{missing}\nSecrets were not read. Values of env, keys of configMap, and parts of \
         texts that look like secrets are {}. Look through the files before you give them away.\n",
        now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        list(holds),
        mask::MASK
    )
}

#[cfg(test)]
mod tests;
