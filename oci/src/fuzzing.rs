//! The functions that the fuzz targets in `fuzz/` call. The tests of this crate call the same functions with the seed
//! corpus and with generated input.
//!
//! Each function takes any bytes, and panics if a guarantee is broken.

use std::io::Cursor;
use std::path::Path;

use reqwest::Url;

use crate::auth::{Credentials, challenge, plugin};
use crate::hosts;
use crate::image;
use crate::limits::{Budget, Limits};
use crate::node::containerd;
use crate::package_config::{self, StepFile};
use crate::proxy::Proxies;
use crate::reference::Reference;
use crate::unpack::fuzzing::{filter, merge};

/// These limits are so small that a fuzzer reaches them.
fn limits() -> Limits {
    Limits {
        stream_bytes: 4 << 20,
        package_bytes: 1 << 20,
        package_entries: 200,
        scanned_entries: 1000,
        path_bytes: 300,
        depth: 8,
        metadata_bytes: 16 << 10,
        ..Limits::default()
    }
}

/// Reads the bytes as the archive of a layer. Entries that are kept must be below the package's directory.
pub fn tar(bytes: &[u8]) {
    let limits = limits();
    let budget = Budget::new(&limits);
    let Ok(entries) = filter(Cursor::new(bytes), &budget) else {
        return;
    };
    assert!(entries.len() as u64 <= limits.package_entries);
    for entry in &entries {
        assert_is_below(&entry.path, &limits);
    }
    // The same layer is applied twice, so that all its names exist the second time.
    let Ok(Some(root)) = merge([entries.clone(), entries], &budget) else {
        return;
    };
    let mut pending = vec![(0, &root)];
    while let Some((depth, dir)) = pending.pop() {
        assert!(depth <= limits.depth, "deeper than allowed");
        for (name, node) in &dir.children {
            assert!(!name.is_empty() && name != b"." && name != b"..");
            assert!(!name.contains(&b'/') && !name.contains(&0));
            if let crate::unpack::tree::Node::Dir(dir) = node {
                pending.push((depth + 1, dir));
            }
        }
    }
}

fn assert_is_below(path: &[u8], limits: &Limits) {
    assert!(path.len() as u64 <= limits.path_bytes);
    assert!(!path.contains(&0) && !path.starts_with(b"/"));
    assert!(
        path.split(|&byte| byte == b'/')
            .all(|part| part != b".." && part != b".")
    );
}

/// Checks the bytes as a `config.json`. The result must be either errors or a configuration.
pub fn config_json(bytes: &[u8]) {
    let report = package_config::check(bytes, &|path| match path.len() % 3 {
        0 => StepFile::Missing,
        1 => StepFile::Present,
        _ => StepFile::Outside,
    });
    assert_eq!(report.config.is_some(), report.errors().count() == 0);
    if let Some(config) = report.config {
        for step in config.modes.values().flatten() {
            assert!(!step.path.starts_with('/') && !step.path.split('/').any(|part| part == ".."));
        }
    }
}

/// Parses the bytes as an image reference. The text of the reference must give the same reference again, and its
/// repository must be a valid part of a URL path.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(
            reference.to_string().parse::<Reference>().as_ref(),
            Ok(&reference)
        );
        let path = reference.repository();
        assert!(!path.contains("..") && !path.contains("//") && !path.starts_with('/'));
        assert!(
            path.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b))
        );
    }
    let mut halves = text.splitn(3, '\n');
    let (image, version, sha) = (halves.next(), halves.next(), halves.next());
    if let (Some(image), Some(version)) = (image, version)
        && let Ok(reference) = Reference::for_package(image, version, sha)
    {
        assert_eq!(reference.tag(), Some(version.replace('+', "_").as_str()));
    }
}

/// Reads the bytes as a docker config. `Debug` output must not contain the logins.
pub fn docker_config(bytes: &[u8]) {
    if let Ok(credentials) = Credentials::from_docker_config(bytes) {
        let debug = format!("{credentials:?}");
        for found in credentials.matching("registry.example/team/image") {
            assert!(debug.contains("***") && format!("{:?}", found.login).contains("***"));
        }
    }
}

/// Reads the bytes as a `hosts.toml`, a `registries.conf` and containerd's `config.toml`. Each server must have a URL of
/// a registry, and the path of a request must stay below it.
pub fn registry_files(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let dir = Path::new("/certs.d/registry.example");
    let (registry, repository) = ("registry.example", "team/image");
    let name = format!("{registry}/{repository}");
    let mut found = vec![hosts::parse(text, dir).ok()];
    if let Ok(conf) = hosts::registries_conf::parse(text, dir) {
        for by_digest in [false, true] {
            found.push(conf.settings(&name, by_digest).ok().flatten());
        }
    }
    if let Ok(document) = text.parse() {
        let containerd = containerd::registry(&document);
        assert!(
            containerd
                .dirs
                .iter()
                .all(|dir| !dir.as_os_str().is_empty())
        );
        let logins = containerd.credentials();
        assert!(logins.matching(&name).is_empty() || format!("{containerd:?}").contains("***"));
        found.push(containerd.settings(registry));
    }
    for settings in found.into_iter().flatten() {
        let Ok(endpoints) = hosts::endpoints(registry, &settings, false) else {
            continue;
        };
        assert!(endpoints.iter().any(|endpoint| endpoint.is_origin));
        for endpoint in endpoints {
            let url = endpoint.url(registry, repository, "manifests/1");
            assert!(matches!(url.scheme(), "http" | "https") && url.has_host());
            assert_eq!(url.origin(), endpoint.base.origin());
            assert!(url.username().is_empty() && url.password().is_none());
        }
    }
}

/// Reads the lines as the variables `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. The machine itself must be
/// reached directly, and no text may show a password.
pub fn proxy_variables(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let names = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
    let lines: Vec<&str> = text.lines().collect();
    let proxies = Proxies::of(|name| {
        let index = names.iter().position(|it| *it == name)?;
        lines.get(index).map(|line| (*line).to_owned())
    });
    let Some(proxies) = proxies else {
        return;
    };
    for (url, is_own) in [
        ("http://localhost:5000/", true),
        ("https://127.0.0.1/", true),
        ("http://[::1]:80/", true),
        ("http://registry.example/", false),
        ("https://10.1.2.3:5000/", false),
    ] {
        let proxy = Url::parse(url).ok().and_then(|url| proxies.for_url(&url));
        assert!(!(is_own && proxy.is_some()), "{url}");
        if let Some(password) = proxy.as_ref().and_then(Url::password) {
            let shown = format!("{proxies:?}{:?}", proxies.problems);
            assert!(password.len() < 8 || !shown.contains(password));
        }
    }
}

/// Reads the bytes as a configuration of credential providers and as the answer of one.
pub fn credential_provider(bytes: &[u8]) {
    plugin::read_anything(bytes);
}

/// Reads the bytes as a header `WWW-Authenticate`.
pub fn challenge(bytes: &[u8]) {
    if let Ok(header) = std::str::from_utf8(bytes) {
        assert!(challenge::parse(header).len() <= header.len());
    }
}

/// Reads the bytes as the files of a trust store.
pub fn certificates(bytes: &[u8]) {
    crate::registry::read_certificates(bytes);
}

/// Decodes the bytes as a manifest or index, and as an image config.
pub fn image_documents(bytes: &[u8]) {
    let limits = limits();
    let host = image::Platform::host();
    match image::decode(bytes, None, &limits) {
        Ok(image::Document::Index(candidates)) => {
            if let Ok(fitting) = image::select(&candidates, &host) {
                assert!(!fitting.is_empty() && fitting.len() <= candidates.len());
            }
        }
        Ok(image::Document::Image(decoded)) => {
            assert!(decoded.layers.len() as u64 <= limits.layers);
            for (digest, content) in &decoded.embedded {
                assert!(digest.is_of(content));
            }
            if let Ok(diff_ids) = decoded.diff_ids(bytes) {
                assert_eq!(diff_ids.len(), decoded.layers.len());
            }
        }
        Err(_) => {}
    }
    drop(image::check_platform(bytes, &host));
}

/// Reads the bytes as the header with which a server says which part of a blob it sends.
pub fn content_range(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Some(start) = crate::pull::fetch::range_start(text)
    {
        assert!(text.to_ascii_lowercase().contains("bytes"));
        assert_eq!(
            crate::pull::fetch::range_start(&format!("bytes {start}-/*")),
            Some(start)
        );
    }
}

/// Reads the bytes as an image config, and as the platforms of an image and a host, one per line.
pub fn platform(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let platforms: Vec<_> = text
        .lines()
        .take(2)
        .map(|line| {
            let mut parts = line.splitn(3, '/');
            let mut part = || parts.next().unwrap_or_default();
            let (os, architecture, variant) = (part(), part(), part());
            image::Platform::new(os, architecture, Some(variant))
        })
        .collect();
    if let [host, other] = platforms.as_slice() {
        assert_eq!(host.fit(host), Some(0), "a host runs its own images");
        if host.fit(other) == Some(0) {
            assert_eq!(other.fit(host), Some(0), "they are the same platform");
        }
    }
}

#[cfg(test)]
mod tests;
