//! Masks values of secrets in what a step prints: `set -x` prints them without being asked to.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::secret::Secret;

/// A shorter value would be found in words that have nothing to do with it.
const SHORTEST: usize = 4;
/// Bytes of all patterns together, so that a supervisor stays small. What environment variables hold is less.
const MOST: usize = 256 << 10;
const MASK: &[u8] = b"***";

/// Finds values of secrets in lines.
#[derive(Debug)]
pub(super) struct Masks {
    searcher: Option<AhoCorasick>,
    longest: usize,
}

impl Masks {
    /// For each line of each value: as it is, as a shell writes it in quotes, and each whole value in base64.
    pub(super) fn of(secrets: &[Secret]) -> Self {
        let mut patterns: BTreeSet<Vec<u8>> = BTreeSet::new();
        for value in secrets.iter().map(Secret::reveal) {
            for line in value.lines().map(str::trim) {
                patterns.insert(line.into());
                patterns.insert(line.replace('\'', r"'\''").into());
            }
            // Without the end, which depends on what follows, be it the end of a line.
            let whole = &value.as_bytes()[..value.len() / 3 * 3];
            for encoded in [STANDARD.encode(whole), URL_SAFE.encode(whole)] {
                patterns.extend(encoded.as_bytes().chunks(76).map(<[u8]>::to_vec));
            }
        }
        let mut left = MOST;
        patterns.retain(|pattern| {
            let is_kept = pattern.len() >= SHORTEST && pattern.len() <= left;
            left -= if is_kept { pattern.len() } else { 0 };
            is_kept
        });
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        // The smallest kind. The most that can be wrong with patterns is that they are too many.
        let kind = Some(AhoCorasickKind::ContiguousNFA);
        let build = || AhoCorasick::builder().kind(kind).build(&patterns).ok();
        let searcher = (longest > 0).then(build);
        Self {
            searcher: searcher.flatten(),
            longest,
        }
    }

    /// Length of the longest value, in bytes.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The text, with the mask in the place of each value.
    pub(super) fn mask<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let found = self.found(text);
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        let mut masked = Vec::with_capacity(text.len());
        let mut from = 0;
        for range in found {
            masked.extend_from_slice(&text[from..range.start]);
            masked.extend_from_slice(MASK);
            from = range.end;
        }
        masked.extend_from_slice(&text[from..]);
        Cow::Owned(masked)
    }

    /// Where the text can be divided without dividing a value: at `at`, or soon after.
    pub(super) fn boundary(&self, text: &[u8], at: usize) -> usize {
        let around = self
            .found(text)
            .into_iter()
            .find(|range| range.start < at && at < range.end);
        around.map_or(at, |range| range.end)
    }

    /// Where values are. Those that overlap count as one.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn masks(secrets: &[&str]) -> Masks {
        let secrets: Vec<Secret> = secrets.iter().map(|s| Secret::from(*s)).collect();
        Masks::of(&secrets)
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
            // printf hunter2, and echo hunter2
            (
                "base64",
                &["hunter2"],
                "aHVudGVyMg== aHVudGVyMgo=",
                "***Mg== ***Mgo=",
            ),
        ] {
            let masked = masks(secrets).mask(text.as_bytes()).into_owned();
            assert_eq!(String::from_utf8(masked).unwrap(), want, "{name}");
        }
    }

    #[test]
    fn a_long_value_in_base64_is_found_in_lines_of_76() {
        let value = "0123456789".repeat(20);
        let encoded = STANDARD.encode(&value);
        let masks = masks(&[&value]);
        for line in encoded.as_bytes().chunks(76).take(3) {
            assert_eq!(masks.mask(line).as_ref(), MASK);
        }
    }

    #[test]
    fn a_text_is_not_divided_within_a_value() {
        let masks = masks(&["hunter2"]);
        let text = b"xxhunter2xx";
        for (at, want) in [(1, 1), (2, 2), (3, 9), (8, 9), (9, 9), (10, 10)] {
            assert_eq!(masks.boundary(text, at), want, "{at}");
        }
        assert_eq!(masks.longest(), "aHVudGVy".len());
    }

    #[test]
    fn patterns_are_bounded() {
        let many: Vec<String> = (0..100_000).map(|n| format!("value-{n:06}")).collect();
        let masks = masks(&[&many.join("\n")]);
        assert!(
            masks
                .searcher
                .is_some_and(|s| s.patterns_len() * 12 <= MOST)
        );
    }
}
