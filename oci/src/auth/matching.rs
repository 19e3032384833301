//! Decides whether a pattern of a pull secret or credential provider is for an image, by the rules of the kubelet. No
//! I/O.
//!
//! A pattern is `host[:port][/path]`. Each dot-separated part of the host may have `*` and `?`. The number of parts
//! and the port must be the same. The path must be a prefix of the image's path.

/// How specific `pattern` is for `name` (`registry/repository`), or None when it does not match.
pub(crate) fn specificity(pattern: &str, name: &str) -> Option<usize> {
    let pattern = pattern
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let (pattern_host, pattern_path) = split(pattern);
    let (host, path) = split(name);
    let (pattern_name, pattern_port) = port(hub(pattern_host));
    let (name, name_port) = port(hub(host));
    if pattern_port != name_port {
        return None;
    }
    let (pattern_parts, parts) = (pattern_name.split('.'), name.split('.'));
    if pattern_parts.clone().count() != parts.clone().count()
        || !pattern_parts
            .zip(parts)
            .all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
    {
        return None;
    }
    // Docker's key for Docker Hub has the version of the API in its path: `https://index.docker.io/v1/`.
    let pattern_path = match pattern_path.split_once('/').unwrap_or((pattern_path, "")) {
        ("v1" | "v2", rest) => rest,
        _ => pattern_path,
    }
    .trim_end_matches('/');
    let rest = path.strip_prefix(pattern_path)?;
    let whole = pattern_path.is_empty() || rest.is_empty() || rest.starts_with('/');
    whole.then_some(pattern.len())
}

fn split(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or((text, ""))
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
    fn patterns_match_as_the_kubelet_does() {
        let table = [
            ("r.io", "r.io/a/b", true),
            ("https://r.io", "r.io/a", true),
            ("r.io/", "r.io/a", true),
            ("r.io/a", "r.io/a/b", true),
            ("r.io/a", "r.io/ab", false),
            ("r.io:5000", "r.io:5000/a", true),
            ("r.io", "r.io:5000/a", false),
            ("r.io:5000", "r.io/a", false),
            ("*.io", "r.io/a", true),
            ("*.io", "a.r.io/a", false),
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
            ("docker.io", "docker.io/library/x", true),
            ("r.io", "r.io.evil.com/a", false),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("", "r.io/a", false),
        ];
        for (pattern, name, want) in table {
            assert_eq!(
                specificity(pattern, name).is_some(),
                want,
                "{pattern} {name}"
            );
        }
        assert!(specificity("r.io/a", "r.io/a/b") > specificity("r.io", "r.io/a/b"));
    }
}
