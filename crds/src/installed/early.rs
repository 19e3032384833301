//! Reads records of packages, those of early versions of NVIDIA Skyhook as well: they have the package's name alone as key,
//! and entries without an image.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{PackageStates, StateProblem};
use crate::package::{self, Package, PackageStatus};
use crate::stage::{Stage, State};

/// Versions of NVIDIA Skyhook whose records lack fields.
const EARLY: [&str; 3] = ["v0.5.", "v0.6.", "v0.7."];

/// True when an early version of NVIDIA Skyhook was the first to work on a Node. `version` is the value of the annotation
/// [`crate::names::version`]. Versions before v0.5 do not write it.
#[must_use]
pub fn is_early(version: Option<&str>) -> bool {
    let version = version.unwrap_or_default();
    version.is_empty() || EARLY.iter().any(|early| version.starts_with(early))
}

/// An entry of a record, as any version may have written it.
#[derive(Deserialize)]
struct Entry {
    name: Option<String>,
    version: Option<String>,
    image: Option<String>,
    #[serde(rename = "containerSHA")]
    container_sha: Option<String>,
    stage: Option<Stage>,
    state: Option<State>,
    #[serde(default)]
    restarts: i32,
}

impl Entry {
    /// The status, or the field that is missing. An image that is missing is empty: see [`with_images`].
    fn status(self, key: &str) -> Result<PackageStatus, &'static str> {
        Ok(PackageStatus {
            name: self
                .name
                .unwrap_or_else(|| package::name_of(key).to_owned()),
            version: self.version.filter(|v| !v.is_empty()).ok_or("version")?,
            image: self.image.unwrap_or_default(),
            container_sha: self.container_sha,
            stage: self.stage.ok_or("stage")?,
            state: self.state.ok_or("state")?,
            restarts: self.restarts,
        })
    }
}

/// Reads a `nodeState_<skyhook>` annotation. Of an early record, entries that do not say which version of the package is
/// there, and how far it is, are left out: the package is applied anew.
pub fn parse_states(
    annotation: &str,
    value: Option<&str>,
    early: bool,
) -> Result<PackageStates, StateProblem> {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Ok(PackageStates::new());
    };
    let malformed = |problem: String| StateProblem::Malformed {
        annotation: annotation.to_owned(),
        problem,
    };
    let entries: BTreeMap<String, Entry> =
        serde_json::from_str(value).map_err(|e| malformed(e.to_string()))?;
    let mut states = PackageStates::new();
    let mut by_name = Vec::new();
    for (key, entry) in entries {
        match entry.status(&key) {
            Ok(status) if status.stage == Stage::Unknown => {
                return Err(StateProblem::Newer {
                    annotation: annotation.to_owned(),
                    package: key,
                });
            }
            Ok(status) if key.contains('|') => {
                states.insert(key, status);
            }
            Ok(status) => by_name.push(status),
            Err(_) if early => {}
            Err(field) => return Err(malformed(format!("{key}: the field {field} is missing"))),
        }
    }
    // What a later version wrote of the same package stands.
    for status in by_name {
        let key = package::key(&status.name, &status.version);
        states.entry(key).or_insert(status);
    }
    Ok(states)
}

/// True for a record that lacks nothing: it can be taken as it is.
#[must_use]
pub fn is_whole(value: Option<&str>) -> bool {
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return true;
    };
    let states = serde_json::from_str::<PackageStates>(value);
    states.is_ok_and(|states| states.keys().all(|key| key.contains('|')))
}

/// Fills missing images in from the packages of the Skyhook's spec. The second value has the keys of the entries that are
/// left out, because their package is not in the spec.
#[must_use]
pub fn with_images(
    states: &PackageStates,
    packages: &BTreeMap<String, Package>,
) -> (PackageStates, Vec<String>) {
    let mut filled = states.clone();
    let mut left_out = Vec::new();
    filled.retain(|key, status| {
        if !status.image.is_empty() {
            return true;
        }
        let Some(package) = packages.get(&status.name) else {
            left_out.push(key.clone());
            return false;
        };
        status.image.clone_from(&package.image);
        true
    });
    (filled, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record with one entry.
    fn record(key: &str, fields: &str) -> String {
        format!("{{{key:?}:{{{fields}}}}}")
    }

    fn shown(states: &PackageStates) -> Vec<String> {
        let line = |(key, one): (&String, &PackageStatus)| {
            format!("{key} {} {}/{}", one.image, one.stage, one.state)
        };
        states.iter().map(line).collect()
    }

    #[test]
    fn records_of_early_versions_are_read() {
        let package = Package {
            name: "foobar".into(),
            version: "1.2".into(),
            image: "r/foobar".into(),
            ..Package::default()
        };
        let packages = [("foobar".to_owned(), package)].into();
        for (name, early, key, fields, want) in [
            (
                "no image",
                true,
                "foobar",
                r#""name":"foobar","version":"1.2","stage":"config","state":"complete""#,
                Ok("foobar|1.2 r/foobar config/complete"),
            ),
            (
                "no image, and another version in the spec",
                true,
                "foobar",
                r#""name":"foobar","version":"1.1","stage":"apply","state":"erroring""#,
                Ok("foobar|1.1 r/foobar apply/erroring"),
            ),
            (
                "no version",
                true,
                "foobar",
                r#""name":"foobar","stage":"config","state":"complete""#,
                Ok(""),
            ),
            (
                "an empty version",
                true,
                "foobar",
                r#""version":"","stage":"config","state":"complete""#,
                Ok(""),
            ),
            (
                "no name",
                true,
                "foobar|1.2",
                r#""version":"1.2","image":"i","stage":"config","state":"complete""#,
                Ok("foobar|1.2 i config/complete"),
            ),
            (
                "no image, and not in the spec",
                true,
                "gone",
                r#""name":"gone","version":"1","stage":"config","state":"complete""#,
                Ok("left out: gone|1"),
            ),
            (
                "a later version, and no image",
                false,
                "foobar|1.2",
                r#""name":"foobar","version":"1.2","stage":"config","state":"complete""#,
                Ok("foobar|1.2 r/foobar config/complete"),
            ),
            (
                "a later version, and no stage",
                false,
                "foobar|1.2",
                r#""name":"foobar","version":"1.2","image":"i","state":"complete""#,
                Err("foobar|1.2: the field stage is missing"),
            ),
        ] {
            let states = parse_states("x", Some(&record(key, fields)), early);
            let given = states.map(|states| {
                let (states, left_out) = with_images(&states, &packages);
                let left_out = left_out.iter().map(|key| format!("left out: {key}"));
                let lines: Vec<String> = shown(&states).into_iter().chain(left_out).collect();
                lines.join("; ")
            });
            let want = want
                .map(str::to_owned)
                .map_err(|problem: &str| StateProblem::Malformed {
                    annotation: "x".to_owned(),
                    problem: problem.to_owned(),
                });
            assert_eq!(given, want, "{name}");
        }
    }

    #[test]
    fn which_versions_are_early() {
        for (version, want) in [
            (None, true),
            (Some(""), true),
            (Some("v0.5.0"), true),
            (Some("v0.7.9"), true),
            (Some("v0.8.0"), false),
            (Some("v0.13.0"), false),
            (Some("v0.50.0"), false),
            (Some("v1.0.0"), false),
        ] {
            assert_eq!(is_early(version), want, "{version:?}");
        }
    }
}
