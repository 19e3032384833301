//! Reads the step's output from the pipes and writes it to the logs, line by line, with limited memory.

#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdout};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::masks::{Masker, Masks};
use crate::logs::{LogPair, Stream};
use crate::text::plain;

/// Number of bytes at the end of the output that are kept for the message.
const TAIL: usize = 2048;

/// Both pipes of a step.
pub(super) struct Output {
    out: Lines<ChildStdout>,
    err: Lines<ChildStderr>,
    log: Option<LogPair>,
    buffer: Vec<u8>,
    signals: Option<SignalFd>,
}

/// Why [`Output::pump`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// There was output, the child ended, or the time is over.
    Something,
    /// The supervisor got SIGTERM.
    ToEnd,
}

struct Lines<P> {
    /// `None` after all writers have closed the pipe.
    pipe: Option<P>,
    masker: Masker,
    pending: Vec<u8>,
    tail: Vec<u8>,
    limit: usize,
}

impl Output {
    /// `masks` hides values of secrets in the log and in the message.
    pub(super) fn of(
        child: &mut Child,
        buffer_limit: usize,
        log: Option<LogPair>,
        masks: &Rc<Masks>,
    ) -> Self {
        let limit = buffer_limit.clamp(64, 1 << 20);
        Self {
            out: Lines::new(child.stdout.take(), limit, Masker::of(masks)),
            err: Lines::new(child.stderr.take(), limit, Masker::of(masks)),
            log,
            buffer: vec![0; 64 << 10],
            signals: None,
        }
    }

    /// Waits for output, a signal, or `timeout`, and reads the output.
    pub(super) fn pump(&mut self, signals: SigSet, timeout: Option<Duration>) -> Woken {
        if self.signals.is_none() {
            self.signals =
                SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).ok();
        }
        let timeout = timeout.map_or(PollTimeout::NONE, |t| {
            PollTimeout::try_from(t + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        wait(
            [
                self.signals.as_ref().map(AsFd::as_fd),
                self.out.pipe.as_ref().map(AsFd::as_fd),
                self.err.pipe.as_ref().map(AsFd::as_fd),
            ],
            timeout,
        );
        self.take_and_show();
        let mut woken = Woken::Something;
        while let Some(Ok(Some(info))) = self.signals.as_ref().map(SignalFd::read_signal) {
            if i32::try_from(info.ssi_signo) == Ok(Signal::SIGTERM as i32) {
                woken = Woken::ToEnd;
            }
        }
        woken
    }

    /// Reads output for the given time, while the step is being ended.
    pub(super) fn take_for(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            wait(
                [
                    self.out.pipe.as_ref().map(AsFd::as_fd),
                    self.err.pipe.as_ref().map(AsFd::as_fd),
                    None,
                ],
                // Round up by a millisecond: a timeout of zero would make this a busy loop.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            );
            self.take_and_show();
        }
    }

    /// Reads the data that is in the pipes now. Does not wait for processes that the step left running.
    pub(super) fn drain(&mut self) {
        // The number of reads is limited, because a process that the step left running may print without end.
        for _ in 0..1024 {
            if !self.take() {
                break;
            }
        }
        self.out.flush(self.log.as_mut(), Stream::Out);
        self.err.flush(self.log.as_mut(), Stream::Err);
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Reads until every process has closed the pipes, or until SIGTERM.
    pub(super) fn pump_until_closed(&mut self, signals: SigSet) {
        while self.out.pipe.is_some() || self.err.pipe.is_some() {
            if self.pump(signals, None) == Woken::ToEnd {
                return;
            }
        }
    }

    /// The end of stderr or, if that is empty, of stdout.
    pub(super) fn tail(&self) -> String {
        let tail = if self.err.tail.is_empty() {
            &self.out.tail
        } else {
            &self.err.tail
        };
        plain(&String::from_utf8_lossy(tail)).trim().to_owned()
    }

    /// Why the log is not complete.
    pub(super) fn log_problem(&self) -> Option<String> {
        self.log.as_ref().and_then(LogPair::problem)
    }

    /// Reads what is there, and writes it to the log files: somebody may follow them while the step runs.
    fn take_and_show(&mut self) {
        self.take();
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    fn take(&mut self) -> bool {
        let log = &mut self.log;
        let out = self.out.take(&mut self.buffer, log.as_mut(), Stream::Out);
        let err = self.err.take(&mut self.buffer, log.as_mut(), Stream::Err);
        out || err
    }
}

fn wait(fds: [Option<BorrowedFd<'_>>; 3], timeout: PollTimeout) {
    let mut polled: Vec<PollFd<'_>> = fds
        .into_iter()
        .flatten()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    // An error (EINTR) has the same effect as a wake-up.
    let _ready = poll(&mut polled, timeout);
}

impl<P: Read + AsFd> Lines<P> {
    fn new(pipe: Option<P>, limit: usize, masker: Masker) -> Self {
        if let Some(pipe) = &pipe {
            // This call cannot fail on a pipe.
            let _set = rustix::io::ioctl_fionbio(pipe, true);
        }
        Self {
            pipe,
            masker,
            pending: Vec::new(),
            tail: Vec::new(),
            limit,
        }
    }

    /// Reads once. True when there was output.
    fn take(&mut self, buffer: &mut [u8], log: Option<&mut LogPair>, stream: Stream) -> bool {
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        match pipe.read(buffer) {
            Ok(0) => {
                self.flush(log, stream);
                self.pipe = None;
                false
            }
            Ok(n) => {
                let masked = self.masker.feed(&buffer[..n]);
                self.put(&masked, log, stream);
                true
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => true,
            Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn put(&mut self, bytes: &[u8], log: Option<&mut LogPair>, stream: Stream) {
        self.keep(bytes);
        if let Some(log) = log {
            self.write(bytes, log, stream);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail
            .extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let over = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..over);
    }

    fn write(&mut self, mut bytes: &[u8], log: &mut LogPair, stream: Stream) {
        while !bytes.is_empty() {
            let room = self.limit - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|b| *b == b'\n') {
                Some(end) => {
                    // Whole lines that arrive at once are not copied.
                    if self.pending.is_empty() {
                        log.line(stream, &bytes[..end]);
                    } else {
                        self.pending.extend_from_slice(&bytes[..end]);
                        log.line(stream, &self.pending);
                        self.pending.clear();
                    }
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.pending.extend_from_slice(window);
                    bytes = &bytes[window.len()..];
                    if self.pending.len() >= self.limit {
                        log.line(stream, &self.pending);
                        self.pending.clear();
                    }
                }
            }
        }
        log.stamp();
    }

    fn flush(&mut self, mut log: Option<&mut LogPair>, stream: Stream) {
        let rest = self.masker.finish();
        self.put(&rest, log.as_deref_mut(), stream);
        if let Some(log) = log
            && !self.pending.is_empty()
        {
            log.line(stream, &self.pending);
        }
        self.pending.clear();
    }
}
