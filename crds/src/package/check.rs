//! Checks one package of a Skyhook.

use k8s_openapi::api::core::v1::EnvVar;

use super::{Package, Resources, image_tag};
use crate::admission::words;
use crate::duration::GoDuration;
use crate::field::{FieldErrors, Problems};
use crate::glob;
use crate::image::{self, ImageParts};
use crate::quantity::Quantity;
use crate::version;

impl Package {
    /// The package as everything after decoding uses it: named by its key, its image without tag and digest. Otherwise,
    /// everything that is wrong with it, but for its name and its dependencies.
    pub fn normalised(&self, key: &str) -> Result<Self, FieldErrors> {
        let mut problems = Problems::default();
        let path = format!("spec.packages[{key}]");
        if version::parse(&self.version).is_err() {
            let (before, after) = words::VERSION;
            problems.add(
                format!("{path}.version"),
                format!("{before}{}{after}", self.version),
            );
        }
        let parts = image::split(&self.image);
        let container_sha = self.container_sha.as_deref().filter(|sha| !sha.is_empty());
        self.check_image(&parts, container_sha, &path, &mut problems);
        self.check_configuration(&path, &mut problems);
        self.check_steps(&path, &mut problems);
        problems.or(Self {
            name: key.to_owned(),
            image: parts.repository.to_owned(),
            container_sha: parts.digest.or(container_sha).map(str::to_owned),
            ..self.clone()
        })
    }

    fn check_image(
        &self,
        parts: &ImageParts<'_>,
        container_sha: Option<&str>,
        path: &str,
        problems: &mut Problems,
    ) {
        if !image::is_valid(&self.image) {
            problems.add(format!("{path}.image"), words::IMAGE);
        }
        if let Some(tag) = parts.tag
            && tag != self.version
            && tag != image_tag(&self.version)
        {
            let (before, between) = words::TAG;
            problems.add(
                format!("{path}.image"),
                format!("{before}:{tag}{between}{}", self.version),
            );
        }
        if container_sha.is_some_and(|sha| !image::is_digest(sha)) {
            problems.add(format!("{path}.containerSHA"), words::DIGEST);
        }
        if let (Some(in_image), Some(sha)) = (parts.digest, container_sha)
            && in_image != sha
        {
            problems.add(format!("{path}.containerSHA"), words::DIGESTS);
        }
    }

    fn check_configuration(&self, path: &str, problems: &mut Problems) {
        let keys = self.config_map.keys();
        let wrong: Vec<&String> = keys.filter(|key| !is_valid_key(key)).collect();
        if !wrong.is_empty() {
            problems.add(
                format!("{path}.configMap"),
                words::with(words::CONFIG_KEY, &wrong),
            );
        }
        let matches = |pattern: &str| {
            let is_glob = pattern.contains(['*', '?', '[']);
            self.config_map.contains_key(pattern)
                || (is_glob
                    && self
                        .config_map
                        .keys()
                        .any(|key| glob::matches(pattern, key)))
        };
        let patterns = self.config_interrupts.keys();
        let wrong: Vec<&String> = patterns.filter(|pattern| !matches(pattern)).collect();
        if !wrong.is_empty() {
            problems.add(
                format!("{path}.configInterrupts"),
                words::with(words::CONFIG_INTERRUPT, &wrong),
            );
        }
    }

    /// Checks how the steps are run.
    fn check_steps(&self, path: &str, problems: &mut Problems) {
        for (at, variable) in self.env.iter().enumerate() {
            check_variable(variable, &format!("{path}.env[{at}]"), problems);
        }
        if let Some(resources) = &self.resources {
            resources.check(&format!("{path}.resources"), problems);
        }
        for (field, given) in [
            ("gracefulShutdown", &self.graceful_shutdown),
            ("stageTimeout", &self.stage_timeout),
        ] {
            let value = given.as_ref().map(GoDuration::value);
            if value.is_some_and(|value| value.is_err()) {
                problems.add(format!("{path}.{field}"), words::DURATION);
            }
        }
        if let Some(attempts) = self.max_attempts {
            problems.within(attempts, 0..=i32::MAX, &format!("{path}.maxAttempts"));
        }
        if self.uninstall.is_some_and(|given| !given.is_valid()) {
            problems.add(format!("{path}.uninstall.apply"), words::UNINSTALL);
        }
    }
}

/// True for a key that a `ConfigMap` may have: it becomes the name of a file.
fn is_valid_key(key: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=253).contains(&key.len())
        && key.bytes().all(is_plain)
        && key != "."
        && !key.starts_with("..")
}

fn check_variable(variable: &EnvVar, path: &str, problems: &mut Problems) {
    let is_name = |c: u8| matches!(c, b' '..=b'~') && c != b'=';
    if variable.name.is_empty() || !variable.name.bytes().all(is_name) {
        problems.add(
            format!("{path}.name"),
            format!(
                "{:?} is not the name of a variable: write printable ASCII characters without =",
                variable.name
            ),
        );
    }
    let Some(source) = &variable.value_from else {
        return;
    };
    if variable
        .value
        .as_ref()
        .is_some_and(|value| !value.is_empty())
    {
        problems.add(path, words::ENV_VALUE);
    }
    let sources = [
        source.config_map_key_ref.is_some(),
        source.field_ref.is_some(),
        source.file_key_ref.is_some(),
        source.resource_field_ref.is_some(),
        source.secret_key_ref.is_some(),
    ];
    if sources.iter().filter(|is_set| **is_set).count() != 1 {
        problems.add(format!("{path}.valueFrom"), words::ENV_SOURCE);
    }
}

impl Resources {
    /// All four fields or none, all above zero, limits not below requests.
    fn check(&self, path: &str, problems: &mut Problems) {
        let fields = [
            ("cpuRequest", &self.cpu_request),
            ("cpuLimit", &self.cpu_limit),
            ("memoryRequest", &self.memory_request),
            ("memoryLimit", &self.memory_limit),
        ];
        let set = fields.iter().filter(|(_, value)| value.is_some()).count();
        if set != 0 && set != fields.len() {
            problems.add(path, words::RESOURCES);
        }
        let mut above_zero = |(field, value): (&str, &Option<Quantity>)| {
            let value = value.as_ref()?;
            match value.milli() {
                Ok(milli) if milli > 0 => return Some(milli),
                Ok(_) => problems.add(
                    format!("{path}.{field}"),
                    format!("it is {value}, and must be above zero"),
                ),
                Err(error) => problems.add(format!("{path}.{field}"), error.to_string()),
            }
            None
        };
        let [cpu_request, cpu_limit, memory_request, memory_limit] = fields.map(&mut above_zero);
        for (request, limit, field, words) in [
            (cpu_request, cpu_limit, "cpuLimit", words::CPU_LIMIT),
            (
                memory_request,
                memory_limit,
                "memoryLimit",
                words::MEMORY_LIMIT,
            ),
        ] {
            if let (Some(request), Some(limit)) = (request, limit)
                && limit < request
            {
                problems.add(format!("{path}.{field}"), words);
            }
        }
    }
}
