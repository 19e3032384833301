//! YAML as Go's `sigs.k8s.io/yaml` writes it: keys sorted, lists not indented, and quotes where that library puts them. No
//! library for Rust quotes in the same places.

use serde::Serialize;
use serde_json::Value;

/// The value as YAML.
pub(super) fn render(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let mut text = String::new();
    write(&mut text, &serde_json::to_value(value)?, 0, false);
    Ok(text)
}

/// Writes a value. `inline` says that the first line continues the line of a list's dash.
fn write(text: &mut String, value: &Value, indent: usize, inline: bool) {
    let pad = |text: &mut String, first: bool| {
        if !(first && inline) {
            text.push_str(&" ".repeat(indent));
        }
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            for (at, (key, field)) in sorted.into_iter().enumerate() {
                pad(text, at == 0);
                text.push_str(&scalar(key));
                text.push(':');
                match field {
                    Value::Object(inner) if !inner.is_empty() => {
                        text.push('\n');
                        write(text, field, indent + 2, false);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        text.push('\n');
                        write(text, field, indent, false);
                    }
                    Value::Object(_) | Value::Array(_) => text.push_str(&format!(" {field}\n")),
                    Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
                        text.push(' ');
                        write(text, field, 0, true);
                    }
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                pad(text, at == 0);
                text.push_str("- ");
                write(text, item, indent + 2, true);
            }
        }
        Value::String(string) => {
            pad(text, true);
            text.push_str(&scalar(string));
            text.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Array(_) => {
            pad(text, true);
            text.push_str(&format!("{value}\n"));
        }
    }
}

/// A string: in double quotes if it would be read as something else than a string, in single quotes if its characters mean
/// something in YAML.
fn scalar(string: &str) -> String {
    if string.chars().any(char::is_control) || resolves(string) {
        return serde_json::to_string(string).unwrap_or_default();
    }
    let starts = string.starts_with(|first: char| "!&*%@`|>'\"#{}[],".contains(first));
    let dash = ["-", "?", ":"].iter().any(|sign| {
        let rest = string.strip_prefix(sign);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    });
    let inside = string.contains(": ") || string.contains(" #") || string.ends_with(':');
    let spaces = string.starts_with(' ') || string.ends_with(' ');
    let document = string.starts_with("---") || string.starts_with("...");
    if starts || dash || inside || spaces || document {
        format!("'{}'", string.replace('\'', "''"))
    } else {
        string.to_owned()
    }
}

/// True for a text that YAML reads as a number, a boolean, a date or nothing.
fn resolves(string: &str) -> bool {
    const WORDS: [&str; 16] = [
        "", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", ".nan", ".inf",
        "-.inf", "+.inf", "<<",
    ];
    if WORDS.contains(&string.to_lowercase().as_str()) {
        return true;
    }
    let body = string.strip_prefix(['-', '+']).unwrap_or(string);
    let plain = body.replace('_', "");
    let based = |prefix: &str, digits: &str| {
        let rest = plain.strip_prefix(prefix);
        rest.is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .chars()
                    .all(|c| digits.contains(c.to_ascii_lowercase()))
        })
    };
    if based("0x", "0123456789abcdef") || based("0b", "01") || based("0o", "01234567") {
        return true;
    }
    let starts = plain.starts_with(|first: char| first.is_ascii_digit() || first == '.');
    if starts && plain.parse::<f64>().is_ok() {
        return true;
    }
    is_date(string) || is_sexagesimal(&plain)
}

/// `2026-11-27`, and the same with a time after it.
fn is_date(string: &str) -> bool {
    let mut parts = string.splitn(3, '-');
    let (Some(year), Some(month), Some(rest)) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let day: &str = &rest[..rest.bytes().take_while(u8::is_ascii_digit).count()];
    let time = &rest[day.len()..];
    let is_day = digits(day) && day.len() <= 2;
    let is_time = time.is_empty() || time.starts_with(['T', 't', ' ']);
    year.len() == 4 && digits(year) && month.len() <= 2 && digits(month) && is_day && is_time
}

/// `1:30`, which YAML 1.1 reads as a number of base 60.
fn is_sexagesimal(plain: &str) -> bool {
    let parts: Vec<&str> = plain.split(':').collect();
    let digits = |text: &&str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    parts.len() > 1 && parts.iter().all(digits)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_are_not_indented_and_keys_are_sorted() {
        let value = json!({
            "skyhookName": "gpu", "empty": [], "none": {}, "deep": { "b": [1, [2, 3]], "a": true },
            "nodes": [{ "status": "complete", "nodeName": "node", "packages": [{ "version": "1.0" }] }, {}],
        });
        let want = "\
deep:
  a: true
  b:
  - 1
  - - 2
    - 3
empty: []
nodes:
- nodeName: node
  packages:
  - version: \"1.0\"
  status: complete
- {}
none: {}
skyhookName: gpu
";
        assert_eq!(render(&value).unwrap(), want);
    }

    #[test]
    fn strings_are_quoted_where_go_quotes_them() {
        for (string, want) in [
            ("in_progress", "in_progress"),
            ("1.2.3", "1.2.3"),
            ("v1", "v1"),
            ("ghcr.io/nvidia/a:1.0", "ghcr.io/nvidia/a:1.0"),
            ("sha256:00", "sha256:00"),
            ("1.2", "\"1.2\""),
            ("1", "\"1\""),
            ("1e3", "\"1e3\""),
            ("0x1f", "\"0x1f\""),
            ("true", "\"true\""),
            ("No", "\"No\""),
            ("n", "\"n\""),
            ("", "\"\""),
            ("null", "\"null\""),
            ("2026-11-27", "\"2026-11-27\""),
            ("2024.7.7-test", "2024.7.7-test"),
            ("1:30", "\"1:30\""),
            ("nan", "nan"),
            ("a: b", "'a: b'"),
            ("a'b", "a'b"),
            ("'a'", "'''a'''"),
            ("- a", "'- a'"),
            ("@a", "'@a'"),
            ("a\nb", "\"a\\nb\""),
        ] {
            assert_eq!(scalar(string), want, "{string:?}");
        }
    }

    /// Whatever is written reads back as the same.
    #[test]
    fn a_reader_of_yaml_gets_the_same_back() {
        for string in [
            "1.0", "a: b", "- x", "#", "~", "a #b", "x:", "'", "\t", "---", "é", "a, b", "{", "%a",
            " a",
        ] {
            let value = json!({ "key": string, "list": [string, { "k": string }] });
            let text = render(&value).unwrap();
            let read: Value = serde_yaml_ng::from_str(&text).unwrap();
            assert_eq!(read, value, "{text}");
        }
    }
}
