//! `validate`: what is wrong with Skyhooks and DeploymentPolicies in files, without a cluster.
#![expect(
    clippy::disallowed_methods,
    reason = "reads the files that the user names"
)]

mod schema;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use skyhook_crds::field::{FieldError, FieldErrors};
use skyhook_crds::names::GROUP;
use skyhook_crds::{DeploymentPolicySpec, SkyhookSpec};

use crate::args::ValidateArgs;
use crate::session::Session;

/// Runs `validate`.
pub(crate) fn run(session: &mut Session<'_>, args: &ValidateArgs) -> Result<()> {
    let format = session.global.format()?;
    let mut objects = Vec::new();
    for file in &args.filename {
        let text = if file == "-" {
            let mut text = String::new();
            session
                .io
                .input
                .read_to_string(&mut text)
                .context("reading the standard input")?;
            text
        } else {
            std::fs::read_to_string(file).with_context(|| format!("reading {file}"))?
        };
        objects.extend(check_text(file, &text));
    }
    let report = Report::new(objects);
    match format.data(&report)? {
        Some(data) => session.print(&data)?,
        None => session.print(&report.text())?,
    }
    let wrong = report.objects.iter().filter(|object| !object.valid).count();
    if wrong > 0 {
        bail!("{wrong} of {} objects are not valid", report.objects.len());
    }
    if report.objects.is_empty() {
        bail!(
            "no Skyhook and no DeploymentPolicy in {}",
            args.filename.join(", ")
        );
    }
    Ok(())
}

/// What was found in all files.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Report {
    valid: bool,
    objects: Vec<Checked>,
}

/// What was found in one object.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Checked {
    file: String,
    kind: String,
    name: String,
    valid: bool,
    errors: Vec<Problem>,
}

#[derive(Debug, Serialize, PartialEq, Eq)]
struct Problem {
    field: String,
    problem: String,
}

impl Report {
    fn new(objects: Vec<Checked>) -> Self {
        let valid = objects.iter().all(|object| object.valid);
        Self { valid, objects }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for object in &self.objects {
            let what = if object.name.is_empty() {
                object.kind.clone()
            } else {
                format!("{} {}", object.kind, object.name)
            };
            let word = if object.valid { "valid" } else { "not valid" };
            text.push_str(&format!("{}: {what} is {word}\n", object.file));
            for Problem { field, problem } in &object.errors {
                let colon = if field.is_empty() { "" } else { ": " };
                text.push_str(&format!("  {field}{colon}{problem}\n"));
            }
        }
        text
    }
}

/// Checks all objects in a text of one or more YAML or JSON documents. Objects of other kinds are left out.
fn check_text(file: &str, text: &str) -> Vec<Checked> {
    let mut all = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        match Value::deserialize(document) {
            Ok(value) => check_value(file, &value, &mut all),
            Err(error) => {
                let problem = FieldError {
                    field: String::new(),
                    problem: error.to_string(),
                };
                all.push(Checked::new(file, "document", "", vec![problem]));
                // What follows cannot be told apart.
                break;
            }
        }
    }
    all
}

fn check_value(file: &str, value: &Value, all: &mut Vec<Checked>) {
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    if kind == "List" {
        let items = value.get("items").and_then(Value::as_array);
        for item in items.into_iter().flatten() {
            check_value(file, item, all);
        }
        return;
    }
    let api = text("/apiVersion");
    let Some(version) = api
        .strip_prefix(GROUP)
        .and_then(|rest| rest.strip_prefix('/'))
    else {
        return;
    };
    let mut errors = match kind {
        "Skyhook" => check_skyhook(name, value),
        "DeploymentPolicy" => check_policy(value),
        _ => return,
    };
    let mut add = |field: &str, problem: String| {
        let field = field.to_owned();
        errors.push(FieldError { field, problem });
    };
    if version != "v1alpha1" {
        add(
            "apiVersion",
            format!("is {api}, and there is only {GROUP}/v1alpha1"),
        );
    }
    if name.is_empty() {
        add("metadata.name", "is missing".to_owned());
    }
    all.push(Checked::new(file, kind, name, errors));
}

impl Checked {
    fn new(file: &str, kind: &str, name: &str, mut errors: Vec<FieldError>) -> Self {
        errors.sort();
        errors.dedup();
        let errors = errors
            .into_iter()
            .map(|FieldError { field, problem }| Problem { field, problem });
        let errors: Vec<Problem> = errors.collect();
        Self {
            file: file.to_owned(),
            kind: kind.to_owned(),
            name: name.to_owned(),
            valid: errors.is_empty(),
            errors,
        }
    }
}

fn check_skyhook(name: &str, object: &Value) -> Vec<FieldError> {
    let mut errors = schema::check::<skyhook_crds::Skyhook>(object);
    if let Some(spec) = decoded::<SkyhookSpec>(object, &mut errors)
        && let Err(problems) = spec.check(name)
    {
        add(&mut errors, problems);
    }
    errors
}

fn check_policy(object: &Value) -> Vec<FieldError> {
    let mut errors = schema::check::<skyhook_crds::DeploymentPolicy>(object);
    if let Some(spec) = decoded::<DeploymentPolicySpec>(object, &mut errors)
        && let Err(problems) = spec.check()
    {
        add(&mut errors, problems);
    }
    errors
}

/// Adds problems to those that the schema tells. What it says of a field is not said twice.
fn add(errors: &mut Vec<FieldError>, problems: FieldErrors) {
    let known: Vec<String> = errors.iter().map(|error| error.field.clone()).collect();
    let more = problems.0.into_iter();
    errors.extend(more.filter(|problem| !known.contains(&problem.field)));
}

/// The spec, if it can be decoded. Why it cannot is an error, unless there are some already.
fn decoded<T: serde::de::DeserializeOwned>(
    object: &Value,
    errors: &mut Vec<FieldError>,
) -> Option<T> {
    let spec = object.get("spec").cloned().unwrap_or_default();
    match serde_json::from_value(spec) {
        Ok(spec) => Some(spec),
        Err(error) if errors.is_empty() => {
            errors.push(FieldError {
                field: "spec".to_owned(),
                problem: error.to_string(),
            });
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests;
