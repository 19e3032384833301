use super::*;

fn package(image: &str, version: &str) -> Package {
    Package {
        image: image.into(),
        version: version.into(),
        ..Package::default()
    }
}

#[test]
fn normalising_keeps_ports_and_pins() {
    for (image, sha, want_image, want_sha) in [
        ("ghcr.io/a/b", None, "ghcr.io/a/b", None),
        ("localhost:5000/a/b:1.2.3", None, "localhost:5000/a/b", None),
        ("r/x@sha256:ab", None, "r/x", Some("sha256:ab")),
        ("r/x", Some("sha256:cd"), "r/x", Some("sha256:cd")),
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

#[test]
fn bad_packages_name_the_field() {
    for (key, given, want) in [
        (
            "p",
            package("r/x", "1.0.0"),
            "package name [p] is not valid",
        ),
        (
            "p1",
            package("r/x", "1.0.0"),
            "package name [p1] is not valid",
        ),
        (
            "pkg",
            Package {
                name: "other".into(),
                ..package("r/x", "1.0.0")
            },
            "name must not be set explicitly",
        ),
        (
            "pkg",
            package("r/x", "latest"),
            "version string for pkg is invalid: latest",
        ),
        ("pkg", package("r/x:2.0.0", "1.0.0"), "leave out :2.0.0"),
        (
            "pkg",
            package("", "1.0.0"),
            "spec.packages[pkg].image is empty",
        ),
        (
            "pkg",
            Package {
                resources: Some(Resources {
                    cpu_limit: Some(Quantity("1".into())),
                    ..Resources::default()
                }),
                ..package("r/x", "1.0.0")
            },
            "cpuRequest is missing",
        ),
        (
            "pkg",
            Package {
                graceful_shutdown: Some(GoDuration("soon".into())),
                ..package("r/x", "1.0.0")
            },
            "gracefulShutdown",
        ),
        (
            "pkg",
            Package {
                stage_timeout: Some(GoDuration("-5m".into())),
                ..package("r/x", "1.0.0")
            },
            "spec.packages[pkg].stageTimeout: \"-5m\" is not a duration",
        ),
        (
            "pkg",
            Package {
                max_attempts: Some(-1),
                ..package("r/x", "1.0.0")
            },
            "spec.packages[pkg].maxAttempts is -1",
        ),
        (
            "pkg",
            Package {
                container_sha: Some("sha256:cd".into()),
                ..package("r/x@sha256:ab", "1.0.0")
            },
            "leave one out",
        ),
    ] {
        let message = given.normalised(key).unwrap_err().to_string();
        assert!(message.contains(want), "{message:?} does not say {want:?}");
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
            let field = format!("spec.packages[pkg].configMap[{key:?}]: ");
            assert!(problem.to_string().starts_with(&field), "{problem}");
        }
    }
}

#[test]
fn limits_are_not_below_requests() {
    let resources = |request: &str, limit: &str| Resources {
        cpu_request: Some(Quantity(request.into())),
        cpu_limit: Some(Quantity(limit.into())),
        memory_request: Some(Quantity("64Mi".into())),
        memory_limit: Some(Quantity("1Gi".into())),
    };
    assert_eq!(resources("500m", "1").validate(), Ok(()));
    assert_eq!(
        resources("2", "1").validate(),
        Err("cpuLimit is below cpuRequest".into())
    );
    assert!(
        resources("0", "1")
            .validate()
            .unwrap_err()
            .contains("above zero")
    );
    assert_eq!(Resources::default().validate(), Ok(()));
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
