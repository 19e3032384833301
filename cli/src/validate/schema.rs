//! Checks an object against the schema of its CustomResourceDefinition, as the API server does, but for rules in CEL: what
//! these say, the checks of the API's own types say as well.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;
use regex::Regex;
use serde_json::Value;
use skyhook_crds::field::FieldError;

/// Everything in an object's spec that its schema does not allow.
pub(super) fn check<K: CustomResourceExt>(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let crd = K::crd();
    let schemas = crd.spec.versions.iter();
    let schema = schemas.filter_map(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
    let fields = schema.filter_map(|schema| schema.properties.as_ref()?.get("spec"));
    for spec in fields {
        match object.get("spec") {
            Some(value) => walk(spec, value, "spec", &mut errors),
            None => add(&mut errors, "spec", "is missing".to_owned()),
        }
    }
    errors
}

fn add(errors: &mut Vec<FieldError>, field: &str, problem: String) {
    let field = field.to_owned();
    errors.push(FieldError { field, problem });
}

fn walk(schema: &JSONSchemaProps, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if value.is_null() && schema.nullable == Some(true) {
        return;
    }
    if let Some(problem) = wrong_type(schema, value) {
        return add(errors, path, problem);
    }
    if let Some(allowed) = &schema.enum_
        && !allowed.iter().any(|one| one.0 == *value)
    {
        let allowed: Vec<String> = allowed.iter().map(|one| one.0.to_string()).collect();
        add(
            errors,
            path,
            format!("is {value}: it must be one of {}", allowed.join(", ")),
        );
    }
    match value {
        Value::Object(fields) => {
            for name in schema.required.iter().flatten() {
                if !fields.contains_key(name) {
                    add(errors, &format!("{path}.{name}"), "is missing".to_owned());
                }
            }
            for (name, field) in fields {
                of_field(schema, name, field, path, errors);
            }
        }
        Value::Array(items) => {
            let longest = schema
                .max_items
                .and_then(|longest| usize::try_from(longest).ok());
            if longest.is_some_and(|longest| items.len() > longest) {
                let longest = longest.unwrap_or_default();
                add(
                    errors,
                    path,
                    format!(
                        "has {} items, and at most {longest} are allowed",
                        items.len()
                    ),
                );
            }
            if let Some(JSONSchemaPropsOrArray::Schema(inner)) = &schema.items {
                for (at, item) in items.iter().enumerate() {
                    walk(inner, item, &format!("{path}[{at}]"), errors);
                }
            }
        }
        Value::String(text) => of_text(schema, text, path, errors),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            if let Some(least) = schema.minimum.filter(|least| number < *least) {
                add(
                    errors,
                    path,
                    format!("is {value}: it must be at least {least}"),
                );
            }
            if let Some(most) = schema.maximum.filter(|most| number > *most) {
                add(
                    errors,
                    path,
                    format!("is {value}: it must be at most {most}"),
                );
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

/// A field of an object.
fn of_field(
    schema: &JSONSchemaProps,
    name: &str,
    field: &Value,
    path: &str,
    errors: &mut Vec<FieldError>,
) {
    let known = schema.properties.as_ref().and_then(|known| known.get(name));
    match (known, &schema.additional_properties) {
        (Some(inner), _) => walk(inner, field, &format!("{path}.{name}"), errors),
        (None, Some(JSONSchemaPropsOrBool::Schema(inner))) => {
            walk(inner, field, &format!("{path}[{name}]"), errors);
        }
        (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
        (None, _) if schema.x_kubernetes_preserve_unknown_fields == Some(true) => {}
        (None, _) if schema.properties.is_none() && schema.additional_properties.is_none() => {}
        (None, _) => {
            let mut problem = "there is no such field".to_owned();
            let names = schema
                .properties
                .iter()
                .flatten()
                .map(|(known, _)| known.as_str());
            let near = names
                .into_iter()
                .find(|known| known.eq_ignore_ascii_case(name));
            if let Some(near) = near {
                problem.push_str(&format!("; is {near} meant?"));
            }
            add(errors, &format!("{path}.{name}"), problem);
        }
    }
}

fn of_text(schema: &JSONSchemaProps, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if let Some(least) = schema.min_length.filter(|least| length < *least) {
        add(
            errors,
            path,
            format!("must have at least {least} characters"),
        );
    }
    if let Some(most) = schema.max_length.filter(|most| length > *most) {
        add(
            errors,
            path,
            format!("has {length} characters, and at most {most} are allowed"),
        );
    }
    let pattern = schema.pattern.as_deref();
    let expression = pattern.and_then(|pattern| Regex::new(pattern).ok());
    if let (Some(pattern), Some(expression)) = (pattern, expression)
        && !expression.is_match(text)
    {
        let pattern = pattern.to_owned();
        add(
            errors,
            path,
            format!("is {text:?}: it must match {pattern}"),
        );
    }
}

/// What is wrong with the type of a value.
fn wrong_type(schema: &JSONSchemaProps, value: &Value) -> Option<String> {
    let either = schema.x_kubernetes_int_or_string == Some(true);
    let wanted = if either {
        "integer or string"
    } else {
        schema.type_.as_deref()?
    };
    let fits = match (wanted, value) {
        ("object", value) => value.is_object(),
        ("array", value) => value.is_array(),
        ("string", value) => value.is_string(),
        ("boolean", value) => value.is_boolean(),
        ("number", value) => value.is_number(),
        ("integer", value) => value.is_i64() || value.is_u64(),
        (_, value) => value.is_string() || value.is_i64() || value.is_u64(),
    };
    let given = match value {
        Value::Null => "empty".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
    };
    (!fits).then(|| format!("is {given}: it must be of type {wanted}"))
}
