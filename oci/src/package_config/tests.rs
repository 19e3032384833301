#![expect(clippy::disallowed_methods, reason = "tests make files")]

use serde_json::{Value, json};

use super::*;

fn step(name: &str) -> Value {
    json!({"name": name, "path": format!("{name}.sh"), "arguments": [], "returncodes": [0],
        "on_host": true, "idempotence": true, "upgrade_step": false, "env": {}})
}

fn good() -> Value {
    json!({
        "schema_version": "v1", "package_name": "p", "package_version": "1.2.3-rc.1+b",
        "expected_config_files": ["a"], "$schema": "config.schema.json",
        "modes": {
            "apply": [step("a")], "apply-check": [step("a_check")],
            "post-interrupt-check": [step("b")], "upgrade": [], "upgrade-check": [],
        },
    })
}

fn run(value: &Value) -> Report {
    check(value.to_string().as_bytes(), &|path| match path {
        "gone.sh" => StepFile::Missing,
        "out.sh" => StepFile::Outside,
        _ => StepFile::Present,
    })
}

fn texts(problems: &[Problem]) -> Vec<String> {
    let label = |problem: &Problem| match problem.severity {
        Severity::Error => format!("error: {problem}"),
        Severity::Warning => format!("warning: {problem}"),
    };
    problems.iter().map(label).collect()
}

#[test]
fn a_good_config_is_read_whole() {
    let (config, warnings) = run(&good()).into_result().unwrap();
    assert_eq!(warnings, []);
    let read = |name: &str| Step {
        name: name.into(),
        path: format!("{name}.sh"),
        arguments: vec![],
        returncodes: vec![0],
        on_host: true,
        idempotence: true,
        upgrade_step: false,
        env: BTreeMap::new(),
    };
    let want = PackageConfig {
        package_name: "p".into(),
        package_version: "1.2.3-rc.1+b".into(),
        expected_config_files: vec!["a".into()],
        modes: [
            ("apply", vec![read("a")]),
            ("apply-check", vec![read("a_check")]),
            ("post-interrupt-check", vec![read("b")]),
        ]
        .map(|(mode, steps)| (mode.to_owned(), steps))
        .into(),
    };
    assert_eq!(config, want);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn each_rule_names_its_field() {
    type Edit = fn(&mut Value);
    let table: [(Edit, &[&str]); 26] = [
        (
            |v| v["schema_version"] = json!("v2"),
            &["error: schema_version: is \"v2\", must be \"v1\""],
        ),
        (
            |v| v["package_name"] = json!(7),
            &["error: package_name: must be a string"],
        ),
        (
            |v| v["package_name"] = json!(""),
            &[
                "error: package_name: \"\" is not a name: it may only have letters, digits, '_', '-' and '.'",
            ],
        ),
        (
            |v| v["package_name"] = json!("../../etc"),
            &[
                "error: package_name: \"../../etc\" is not a name: it may only have letters, digits, '_', '-' and '.'",
            ],
        ),
        (
            |v| v["package_name"] = json!(".."),
            &[
                "error: package_name: \"..\" is not a name: it may only have letters, digits, '_', '-' and '.'",
            ],
        ),
        (
            |v| v["package_version"] = json!("v1.2.3"),
            &[
                "error: package_version: \"v1.2.3\" is not of the form x.y.z[-prerelease][+build]: unexpected character 'v' while parsing major version number",
            ],
        ),
        (
            |v| v["package_version"] = json!("1.2"),
            &[
                "error: package_version: \"1.2\" is not of the form x.y.z[-prerelease][+build]: unexpected end of input while parsing minor version number",
            ],
        ),
        (
            |v| v["expected_config_files"] = json!({}),
            &["error: expected_config_files: must be an array of strings"],
        ),
        (
            |v| v["modes"] = json!([]),
            &["error: modes: must be an object of mode to steps"],
        ),
        (
            |v| v["modes"] = json!({}),
            &["error: modes: must have at least one step"],
        ),
        (
            |v| v["modes"] = json!({"apply-check": [step("a")]}),
            &["error: modes: has only checks: at least one mode must do something"],
        ),
        (
            |v| v["modes"]["apply-check"] = json!([]),
            &["error: modes.apply: has no apply-check with steps"],
        ),
        (
            |v| v["modes"]["apply"][0]["name"] = json!("a b"),
            &[
                "error: modes.apply[0].name: \"a b\" is not a name: it may only have letters, digits, '_', '-' and '.'",
            ],
        ),
        (
            |v| v["modes"]["apply"][0]["returncodes"] = json!([]),
            &["error: modes.apply[0].returncodes: must be an array of at least one integer"],
        ),
        (
            |v| v["modes"]["apply"][0]["path"] = json!("../x"),
            &["error: modes.apply[0].path: \"../x\" must stay below skyhook_dir"],
        ),
        (
            |v| v["modes"]["apply-check"][0]["path"] = json!("gone.sh"),
            &["error: modes.apply-check[0].path: skyhook_dir/gone.sh does not exist"],
        ),
        (
            |v| v["modes"]["apply-check"][0]["path"] = json!("out.sh"),
            &[
                "warning: modes.apply-check[0].path: skyhook_dir/out.sh is a symlink out of the package",
            ],
        ),
        (
            |v| v["modes"]["apply"][0]["upgrade_step"] = json!(true),
            &["error: modes.apply[0].upgrade_step: is only allowed in upgrade and upgrade-check"],
        ),
        (
            |v| v["modes"]["apply-check"] = json!([step("other")]),
            &["warning: modes.apply[0]: step \"a\" has no \"a_check\" in apply-check"],
        ),
        (
            |v| v["extra"] = json!({"is": "allowed"}),
            &["warning: extra: is no field: nothing reads it"],
        ),
        (
            |v| v["modes"]["apply"][0]["return_codes"] = json!([1]),
            &["warning: modes.apply[0].return_codes: is no field: nothing reads it"],
        ),
        (
            |v| v["modes"]["apply"][0]["arguments"] = json!(["a", 7]),
            &[
                "warning: modes.apply[0].arguments[1]: is no string: NVIDIA Skyhook refuses the package",
            ],
        ),
        (
            |v| v["modes"]["apply"][0]["env"] = json!({"A": "a", "B": true}),
            &["warning: modes.apply[0].env.B: is no string: NVIDIA Skyhook refuses the package"],
        ),
        (
            |v| v["modes"]["apply"][0]["returncodes"] = json!([0, 1, 3, 77]),
            &[
                "warning: modes.apply[0].returncodes: has 3, 77, for which NVIDIA Skyhook sees 1: there the step fails",
            ],
        ),
        (
            |v| v["modes"]["apply"][0]["returncodes"] = json!([0, -1, 256]),
            &["warning: modes.apply[0].returncodes: has -1, 256, with which no program ends"],
        ),
        (
            |v| v["modes"]["aply"] = json!([]),
            &["warning: modes.aply: is not a mode: no stage runs its steps"],
        ),
    ];
    for (index, (edit, want)) in table.into_iter().enumerate() {
        let mut value = good();
        edit(&mut value);
        let report = run(&value);
        let got = texts(&report.problems);
        assert_eq!(got, want, "row {index}");
        assert_eq!(
            report.config.is_none(),
            report.errors().count() > 0,
            "row {index}"
        );
    }
}

/// The place of a JSON pointer, which need not exist.
fn place<'a>(value: &'a mut Value, pointer: &str) -> &'a mut Value {
    let keys = pointer.split('/').skip(1);
    keys.fold(value, |place, key| match key.parse::<usize>() {
        Ok(index) => &mut place[index],
        Err(_) => &mut place[key],
    })
}

/// The table that the JSON Schema for editors is held against in `oci/schema`.
#[test]
fn the_check_says_what_the_table_says() {
    let table = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/cases.json");
    let table: Value = serde_json::from_slice(&std::fs::read(table).unwrap()).unwrap();
    for case in table["cases"].as_array().unwrap() {
        let mut value = table["good"].clone();
        for (pointer, new) in case["set"].as_object().into_iter().flatten() {
            *place(&mut value, pointer) = new.clone();
        }
        let removed = case["remove"].as_str();
        if let Some((parent, key)) = removed.and_then(|it| it.rsplit_once('/')) {
            let parent = place(&mut value, parent).as_object_mut();
            assert!(parent.unwrap().remove(key).is_some(), "{case}");
        }
        let report = run(&value);
        let problems = texts(&report.problems);
        let is_refused = case["refused"] != "nobody";
        assert_eq!(report.config.is_none(), is_refused, "{case}: {problems:?}");
    }
}

#[test]
fn all_problems_are_listed_at_once() {
    let value = json!({"schema_version": 1, "modes": {
        "apply": [{"name": "x", "path": "gone.sh"}], "upgrade": [7], "upgrade-check": [7]}});
    let error = run(&value).into_result().unwrap_err();
    let want = [
        "schema_version: must be a string",
        "package_name: is missing: must be a string",
        "package_version: is missing: must be a string",
        "expected_config_files: is missing: must be an array of strings",
        "modes.apply[0].path: skyhook_dir/gone.sh does not exist",
        "modes.apply[0].arguments: is missing: must be an array of strings",
        "modes.apply[0].returncodes: is missing: must be an array of at least one integer",
        "modes.apply[0].on_host: is missing: must be true or false",
        "modes.apply[0].idempotence: is missing: must be true or false",
        "modes.apply[0].upgrade_step: is missing: must be true or false",
        "modes.upgrade[0]: must be a step object",
        "modes.upgrade-check[0]: must be a step object",
        "modes.apply: has no apply-check with steps",
    ];
    assert_eq!(
        error.to_string(),
        format!("config.json: {}", want.join("; "))
    );
}

#[test]
fn a_package_directory_is_read_without_leaving_it() {
    let dir = tempfile::tempdir().unwrap();
    let steps = dir.path().join("skyhook_dir");
    std::fs::create_dir(&steps).unwrap();
    std::fs::write(steps.join("a.sh"), "").unwrap();
    std::os::unix::fs::symlink("a.sh", steps.join("a_check.sh")).unwrap();
    std::os::unix::fs::symlink("/bin/true", steps.join("b.sh")).unwrap();
    let config = dir.path().join("config.json");
    std::fs::write(&config, good().to_string()).unwrap();
    let report = load(&crate::root::Root::open(dir.path()).unwrap()).unwrap();
    let want = "warning: modes.post-interrupt-check[0].path: \
                skyhook_dir/b.sh is a symlink out of the package";
    assert_eq!(texts(&report.problems), [want]);
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", &config).unwrap();
    let error = load(&crate::root::Root::open(dir.path()).unwrap()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::XDEV.raw_os_error()));
    std::fs::remove_file(&config).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &config, rustix::fs::Mode::RUSR).unwrap();
    let error = load(&crate::root::Root::open(dir.path()).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "it is a named pipe, and not a regular file"
    );
}

use rustix::io::Errno;
