use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, ObjectFieldSelector, ResourceFieldSelector, SecretKeySelector,
};

use super::*;

fn literal(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: Some(value.into()),
        value_from: None,
    }
}

fn from(name: &str, source: EnvVarSource) -> EnvVar {
    EnvVar {
        name: name.into(),
        value: None,
        value_from: Some(source),
    }
}

fn secret(name: &str, key: &str, optional: bool) -> EnvVarSource {
    EnvVarSource {
        secret_key_ref: Some(SecretKeySelector {
            name: name.into(),
            key: key.into(),
            optional: Some(optional),
        }),
        ..EnvVarSource::default()
    }
}

fn config_map(name: &str, key: &str, optional: bool) -> EnvVarSource {
    EnvVarSource {
        config_map_key_ref: Some(ConfigMapKeySelector {
            name: name.into(),
            key: key.into(),
            optional: Some(optional),
        }),
        ..EnvVarSource::default()
    }
}

fn field(path: &str) -> EnvVarSource {
    EnvVarSource {
        field_ref: Some(ObjectFieldSelector {
            field_path: path.into(),
            api_version: None,
        }),
        ..EnvVarSource::default()
    }
}

fn resource(name: &str, divisor: Option<&str>) -> EnvVarSource {
    EnvVarSource {
        resource_field_ref: Some(ResourceFieldSelector {
            resource: name.into(),
            divisor: divisor
                .map(|d| k8s_openapi::apimachinery::pkg::api::resource::Quantity(d.into())),
            container_name: None,
        }),
        ..EnvVarSource::default()
    }
}

fn sources() -> Sources {
    Sources {
        node: NodeFacts {
            name: "worker-1".into(),
            uid: "uid".into(),
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            annotations: [("note".to_owned(), "x".to_owned())].into(),
            internal_ip: "10.0.0.1".into(),
            allocatable: [("memory".to_owned(), "2Gi".to_owned())].into(),
        },
        namespace: "skyhook".into(),
        resources: Some(Resources {
            cpu_limit: Some(Quantity("1500m".into())),
            ..Resources::default()
        }),
        secrets: [(
            "s".to_owned(),
            [
                ("k".to_owned(), b"hidden".to_vec()),
                ("binary".to_owned(), vec![0xff, 0xfe]),
            ]
            .into(),
        )]
        .into(),
        config_maps: [(
            "c".to_owned(),
            [("k".to_owned(), "shown".to_owned())].into(),
        )]
        .into(),
    }
}

#[test]
fn values_from_everywhere() {
    for (source, want) in [
        (secret("s", "k", false), Some("hidden")),
        (secret("s", "no", true), None),
        (secret("no", "k", true), None),
        (config_map("c", "k", false), Some("shown")),
        (config_map("no", "k", true), None),
        (field("spec.nodeName"), Some("worker-1")),
        (field("metadata.name"), Some("worker-1")),
        (field("metadata.namespace"), Some("skyhook")),
        (field("metadata.labels['zone']"), Some("a")),
        (field("metadata.labels['no']"), Some("")),
        (field("metadata.annotations['note']"), Some("x")),
        (field("status.hostIP"), Some("10.0.0.1")),
        (resource("limits.cpu", None), Some("2")),
        (resource("limits.cpu", Some("1m")), Some("1500")),
        (resource("limits.cpu", Some("0")), Some("2")),
        (resource("limits.cpu", Some("0m")), Some("2")),
        (resource("limits.memory", Some("0Ki")), Some("2147483648")),
        (resource("limits.memory", Some("1Mi")), Some("2048")),
        (resource("requests.cpu", None), Some("0")),
    ] {
        let values = resolve(&[from("X", source.clone())], &sources()).unwrap();
        let want: Vec<_> = want
            .map(|value| ("X".to_owned(), value.to_owned()))
            .into_iter()
            .collect();
        assert_eq!(values, want, "{source:?}");
    }
}

#[test]
fn what_is_missing_is_named() {
    for (source, want) in [
        (secret("no", "k", false), "env X: secret no does not exist"),
        (secret("s", "no", false), "env X: secret s has no key no"),
        (
            secret("s", "binary", true),
            "env X: key binary of secret s is not UTF-8 text, and an environment variable can hold nothing else",
        ),
        (
            config_map("no", "k", false),
            "env X: config map no does not exist",
        ),
        (
            config_map("c", "no", false),
            "env X: config map c has no key no",
        ),
        (
            resource("limits.disk", None),
            "env X: resourceFieldRef limits.disk",
        ),
        (
            resource("limits.cpu", Some("-1")),
            "env X: resourceFieldRef limits.cpu: divisor -1 must be positive",
        ),
        (
            field("status.phase"),
            "env X: fieldRef status.phase is not supported",
        ),
        (EnvVarSource::default(), "env X: valueFrom names a source"),
    ] {
        let error = resolve(&[from("X", source)], &sources()).unwrap_err();
        assert!(error.to_string().starts_with(want), "{error}");
    }
}

#[test]
fn references_to_earlier_variables() {
    let env = [
        literal("A", "1"),
        literal("B", "$(A)-$(NO)-$$(A)-$A-$(A"),
        literal("LINES", "one\ntwo"),
    ];
    let values = resolve(&env, &sources()).unwrap();
    assert_eq!(values[1].1, "1-$(NO)-$(A)-$A-$(A");
    assert_eq!(values[2].1, "one\ntwo");
}

#[test]
fn only_what_is_named_is_fetched() {
    let env = [
        from("A", secret("s", "k", true)),
        from("B", config_map("c", "k", false)),
        literal("C", ""),
    ];
    let want = Needs {
        secrets: ["s".to_owned()].into(),
        config_maps: ["c".to_owned()].into(),
    };
    assert_eq!(needs(&env), want);
}

#[test]
fn secrets_are_not_shown_in_debug_output() {
    assert!(!format!("{:?}", sources()).contains("hidden"));
}

#[test]
fn values_of_secrets_are_known() {
    let env = [
        from("A", secret("s", "k", false)),
        from("B", config_map("c", "k", false)),
        from("C", secret("no", "k", true)),
    ];
    assert_eq!(secret_values(&env, &sources()), ["hidden"]);
}
