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

fn mount(at: &Path) {
    fs::create_dir_all(at).unwrap();
    let mut mount = std::process::Command::new("mount");
    mount.args(["-t", "tmpfs", "none"]);
    assert!(mount.arg(at).status().unwrap().success());
}

#[test]
fn a_mount_in_the_way_has_the_path_of_the_host() {
    let test = "prepare::tests::faults::a_mount_in_the_way_has_the_path_of_the_host";
    if !skyhook_testkit::in_own_mounts(test) {
        return;
    }
    let text = |input: StageInput, at: &str| {
        let text = prepare(input.clone()).unwrap_err().explained();
        let path = format!("/var/lib/skyhook/s/aa-1.0.0-uid-4/{at}");
        assert!(text.contains(&format!("(umount {path})")), "{text}");
        let root = input.host.files.path().to_str().unwrap();
        assert!(!text.contains(root), "{text}");
    };
    let host = TestHost::new(modes(json!({})));
    mount(&host.copy().join("configmaps/key"));
    let mut input = host.input(Stage::Apply);
    input.package.config_map = [("key".to_owned(), "value".to_owned())].into();
    text(input, "configmaps/key");

    let host = TestHost::new(modes(json!({})));
    let config = fs::read_to_string(host.copy().join("config.json")).unwrap();
    let (store, digest) = store_with(host.directory.path(), 10, &config);
    fs::remove_file(host.copy().join("skyhook_dir/step.sh")).unwrap();
    mount(&host.copy().join("skyhook_dir/step.sh/mnt"));
    let input = StageInput {
        store: Some(store),
        digest: Some(digest),
        ..host.input(Stage::Apply)
    };
    text(input, "skyhook_dir/step.sh/mnt");
}
