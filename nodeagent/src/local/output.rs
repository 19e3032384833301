//! Shows what a step prints while it runs. The supervisor writes it to the logs, and this reads them.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: it reads the logs"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::logs::{Line, LogFile, Stream};
use crate::text::plain;

/// The logs of a step, and how far they were read.
pub(super) struct Output {
    directory: PathBuf,
    /// How the names of the logs begin.
    prefix: String,
    read: BTreeMap<PathBuf, u64>,
}

impl Output {
    /// What the logs hold now is of earlier steps, and is not shown.
    pub(super) fn of(log: &LogFile) -> Self {
        let path = log.directory.join(&log.step);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut output = Self {
            directory: path.parent().unwrap_or(&log.directory).to_owned(),
            prefix: format!("{name}-"),
            read: BTreeMap::new(),
        };
        for file in output.files() {
            let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
            output.read.insert(file, length);
        }
        output
    }

    fn files(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let ours = names.filter(|name| name.starts_with(&self.prefix));
        ours.map(|name| self.directory.join(name)).collect()
    }

    /// Prints what is new. `is_over`: nothing more is awaited, so a line without an end is printed as well.
    pub(super) fn show(&mut self, is_over: bool) {
        let mut stdout = io::stdout().lock();
        for line in self.lines(is_over) {
            let mark = match line.stream {
                Stream::Out => '|',
                Stream::Err => '!',
            };
            let text = plain(&line.text);
            // A progress bar, which goes back to the start of its line, becomes several ones.
            let parts = text
                .split('\n')
                .filter(|part| !part.is_empty() || text.is_empty());
            for part in parts {
                // A closed output does not end the run.
                let _written = writeln!(stdout, "  {mark} {part}");
            }
        }
        let _flushed = stdout.flush();
    }

    /// The new lines of both logs, in the order of time.
    fn lines(&mut self, is_over: bool) -> Vec<Line> {
        let mut lines = Vec::new();
        for file in self.files() {
            let stream = match file.to_string_lossy().ends_with(".err") {
                true => Stream::Err,
                false => Stream::Out,
            };
            let from = self.read.entry(file.clone()).or_default();
            // What cannot be read now is read the next time.
            let mut bytes = read_from(&file, *from).unwrap_or_default();
            if !is_over {
                let whole = bytes.iter().rposition(|byte| *byte == b'\n');
                bytes.truncate(whole.map_or(0, |end| end + 1));
            }
            *from += bytes.len() as u64;
            let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
            if !bytes.is_empty() {
                let all = bytes.split(|byte| *byte == b'\n');
                lines.extend(all.map(|line| Line::of(line, stream)));
            }
        }
        lines.sort_by(|a, b| a.time.cmp(&b.time));
        lines
    }
}

fn read_from(file: &Path, from: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(file)?;
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[Line]) -> Vec<(Stream, &str)> {
        lines
            .iter()
            .map(|line| (line.stream, line.text.as_str()))
            .collect()
    }

    #[test]
    fn only_what_is_new_is_shown_and_lines_are_whole() {
        let directory = tempfile::tempdir().unwrap();
        let log = LogFile {
            directory: directory.path().to_owned(),
            step: "sub/a.sh".to_owned(),
            package: String::new(),
            mode: String::new(),
        };
        let sub = directory.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let (out, err) = (
            sub.join("a.sh-2026-11-27-100000.log"),
            sub.join("a.sh-2026-11-27-100000.log.err"),
        );
        let line = |mark: &str, second: u32, text: &str| {
            format!("[{mark}]2026-11-27T10:00:{second:02}.000000 {text}")
        };
        fs::write(&out, line("out", 1, "earlier\n")).unwrap();
        fs::write(
            sub.join("b.sh-2026-11-27-100000.log"),
            line("out", 1, "another step\n"),
        )
        .unwrap();
        let mut output = Output::of(&log);
        assert_eq!(texts(&output.lines(false)), []);
        let append = |text: String| {
            let mut file = fs::OpenOptions::new().append(true).open(&out).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append(line("out", 3, "second\n"));
        append(line("out", 4, "begun"));
        fs::write(&err, line("err", 2, "first\n")).unwrap();
        assert_eq!(
            texts(&output.lines(false)),
            [(Stream::Err, "first"), (Stream::Out, "second")]
        );
        append(" and ended\n".to_owned());
        append(line("out", 5, "cut"));
        assert_eq!(
            texts(&output.lines(false)),
            [(Stream::Out, "begun and ended")]
        );
        assert_eq!(texts(&output.lines(true)), [(Stream::Out, "cut")]);
        assert_eq!(texts(&output.lines(true)), []);
    }
}
