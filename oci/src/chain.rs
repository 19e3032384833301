//! Errors as text.

/// The text of an error and of its causes, in one line. A cause is left out if the line already contains its text.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Failed {
        text: &'static str,
        source: io::Error,
    }

    #[test]
    fn each_cause_is_said_once() {
        let failed = |text| Failed {
            text,
            source: io::Error::other("the disk is full"),
        };
        for (text, want) in [
            (
                "it cannot be written",
                "it cannot be written: the disk is full",
            ),
            (
                "not written: the disk is full",
                "not written: the disk is full",
            ),
        ] {
            assert_eq!(chain(&failed(text)), want);
        }
    }
}
