use proptest::prelude::*;

use super::*;

const SHA: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn texts_are_read_as_the_distribution_grammar_says() {
    let table = [
        ("busybox", "docker.io/library/busybox:latest"),
        ("nvidia/cuda:12", "docker.io/nvidia/cuda:12"),
        ("docker.io/busybox:1", "docker.io/library/busybox:1"),
        (
            "index.docker.io/library/busybox:1",
            "docker.io/library/busybox:1",
        ),
        (
            "ghcr.io/nvidia/skyhook-packages/tuning:1.1.4",
            "ghcr.io/nvidia/skyhook-packages/tuning:1.1.4",
        ),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("127.0.0.1:5000/a/b:v1", "127.0.0.1:5000/a/b:v1"),
        ("[::1]:5000/a:v1", "[::1]:5000/a:v1"),
        ("Host/a__b/c-d--e.f:V_1", "Host/a__b/c-d--e.f:V_1"),
    ];
    for (text, want) in table {
        assert_eq!(
            text.parse::<Reference>().map(|r| r.to_string()),
            Ok(want.to_owned()),
            "{text}"
        );
    }
    let both = format!("reg.io:444/a:1@{SHA}")
        .parse::<Reference>()
        .unwrap();
    assert_eq!(
        (both.tag(), both.digest()),
        (Some("1"), Some(SHA.parse().unwrap()))
    );
    assert_eq!(both.manifest_selector(), SHA);
    let digest_only = format!("reg.io/a@{SHA}").parse::<Reference>().unwrap();
    assert_eq!(
        (digest_only.tag(), digest_only.to_string()),
        (None, format!("reg.io/a@{SHA}"))
    );
}

#[test]
fn bad_texts_are_refused() {
    for text in [
        "",
        "docker.io/UPPER",
        "a//b",
        "reg.io/",
        "x:",
        "x@sha256:12",
        "a b",
        "reg.io/a:b:c",
        "reg.io:x/a",
        "-a.io/x",
        "a.io/x__-y",
        "a.io/x_",
        "[::g]:1/a",
        "[::1]x/a",
        "a.io/x:.tag",
        "../x",
    ] {
        assert!(
            matches!(
                text.parse::<Reference>(),
                Err(ReferenceError::Grammar { .. } | ReferenceError::Digest { .. })
            ),
            "{text} gave {:?}",
            text.parse::<Reference>()
        );
    }
}

#[test]
fn a_packages_fields_make_its_reference() {
    let pinned = format!("reg.io/p:1.0.0@{SHA}");
    let table = [
        (
            "plain",
            "reg.io/p",
            "1.0.0",
            None,
            "reg.io/p:1.0.0".to_owned(),
        ),
        (
            "port",
            "localhost:5000/p",
            "1.0.0",
            None,
            "localhost:5000/p:1.0.0".to_owned(),
        ),
        (
            "same tag",
            "reg.io/p:1.0.0",
            "1.0.0",
            None,
            "reg.io/p:1.0.0".to_owned(),
        ),
        (
            "build",
            "reg.io/p",
            "1.0.0+b.7",
            None,
            "reg.io/p:1.0.0_b.7".to_owned(),
        ),
        (
            "build tag",
            "reg.io/p:1.0.0_b.7",
            "1.0.0+b.7",
            None,
            "reg.io/p:1.0.0_b.7".to_owned(),
        ),
        (
            "latest is a tag like any other",
            "reg.io/p:latest",
            "latest",
            None,
            "reg.io/p:latest".to_owned(),
        ),
        ("sha", "reg.io/p", "1.0.0", Some(SHA), pinned.clone()),
        (
            "empty sha",
            "reg.io/p",
            "1.0.0",
            Some(""),
            "reg.io/p:1.0.0".to_owned(),
        ),
        (
            "short name",
            "p",
            "v1",
            None,
            "docker.io/library/p:v1".to_owned(),
        ),
    ];
    for (name, image, version, sha, want) in table {
        let got = Reference::for_package(image, version, sha).map(|r| r.to_string());
        assert_eq!(got, Ok(want), "{name}");
    }
    let in_image = Reference::for_package(&format!("reg.io/p@{SHA}"), "1.0.0", Some(SHA));
    assert_eq!(in_image.map(|r| r.to_string()), Ok(pinned));
}

#[test]
fn fields_that_disagree_are_refused() {
    let other = Digest::of(b"other").to_string();
    let table = [
        ("reg.io/p:2.0.0", "1.0.0", None, "tag_is_not_version"),
        ("reg.io/p:latest", "1.0.0", None, "tag_is_not_version"),
        ("localhost:5000/p:2", "1.0.0", None, "tag_is_not_version"),
        ("reg.io/p", "", None, "version_is_no_tag"),
        ("reg.io/p", "1 0", None, "version_is_no_tag"),
        ("reg.io/p", "1.0.0", Some("sha256:12"), "container_sha"),
        ("reg.io/p@SHA", "1.0.0", Some(other.as_str()), "two_digests"),
        ("reg.io/P", "1.0.0", None, "reference_grammar"),
    ];
    for (image, version, sha, want) in table {
        let image = image.replace("SHA", SHA);
        let got = Reference::for_package(&image, version, sha).map_err(|error| error.kind());
        assert_eq!(got, Err(want), "{image} {version}");
    }
    let text = Reference::for_package("r.io/p:2", "1", None)
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "image \"r.io/p:2\" carries tag \"2\", but version is \"1\": remove the tag or make both equal"
    );
}

#[test]
fn a_short_names_length_counts_with_what_is_put_before_it() {
    let of = |length: usize| "a".repeat(length).parse::<Reference>();
    assert_eq!(
        of(247).map(|reference| reference.repository().len()),
        Ok(255)
    );
    assert_eq!(
        of(248).map_err(|error| error.kind()),
        Err("reference_grammar")
    );
}

proptest! {
    #[test]
    fn any_text_is_refused_or_reads_back_the_same(text in "[a-zA-Z0-9:/@._\\-\\[\\]]{0,80}") {
        if let Ok(reference) = text.parse::<Reference>() {
            prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
        }
    }
}
