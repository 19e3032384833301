use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn basic(username: &str, password: &str) -> Login {
    Login::Basic {
        username: username.into(),
        password: password.into(),
    }
}

/// The logins for an image, in the order in which they are tried.
fn logins(credentials: &Credentials, name: &str) -> Vec<Login> {
    let matches = credentials.matching(name).into_iter();
    matches.map(|found| found.login).collect()
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
        assert_eq!(logins(&credentials, name), want, "{name}");
    }
    let legacy = read(&json!({"a.io": {"username": "u", "password": "p"}}));
    assert_eq!(logins(&legacy, "a.io/x"), [basic("u", "p")]);
}

fn login(pattern: &str, username: &str, password: &str) -> Credentials {
    read(&json!({"auths": {pattern: {"username": username, "password": password}}}))
}

#[test]
fn merged_secrets_are_tried_most_specific_first_and_each_once() {
    let one = login("r.io", "a", "1");
    let two = login("r.io/team", "b", "2");
    let merged = one.clone().merge(two).merge(one);
    assert_eq!(
        logins(&merged, "r.io/team/x"),
        [basic("b", "2"), basic("a", "1")]
    );
    assert_eq!(logins(&merged, "r.io/x"), [basic("a", "1")]);
}

#[test]
fn secrets_come_before_the_logins_of_the_node_whatever_their_keys_are() {
    let secrets = login("r.io", "a", "1").merge(login("*.io", "b", "2"));
    let node = login("r.io/team", "c", "3").merge(login("r.io/team/x", "d", "4"));
    let all = secrets.then(node).then(login("r.io", "a", "1"));
    let users: Vec<String> = logins(&all, "r.io/team/x")
        .into_iter()
        .map(|login| match &login {
            Login::Basic { username, .. } => username.clone(),
            Login::IdentityToken(_) | Login::RegistryToken(_) => panic!("{login:?}"),
        })
        .collect();
    assert_eq!(users, ["a", "b", "d", "c"]);
}

#[test]
fn a_bad_entry_or_secret_harms_itself_alone_and_is_named() {
    let good = json!({"auth": STANDARD.encode("u:p")});
    let bad = read(&json!({"auths": {
        "r.io": {"auth": "hunter2 no base64"}, "other.io": {"auth": 1}, "r.io/team": good,
    }}));
    let broken = Credentials::unusable("pull secret old", "it does not exist");
    let all = broken
        .merge(bad.from_source("pull secret a"))
        .merge(login("r.io", "a", "1").from_source("pull secret b"));
    let sources: Vec<_> = all
        .matching("r.io/team/x")
        .into_iter()
        .map(|it| it.source)
        .collect();
    assert_eq!(sources, ["pull secret a".into(), "pull secret b".into()]);
    assert_eq!(
        all.problems("r.io/team/x"),
        [
            "pull secret old: it does not exist",
            "pull secret a: auths[\"r.io\"].auth is not base64 of user:password",
        ]
    );
    assert_eq!(
        all.problems("other.io/x")[1],
        "pull secret a: auths[\"other.io\"].auth is not a text"
    );
    assert_eq!(all.all_problems().len(), 3);
    assert!(!format!("{all:?}").contains("hunter2"));
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
        &br#"{"auths": "hunter2"}"#[..],
        b"[\"hunter2\"]",
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
