//! Tests of what `logs` shows.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use clap::Parser as _;
use jiff::Timestamp;
use skyhook_crds::Stage;
use skyhook_crds::lease::SkyhookRef;

use super::*;
use crate::config::{Cli, Command};
use crate::logs::{LogFile, LogPair};

/// A host with the logs of three steps.
fn host() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (second, place, step, mode, lines) in [
        (0, "s/my_pkg/1.0.0", "old.sh", "apply", &["out old"][..]),
        (10, "s/my_pkg/2.0.0", "a.sh", "apply", &["out first run"]),
        (
            20,
            "s/my_pkg/2.0.0",
            "a.sh",
            "apply",
            &["out \x1b[31mred\x1b[0m", "err oops", "out 10%\r20%", "out "],
        ),
        (
            30,
            "s/my_pkg/2.0.0",
            "b.sh",
            "config-check",
            &["out checked"],
        ),
        (40, "t/other/1.0.0", "c.sh", "apply", &["out c"]),
    ] {
        let directory = root.path().join("var/log/skyhook").join(place);
        let log = LogFile {
            directory: directory.clone(),
            step: step.to_owned(),
            package: place.split('/').nth(1).unwrap().replace('_', "-"),
            mode: mode.to_owned(),
        };
        let time = Timestamp::from_second(second).unwrap();
        LogPair::create(&log, time).unwrap();
        let path = directory.join(format!("{step}-{}.log", time.strftime("%Y-%m-%d-%H%M%S")));
        for (at, line) in lines.iter().enumerate() {
            let (mark, text) = line.split_once(' ').unwrap();
            let path = match mark {
                "out" => path.clone(),
                _ => path.with_extension("log.err"),
            };
            let line = format!("[{mark}]2024-05-01T12:00:{second:02}.{at:06} {text}\n");
            append(&path, &line);
        }
    }
    root
}

fn append(path: &Path, text: &str) {
    let mut file = fs::File::options().append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

fn args(root: &Path, flags: &[&str]) -> Result<LogsArgs, clap::Error> {
    let root = format!("--host-root={}", root.display());
    let cli = Cli::try_parse_from([&["skyhook-agent", "logs", &root], flags].concat())?;
    let Command::Logs(args) = cli.command else {
        panic!("it is logs");
    };
    Ok(args)
}

fn shown(form: Form) -> Shown<Vec<u8>> {
    Shown {
        form,
        out: Vec::new(),
        last: None,
    }
}

fn logs(root: &Path, flags: &[&str]) -> String {
    let args = args(root, flags).unwrap();
    let mut out = Vec::new();
    let shown = Shown {
        form: args.output,
        out: &mut out,
        last: None,
    };
    run(&args, shown).unwrap();
    String::from_utf8(out).unwrap()
}

const LAST: &str = "\
=== s/my-pkg 2.0.0 apply 1970-01-01T00:00:20Z a.sh ===
[out]2024-05-01T12:00:20.000000 red
[err]2024-05-01T12:00:20.000001 oops
[out]2024-05-01T12:00:20.000002 10%
[out]2024-05-01T12:00:20.000002 20%
[out]2024-05-01T12:00:20.000003 \n";
const CHECK: &str = "\
=== s/my-pkg 2.0.0 config-check 1970-01-01T00:00:30Z b.sh ===
[out]2024-05-01T12:00:30.000000 checked
";
const OTHER: &str = "\
=== t/other 1.0.0 apply 1970-01-01T00:00:40Z c.sh ===
[out]2024-05-01T12:00:40.000000 c
";

#[test]
fn the_flags_say_which_lines_are_shown() {
    let host = host();
    let old = "\
=== s/my-pkg 1.0.0 apply 1970-01-01T00:00:00Z old.sh ===
[out]2024-05-01T12:00:00.000000 old
=== s/my-pkg 2.0.0 apply 1970-01-01T00:00:10Z a.sh ===
[out]2024-05-01T12:00:10.000000 first run
";
    let tail = "\
=== s/my-pkg 2.0.0 apply 1970-01-01T00:00:20Z a.sh ===
[out]2024-05-01T12:00:20.000003 \n";
    for (flags, want) in [
        (&[][..], [LAST, CHECK, OTHER].concat()),
        (&["--skyhook=s"], [LAST, CHECK].concat()),
        (&["--package=my-pkg", "--stage=apply"], LAST.to_owned()),
        (&["--stage=config"], CHECK.to_owned()),
        (&["--package=my-pkg", "--tail=1"], [tail, CHECK].concat()),
        (
            &["--package=my-pkg", "--tail", "-1"],
            [LAST, CHECK].concat(),
        ),
        (&["--tail=0"], String::new()),
        (&["--skyhook=s", "--all"], [old, LAST, CHECK].concat()),
        (&["--package=none"], String::new()),
    ] {
        assert_eq!(logs(host.path(), flags), want, "{flags:?}");
    }
}

#[test]
fn json_has_one_object_in_each_line() {
    let host = host();
    let want = concat!(
        r#"{"started":"1970-01-01T00:00:20Z","skyhook":"s","package":"my-pkg","version":"2.0.0","step":"a.sh","#,
        r#""mode":"apply","stream":"out","time":"2024-05-01T12:00:20.000000","text":"\u001b[31mred\u001b[0m"}"#,
        "\n",
        r#"{"started":"1970-01-01T00:00:20Z","skyhook":"s","package":"my-pkg","version":"2.0.0","step":"a.sh","#,
        r#""mode":"apply","stream":"err","time":"2024-05-01T12:00:20.000001","text":"oops"}"#,
        "\n",
    );
    let given = logs(host.path(), &["--skyhook=s", "--stage=apply", "-o", "json"]);
    assert!(given.starts_with(want), "{given}");
    assert_eq!(given.lines().count(), 4);
}

#[test]
fn a_stage_without_steps_is_refused() {
    for (stage, want) in [
        ("interrupt", "an interrupt has no steps"),
        ("uninstall-interrupt", "an interrupt has no steps"),
        ("later", "this is not a stage"),
    ] {
        let error = args(Path::new("/"), &["--stage", stage])
            .unwrap_err()
            .to_string();
        assert!(error.contains(want), "{stage}: {error}");
    }
    assert!(args(Path::new("/"), &["--while-stdin"]).is_err());
}

#[test]
fn what_is_missing_is_said() {
    let note = |runs, without_stage, package: bool, stage| {
        let selected = Selected {
            runs,
            without_stage,
        };
        let wish = Wish {
            package: package.then(Named::default),
            stage,
            ..Wish::default()
        };
        note(&selected, &wish, "/logs").unwrap_or_default()
    };
    let one = || find(&host().path().join("var/log/skyhook"));
    for (what, given, want) in [
        (
            "nothing",
            note(vec![], 0, false, None),
            "no step has a log in /logs",
        ),
        (
            "of a package",
            note(vec![], 0, true, None),
            "no step of this package",
        ),
        (
            "of a stage",
            note(vec![], 0, true, Some(Stage::Config)),
            "no step of config has",
        ),
        (
            "unknown",
            note(one(), 2, true, Some(Stage::Config)),
            "2 runs are left out",
        ),
    ] {
        assert!(given.starts_with(want), "{what}: {given}");
    }
    assert_eq!(note(one(), 0, true, None), "");
}

#[test]
fn what_follows_is_shown_when_it_is_there() {
    let host = host();
    let root = host.path().join("var/log/skyhook");
    let path = |second| format!("s/my_pkg/2.0.0/a.sh-1970-01-01-0000{second}.log");
    let wish = Wish {
        skyhook: Some("s".into()),
        stage: Some(Stage::Apply),
        ..Wish::default()
    };
    let mut out = shown(Form::Text);
    let mut following = Following::default();
    let mut look = |tail| {
        following
            .show(select(find(&root), &wish), tail, false, &mut out)
            .unwrap();
        String::from_utf8(std::mem::take(&mut out.out)).unwrap()
    };
    let head = "=== s/my-pkg 2.0.0 apply 1970-01-01T00:00:20Z a.sh ===\n";
    let last = "[out]2024-05-01T12:00:20.000003 \n";
    assert_eq!(look(Some(1)), format!("{head}{last}"));
    assert_eq!(look(None), "", "nothing is shown twice");
    append(
        &root.join(path(20)),
        "[out]2024-05-01T12:00:21.000000 more\n[out]2024-05-01T12:00",
    );
    assert_eq!(look(None), "[out]2024-05-01T12:00:21.000000 more\n");
    append(&root.join(path(20)), ":22.000000 the end");
    let log = LogFile {
        directory: root.join("s/my_pkg/2.0.0"),
        step: "a.sh".into(),
        package: "my-pkg".into(),
        mode: "apply".into(),
    };
    LogPair::create(&log, Timestamp::from_second(50).unwrap()).unwrap();
    append(
        &root.join(path(50)),
        "[out]2024-05-01T12:00:50.000000 again\n",
    );
    let want = "\
[out]2024-05-01T12:00:22.000000 the end
=== s/my-pkg 2.0.0 apply 1970-01-01T00:00:50Z a.sh ===
[out]2024-05-01T12:00:50.000000 again
";
    assert_eq!(
        look(None),
        want,
        "the end of the last run, and the next one"
    );
    assert_eq!(look(None), "");
}

/// The name of a package in its config.json need not be that in the Skyhook.
#[test]
fn the_name_in_the_log_comes_from_the_package() {
    let layout = Layout {
        copy_root: "/lib".into(),
        log_root: "/log".into(),
    };
    let skyhook = SkyhookRef {
        name: "s".into(),
        uid: "u".into(),
        generation: 3,
    };
    let entry = |name: &str, version: &str, has_cycle: bool| {
        let package = Package {
            name: name.into(),
            version: version.into(),
            ..Package::default()
        };
        (name.to_owned(), package, has_cycle.then(|| skyhook.clone()))
    };
    let all = [
        entry("a", "1", true),
        entry("a", "2", false),
        entry("b", "1", true),
    ];
    let in_config = |directory: &str| {
        let known = directory == "/lib/s/a-1-u-3";
        known.then(|| "tuning".to_owned())
    };
    let given = |package| Vec::from_iter(names(&all, package, &layout, in_config));
    assert_eq!(given("a"), ["a", "tuning"]);
    assert_eq!(given("b"), ["b"]);
    assert_eq!(given("c"), ["c"]);
}
