//! What is to be run: from the flags, and from the Skyhook in a file.
#![expect(
    clippy::disallowed_methods,
    reason = "this is shell: it reads the files that flags name"
)]

use std::fs;

use anyhow::{Context as _, anyhow, bail};
use k8s_openapi::api::core::v1::EnvVar;
use serde::Deserialize as _;
use skyhook_crds::package::{Interrupt, InterruptType};
use skyhook_crds::{Package, Skyhook, Stage};
use skyhook_oci::Reference;

use crate::config::LocalRunArgs;

/// A package, where its files are, and its stages.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Its name and its version are empty without a Skyhook: then those in its `config.json` count.
    pub(super) package: Package,
    /// A directory, or a reference of an image.
    pub(super) source: String,
    pub(super) stages: Vec<Stage>,
}

impl Wanted {
    pub(super) fn of(args: &LocalRunArgs) -> anyhow::Result<Self> {
        let mut package = match &args.filename {
            None => Package::default(),
            Some(file) => {
                let text = fs::read_to_string(file);
                let text = text.with_context(|| format!("--filename {}", file.display()))?;
                of_skyhook(&text, args.package.as_deref())
                    .with_context(|| file.display().to_string())?
            }
        };
        if let Some(interrupt) = &args.interrupt {
            package.interrupt = Some(parse_interrupt(interrupt)?);
        }
        for (key, file) in pairs("config-map", &args.config_map)? {
            let content =
                fs::read_to_string(&file).with_context(|| format!("--config-map {file}"))?;
            package.config_map.insert(key, content);
        }
        for (name, value) in pairs("env", &args.env)? {
            package.env.retain(|variable| variable.name != name);
            package.env.push(EnvVar {
                name,
                value: Some(value),
                value_from: None,
            });
        }
        let source = match &args.source {
            Some(source) => source.clone(),
            None => Reference::for_package(
                &package.image,
                &package.version,
                package.container_sha.as_deref(),
            )?
            .to_string(),
        };
        Ok(Self {
            stages: stages(args, package.interrupt.is_some())?,
            package,
            source,
        })
    }
}

/// The package of the Skyhook in a file with manifests.
fn of_skyhook(text: &str, name: Option<&str>) -> anyhow::Result<Package> {
    let mut skyhooks = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_json::Value::deserialize(document).context("is not YAML")?;
        if value["kind"] == "Skyhook" {
            let skyhook: Skyhook = serde_json::from_value(value).context("has a bad Skyhook")?;
            skyhooks.push(skyhook);
        }
    }
    if skyhooks.is_empty() {
        bail!("there is no Skyhook in it");
    }
    let all: Vec<(String, Package)> = skyhooks
        .into_iter()
        .flat_map(|skyhook| skyhook.spec.packages)
        .collect();
    let names = all.iter().map(|(name, _)| name.as_str());
    let names = names.collect::<Vec<_>>().join(", ");
    let is_wanted = |of: &str| name.is_none_or(|name| name == of);
    let mut found = all.into_iter().filter(|(of, _)| is_wanted(of));
    match (found.next(), found.next(), name) {
        (Some((name, package)), None, _) => Ok(Package { name, ..package }),
        (Some(_), Some(_), None) => bail!("choose one of its packages with --package: {names}"),
        (Some(_), Some(_), Some(name)) => bail!("more than one Skyhook has a package {name:?}"),
        (None, _, Some(name)) => bail!("there is no package {name:?} in it, only {names}"),
        (None, _, None) => bail!("its Skyhook has no packages"),
    }
}

fn stages(args: &LocalRunArgs, has_interrupt: bool) -> anyhow::Result<Vec<Stage>> {
    if !args.stages.is_empty() {
        return args
            .stages
            .iter()
            .map(|name| {
                Stage::ALL
                    .into_iter()
                    .filter(|stage| *stage != Stage::UninstallInterrupt)
                    .find(|s| s.as_str() == name)
                    .ok_or_else(|| anyhow!("--stages: {name:?} is not a stage"))
            })
            .collect();
    }
    let first = if args.upgrade_from.is_some() {
        Stage::Upgrade
    } else {
        Stage::Apply
    };
    Ok(std::iter::successors(Some(first), |s| s.next(has_interrupt)).collect())
}

fn parse_interrupt(text: &str) -> anyhow::Result<Interrupt> {
    let (kind, services) = text.split_once(':').unwrap_or((text, ""));
    let kind = match kind {
        "noop" => InterruptType::Noop,
        "reboot" => InterruptType::Reboot,
        "restartAllServices" => InterruptType::RestartAllServices,
        "service" => InterruptType::Service,
        _ => bail!("--interrupt {text:?}: write noop, reboot, restartAllServices or service:UNIT"),
    };
    let services: Vec<String> = services
        .split(',')
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect();
    if services.is_empty() == (kind == InterruptType::Service) {
        bail!(
            "--interrupt {text:?}: service takes units (service:cron,rsyslog), the others take none"
        );
    }
    Ok(Interrupt { kind, services })
}

fn pairs(flag: &str, given: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    given
        .iter()
        .map(|text| {
            text.split_once('=')
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .with_context(|| format!("--{flag} {text:?}: it has no ="))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "
kind: ConfigMap
---
kind: Skyhook
apiVersion: skyhook.nvidia.com/v1alpha1
metadata: {name: s}
spec:
  packages:
    aa: {version: 1.0.0, image: r.example/aa, configMap: {key: value}, stageTimeout: 2m}
    bb: {version: 2.0.0, image: r.example/bb}
";

    #[test]
    fn a_package_of_a_skyhook_is_found_by_its_name() {
        let package = of_skyhook(TWO, Some("aa")).unwrap();
        assert_eq!(
            (package.name.as_str(), package.version.as_str()),
            ("aa", "1.0.0")
        );
        assert_eq!(package.config_map["key"], "value");
        let one = TWO.replace("    bb: {version: 2.0.0, image: r.example/bb}\n", "");
        assert_eq!(of_skyhook(&one, None).unwrap().name, "aa");
        let twice = format!("{one}---{one}");
        for (text, name, want) in [
            (
                TWO,
                None,
                "choose one of its packages with --package: aa, bb",
            ),
            (
                TWO,
                Some("cc"),
                "there is no package \"cc\" in it, only aa, bb",
            ),
            (
                twice.as_str(),
                Some("aa"),
                "more than one Skyhook has a package \"aa\"",
            ),
            ("kind: Pod", None, "there is no Skyhook in it"),
            (
                "kind: Skyhook\nspec: {packages: 1}",
                None,
                "has a bad Skyhook: ",
            ),
            ("kind: [", None, "is not YAML: "),
        ] {
            let error = format!("{:#}", of_skyhook(text, name).unwrap_err());
            assert!(error.starts_with(want), "{error}");
        }
    }
}
