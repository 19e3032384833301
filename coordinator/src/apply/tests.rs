//! Which requests are made for an effect, and what comes of the answers.

use std::sync::{Arc, Mutex};

use http::{Request, Response};
use k8s_openapi::api::core::v1::Taint;
use kube::client::Body;
use skyhook_crds::lease::{BatchRef, SkyhookRef};
use skyhook_crds::stage::Status;
use skyhook_fleet::effect::NodePatch;
use skyhook_fleet::plan::cause::Cause;

use super::*;

mod rollouts;

/// Requests that were made: method and path, and the body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// Writes to an API server that gives these answers, one after the other, and 500 after the last one.
fn answering(answers: Vec<(u16, Value)>) -> (Applier, Asked) {
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    let answers = Arc::new(Mutex::new(answers.into_iter()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (log, answers) = (Arc::clone(&log), Arc::clone(&answers));
        async move {
            let line = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect_bytes().await?;
            let body = serde_json::from_slice(&body).unwrap_or_default();
            log.lock().unwrap().push((line, body));
            let next = answers.lock().unwrap().next();
            let (code, answer) = next.unwrap_or_else(|| (500, status(500, "no more answers")));
            let answer = Body::from(answer.to_string().into_bytes());
            let response = Response::builder().status(code).body(answer);
            response.map_err(|error| kube::Error::Service(error.into()))
        }
    });
    let client = Client::new(service, "skyhook");
    (Applier::new(client, "skyhook", "one"), asked)
}

fn lines(asked: &Asked) -> Vec<String> {
    let asked = asked.lock().unwrap();
    asked.iter().map(|(line, _)| line.clone()).collect()
}

fn status(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": "x", "code": code })
}

fn answer(code: u16, message: &str) -> kube::Error {
    let status: kube::core::Status = serde_json::from_value(status(code, message)).unwrap();
    kube::Error::Api(status.boxed())
}

#[test]
fn a_failed_request_concerns_one_object_or_all_writes() {
    let all = RetryClass::After(UNREACHABLE);
    let refused_connection = || {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        kube::Error::Service(Box::new(refused))
    };
    let garbage = || serde_json::from_str::<Value>("{").unwrap_err();
    for (name, error, want) in [
        ("connection refused", refused_connection(), all),
        ("bad gateway", answer(502, "bad gateway"), all),
        (
            "unavailable",
            answer(503, "apiserver is shutting down"),
            all,
        ),
        ("gateway timeout", answer(504, "timed out"), all),
        (
            "too many requests",
            answer(429, "Too many requests, please try again later."),
            RetryClass::After(Duration::from_secs(1)),
        ),
        ("gone", answer(404, "not found"), RetryClass::Stale),
        (
            "another version",
            answer(409, "conflict"),
            RetryClass::Stale,
        ),
        ("invalid", answer(422, "invalid"), RetryClass::Refused),
        ("forbidden", answer(403, "forbidden"), RetryClass::Refused),
        (
            "too large",
            answer(413, "request entity too large"),
            RetryClass::Refused,
        ),
        (
            "too large for etcd",
            answer(500, "etcdserver: request is too large"),
            RetryClass::Refused,
        ),
        (
            "a webhook that does not answer",
            answer(500, "failed calling webhook"),
            RetryClass::Transient,
        ),
        (
            "an answer that cannot be read",
            kube::Error::SerdeError(garbage()),
            RetryClass::Transient,
        ),
    ] {
        assert_eq!(retry_class(&error), want, "{name}");
    }
}

fn cordon_and_conditions() -> Effect {
    let patch = NodePatch {
        unschedulable: Some(true),
        ..NodePatch::default()
    };
    Effect::PatchNode {
        node: "n1".into(),
        at: AsOf {
            uid: "u".into(),
            resource_version: "1".into(),
        },
        patch: patch.conditions("s", Status::InProgress),
        why: [Cause::Cordon].into(),
    }
}

/// The cordon is written first, the conditions after it. What was written is taken in, whatever comes after.
#[tokio::test]
async fn the_first_of_two_writes_to_a_node_counts_if_the_second_one_fails() {
    let written = json!({ "metadata": { "name": "n1", "uid": "u", "resourceVersion": "2" } });
    let both = ["PATCH /api/v1/nodes/n1", "PATCH /api/v1/nodes/n1/status"];
    let (applier, asked) = answering(vec![(200, written), (500, status(500, "no"))]);
    let outcome = applier.apply(&cordon_and_conditions(), "t").await;
    assert_eq!(lines(&asked), both);
    let Outcome::Done(Some(Change::Node(node))) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(node.metadata.resource_version.as_deref(), Some("2"));
    let second = asked.lock().unwrap()[1].1["metadata"]["resourceVersion"].clone();
    assert_eq!(second, "2", "on what the first one wrote");

    let (applier, asked) = answering(vec![(409, status(409, "conflict"))]);
    let outcome = applier.apply(&cordon_and_conditions(), "t").await;
    assert!(matches!(outcome, Outcome::Stale), "{outcome:?}");
    assert_eq!(lines(&asked), both[..1]);
}

/// One PATCH of the object: the taints as a whole list, which may be empty, with the annotations and the cordon.
#[tokio::test]
async fn taints_are_written_with_the_annotation_that_says_whose_they_are() {
    let taint = Taint {
        key: "a".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    };
    for (taints, unschedulable, want) in [
        (
            vec![taint],
            None,
            json!({ "taints": [{ "key": "a", "effect": "NoSchedule" }] }),
        ),
        (
            Vec::new(),
            Some(true),
            json!({ "taints": [], "unschedulable": true }),
        ),
    ] {
        let written = json!({ "metadata": { "name": "n1", "uid": "u", "resourceVersion": "2" } });
        let (applier, asked) = answering(vec![(200, written)]);
        let patch = NodePatch {
            taints: Some(taints),
            unschedulable,
            ..NodePatch::default().annotation("mark", Some("true".into()))
        };
        let effect = Effect::PatchNode {
            node: "n1".into(),
            at: AsOf {
                uid: "u".into(),
                resource_version: "1".into(),
            },
            patch,
            why: [Cause::AutoTaint].into(),
        };
        let outcome = applier.apply(&effect, "t").await;
        assert!(matches!(outcome, Outcome::Done(Some(_))), "{outcome:?}");
        assert_eq!(lines(&asked), ["PATCH /api/v1/nodes/n1"]);
        let body = asked.lock().unwrap()[0].1.clone();
        assert_eq!(body["spec"], want);
        assert_eq!(body["metadata"]["annotations"], json!({ "mark": "true" }));
        assert_eq!(body["metadata"]["resourceVersion"], "1");
    }
}

#[tokio::test]
async fn a_lease_is_labelled_with_its_skyhook_its_compartment_and_its_batch() {
    for (compartment, batch, want) in [
        (
            "gpu",
            None,
            json!({ "skyhook.nvidia.com/name": "s", "skyhook.nvidia.com/compartment": "gpu" }),
        ),
        (
            "gpu",
            Some(12),
            json!({
                "skyhook.nvidia.com/name": "s", "skyhook.nvidia.com/compartment": "gpu",
                "skyhook.nvidia.com/batch": "12",
            }),
        ),
        // Not a valid value of a label.
        (
            "__default__",
            None,
            json!({ "skyhook.nvidia.com/name": "s" }),
        ),
    ] {
        let spec = InterruptionLeaseSpec {
            skyhook: SkyhookRef {
                name: "s".into(),
                uid: "u".into(),
                generation: 1,
            },
            compartment: compartment.into(),
            batch: batch.map(|number| BatchRef {
                state: "state".into(),
                number,
            }),
            ..InterruptionLeaseSpec::default()
        };
        let (applier, asked) = answering(Vec::new());
        let reserve = Effect::ReserveLease {
            node: "n1".into(),
            spec: Box::new(spec),
        };
        applier.apply(&reserve, "t").await;
        let labels = asked.lock().unwrap()[0].1["metadata"]["labels"].clone();
        assert_eq!(labels, want);
    }
}
