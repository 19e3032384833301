//! Which nodes a command is for: their names, or patterns of names.

use std::collections::BTreeSet;

use regex::Regex;

/// A pattern that is no regular expression.
#[derive(Debug, thiserror::Error)]
#[error("invalid regex pattern {pattern:?}")]
pub(crate) struct InvalidPattern {
    pattern: String,
    #[source]
    source: regex::Error,
}

/// The names that at least one pattern matches, sorted. A pattern with one of the characters `.*+?^${}[]|()\` is a regular
/// expression that has to match the whole name. Any other one is a name.
pub(crate) fn matching<'a>(
    patterns: &[String],
    names: impl IntoIterator<Item = &'a str>,
) -> Result<BTreeSet<String>, InvalidPattern> {
    let mut exact: BTreeSet<&str> = BTreeSet::new();
    let mut expressions = Vec::new();
    for pattern in patterns {
        if pattern.contains(|c| r".*+?^${}[]|()\".contains(c)) {
            let anchored = format!("^(?:{pattern})$");
            expressions.push(Regex::new(&anchored).map_err(|source| InvalidPattern {
                pattern: pattern.clone(),
                source,
            })?);
        } else {
            exact.insert(pattern);
        }
    }
    let is_match = |name: &&str| {
        exact.contains(name)
            || expressions
                .iter()
                .any(|expression| expression.is_match(name))
    };
    let matched = names.into_iter().filter(is_match);
    Ok(matched.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_names_or_anchored_expressions() {
        let names = ["worker-1", "worker-10", "gpu.a", "gpu-a", "cpu"];
        for (patterns, want) in [
            (vec!["worker-1"], vec!["worker-1"]),
            (vec!["worker"], vec![]),
            (vec!["worker-.*"], vec!["worker-1", "worker-10"]),
            (vec!["worker-[0-9]"], vec!["worker-1"]),
            // A name with dots is an expression as well.
            (vec!["gpu.a"], vec!["gpu-a", "gpu.a"]),
            (vec!["cpu|gpu"], vec!["cpu"]),
            (
                vec!["cpu", "worker-1.*"],
                vec!["cpu", "worker-1", "worker-10"],
            ),
        ] {
            let patterns: Vec<String> = patterns.into_iter().map(str::to_owned).collect();
            let given = matching(&patterns, names).unwrap();
            assert_eq!(given.into_iter().collect::<Vec<_>>(), want, "{patterns:?}");
        }
    }

    #[test]
    fn a_wrong_expression_is_named() {
        let error = matching(&["a(".to_owned()], ["a"]).unwrap_err();
        assert_eq!(error.to_string(), r#"invalid regex pattern "a(""#);
    }
}
