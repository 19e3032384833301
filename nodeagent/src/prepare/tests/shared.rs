//! Two packages of a Skyhook that have one image: what the records on the host say of one is not said of the other.

use super::*;

const FLAG: &str = "var/lib/skyhook/s/flags/a_name/1.2.3/step.sh_W11fWzBd";

/// A host with the files of the packages aa and bb, which are the same.
fn host() -> TestHost {
    let host = TestHost::new(modes(json!({})));
    let copy = host.copy();
    let other = copy.with_file_name("bb-1.0.0-uid-4");
    fs::create_dir_all(other.join("skyhook_dir")).unwrap();
    for file in ["config.json", "skyhook_dir/step.sh"] {
        fs::copy(copy.join(file), other.join(file)).unwrap();
    }
    host
}

fn prepared(host: &TestHost, key: &str, stage: Stage) -> Prepared {
    let mut input = host.input(stage);
    key.clone_into(&mut input.package.name);
    input.shares_image = true;
    prepare(input).unwrap()
}

/// Whether the step of apply runs, of aa and of bb.
fn runs(host: &TestHost) -> [bool; 2] {
    ["aa", "bb"].map(|key| prepared(host, key, Stage::Apply).plan.main == [true])
}

#[test]
fn a_flag_of_one_package_skips_no_step_of_the_other() {
    let host = host();
    assert_eq!(runs(&host), [true, true]);
    for (key, want) in [("bb", [true, false]), ("aa", [false, false])] {
        let apply = prepared(&host, key, Stage::Apply);
        apply.note_step(Half::Main, 0, true).unwrap();
        assert_eq!(runs(&host), want, "{key} has run");
    }
    // An uninstall removes the flags of its own package.
    for (key, want, is_left) in [("aa", [true, false], true), ("bb", [true, true], false)] {
        prepared(&host, key, Stage::Uninstall).note_done().unwrap();
        assert_eq!(runs(&host), want, "{key} is uninstalled");
        assert_eq!(host.directory.path().join(FLAG).exists(), is_left);
    }
}

#[test]
fn a_flag_that_names_no_package_counts_where_one_package_has_the_image() {
    let host = host();
    let flag = host.directory.path().join(FLAG);
    fs::create_dir_all(flag.parent().unwrap()).unwrap();
    fs::write(&flag, "last_run: x\nstep_always_runs: False\n").unwrap();
    assert_eq!(runs(&host), [true, true]);
    assert_eq!(host.prepare(Stage::Apply).plan.main, [false]);
}

#[test]
fn each_package_has_its_own_version_before_an_upgrade() {
    let host = host();
    let before = |key| {
        let upgrade = prepared(&host, key, Stage::Upgrade);
        let arguments = upgrade.spec(Half::Main, 0).unwrap().arguments;
        arguments[0].reveal().to_owned()
    };
    assert_eq!(["aa", "bb"].map(before), ["unknown", "unknown"]);
    prepared(&host, "aa", Stage::Apply).note_done().unwrap();
    assert_eq!(["aa", "bb"].map(before), ["1.2.3", "unknown"]);
    prepared(&host, "bb", Stage::Apply).note_done().unwrap();
    prepared(&host, "aa", Stage::Uninstall).note_done().unwrap();
    assert_eq!(["aa", "bb"].map(before), ["uninstalled", "1.2.3"]);
}
