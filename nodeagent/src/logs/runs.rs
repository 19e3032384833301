//! Reads the logs: which runs of steps there are, and what they printed. Nothing is written here, and a log that a step
//! writes at the moment is read as far as it goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use serde::Serialize;
use skyhook_crds::Stage;

use super::{MODE, PACKAGE, Stream, prune, with_err};

/// A run of a step whose logs are on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// When the step started.
    pub started: String,
    pub skyhook: String,
    /// Name of the package in the Skyhook. If that is not known, its name in `config.json`.
    pub package: String,
    pub version: String,
    /// Path of the step in `skyhook_dir`.
    pub step: String,
    /// Name of the mode in `config.json`; `None` when it is not known.
    pub mode: Option<String>,
    /// Whether `package` is the name in the Skyhook.
    #[serde(skip)]
    pub is_named: bool,
    /// The log of stdout. That of stderr has the same name with `.err` added.
    #[serde(skip)]
    pub path: PathBuf,
}

/// All runs whose logs are below `root`, in the order in which they started.
#[must_use]
pub fn find(root: &Path) -> Vec<Run> {
    let runs: BTreeSet<Run> = prune::logs(root)
        .into_iter()
        .filter_map(|log| {
            let (skyhook, package) = log.package;
            let name = log.path.to_string_lossy();
            let path = Path::new(name.strip_suffix(".err").unwrap_or(&name)).to_owned();
            let directory = root.join(&skyhook).join(&package).join(&log.version);
            let inside = path.strip_prefix(directory).ok()?.to_str()?;
            let (step, time) = split(inside)?;
            let [named, mode] = marks(&path);
            Some(Run {
                started: started(time)?,
                step: step.to_owned(),
                mode,
                skyhook,
                is_named: named.is_some(),
                package: named.unwrap_or(package),
                version: log.version,
                path,
            })
        })
        .collect();
    runs.into_iter().collect()
}

/// The path of the step, and the time, in `<step>-2024-05-01-120000.log`.
fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.strip_suffix(".log")?;
    let (step, time) = base.split_at_checked(base.len().checked_sub(17)?)?;
    Some((step.strip_suffix('-')?, time))
}

fn started(time: &str) -> Option<String> {
    let time = DateTime::strptime("%Y-%m-%d-%H%M%S", time).ok()?;
    Some(format!("{time}Z"))
}

/// The package and the mode that the step of a log belongs to.
fn marks(path: &Path) -> [Option<String>; 2] {
    let files = [path.to_owned(), with_err(path)];
    let file = files.iter().find_map(|path| open(path).ok().flatten());
    [PACKAGE, MODE].map(|name| {
        let mut value = [0_u8; 256];
        let length = rustix::fs::fgetxattr(file.as_ref()?, name, value.as_mut_slice()).ok()?;
        let text = std::str::from_utf8(value.get(..length)?).ok()?;
        (!text.is_empty()).then(|| text.to_owned())
    })
}

/// Opens a log if it is there. What is no regular file is left out: a named pipe would block the reader.
fn open(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path);
    match file {
        Ok(file) => Ok(file.metadata()?.is_file().then_some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.raw_os_error() == Some(nix::libc::ELOOP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Which runs somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Those of this Skyhook alone.
    pub skyhook: Option<String>,
    /// Those of one package alone.
    pub package: Option<Named>,
    /// Those of this stage alone, with those of its checks.
    pub stage: Option<Stage>,
    /// All runs that there are. Otherwise, of each package the version that ran last, and of each of its steps the last
    /// run in each mode.
    pub all: bool,
}

/// A package that somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Its name in the Skyhook.
    pub name: String,
    /// The names that it may have in its `config.json`, for runs of which only that is known. `-` and `_` are the same.
    pub in_config: BTreeSet<String>,
}

impl Named {
    fn is_of(&self, run: &Run) -> bool {
        let plain = |name: &str| name.replace('_', "-");
        let mut names = self.in_config.iter();
        match run.is_named {
            true => run.package == self.name,
            false => names.any(|name| plain(name) == plain(&run.package)),
        }
    }
}

/// The runs that somebody wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    pub runs: Vec<Run>,
    /// Number of runs that were left out because nobody knows their stage.
    pub without_stage: usize,
}

/// Selects runs. `runs` are in the order in which they started, and so is the result.
#[must_use]
pub fn select(mut runs: Vec<Run>, wish: &Wish) -> Selected {
    runs.retain(|run| {
        wish.skyhook
            .as_ref()
            .is_none_or(|name| *name == run.skyhook)
            && wish
                .package
                .as_ref()
                .is_none_or(|package| package.is_of(run))
    });
    if !wish.all {
        let mut versions = BTreeMap::new();
        for run in &runs {
            let package = (run.skyhook.clone(), run.package.clone());
            versions.insert(package, run.version.clone());
        }
        runs.retain(|run| {
            let package = (run.skyhook.clone(), run.package.clone());
            versions.get(&package) == Some(&run.version)
        });
        let mut last = BTreeMap::new();
        for run in &runs {
            let step = (&run.skyhook, &run.package, &run.step, &run.mode);
            last.insert(step, &run.path);
        }
        let last: BTreeSet<PathBuf> = last.into_values().cloned().collect();
        runs.retain(|run| last.contains(&run.path));
    }
    let mut without_stage = 0;
    if let Some(stage) = wish.stage {
        runs.retain(|run| match &run.mode {
            Some(mode) => mode.strip_suffix("-check").unwrap_or(mode) == stage.as_str(),
            None => {
                without_stage += 1;
                false
            }
        });
    }
    Selected {
        runs,
        without_stage,
    }
}

/// A line that a step printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    pub stream: Stream,
    /// Local time of the host, as it is in the log.
    pub time: String,
    pub text: String,
}

/// Reads the two logs of a run as one, in the order of time. At the end of the logs it can go on later, when they have
/// grown.
#[derive(Debug)]
pub struct Reader {
    out: Source,
    err: Source,
}

#[derive(Debug)]
struct Source {
    path: PathBuf,
    stream: Stream,
    file: Option<BufReader<File>>,
    /// A line whose end is not written yet.
    begun: Vec<u8>,
    next: Option<Line>,
}

impl Reader {
    #[must_use]
    pub fn of(run: &Run) -> Self {
        Self {
            out: Source::of(run.path.clone(), Stream::Out),
            err: Source::of(with_err(&run.path), Stream::Err),
        }
    }

    /// The next line; `None` at the end of both logs. `is_over`: nothing more is awaited, so a line without an end is a
    /// line as well.
    pub fn next(&mut self, is_over: bool) -> io::Result<Option<Line>> {
        self.out.fill(is_over)?;
        self.err.fill(is_over)?;
        let first = match (&self.out.next, &self.err.next) {
            (Some(out), Some(err)) if err.time < out.time => &mut self.err,
            (Some(_), _) => &mut self.out,
            (None, _) => &mut self.err,
        };
        Ok(first.next.take())
    }
}

impl Source {
    fn of(path: PathBuf, stream: Stream) -> Self {
        Self {
            path,
            stream,
            file: None,
            begun: Vec::new(),
            next: None,
        }
    }

    fn fill(&mut self, is_over: bool) -> io::Result<()> {
        if self.next.is_some() {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = open(&self.path)?.map(BufReader::new);
        }
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.read_until(b'\n', &mut self.begun)?;
        let is_whole = self.begun.ends_with(b"\n");
        if is_whole || (is_over && !self.begun.is_empty()) {
            let bytes = std::mem::take(&mut self.begun);
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            self.next = Some(Line::of(bytes, self.stream));
        }
        Ok(())
    }
}

/// Length of `[out]2024-05-01T12:00:00.123456`.
const MARKED: usize = 5 + 26;

impl Line {
    /// Takes a line of a log apart. What does not look like one is text as a whole.
    #[must_use]
    pub fn of(line: &[u8], stream: Stream) -> Self {
        let text = String::from_utf8_lossy(line);
        let parts = text
            .split_at_checked(MARKED)
            .and_then(|(mark, rest)| Some((mark, rest.strip_prefix(' ')?)))
            .filter(|(mark, _)| mark.starts_with("[out]2") || mark.starts_with("[err]2"));
        let (time, text) = parts.map_or(("", text.as_ref()), |(mark, rest)| (&mark[5..], rest));
        Self {
            stream,
            time: time.to_owned(),
            text: text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
