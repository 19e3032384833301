//! `validate`.

use serde_json::Value;

use super::*;

/// Changes the `config.json` of a package.
fn edit(package: &TempDir, change: impl FnOnce(&mut Value)) {
    let file = package.path().join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    fs::write(&file, config.to_string()).unwrap();
}

fn validate(package: &TempDir, more: &[&str]) -> Output {
    let directory = package.path().to_str().unwrap();
    agent(&[&["validate", directory], more].concat())
}

#[test]
fn validate_says_what_is_wrong_and_where() {
    let package = package("echo no interpreter\r\n");
    edit(&package, |config| {
        let step = &mut config["modes"]["apply"][0];
        step["returncode"] = 0.into();
        step["arguments"] = serde_json::json!(["env:REGISTRY_TOKEN", 7]);
    });
    let nested = package.path().join("skyhook_dir/lib/nested.sh");
    fs::create_dir_all(nested.parent().unwrap()).unwrap();
    fs::write(&nested, "#!/bin/bash\n").unwrap();
    let output = validate(&package, &[]);
    let said = text(&output);
    assert!(output.status.success(), "{said}");
    for want in [
        "warning: modes.apply[0].path: step.sh has no #! line: sh runs it here, and NVIDIA Skyhook cannot run it",
        "CRLF",
        "step.sh is not executable",
        "warning: modes.apply[0].returncode: is no field",
        "warning: modes.apply[0].arguments[1]: is no string: NVIDIA Skyhook refuses the package",
        "warning: modes.apply[0].returncodes: has 3, for which NVIDIA Skyhook sees 1",
        "warning: modes.apply[0].arguments[0]: every user of the host sees the arguments of a step",
        "warning: skyhook_dir/lib/nested.sh: is a script and not executable",
        "\na_package 1.2.3\n0 errors, ",
    ] {
        assert!(said.contains(want), "{want}: {said}");
    }
    let strict = validate(&package, &["--strict"]);
    assert_eq!(strict.status.code(), Some(1), "{}", text(&strict));

    edit(&package, |config| config["package_version"] = "v1".into());
    let output = validate(&package, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: package_version"), "{said}");

    let output = validate(&package, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&report["errors"], &report["package"]),
        (&1.into(), &Value::Null)
    );
    let error = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["severity"] == "error");
    assert_eq!(error.unwrap()["field"], "package_version");
}
