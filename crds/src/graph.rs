//! The dependency graph of a Skyhook's packages: is it sound, and what may run next.

use std::collections::{BTreeMap, BTreeSet};

use crate::package::Package;

/// Why the packages cannot be ordered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGraph {
    #[error("spec.packages[{package}].dependsOn: graph is not valid, missing: [{}]", .missing.join(" "))]
    Missing {
        package: String,
        missing: Vec<String>,
    },
    #[error("spec.packages[{package}].dependsOn[{dependency}] is empty: write the version")]
    EmptyVersion { package: String, dependency: String },
    #[error("spec.packages: dependsOn forms a cycle: {}", .path.join(" -> "))]
    Cycle { path: Vec<String> },
}

/// Checks that every dependency exists at its version and that there is no cycle.
pub fn check(packages: &BTreeMap<String, Package>) -> Result<(), InvalidGraph> {
    for (name, package) in packages {
        let mut missing = Vec::new();
        for (dependency, version) in &package.depends_on {
            if version.is_empty() {
                return Err(InvalidGraph::EmptyVersion {
                    package: name.clone(),
                    dependency: dependency.clone(),
                });
            }
            if packages
                .get(dependency)
                .is_none_or(|p| &p.version != version)
            {
                missing.push(crate::package::key(dependency, version));
            }
        }
        if !missing.is_empty() {
            return Err(InvalidGraph::Missing {
                package: name.clone(),
                missing,
            });
        }
    }
    find_cycle(packages).map_or(Ok(()), |path| Err(InvalidGraph::Cycle { path }))
}

/// Packages whose own dependencies are all in `complete`, without those in `complete`; the order of names.
#[must_use]
pub fn runnable<'a>(
    packages: &'a BTreeMap<String, Package>,
    complete: &BTreeSet<String>,
) -> Vec<&'a str> {
    packages
        .iter()
        .filter(|(name, package)| {
            !complete.contains(*name) && package.depends_on.keys().all(|d| complete.contains(d))
        })
        .map(|(name, _)| name.as_str())
        .collect()
}

/// A cycle, as the names along it with the first one repeated at the end.
fn find_cycle(packages: &BTreeMap<String, Package>) -> Option<Vec<String>> {
    let mut complete = BTreeSet::new();
    loop {
        let next: Vec<String> = runnable(packages, &complete)
            .into_iter()
            .map(str::to_owned)
            .collect();
        if next.is_empty() {
            break;
        }
        complete.extend(next);
    }
    // Everything left depends on something left: following one such dependency each must come round.
    let mut at = packages.keys().find(|name| !complete.contains(*name))?;
    let mut path = vec![at.clone()];
    loop {
        at = packages[at]
            .depends_on
            .keys()
            .find(|d| !complete.contains(*d))?;
        let seen = path.iter().position(|name| name == at);
        path.push(at.clone());
        if let Some(start) = seen {
            return Some(path.split_off(start));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packages(edges: &[(&str, &[&str])]) -> BTreeMap<String, Package> {
        edges
            .iter()
            .map(|(name, depends_on)| {
                let package = Package {
                    name: (*name).to_owned(),
                    version: "1.0.0".into(),
                    depends_on: depends_on
                        .iter()
                        .map(|d| ((*d).to_owned(), "1.0.0".to_owned()))
                        .collect(),
                    ..Package::default()
                };
                ((*name).to_owned(), package)
            })
            .collect()
    }

    #[test]
    fn a_package_waits_for_its_own_dependencies_only() {
        let graph = packages(&[("a", &[]), ("b", &["a"]), ("root", &[])]);
        assert_eq!(check(&graph), Ok(()));
        assert_eq!(runnable(&graph, &BTreeSet::new()), ["a", "root"]);
        assert_eq!(runnable(&graph, &["a".to_owned()].into()), ["b", "root"]);
    }

    #[test]
    fn what_cannot_be_ordered_is_named() {
        for (graph, want) in [
            (packages(&[("a", &["a"])]), "a -> a"),
            (
                packages(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]),
                "b -> c -> b",
            ),
            (packages(&[("a", &["x"])]), "missing: [x|1.0.0]"),
        ] {
            let message = check(&graph).unwrap_err().to_string();
            assert!(message.contains(want), "{message:?} does not say {want:?}");
        }
    }

    #[test]
    fn a_dependency_at_another_version_is_missing() {
        let mut graph = packages(&[("a", &[]), ("b", &["a"])]);
        graph.get_mut("a").unwrap().version = "2.0.0".into();
        assert!(
            check(&graph)
                .unwrap_err()
                .to_string()
                .contains("missing: [a|1.0.0]")
        );
    }

    proptest! {
        /// Dependencies on smaller numbers only: no cycle, and running what is runnable reaches everything in order.
        #[test]
        fn acyclic_graphs_run_to_the_end(edges in prop::collection::vec((1_usize..20, 0_usize..20), 0..60)) {
            let mut graph: BTreeMap<String, Package> =
                (0..20).map(|n| (format!("p{n:02}x"), Package { version: "1.0.0".into(), ..Package::default() })).collect();
            for (from, to) in edges {
                if to < from && let Some(package) = graph.get_mut(&format!("p{from:02}x")) {
                    package.depends_on.insert(format!("p{to:02}x"), "1.0.0".into());
                }
            }
            prop_assert_eq!(check(&graph), Ok(()));
            let mut complete = BTreeSet::new();
            while complete.len() < graph.len() {
                let next: Vec<String> = runnable(&graph, &complete).into_iter().map(str::to_owned).collect();
                prop_assert!(!next.is_empty());
                for name in &next {
                    prop_assert!(graph[name].depends_on.keys().all(|d| complete.contains(d)));
                }
                complete.extend(next);
            }
        }

        /// Any graph: either it is sound, or the reported cycle is one.
        #[test]
        fn reported_cycles_are_cycles(edges in prop::collection::vec((0_usize..8, 0_usize..8), 0..20)) {
            let mut graph: BTreeMap<String, Package> =
                (0..8).map(|n| (format!("p{n}x"), Package { version: "1.0.0".into(), ..Package::default() })).collect();
            for (from, to) in edges {
                if let Some(package) = graph.get_mut(&format!("p{from}x")) {
                    package.depends_on.insert(format!("p{to}x"), "1.0.0".into());
                }
            }
            if let Err(InvalidGraph::Cycle { path }) = check(&graph) {
                prop_assert!(path.len() >= 2);
                prop_assert_eq!(path.first(), path.last());
                for pair in path.windows(2) {
                    prop_assert!(graph[&pair[0]].depends_on.contains_key(&pair[1]));
                }
            }
        }
    }
}
