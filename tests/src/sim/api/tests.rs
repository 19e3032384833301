use super::*;

fn request(method: &str, path: &str, body: Value) -> Request {
    Request {
        method: method.into(),
        path: path.into(),
        content_type: "application/merge-patch+json".into(),
        body,
        ..Request::default()
    }
}

const LEASES: &str = "/apis/skyhook.nvidia.com/v1alpha1/interruptionleases";

fn with_lease() -> Api {
    let mut api = Api::default();
    let body = json!({ "metadata": { "name": "n", "finalizers": ["f"] }, "spec": { "a": 1 } });
    assert_eq!(api.serve(&request("POST", LEASES, body)).code, 201);
    api
}

#[test]
fn routes() {
    for (path, want) in [
        ("/api/v1/nodes/n", ("nodes", None, Some("n"), None)),
        (
            "/api/v1/nodes/n/status",
            ("nodes", None, Some("n"), Some("status")),
        ),
        (
            "/apis/apps/v1/namespaces/ns/controllerrevisions",
            ("controllerrevisions", Some("ns"), None, None),
        ),
        (
            "/api/v1/namespaces/ns/pods/p/eviction",
            ("pods", Some("ns"), Some("p"), Some("eviction")),
        ),
    ] {
        let route = Route::parse(path).unwrap();
        let got = (
            route.plural.as_str(),
            route.namespace.as_deref(),
            route.name.as_deref(),
            route.subresource.as_deref(),
        );
        assert_eq!(got, want, "{path}");
    }
}

#[test]
fn preconditions_guard_writes() {
    for (name, metadata, want) in [
        ("none", json!({}), 200),
        (
            "right",
            json!({ "uid": "interruptionleases-1", "resourceVersion": "1" }),
            200,
        ),
        ("another object", json!({ "uid": "other" }), 409),
        ("older", json!({ "resourceVersion": "0" }), 409),
    ] {
        let body = json!({ "metadata": metadata, "spec": { "a": 2 } });
        let response = with_lease().serve(&request("PATCH", &format!("{LEASES}/n"), body));
        assert_eq!(response.code, want, "{name}");
    }
    let body = json!({ "metadata": { "name": "n" } });
    assert_eq!(with_lease().serve(&request("POST", LEASES, body)).code, 409);
    assert_eq!(
        with_lease()
            .serve(&request("PATCH", &format!("{LEASES}/m"), json!({})))
            .code,
        404
    );
}

#[test]
fn each_writer_changes_its_own_part() {
    let mut api = with_lease();
    let body = json!({ "spec": { "a": 9 }, "status": { "phase": "x" } });
    let written = api
        .serve(&request(
            "PATCH",
            &format!("{LEASES}/n/status"),
            body.clone(),
        ))
        .body;
    assert_eq!(
        (&written["spec"]["a"], &written["status"]["phase"]),
        (&json!(1), &json!("x"))
    );
    assert_eq!(written["metadata"]["generation"], 1);
    let body = json!({ "spec": { "a": 9 }, "status": null });
    let written = api
        .serve(&request("PATCH", &format!("{LEASES}/n"), body))
        .body;
    assert_eq!(
        (&written["spec"]["a"], &written["status"]["phase"]),
        (&json!(9), &json!("x"))
    );
    assert_eq!(written["metadata"]["generation"], 2);
}

#[test]
fn a_write_that_changes_nothing_makes_no_version() {
    let mut api = with_lease();
    let before = api.end("interruptionleases");
    api.serve(&request(
        "PATCH",
        &format!("{LEASES}/n"),
        json!({ "spec": { "a": 1 } }),
    ));
    assert_eq!(api.end("interruptionleases"), before);
}

#[test]
fn finalizers_hold_an_object() {
    let mut api = with_lease();
    let deleted = api.serve(&request("DELETE", &format!("{LEASES}/n"), Value::Null));
    assert!(!deleted.body["metadata"]["deletionTimestamp"].is_null());
    let add = json!({ "metadata": { "finalizers": ["f", "g"] } });
    assert_eq!(
        api.serve(&request("PATCH", &format!("{LEASES}/n"), add))
            .code,
        422
    );
    let body = json!({ "metadata": { "finalizers": [] } });
    assert_eq!(
        api.serve(&request("PATCH", &format!("{LEASES}/n"), body))
            .code,
        200
    );
    assert!(api.get("interruptionleases", "n").is_none());
    assert!(api.log("interruptionleases", 2)[0].after.is_none());
}

#[test]
fn a_list_from_the_watch_cache_may_be_of_the_past() {
    let mut api = Api::default();
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| json!({ "metadata": { "name": name } });
    assert_eq!(api.serve(&request("POST", pods, pod("old"))).code, 201);
    api.now = 1000;
    assert_eq!(api.serve(&request("POST", pods, pod("new"))).code, 201);
    let gone = request("DELETE", &format!("{pods}/old"), Value::Null);
    assert_eq!(api.serve(&gone).code, 200);
    api.now = 1500;
    api.cache_lag = 700;
    let mut names = |version: Option<&str>| -> Vec<String> {
        let mut list = request("GET", "/api/v1/pods", Value::Null);
        list.query = version
            .map(|v| ("resourceVersion".into(), v.into()))
            .into_iter()
            .collect();
        let body = api.serve(&list).body;
        let items = body["items"].as_array().unwrap().iter();
        items
            .map(|pod| pod["metadata"]["name"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(names(None), ["new"]);
    assert_eq!(names(Some("0")), ["old"]);
}
