//! Shows the progress of `local-run`.

use std::io::{IsTerminal as _, Write as _};

use skyhook_oci::progress;

/// A progress bar on a terminal, or one line per step otherwise.
pub(super) struct Bar {
    total: usize,
    at: usize,
    /// Whether there is one line for all steps. What steps print would be written over it.
    is_one_line: bool,
}

impl Bar {
    /// `is_alone`: nothing else is printed while the bar is shown.
    pub(super) fn new(total: usize, is_alone: bool) -> Self {
        Self {
            total,
            at: 0,
            is_one_line: is_alone && std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn next(&mut self, what: &str) {
        self.at += 1;
        let mut stderr = std::io::stderr();
        let written = if self.is_one_line {
            let bar = progress::bar(self.at as u64, self.total as u64);
            write!(stderr, "\r\x1b[K[{bar}] {}/{} {what}", self.at, self.total)
        } else {
            writeln!(stderr, "[{}/{}] {what}", self.at, self.total)
        };
        // A closed stderr does not stop the run.
        let _watched = written.and_then(|()| stderr.flush());
    }

    /// Says something about the step that is shown.
    pub(super) fn note(&self, text: &str) {
        self.end();
        // As above.
        let _written = writeln!(std::io::stderr(), "  {text}");
    }

    pub(super) fn end(&self) {
        if self.is_one_line {
            eprintln!();
        }
    }
}
