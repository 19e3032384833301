//! Decides whether a key of a pull secret or credential provider is for an image, and in which order keys are tried, by
//! the rules of the kubelet. No I/O.
//!
//! A key is `host[:port][/path]`. Each dot-separated part of the host may have `*` and `?`. The number of parts
//! and the port must be the same. The path must be the beginning of the image's path.

use std::cmp::Ordering;

/// A key without its scheme, and without the version of the API in its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    host: String,
    path: String,
}

/// The kubelet sorts keys as texts and takes the last one first, so a longer path comes before a shorter one.
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        let text = |key: &Self| format!("{}{}", key.host, key.path);
        text(self).cmp(&text(other))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    pub(crate) fn new(text: &str) -> Self {
        let text = text.trim();
        let text = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        let (host, path) = split(text);
        // Docker's key for Docker Hub has the version of the API in its path: `https://index.docker.io/v1/`.
        let path = match path {
            "/" | "/v1" | "/v2" => "",
            path => match path.split_at_checked(3) {
                Some(("/v1" | "/v2", rest)) if rest.starts_with('/') => rest,
                _ => path,
            },
        };
        Self {
            host: hub(&host.to_ascii_lowercase()).to_owned(),
            path: if path == "/" { "" } else { path }.to_owned(),
        }
    }

    /// Whether the key is for `name`, which is `registry/repository`.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let (host, path) = split(name);
        let host = host.to_ascii_lowercase();
        let (pattern, pattern_port) = port(&self.host);
        let (name, name_port) = port(hub(&host));
        let (patterns, parts) = (pattern.split('.'), name.split('.'));
        pattern_port == name_port
            && path.starts_with(&self.path)
            && patterns.clone().count() == parts.clone().count()
            && patterns
                .zip(parts)
                .all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
    }
}

/// The host, and the path with the slash at its beginning.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find('/').unwrap_or(text.len()))
}

/// Replaces the other names of Docker Hub with `docker.io`.
fn hub(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    }
}

fn port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    }
}

/// Whether the text matches the pattern. `*` stands for any run of characters, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    star = Some((star_p, star_t + 1));
                    p = star_p + 1;
                    t = star_t + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_as_the_kubelet_matches_them() {
        let table = [
            ("r.io", "r.io/a/b", true),
            ("https://r.io", "r.io/a", true),
            ("http://r.io", "r.io/a", true),
            ("R.io", "r.io/a", true),
            ("r.io/", "r.io/a", true),
            ("r.io/a", "r.io/a/b", true),
            // The kubelet compares texts, and not parts of the path.
            ("r.io/a", "r.io/ab", true),
            ("r.io/a/", "r.io/ab", false),
            ("r.io/a/", "r.io/a/b", true),
            ("r.io/A", "r.io/a", false),
            ("r.io/v1/", "r.io/a", true),
            ("r.io/v2/a", "r.io/a/b", true),
            ("r.io/v2", "r.io/a", true),
            ("r.io/v1beta/a", "r.io/a", false),
            ("r.io/v1beta", "r.io/v1beta/a", true),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io:5000/a", "r.io:5000/a/b", true),
            ("r.io", "r.io:5000/a", false),
            ("r.io:5000", "r.io/a", false),
            ("*.io", "r.io/a", true),
            ("*.io", "a.r.io/a", false),
            ("*.foo.io", "foo.io/a", false),
            ("*.foo.io:5000/team", "x.foo.io:5000/team/a", true),
            ("*", "r.io/a", false),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "1.dkr.ecr.eu-1.amazonaws.com/x",
                true,
            ),
            (
                "*.dkr.ecr.*.amazonaws.com",
                "1.dkr.ecr.eu-1.amazonaws.com.evil.io/x",
                false,
            ),
            ("*b*d", "abcd/x", true),
            ("r?.io", "r1.io/x", true),
            ("https://index.docker.io/v1/", "docker.io/library/x", true),
            ("index.docker.io/v1", "docker.io/library/x", true),
            ("index.docker.io", "docker.io/library/x", true),
            ("docker.io", "docker.io/library/x", true),
            ("docker.io/library", "docker.io/library/x", true),
            ("r.io", "r.io.evil.com/a", false),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("", "r.io/a", false),
            ("é/v1", "r.io/a", false),
        ];
        for (key, name, want) in table {
            assert_eq!(Key::new(key).matches(name), want, "{key} {name}");
        }
    }

    #[test]
    fn keys_are_tried_in_the_order_of_the_kubelet() {
        let mut keys = ["r.io", "*.io", "r.io/a", "r.io/a/b", "https://r.io/v1/a/c"].map(Key::new);
        keys.sort_by(|a, b| b.cmp(a));
        let want = ["r.io/a/c", "r.io/a/b", "r.io/a", "r.io", "*.io"].map(Key::new);
        assert_eq!(keys, want);
    }
}
