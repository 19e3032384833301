//! Messages of parsers without the values that they are about, because a value may be a secret.

/// The message without values: which type is expected, and the place if the parser tells it. Parsers write the value
/// that they do not accept before `, expected`, and between quotation marks. Names of missing fields are our own.
pub(crate) fn without_values(message: &str) -> String {
    let message = message.replace('\n', ", ");
    if let Some((_, expected)) = message.rsplit_once(", expected ") {
        return format!("expected {expected}");
    }
    if message.contains("missing field `") {
        return message;
    }
    let end = message.find(['"', '`', '\'']).unwrap_or(message.len());
    message[..end].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_is_in_a_message() {
        #[derive(serde::Deserialize, Debug)]
        #[serde(rename_all = "kebab-case")]
        struct Document {
            #[expect(dead_code, reason = "it is only read")]
            list: Vec<bool>,
        }
        let yaml = |text: &str| {
            serde_yaml_ng::from_str::<Document>(text)
                .unwrap_err()
                .to_string()
        };
        let json = |text: &str| {
            serde_json::from_str::<Document>(text)
                .unwrap_err()
                .to_string()
        };
        let toml = |text: &str| {
            toml::from_str::<Document>(text)
                .unwrap_err()
                .message()
                .to_owned()
        };
        for (message, want) in [
            (
                yaml("list: hunter2"),
                "expected a sequence at line 1 column 7",
            ),
            (
                yaml("list: [', expected hunter2']"),
                "expected a boolean at line 1 column 8",
            ),
            (yaml("hunter2"), "expected struct Document"),
            (yaml("{}"), "missing field `list`"),
            (
                serde_yaml_ng::from_str::<serde_yaml_ng::Value>("{hunter2: 1, hunter2: 1}")
                    .unwrap_err()
                    .to_string(),
                "duplicate entry with key",
            ),
            (
                json(r#"{"list": "hunter2"}"#),
                "expected a sequence at line 1 column 18",
            ),
            (
                json(r#"{"list": [hunter2]}"#),
                "expected value at line 1 column 11",
            ),
            (toml("list = 'hunter2'"), "expected a sequence"),
            (toml("list = ['hunter2']"), "expected a boolean"),
            (toml("list = [hunter2]"), ""),
            (toml("hunter2 = 1\nhunter2 = 1"), ""),
        ] {
            let text = without_values(&message);
            assert!(
                text.starts_with(want) && !text.is_empty(),
                "{message}: {text}"
            );
            assert!(!text.contains("hunter2"), "{message}: {text}");
        }
    }
}
