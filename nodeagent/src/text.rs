//! Text of programs, made fit for people's terminals.

/// The text without what a terminal obeys: control sequences and control characters. Line ends and tabs stay, and a
/// carriage return ends a line: it is what separates the states of a progress bar.
#[must_use]
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => plain.push(c),
            '\r' => {
                if chars.peek() != Some(&'\n') {
                    plain.push('\n');
                }
            }
            // `ESC [ … letter`: colours, and moves of the cursor.
            '\u{1b}' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars
                    .next_if(|c| matches!(c, '\u{20}'..='\u{3f}'))
                    .is_some()
                {}
                chars.next_if(|c| matches!(c, '\u{40}'..='\u{7e}'));
            }
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
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
            ("\x07bell\x1b]0;title\u{9b}31m", "bell]0;title31m"),
            ("\x1b[", ""),
        ] {
            assert_eq!(plain(text), want, "{text:?}");
        }
    }

    #[test]
    fn the_end_of_a_text_is_short() {
        assert_eq!(last_lines("1\n2\n\n3\n", 2, 100), "2\n3");
        assert_eq!(last_lines("aaaa\näää", 5, 5), "ää");
        assert_eq!(last_lines("", 5, 5), "");
    }
}
