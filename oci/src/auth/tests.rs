use proptest::prelude::*;
use serde_json::json;

use super::*;

fn basic(username: &str, password: &str) -> Login {
    Login::Basic {
        username: username.into(),
        password: password.into(),
    }
}

fn read(value: &serde_json::Value) -> Credentials {
    Credentials::from_docker_config(value.to_string().as_bytes()).unwrap()
}

#[test]
fn docker_configs_of_every_shape_are_read() {
    let auth = STANDARD.encode("user:pass:word");
    let credentials = read(&json!({"auths": {
        "a.io": {"auth": auth},
        "b.io": {"username": "u", "password": "p"},
        "c.io": {"auth": STANDARD.encode("0:"), "identitytoken": "secret-id"},
        "d.io": {"registrytoken": "secret-token"},
        "e.io": {},
        "*.f.io/team": {"auth": auth},
        "https://index.docker.io/v1/": {"auth": auth},
    }, "credsStore": "desktop", "HttpHeaders": {}}));
    let table = [
        ("a.io/x", vec![basic("user", "pass:word")]),
        ("b.io/x", vec![basic("u", "p")]),
        ("c.io/x", vec![Login::IdentityToken("secret-id".into())]),
        ("d.io/x", vec![Login::RegistryToken("secret-token".into())]),
        ("e.io/x", vec![]),
        ("x.f.io/team/a", vec![basic("user", "pass:word")]),
        ("x.f.io/other/a", vec![]),
        ("docker.io/library/x", vec![basic("user", "pass:word")]),
    ];
    for (name, want) in table {
        assert_eq!(credentials.matching(name), want, "{name}");
    }
    let legacy = read(&json!({"a.io": {"username": "u", "password": "p"}}));
    assert_eq!(legacy.matching("a.io/x"), [basic("u", "p")]);
}

#[test]
fn merged_secrets_are_tried_most_specific_first_and_each_once() {
    let login = |pattern: &str, username: &str, password: &str| {
        read(&json!({"auths": {pattern: {"username": username, "password": password}}}))
    };
    let one = login("r.io", "a", "1");
    let two = login("r.io/team", "b", "2");
    let merged = one.clone().merge(two).merge(one);
    assert_eq!(
        merged.matching("r.io/team/x"),
        [basic("b", "2"), basic("a", "1")]
    );
    assert_eq!(merged.matching("r.io/x"), [basic("a", "1")]);
}

#[test]
fn secrets_are_neither_in_debug_nor_in_errors() {
    let credentials = read(&json!({"auths": {
        "a.io": {"auth": STANDARD.encode("hunter:hunter2")},
        "b.io": {"identitytoken": "hunter3"}, "c.io": {"registrytoken": "hunter4"},
    }}));
    let text = format!("{credentials:?} {:?}", credentials.matching("a.io/x"));
    assert!(!text.contains("hunter"), "{text}");
    for bad in [
        &br#"{"auths": {"a": {"auth": "hunter2 no base64"}}}"#[..],
        br#"{"auths": "hunter2"}"#,
        b"hunter2",
    ] {
        let error = Credentials::from_docker_config(bad).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hunter"), "{text}");
    }
}

proptest! {
    #[test]
    fn any_text_is_refused_or_read(text in ".{0,200}") {
        if let Ok(credentials) = Credentials::from_docker_config(text.as_bytes()) {
            prop_assert!(credentials.matching("r.io/x").len() <= text.len());
        }
    }
}
