//! What each value changes in what the chart renders, against files: `make golden` writes them.
#![expect(
    clippy::disallowed_methods,
    reason = "it compares with files and writes them where it is told to"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Map;
use skyhook_integration::source::source;

use super::*;
use crate::values::{accepted, leaves, schema};

const FOLDER: &str = "integration/tests/chart/golden";

/// Compares a file of the repository with what it should be, or writes it where `SKYHOOK_GOLDEN` is `write`.
pub(crate) fn golden(path: &str, text: &str) -> Result<()> {
    let file = source(path);
    if std::env::var_os("SKYHOOK_GOLDEN").is_some_and(|what| what == "write") {
        return Ok(std::fs::write(file, text)?);
    }
    let found = std::fs::read_to_string(file).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).position(|(a, b)| a != b);
    let line = differs.unwrap_or(found.lines().count().min(text.lines().count()));
    ensure!(
        found == text,
        "{path} is stale from line {} on: run `make golden` and look at what changes\n-{}\n+{}",
        line + 1,
        found.lines().nth(line).unwrap_or_default(),
        text.lines().nth(line).unwrap_or_default()
    );
    Ok(())
}

/// Values by their paths, and further arguments of helm.
struct Case {
    values: Map<String, Value>,
    args: Vec<String>,
}

impl Case {
    fn name(&self) -> String {
        let values = self
            .values
            .iter()
            .map(|(path, value)| format!("{path}={value}"));
        let words: Vec<String> = values.chain(self.args.iter().cloned()).collect();
        words.join(" ")
    }

    async fn render(&self) -> Result<Objects> {
        let mut args = self.args.clone();
        for (path, value) in &self.values {
            args.extend(["--set-json".to_owned(), format!("{path}={value}")]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let text = template(&args).await.with_context(|| self.name())?;
        // What is called otherwise is not different for that.
        let ours = "skyhook-skyhook-operator";
        let mut named = text;
        if let Some(name) = self.values.get("fullnameOverride").and_then(Value::as_str) {
            named = named.replace(name, ours);
        }
        if let Some(name) = self.values.get("nameOverride").and_then(Value::as_str) {
            named = named.replace(&format!("skyhook-{name}"), ours);
            let label = |name: &str| format!("app.kubernetes.io/name: {name}\n");
            named = named.replace(&label(name), &label("skyhook-operator"));
        }
        objects(&named)
    }
}

/// Texts of objects by their kinds and names.
type Objects = BTreeMap<String, String>;

/// The objects that helm printed. Of the CRDs only the metadata: what is in them is generated elsewhere. Versions are
/// left out, or each release would change everything.
fn objects(text: &str) -> Result<Objects> {
    let mut objects = Objects::new();
    for document in text.split("\n---\n") {
        let document = document.trim_start_matches("---\n");
        let Ok([object]) = <[Value; 1]>::try_from(documents(document)?) else {
            continue;
        };
        let (kind, name) = (&object["kind"], &object["metadata"]["name"]);
        let namespace = object["metadata"]["namespace"]
            .as_str()
            .unwrap_or("cluster");
        let key = format!(
            "{} {namespace}/{}",
            kind.as_str().context("a kind")?,
            name.as_str().context("a name")?
        );
        let body = if kind == "CustomResourceDefinition" {
            document.split("\nspec:\n").next().unwrap_or_default()
        } else {
            document
        };
        let lines = body
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty() && !line.starts_with("# Source: "));
        let body: Vec<&str> = lines.collect();
        let body = body
            .join("\n")
            .replace(env!("CARGO_PKG_VERSION"), "VERSION");
        let before = objects.insert(key.clone(), body);
        ensure!(before.is_none(), "{key} is there twice");
    }
    Ok(objects)
}

/// What differs between two renderings, object by object.
fn differences(from: &Objects, to: &Objects) -> Result<String> {
    let mut text = String::new();
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    for key in keys {
        let (old, new) = (from.get(key), to.get(key));
        if old == new {
            continue;
        }
        let lines = |body: Option<&String>| -> Vec<String> {
            body.into_iter()
                .flat_map(|body| body.lines())
                .map(str::to_owned)
                .collect()
        };
        let state = match (old, new) {
            (None, _) => " is new",
            (_, None) => " is gone",
            (Some(_), Some(_)) => "",
        };
        writeln!(text, "{key}{state}")?;
        if new.is_some() {
            for line in changed(&lines(old), &lines(new)) {
                writeln!(text, "  {line}")?;
            }
        }
    }
    Ok(text)
}

/// The lines that a longest common subsequence leaves out, with `-` and `+`.
fn changed(old: &[String], new: &[String]) -> Vec<String> {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(format!("-{}", old[i]));
            i += 1;
        } else {
            lines.push(format!("+{}", new[j]));
            j += 1;
        }
    }
    lines
}

fn cases() -> Result<Vec<Case>> {
    let text = std::fs::read_to_string(source(&format!("{FOLDER}/cases.yaml")))?;
    let maps: Vec<Map<String, Value>> = serde_yaml_ng::from_str(&text)?;
    let mut cases = Vec::new();
    for mut values in maps {
        let args = values.remove("args").map(serde_json::from_value);
        let args = args.transpose()?.unwrap_or_default();
        cases.push(Case { values, args });
    }
    Ok(cases)
}

#[tokio::test]
async fn each_value_changes_what_it_says() -> Result<()> {
    if !chart_can_run("each_value_changes_what_it_says").await {
        return Ok(());
    }
    let default = objects(&template(&[]).await?)?;
    let mut text = String::new();
    for (key, body) in &default {
        writeln!(text, "# {key}\n{body}\n---")?;
    }
    golden(&format!("{FOLDER}/default.yaml"), &text)?;

    let mut text = String::new();
    let mut alone = BTreeSet::new();
    let cases = cases()?;
    let rendered = stream::iter(&cases).map(Case::render).buffered(4);
    let rendered: Vec<Objects> = rendered.try_collect().await?;
    for (case, rendered) in cases.iter().zip(&rendered) {
        let differences = differences(&default, rendered)?;
        writeln!(text, "## {}\n{differences}", case.name())?;
        // A value that meets another one may be without effect. Alone, it has one.
        if let [path] = case.values.keys().collect::<Vec<_>>()[..]
            && !differences.is_empty()
        {
            alone.insert(path.clone());
        }
    }
    golden(&format!("{FOLDER}/cases.txt"), &text)?;

    // These do something only together with others, or only for whoever looks at names or at quotes.
    let others = [
        "estimatedPackageCount",
        "fullnameOverride",
        "nameOverride",
        "agent.imageCredentialProviderConfig",
        "agent.imageCredentialProviderBinDir",
        "controllerManager.manager.env.leaderElection",
        "metrics.serviceMonitor.interval",
        "metrics.serviceMonitor.labels",
    ];
    let schema = schema()?;
    let without = accepted()?;
    for path in leaves(&schema)? {
        let is_covered = alone.iter().any(|set| {
            *set == path
                || path.starts_with(&format!("{set}."))
                || set.starts_with(&format!("{path}."))
        });
        ensure!(
            is_covered || others.contains(&path.as_str()) || without.contains_key(&path),
            "cases.yaml has no case in which {path} alone changes something"
        );
    }
    Ok(())
}
