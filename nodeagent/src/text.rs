//! Prepares the output of programs for messages: removes control sequences, and cuts long texts.

/// Maximum length of a message in bytes. Messages are written to the journal, to the lease, to an annotation of the
/// Node, and to the status of the Skyhook, which has the messages of all nodes.
pub(crate) const LONGEST: usize = 2048;

/// Makes a message from a text: removes control sequences, and cuts a long text.
#[must_use]
pub(crate) fn message(text: &str) -> String {
    // Cut first, so that a very long text takes little time.
    cut(plain(&cut(text, 8 * LONGEST)).trim(), LONGEST)
}

/// Joins messages. If the result is too long, each message is cut to an equal share.
#[must_use]
pub(crate) fn joined(messages: &[String]) -> String {
    const BETWEEN: &str = "; ";
    let whole = messages.join(BETWEEN);
    if whole.len() <= LONGEST {
        return whole;
    }
    let share = LONGEST / messages.len().max(1);
    let cut_to_share = |message: &String| cut(message, share.saturating_sub(BETWEEN.len()));
    let all: Vec<String> = messages.iter().map(cut_to_share).collect();
    cut(&all.join(BETWEEN), LONGEST)
}

/// Cuts a long text in the middle. Keeps a part of the start, which usually names the subject, and a longer part of the
/// end, which usually names the error.
#[must_use]
pub(crate) fn cut(text: &str, bytes: usize) -> String {
    const GAP: &str = " … ";
    if text.len() <= bytes {
        return text.to_owned();
    }
    let kept = bytes.saturating_sub(GAP.len());
    let mut head = kept / 4;
    while !text.is_char_boundary(head) {
        head -= 1;
    }
    let mut tail = text.len() - (kept - kept / 4);
    while !text.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}{GAP}{}", &text[..head], &text[tail..])
}

/// Removes control sequences, control characters, and marks that change the direction of writing. Line feeds and tabs
/// stay. A carriage return becomes a line feed, because it separates the states of a progress bar.
#[must_use]
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\n' | '\t' => plain.push(c),
            '\r' if !rest.starts_with('\n') => plain.push('\n'),
            '\u{1b}' => rest = after_sequence(rest),
            '\u{9b}' => rest = after_parameters(rest),
            c if c.is_control() || is_direction(c) => {}
            c => plain.push(c),
        }
    }
    plain
}

/// The text after a control sequence. `text` starts after the `ESC` of the sequence.
fn after_sequence(text: &str) -> &str {
    let Some(kind) = text.chars().next() else {
        return text;
    };
    let rest = &text[kind.len_utf8()..];
    match kind {
        // Colours, and movements of the cursor.
        '[' => after_parameters(rest),
        // Titles and links: the sequence ends with BEL or `ESC \`. A sequence without such an end counts as text.
        ']' | 'P' | 'X' | '^' | '_' => {
            let end = rest.find(['\u{7}', '\u{1b}', '\n']);
            match end.map(|end| &rest[end..]) {
                Some(end) if end.starts_with('\u{7}') => &end[1..],
                Some(end) if end.starts_with("\u{1b}\\") => &end[2..],
                Some(_) | None => rest,
            }
        }
        // Sequences of two or three characters: for example a reset, or the choice of a character set.
        '\u{20}'..='\u{2f}' => rest
            .strip_prefix(|c| matches!(c, '\u{30}'..='\u{7e}'))
            .unwrap_or(rest),
        '\u{30}'..='\u{7e}' => rest,
        _ => text,
    }
}

/// The text after the parameters of a control sequence and its final letter.
fn after_parameters(text: &str) -> &str {
    let rest = text.trim_start_matches(|c| matches!(c, '\u{20}'..='\u{3f}'));
    let is_end = rest.starts_with(|c| matches!(c, '\u{40}'..='\u{7e}'));
    &rest[usize::from(is_end)..]
}

fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The last lines of a text that are not empty: at most `lines` of them, and at most `bytes` bytes.
#[must_use]
pub(crate) fn last_lines(text: &str, lines: usize, bytes: usize) -> String {
    let lines_with_text: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    let end = lines_with_text[lines_with_text.len().saturating_sub(lines)..].join("\n");
    let mut from = end.len().saturating_sub(bytes);
    while !end.is_char_boundary(from) {
        from += 1;
    }
    end[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_taken_out() {
        for (text, want) in [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
            ("10%\r50%\r\n100%\r", "10%\n50%\n100%\n"),
            ("\x07bell\u{9b}31m", "bell"),
            ("a\x1b]0;title\x07b\x1b]8;;http://x\x1b\\c", "abc"),
            ("a\x1b]0;no end\nb", "a0;no end\nb"),
            ("\x1bc\x1b(Breset", "reset"),
            ("a\u{202e}b\u{2066}c", "abc"),
            ("\x1b[\x1b\x1b", ""),
            ("\x1bß\x1b ß", "ßß"),
        ] {
            assert_eq!(plain(text), want, "{text:?}");
        }
    }

    #[test]
    fn messages_are_short_and_plain() {
        assert_eq!(message(" \x1b[31mred\x1b[0m\n"), "red");
        for filler in ["x", "ß", "\x1b[1m€"] {
            let text = format!("step one: {}the end\n", filler.repeat(100_000));
            let message = message(&text);
            assert!(message.len() <= LONGEST && message.len() > LONGEST - 16);
            assert!(message.starts_with("step one: ") && message.ends_with("the end"));
            assert!(!message.contains('\x1b'), "{filler:?}");
        }
    }

    #[test]
    fn what_is_joined_is_short_and_names_all() {
        let messages = |n: usize, bytes: usize| -> Vec<String> {
            (0..n)
                .map(|n| format!("check {n:02}: {}!", "x".repeat(bytes)))
                .collect()
        };
        assert_eq!(joined(&messages(2, 1)), "check 00: x!; check 01: x!");
        for n in [2, 20, 33] {
            let joined = joined(&messages(n, 2000));
            assert!(joined.len() <= LONGEST);
            assert_eq!(joined.matches("check ").count(), n, "{joined}");
            assert_eq!(joined.matches('!').count(), n, "{joined}");
        }
    }

    #[test]
    fn the_end_of_a_text_is_short() {
        assert_eq!(last_lines("1\n2\n\n3\n", 2, 100), "2\n3");
        assert_eq!(last_lines("aaaa\näää", 5, 5), "ää");
        assert_eq!(last_lines("", 5, 5), "");
    }
}
