//! The step's pipes: streamed into the logs line by line, in bounded memory and bounded files.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdout};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Spec;
use crate::logs::{LogPair, Stream};

/// Bytes of output that are kept for the message.
const TAIL: usize = 2048;

/// Both pipes of a step.
pub(super) struct Output {
    out: Lines<ChildStdout>,
    err: Lines<ChildStderr>,
    log: Option<LogPair>,
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
    pub(super) fn of(child: &mut Child, spec: &Spec) -> io::Result<Self> {
        let limit = spec.buffer_limit.clamp(64, 1 << 20);
        Ok(Self {
            out: Lines::new(child.stdout.take(), limit)?,
            err: Lines::new(child.stderr.take(), limit)?,
            log: spec.log.as_ref().map(LogPair::create).transpose()?,
            buffer: vec![0; 64 << 10],
            signals: None,
        })
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

    /// Keeps the pipes empty while `work` runs: a step that is told to end may print first.
    pub(super) fn while_pumping<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let value = work();
                done.store(true, Ordering::Release);
                value
            });
            while !done.load(Ordering::Acquire) {
                wait(
                    [
                        self.out.pipe.as_ref().map(AsFd::as_fd),
                        self.err.pipe.as_ref().map(AsFd::as_fd),
                        None,
                    ],
                    PollTimeout::from(20_u8),
                );
                self.take();
            }
            match worker.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Takes what is in the pipes now; does not wait for those that the step left behind.
    pub(super) fn drain(&mut self) {
        // Bounded: somebody who was left behind may print without end.
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
        String::from_utf8_lossy(tail).trim().to_owned()
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
    // EINTR is as good as a wake-up.
    let _ready = poll(&mut polled, timeout);
}

impl<P: Read + AsFd> Lines<P> {
    fn new(pipe: Option<P>, limit: usize) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe,
            pending: Vec::new(),
            tail: Vec::new(),
            limit,
        })
    }

    /// Reads once; true when something came.
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
                self.keep(&buffer[..n]);
                if let Some(log) = log {
                    self.write(&buffer[..n], log, stream);
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

    fn flush(&mut self, log: Option<&mut LogPair>, stream: Stream) {
        if let Some(log) = log
            && !self.pending.is_empty()
        {
            log.line(stream, &self.pending);
        }
        self.pending.clear();
    }
}
