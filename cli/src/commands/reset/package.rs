//! `reset --package`: one package runs again on each node.

use skyhook_crds::package::name_of;

use super::*;

/// The package that is reset, of one version or of any.
#[derive(Debug, PartialEq, Eq)]
struct Wanted<'a> {
    name: &'a str,
    version: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let (name, version) = match text.split_once(':') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        if name.is_empty() || version.is_some_and(str::is_empty) {
            bail!("invalid --package {text:?}: write NAME or NAME:VERSION");
        }
        Ok(Self { name, version })
    }

    /// The keys of the entries that are of the package, and whether the version is the wanted one.
    fn keys<'r>(&self, record: &'r Record) -> Vec<(&'r String, bool)> {
        let ours = record.iter().filter(|(key, _)| name_of(key) == self.name);
        ours.map(|(key, entry)| {
            let fits = self.version.is_none_or(|version| entry.version == version);
            (key, fits)
        })
        .collect()
    }

    /// The record without the package; `None` if it has no such entry.
    fn removed_from(&self, record: &Record) -> Option<Record> {
        let keys = self.keys(record);
        let keys: Vec<&String> = keys
            .iter()
            .filter(|(_, fits)| *fits)
            .map(|(key, _)| *key)
            .collect();
        if keys.is_empty() {
            return None;
        }
        let mut left = record.clone();
        left.retain(|key, _| !keys.contains(&key));
        Some(left)
    }
}

pub(super) async fn run(
    session: &mut Session<'_>,
    skyhook: &str,
    package: &str,
    confirm: Confirm,
) -> Result<()> {
    let wanted = Wanted::parse(package)?;
    let client = session.client().await?;
    let (nodes, text) = chosen(skyhook, &wanted, node::all(&client).await?);
    session.print(&text)?;
    if nodes.is_empty() {
        return session.print(&format!(
            "no matching package {package:?} on the nodes of Skyhook {skyhook:?}\n"
        ));
    }
    let names: Vec<String> = nodes.iter().map(Node::name_any).collect();
    leases::say(session, &client, skyhook, &names).await?;
    if session.global.dry_run {
        return session.print("\n[dry-run] No changes applied\n");
    }
    let question = format!(
        "\nThis will remove the state of package {package:?} on {} node(s), and the package will re-run from the \
         beginning.\nContinue? [y/N]: ",
        nodes.len()
    );
    if !confirm.confirm && !session.ask_yes(&question)? {
        return session.print("Aborted\n");
    }
    let outcome = edit::nodes(&client, nodes, |node| change(node, skyhook, &wanted)).await;
    session.print(&outcome.problems("Errors resetting some nodes:"))?;
    if outcome.done > 0 {
        let done = outcome.done;
        let name = wanted.name;
        session.print(&format!(
            "\nSuccessfully reset package {name:?} on {done} node(s) for Skyhook {skyhook:?}\n"
        ))?;
    }
    outcome.result()
}

/// The nodes with the package, and what is said about them.
fn chosen(skyhook: &str, wanted: &Wanted<'_>, nodes: Vec<Node>) -> (Vec<Node>, String) {
    let mut chosen = Vec::new();
    let mut text = format!("Skyhook: {skyhook}\n");
    let mut sorted = nodes;
    sorted.sort_by_key(Node::name_any);
    for node in sorted {
        let Some(record) = Read::of(&node, skyhook).entries() else {
            continue;
        };
        let name = node.name_any();
        let keys = wanted.keys(&record);
        if keys.is_empty() {
            continue;
        }
        if record::is_newer(&node, skyhook) {
            text.push_str(&newer(&name));
            text.push('\n');
        } else if keys.iter().any(|(_, fits)| *fits) {
            chosen.push(node);
        } else {
            let has: Vec<&str> = keys
                .iter()
                .map(|(key, _)| record[*key].version.as_str())
                .collect();
            let target = wanted.version.unwrap_or_default();
            text.push_str(&format!(
                "node {name:?}: has {} at version {:?}; skipping (target was {target:?})\n",
                wanted.name,
                has.join(", ")
            ));
        }
    }
    if !chosen.is_empty() {
        let version = wanted.version.map(|version| format!(":{version}"));
        text.push_str(&format!(
            "Package: {}{}\nNodes to reset ({}):\n",
            wanted.name,
            version.unwrap_or_default(),
            chosen.len()
        ));
        for node in &chosen {
            text.push_str(&format!("  - {}\n", node.name_any()));
        }
    }
    (chosen, text)
}

fn change(node: &Node, skyhook: &str, wanted: &Wanted<'_>) -> Result<Option<Value>> {
    let record = Read::of(node, skyhook).entries().unwrap_or_default();
    let left = wanted.removed_from(&record);
    left.map(|left| with_record(skyhook, &left)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{node, record};

    #[test]
    fn a_package_is_given_with_or_without_its_version() {
        let wanted = |name, version| Some(Wanted { name, version });
        for (text, want) in [
            ("a", wanted("a", None)),
            ("a:1.0", wanted("a", Some("1.0"))),
            (":1.0", None),
            ("a:", None),
            ("", None),
        ] {
            assert_eq!(Wanted::parse(text).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn only_the_package_goes_and_the_last_one_takes_the_record_along() {
        let key = names::node_state("s");
        for (what, before, package, after) in [
            (
                "one of two",
                "aa 1 apply complete, bb 2 config complete",
                "aa",
                Some(Some("bb 2 config complete")),
            ),
            ("the last", "aa 1 apply complete", "aa:1", Some(None)),
            ("another version", "aa 1 apply complete", "aa:9", None),
            (
                "all versions",
                "aa 1 uninstall in_progress, aa 2 apply skipped",
                "aa",
                Some(None),
            ),
            (
                "a name that begins alike",
                "aab 1 apply complete",
                "aa",
                None,
            ),
        ] {
            let node = node(
                "n",
                &[("nodeState_s", &record(before)), ("nodeState_t", "{}")],
                &[],
            );
            let wanted = Wanted::parse(package).unwrap();
            let given = change(&node, "s", &wanted).unwrap();
            let want = after
                .map(|after| json!({ "metadata": { "annotations": { &key: after.map(record) } } }));
            assert_eq!(given, want, "{what}");
        }
    }

    #[test]
    fn nodes_with_another_version_are_reported() {
        let one = |name: &str, entries: &str| node(name, &[("nodeState_s", &record(entries))], &[]);
        let nodes = vec![
            one("n3", "pkg1 1.0 apply complete"),
            one("n1", "pkg1 1.0 apply complete, pkg2 2.0 config complete"),
            one("n2", "pkg1 0.9 apply complete"),
            one("n4", "pkg2 2.0 config complete"),
        ];
        let wanted = Wanted::parse("pkg1:1.0").unwrap();
        let (chosen, text) = chosen("demo", &wanted, nodes.clone());
        assert_eq!((chosen.len(), text.as_str()), (0, "Skyhook: demo\n"));
        let (chosen, text) = super::chosen("s", &wanted, nodes);
        let names: Vec<String> = chosen.iter().map(Node::name_any).collect();
        assert_eq!(names, ["n1", "n3"]);
        let want = "\
Skyhook: s
node \"n2\": has pkg1 at version \"0.9\"; skipping (target was \"1.0\")
Package: pkg1:1.0
Nodes to reset (2):
  - n1
  - n3
";
        assert_eq!(text, want);
    }
}
