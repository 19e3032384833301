use super::*;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

fn package(image: &str, version: &str) -> Package {
    Package {
        image: image.into(),
        version: version.into(),
        ..Package::default()
    }
}

#[test]
fn normalising_keeps_ports_and_pins() {
    let pinned = format!("r/x@{DIGEST}");
    for (image, sha, want_image, want_sha) in [
        ("ghcr.io/a/b", None, "ghcr.io/a/b", None),
        ("localhost:5000/a/b:1.2.3", None, "localhost:5000/a/b", None),
        (pinned.as_str(), None, "r/x", Some(DIGEST)),
        (pinned.as_str(), Some(DIGEST), "r/x", Some(DIGEST)),
        ("r/x", Some(OTHER), "r/x", Some(OTHER)),
        ("r/x", Some(""), "r/x", None),
    ] {
        let given = Package {
            container_sha: sha.map(str::to_owned),
            ..package(image, "1.2.3")
        };
        let got = given.normalised("pkg").unwrap();
        assert_eq!(
            (got.image.as_str(), got.container_sha.as_deref()),
            (want_image, want_sha),
            "{image}"
        );
        assert_eq!(got.name, "pkg");
    }
}

fn problems(given: &Package) -> Vec<String> {
    let errors = given.normalised("pkg").unwrap_err();
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_that_is_wrong_is_found_with_its_field() {
    let given: Package = serde_json::from_value(serde_json::json!({
        "version": "latest",
        "image": "r/x y:2.0.0",
        "containerSHA": "sha256:cd",
        "configMap": { "a/b": "", "good": "", "..": "" },
        "configInterrupts": { "good": { "type": "noop" }, "g*": { "type": "noop" }, "bad": { "type": "noop" }, "x*": { "type": "noop" } },
        "env": [
            { "name": "A=B" },
            { "name": "B", "value": "b", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
            { "name": "C", "value": "", "valueFrom": {} },
        ],
        "resources": { "cpuRequest": 2, "cpuLimit": 1, "memoryLimit": "0" },
        "gracefulShutdown": "soon",
        "stageTimeout": "-5m",
        "maxAttempts": -1,
        "uninstall": { "apply": true },
    }))
    .unwrap();
    let duration =
        "must be a duration greater than or equal to 0 (write for example 30s, 1m30s or 2h)";
    let want = [
        "version: error version string is invalid: latest (write for example 1.2.3, v1.2 or 1.2.3-rc.1)",
        "image: not an image: write a registry and a path without spaces; a digest is sha256: and 64 hexadecimal digits",
        "image: the tag is the version, so leave out :2.0.0 or write it as version latest",
        "containerSHA: not a digest: write sha256: and 64 hexadecimal digits, or leave it out",
        r#"configMap: not file names of at most 253 characters A-Z, a-z, 0-9, -, _ and .: ["..", "a/b"]"#,
        r#"configInterrupts: neither a key of configMap nor a glob that matches one: ["bad", "x*"]"#,
        r#"env[0].name: "A=B" is not the name of a variable: write printable ASCII characters without ="#,
        "env[1]: value and valueFrom are mutually exclusive: leave one of them out",
        "env[2].valueFrom: set exactly one of configMapKeyRef, fieldRef, fileKeyRef, resourceFieldRef and secretKeyRef",
        "resources: set all four of cpuRequest, cpuLimit, memoryRequest, memoryLimit, or none",
        "resources.memoryLimit: it is 0, and must be above zero",
        "resources.cpuLimit: cpuLimit is below cpuRequest: raise the limit or lower the request",
        &format!("gracefulShutdown: {duration}"),
        &format!("stageTimeout: {duration}"),
        "maxAttempts: it is -1, and must be 0 or more",
        "uninstall.apply: uninstall.apply requires uninstall.enabled to be true: set enabled to true, or apply to false",
    ];
    assert_eq!(
        problems(&given),
        want.map(|one| format!("spec.packages[pkg].{one}"))
    );
}

#[test]
fn images_and_digests_are_well_formed() {
    let not_an_image = "spec.packages[pkg].image: not an image";
    let pinned = format!("r/x@{DIGEST}");
    let twice = format!("r/x@{DIGEST}@{DIGEST}");
    let in_capitals = format!("r/x@{}", DIGEST.to_uppercase());
    for (image, sha, want) in [
        ("", "", not_an_image),
        (":1.0.0", "", not_an_image),
        ("/x", "", not_an_image),
        ("r/x@", "", not_an_image),
        ("r/x@sha256:ab", "", not_an_image),
        (twice.as_str(), "", not_an_image),
        (in_capitals.as_str(), "", not_an_image),
        ("r/x", "ab", "spec.packages[pkg].containerSHA: not a digest"),
        (
            pinned.as_str(),
            OTHER,
            "spec.packages[pkg].containerSHA: image carries another digest",
        ),
    ] {
        let given = Package {
            container_sha: Some(sha.to_owned()),
            ..package(image, "1.0.0")
        };
        let problems = problems(&given);
        assert_eq!(problems.len(), 1, "{image}: {problems:?}");
        assert!(problems[0].starts_with(want), "{image}: {problems:?}");
    }
}

#[test]
fn keys_of_a_config_map_are_file_names() {
    for (key, valid) in [
        ("colors", true),
        ("_a-b.C.sh", true),
        (".bashrc", true),
        ("", false),
        (".", false),
        ("..", false),
        ("..data", false),
        ("a/b", false),
        ("/etc/passwd", false),
        ("../../etc/passwd", false),
        ("a b", false),
    ] {
        let given = Package {
            config_map: [(key.to_owned(), String::new())].into(),
            ..package("r/x", "1.0.0")
        };
        let got = given.normalised("pkg");
        assert_eq!(got.is_ok(), valid, "{key:?}: {got:?}");
        if let Err(problem) = got {
            assert!(
                problem.to_string().ends_with(&format!(": [{key:?}]")),
                "{problem}"
            );
        }
    }
}

#[test]
fn limits_are_not_below_requests() {
    let resources = |request: &str, limit: &str| Package {
        resources: Some(Resources {
            cpu_request: Some(Quantity(request.into())),
            cpu_limit: Some(Quantity(limit.into())),
            memory_request: Some(Quantity("64Mi".into())),
            memory_limit: Some(Quantity("1Gi".into())),
        }),
        ..package("r/x", "1.0.0")
    };
    let path = "spec.packages[pkg].resources";
    assert!(resources("500m", "1").normalised("pkg").is_ok());
    assert_eq!(
        problems(&resources("2", "1")),
        [format!(
            "{path}.cpuLimit: cpuLimit is below cpuRequest: raise the limit or lower the request"
        )]
    );
    assert_eq!(
        problems(&resources("0", "x")),
        [
            format!("{path}.cpuRequest: it is 0, and must be above zero"),
            format!(
                "{path}.cpuLimit: \"x\" is not a Kubernetes quantity (write for example 500m, 2 or 512Mi)"
            ),
        ]
    );
    let empty = Package {
        resources: Some(Resources::default()),
        ..package("r/x", "1.0.0")
    };
    assert!(empty.normalised("pkg").is_ok());
}

#[test]
fn merging_takes_the_strongest_and_unites_services() {
    let interrupt = |kind, services: &[&str]| Interrupt {
        kind,
        services: services.iter().map(|s| (*s).to_owned()).collect(),
    };
    let cron = interrupt(InterruptType::Service, &["cron"]);
    let both = interrupt(InterruptType::Service, &["containerd", "cron"]);
    let reboot = interrupt(InterruptType::Reboot, &[]);
    assert_eq!(Interrupt::merge([]), None);
    assert_eq!(Interrupt::merge([&cron, &both]), Some(both.clone()));
    assert_eq!(Interrupt::merge([&cron, &reboot, &both]), Some(reboot));
    assert_eq!(
        Interrupt::merge([
            &interrupt(InterruptType::Noop, &[]),
            &interrupt(InterruptType::RestartAllServices, &[])
        ]),
        Some(interrupt(InterruptType::RestartAllServices, &[]))
    );
}

#[test]
fn state_entries_have_the_bytes_tools_compare() {
    let status = PackageStatus {
        name: "dax".into(),
        version: "1.2.3".into(),
        image: "ghcr.io/nvidia/skyhook/agentless".into(),
        container_sha: None,
        stage: Stage::PostInterrupt,
        state: State::Complete,
        restarts: 0,
    };
    assert_eq!(
        serde_json::to_string(&status).unwrap(),
        r#"{"name":"dax","version":"1.2.3","image":"ghcr.io/nvidia/skyhook/agentless","stage":"post-interrupt","state":"complete"}"#
    );
}

#[test]
fn what_a_package_says_about_its_uninstall() {
    for (given, to_go, stays) in [
        (None, false, false),
        (Some((false, false)), false, true),
        (Some((true, false)), false, false),
        (Some((true, true)), true, false),
    ] {
        let uninstall = given.map(|(enabled, apply)| Uninstall { enabled, apply });
        let given = Package {
            uninstall,
            ..package("r/x", "1.0.0")
        };
        assert!(given.normalised("pkg").is_ok(), "{uninstall:?}");
        let said = (given.is_to_go(), given.stays_behind());
        assert_eq!(said, (to_go, stays), "{uninstall:?}");
    }
    let left_out: Uninstall = serde_json::from_str("{}").unwrap();
    let without = Package {
        uninstall: Some(Uninstall {
            enabled: false,
            apply: true,
        }),
        ..package("r/x", "1.0.0")
    };
    let message = without.normalised("pkg").unwrap_err().to_string();
    let want = "spec.packages[pkg].uninstall.apply: uninstall.apply requires uninstall.enabled to be true: set enabled";
    assert!(message.starts_with(want), "{message}");
    assert_eq!(left_out, Uninstall::default());
}
