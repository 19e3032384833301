//! The dependency graph of a Skyhook's packages: is it sound, and what may run next.

use std::collections::{BTreeMap, BTreeSet};

use crate::admission::words;
use crate::field::Problems;
use crate::package::Package;

/// Checks that every dependency exists at its version and that there is no cycle.
pub(crate) fn check(packages: &BTreeMap<String, Package>, problems: &mut Problems) {
    let missing: Vec<Vec<String>> = packages
        .iter()
        .map(|(name, package)| missing(name, package, packages))
        .filter(|missing| !missing.is_empty())
        .collect();
    if !missing.is_empty() {
        problems.add("spec.packages", words::with(words::MISSING, &missing));
    }
    if let Some(cycle) = find_cycle(packages) {
        let path = cycle.join(" -> ");
        problems.add("spec.packages", words::CYCLE.replace("%s", &path));
    }
}

fn missing(name: &str, package: &Package, packages: &BTreeMap<String, Package>) -> Vec<String> {
    let is_there = |(dependency, version): &(&String, &String)| {
        let found = packages.get(*dependency);
        found.is_some_and(|found| found.version == **version)
    };
    let missing = package.depends_on.iter().filter(|one| !is_there(one));
    missing
        .map(|(dependency, version)| {
            format!("{name} needs {}", crate::package::key(dependency, version))
        })
        .collect()
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

/// A cycle, as the names along it with the first one repeated at the end. Dependencies that do not exist are in none.
fn find_cycle(packages: &BTreeMap<String, Package>) -> Option<Vec<String>> {
    let mut complete: BTreeSet<&String> = BTreeSet::new();
    let waits_for = |name: &String, complete: &BTreeSet<&String>| {
        let mut all = packages[name].depends_on.keys();
        all.find(|d| packages.contains_key(*d) && !complete.contains(*d))
    };
    loop {
        let left = packages.keys().filter(|name| !complete.contains(*name));
        let next: Vec<&String> = left
            .filter(|name| waits_for(name, &complete).is_none())
            .collect();
        if next.is_empty() {
            break;
        }
        complete.extend(next);
    }
    // Everything left depends on something left: following one such dependency each must come round.
    let mut at = packages.keys().find(|name| !complete.contains(name))?;
    let mut path = vec![at.clone()];
    loop {
        at = waits_for(at, &complete)?;
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

    fn problems(graph: &BTreeMap<String, Package>) -> Vec<String> {
        let mut problems = Problems::default();
        check(graph, &mut problems);
        let found = problems.or(());
        found.map_or_else(
            |errors| errors.0.iter().map(|e| e.problem.clone()).collect(),
            |()| Vec::new(),
        )
    }

    #[test]
    fn a_package_waits_for_its_own_dependencies_only() {
        let graph = packages(&[("a", &[]), ("b", &["a"]), ("root", &[])]);
        assert_eq!(problems(&graph), [""; 0]);
        assert_eq!(runnable(&graph, &BTreeSet::new()), ["a", "root"]);
        assert_eq!(runnable(&graph, &["a".to_owned()].into()), ["b", "root"]);
    }

    #[test]
    fn what_cannot_be_ordered_is_named() {
        let cycle = |path: &str| format!("dependsOn forms a cycle: {path}");
        let missing = |list: &str| format!("graph is not valid, missing: {list}");
        for (graph, want) in [
            (packages(&[("a", &["a"])]), vec![cycle("a -> a")]),
            (
                packages(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])]),
                vec![cycle("b -> c -> b")],
            ),
            (
                packages(&[("a", &["x", "y"]), ("b", &["y"])]),
                vec![missing(
                    r#"[["a needs x|1.0.0", "a needs y|1.0.0"], ["b needs y|1.0.0"]]"#,
                )],
            ),
            (
                packages(&[("a", &["b", "x"]), ("b", &["a"])]),
                vec![missing(r#"[["a needs x|1.0.0"]]"#), cycle("a -> b -> a")],
            ),
        ] {
            assert_eq!(problems(&graph), want);
        }
    }

    #[test]
    fn a_dependency_at_another_version_is_missing() {
        let mut graph = packages(&[("a", &[]), ("b", &["a"])]);
        graph.get_mut("a").unwrap().version = "2.0.0".into();
        let want = r#"graph is not valid, missing: [["b needs a|1.0.0"]]"#;
        assert_eq!(problems(&graph), [want]);
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
            prop_assert_eq!(problems(&graph), [""; 0]);
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
            if let Some(path) = find_cycle(&graph) {
                prop_assert!(path.len() >= 2);
                prop_assert_eq!(path.first(), path.last());
                for pair in path.windows(2) {
                    prop_assert!(graph[&pair[0]].depends_on.contains_key(&pair[1]));
                }
            }
        }
    }
}
