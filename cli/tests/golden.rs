//! What every command prints and writes, byte for byte, in every form of output: scripts read it.
//!
//! Each file in `golden/` is a session. A line that begins with `$` is a command, and its answer to a question comes from
//! `echo`. Below it are the lines on stdout, those on stderr after `2>`, and the writes that the API server got after
//! `=>`. The cluster of `cluster.yaml` is new for each file, and its commands see what those before them have written.
//!
//! `SKYHOOK_GOLDEN=write` writes what the commands print now into the files.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests are shell, and end at the first surprise"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use clap::Parser as _;
use serde::Deserialize as _;
use serde_json::{Value, json};
use skyhook_cli::args::Cli;
use skyhook_cli::session::{Io, Screen};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Every command and every form of output has a place in one of the files.
#[tokio::test]
async fn every_session_is_as_it_is_written() {
    let write = std::env::var("SKYHOOK_GOLDEN").is_ok_and(|value| value == "write");
    let mut files: Vec<PathBuf> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    let mut differ = Vec::new();
    for path in &files {
        let want = fs::read_to_string(path).unwrap();
        let given = session(&want).await;
        if write {
            fs::write(path, &given).unwrap();
        } else if given != want {
            differ.push(format!(
                "{}:\n{}",
                path.display(),
                difference(&want, &given)
            ));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
    assert!(!files.is_empty(), "there are no sessions");
}

/// The commands of the command line that run against a cluster or files, each in every form in which it has a result.
#[test]
fn every_command_has_a_session() {
    let all: String = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let commands: Vec<&str> = all.lines().filter(|line| line.starts_with('$')).collect();
    let has = |command: &str, more: &str| {
        let plugin = format!("kubectl skyhook {command}");
        commands
            .iter()
            .any(|line| line.contains(&plugin) && line.contains(more))
    };
    for command in [
        "version",
        "pause",
        "resume",
        "disable",
        "enable",
        "reset",
        "update-state",
        "deployment-policy reset",
        "dp reset",
        "node list",
        "node status",
        "node reset",
        "node ignore",
        "node unignore",
        "package status",
        "package rerun",
        "package logs",
        "status",
        "explain",
        "validate",
        "force-release",
    ] {
        assert!(has(command, ""), "{command}");
    }
    for command in [
        "node list",
        "node status",
        "package status",
        "status",
        "explain",
        "validate",
    ] {
        for form in ["-o json", "-o yaml", "-o wide"] {
            assert!(has(command, form), "{command} {form}");
        }
    }
    for command in [
        "pause",
        "resume",
        "disable",
        "enable",
        "reset",
        "update-state",
        "dp reset",
        "node reset",
        "node ignore",
        "node unignore",
        "package rerun",
        "force-release",
    ] {
        assert!(has(command, "--dry-run"), "{command} --dry-run");
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The first lines that differ.
fn difference(want: &str, given: &str) -> String {
    let (wanted, got): (Vec<&str>, Vec<&str>) = (want.lines().collect(), given.lines().collect());
    let lines = 0..wanted.len().max(got.len());
    let differ = lines.filter(|line| wanted.get(*line) != got.get(*line));
    let shown = differ.take(20).map(|line| {
        let of = |lines: &[&str]| {
            lines
                .get(line)
                .map_or("(no line)".to_owned(), |line| format!("{line:?}"))
        };
        format!(
            "  line {}: want {}\n           got  {}",
            line + 1,
            of(&wanted),
            of(&got)
        )
    });
    shown.collect::<Vec<_>>().join("\n")
}

/// Runs the commands of a session, and returns the session as it should be written.
async fn session(text: &str) -> String {
    let server = Server::start().await;
    let commands = text.lines().filter(|line| line.starts_with("$ "));
    let mut given = String::new();
    for command in commands {
        if !given.is_empty() {
            given.push('\n');
        }
        given.push_str(command);
        given.push('\n');
        given.push_str(&server.run(command).await);
    }
    given
}

/// The words of a line. Single and double quotes keep words together.
fn words(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quote = None;
    for character in line.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, ' ') => words.push(String::new()),
            _ => words.last_mut().unwrap().push(character),
        }
    }
    words
}

/// A server that answers as the API server does.
struct Server {
    kubeconfig: tempfile::NamedTempFile,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// By path.
    objects: BTreeMap<String, Value>,
    /// The writes since the last command.
    writes: Vec<String>,
}

impl Server {
    async fn start() -> Self {
        let cluster = fs::read_to_string(directory().join("cluster.yaml")).unwrap();
        let objects = serde_yaml_ng::Deserializer::from_str(&cluster).map(|document| {
            let mut object = Value::deserialize(document).unwrap();
            object["metadata"]["resourceVersion"] = json!("1");
            object["metadata"]["uid"] = json!(format!(
                "uid-of-{}",
                object["metadata"]["name"].as_str().unwrap()
            ));
            (path_of(&object), object)
        });
        let state = State {
            objects: objects.collect(),
            writes: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": {} }],
        });
        fs::write(kubeconfig.path(), config.to_string()).unwrap();
        Self { kubeconfig, state }
    }

    /// Runs a command line, and returns what it did in the form of a session.
    async fn run(&self, line: &str) -> String {
        let line = line.trim_start_matches("$ ");
        let (input, line) = match line.split_once(" | ") {
            Some((echo, line)) => (format!("{}\n", echo.trim_start_matches("echo ")), line),
            None => (String::new(), line),
        };
        let line = line.strip_prefix("kubectl skyhook").unwrap().trim_start();
        let directory = directory().to_string_lossy().into_owned();
        let given = words(line);
        let given = given
            .into_iter()
            .filter(|word| !word.is_empty())
            .map(|word| word.replace("DIR/", &format!("{directory}/")));
        let kubeconfig = self.kubeconfig.path().to_string_lossy().into_owned();
        let mut all = vec!["kubectl-skyhook".to_owned()];
        all.extend(given);
        all.extend(["--kubeconfig".to_owned(), kubeconfig]);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let io = Io {
            out: &mut out,
            err: &mut err,
            input: &mut input.as_bytes(),
            screen: Screen::default(),
        };
        let error = match Cli::try_parse_from(all) {
            Ok(cli) => skyhook_cli::run(cli, io)
                .await
                .err()
                .map(|error| format!("{error:#}")),
            Err(error) => Some(error.to_string()),
        };
        let mut text = String::from_utf8(out).unwrap().replace(&directory, "DIR");
        if !text.is_empty() && !text.ends_with('\n') {
            text.push_str("(no line end)\n");
        }
        text = text.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        for line in String::from_utf8(err).unwrap().lines() {
            text.push_str(&format!("2> {line}\n"));
        }
        let mut writes = std::mem::take(&mut self.state.lock().unwrap().writes);
        // Several nodes are written at the same time.
        writes.sort();
        for write in writes {
            text.push_str(&format!("=> {write}\n"));
        }
        for line in error.iter().flat_map(|error| error.lines()) {
            text.push_str(&format!("2> Error: {line}\n").replace(&directory, "DIR"));
        }
        text
    }
}

const SKYHOOK: &str = "/apis/skyhook.nvidia.com/v1alpha1";

fn path_of(object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    let namespaced = |group: &str, kind: &str| format!("{group}/namespaces/skyhook/{kind}/{name}");
    match object["kind"].as_str().unwrap() {
        "Node" => format!("/api/v1/nodes/{name}"),
        "Pod" => namespaced("/api/v1", "pods"),
        "Deployment" => namespaced("/apis/apps/v1", "deployments"),
        kind => format!("{SKYHOOK}/{}s/{name}", kind.to_lowercase()),
    }
}

/// Answers the requests of one connection.
async fn answer(stream: TcpStream, state: Arc<Mutex<State>>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if read.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            read.read_line(&mut line).await.unwrap();
            let lower = line.to_lowercase();
            if let Some(value) = lower.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body).await.unwrap();
        let mut parts = first.split(' ');
        let (method, target) = (parts.next().unwrap(), parts.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (code, object) = state.lock().unwrap().answer(method, path, query, &body);
        let text = object.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            text.len()
        );
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(text.as_bytes()).await.unwrap();
    }
}

impl State {
    fn answer(&mut self, method: &str, path: &str, query: &str, body: &[u8]) -> (u16, Value) {
        let object = path.strip_suffix("/status").unwrap_or(path);
        match (method, self.objects.contains_key(object)) {
            ("GET", true) => (200, self.objects[object].clone()),
            ("PATCH", true) => self.patch(path, object, body),
            ("GET", false) if is_collection(path) => (200, self.list(path, query)),
            _ => {
                let mut parts = path.rsplit('/');
                let (name, kind) = (parts.next().unwrap(), parts.next().unwrap());
                let message = format!("{kind}.skyhook.nvidia.com {name:?} not found");
                (404, status(404, "NotFound", &message))
            }
        }
    }

    /// Writes that do not name the version of the object are refused, so that none can lose what others wrote.
    fn patch(&mut self, path: &str, object: &str, body: &[u8]) -> (u16, Value) {
        let patch: Value = serde_json::from_slice(body).unwrap();
        let stored = self.objects.get_mut(object).unwrap();
        let version = stored["metadata"]["resourceVersion"].clone();
        if patch["metadata"]["resourceVersion"] != version {
            return (409, status(409, "Conflict", "the object has been modified"));
        }
        let mut shown = patch.clone();
        shown["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("resourceVersion");
        self.writes.push(format!("PATCH {path} {shown}"));
        merge(stored, &patch);
        let next = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
        stored["metadata"]["resourceVersion"] = json!(next.to_string());
        (200, stored.clone())
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let selector = query
            .split('&')
            .find_map(|pair| pair.strip_prefix("labelSelector="));
        let selector = selector.map(|selector| selector.replace("%3D", "=").replace("%2F", "/"));
        let fits = |object: &Value| {
            let pairs = selector.iter().flat_map(|selector| selector.split("%2C"));
            pairs
                .filter_map(|pair| pair.split_once('='))
                .all(|(key, value)| object["metadata"]["labels"][key] == value)
        };
        let prefix = format!("{path}/");
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, object)| path.starts_with(&prefix) && fits(object))
            .map(|(_, object)| object)
            .collect();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": {}, "items": items })
    }
}

fn is_collection(path: &str) -> bool {
    [
        "nodes",
        "skyhooks",
        "interruptionleases",
        "deployments",
        "pods",
    ]
    .iter()
    .any(|kind| path.ends_with(&format!("/{kind}")))
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code,
    })
}

/// A JSON merge patch.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
