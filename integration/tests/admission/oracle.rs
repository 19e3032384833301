//! The rules of a CRD, run by the crate kube-cel, and the rest of its schema. kube-cel runs the rules alone.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube_cel::{CompiledSchema, Validator, compile_schema};
use serde_json::Value;
use skyhook_crds::field::FieldError;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) field: String,
    pub(super) message: String,
}

impl Problem {
    pub(super) fn new(field: &str, message: &str) -> Self {
        Self {
            field: plain(field),
            message: message.to_owned(),
        }
    }
}

impl From<&FieldError> for Problem {
    fn from(error: &FieldError) -> Self {
        Self::new(&error.field, &error.problem)
    }
}

/// The path of a field with dots alone: the API server writes `a.b` and `a[b]` for the same field.
fn plain(path: &str) -> String {
    path.replace('[', ".").replace(['"', ']'], "")
}

pub(super) struct Oracle {
    schema: Value,
    compiled: CompiledSchema,
    validator: Validator,
}

impl Oracle {
    pub(super) fn new(crd: &CustomResourceDefinition) -> Result<Self> {
        let schema = crd.spec.versions[0].schema.as_ref();
        let schema = schema.and_then(|schema| schema.open_api_v3_schema.as_ref());
        let schema = serde_json::to_value(schema.context("a schema")?)?;
        let compiled = compile_schema(&schema);
        Ok(Self {
            schema,
            compiled,
            validator: Validator::new(),
        })
    }

    /// The rules that the object breaks, and everything that is wrong with it.
    pub(super) fn problems(&self, object: &Value) -> (Vec<String>, Vec<Problem>) {
        let mut object = object.clone();
        // The API server prunes what it does not know, and nulls count as absent.
        strip_nulls(&mut object);
        let mut problems = Vec::new();
        walk(&self.schema, &object, "", &mut problems);
        let outcome = self
            .validator
            .validate_compiled(&self.compiled, &object, None);
        let broken = outcome
            .err()
            .map_or_else(Vec::new, kube_cel::ValidationErrors::into_vec);
        problems.extend(
            broken
                .iter()
                .map(|one| Problem::new(&one.field_path, &one.message)),
        );
        (broken.into_iter().map(|one| one.rule).collect(), problems)
    }

    /// The rules that a change breaks.
    pub(super) fn change(&self, old: &Value, new: &Value) -> Vec<String> {
        let outcome = self
            .validator
            .validate_compiled(&self.compiled, new, Some(old));
        let broken = outcome
            .err()
            .map_or_else(Vec::new, kube_cel::ValidationErrors::into_vec);
        broken.into_iter().map(|one| one.message).collect()
    }

    /// All rules of the CRD.
    pub(super) fn rules(&self) -> BTreeSet<String> {
        let mut rules = BTreeSet::new();
        collect(&self.schema, &mut rules);
        rules
    }
}

fn collect(schema: &Value, rules: &mut BTreeSet<String>) {
    match schema {
        Value::Object(fields) => {
            let here = fields
                .get("x-kubernetes-validations")
                .and_then(Value::as_array);
            let here = here.into_iter().flatten();
            rules.extend(here.filter_map(|rule| rule["rule"].as_str().map(str::to_owned)));
            fields.values().for_each(|below| collect(below, rules));
        }
        Value::Array(items) => items.iter().for_each(|below| collect(below, rules)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn strip_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(strip_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Checks types, enumerations, lengths, numbers, patterns and required fields.
fn walk(schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let mut wrong = |what: &str| problems.push(Problem::new(path, &format!("breaks {what}")));
    let size = |bound: &str| schema[bound].as_u64().and_then(|n| usize::try_from(n).ok());
    let is_int_or_string = schema["x-kubernetes-int-or-string"] == true;
    let fits = match value {
        Value::Object(fields) => {
            if size("maxProperties").is_some_and(|most| fields.len() > most) {
                wrong("maxProperties");
            }
            schema["type"] == "object"
        }
        Value::Array(items) => {
            if size("maxItems").is_some_and(|most| items.len() > most) {
                wrong("maxItems");
            }
            schema["type"] == "array"
        }
        Value::String(text) => {
            let length = text.chars().count();
            if size("maxLength").is_some_and(|most| length > most) {
                wrong("maxLength");
            }
            if size("minLength").is_some_and(|least| length < least) {
                wrong("minLength");
            }
            let pattern = schema["pattern"].as_str();
            let regex =
                pattern.map(|pattern| regex::Regex::new(pattern).expect("a pattern of ours"));
            if regex.is_some_and(|regex| !regex.is_match(text)) {
                wrong("pattern");
            }
            schema["type"] == "string" || is_int_or_string
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if schema["minimum"]
                .as_f64()
                .is_some_and(|least| number < least)
            {
                wrong("minimum");
            }
            if schema["maximum"].as_f64().is_some_and(|most| number > most) {
                wrong("maximum");
            }
            schema["type"] == "integer" || schema["type"] == "number" || is_int_or_string
        }
        Value::Bool(_) => schema["type"] == "boolean",
        Value::Null => true,
    };
    if !fits {
        wrong("type");
    }
    let allowed = schema["enum"].as_array();
    if allowed.is_some_and(|allowed| !allowed.contains(value)) {
        wrong("enum");
    }
    let required = schema["required"].as_array().into_iter().flatten();
    for field in required.filter_map(Value::as_str) {
        if value.is_object() && value.get(field).is_none() {
            wrong(&format!("required {field}"));
        }
    }
    for (key, value) in value.as_object().into_iter().flatten() {
        let below = match schema["properties"].get(key) {
            Some(property) => property,
            None => &schema["additionalProperties"],
        };
        if below.is_object() {
            walk(below, value, &format!("{path}.{key}"), problems);
        }
    }
    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
        walk(&schema["items"], item, &format!("{path}.{at}"), problems);
    }
}
