//! Warnings about secrets in places where others read them: the arguments of steps, which every user of a host sees, and
//! `config.json`, which everybody sees who can pull the image.

use skyhook_oci::package_config::{PackageConfig, Step};

use super::Found;

/// Words in the names of what is secret.
const WORDS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "credential",
    "apikey",
    "api_key",
    "access_key",
    "private_key",
    "license_key",
    "authorization",
];
/// How some tokens begin.
const PREFIXES: [&str; 8] = [
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "nvapi-",
    "xoxb-",
    "AKIA",
];
/// A private key.
const KEY: &str = "-----BEGIN ";

/// Looks at the arguments and the `env` of all steps. No message has a value.
pub(super) fn look(config: &PackageConfig) -> Vec<Found> {
    let steps = config.modes.iter().flat_map(|(mode, steps)| {
        steps
            .iter()
            .enumerate()
            .map(move |(n, step)| (format!("modes.{mode}[{n}]"), step))
    });
    steps
        .flat_map(|(field, step)| of_step(&field, step))
        .collect()
}

fn of_step(field: &str, step: &Step) -> Vec<Found> {
    let mut found = Vec::new();
    let mut flag = None;
    for (n, argument) in step.arguments.iter().enumerate() {
        let field = format!("{field}.arguments[{n}]");
        let message = match argument.strip_prefix("env:") {
            Some(name) if is_secret_name(name) => Some(format!(
                "every user of the host sees the arguments of a step: let the script read ${name} in place of env:{name}"
            )),
            Some(_) => None,
            None if is_secret(argument, flag) => Some(
                "looks like a secret: everybody sees it who can pull the image, and every user of the host; give it to the \
                 script in the env of the Skyhook, from a Secret"
                    .to_owned(),
            ),
            None => None,
        };
        found.extend(message.map(|message| Found::warning(field, message)));
        flag = argument
            .starts_with('-')
            .then(|| argument.trim_start_matches('-'));
    }
    for (name, value) in &step.env {
        if (is_secret_name(name) && !value.is_empty()) || is_token(value) {
            found.push(Found::warning(
                format!("{field}.env.{name}"),
                "looks like a secret: everybody sees it who can pull the image; give it to the script in the env of the \
                 Skyhook, from a Secret",
            ));
        }
    }
    found
}

/// Whether an argument has a secret in it. `flag`: the argument before it, if that is a flag.
fn is_secret(argument: &str, flag: Option<&str>) -> bool {
    if is_token(argument) {
        return true;
    }
    if argument.starts_with('-') || argument.contains('=') {
        let pair = argument.trim_start_matches('-').split_once('=');
        return pair.is_some_and(|(name, value)| !is_reference(value) && is_secret_name(name));
    }
    !is_reference(argument) && flag.is_some_and(|flag| !flag.contains('=') && is_secret_name(flag))
}

/// True for a value that only says where the secret is: nothing, a variable, or a file.
fn is_reference(value: &str) -> bool {
    value.is_empty() || value.starts_with(['$', '/', '@', '.'])
}

fn is_token(value: &str) -> bool {
    let user = value
        .split_once("://")
        .and_then(|(_, rest)| rest.split_once('@'));
    let has_password = user.is_some_and(|(user, _)| user.contains(':') && !user.contains('/'));
    has_password
        || value.contains(KEY)
        || PREFIXES
            .iter()
            .any(|prefix| value.starts_with(prefix) && value.len() >= prefix.len() + 12)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_lowercase().replace('-', "_");
    // A file or a flag about secrets is none.
    let about = ["_file", "_path", "_name", "_dir", "_url"];
    WORDS.iter().any(|word| name.contains(word)) && !about.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn step(arguments: &[&str], env: &[(&str, &str)]) -> Step {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Step {
            name: "a".into(),
            path: "a.sh".into(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            returncodes: vec![0],
            on_host: true,
            idempotence: true,
            upgrade_step: false,
            env: env.iter().map(pair).collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn secrets_are_found_where_others_read_them() {
        for (arguments, env, want) in [
            (
                &["apply", "--mode=fast", "env:SERVICE", "-v"][..],
                &[("SET_X", "1")][..],
                &[][..],
            ),
            (&["env:API_TOKEN"], &[], &["s.arguments[0]"]),
            (&["--password", "hunter2"], &[], &["s.arguments[1]"]),
            (&["--password", "$PASSWORD", "--token-file", "x"], &[], &[]),
            (&["--password", "/run/secrets/p", "--password=@p"], &[], &[]),
            (&["a", "--api-key=123"], &[], &["s.arguments[1]"]),
            (&["TOKEN=123", "TOKEN="], &[], &["s.arguments[0]"]),
            (
                &[
                    "ghp_0123456789abcdef",
                    "https://u:p@h.example/x",
                    "https://h.example/a@b",
                ],
                &[],
                &["s.arguments[0]", "s.arguments[1]"],
            ),
            (
                &[],
                &[
                    ("DB_PASSWORD", "x"),
                    ("TOKEN", ""),
                    ("TOKEN_FILE", "/t"),
                    ("A", "-----BEGIN RSA PRIVATE KEY-----"),
                ],
                &["s.env.A", "s.env.DB_PASSWORD"],
            ),
        ] {
            let found = of_step("s", &step(arguments, env));
            let fields: Vec<&str> = found.iter().map(|found| found.field.as_str()).collect();
            assert_eq!(fields, want, "{arguments:?} {env:?}");
            let has_value = found.iter().any(|found| found.message.contains("hunter2"));
            assert!(!has_value, "{found:?}");
        }
    }
}
