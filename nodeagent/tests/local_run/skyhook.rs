//! `-f`: what a Skyhook says about its package counts.

use super::*;

const SKYHOOK: &str = "
apiVersion: skyhook.nvidia.com/v1alpha1
kind: Skyhook
metadata: {name: gpu-init}
spec:
  packages:
    in-skyhook:
      version: 1.2.3
      image: r.example/a
      configMap: {key: of the Skyhook}
      env:
        - {name: WHO, value: somebody}
        - {name: WHERE, value: there}
      interrupt: {type: noop}
      stageTimeout: 1s
    secret:
      version: 1.2.3
      image: r.example/a
      configMap: {key: v}
      env:
        - name: WHO
          valueFrom: {secretKeyRef: {name: team, key: token}}
";

#[test]
fn the_package_of_a_skyhook_is_run_as_the_skyhook_says() {
    if !is_root("the_package_of_a_skyhook_is_run_as_the_skyhook_says") {
        return;
    }
    let package = package(
        "#!/bin/bash\necho \"$* $WHERE $(<configmaps/key) ${SKYHOOK_RESOURCE_ID#*_}\" >>/log\nwhile [[ $WHERE == slow ]]; do :; done\n",
    );
    let root = root_with_bash();
    let file = package.path().join("skyhook.yaml");
    fs::write(&file, SKYHOOK).unwrap();
    let run = |name: Option<&str>, more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skyhook-agent"));
        command
            .arg("local-run")
            .arg(package.path())
            .arg("--root")
            .arg(root.path());
        command.arg("--filename").arg(&file).args(more);
        command.args(name.iter().flat_map(|name| ["--package", name]));
        command.output().unwrap()
    };
    let log = || fs::read_to_string(root.path().join("log")).unwrap_or_default();

    let output = run(None, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("choose one of its packages with --package: in-skyhook, secret")
    );

    let output = run(Some("in-skyhook"), &[]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("interrupt       ok"),
        "{}",
        text(&output)
    );
    let line =
        |mode: &str, who: &str| format!("{mode} {who} there of the Skyhook in-skyhook_1.2.3\n");
    let all = |who| {
        ["apply", "apply-check", "config", "config-check"]
            .map(|mode| line(mode, who))
            .concat()
    };
    assert_eq!(log(), all("somebody"));

    fs::remove_file(root.path().join("log")).unwrap();
    let output = run(Some("in-skyhook"), &["--env", "WHO=me"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(log(), all("me"), "a flag counts more than the Skyhook");

    let output = run(Some("in-skyhook"), &["--env", "WHERE=slow"]);
    assert_eq!(output.status.code(), Some(12), "{}", text(&output));
    assert!(
        text(&output).contains("took longer than 1s, the stageTimeout of the package"),
        "{}",
        text(&output)
    );

    fs::remove_file(root.path().join("log")).unwrap();
    let output = run(Some("secret"), &[]);
    assert_eq!(output.status.code(), Some(12), "{}", text(&output));
    let want = "env WHO: Secret team does not exist. Give a value with --env NAME=VALUE";
    assert!(
        text(&output).to_lowercase().contains(&want.to_lowercase()),
        "{}",
        text(&output)
    );
    let output = run(Some("secret"), &["--env", "WHO=me"]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn without_a_source_the_image_is_that_of_the_skyhook() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("skyhook.yaml");
    fs::write(&file, SKYHOOK.replace("r.example/a", "127.0.0.1:1/a")).unwrap();
    let output = agent(&[
        "local-run",
        "-f",
        file.to_str().unwrap(),
        "--package",
        "secret",
        "--dry-run",
        "--insecure-registry",
        "127.0.0.1:1",
    ]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("127.0.0.1:1/a:1.2.3"),
        "{}",
        text(&output)
    );
    let output = agent(&["local-run"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
}
