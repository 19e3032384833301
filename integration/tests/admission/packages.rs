//! Packages, good and bad.

use serde_json::{Value, json};

use super::skyhooks::{package, spec, texts};
use super::table::{Case, Group};

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

pub(super) fn cases(base: &Value) -> Vec<Case> {
    [
        names(base),
        versions(base),
        images(base),
        resources(base),
        durations(base),
        configuration(base),
        environment(base),
        dependencies(base),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn names(base: &Value) -> Vec<Case> {
    let longest = "a".repeat(43);
    let longer = "a".repeat(44);
    let one = json!({ "version": "1.0.0", "image": "r/a" });
    let named =
        move |v: &Value| spec(&json!({ "packages": { v.as_str().unwrap_or_default(): one } }));
    let keys = Group::new("spec.packages{}", base, named)
        .good(texts(["aa", "ab", "a-b", "a0b", "a--b", &longest]))
        .bad(texts([
            "", "a", "A", "Aa", "aA", "a1", "1a", "-a", "a-", "a_b", "a.b", "a b", "äa", &longer,
        ]));
    let name = Group::new("spec.packages[aa].name", base, |v| {
        package(&json!({ "name": v }))
    })
    .good(texts(["", "aa"]))
    .bad(texts(["bb", "AA", "a"]));
    keys.cases().into_iter().chain(name.cases()).collect()
}

fn versions(base: &Value) -> Vec<Case> {
    Group::new("spec.packages[aa].version", base, |v| {
        package(&json!({ "version": v }))
    })
    .good(texts([
        "1",
        "1.2",
        "1.2.3",
        "v1",
        "v1.2",
        "v1.2.3",
        "0.0.0",
        "10.20.30",
        "999999999999999999.0.0",
    ]))
    .good(texts([
        "2024.7.7-test",
        "1.0.0-rc.1",
        "1.0.0-0a",
        "1.0.0--",
        "1.0.0-x-y.z",
        "1.0.0-0",
        "1.0.0-a.10.b",
    ]))
    .good(texts([
        "1.0.0+build",
        "1.0.0-a+b.c",
        "1.0.0+001",
        "v1.0.0+b-1",
    ]))
    .bad(texts([
        "", "latest", "v", "vv1", "V1.2.3", "1.", ".1", "01.2.3", "1.02.3", "1.2.03", "1.2.3.4",
        "1 .2",
    ]))
    .bad(texts([
        "1.2-rc1",
        "1-rc",
        "1.2+b",
        "1.2.3-",
        "1.2.3+",
        "1.2.3-01",
        "1.2.3-a..b",
        "1.2.3-a_b",
        "1.2.3-é",
    ]))
    .bad(texts([
        "1.2.3 ",
        " 1.2.3",
        "1.2.3-a+b+c",
        "x1.2.3",
        "-1.0.0",
        "1,2",
    ]))
    .server_alone([
        json!("1234567890123456789.0.0"),
        json!(format!("1.0.0-{}", "a".repeat(130))),
    ])
    .cases()
}

fn images(base: &Value) -> Vec<Case> {
    let pinned = |image: &str| json!(format!("{image}@{DIGEST}"));
    let images = Group::new("spec.packages[aa].image", base, |v| {
        package(&json!({ "image": v }))
    })
    .good(texts([
        "a",
        "r/a",
        "r.io/a/b",
        "localhost:5000/a",
        "r/a:1.0.0",
        "localhost:5000/a/b:1.0.0",
        "r/a_b",
    ]))
    .good([
        pinned("r/a"),
        pinned("r/a:1.0.0"),
        pinned("localhost:5000/a:1.0.0"),
        pinned("localhost:5000/a"),
    ])
    .bad(texts([
        "",
        " ",
        "r/a ",
        " r/a",
        "r a",
        "r/a\t",
        "r/a\n",
        "/a",
        ":a",
        ":1.0.0",
        "@",
        "r/a@",
        "r/a@sha256:ab",
    ]))
    .bad(texts([
        "r/a:",
        "r/a:2.0.0",
        "r/a:latest",
        "r/a:v1.0.0",
        "r:5000",
        "r/a:1.0.0:1.0.0",
        "r/a:1",
    ]))
    .bad([
        pinned(""),
        pinned("r/a:2.0.0"),
        json!(format!("r/a@{DIGEST}@{DIGEST}")),
    ])
    .bad([
        json!(format!("r/a@{}", DIGEST.to_uppercase())),
        json!(format!("r/a@{DIGEST}a")),
    ])
    .server_alone([json!("a".repeat(513))]);
    let build = |v: &Value| package(&json!({ "version": "1.0.0+b.1", "image": v }));
    let build = Group::new("image of a build", base, build)
        .good(texts(["r/a:1.0.0_b.1", "r/a:1.0.0+b.1"]))
        .bad(texts(["r/a:1.0.0", "r/a:1.0.0-b.1"]));
    let shas = Group::new("spec.packages[aa].containerSHA", base, |v| {
        package(&json!({ "containerSHA": v }))
    })
    .good([json!(null), json!(""), json!(DIGEST)])
    .bad(texts([
        "ab",
        "sha256:",
        "sha256:ab",
        DIGEST.to_uppercase().as_str(),
        "a".repeat(64).as_str(),
    ]));
    let both = |v: &Value| package(&json!({ "image": format!("r/a@{DIGEST}"), "containerSHA": v }));
    let both = Group::new("containerSHA of a pinned image", base, both)
        .good([json!(""), json!(DIGEST), json!(null)])
        .bad([json!(OTHER)]);
    [images, build, shas, both]
        .into_iter()
        .flat_map(Group::cases)
        .collect()
}

fn resources(base: &Value) -> Vec<Case> {
    let all = |request: &Value, limit: &Value| json!({ "cpuRequest": request, "cpuLimit": limit, "memoryRequest": "1Mi", "memoryLimit": "1Gi" });
    let pair = |request: &str, limit: &str| all(&json!(request), &json!(limit));
    let memory = |request: &str, limit: &str| json!({ "cpuRequest": 1, "cpuLimit": 1, "memoryRequest": request, "memoryLimit": limit });
    let limits = Group::new("cpuLimit", base, move |v| {
        package(&json!({ "resources": all(&json!("1n"), v) }))
    })
    .good(texts([
        "1", "500m", "0.5", "+1", ".5", "5.", "1e3", "1E3", "1e-3", "1Ki", "2k", "1u", "100000n",
        "1e18", "1Ei",
    ]))
    .good([json!(1), json!(64)])
    .in_own_words()
    .bad([json!(0), json!(-1)])
    .bad(texts([
        "0", "-1", "0.0", "0Gi", "-0.5", "", "abc", "1.2.3", "1Mb", "--1", "1e", "1e+", "1e19",
        "1 Gi", "0x1",
    ]));
    let sets = Group::new("spec.packages[aa].resources", base, |v| {
        package(&json!({ "resources": v }))
    })
    .good([
        json!(null),
        json!({}),
        pair("1", "1"),
        pair("500m", "1"),
        pair("0.5", "500m"),
        memory("64Mi", "1Gi"),
    ])
    .bad([
        json!({ "cpuRequest": 1 }),
        json!({ "cpuRequest": 1, "cpuLimit": 1 }),
        json!({ "memoryLimit": "1Gi" }),
    ])
    .bad([
        json!({ "cpuRequest": 1, "cpuLimit": 1, "memoryRequest": 1 }),
        json!({ "memoryRequest": 1, "memoryLimit": 1 }),
    ])
    .bad([
        pair("2", "1"),
        pair("1", "999m"),
        memory("1Gi", "1G"),
        memory("1025", "1Ki"),
    ]);
    limits.cases().into_iter().chain(sets.cases()).collect()
}

fn durations(base: &Value) -> Vec<Case> {
    let of = |name: &'static str, change: fn(&Value) -> Value| {
        Group::new(name, base, change)
            .good(texts([
                "0",
                "0s",
                "30s",
                "1m30s",
                "1.5h",
                "100ms",
                ".5s",
                "1.s",
                "+1h",
                "1h1m1s1ms1us1ns",
                "5µs",
                "5μs",
            ]))
            .good([json!(null), json!("999999h")])
            .bad(texts([
                "",
                "30",
                "-3s",
                "-0s",
                "1x",
                "s",
                "h1",
                "1 s",
                "soon",
                "1m 30s",
                "1d",
                ".s",
                "1..5s",
                "9999999999h",
            ]))
            .server_alone([json!("1s".repeat(33))])
            .cases()
    };
    [
        of("gracefulShutdown", |v| {
            package(&json!({ "gracefulShutdown": v }))
        }),
        of("stageTimeout", |v| package(&json!({ "stageTimeout": v }))),
        of("drainConfig.timeout", |v| {
            spec(&json!({ "drainConfig": { "timeout": v } }))
        }),
        of("drainConfig.gracePeriod", |v| {
            spec(&json!({ "drainConfig": { "gracePeriod": v } }))
        }),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn configuration(base: &Value) -> Vec<Case> {
    let keys =
        |v: &Value| package(&json!({ "configMap": { v.as_str().unwrap_or_default(): "x" } }));
    let longest = "a".repeat(253);
    let longer = "a".repeat(254);
    let keys = Group::new("spec.packages[aa].configMap{}", base, keys)
        .good(texts([
            "a", "a.b", "_a", "-a", ".bashrc", "A-b_c.sh", "a..b", &longest,
        ]))
        .bad(texts([
            "",
            ".",
            "..",
            "..data",
            "a/b",
            "/etc/passwd",
            "../x",
            "a b",
            "é",
            "a*",
            &longer,
        ]));
    let size = |v: &Value| {
        let half = "x".repeat(usize::try_from(v.as_u64().unwrap_or_default()).unwrap_or_default());
        package(&json!({ "configMap": { "a": half, "b": half } }))
    };
    let half = 384 << 10;
    let size = Group::new("size of configMap", base, size)
        .good([json!(half)])
        .server_alone([json!(half + 1)]);
    let patterns = |v: &Value| {
        let pattern = v.as_str().unwrap_or_default();
        package(&json!({
            "configMap": { "game.properties": "", "ui.properties": "", "a-b": "", "x1": "" },
            "configInterrupts": { pattern: { "type": "reboot" } },
        }))
    };
    let patterns = Group::new("spec.packages[aa].configInterrupts", base, patterns)
        .good(texts([
            "game.properties",
            "a-b",
            "*",
            "*.properties",
            "game.*",
            "g**s",
            "?1",
            "??",
            "[gu]*.properties",
        ]))
        .good(texts([
            "[a-z]1",
            "ga?e.properties",
            "[^g]*",
            "x[0-9]",
            r"a\-b*",
            r"game\.*",
            "*-*",
            "[^a-f]*",
            r"x[1]",
        ]))
        .bad(texts([
            "", "nope", "game", "*.conf", "[", "[a", "[]a]*", "x[2-9]", r"a\-b", "?", "a/*", "*/b",
            "x1*y", "[^x]?",
        ]))
        .bad(texts([r"*\", "[a-]*", "*z*", "é*", r"game\.properties"]))
        // The API server knows no '/' in a class.
        .server_alone(texts(["[a/]*"]))
        .said_elsewhere()
        .bad(texts(["[b-a]*"]));
    let without = |v: &Value| package(&json!({ "configInterrupts": v }));
    let without = Group::new("configInterrupts without configMap", base, without)
        .good([json!({})])
        .bad([
            json!({ "*": { "type": "noop" } }),
            json!({ "a": { "type": "noop" } }),
        ]);
    [keys, size, patterns, without]
        .into_iter()
        .flat_map(Group::cases)
        .collect()
}

fn environment(base: &Value) -> Vec<Case> {
    let field = json!({ "fieldRef": { "fieldPath": "spec.nodeName" } });
    let key = json!({ "name": "n", "key": "k" });
    let two = json!({ "fieldRef": { "fieldPath": "spec.nodeName" }, "secretKeyRef": key });
    let source = |source: Value| json!({ "name": "A", "valueFrom": source });
    let named = |name: &str| json!({ "name": name });
    Group::new("spec.packages[aa].env", base, |v| {
        package(&json!({ "env": [v] }))
    })
    .good(["A", "a.b", "A B", "a-b", "1", "~"].map(named))
    .good([
        json!({ "name": "A", "value": "x" }),
        json!({ "name": "A", "value": "", "valueFrom": field }),
        source(field.clone()),
    ])
    .good([
        source(json!({ "secretKeyRef": key })),
        source(json!({ "configMapKeyRef": key })),
    ])
    .good([source(
        json!({ "resourceFieldRef": { "resource": "limits.cpu" } }),
    )])
    .good([source(
        json!({ "fileKeyRef": { "key": "k", "path": "p", "volumeName": "v" } }),
    )])
    .bad([
        json!({ "name": "A", "value": "x", "valueFrom": field }),
        source(json!({})),
        source(two),
    ])
    .in_own_words()
    .bad(["", "A=B", "=", "é", "A\n"].map(named))
    .cases()
}

fn dependencies(base: &Value) -> Vec<Case> {
    let graph = |edges: &[(&str, &str)]| {
        let mut packages = json!({});
        for name in ["aa", "bb", "cc", "dd"] {
            packages[name] = json!({ "version": "1.0.0", "image": "r/a" });
        }
        for (from, to) in edges {
            let (to, version) = to.split_once('|').unwrap_or((to, "1.0.0"));
            packages[from]["dependsOn"][to] = json!(version);
        }
        packages
    };
    let four = [("aa", "bb"), ("bb", "cc"), ("cc", "dd"), ("dd", "aa")];
    Group::new("dependsOn", base, |v| spec(&json!({ "packages": v })))
        .good([
            graph(&[]),
            graph(&[("bb", "aa")]),
            graph(&[("bb", "aa"), ("cc", "bb"), ("dd", "cc"), ("dd", "aa")]),
        ])
        .good([graph(&[
            ("bb", "aa"),
            ("cc", "aa"),
            ("dd", "bb"),
            ("dd", "cc"),
        ])])
        .bad([
            graph(&[("aa", "xx")]),
            graph(&[("aa", "bb|2.0.0")]),
            graph(&[("aa", "bb|")]),
            graph(&[("aa", "bb|1.0")]),
        ])
        .bad([graph(&[
            ("aa", "xx"),
            ("aa", "yy"),
            ("bb", "xx"),
            ("bb", "cc"),
        ])])
        // `check` names the way round, and the API server the packages.
        .in_own_words()
        .bad([graph(&[("aa", "aa|2.0.0")])])
        .bad([
            graph(&[("aa", "aa")]),
            graph(&[("aa", "bb"), ("bb", "aa")]),
            graph(&[("aa", "bb"), ("bb", "cc"), ("cc", "aa")]),
        ])
        .check_alone([graph(&four)])
        .cases()
}
