//! A run begins like the first one on a host, unless it is to go on from the last one.

use super::*;

#[test]
fn nothing_is_left_of_the_last_run() {
    if !is_root("nothing_is_left_of_the_last_run") {
        return;
    }
    let package = package("#!/bin/bash\necho \"$1 $(cd configmaps && echo *)\" >>/log\n");
    let config = package.path().join("config.json");
    let once = fs::read_to_string(&config)
        .unwrap()
        .replace("\"idempotence\":true", "\"idempotence\":false");
    fs::write(&config, once).unwrap();
    let root = root_with_bash();
    fs::write(package.path().join("key"), "value").unwrap();
    let run = |more: &[&str]| {
        let log = root.path().join("log");
        let _absent = fs::remove_file(&log);
        let output = configured_run(package.path(), root.path())
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        (fs::read_to_string(log).unwrap(), text(&output))
    };
    let other = format!("more={}", package.path().join("key").display());
    let (log, said) = run(&["--config-map", &other]);
    assert!(log.starts_with("apply key more\n"), "{log}");
    assert!(!said.contains("not run again"), "{said}");

    let (log, _) = run(&[]);
    assert!(log.starts_with("apply key\napply-check key\n"), "{log}");

    let (log, said) = run(&["--again"]);
    assert!(log.starts_with("apply-check key\nconfig key\n"), "{log}");
    assert!(
        said.contains("] apply step apply\n  it ran before, and is not run again\n"),
        "{said}"
    );
}

#[test]
fn two_runs_do_not_write_the_same_files() {
    if !is_root("two_runs_do_not_write_the_same_files") {
        return;
    }
    let (package, root) = stubborn();
    let mut first = configured_run(package.path(), root.path()).spawn().unwrap();
    await_file(&root.path().join("begun"));
    let second = configured_run(package.path(), root.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1), "{}", text(&second));
    let want = "another local-run writes the same files: wait for its end";
    assert!(text(&second).contains(want), "{}", text(&second));
    kill(
        Pid::from_raw(i32::try_from(first.id()).unwrap()),
        Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(1));
}
