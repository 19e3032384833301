//! Tests of `package logs`.

use clap::Parser as _;

use super::*;
use crate::args::{Cli, Command, PackageCommand};
use crate::testing::{node, record};

fn args(words: &[&str]) -> LogsArgs {
    let head = ["kubectl-skyhook", "package", "logs", "aa", "--skyhook", "s"];
    let cli = Cli::try_parse_from(head.iter().chain(words)).unwrap();
    let Some(Command::Package(PackageCommand::Logs(args))) = cli.command else {
        panic!("it is package logs");
    };
    args
}

#[test]
fn the_agent_gets_the_flags() {
    let base = "logs --skyhook=s --package=aa";
    for (given, form, want) in [
        (&[][..], Format::Table, Ok(format!("{base} --tail=-1"))),
        (
            &["--tail", "-1"],
            Format::Table,
            Ok(format!("{base} --tail=-1")),
        ),
        (
            &["--stage", "config", "--tail=20", "--all"],
            Format::Json,
            Ok(format!(
                "{base} --tail=20 --stage=config --all --output=json"
            )),
        ),
        (
            &["-f"],
            Format::Table,
            Ok(format!("{base} --tail=-1 --follow --while-stdin")),
        ),
        (
            &["--stage=later"],
            Format::Table,
            Err("invalid stage \"later\""),
        ),
        (
            &["--stage=interrupt"],
            Format::Table,
            Err("an interrupt has no steps"),
        ),
    ] {
        match (words(&args(given), form), want) {
            (Ok(words), Ok(want)) => assert_eq!(words.join(" "), want, "{given:?}"),
            (Err(error), Err(want)) => {
                assert!(error.to_string().starts_with(want), "{given:?}: {error}");
            }
            (given, want) => panic!("{given:?} is not {want:?}"),
        }
    }
}

#[test]
fn only_lines_of_text_and_of_json_exist() {
    for (format, want) in [
        (Format::Table, Ok(Format::Table)),
        (Format::Wide, Ok(Format::Table)),
        (Format::Json, Ok(Format::Json)),
        (
            Format::Yaml,
            Err("logs have no form \"yaml\": use json, or none".to_owned()),
        ),
    ] {
        assert_eq!(
            form(format).map_err(|error| error.to_string()),
            want,
            "{format:?}"
        );
    }
}

#[test]
fn nodes_with_the_package_and_those_that_are_named_are_read() {
    let nodes = [
        node(
            "a-1",
            &[("nodeState_s", &record("aa 1 config complete"))],
            &[],
        ),
        node(
            "a-2",
            &[("nodeState_s", &record("bb 1 config complete"))],
            &[],
        ),
        node(
            "a-3",
            &[("nodeState_t", &record("aa 1 config complete"))],
            &[],
        ),
        node(
            "b-1",
            &[(
                "nodeState_s",
                &record("bb 1 apply erroring, aa 2 apply erroring"),
            )],
            &[],
        ),
        node("c-1", &[], &[]),
    ];
    for (words, want) in [
        (&[][..], &["a-1", "b-1"][..]),
        (&["--node=a-.*"], &["a-1"]),
        (&["--node=c-1", "--node=b.*"], &["b-1", "c-1"]),
        (&["--node=c-.*"], &[]),
    ] {
        assert_eq!(wanted(&nodes, &args(words)).unwrap(), want, "{words:?}");
    }
    let error = wanted(&nodes, &args(&["--node=d-1"])).unwrap_err();
    assert_eq!(error.to_string(), "no node is named d-1");
}

fn target(node: &str) -> Target {
    Target {
        node: node.to_owned(),
        pod: format!("agent-of-{node}"),
    }
}

/// One node after the other: each has its heading, even if it has no line.
#[test]
fn nodes_are_shown_one_after_the_other() {
    let mut shown = Shown::new(Format::Table, false);
    let mut text = String::new();
    for (node, lines) in [("a", &["one", "two"][..]), ("b", &[]), ("c", &["three"])] {
        text += &shown.heading(&target(node));
        for line in lines {
            text += &shown.line(&target(node), line).unwrap();
        }
    }
    let want = "\
==> Pod: agent-of-a, Container: agent [Running], Node: a <==
one
two
---
==> Pod: agent-of-b, Container: agent [Running], Node: b <==
---
==> Pod: agent-of-c, Container: agent [Running], Node: c <==
three
";
    assert_eq!(text, want);
}

#[test]
fn nodes_that_are_followed_together_are_told_apart() {
    let mut shown = Shown::new(Format::Table, true);
    let lines = [("a", "one"), ("a", "two"), ("b", "three"), ("a", "four")];
    let text = lines.map(|(node, line)| shown.line(&target(node), line).unwrap());
    let want = "\
==> Pod: agent-of-a, Container: agent [Running], Node: a <==
one
two
---
==> Pod: agent-of-b, Container: agent [Running], Node: b <==
three
---
==> Pod: agent-of-a, Container: agent [Running], Node: a <==
four
";
    assert_eq!(text.concat(), want);
}

#[test]
fn json_says_which_node_it_is_from() {
    let mut shown = Shown::new(Format::Json, true);
    assert_eq!(shown.heading(&target("a")), "");
    let given = shown
        .line(&target("a"), r#"{"skyhook":"s","text":"<x>"}"#)
        .unwrap();
    let object: Value = serde_json::from_str(&given).unwrap();
    let want = serde_json::json!({ "skyhook": "s", "text": "<x>", "node": "a" });
    assert_eq!(object, want);
    assert!(
        given.ends_with("}\n") && given.lines().count() == 1,
        "{given}"
    );
    let error = shown
        .line(&target("a"), "not JSON")
        .unwrap_err()
        .to_string();
    assert_eq!(error, "the agent on a printed no JSON: not JSON");
}
