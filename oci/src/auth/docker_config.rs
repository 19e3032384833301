//! Reads a docker config, as the kubelet reads it: a file of the node, or the content of a pull secret. No I/O.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use super::{AuthError, Login};

/// Base64 as Go decodes it: with or without padding, and with any value in the bits that do not count.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Logins with their keys, and what is wrong with the entries that cannot be used, with their keys as well.
type Read = (Vec<(String, Login)>, Vec<(String, String)>);

/// Reads `{"auths": {…}}`, or the map alone. Only a text that is not a JSON object is an error.
pub(super) fn read(bytes: &[u8]) -> Result<Read, AuthError> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| AuthError::Json {
        line: error.line(),
        column: error.column(),
    })?;
    let mut config = match value {
        Value::Object(config) => config,
        // Go reads null into a map without entries.
        Value::Null => Map::new(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(AuthError::Object { field: "the root" });
        }
    };
    let auths = match find(&mut config, "auths") {
        Some(Value::Object(auths)) => auths,
        Some(Value::Null) => Map::new(),
        Some(_) => return Err(AuthError::Object { field: "auths" }),
        // A docker config without logins, as a credential helper leaves it.
        None if config.keys().any(|key| is_setting(key)) => Map::new(),
        None => config,
    };
    let (mut logins, mut problems) = (Vec::new(), Vec::new());
    for (key, entry) in auths {
        match logins_of(entry) {
            Ok(found) => logins.extend(found.into_iter().map(|login| (key.clone(), login))),
            Err(reason) => {
                let text = format!("auths[{key:?}]{reason}");
                problems.push((key, text));
            }
        }
    }
    Ok((logins, problems))
}

/// Whether this is a key of a docker config, and not the name of a registry in a `.dockercfg`.
fn is_setting(key: &str) -> bool {
    ["credsStore", "credHelpers", "HttpHeaders", "currentContext"]
        .iter()
        .any(|setting| key.eq_ignore_ascii_case(setting))
}

/// Go takes a key in any case. The exact one wins.
fn find(object: &mut Map<String, Value>, name: &str) -> Option<Value> {
    if let Some(value) = object.remove(name) {
        return Some(value);
    }
    let key = object.keys().find(|key| key.eq_ignore_ascii_case(name))?;
    let key = key.clone();
    object.remove(&key)
}

/// The logins of an entry, in the order in which they are tried. With a password, the password is first, because the
/// kubelet knows nothing else. Without one, only the tokens can be meant. The error never contains a value.
fn logins_of(entry: Value) -> Result<Vec<Login>, String> {
    let mut entry = match entry {
        Value::Object(entry) => entry,
        Value::Null => return Ok(Vec::new()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(" is not a JSON object".to_owned());
        }
    };
    let mut text = |name: &str| match find(&mut entry, name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!(".{name} is not a text")),
    };
    let tokens = [
        (text("identitytoken")?, Login::IdentityToken as fn(_) -> _),
        (text("registrytoken")?, Login::RegistryToken),
    ];
    let tokens = tokens.into_iter().filter(|(token, _)| !token.is_empty());
    let tokens: Vec<Login> = tokens.map(|(token, login)| login(token)).collect();
    let auth = text("auth")?;
    let (username, password) = if auth.is_empty() {
        (text("username")?, text("password")?)
    } else {
        match pair(&auth) {
            Some(pair) => pair,
            None if !tokens.is_empty() => return Ok(tokens),
            None => return Err(".auth is not base64 of user:password".to_owned()),
        }
    };
    let is_login = match tokens.is_empty() {
        true => !username.is_empty() || !password.is_empty(),
        false => !password.is_empty(),
    };
    let basic = is_login.then_some(Login::Basic { username, password });
    Ok(basic.into_iter().chain(tokens).collect())
}

/// Decodes `auth`. The password may contain colons. Line breaks are skipped, as Go skips them; spaces around it are
/// skipped too, because people paste them. Docker writes NUL bytes after some passwords.
fn pair(auth: &str) -> Option<(String, String)> {
    let text: String = auth
        .trim()
        .chars()
        .filter(|it| !matches!(it, '\r' | '\n'))
        .collect();
    let decoded = String::from_utf8(BASE64.decode(text).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), password.trim_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str, password: &str) -> Result<Vec<Login>, String> {
        let (username, password) = (username.into(), password.into());
        Ok(vec![Login::Basic { username, password }])
    }

    #[test]
    fn entries_are_read_as_go_reads_them() {
        let wrong = || Err(".auth is not base64 of user:password".to_owned());
        let table = [
            (r#"{"auth": "dXNlcjpwYXNz"}"#, basic("user", "pass")),
            // With padding, without it, and with line breaks in it.
            (r#"{"auth": "dXNlcjpwYQ=="}"#, basic("user", "pa")),
            (r#"{"auth": "dXNlcjpwYQ"}"#, basic("user", "pa")),
            (r#"{"auth": "dXNl\ncjpw\r\nYQ==\n"}"#, basic("user", "pa")),
            (r#"{"auth": " dXNlcjpwYQ== "}"#, basic("user", "pa")),
            // The last bits do not count.
            (r#"{"auth": "dXNlcjpwYR=="}"#, basic("user", "pa")),
            // Colons in the password, an empty one, and NUL bytes after it.
            (r#"{"auth": "dTpwOnE6"}"#, basic("u", "p:q:")),
            (r#"{"auth": "dTo="}"#, basic("u", "")),
            (r#"{"auth": "dTpwAAA="}"#, basic("u", "p")),
            // `auth` counts more than the other fields, unless it is empty or null.
            (
                r#"{"auth": "dTpw", "username": "x", "password": "y"}"#,
                basic("u", "p"),
            ),
            (
                r#"{"auth": "", "username": "x", "password": "y:z"}"#,
                basic("x", "y:z"),
            ),
            (
                r#"{"auth": null, "username": "x", "password": "y"}"#,
                basic("x", "y"),
            ),
            (r#"{"username": "x", "email": "e"}"#, basic("x", "")),
            (r#"{"Username": "x", "PASSWORD": "y"}"#, basic("x", "y")),
            (
                r#"{"auth": "MDo=", "identitytoken": "t"}"#,
                Ok(vec![Login::IdentityToken("t".into())]),
            ),
            (
                r#"{"registrytoken": "t"}"#,
                Ok(vec![Login::RegistryToken("t".into())]),
            ),
            // Nothing hides another login.
            (
                r#"{"auth": "dTpw", "identitytoken": "t", "registrytoken": "r"}"#,
                basic("u", "p").map(|mut logins| {
                    logins.push(Login::IdentityToken("t".into()));
                    logins.push(Login::RegistryToken("r".into()));
                    logins
                }),
            ),
            (
                r#"{"auth": "no base64!", "identitytoken": "t"}"#,
                Ok(vec![Login::IdentityToken("t".into())]),
            ),
            (
                r#"{"username": "u", "registrytoken": "t"}"#,
                Ok(vec![Login::RegistryToken("t".into())]),
            ),
            ("{}", Ok(Vec::new())),
            ("null", Ok(Vec::new())),
            (r#"{"auth": "no base64!"}"#, wrong()),
            (r#"{"auth": "dXNlcg=="}"#, wrong()),
            (r#"{"auth": 1}"#, Err(".auth is not a text".to_owned())),
            ("[]", Err(" is not a JSON object".to_owned())),
        ];
        for (entry, want) in table {
            assert_eq!(
                logins_of(serde_json::from_str(entry).unwrap()),
                want,
                "{entry}"
            );
        }
    }

    #[test]
    fn documents_are_read_in_both_forms() {
        let keys = |text: &str| {
            let (logins, problems) = read(text.as_bytes()).unwrap();
            let keys = logins.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
            (keys.join(" "), problems.len())
        };
        let entry = r#"{"username": "u", "password": "p"}"#;
        for (text, want) in [
            (
                format!(r#"{{"auths": {{"a": {entry}, "b": {entry}}}}}"#),
                ("a b", 0),
            ),
            (format!(r#"{{"a": {entry}}}"#), ("a", 0)),
            (format!(r#"{{"Auths": {{"a": {entry}}}}}"#), ("a", 0)),
            (
                format!(r#"{{"auths": {{"a": 1, "b": {entry}}}}}"#),
                ("b", 1),
            ),
            (r#"{"auths": null}"#.to_owned(), ("", 0)),
            ("{}".to_owned(), ("", 0)),
            ("null".to_owned(), ("", 0)),
            (r#"{"credsStore": "desktop"}"#.to_owned(), ("", 0)),
            (
                r#"{"credHelpers": {"r.local": "ecr-login"}, "currentContext": "x"}"#.to_owned(),
                ("", 0),
            ),
        ] {
            let (got, problems) = keys(&text);
            assert_eq!((got.as_str(), problems), want, "{text}");
        }
    }
}
