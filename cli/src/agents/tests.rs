//! Tests of which pod is an agent's, and of programs that run in it: against a server that answers as the API server
//! does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{
    Callback, ErrorResponse, Request, Response,
};
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::*;
use crate::testing::object;

/// An agent's pod: its name, its node, and the state of its container.
fn pod(name: &str, node: &str, state: &Value) -> Pod {
    let containers = if state.is_null() {
        json!([])
    } else {
        json!([{
            "name": "agent", "state": state, "image": "i", "imageID": "", "ready": false, "restartCount": 0,
        }])
    };
    object(json!({
        "metadata": { "name": name },
        "spec": { "nodeName": node, "containers": [] },
        "status": { "phase": "Pending", "containerStatuses": containers },
    }))
}

#[test]
fn the_pod_is_that_of_the_node_which_runs() {
    let running = json!({ "running": {} });
    let failing = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
    let ended = json!({ "terminated": { "exitCode": 1, "reason": "Error" } });
    let mut going = pod("a-old", "a", &running);
    going.metadata.deletion_timestamp = Some(object(json!("2026-11-27T10:00:00Z")));
    let pods = [
        going,
        pod("a-new", "a", &running),
        pod("b-1", "b", &failing),
        pod("c-1", "c", &Value::Null),
        pod("d-1", "d", &ended),
        pod("e-1", "e", &ended),
        pod("e-2", "e", &running),
    ];
    let no_pod = "there is no agent's pod on the node in namespace \"ns\"; if Skyhook is installed in another namespace, name it \
                  with -n, otherwise look at: kubectl get daemonsets,pods -n ns -l \
                  app.kubernetes.io/name=skyhook-operator,app.kubernetes.io/component=agent -o wide";
    let broken = |pod: &str, why: &str| {
        Err(format!(
            "the agent's pod {pod} does not run ({why}); look at: kubectl describe pod {pod} -n ns"
        ))
    };
    for (node, want) in [
        ("a", Ok("a-new".to_owned())),
        ("b", broken("b-1", "CrashLoopBackOff")),
        ("c", broken("c-1", "Pending")),
        ("d", broken("d-1", "Error")),
        ("e", Ok("e-2".to_owned())),
        ("f", Err(no_pod.to_owned())),
    ] {
        assert_eq!(on_node(&pods, node, "ns"), want, "{node}");
    }
}

#[test]
fn lines_are_whole() {
    let mut bytes = Vec::new();
    let mut fed = |text: &str, is_over| {
        bytes.extend_from_slice(text.as_bytes());
        whole_lines(&mut bytes, is_over)
    };
    assert_eq!(fed("a\nb", false), ["a"]);
    assert_eq!(fed("", false), [""; 0]);
    assert_eq!(fed("c\n\nd\n", false), ["bc", "", "d"]);
    assert_eq!(fed("e", true), ["e"]);
    assert_eq!(fed("", true), [""; 0]);
}

#[test]
fn how_a_program_ended_is_said() {
    let status = |json| Some(object::<Status>(json));
    let exit = |code: &str| {
        status(json!({
            "status": "Failure", "message": "command terminated with non-zero exit code",
            "details": { "causes": [{ "reason": "ExitCode", "message": code }] },
        }))
    };
    for (what, status, last_words, want) in [
        (
            "success",
            status(json!({ "status": "Success" })),
            "a note",
            None,
        ),
        ("broken", None, "", Some("the connection to the pod broke")),
        ("failed", exit("1"), "no room", Some("no room")),
        ("silent", exit("1"), "", Some("skyhook-agent ended with 1")),
        (
            "older",
            exit("2"),
            "unknown command",
            Some("the agent is of another version"),
        ),
        (
            "not there",
            status(json!({ "status": "Failure", "message": "no such file" })),
            "",
            Some("no such file"),
        ),
    ] {
        let given = ended(status.as_ref(), last_words).map_err(|error| error.to_string());
        match want {
            None => assert_eq!(given, Ok(()), "{what}"),
            Some(want) => {
                let error = given.unwrap_err();
                assert!(error.starts_with(want), "{what}: {error}");
            }
        }
    }
}

/// What the server answers: messages of channels, and whether it then waits for the client.
struct Answer {
    refuses: bool,
    messages: Vec<(u8, Vec<u8>)>,
    waits: bool,
}

/// Takes the connection, or refuses it, and notes what was asked for.
struct Accept {
    refuses: bool,
    asked: Arc<Mutex<String>>,
}

impl Callback for Accept {
    fn on_request(
        self,
        request: &Request,
        mut response: Response,
    ) -> Result<Response, ErrorResponse> {
        *self.asked.lock().unwrap() = request.uri().to_string();
        if self.refuses {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
                "message": "pods \"p\" is forbidden",
            });
            let mut refusal = ErrorResponse::new(Some(status.to_string()));
            *refusal.status_mut() = http::StatusCode::FORBIDDEN;
            return Err(refusal);
        }
        let protocol = HeaderValue::from_static("v5.channel.k8s.io");
        response
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", protocol);
        Ok(response)
    }
}

/// A server for one request. Its end is what was asked for.
async fn serve(answer: Answer) -> (Client, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let config = kube::Config::new(address.parse().unwrap());
    let client = Client::try_from(config).unwrap();
    let served = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let asked = Arc::new(Mutex::new(String::new()));
        let accept = Accept {
            refuses: answer.refuses,
            asked: Arc::clone(&asked),
        };
        if let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, accept).await {
            for (channel, bytes) in answer.messages {
                let message = [&[channel][..], &bytes].concat();
                socket.send(Message::binary(message)).await.unwrap();
            }
            if answer.waits {
                // Until the client goes away.
                while let Some(Ok(_)) = socket.next().await {}
            } else {
                socket.close(None).await.unwrap();
            }
        }
        let asked = asked.lock().unwrap();
        asked.clone()
    });
    (client, served)
}

async fn ran(answer: Answer, has_stdin: bool) -> (Result<(), String>, Vec<Printed>, String) {
    let (client, served) = serve(answer).await;
    let api: Api<Pod> = Api::namespaced(client, "ns");
    let (sender, mut receiver) = mpsc::channel(100);
    let words = ["logs".to_owned(), "--tail=1".to_owned()];
    let result = run(&api, "p", &words, has_stdin, 7, &sender).await;
    drop(sender);
    let mut lines = Vec::new();
    while let Some(line) = receiver.recv().await {
        lines.push(line);
    }
    let result = result.map_err(|error| format!("{error:#}"));
    (result, lines, served.await.unwrap())
}

fn status(code: Option<&str>) -> (u8, Vec<u8>) {
    let status = match code {
        None => json!({ "status": "Success", "metadata": {} }),
        Some(code) => json!({
            "status": "Failure", "metadata": {},
            "details": { "causes": [{ "reason": "ExitCode", "message": code }] },
        }),
    };
    (3, status.to_string().into_bytes())
}

#[tokio::test]
async fn a_program_is_run_and_its_lines_come_back() {
    let printed = |stream, line: &str| Printed {
        from: 7,
        stream,
        line: line.to_owned(),
    };
    let text = |channel: u8, text: &str| (channel, text.as_bytes().to_vec());
    let answer = Answer {
        refuses: false,
        messages: vec![
            text(1, "one\ntw"),
            text(2, "a note\n"),
            text(1, "o\n"),
            status(None),
        ],
        waits: false,
    };
    let (result, mut lines, asked) = ran(answer, false).await;
    assert_eq!(result, Ok(()));
    lines.sort_by_key(|line| line.stream == Stream::Err);
    let want = [
        printed(Stream::Out, "one"),
        printed(Stream::Out, "two"),
        printed(Stream::Err, "a note"),
    ];
    assert_eq!(lines, want);
    let want = "/api/v1/namespaces/ns/pods/p/exec?&stdout=true&stderr=true&container=agent\
                &command=%2Fusr%2Fbin%2Fskyhook-agent&command=logs&command=--tail%3D1";
    assert_eq!(asked, want);
}

#[tokio::test]
async fn failures_are_told_apart() {
    for (what, refuses, messages, want) in [
        (
            "failed",
            false,
            vec![(2, b"no room\n".to_vec()), status(Some("1"))],
            "no room",
        ),
        (
            "broken",
            false,
            vec![(1, b"one\n".to_vec())],
            "the connection to the pod broke",
        ),
        (
            "forbidden",
            true,
            vec![],
            "running skyhook-agent in the agent's pod needs the verbs create and get for pods/exec in its namespace: \
             pods \"p\" is forbidden",
        ),
    ] {
        let answer = Answer {
            refuses,
            messages,
            waits: false,
        };
        let error = ran(answer, false).await.0.unwrap_err();
        assert!(error.starts_with(want), "{what}: {error}");
    }
}

/// The input tells the program that somebody still reads.
#[tokio::test]
async fn the_input_stays_open_until_the_client_goes_away() {
    let answer = Answer {
        refuses: false,
        messages: vec![(1, b"one\n".to_vec())],
        waits: true,
    };
    let (client, served) = serve(answer).await;
    let api: Api<Pod> = Api::namespaced(client, "ns");
    let (sender, mut receiver) = mpsc::channel(100);
    {
        let mut follow = std::pin::pin!(run(&api, "p", &[], true, 0, &sender));
        let line = tokio::select! {
            ended = &mut follow => panic!("it ended: {ended:?}"),
            line = receiver.recv() => line.unwrap(),
        };
        assert_eq!(line.line, "one");
        let more = tokio::time::timeout(Duration::from_millis(300), &mut follow).await;
        assert!(more.is_err(), "it goes on: {more:?}");
        assert!(!served.is_finished());
    }
    let asked = tokio::time::timeout(Duration::from_secs(10), served).await;
    assert!(
        asked.unwrap().unwrap().contains("&stdin=true"),
        "the server saw the end"
    );
}
