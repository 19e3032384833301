//! Tests of which runs are found and selected, and of how their logs are read.

use std::fs;
use std::io::Write as _;

use jiff::Timestamp;

use super::super::{LogFile, LogPair};
use super::*;

fn run(text: &str) -> Run {
    let words: Vec<&str> = text.split(' ').collect();
    let [started, place, step, mode] = words[..] else {
        panic!("{text} has four words");
    };
    let (package, version) = place.split_once('@').unwrap();
    let (skyhook, package) = package.split_once('/').unwrap();
    Run {
        started: started.to_owned(),
        skyhook: skyhook.to_owned(),
        package: package.to_owned(),
        version: version.to_owned(),
        step: step.to_owned(),
        mode: (mode != "-").then(|| mode.to_owned()),
        is_named: mode != "-",
        path: format!("/log/{place}/{step}-{started}").into(),
    }
}

#[test]
fn the_last_run_of_each_step_is_selected_unless_all_are_wanted() {
    let all = [
        "1 s/my_pkg@1.0 a.sh apply",
        "2 s/my_pkg@1.0 a.sh apply-check",
        "3 s/my_pkg@2.0 a.sh apply",
        "4 s/my_pkg@2.0 a.sh apply",
        "5 s/my_pkg@2.0 a.sh apply-check",
        "6 s/my_pkg@2.0 b.sh config",
        "7 s/other@1.0 a.sh apply",
        "8 t/config_name@1.0 a.sh -",
        "9 t/my_pkg@1.0 a.sh apply",
    ];
    let of_package = |name: &str| Wish {
        package: Some(Named {
            name: name.to_owned(),
            in_config: ["config-name".to_owned()].into(),
        }),
        ..Wish::default()
    };
    let of_stage = |stage| Wish {
        stage: Some(stage),
        ..Wish::default()
    };
    for (what, wish, want, without_stage) in [
        ("anything", Wish::default(), "456789", 0),
        ("a package", of_package("my_pkg"), "45689", 0),
        ("another package", of_package("pkg"), "8", 0),
        (
            "a package of a Skyhook",
            Wish {
                skyhook: Some("s".into()),
                ..of_package("my_pkg")
            },
            "456",
            0,
        ),
        (
            "a Skyhook",
            Wish {
                skyhook: Some("t".into()),
                ..Wish::default()
            },
            "89",
            0,
        ),
        ("a stage with its checks", of_stage(Stage::Apply), "4579", 1),
        ("another stage", of_stage(Stage::Config), "6", 1),
        (
            "everything",
            Wish {
                all: true,
                ..Wish::default()
            },
            "123456789",
            0,
        ),
    ] {
        let selected = select(all.iter().map(|text| run(text)).collect(), &wish);
        let given: String = selected
            .runs
            .iter()
            .map(|run| run.started.as_str())
            .collect();
        assert_eq!(
            (given.as_str(), selected.without_stage),
            (want, without_stage),
            "{what}"
        );
    }
}

#[test]
fn runs_are_found_with_their_package_and_mode() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("s/pkg/1.0.0");
    for (second, step, mode) in [(1, "nested/a.sh", "apply"), (0, "a.sh", "apply-check")] {
        let log = LogFile {
            directory: directory.clone(),
            step: step.to_owned(),
            package: "named".to_owned(),
            mode: mode.to_owned(),
        };
        LogPair::create(&log, Timestamp::from_second(second).unwrap()).unwrap();
    }
    // That of an earlier agent, which was pruned to its errors.
    fs::write(directory.join("old.sh-2024-05-01-120000.log.err"), "").unwrap();
    fs::write(directory.join("notes.txt"), "").unwrap();
    let want = |started: &str, step: &str, mode: Option<&str>, file: &str| Run {
        started: started.to_owned(),
        skyhook: "s".to_owned(),
        package: mode.map_or("pkg", |_| "named").to_owned(),
        is_named: mode.is_some(),
        version: "1.0.0".to_owned(),
        step: step.to_owned(),
        mode: mode.map(str::to_owned),
        path: directory.join(file),
    };
    let all = [
        want(
            "1970-01-01T00:00:00Z",
            "a.sh",
            Some("apply-check"),
            "a.sh-1970-01-01-000000.log",
        ),
        want(
            "1970-01-01T00:00:01Z",
            "nested/a.sh",
            Some("apply"),
            "nested/a.sh-1970-01-01-000001.log",
        ),
        want(
            "2024-05-01T12:00:00Z",
            "old.sh",
            None,
            "old.sh-2024-05-01-120000.log",
        ),
    ];
    assert_eq!(find(root.path()), all);
}

struct Logs(tempfile::TempDir);

impl Logs {
    fn run(&self) -> Run {
        Run {
            path: self.0.path().join("a.sh-2024-05-01-120000.log"),
            ..run("1 s/p@1 a.sh apply")
        }
    }

    fn add(&self, stream: Stream, text: &str) {
        let path = match stream {
            Stream::Out => self.run().path,
            Stream::Err => with_err(&self.run().path),
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
}

/// All lines up to the end, as `stream time text`.
fn rest(reader: &mut Reader, is_over: bool) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some(line) = reader.next(is_over).unwrap() {
        let seconds = line.time.get(17..).unwrap_or_default();
        lines.push(format!("{:?} {seconds} {}", line.stream, line.text));
    }
    lines
}

#[test]
fn both_logs_are_read_in_the_order_of_time_as_they_grow() {
    let logs = Logs(tempfile::tempdir().unwrap());
    let mut reader = Reader::of(&logs.run());
    assert_eq!(rest(&mut reader, false), [""; 0], "there is no log yet");
    let line = |mark: &str, second: u32, text: &str| {
        format!("[{mark}]2024-05-01T12:00:{second:02}.000000 {text}\n")
    };
    logs.add(Stream::Out, &line("out", 1, "one"));
    logs.add(Stream::Out, &line("out", 3, "three"));
    logs.add(Stream::Err, &line("err", 2, "two"));
    logs.add(Stream::Err, &line("err", 3, "three again"));
    let want = [
        "Out 01.000000 one",
        "Err 02.000000 two",
        "Out 03.000000 three",
        "Err 03.000000 three again",
    ];
    assert_eq!(rest(&mut reader, false), want);
    // A line whose end comes later.
    let four = line("out", 4, "four");
    let (head, tail) = four.split_at(20);
    logs.add(Stream::Out, head);
    assert_eq!(rest(&mut reader, false), [""; 0]);
    logs.add(Stream::Out, tail);
    logs.add(Stream::Err, "no mark\n[out]2 short\n");
    logs.add(Stream::Err, "no end");
    let want = ["Err  no mark", "Err  [out]2 short", "Out 04.000000 four"];
    assert_eq!(rest(&mut reader, false), want);
    assert_eq!(rest(&mut reader, true), ["Err  no end"]);
}

#[test]
fn what_is_no_regular_file_is_not_read() {
    for kind in ["pipe", "symlink", "directory"] {
        let logs = Logs(tempfile::tempdir().unwrap());
        let path = logs.run().path;
        match kind {
            "pipe" => {
                let mode = rustix::fs::Mode::RUSR;
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
            }
            "symlink" => std::os::unix::fs::symlink("/etc/passwd", &path).unwrap(),
            _ => fs::create_dir(&path).unwrap(),
        }
        logs.add(Stream::Err, "this one\n");
        let mut reader = Reader::of(&logs.run());
        assert_eq!(rest(&mut reader, true), ["Err  this one"], "{kind}");
    }
}
