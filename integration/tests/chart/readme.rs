//! The tables of values in the chart's README are made from `values.yaml`, its comments, and the schema.
#![expect(clippy::disallowed_methods, reason = "it reads files of the chart")]

use std::fmt::Write as _;

use skyhook_integration::chart;

use super::*;
use crate::golden::golden;
use crate::values::{accepted, leaves, resolved, schema};

/// A value of `values.yaml`, or a group of them, with the comment above it.
#[derive(Debug, PartialEq)]
struct Entry {
    path: String,
    comment: String,
}

/// Entries in their order. Lines of lists and of what a value holds are entries as well, and are left out by whoever
/// knows the schema.
fn entries(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut comment: Vec<&str> = Vec::new();
    for line in text.lines() {
        let content = line.trim_start();
        let depth = line.len() - content.len();
        if let Some(words) = content.strip_prefix('#') {
            // Examples are indented.
            if !words.starts_with("   ") {
                comment.push(words.trim());
            }
            continue;
        }
        if let Some((key, _)) = content
            .split_once(':')
            .filter(|(key, _)| !key.starts_with('-'))
        {
            above.retain(|(other, _)| *other < depth);
            above.push((depth, key.to_owned()));
            let path: Vec<&str> = above.iter().map(|(_, key)| key.as_str()).collect();
            entries.push(Entry {
                path: path.join("."),
                comment: comment.join(" "),
            });
        }
        comment.clear();
    }
    entries
}

/// The node of the schema at a path.
fn at<'a>(schema: &'a Value, path: &str) -> Result<&'a Value> {
    let mut node = schema;
    for name in path.split('.') {
        node = &resolved(schema, node)?["properties"][name];
    }
    ensure!(node.is_object(), "{path} is not in the schema");
    Ok(node)
}

/// In words, what a value may be.
fn kind(schema: &Value, node: &Value) -> Result<String> {
    let node = resolved(schema, node)?;
    if let Some(words) = node["description"].as_str() {
        return Ok(words.to_owned());
    }
    if let Some(words) = node["enum"].as_array() {
        let words: Vec<String> = words
            .iter()
            .map(|word| format!("`{}`", word.as_str().unwrap_or_default()))
            .collect();
        return Ok(words.join(", "));
    }
    let kinds = match node["type"].as_array() {
        Some(kinds) => kinds.first(),
        None => Some(&node["type"]),
    };
    Ok(match kinds.and_then(Value::as_str).unwrap_or_default() {
        "boolean" => "`true` or `false`",
        "array" => "list",
        "object" => "map",
        other => other,
    }
    .to_owned())
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn tables() -> Result<String> {
    let (schema, accepted) = (schema()?, accepted()?);
    let text = std::fs::read_to_string(chart::path().join("values.yaml"))?;
    let values: Value = serde_yaml_ng::from_str(&text)?;
    let mut undocumented: BTreeSet<String> = leaves(&schema)?.into_iter().collect();
    let mut table =
        String::from("| value | what it may be | default | what it does |\n|---|---|---|---|\n");
    for Entry { path, comment } in entries(&text) {
        let is_inside = undocumented.iter().all(|leaf| !leaf.starts_with(&path));
        if is_inside {
            continue;
        }
        if undocumented.remove(&path) {
            let pointer = format!("/{}", path.replace('.', "/"));
            let default = values.pointer(&pointer).context("a default")?;
            let kind = kind(&schema, at(&schema, &path)?)?;
            writeln!(
                table,
                "| `{path}` | {} | `{}` | {} |",
                cell(&kind),
                cell(&default.to_string()),
                cell(&comment)
            )?;
        } else if !comment.is_empty() {
            writeln!(table, "| **`{path}`** | | | {} |", cell(&comment))?;
        }
    }
    let unknown: Vec<&String> = undocumented
        .iter()
        .filter(|path| !accepted.contains_key(*path))
        .collect();
    ensure!(unknown.is_empty(), "not in values.yaml: {unknown:?}");

    table.push_str("\nThese are accepted, and have no effect:\n\n| value | because |\n|---|---|\n");
    for (path, why) in accepted {
        writeln!(table, "| `{path}` | {} |", cell(&why))?;
    }
    Ok(table)
}

#[test]
fn the_readme_has_the_values_of_the_chart() -> Result<()> {
    let path = "helm/skyhook-operator/README.md";
    let text = std::fs::read_to_string(skyhook_integration::source::source(path))?;
    let (begin, end) = (
        "<!-- values: begin, by `make golden` -->\n",
        "<!-- values: end -->",
    );
    let (before, rest) = text.split_once(begin).context("where the tables begin")?;
    let (_, after) = rest.split_once(end).context("where the tables end")?;
    golden(path, &format!("{before}{begin}{}{end}{after}", tables()?))
}

#[test]
fn comments_belong_to_what_is_below_them() {
    let text = "# All of it.\na:\n  # One,\n  # and two.\n  #   - example\n  b: 1\n\n  c:\n    - d: 2\n# Lost.\n\ne: {f: 3}\n";
    let entry = |path: &str, comment: &str| Entry {
        path: path.to_owned(),
        comment: comment.to_owned(),
    };
    let want = [
        entry("a", "All of it."),
        entry("a.b", "One, and two."),
        entry("a.c", ""),
        entry("e", ""),
    ];
    assert_eq!(entries(text), want);
}
