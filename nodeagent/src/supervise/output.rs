//! The step's pipes: streamed into the logs line by line, in bounded memory and bounded files.

#![expect(clippy::disallowed_methods, reason = "the supervisor is all shell")]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdout};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::masks::Masks;
use crate::logs::{LogPair, Stream};
use crate::text::plain;

/// Bytes of output that are kept for the message.
const TAIL: usize = 2048;

/// Both pipes of a step.
pub(super) struct Output {
    out: Lines<ChildStdout>,
    err: Lines<ChildStderr>,
    log: Option<LogPair>,
    masks: Masks,
    buffer: Vec<u8>,
    signals: Option<SignalFd>,
}

/// Why [`Output::pump`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Output, the child's end, or the time that was given.
    Something,
    /// SIGTERM.
    ToEnd,
}

struct Lines<P> {
    /// `None` when every writer has closed it.
    pipe: Option<P>,
    pending: Vec<u8>,
    tail: Vec<u8>,
    limit: usize,
}

impl Output {
    /// Values that the masks know neither come into the log nor into the message.
    pub(super) fn of(
        child: &mut Child,
        buffer_limit: usize,
        log: Option<LogPair>,
        masks: Masks,
    ) -> Self {
        let limit = buffer_limit.clamp(64, 1 << 20);
        Self {
            out: Lines::new(child.stdout.take(), limit),
            err: Lines::new(child.stderr.take(), limit),
            log,
            masks,
            buffer: vec![0; 64 << 10],
            signals: None,
        }
    }

    /// Waits for output, a signal, or `timeout`, and takes what is there.
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
        self.take();
        let mut woken = Woken::Something;
        while let Some(Ok(Some(info))) = self.signals.as_ref().map(SignalFd::read_signal) {
            if i32::try_from(info.ssi_signo) == Ok(Signal::SIGTERM as i32) {
                woken = Woken::ToEnd;
            }
        }
        woken
    }

    /// Takes what is printed in the time that follows: a step that is told to end may print first.
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
                // A millisecond more: less than one is none, and this would go round without a pause.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX),
            );
            self.take();
        }
    }

    /// Takes what is in the pipes now; does not wait for those that the step left behind.
    pub(super) fn drain(&mut self) {
        // Bounded: somebody who was left behind may print without end.
        for _ in 0..1024 {
            if !self.take() {
                break;
            }
        }
        self.out.flush(&self.masks, self.log.as_mut(), Stream::Out);
        self.err.flush(&self.masks, self.log.as_mut(), Stream::Err);
        if let Some(log) = &mut self.log {
            log.flush();
        }
    }

    /// Goes on until everybody who was left behind has closed the pipes, or SIGTERM.
    pub(super) fn pump_until_closed(&mut self, signals: SigSet) {
        while self.out.pipe.is_some() || self.err.pipe.is_some() {
            if self.pump(signals, None) == Woken::ToEnd {
                return;
            }
            if let Some(log) = &mut self.log {
                log.flush();
            }
        }
    }

    /// The end of what was printed: errors, or else the rest.
    pub(super) fn tail(&self) -> String {
        let tail = if self.err.tail.is_empty() {
            &self.out.tail
        } else {
            &self.err.tail
        };
        let tail = &tail[tail.len().saturating_sub(TAIL)..];
        plain(&String::from_utf8_lossy(tail)).trim().to_owned()
    }

    /// Why the log is not complete.
    pub(super) fn log_problem(&self) -> Option<String> {
        self.log.as_ref().and_then(LogPair::problem)
    }

    fn take(&mut self) -> bool {
        let (buffer, masks) = (&mut self.buffer, &self.masks);
        let out = self.out.take(buffer, masks, self.log.as_mut(), Stream::Out);
        let err = self.err.take(buffer, masks, self.log.as_mut(), Stream::Err);
        out || err
    }
}

fn wait(fds: [Option<BorrowedFd<'_>>; 3], timeout: PollTimeout) {
    let mut polled: Vec<PollFd<'_>> = fds
        .into_iter()
        .flatten()
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    // EINTR is as good as a wake-up.
    let _ready = poll(&mut polled, timeout);
}

impl<P: Read + AsFd> Lines<P> {
    fn new(pipe: Option<P>, limit: usize) -> Self {
        if let Some(pipe) = &pipe {
            // It cannot fail on a pipe.
            let _set = rustix::io::ioctl_fionbio(pipe, true);
        }
        Self {
            pipe,
            pending: Vec::new(),
            tail: Vec::new(),
            limit,
        }
    }

    /// Reads once; true when something came.
    fn take(
        &mut self,
        buffer: &mut [u8],
        masks: &Masks,
        mut log: Option<&mut LogPair>,
        stream: Stream,
    ) -> bool {
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        match pipe.read(buffer) {
            Ok(0) => {
                self.flush(masks, log, stream);
                self.pipe = None;
                false
            }
            Ok(n) => {
                self.write(&buffer[..n], masks, log.as_deref_mut(), stream);
                if let Some(log) = log {
                    log.stamp();
                }
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

    /// Takes whole lines out. Of a line without an end as much is kept as a value of a secret may need, and the rest goes
    /// out in pieces.
    fn write(
        &mut self,
        mut bytes: &[u8],
        masks: &Masks,
        mut log: Option<&mut LogPair>,
        stream: Stream,
    ) {
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            // Whole lines that arrive at once are not copied.
            if self.pending.is_empty() && end <= self.limit {
                self.line(&bytes[..end], true, masks, log.as_deref_mut(), stream);
            } else {
                self.pending.extend_from_slice(&bytes[..end]);
                self.flush_pieces(0, masks, log.as_deref_mut(), stream);
                let rest = std::mem::take(&mut self.pending);
                self.line(&rest, true, masks, log.as_deref_mut(), stream);
            }
            bytes = &bytes[end + 1..];
        }
        self.pending.extend_from_slice(bytes);
        self.flush_pieces(masks.longest(), masks, log, stream);
    }

    /// Takes pieces out of a long line, as long as more than a piece and `kept` bytes are there.
    fn flush_pieces(
        &mut self,
        kept: usize,
        masks: &Masks,
        mut log: Option<&mut LogPair>,
        stream: Stream,
    ) {
        while self.pending.len() > self.limit + kept {
            let end = masks.boundary(&self.pending, self.limit);
            let rest = self.pending.split_off(end);
            let piece = std::mem::replace(&mut self.pending, rest);
            self.line(&piece, false, masks, log.as_deref_mut(), stream);
        }
    }

    fn flush(&mut self, masks: &Masks, mut log: Option<&mut LogPair>, stream: Stream) {
        self.flush_pieces(0, masks, log.as_deref_mut(), stream);
        let rest = std::mem::take(&mut self.pending);
        if !rest.is_empty() {
            self.line(&rest, false, masks, log, stream);
        }
    }

    /// Puts a line, or a piece of one, into the log and the tail.
    fn line(
        &mut self,
        line: &[u8],
        is_whole: bool,
        masks: &Masks,
        log: Option<&mut LogPair>,
        stream: Stream,
    ) {
        let masked = masks.mask(line);
        if let Some(log) = log {
            log.line(stream, &masked);
        }
        self.tail
            .extend_from_slice(&masked[masked.len().saturating_sub(TAIL)..]);
        if is_whole {
            self.tail.push(b'\n');
        }
        if self.tail.len() > 4 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }
}
