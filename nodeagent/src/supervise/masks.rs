//! Masks values of secrets in the output of a step. A script with `set -x`, for example, prints such values.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::secret::Secret;

/// Shorter values are not masked, because they also occur in ordinary words.
const SHORTEST: usize = 4;
/// Maximum size of all patterns in bytes, to limit the memory of the supervisor. Further patterns are dropped, and the
/// step's result says so. Environment variables are rarely that large.
const MOST: usize = 256 << 10;
const MASK: &[u8] = b"***";

/// Finds values of secrets in text.
#[derive(Debug)]
pub(super) struct Masks {
    searcher: Option<AhoCorasick>,
    longest: usize,
    /// Not all values are masked: the patterns are larger than [`MOST`].
    is_partial: bool,
}

impl Masks {
    /// Why values of secrets may be in the output.
    pub(super) fn problem(&self) -> Option<String> {
        let kib = MOST >> 10;
        self.is_partial.then(|| {
            format!(
                "its secrets have more than {kib} KiB, so not all of them are masked in its output"
            )
        })
    }

    /// Builds the patterns: each line of each value, each line as a shell writes it in single quotes, and each value in
    /// base64.
    pub(super) fn of(secrets: &[Secret]) -> Self {
        let mut patterns: BTreeSet<Vec<u8>> = BTreeSet::new();
        for value in secrets.iter().map(Secret::reveal) {
            for line in value.lines().map(str::trim) {
                patterns.insert(line.into());
                patterns.insert(line.replace('\'', r"'\''").into());
            }
            // Only whole groups of three bytes: the base64 of the rest depends on the bytes that follow the value.
            let whole = &value.as_bytes()[..value.len() / 3 * 3];
            for encoded in [STANDARD.encode(whole), URL_SAFE.encode(whole)] {
                patterns.extend(encoded.as_bytes().chunks(76).map(<[u8]>::to_vec));
            }
        }
        patterns.retain(|pattern| pattern.len() >= SHORTEST);
        let wanted = patterns.len();
        let mut left = MOST;
        patterns.retain(|pattern| {
            let is_kept = pattern.len() <= left;
            left -= if is_kept { pattern.len() } else { 0 };
            is_kept
        });
        let is_partial = patterns.len() < wanted;
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        // The kind with the least memory. Building fails only for far more patterns than `MOST` allows.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let build = || AhoCorasick::builder().kind(kind).build(&patterns).ok();
        let searcher = (longest > 0).then(build);
        Self {
            searcher: searcher.flatten(),
            longest,
            is_partial,
        }
    }

    /// Ranges of the text that contain values. Overlapping ranges are merged.
    fn found(&self, text: &[u8]) -> Vec<Range<usize>> {
        let Some(searcher) = &self.searcher else {
            return Vec::new();
        };
        let mut all: Vec<Range<usize>> = searcher
            .find_overlapping_iter(text)
            .map(|found| found.range())
            .collect();
        all.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in all {
            match merged.last_mut() {
                Some(last) if range.start < last.end => last.end = last.end.max(range.end),
                Some(_) | None => merged.push(range),
            }
        }
        merged
    }
}

/// Masks values in a stream that arrives in chunks.
#[derive(Debug)]
pub(super) struct Masker {
    masks: Rc<Masks>,
    /// The end of the stream: less than twice the length of the longest value.
    kept: Vec<u8>,
    /// Number of bytes of `kept` that were returned already. They are kept because a value may start in them.
    given: usize,
}

impl Masker {
    pub(super) fn of(masks: &Rc<Masks>) -> Self {
        Self {
            masks: Rc::clone(masks),
            kept: Vec::new(),
            given: 0,
        }
    }

    /// Adds a chunk. Returns the masked part of the stream that later chunks cannot change.
    pub(super) fn feed<'a>(&mut self, chunk: &'a [u8]) -> Cow<'a, [u8]> {
        if self.masks.searcher.is_none() {
            return Cow::Borrowed(chunk);
        }
        self.kept.extend_from_slice(chunk);
        // No pattern contains a line feed, so no value continues after the last line feed.
        let line = self.kept.iter().rposition(|byte| *byte == b'\n');
        let safe = (self.kept.len() + 1).saturating_sub(self.masks.longest);
        let end = line.map_or(0, |at| at + 1).max(safe).max(self.given);
        Cow::Owned(self.give(end))
    }

    /// Returns the masked rest at the end of the stream.
    pub(super) fn finish(&mut self) -> Vec<u8> {
        self.give(self.kept.len())
    }

    fn give(&mut self, end: usize) -> Vec<u8> {
        let mut masked = Vec::with_capacity(end - self.given);
        let mut at = self.given;
        for range in self.masks.found(&self.kept) {
            if range.end <= at || range.start >= end {
                continue;
            }
            if range.start >= at {
                masked.extend_from_slice(&self.kept[at..range.start]);
                masked.extend_from_slice(MASK);
            }
            at = range.end.min(end);
        }
        masked.extend_from_slice(&self.kept[at..end]);
        let forgotten = (end + 1).saturating_sub(self.masks.longest).min(end);
        self.kept.drain(..forgotten);
        self.given = end - forgotten;
        masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(secrets: &[&str]) -> Masks {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::from(*s)).collect();
        Masks::of(&secrets)
    }

    /// The masked text, with the whole text as one chunk.
    fn masked(masks: Masks, text: &str) -> String {
        let mut masker = Masker::of(&Rc::new(masks));
        let mut masked = masker.feed(text.as_bytes()).into_owned();
        masked.extend(masker.finish());
        String::from_utf8(masked).unwrap()
    }

    #[test]
    fn values_are_masked_however_they_are_printed() {
        for (name, secrets, text, want) in [
            ("none", &[][..], "+ curl", "+ curl"),
            ("once", &["hunter2"], "+ pass hunter2 x", "+ pass *** x"),
            ("twice", &["hunter2"], "hunter2hunter2", "******"),
            ("too short", &["abc"], "abc", "abc"),
            ("one in another", &["secret", "cret"], "a secret", "a ***"),
            ("overlapping", &["abcd", "cdef"], "xabcdefx", "x***x"),
            ("an end of line", &["hunter2\n"], "hunter2", "***"),
            ("each line", &["line1\n  line2\n"], "line2 line1", "*** ***"),
            (
                "quoted by a shell",
                &["it's me"],
                r"+ echo 'it'\''s me'",
                "+ echo '***'",
            ),
            // The base64 of `printf hunter2`, and of `echo hunter2`.
            (
                "base64",
                &["hunter2"],
                "aHVudGVyMg== aHVudGVyMgo=",
                "***Mg== ***Mgo=",
            ),
        ] {
            assert_eq!(masked(masks(secrets), text), want, "{name}");
        }
    }

    #[test]
    fn a_long_value_in_base64_is_found_in_lines_of_76() {
        let value = "0123456789".repeat(20);
        let encoded = STANDARD.encode(&value);
        for line in encoded.as_bytes().chunks(76).take(3) {
            let line = String::from_utf8_lossy(line);
            assert_eq!(masked(masks(&[&value]), &line), "***");
        }
    }

    #[test]
    fn a_value_is_found_however_it_is_cut() {
        let masks = Rc::new(masks(&["hunter2", "hunter2-and-more", "line1\nline2"]));
        let text = b"a hunter2 b hunter2-and-more\nhunter2-an\nline1\nline2 hunt hunter2-and";
        let want = "a *** b ***\n***-an\n***\n*** hunt ***-and";
        for size in 1..text.len() {
            let mut masker = Masker::of(&masks);
            let mut masked = Vec::new();
            for chunk in text.chunks(size) {
                masked.extend_from_slice(&masker.feed(chunk));
                assert!(masker.kept.len() < 2 * masks.longest, "in chunks of {size}");
            }
            masked.extend(masker.finish());
            let masked = String::from_utf8(masked).unwrap();
            assert_eq!(masked, want, "in chunks of {size}");
        }
    }

    #[test]
    fn a_value_that_overlaps_itself_without_end_is_given_out() {
        let masks = Rc::new(masks(&["xxxx"]));
        let mut masker = Masker::of(&masks);
        let mut masked = Vec::new();
        for _ in 0..1000 {
            masked.extend_from_slice(&masker.feed(b"xxxxxxx"));
            assert!(masker.kept.len() < 2 * masks.longest);
        }
        masked.extend(masker.finish());
        assert_eq!(masked, MASK);
    }

    #[test]
    fn patterns_are_bounded() {
        let many: Vec<String> = (0..100_000).map(|n| format!("value-{n:06}")).collect();
        assert_eq!(masks(&["hunter2", "abc"]).problem(), None);
        let masks = masks(&[&many.join("\n")]);
        assert_eq!(
            masks.problem().unwrap(),
            "its secrets have more than 256 KiB, so not all of them are masked in its output"
        );
        assert!(
            masks
                .searcher
                .is_some_and(|s| s.patterns_len() * 12 <= MOST)
        );
    }
}
