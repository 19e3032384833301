//! Shows the progress of `local-run`.

use std::io::{IsTerminal as _, Write as _};

use skyhook_oci::progress;

/// A progress bar on a terminal, or one line per step otherwise.
pub(super) struct Bar {
    total: usize,
    at: usize,
    is_terminal: bool,
}

impl Bar {
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            at: 0,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    pub(super) fn next(&mut self, what: &str) {
        self.at += 1;
        let mut stderr = std::io::stderr();
        let written = if self.is_terminal {
            let bar = progress::bar(self.at as u64, self.total as u64);
            write!(stderr, "\r\x1b[K[{bar}] {}/{} {what}", self.at, self.total)
        } else {
            writeln!(stderr, "[{}/{}] {what}", self.at, self.total)
        };
        // A closed stderr does not stop the run.
        let _watched = written.and_then(|()| stderr.flush());
    }

    pub(super) fn end(&self) {
        if self.is_terminal {
            eprintln!();
        }
    }
}
