use super::super::tests::{answering, list, object, status};
use super::*;
use serde_json::{Value, json};

const TIME: RemovalArgs = RemovalArgs {
    timeout: Duration::from_secs(60),
};

fn crd(name: &str, deleted: bool) -> (u16, Value) {
    let deleted = deleted.then_some("2026-01-01T00:00:00Z");
    let metadata = json!({"name": name, "deletionTimestamp": deleted});
    let crd = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
    });
    (200, crd)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_done_while_no_crd_is_being_deleted() {
    for missing in [true, false] {
        let (client, asked) = answering(move |(_, path, _)| {
            let name = path.rsplit('/').next().unwrap_or_default();
            if missing {
                status(404)
            } else {
                crd(name, false)
            }
        });
        run(client, &TIME).await.expect("nothing to do");
        let asked = asked.lock().unwrap();
        assert_eq!(asked.len(), 4, "{asked:?}");
        assert!(
            asked
                .iter()
                .all(|line| line.contains("customresourcedefinitions/"))
        );
    }
}

/// Somebody else may be at it. Our finalizers are taken away only when nothing has changed for a while.
#[tokio::test(start_paused = true)]
async fn finalizers_are_taken_away_when_nothing_moves() {
    let started = Instant::now();
    let stripped = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done = std::sync::Arc::clone(&stripped);
    let (client, asked) = answering(move |(method, path, before)| {
        let gone = stripped.load(std::sync::atomic::Ordering::SeqCst);
        match method {
            _ if before < 3 => status(503),
            "GET" if path.ends_with("skyhooks.skyhook.nvidia.com") && !gone => {
                crd("skyhooks.skyhook.nvidia.com", true)
            }
            "GET" if path.ends_with("/skyhooks") => {
                list(&json!([object("s", &[names::SKYHOOK_FINALIZER, "other"])]))
            }
            "PATCH" => {
                stripped.store(true, std::sync::atomic::Ordering::SeqCst);
                (200, object("s", &["other"]))
            }
            _ => status(404),
        }
    });
    run(client, &TIME).await.expect("the CRD is gone");
    assert!(done.load(std::sync::atomic::Ordering::SeqCst));
    assert!(started.elapsed() > STANDSTILL);
    let asked = asked.lock().unwrap();
    let patches = asked.iter().filter(|line| line.starts_with("PATCH"));
    let patches: Vec<_> = patches.collect();
    assert_eq!(
        patches,
        ["PATCH /apis/skyhook.nvidia.com/v1alpha1/skyhooks/s"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_of_somebody_else_is_named() {
    let (client, asked) = answering(|(method, path, _)| match method {
        "GET" if path.contains("customresourcedefinitions/interruptionleases") => {
            crd("interruptionleases.skyhook.nvidia.com", true)
        }
        "GET" if path.ends_with("/interruptionleases") => {
            list(&json!([object("n", &["example.com/theirs"])]))
        }
        _ => status(404),
    });
    let error = run(client, &TIME).await.unwrap_err();
    let want = "not done after 60s: interruptionleases.skyhook.nvidia.com is being deleted, with 1 objects; \
                whoever set these finalizers has to take them away: example.com/theirs";
    assert_eq!(error.to_string(), want);
    let asked = asked.lock().unwrap();
    assert!(
        asked.iter().all(|line| line.starts_with("GET")),
        "{asked:?}"
    );
}
