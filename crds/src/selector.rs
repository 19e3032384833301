//! Checks label selectors.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use crate::admission::words;
use crate::field::Problems;
use crate::names::{is_label_key, is_label_value};

/// The selector, or what Kubernetes refuses in it: the conversion takes more, and such a selector would match no object, or
/// all of them.
pub(crate) fn check(given: &LabelSelector, path: &str, problems: &mut Problems) -> Selector {
    let before = problems.count();
    labels(given, &format!("{path}.matchLabels"), problems);
    let expressions = given.match_expressions.iter().flatten();
    for (at, one) in expressions.enumerate() {
        let path = format!("{path}.matchExpressions[{at}]");
        let values = one.values.as_deref().unwrap_or_default();
        let needs_values = match one.operator.as_str() {
            "In" | "NotIn" => true,
            "Exists" | "DoesNotExist" => false,
            other => {
                problems.add(
                    format!("{path}.operator"),
                    format!("{other:?} is not supported: write In, NotIn, Exists or DoesNotExist"),
                );
                continue;
            }
        };
        if !is_label_key(&one.key) {
            problems.add(format!("{path}.key"), words::LABEL_KEY);
        }
        if needs_values == values.is_empty() {
            problems.add(format!("{path}.values"), words::SELECTOR_VALUES);
        }
        for (at, value) in values.iter().enumerate() {
            label_value(value, format!("{path}.values[{at}]"), problems);
        }
    }
    if problems.count() > before {
        return Selector::default();
    }
    Selector::try_from(given.clone()).unwrap_or_else(|error| {
        problems.add(path, format!("the selector is not valid: {error}"));
        Selector::default()
    })
}

fn labels(given: &LabelSelector, path: &str, problems: &mut Problems) {
    let labels = given.match_labels.iter().flatten();
    let keys = labels.clone().map(|(key, _)| key);
    let wrong: Vec<&String> = keys.filter(|key| !is_label_key(key)).collect();
    if !wrong.is_empty() {
        problems.add(path, format!("{wrong:?}: {}", words::LABEL_KEY));
    }
    for (key, value) in labels {
        label_value(value, format!("{path}[{key}]"), problems);
    }
}

fn label_value(value: &str, path: String, problems: &mut Problems) {
    if !value.is_empty() && !is_label_value(value) {
        problems.add(
            path,
            format!(
                "{value:?} is not a label value: at most 63 characters A-Z, a-z, 0-9, -, _ and ., first and last alphanumeric"
            ),
        );
    }
}
