//! What a runtime-required taint is.

use super::*;
use crate::testkit;

#[test]
fn a_runtime_required_taint_is_read_or_refused_with_the_reason() {
    let longest = "k".repeat(53);
    for (text, key, value, effect) in [
        ("k=v:NoSchedule", "k", "v", "NoSchedule"),
        ("k:NoExecute", "k", "", "NoExecute"),
        ("k=:NoSchedule", "k", "", "NoSchedule"),
        ("a/b=c:NoSchedule", "a/b", "c", "NoSchedule"),
        (
            "startup-taint.cluster-autoscaler.kubernetes.io/a=b:PreferNoSchedule",
            "startup-taint.cluster-autoscaler.kubernetes.io/a",
            "b",
            "PreferNoSchedule",
        ),
        (
            format!("{longest}=v:NoSchedule").as_str(),
            longest.as_str(),
            "v",
            "NoSchedule",
        ),
    ] {
        let read: RuntimeTaint = text.parse().unwrap();
        let parts = (read.key.as_str(), read.value.as_str(), read.effect.as_str());
        assert_eq!(parts, (key, value, effect), "{text}");
    }
    assert_eq!(names::auto_taint("a/b"), "skyhook.nvidia.com/autoTaint_a.b");
    let too_long = format!("{}=v:NoSchedule", "k".repeat(54));
    for (text, want) in [
        ("", InvalidTaint::Form),
        ("k=v", InvalidTaint::Form),
        ("k=v:Never", InvalidTaint::Effect("Never".into())),
        (
            "k=v:NoSchedule-",
            InvalidTaint::Effect("NoSchedule-".into()),
        ),
        ("=v:NoSchedule", InvalidTaint::Key(String::new())),
        ("a/b/c=v:NoSchedule", InvalidTaint::Key("a/b/c".into())),
        ("-k=v:NoSchedule", InvalidTaint::Key("-k".into())),
        ("k=v w:NoSchedule", InvalidTaint::Value("v w".into())),
        (too_long.as_str(), InvalidTaint::TooLong { length: 54 }),
    ] {
        assert_eq!(text.parse::<RuntimeTaint>(), Err(want), "{text}");
    }
    let refused = too_long.parse::<RuntimeTaint>().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "--runtime-required-taint: the key has 54 characters; it must have 53 at most, because an annotation of the Node \
         has it in its name"
    );
}

#[test]
fn the_default_is_the_one_of_nvidia_skyhook() {
    let default = RuntimeTaint::default();
    let text = "skyhook.nvidia.com=runtime-required:NoSchedule";
    assert_eq!(default.to_string(), text);
    assert_eq!(text.parse(), Ok(default));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn which_taints_are_ours() {
    let own: RuntimeTaint = "a/b=c:NoExecute".parse().unwrap();
    let default = RuntimeTaint::default();
    let taint = |key: &str, value: &str, effect: &str| Taint {
        key: key.to_owned(),
        value: Some(value.to_owned()),
        effect: effect.to_owned(),
        time_added: None,
    };
    let mark = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let (ours, theirs) = (
        "skyhook.nvidia.com/autoTaint_x",
        "nodewright.nvidia.com/autoTaint_x",
    );
    for (name, runtime, marks, taint, is_ours_, put_by_us) in [
        (
            "default",
            &default,
            None,
            taint(names::GROUP, "runtime-required", "NoSchedule"),
            true,
            false,
        ),
        (
            "another value",
            &default,
            None,
            taint(names::GROUP, "other", "NoSchedule"),
            true,
            false,
        ),
        (
            "NodeWright's",
            &default,
            None,
            taint(names::SUCCESSOR, "runtime-required", "NoSchedule"),
            true,
            false,
        ),
        (
            "another effect",
            &default,
            None,
            taint(names::GROUP, "runtime-required", "NoExecute"),
            false,
            false,
        ),
        (
            "configured",
            &own,
            None,
            taint("a/b", "c", "NoExecute"),
            true,
            false,
        ),
        (
            "the default beside it",
            &own,
            None,
            taint(names::GROUP, "", "NoSchedule"),
            true,
            false,
        ),
        (
            "configured, another effect",
            &own,
            None,
            taint("a/b", "c", "NoSchedule"),
            false,
            false,
        ),
        (
            "somebody else's",
            &default,
            None,
            taint("x", "", "NoSchedule"),
            false,
            false,
        ),
        (
            "of an earlier setting",
            &default,
            Some(mark(ours, "true")),
            taint("x", "", "NoSchedule"),
            true,
            true,
        ),
        (
            "of NodeWright's setting",
            &default,
            Some(mark(theirs, "true")),
            taint("x", "", "NoSchedule"),
            true,
            true,
        ),
        (
            "ours once",
            &default,
            Some(mark(ours, "false")),
            taint("x", "", "NoSchedule"),
            false,
            false,
        ),
    ] {
        let mut node = testkit::node("n");
        node.annotations.extend(marks);
        assert_eq!(is_ours(runtime, &node, &taint), is_ours_, "{name}");
        assert_eq!(is_put_by_us(&node, &taint), put_by_us, "{name}");
    }
}
