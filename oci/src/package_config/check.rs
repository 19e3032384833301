//! The rules for `config.json`. There is no I/O in this file: the caller tells which files exist.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{PackageConfig, Problem, Report, Severity, Step, StepFile};

/// The modes that are run. Each of them except `interrupt` also has a check mode, with `-check` after its name.
const MODES: [&str; 6] = [
    "uninstall",
    "upgrade",
    "apply",
    "config",
    "interrupt",
    "post-interrupt",
];
const CHECK: &str = "-check";
/// The fields of the file, and those of a step. Editors look for a schema in the field `$schema`.
const FIELDS: [&str; 6] = [
    "$schema",
    "schema_version",
    "package_name",
    "package_version",
    "expected_config_files",
    "modes",
];
const STEP_FIELDS: [&str; 8] = [
    "name",
    "path",
    "arguments",
    "returncodes",
    "on_host",
    "idempotence",
    "upgrade_step",
    "env",
];

/// Checks the text of a `config.json`. `file` says what is at a path below `skyhook_dir`.
pub fn check(text: &[u8], file: &dyn Fn(&str) -> StepFile) -> Report {
    let mut found = Found::default();
    let config = match serde_json::from_slice::<Value>(text) {
        Ok(Value::Object(object)) => found.config(&object, file),
        Ok(_) => found.error("", "must be a JSON object"),
        Err(error) => found.error("", &format!("is not JSON: {error}")),
    };
    let failed = found
        .0
        .iter()
        .any(|problem| problem.severity == Severity::Error);
    Report {
        config: config.filter(|_| !failed),
        problems: found.0,
    }
}

#[derive(Default)]
struct Found(Vec<Problem>);

impl Found {
    fn error<T>(&mut self, field: &str, message: &str) -> Option<T> {
        self.add(Severity::Error, field, message);
        None
    }

    fn add(&mut self, severity: Severity, field: &str, message: &str) {
        self.0.push(Problem {
            severity,
            field: field.to_owned(),
            message: message.to_owned(),
        });
    }

    /// Continues after a problem, so that all problems are found.
    fn config(
        &mut self,
        object: &Map<String, Value>,
        file: &dyn Fn(&str) -> StepFile,
    ) -> Option<PackageConfig> {
        match self.text(object, "", "schema_version").as_deref() {
            None | Some("v1") => {}
            Some(other) => {
                self.error::<()>("schema_version", &format!("is {other:?}, must be \"v1\""));
            }
        }
        let package_name = self.text(object, "", "package_name");
        // Directories on the host get this name.
        if let Some(name) = &package_name
            && (!is_step_name(name) || name == "." || name == "..")
        {
            self.error::<()>("package_name", &not_a_name(name));
        }
        let package_version = self.text(object, "", "package_version");
        if let Some(version) = &package_version
            && let Err(error) = semver::Version::parse(version)
        {
            let message =
                format!("{version:?} is not of the form x.y.z[-prerelease][+build]: {error}");
            self.error::<()>("package_version", &message);
        }
        self.unknown_fields(object, "", &FIELDS);
        let expected_config_files = self.texts(object, "", "expected_config_files");
        let modes = match object.get("modes") {
            Some(Value::Object(modes)) => Some(self.modes(modes, file)),
            other => self.wrong("", "modes", other, "an object of mode to steps"),
        };
        Some(PackageConfig {
            package_name: package_name?,
            package_version: package_version?,
            expected_config_files: expected_config_files?,
            modes: modes?,
        })
    }

    fn modes(
        &mut self,
        modes: &Map<String, Value>,
        file: &dyn Fn(&str) -> StepFile,
    ) -> BTreeMap<String, Vec<Step>> {
        let mut checked = BTreeMap::new();
        for (mode, steps) in modes {
            let field = format!("modes.{mode}");
            let plain = mode.strip_suffix(CHECK).unwrap_or(mode);
            if !MODES.contains(&plain) || mode == "interrupt-check" {
                self.add(
                    Severity::Warning,
                    &field,
                    "is not a mode: no stage runs its steps",
                );
            }
            let Value::Array(steps) = steps else {
                self.wrong::<()>("modes", mode, Some(steps), "an array of steps");
                continue;
            };
            let read: Vec<_> = (0..)
                .zip(steps)
                .filter_map(|(index, step)| {
                    self.step(mode, &format!("{field}[{index}]"), step, file)
                })
                .collect();
            if !steps.is_empty() {
                checked.insert(mode.clone(), read);
            }
        }
        if checked.is_empty() {
            self.error::<()>("modes", "must have at least one step");
        } else if checked.keys().all(|mode| mode.ends_with(CHECK)) {
            self.error::<()>(
                "modes",
                "has only checks: at least one mode must do something",
            );
        }
        for mode in checked.keys().filter(|mode| !mode.ends_with(CHECK)) {
            let check = format!("{mode}{CHECK}");
            if !checked.contains_key(&check) {
                self.error::<()>(
                    &format!("modes.{mode}"),
                    &format!("has no {check} with steps"),
                );
            }
        }
        self.check_pairs(&checked);
        checked
    }

    /// By convention, each step of a mode has a step `<step>_check` in the check mode. A missing one is a warning.
    fn check_pairs(&mut self, modes: &BTreeMap<String, Vec<Step>>) {
        for (mode, steps) in modes.iter().filter(|(mode, _)| !mode.ends_with(CHECK)) {
            let Some(checks) = modes.get(&format!("{mode}{CHECK}")) else {
                continue;
            };
            let stem = |path: &str| {
                let (stem, extension) = path.rsplit_once('.').unwrap_or((path, ""));
                (stem.to_owned(), extension.to_owned())
            };
            for (index, step) in steps.iter().enumerate() {
                let (name, extension) = stem(&step.path);
                let named = |check: &Step| {
                    check.name == format!("{}_check", step.name)
                        || check.path == step.path
                        || stem(&check.path) == (format!("{name}_check"), extension.clone())
                };
                if !checks.iter().any(named) {
                    let field = format!("modes.{mode}[{index}]");
                    let message = format!(
                        "step {:?} has no {:?} in {mode}{CHECK}",
                        step.name,
                        format!("{}_check", step.name)
                    );
                    self.add(Severity::Warning, &field, &message);
                }
            }
        }
    }

    fn step(
        &mut self,
        mode: &str,
        field: &str,
        step: &Value,
        file: &dyn Fn(&str) -> StepFile,
    ) -> Option<Step> {
        let Value::Object(object) = step else {
            return self.error(field, "must be a step object");
        };
        self.unknown_fields(object, field, &STEP_FIELDS);
        let name = self.text(object, field, "name");
        if let Some(name) = &name
            && !is_step_name(name)
        {
            self.error::<()>(&join(field, "name"), &not_a_name(name));
        }
        let path = self.text(object, field, "path");
        if let Some(path) = &path {
            self.step_file(&join(field, "path"), path, file);
        }
        let arguments = self.texts(object, field, "arguments");
        let returncodes = self.returncodes(object, field);
        let on_host = self.boolean(object, field, "on_host");
        let idempotence = self.boolean(object, field, "idempotence");
        let upgrade_step = self.boolean(object, field, "upgrade_step");
        if upgrade_step == Some(true) {
            let field = join(field, "upgrade_step");
            if mode.strip_suffix(CHECK).unwrap_or(mode) != "upgrade" {
                self.error::<()>(&field, "is only allowed in upgrade and upgrade-check");
            }
            if arguments
                .as_ref()
                .is_some_and(|arguments| !arguments.is_empty())
            {
                self.error::<()>(
                    &field,
                    "gets the versions as arguments, so arguments must be empty",
                );
            }
        }
        let env = self.env(object, field);
        Some(Step {
            name: name?,
            path: path?,
            arguments: arguments?,
            returncodes: returncodes?,
            on_host: on_host?,
            idempotence: idempotence?,
            upgrade_step: upgrade_step?,
            env: env?,
        })
    }

    fn step_file(&mut self, field: &str, path: &str, file: &dyn Fn(&str) -> StepFile) {
        if path.is_empty() || path.contains('\0') {
            self.error::<()>(field, "must name a file below skyhook_dir");
        } else if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            self.error::<()>(field, &format!("{path:?} must stay below skyhook_dir"));
        } else {
            match file(path) {
                StepFile::Present => {}
                StepFile::Missing => {
                    self.error::<()>(field, &format!("skyhook_dir/{path} does not exist"));
                }
                StepFile::Outside => {
                    let message = format!("skyhook_dir/{path} is a symlink out of the package");
                    self.add(Severity::Warning, field, &message);
                }
            }
        }
    }

    fn returncodes(&mut self, object: &Map<String, Value>, field: &str) -> Option<Vec<i64>> {
        let value = object.get("returncodes");
        let codes = value.and_then(Value::as_array).and_then(|codes| {
            codes
                .iter()
                .map(Value::as_i64)
                .collect::<Option<Vec<_>>>()
                .filter(|it| !it.is_empty())
        });
        match codes {
            Some(codes) => {
                self.odd_codes(&join(field, "returncodes"), &codes);
                Some(codes)
            }
            None => self.wrong(
                field,
                "returncodes",
                value,
                "an array of at least one integer",
            ),
        }
    }

    fn env(
        &mut self,
        object: &Map<String, Value>,
        field: &str,
    ) -> Option<BTreeMap<String, String>> {
        let value = object.get("env");
        let Some(value) = value else {
            return Some(BTreeMap::new());
        };
        let map = value.as_object().and_then(|map| {
            map.iter()
                .map(|(key, value)| Some((key.clone(), scalar(value)?)))
                .collect()
        });
        match map {
            Some(map) => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    self.not_text(&join(&join(field, "env"), name), value);
                }
                Some(map)
            }
            None => self.wrong(field, "env", Some(value), "an object of name to value"),
        }
    }

    fn text(&mut self, object: &Map<String, Value>, field: &str, key: &str) -> Option<String> {
        match object.get(key) {
            Some(Value::String(text)) => Some(text.clone()),
            other => self.wrong(field, key, other, "a string"),
        }
    }

    fn texts(
        &mut self,
        object: &Map<String, Value>,
        field: &str,
        key: &str,
    ) -> Option<Vec<String>> {
        let value = object.get(key);
        let values = value.and_then(Value::as_array);
        let texts = values.and_then(|values| values.iter().map(scalar).collect::<Option<Vec<_>>>());
        match texts {
            Some(texts) => {
                for (index, value) in values.into_iter().flatten().enumerate() {
                    self.not_text(&format!("{}[{index}]", join(field, key)), value);
                }
                Some(texts)
            }
            None => self.wrong(field, key, value, "an array of strings"),
        }
    }

    fn boolean(&mut self, object: &Map<String, Value>, field: &str, key: &str) -> Option<bool> {
        match object.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            other => self.wrong(field, key, other, "true or false"),
        }
    }

    fn unknown_fields(&mut self, object: &Map<String, Value>, field: &str, known: &[&str]) {
        for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
            let field = join(field, key);
            self.add(Severity::Warning, &field, "is no field: nothing reads it");
        }
    }

    fn not_text(&mut self, field: &str, value: &Value) {
        if !value.is_string() {
            let message = "is no string: NVIDIA Skyhook refuses the package";
            self.add(Severity::Warning, field, message);
        }
    }

    /// No program ends with a code beyond 255, and NVIDIA Skyhook sees 1 in place of every code but 0.
    fn odd_codes(&mut self, field: &str, codes: &[i64]) {
        let all = |codes: Vec<i64>| {
            let texts: Vec<String> = codes.iter().map(ToString::to_string).collect();
            texts.join(", ")
        };
        let is_code = |code: &i64| (0..=255).contains(code);
        let (codes, never): (Vec<i64>, Vec<i64>) = codes.iter().partition(|code| is_code(code));
        if !never.is_empty() {
            let message = format!("has {}, with which no program ends", all(never));
            self.add(Severity::Warning, field, &message);
        }
        let others: Vec<i64> = codes.into_iter().filter(|code| *code > 1).collect();
        if !others.is_empty() {
            let message = format!(
                "has {}, for which NVIDIA Skyhook sees 1: there the step fails",
                all(others)
            );
            self.add(Severity::Warning, field, &message);
        }
    }

    fn wrong<T>(&mut self, field: &str, key: &str, value: Option<&Value>, want: &str) -> Option<T> {
        let problem = match value {
            None => format!("is missing: must be {want}"),
            Some(_) => format!("must be {want}"),
        };
        self.error(&join(field, key), &problem)
    }
}

fn join(field: &str, key: &str) -> String {
    if field.is_empty() {
        key.to_owned()
    } else {
        format!("{field}.{key}")
    }
}

/// The text of a string, a number or a boolean. Numbers and booleans are written as in JSON.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn not_a_name(name: &str) -> String {
    format!("{name:?} is not a name: it may only have letters, digits, '_', '-' and '.'")
}

fn is_step_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.bytes().all(allowed)
}
