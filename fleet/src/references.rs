//! The names of the Secrets and ConfigMaps that Skyhooks refer to. The agents may read these and no others: the
//! coordinator keeps a Role that lists them. This module is pure.

use std::collections::BTreeSet;

use k8s_openapi::api::rbac::v1::PolicyRule;
use skyhook_crds::revision::RevisionData;

use crate::index::Index;

/// Names in the namespace of the installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    pub secrets: BTreeSet<String>,
    pub config_maps: BTreeSet<String>,
}

impl References {
    /// Collects the names from the current specs of the Skyhooks, from the revisions of existing leases, and from the
    /// revisions that nodes have results of, because an uninstall reads these again. Revisions of Skyhooks that no
    /// longer exist are left out, unless there is another Skyhook of the same name.
    #[must_use]
    pub fn of(index: &Index) -> Self {
        let mut all = Self::default();
        for checked in index.picture.skyhooks().values().flat_map(|s| &s.checked) {
            all.take(&checked.data);
        }
        let leased = index
            .picture
            .leases()
            .values()
            .filter_map(|fact| Some(fact.lease.as_ref().ok()?.spec.revision.as_str()));
        let installed = index
            .picture
            .nodes()
            .values()
            .flat_map(|node| node.records.values())
            .filter_map(|record| Some(record.stamp.as_ref()?.revision.as_str()));
        let names: BTreeSet<&str> = leased.chain(installed).collect();
        for revision in names
            .into_iter()
            .filter_map(|name| index.picture.revisions().get(name))
            .filter(|revision| index.picture.skyhooks().contains_key(&revision.skyhook))
        {
            if let Some(data) = &revision.data {
                all.take(data);
            }
        }
        all
    }

    fn take(&mut self, data: &RevisionData) {
        let sources = data
            .packages
            .values()
            .flat_map(|package| &package.env)
            .filter_map(|variable| variable.value_from.as_ref());
        for source in sources {
            self.secrets.extend(
                source
                    .secret_key_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
            self.config_maps.extend(
                source
                    .config_map_key_ref
                    .iter()
                    .map(|reference| reference.name.clone()),
            );
        }
    }

    /// As rules of a Role. A rule without names would allow every name, so a kind that nobody refers to has no rule.
    #[must_use]
    pub fn rules(&self) -> Vec<PolicyRule> {
        [
            ("secrets", &self.secrets),
            ("configmaps", &self.config_maps),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(resource, names)| PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec![resource.to_owned()]),
            resource_names: Some(names.iter().cloned().collect()),
            verbs: vec!["get".to_owned()],
            ..PolicyRule::default()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::facts::{WireNode, WireSkyhook};
    use crate::index::{Change, Mono};

    fn index(objects: Vec<Change>) -> Index {
        let mut index = Index::default();
        for object in objects {
            index.apply(object, Mono::ZERO);
        }
        index
    }

    fn env(kind: &str, name: &str) -> serde_json::Value {
        json!({"name": "X", "valueFrom": {kind: {"name": name, "key": "k"}}})
    }

    fn skyhook(name: &str, env: &[serde_json::Value]) -> Change {
        let skyhook: WireSkyhook = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"},
            "spec": {"packages": {"pkg": {"version": "1.0.0", "image": "r/pkg", "env": env}}},
        }))
        .expect("a Skyhook");
        Change::Skyhook(Box::new(skyhook))
    }

    fn revision(name: &str, skyhook: &str, env: &[serde_json::Value]) -> Change {
        Change::Revision(Box::new(
            serde_json::from_value(json!({
                "metadata": {
                    "name": name, "uid": name, "resourceVersion": "1",
                    "labels": {"skyhook.nvidia.com/name": skyhook},
                    "annotations": {"skyhook.nvidia.com/owner": "of this Skyhook or of an earlier one"},
                },
                "revision": 1,
                "data": {"packages": {"pkg": {"version": "1.0.0", "image": "r/pkg", "env": env}}},
            }))
            .expect("a revision"),
        ))
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_union_over_skyhooks_and_over_revisions_that_nodes_were_installed_at() {
        let stamped: WireNode = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "a", "resourceVersion": "1", "annotations": {
                "skyhook.nvidia.com/stamp_one":
                    skyhook_crds::installed::Stamp { revision: "one-old".into(), ..Default::default() }.render(),
                "skyhook.nvidia.com/stamp_three":
                    skyhook_crds::installed::Stamp { revision: "three-old".into(), ..Default::default() }.render(),
            }},
        }))
        .expect("a Node");
        let index = index(vec![
            skyhook(
                "one",
                &[env("secretKeyRef", "s1"), env("configMapKeyRef", "m1")],
            ),
            skyhook(
                "two",
                &[
                    env("secretKeyRef", "s2"),
                    json!({"name": "Y", "value": "plain"}),
                ],
            ),
            revision("one-old", "one", &[env("secretKeyRef", "s-old")]),
            revision(
                "one-older",
                "one",
                &[env("secretKeyRef", "nobody-needs-it")],
            ),
            revision(
                "three-old",
                "three",
                &[env("secretKeyRef", "its-skyhook-is-gone")],
            ),
            Change::Node(Box::new(stamped)),
        ]);
        let given = References::of(&index);
        let want = References {
            secrets: names(&["s1", "s2", "s-old"]),
            config_maps: names(&["m1"]),
        };
        assert_eq!(given, want);
    }

    #[test]
    fn a_kind_without_names_has_no_rule() {
        assert_eq!(References::default().rules(), Vec::new());
        let only_secrets = References {
            secrets: names(&["b", "a"]),
            config_maps: BTreeSet::new(),
        };
        let rules = only_secrets.rules();
        assert_eq!(rules.len(), 1);
        assert_eq!(
            rules[0].resource_names,
            Some(vec!["a".to_owned(), "b".to_owned()])
        );
    }
}
