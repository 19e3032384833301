//! Masks what looks like a secret. Secrets themselves are never read, but people put passwords into `env`, `configMap` and
//! command lines, from where they get into logs.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::{Map, Value};

/// What is written in place of a secret.
pub(super) const MASK: &str = "***";
/// Shorter values are masked where they are, and not looked for elsewhere: they may be ordinary words.
const SHORTEST: usize = 8;

/// Names of variables, keys and flags whose values are secrets.
const NAMES: &str = "passw(?:or)?d|passwd|passphrase|pwd|secret|token|credential|api[_-]?key|access[_-]?key|private[_-]?key|\
                     licen[cs]e[_-]?key|authorization";

/// A rule: what it finds, and what it keeps of that: the groups before and after the secret.
struct Rule {
    finds: Regex,
    keeps: &'static str,
}

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let names = format!(r#"(?i)(?P<a>["']?\b[\w.-]*(?:{NAMES})[\w.-]*\\?["']?[ \t]*[=:][ \t]*)"#);
    let flags = format!(r"(?i)(?P<a>--?[\w-]*(?:{NAMES})[\w-]*[ \t]+)");
    let value = r#"(?:\\"[^"\\]*(?:\\")?|"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s,;"'{}\[\]]+)"#;
    let rules: [(&str, &'static str); 8] = [
        (
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z0-9 ]*-----[^\x00]*?(?:-----END [A-Z0-9 ]*-----|\z)",
            MASK,
        ),
        // User and password in the address of a server.
        (
            r"(?P<a>\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@]*:[^\s/@]*@",
            "${a}***@",
        ),
        (
            r"(?i)(?P<a>\b(?:bearer|basic)[ \t]+)[a-z0-9._~+/=-]{6,}",
            "${a}***",
        ),
        // A JSON web token.
        (r"\beyJ[\w-]{6,}\.[\w-]+\.[\w-]*", MASK),
        // Tokens that their prefixes tell.
        (
            r"\b(?:(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{10,}|nvapi-[\w-]{16,})",
            MASK,
        ),
        // curl -u USER:PASSWORD
        (r"(?P<a>\s(?:-u|--user)[ =])\S*:\S+", "${a}***"),
        (&format!("{names}{value}"), "${a}***"),
        (&format!("{flags}{value}"), "${a}***"),
    ];
    let rules = rules.into_iter().map(|(finds, keeps)| Rule {
        finds: Regex::new(finds).expect("the rule is fixed, and a test uses it"),
        keeps,
    });
    rules.collect()
});

static SECRET_NAME: LazyLock<Regex> = LazyLock::new(|| {
    let names = format!("(?i)(?:{NAMES}|key$|auth$|^pass$|_pass$)");
    Regex::new(&names).expect("it is fixed, and a test uses it")
});

/// Masks objects and texts. Values that were found to be secrets in objects are masked wherever they are.
#[derive(Debug, Default)]
pub(super) struct Masker {
    known: BTreeSet<String>,
}

impl Masker {
    /// Takes note of the secrets in an object.
    pub(super) fn learn(&mut self, object: &Value) {
        let mut found = Vec::new();
        secrets(object, &mut |value: &str| found.push(value.to_owned()));
        for value in found {
            let lines = value.lines().map(str::trim);
            let long = lines.filter(|line| line.len() >= SHORTEST && *line != MASK);
            self.known.extend(long.map(str::to_owned));
        }
    }

    /// Masks an object, and leaves out what repeats it: what `kubectl apply` noted, and who owns which field.
    pub(super) fn object(&self, object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            let annotations = metadata.get_mut("annotations");
            if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
        }
        self.value(object);
    }

    fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Cow::Owned(masked) = self.text(text) {
                    *text = masked;
                }
            }
            Value::Array(all) => all.iter_mut().for_each(|one| self.value(one)),
            Value::Object(fields) => {
                if is_secret_variable(fields) {
                    fields.insert("value".to_owned(), MASK.into());
                }
                for (key, field) in fields.iter_mut() {
                    if is_map(key)
                        && let Value::Object(data) = field
                    {
                        mask_data(data);
                    }
                    self.value(field);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Masks a text: a log, a script, a message.
    pub(super) fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        // The longest first: a value may be a part of another one.
        let mut known: Vec<&String> = self.known.iter().collect();
        known.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in known {
            if text.contains(value.as_str()) {
                text = Cow::Owned(text.replace(value.as_str(), MASK));
            }
        }
        for rule in RULES.iter() {
            if rule.finds.is_match(&text) {
                let masked = rule.finds.replace_all(&text, |found: &Captures<'_>| {
                    let mut kept = String::new();
                    found.expand(rule.keeps, &mut kept);
                    kept
                });
                text = Cow::Owned(masked.into_owned());
            }
        }
        text
    }
}

/// An element of `env` with a value that looks like a secret.
fn is_secret_variable(fields: &Map<String, Value>) -> bool {
    let name = fields.get("name").and_then(Value::as_str);
    fields.get("value").is_some_and(Value::is_string)
        && name.is_some_and(|name| SECRET_NAME.is_match(name))
}

/// A field that holds texts by keys that people have chosen.
fn is_map(field: &str) -> bool {
    matches!(field, "configMap" | "data" | "stringData")
}

fn mask_data(data: &mut Map<String, Value>) {
    for (key, value) in data.iter_mut() {
        if value.is_string() && SECRET_NAME.is_match(key) {
            *value = MASK.into();
        }
    }
}

/// Calls `found` with each value that is a secret because of its name.
fn secrets(value: &Value, found: &mut impl FnMut(&str)) {
    match value {
        Value::Array(all) => all.iter().for_each(|one| secrets(one, found)),
        Value::Object(fields) => {
            if is_secret_variable(fields)
                && let Some(value) = fields.get("value").and_then(Value::as_str)
            {
                found(value);
            }
            for (key, field) in fields {
                let data = field.as_object().filter(|_| is_map(key));
                for (key, value) in data.into_iter().flatten() {
                    if let Some(value) = value.as_str()
                        && SECRET_NAME.is_match(key)
                    {
                        found(value);
                    }
                }
                secrets(field, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn texts_are_masked() {
        let masker = Masker::default();
        for (text, want) in [
            ("plain text, 1:2 and a=b", None),
            ("export PASSWORD=hunter2", Some("export PASSWORD=***")),
            ("db_password: 'two words' # x", Some("db_password: *** # x")),
            (
                r#"{"apiKey":"a\"b","n":1}"#,
                Some(r#"{"apiKey":***,"n":1}"#),
            ),
            (r#"{\"token\":\"abc\"}"#, Some(r#"{\"token\":***}"#)),
            ("--token abc --n 1", Some("--token *** --n 1")),
            ("--registry-token=abc x", Some("--registry-token=*** x")),
            ("curl -u me:pw https://h/", Some("curl -u *** https://h/")),
            ("https://me:pw@host/x", Some("https://***@host/x")),
            (
                "Authorization: Bearer abcdefgh",
                Some("Authorization: *** ***"),
            ),
            ("got Bearer abcdefgh.x", Some("got Bearer ***")),
            ("eyJhbGciOiJ.eyJzdWIi.c2ln!", Some("***!")),
            ("id AKIAABCDEFGHIJKLMNOP", Some("id ***")),
            ("ghp_abcdefghijklmnopqrst", Some("***")),
            (
                "a\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nb",
                Some("a\n***\nb"),
            ),
            ("-----BEGIN PRIVATE KEY-----\ncut off", Some("***")),
            ("-----BEGIN CERTIFICATE-----\nx", None),
            ("secretKeyRef:\n  name: x", None),
            ("the token is gone", None),
        ] {
            assert_eq!(masker.text(text), want.unwrap_or(text), "{text}");
        }
    }

    #[test]
    fn objects_are_masked_by_the_names_of_variables_and_keys() {
        let mut object = json!({
            "metadata": {
                "name": "s", "managedFields": [{}],
                "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b" },
            },
            "spec": { "packages": { "p": {
                "image": "r/p",
                "env": [
                    { "name": "LICENSE_KEY", "value": "1234-5678" }, { "name": "MODE", "value": "fast" },
                    { "name": "URL", "value": "http://me:pw@proxy" },
                    { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "n", "key": "k" } } },
                ],
                "configMap": { "api-token": "x", "apply.sh": "#!/bin/sh\nPWD_DB=s3cret\necho ok\n" },
            } } },
        });
        let mut masker = Masker::default();
        masker.learn(&object);
        masker.object(&mut object);
        let want = json!({
            "metadata": { "name": "s", "annotations": { "a": "b" } },
            "spec": { "packages": { "p": {
                "image": "r/p",
                "env": [
                    { "name": "LICENSE_KEY", "value": "***" }, { "name": "MODE", "value": "fast" },
                    { "name": "URL", "value": "http://***@proxy" },
                    { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "n", "key": "k" } } },
                ],
                "configMap": { "api-token": "***", "apply.sh": "#!/bin/sh\nPWD_DB=***\necho ok\n" },
            } } },
        });
        assert_eq!(object, want);
        // What was found there is masked in logs too; what is short is not looked for.
        assert_eq!(masker.text("key 1234-5678, x"), "key ***, x");
    }
}
