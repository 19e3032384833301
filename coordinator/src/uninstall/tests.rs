use std::sync::{Arc, Mutex};

use kube::client::Body;
use serde_json::Value;
use tower::service_fn;

use super::*;

/// A request of the cleanup: its method, its path, and how many came before it.
pub(super) type Request<'a> = (&'a str, &'a str, usize);

/// A client of an API server that answers as this function does. Also returns the requests that it gets.
pub(super) fn answering(
    answer: impl Fn(Request<'_>) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&asked);
    let service = service_fn(move |request: http::Request<Body>| {
        let (method, path) = (request.method().as_str(), request.uri().path());
        let before = {
            let mut log = log.lock().unwrap();
            log.push(format!("{method} {path}"));
            log.len() - 1
        };
        let (code, said) = answer((method, path, before));
        let answer = http::Response::builder().status(code);
        let answer = answer.body(Body::from(said.to_string().into_bytes()));
        async move { answer.map_err(std::io::Error::other) }
    });
    (Client::new(service, "skyhook"), asked)
}

pub(super) fn status(code: u16) -> (u16, Value) {
    let said = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "no", "code": code,
    });
    (code, said)
}

pub(super) fn list(items: &Value) -> (u16, Value) {
    let list = json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "items": items,
    });
    (200, list)
}

pub(super) fn object(name: &str, finalizers: &[&str]) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "finalizers": finalizers},
    })
}

#[test]
fn the_longer_it_takes_the_further_it_goes() {
    let time = Duration::from_secs(60);
    for (seconds, want) in [
        (0, Means::Delete),
        (40, Means::Delete),
        (41, Means::Release),
        (50, Means::Release),
        (51, Means::Strip),
        (600, Means::Strip),
    ] {
        assert_eq!(Means::after(Duration::from_secs(seconds), time), want);
    }
}

#[tokio::test(start_paused = true)]
async fn a_kind_whose_crd_is_gone_needs_no_clean_up() {
    let (client, asked) = answering(|_| status(404));
    release(&client).await.expect("no leases");
    clean(&client, "skyhook", Duration::from_secs(60))
        .await
        .expect("nothing");
    let asked = asked.lock().unwrap();
    assert!(
        asked.iter().all(|line| line.starts_with("GET ")),
        "{asked:?}"
    );
}

/// A server that is too busy or broken for a while, in the midst of it.
#[tokio::test(start_paused = true)]
async fn errors_do_not_end_it_before_its_time() {
    for code in [429, 500, 503, 403] {
        let (client, asked) = answering(move |(_, _, before)| {
            if before < 30 {
                status(code)
            } else {
                list(&json!([]))
            }
        });
        let cleaned = clean(&client, "skyhook", Duration::from_secs(60)).await;
        cleaned.unwrap_or_else(|error| panic!("{code}: {error:#}"));
        assert!(asked.lock().unwrap().len() > 30);
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_is_an_error_in_time() {
    let started = Instant::now();
    let (client, _) = answering(|_| status(500));
    let error = clean(&client, "skyhook", Duration::from_secs(60))
        .await
        .unwrap_err();
    assert!(format!("{error:#}").contains("list leases: "), "{error:#}");
    let (client, _) = answering(|(method, path, _)| match method {
        "GET" if path.ends_with("/skyhooks") => list(&json!([object("s", &["other"])])),
        "GET" => list(&json!([])),
        _ => status(409),
    });
    let error = clean(&client, "skyhook", Duration::from_secs(60))
        .await
        .unwrap_err();
    let want = "1 objects are left after 60s: somebody else's finalizer keeps them, or they are created anew";
    assert_eq!(error.to_string(), want);
    assert!(started.elapsed() < Duration::from_secs(150));
}

/// A server that accepts a request and says nothing.
#[tokio::test(start_paused = true)]
async fn silence_does_not_use_up_the_time() {
    let asked: Arc<Mutex<usize>> = Arc::default();
    let count = Arc::clone(&asked);
    let service = service_fn(move |_: http::Request<Body>| {
        let first = {
            let mut count = count.lock().unwrap();
            *count += 1;
            *count == 1
        };
        async move {
            if first {
                std::future::pending::<()>().await;
            }
            let body = list(&json!([])).1.to_string();
            http::Response::builder()
                .body(Body::from(body.into_bytes()))
                .map_err(std::io::Error::other)
        }
    });
    let started = Instant::now();
    let client = Client::new(service, "skyhook");
    clean(&client, "skyhook", Duration::from_secs(100))
        .await
        .expect("clean");
    assert!(started.elapsed() < 2 * PATIENCE);
}

/// One object that cannot be changed keeps nothing else from being changed.
#[tokio::test(start_paused = true)]
async fn one_refusal_stops_no_other_request() {
    let (client, asked) = answering(|(method, path, _)| match (method, path) {
        ("GET", path) if path.ends_with("/interruptionleases") => {
            let finalizers = [names::LEASE_FINALIZER, "other"];
            list(&json!([
                object("a", &finalizers),
                object("b", &finalizers),
                object("c", &["other"])
            ]))
        }
        ("GET", _) => list(&json!([object("s", &[names::SKYHOOK_FINALIZER])])),
        ("PATCH", path) if path.ends_with("/a") => status(422),
        _ => (200, object("x", &[])),
    });
    let kinds = Kinds {
        skyhooks: Api::all(client.clone()),
        leases: Api::all(client.clone()),
        policies: Api::all(client.clone()),
        revisions: Api::namespaced(client, "skyhook"),
    };
    let error = kinds.look(Means::Strip).await.unwrap_err();
    let want = "take the finalizers of leases away: 1 of 2 requests have failed, the first with: ";
    assert!(format!("{error:#}").starts_with(want), "{error:#}");
    let asked = asked.lock().unwrap();
    for (request, times) in [
        (
            "DELETE /apis/skyhook.nvidia.com/v1alpha1/interruptionleases/c",
            1,
        ),
        (
            "PATCH /apis/skyhook.nvidia.com/v1alpha1/interruptionleases/b",
            1,
        ),
        (
            "PATCH /apis/skyhook.nvidia.com/v1alpha1/interruptionleases/c",
            0,
        ),
        ("PATCH /apis/skyhook.nvidia.com/v1alpha1/skyhooks/s", 1),
    ] {
        let found = asked.iter().filter(|line| *line == request).count();
        assert_eq!(found, times, "{request}: {asked:?}");
    }
}
