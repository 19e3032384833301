//! Packages whose files were changed on the host, and results that come twice.

use super::*;

/// After a crash, the agent may get the result of a step that it has written down already.
#[test]
fn a_check_that_is_noted_again_has_one_line() {
    let checks = json!([
        step(json!({})),
        step(json!({"path": "other.sh"})),
        step(json!({}))
    ]);
    let host = TestHost::new(json!({"apply": [step(json!({}))], "apply-check": checks}));
    host.put("skyhook_dir/other.sh", "#!/bin/bash\n");
    let apply = host.prepare(Stage::Apply);
    let file = host.copy().with_file_name("flags/check_results");
    for (index, success, want) in [
        (0, true, "step.sh True\n"),
        (1, false, "step.sh True\nother.sh False\n"),
        (1, true, "step.sh True\nother.sh True\n"),
        (2, true, "step.sh True\nother.sh True\nstep.sh True\n"),
        (0, false, "step.sh False\n"),
    ] {
        apply.note_step(Half::Check, index, success).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), want, "{index}");
    }
}

#[test]
fn a_step_that_config_json_does_not_have_any_more_is_named() {
    let host = TestHost::new(modes(json!({})));
    let error = host.prepare(Stage::Apply).spec(Half::Check, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "step 2 of mode apply-check cannot run, because the mode has 1 steps now: config.json on the host was changed \
         while the package was running"
    );
}

#[test]
fn a_named_pipe_in_the_package_is_an_error_and_is_not_read() {
    for name in ["config.json", "skyhook_dir/step.sh"] {
        let host = TestHost::new(modes(json!({})));
        let pipe = host.copy().join(name);
        let prepared = (name != "config.json").then(|| host.prepare(Stage::Apply));
        fs::remove_file(&pipe).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let input = host.input(Stage::Apply);
        std::thread::spawn(move || {
            let result = match prepared {
                Some(prepared) => prepared.spec(Half::Main, 0).map(drop),
                None => super::prepare(input).map(drop),
            };
            sender.send(result.map_err(|error| error.explained()))
        });
        let result = receiver.recv_timeout(std::time::Duration::from_secs(10));
        let error = result.expect("it waits for the pipe").unwrap_err();
        assert!(
            error.ends_with("it is a named pipe, and not a regular file"),
            "{error}"
        );
    }
}
