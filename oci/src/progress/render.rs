//! Shows events to people: as progress bars on a terminal, else as one line per step. [`Display`] makes the text from
//! the events and from a time that the caller passes. Only [`show`] reads the clock and writes the text.

#![expect(clippy::disallowed_methods, reason = "show measures speed")]

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::{PullEvent, PullProgress};
use crate::digest::Digest;

const BAR: usize = 24;
/// The pause between two updates of a terminal.
const FRAME: Duration = Duration::from_millis(100);

/// Writes the progress to `out`: as bars if `out` is a terminal, else as lines. Write errors are ignored.
pub fn show(out: impl Write + Send + 'static, is_terminal: bool) -> PullProgress {
    let started = Instant::now();
    let state = Mutex::new((out, Display::default(), 0usize, None::<Duration>));
    PullProgress::new(move |event| {
        let now = started.elapsed();
        let mut state = state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let (out, display, drawn, last) = &mut *state;
        let line = display.take(&event, now);
        if !is_terminal {
            if let Some(line) = line {
                writeln!(out, "{line}").ok();
            }
            return;
        }
        let is_due = last.is_none_or(|last| now - last >= FRAME);
        if line.is_none() && !is_due {
            return;
        }
        *last = Some(now);
        let bars = display.bars(now);
        // The cursor goes up to the first old bar. The new line and then the new bars are written over the old bars.
        let mut text = if *drawn > 0 {
            format!("\x1b[{drawn}A")
        } else {
            String::new()
        };
        for line in line.iter().chain(&bars) {
            text += &format!("\r\x1b[K{line}\n");
        }
        text += "\x1b[J";
        *drawn = bars.len();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .ok();
    })
}

/// A progress bar, which is full when `done` equals `all`.
#[must_use]
pub fn bar(done: u64, all: u64) -> String {
    let part = done.saturating_mul(BAR as u64) / all.max(1);
    let full = usize::try_from(part).unwrap_or(BAR).min(BAR);
    format!("{}{}", "#".repeat(full), ".".repeat(BAR - full))
}

/// The layers that are being downloaded, and how to draw them.
#[derive(Debug, Default)]
pub struct Display {
    layers: BTreeMap<Digest, Download>,
}

/// A layer that is being downloaded, since a time of the clock that the caller uses.
#[derive(Debug)]
struct Download {
    bytes: u64,
    received: u64,
    since: Duration,
}

impl Display {
    /// Updates the state with an event. Returns the line to print for the event, if there is one.
    pub fn take(&mut self, event: &PullEvent, now: Duration) -> Option<String> {
        match event {
            PullEvent::Resolving { reference } => Some(format!("resolving {reference}")),
            PullEvent::Resolved {
                manifest,
                layers,
                bytes,
            } => {
                let size = size(*bytes);
                Some(format!(
                    "image {} has {layers} layers, {size}",
                    manifest.short()
                ))
            }
            PullEvent::LayerPresent { digest, bytes } => Some(format!(
                "{}  {} is here already",
                digest.short(),
                size(*bytes)
            )),
            PullEvent::LayerStarted { digest, bytes } => {
                self.layers.insert(
                    *digest,
                    Download {
                        bytes: *bytes,
                        received: 0,
                        since: now,
                    },
                );
                None
            }
            PullEvent::LayerProgress { digest, received } => {
                if let Some(layer) = self.layers.get_mut(digest) {
                    layer.received = *received;
                }
                None
            }
            PullEvent::LayerDone { digest } => {
                let layer = self.layers.remove(digest)?;
                let speed = speed(layer.bytes, now.saturating_sub(layer.since));
                Some(format!(
                    "{}  {}  {speed}  done",
                    digest.short(),
                    size(layer.bytes)
                ))
            }
            PullEvent::Retrying {
                what,
                reason,
                after_ms,
            } => Some(format!("{what}: {reason}; again in {after_ms} ms")),
            PullEvent::Pulled { manifest } => Some(format!("pulled {manifest}")),
            PullEvent::Unpacking { manifest } => Some(format!("unpacking {}", manifest.short())),
            PullEvent::Unpacked { entries } => {
                Some(format!("unpacked {entries} files and directories"))
            }
        }
    }

    /// One bar for each layer that is being downloaded.
    pub fn bars(&self, now: Duration) -> Vec<String> {
        let bar = |(digest, layer): (&Digest, &Download)| {
            let Download {
                bytes,
                received,
                since,
            } = layer;
            let drawn = self::bar(*received, *bytes);
            let (short, have, all) = (digest.short(), size(*received), size(*bytes));
            let speed = speed(*received, now.saturating_sub(*since));
            format!("{short}  [{drawn}]  {have} of {all}  {speed}")
        };
        self.layers.iter().map(bar).collect()
    }
}

/// Formats a number of bytes in a unit that fits.
#[must_use]
pub fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", mib * 1024.0),
        1_048_576..1_073_741_824 => format!("{mib:.1} MiB"),
        _ => format!("{:.1} GiB", mib / 1024.0),
    }
}

fn speed(bytes: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    format!("{}/s", size((bytes as f64 / seconds) as u64))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn digest() -> Digest {
        Digest::of(b"layer")
    }

    #[test]
    fn lines_and_bars_say_bytes_speed_and_phase() {
        let mut display = Display::default();
        let (digest, bytes) = (digest(), 2 << 20);
        let started = PullEvent::LayerStarted { digest, bytes };
        let table = [
            (
                PullEvent::Resolving {
                    reference: "r.io/p:1".into(),
                },
                Some("resolving r.io/p:1"),
            ),
            (
                PullEvent::Resolved {
                    manifest: digest,
                    layers: 2,
                    bytes,
                },
                Some("image b9e84d6d5a40 has 2 layers, 2.0 MiB"),
            ),
            (
                PullEvent::LayerPresent { digest, bytes: 100 },
                Some("b9e84d6d5a40  100 B is here already"),
            ),
            (started, None),
            (
                PullEvent::LayerProgress {
                    digest,
                    received: 1 << 20,
                },
                None,
            ),
            (
                PullEvent::Retrying {
                    what: "blob".into(),
                    reason: "cut".into(),
                    after_ms: 7,
                },
                Some("blob: cut; again in 7 ms"),
            ),
        ];
        let short = digest.short();
        for (event, want) in table {
            let want = want.map(|want| want.replace("b9e84d6d5a40", &short));
            assert_eq!(display.take(&event, SECOND), want);
        }
        let bar = format!("{short}  [############............]  1.0 MiB of 2.0 MiB  512.0 KiB/s");
        assert_eq!(display.bars(3 * SECOND), [bar]);
        let done = display.take(&PullEvent::LayerDone { digest }, 5 * SECOND);
        assert_eq!(done, Some(format!("{short}  2.0 MiB  512.0 KiB/s  done")));
        assert_eq!(display.bars(5 * SECOND), Vec::<String>::new());
    }

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(is_terminal: bool) -> String {
        let screen = Screen::default();
        let progress = show(screen.clone(), is_terminal);
        let digest = digest();
        progress.say(PullEvent::LayerStarted { digest, bytes: 10 });
        progress.say(PullEvent::LayerDone { digest });
        progress.say(PullEvent::Pulled { manifest: digest });
        let bytes = screen.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_pipe_gets_plain_lines_and_a_terminal_is_drawn_over() {
        let plain = shown(false);
        assert_eq!(plain.lines().count(), 2, "{plain}");
        assert!(!plain.contains('\x1b'));
        let terminal = shown(true);
        assert!(
            terminal.contains("[........................]"),
            "{terminal}"
        );
        assert!(
            terminal.contains("\x1b[1A\r\x1b[K"),
            "goes back over the bar"
        );
        assert!(
            terminal.ends_with(&format!("pulled {}\n\x1b[J", digest())),
            "{terminal}"
        );
    }
}
