//! `package status`: how far a package is on each node.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::{Client, ResourceExt as _};
use serde::Serialize;
use skyhook_crds::Skyhook;

use super::node;
use crate::output::{Format, table};
use crate::patterns::matching;
use crate::record::{Entry, Read};
use crate::session::{Session, said};

/// A Skyhook by name.
pub(crate) async fn skyhook(client: &Client, name: &str) -> Result<Skyhook> {
    let api: Api<Skyhook> = Api::all(client.clone());
    let found = api.get(name).await.map_err(said);
    found.with_context(|| format!("getting skyhook {name:?}"))
}

/// Runs `package status`.
pub(crate) async fn status(
    session: &mut Session<'_>,
    package: &str,
    name: &str,
    patterns: &[String],
) -> Result<()> {
    let format = session.global.format()?;
    let client = session.client().await?;
    let skyhook = skyhook(&client, name).await?;
    let nodes = node::all(&client).await?;
    session.print(&shown(&skyhook, package, &nodes, patterns, format)?)
}

/// An entry, and the node that has it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    entry: Entry,
    #[serde(rename = "nodeName")]
    node_name: String,
}

fn shown(
    skyhook: &Skyhook,
    package: &str,
    nodes: &[Node],
    patterns: &[String],
    format: Format,
) -> Result<String> {
    let name = skyhook.name_any();
    let mut all: Vec<Shown> = nodes
        .iter()
        .filter_map(|node| Some((node.name_any(), Read::of(node, &name).entries()?)))
        .flat_map(|(node_name, record)| {
            let entries = record.into_values().filter(|entry| entry.name == package);
            entries.map(move |entry| Shown {
                // Fields that this version does not know are no part of the output.
                entry: Entry {
                    rest: serde_json::Map::new(),
                    ..entry
                },
                node_name: node_name.clone(),
            })
        })
        .collect();
    if !patterns.is_empty() {
        let names: BTreeSet<String> = all.iter().map(|one| one.node_name.clone()).collect();
        let matched =
            matching(patterns, names.iter().map(String::as_str)).context("matching nodes")?;
        all.retain(|one| matched.contains(&one.node_name));
    }
    all.sort_by(|a, b| (&a.node_name, &a.entry.version).cmp(&(&b.node_name, &b.entry.version)));
    if all.is_empty() {
        return Ok(format!("No package status found for skyhook {name:?}\n"));
    }
    if let Some(data) = format.data(&all)? {
        return Ok(data);
    }
    let wide = format == Format::Wide;
    let mut header = vec!["NODE", "PACKAGE", "VERSION", "STAGE", "STATE"];
    if wide {
        header.extend(["RESTARTS", "IMAGE"]);
    }
    let rows = all.into_iter().map(|Shown { entry, node_name }| {
        let mut row = vec![
            node_name,
            entry.name,
            entry.version,
            entry.stage,
            entry.state,
        ];
        if wide {
            row.extend([entry.restarts.to_string(), entry.image]);
        }
        row
    });
    let packages = skyhook.spec.package_list().replace(',', ", ");
    let rows = table(&header, &rows.collect::<Vec<_>>());
    Ok(format!("Skyhook: {name}\nPackages: {packages}\n\n{rows}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{self, node, record};

    fn fleet() -> Vec<Node> {
        let failing = concat!(
            r#"{"aa|1.2.3":{"name":"aa","version":"1.2.3","image":"r/aa","containerSHA":"sha256:00","stage":"apply","#,
            r#""state":"erroring","restarts":3,"future":1}}"#
        );
        vec![
            node("worker-2", &[("nodeState_gpu-init", failing)], &[]),
            node(
                "worker-1",
                &[(
                    "nodeState_gpu-init",
                    &record("aa 1.2.3 config complete, bb 2.0 apply in_progress"),
                )],
                &[],
            ),
            node(
                "worker-3",
                &[("nodeState_other", &record("aa 1.2.3 config complete"))],
                &[],
            ),
        ]
    }

    fn gpu_init() -> Skyhook {
        let package = |version: &str| json!({ "version": version, "image": "r" });
        let spec = json!({ "packages": { "bb": package("2.0"), "aa": package("1.2.3") } });
        testing::skyhook("gpu-init", &spec, &json!(null))
    }

    #[test]
    fn the_status_of_a_package() {
        let head = "Skyhook: gpu-init\nPackages: aa:1.2.3, bb:2.0\n\n";
        let table = "\
NODE      PACKAGE  VERSION  STAGE   STATE
----      -------  -------  -----   -----
worker-1  aa       1.2.3    config  complete
worker-2  aa       1.2.3    apply   erroring
";
        let wide = "\
NODE      PACKAGE  VERSION  STAGE   STATE     RESTARTS  IMAGE
----      -------  -------  -----   -----     --------  -----
worker-1  aa       1.2.3    config  complete  0         r/aa
worker-2  aa       1.2.3    apply   erroring  3         r/aa
";
        let json = r#"[
  {
    "name": "aa",
    "version": "1.2.3",
    "image": "r/aa",
    "containerSHA": "sha256:00",
    "stage": "apply",
    "state": "erroring",
    "restarts": 3,
    "nodeName": "worker-2"
  }
]
"#;
        let yaml = "\
- image: r/bb
  name: bb
  nodeName: worker-1
  stage: apply
  state: in_progress
  version: \"2.0\"
";
        let given = |package: &str, patterns: &[&str], format| {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            shown(&gpu_init(), package, &fleet(), &patterns, format).unwrap()
        };
        assert_eq!(given("aa", &[], Format::Table), format!("{head}{table}"));
        assert_eq!(
            given("aa", &["worker-.*"], Format::Wide),
            format!("{head}{wide}")
        );
        assert_eq!(given("aa", &["worker-2"], Format::Json), json);
        assert_eq!(given("bb", &[], Format::Yaml), yaml);
        let nothing = "No package status found for skyhook \"gpu-init\"\n";
        assert_eq!(given("cc", &[], Format::Table), nothing);
        assert_eq!(given("aa", &["worker-3"], Format::Table), nothing);
    }
}
