//! Everything that is wrong with a Skyhook. [`SkyhookSpec::check`] ends at the first mistake, so it is asked about parts of
//! the spec: the mistake in one part hides none in another.

use std::collections::BTreeMap;

use skyhook_crds::SkyhookSpec;
use skyhook_crds::field::FieldError;
use skyhook_crds::package::Package;
use skyhook_crds::skyhook::DrainConfig;

/// All mistakes.
pub(super) fn problems(name: &str, spec: &SkyhookSpec) -> Vec<FieldError> {
    let mut all = Vec::new();
    let whole = parts(spec).into_iter().chain([spec.clone()]);
    for part in whole {
        if let Err(problem) = part.check(name) {
            all.push(told(&problem.to_string()));
        }
    }
    all.sort();
    all.dedup();
    all
}

/// The spec in parts. Each is sound if the part of the spec that it has is.
fn parts(spec: &SkyhookSpec) -> Vec<SkyhookSpec> {
    let mut parts = vec![
        SkyhookSpec {
            interruption_budget: spec.interruption_budget.clone(),
            deployment_policy: spec.deployment_policy.clone(),
            ..SkyhookSpec::default()
        },
        SkyhookSpec {
            node_selectors: spec.node_selectors.clone(),
            ..SkyhookSpec::default()
        },
        SkyhookSpec {
            pod_non_interrupt_labels: spec.pod_non_interrupt_labels.clone(),
            ..SkyhookSpec::default()
        },
    ];
    if let Some(drain) = &spec.drain_config {
        let of_drain = |drain| SkyhookSpec {
            drain_config: Some(drain),
            ..SkyhookSpec::default()
        };
        parts.extend([
            of_drain(DrainConfig {
                timeout: drain.timeout.clone(),
                ..DrainConfig::default()
            }),
            of_drain(DrainConfig {
                grace_period: drain.grace_period.clone(),
                ..DrainConfig::default()
            }),
            of_drain(DrainConfig {
                pod_selector: drain.pod_selector.clone(),
                ..DrainConfig::default()
            }),
        ]);
    }
    let with = |packages| SkyhookSpec {
        packages,
        ..SkyhookSpec::default()
    };
    for (key, package) in &spec.packages {
        let alone = Package {
            depends_on: BTreeMap::new(),
            ..package.clone()
        };
        parts.push(with([(key.clone(), alone)].into()));
        parts.push(with(graph(spec, |other| other == key)));
    }
    parts.push(with(graph(spec, |_| true)));
    parts
}

/// The packages with their versions alone, and the dependencies of some of them.
fn graph(
    spec: &SkyhookSpec,
    with_dependencies: impl Fn(&str) -> bool,
) -> BTreeMap<String, Package> {
    let packages = spec.packages.iter().map(|(key, package)| {
        let depends_on = if with_dependencies(key) {
            package.depends_on.clone()
        } else {
            BTreeMap::new()
        };
        let bare = Package {
            version: package.version.clone(),
            image: "image".to_owned(),
            depends_on,
            ..Package::default()
        };
        (key.clone(), bare)
    });
    packages.collect()
}

/// A message as the field that it begins with, and the rest.
fn told(message: &str) -> FieldError {
    let mut depth = 0_usize;
    let mut quoted = false;
    let mut end = 0;
    for (at, character) in message.char_indices() {
        match character {
            '"' if depth > 0 => quoted = !quoted,
            '[' if !quoted => depth += 1,
            ']' if !quoted => depth = depth.saturating_sub(1),
            ':' | ' ' if depth == 0 => break,
            _ => {}
        }
        end = at + character.len_utf8();
    }
    let (field, rest) = message.split_at(end);
    if !["spec", "metadata"]
        .iter()
        .any(|root| field.starts_with(root))
    {
        return FieldError {
            field: "spec".to_owned(),
            problem: message.to_owned(),
        };
    }
    FieldError {
        field: field.to_owned(),
        problem: rest.trim_start_matches([':', ' ']).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_split_behind_its_field() {
        for (message, field, problem) in [
            (
                "spec.packages[a].image is empty",
                "spec.packages[a].image",
                "is empty",
            ),
            (
                "spec.packages[a].resources: no",
                "spec.packages[a].resources",
                "no",
            ),
            (
                "spec.packages[a].configMap[\"a ]b\"]: a key",
                "spec.packages[a].configMap[\"a ]b\"]",
                "a key",
            ),
            (
                "metadata.name has 60 characters",
                "metadata.name",
                "has 60 characters",
            ),
            ("something else", "spec", "something else"),
        ] {
            let want = FieldError {
                field: field.into(),
                problem: problem.into(),
            };
            assert_eq!(told(message), want, "{message}");
        }
    }
}
