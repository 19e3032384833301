use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;

/// A server that accepts every request, sends only the beginning of an answer, and keeps the connection open.
async fn silent_server(beginning: &'static [u8]) -> LeaseApi {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|n| n > 0) {
                    if stream.write_all(beginning).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let mut api = LeaseApi::new(client, "worker-1".into(), "skyhook".into());
    api.deadline = Duration::from_millis(300);
    api
}

type Call<'a> = (&'static str, LocalBoxFuture<'a, Result<(), ApiError>>);

/// All calls that the agent makes to the API.
fn calls<'a>(api: &'a LeaseApi, names: &'a BTreeSet<String>) -> Vec<Call<'a>> {
    let change = json!({"phase": "Accepted"});
    vec![
        ("list", api.list().map(|r| r.map(drop)).boxed_local()),
        ("lease", api.lease().map(|r| r.map(drop)).boxed_local()),
        (
            "status",
            api.patch_status("uid", "7", change)
                .map(|r| r.map(drop))
                .boxed_local(),
        ),
        (
            "revision",
            api.revision("r").map(|r| r.map(drop)).boxed_local(),
        ),
        ("node", api.node().map(|r| r.map(drop)).boxed_local()),
        (
            "limit ranges",
            api.default_resources().map(|r| r.map(drop)).boxed_local(),
        ),
        (
            "secrets",
            api.secrets(names).map(|r| r.map(drop)).boxed_local(),
        ),
        (
            "config maps",
            api.config_maps(names).map(|r| r.map(drop)).boxed_local(),
        ),
    ]
}

#[tokio::test]
async fn no_call_waits_for_ever_for_a_server_that_says_nothing() {
    let names = BTreeSet::from(["one".to_owned()]);
    for beginning in [
        b"".as_slice(),
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    ] {
        let api = silent_server(beginning).await;
        for (name, call) in calls(&api, &names) {
            let begin = Instant::now();
            let answer = timeout(Duration::from_secs(10), call).await;
            let answer = answer.unwrap_or_else(|_| panic!("{name} waits for ever"));
            assert!(
                matches!(answer, Err(ApiError::Silent { .. })),
                "{name}: {answer:?}"
            );
            assert!(begin.elapsed() < Duration::from_secs(5), "{name}");
        }
    }
    assert!(DEADLINE <= Duration::from_secs(30));
}

/// A server that cannot be asked for one secret must not take the others with it.
#[tokio::test]
async fn a_pull_secret_that_the_server_does_not_give_is_named() {
    let api = silent_server(b"").await;
    let names = [PULL_SECRET.to_owned()];
    let credentials = timeout(Duration::from_secs(10), api.credentials(&names)).await;
    let problems = credentials.unwrap().all_problems();
    assert_eq!(problems.len(), 1);
    let want = "pull secret node-init-secret: it cannot be read: no answer in 0 s";
    assert!(problems[0].starts_with(want), "{problems:?}");
}

#[test]
fn both_types_of_pull_secrets_are_read() {
    let secret = |key: &str, content: &str| Secret {
        data: Some(BTreeMap::from([(
            key.to_owned(),
            k8s_openapi::ByteString(content.as_bytes().to_vec()),
        )])),
        ..Secret::default()
    };
    let login = r#"{"r.io": {"username": "u", "password": "hunter2"}}"#;
    let new = format!(r#"{{"auths": {login}}}"#);
    for (key, content) in [(".dockerconfigjson", new.as_str()), (".dockercfg", login)] {
        let credentials = pull_secret(&secret(key, content)).unwrap();
        let text = format!("{credentials:?}");
        assert!(
            text.contains("Basic(***)") && !text.contains("hunter2"),
            "{text}"
        );
    }
    for (key, content, want) in [
        (
            ".dockerconfigjson",
            "",
            "it has no key .dockerconfigjson and no key .dockercfg",
        ),
        (
            "config.json",
            login,
            "it has no key .dockerconfigjson and no key .dockercfg",
        ),
        (
            ".dockercfg",
            "hunter2",
            "the docker config is not valid JSON (line 1, column 1)",
        ),
    ] {
        let error = pull_secret(&secret(key, content)).unwrap_err();
        assert!(error.starts_with(want), "{error}");
    }
}

/// A server that sends one answer to each connection and closes it. The answer is made from the first line of the
/// request, which is also sent to the receiver.
async fn server(
    answer: impl Fn(&str) -> Vec<u8> + Send + 'static,
) -> (LeaseApi, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if let Ok(length @ 1..) = stream.read(&mut request).await {
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let line = request.lines().next().unwrap_or_default().to_owned();
                let answer = answer(&line);
                let _sent = asked.send(line);
                let _written = stream.write_all(&answer).await;
            }
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let api = LeaseApi::new(client, "worker-1".into(), "skyhook".into());
    (api, requests)
}

fn answer(status: &str, body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A proxy may close each watch as soon as it is asked for.
#[tokio::test]
async fn a_watch_that_is_closed_at_once_is_not_asked_for_without_a_pause() {
    let (api, mut asked) =
        server(|_| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec())
            .await;
    let (events, _seen) = tokio::sync::mpsc::unbounded_channel();
    let mut version = "7".to_owned();
    let watched = timeout(Duration::from_secs(2), api.follow(&events, &mut version)).await;
    assert!(watched.is_err(), "it goes on watching");
    let mut requests = 0;
    while asked.try_recv().is_ok() {
        requests += 1;
    }
    assert!((1..=10).contains(&requests), "{requests} requests in 2 s");
}

/// The API server may answer a watch with the status 410, instead of an event with that code.
#[tokio::test]
async fn a_watch_that_is_answered_with_410_is_followed_by_a_list() {
    let (api, mut asked) = server(|request| match request.contains("watch=1") {
        true => answer(
            "410 Gone",
            &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "Expired", "message": "too old resource version", "code": 410}),
        ),
        false => answer(
            "200 OK",
            &json!({"kind": "InterruptionLeaseList", "apiVersion": "skyhook.nvidia.com/v1alpha1",
                "metadata": {"resourceVersion": "7"}, "items": []}),
        ),
    })
    .await;
    let (events, _seen) = tokio::sync::mpsc::unbounded_channel();
    let watched = timeout(Duration::from_secs(4), api.watch(events)).await;
    assert!(watched.is_err(), "it goes on");
    let mut requests = Vec::new();
    while let Ok(line) = asked.try_recv() {
        requests.push(line.contains("watch=1"));
    }
    assert!(requests.len() >= 4, "{requests:?}");
    let alternates = requests
        .iter()
        .enumerate()
        .all(|(n, &is_watch)| is_watch == (n % 2 == 1));
    assert!(alternates, "each 410 is followed by a list: {requests:?}");
    assert!(requests.len() <= 20, "{} requests in 4 s", requests.len());
}
