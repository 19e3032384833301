//! What steps print is shown while they run.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use super::*;

#[test]
fn what_a_step_prints_is_seen_while_it_runs() {
    if !is_root("what_a_step_prints_is_seen_while_it_runs") {
        return;
    }
    let package = package(
        "#!/bin/bash\n[[ $1 == apply ]] || exit 0\necho waiting\nwhile [[ ! -e /go ]]; do :; done\necho failing >&2\nprintf end\n",
    );
    let root = root_with_bash();
    fs::write(package.path().join("key"), "value").unwrap();
    let mut child = configured_run(package.path(), root.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("  | waiting"));
    assert!(
        child.try_wait().unwrap().is_none(),
        "the step waits for the file"
    );
    fs::write(root.path().join("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    let rest: Vec<String> = lines.take(3).collect();
    assert_eq!(rest, ["  ! failing", "  | end", "a_package 1.2.3"]);

    let output = configured_run(package.path(), root.path())
        .arg("--quiet")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(!text(&output).contains("waiting"), "{}", text(&output));
}
