//! Rules for label selectors.

use super::schema::{Rule, Schema, UnknownField, format, text};
use super::words;

/// Keys of labels: an optional prefix, which is a DNS name, and a name.
const KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
    [A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
const LONGEST_KEY: i64 = 253 + 1 + 63;
const VALUE: &str = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$";
const LONGEST_VALUE: i64 = 63;

/// How many of them a selector may have.
pub(super) struct Bounds {
    pub(super) expressions: i64,
    pub(super) values: i64,
}

/// Adds the rules for the selector at `path`.
pub(super) fn add(
    schema: &mut Schema<'_>,
    path: &str,
    bounds: &Bounds,
) -> Result<(), UnknownField> {
    let mut selector = schema.at(path)?;
    let matches = |key: &str| format!("{key}.matches({})", text(KEY));
    // A bound for keys of a map stands in no schema.
    let is_key = format!("(size(k) <= {LONGEST_KEY} && {})", matches("k"));
    let words = format!("%s: {}", words::LABEL_KEY);
    selector.at("matchLabels")?.max_properties(64).rule(
        Rule::new(format!("self.all(k, {is_key})"), words::LABEL_KEY)
            .saying(format(&words, &format!("self.filter(k, !{is_key})"))),
    );
    let value = selector.at("matchLabels{}")?;
    value.max_length(LONGEST_VALUE).pattern(VALUE);
    let has_values =
        "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)";
    let expressions = selector.at("matchExpressions")?;
    expressions.max_items(bounds.expressions);
    let mut expression = selector.at("matchExpressions[]")?;
    let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
    expression.at("operator")?.one_of(&operators);
    let key = expression.at("key")?.max_length(LONGEST_KEY);
    key.rule(Rule::new(matches("self"), words::LABEL_KEY));
    expression.at("values")?.max_items(bounds.values);
    let value = expression.at("values[]")?;
    value.max_length(LONGEST_VALUE).pattern(VALUE);
    expression.rule(Rule::new(has_values, words::SELECTOR_VALUES).about("values"));
    Ok(())
}
