//! The `WWW-Authenticate` header: which authentication schemes a registry accepts, and their parameters. No I/O.

/// The authentication that a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// The challenges of one header value. Schemes that this crate does not know are skipped: it could not
/// answer them.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut rest = header.trim_start();
    while let Some((scheme, after)) = token(rest) {
        let (parameters, after) = parameters(after.trim_start());
        let find = |name: &str| {
            let same = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
            parameters.iter().find(same).map(|(_, value)| value.clone())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            challenges.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = find("realm")
        {
            let (service, scope) = (find("service"), find("scope"));
            challenges.push(Challenge::Bearer {
                realm,
                service,
                scope,
            });
        }
        rest = after.trim_start_matches([',', ' ', '\t']);
    }
    challenges
}

/// Reads `key=value` pairs, up to the next scheme or the end.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut pairs = Vec::new();
    while let Some((key, after)) = token(rest) {
        let Some(after) = after.trim_start().strip_prefix('=') else {
            break;
        };
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => match token(after) {
                Some((value, after)) => (value.to_owned(), after),
                None => (String::new(), after),
            },
        };
        pairs.push((key.to_owned(), value));
        let after = after.trim_start();
        match after.strip_prefix(',') {
            Some(after) => rest = after.trim_start_matches([',', ' ', '\t']),
            None => return (pairs, after),
        }
    }
    (pairs, rest)
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

/// Splits off the token at the start of the text.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/:?@[]{}()<>;".contains(&byte);
    let end = text
        .bytes()
        .position(|byte| !is_token(byte))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let (service, scope) = (service.map(Into::into), scope.map(Into::into));
        Challenge::Bearer {
            realm: realm.into(),
            service,
            scope,
        }
    }

    #[test]
    fn headers_as_registries_send_them() {
        let hub = "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",\
                   scope=\"repository:a/b:pull,push\"";
        let scope = Some("repository:a/b:pull,push");
        let table = [
            ("Basic realm=\"Registry Realm\"", vec![Challenge::Basic]),
            ("basic", vec![Challenge::Basic]),
            (
                hub,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    scope,
                )],
            ),
            (
                "Bearer realm=https://x/t, service=s",
                vec![bearer("https://x/t", Some("s"), None)],
            ),
            (
                "Negotiate, Basic realm=\"a, b\", Bearer realm=\"r\\\"\"",
                vec![Challenge::Basic, bearer("r\"", None, None)],
            ),
            ("Bearer service=\"no realm\"", vec![]),
            ("", vec![]),
            ("\u{1}\"=", vec![]),
        ];
        for (header, want) in table {
            assert_eq!(parse(header), want, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_ends(header in "[ -~]{0,200}") {
            prop_assert!(parse(&header).len() <= header.len());
        }
    }
}
