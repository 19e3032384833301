//! The agents' pods, and their program `skyhook-agent` run in them.

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, ListParams};
use kube::{Client, ResourceExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc::{Sender, channel};

use crate::session::{list, said};

/// The labels that the chart gives to the agents' pods.
pub(crate) const LABELS: &str =
    "app.kubernetes.io/name=skyhook-operator,app.kubernetes.io/component=agent";
/// The agent's container.
pub(crate) const CONTAINER: &str = "agent";
/// The agent's program in its image.
const PROGRAM: &str = "/usr/bin/skyhook-agent";

/// All agents' pods of the installation.
pub(crate) async fn pods(client: &Client, namespace: &str) -> Result<Vec<Pod>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = list(&api, &ListParams::default().labels(LABELS)).await;
    found.with_context(|| format!("listing the agents' pods in namespace {namespace:?}"))
}

/// The name of the agent's pod on a node in which a program can run now, or why there is none and what helps.
pub(crate) fn on_node(pods: &[Pod], node: &str, namespace: &str) -> Result<String, String> {
    let is_here = |pod: &&Pod| {
        let spec = pod.spec.as_ref();
        spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
    };
    let mut here: Vec<&Pod> = pods.iter().filter(is_here).collect();
    // While an agent is replaced, there may be two. The one that goes away comes last.
    here.sort_by_key(|pod| {
        let goes = pod.metadata.deletion_timestamp.is_some();
        (trouble(pod).is_some(), goes, pod.name_any())
    });
    let Some(pod) = here.first() else {
        return Err(format!(
            "there is no agent's pod on the node in namespace {namespace:?}; if Skyhook is installed in another namespace, \
             name it with -n, otherwise look at: kubectl get daemonsets,pods -n {namespace} -l {LABELS} -o wide"
        ));
    };
    let name = pod.name_any();
    match trouble(pod) {
        None => Ok(name),
        Some(why) => Err(format!(
            "the agent's pod {name} does not run ({why}); look at: kubectl describe pod {name} -n {namespace}"
        )),
    }
}

/// Why no program can run in the agent's container; `None` if it runs.
fn trouble(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let mut containers = containers.into_iter().flatten();
    let state = containers
        .find(|container| container.name == CONTAINER)
        .and_then(|container: &ContainerStatus| container.state.as_ref());
    let Some(state) = state else {
        let phase = status.and_then(|status| status.phase.as_deref());
        return Some(phase.unwrap_or("Unknown").to_owned());
    };
    if state.running.is_some() {
        return None;
    }
    let waits = state.waiting.as_ref();
    let ended = state.terminated.as_ref();
    let reason = waits.and_then(|state| state.reason.as_deref());
    let reason = reason.or(ended.and_then(|state| state.reason.as_deref()));
    Some(reason.unwrap_or("not running").to_owned())
}

/// Which output of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// A line that a program printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Printed {
    /// Number of the program, as the caller counts.
    pub(crate) from: usize,
    pub(crate) stream: Stream,
    pub(crate) line: String,
}

/// Runs `skyhook-agent` with these words in a pod, and sends what it prints, line by line. With `has_stdin` the program
/// has an input, which stays open and empty until the connection ends.
pub(crate) async fn run(
    api: &Api<Pod>,
    pod: &str,
    words: &[String],
    has_stdin: bool,
    from: usize,
    lines: &Sender<Printed>,
) -> Result<()> {
    let params = AttachParams::default()
        .container(CONTAINER)
        .stdin(has_stdin)
        .stdout(true)
        .stderr(true)
        .max_stdout_buf_size(64 << 10);
    let command = [PROGRAM.to_owned()]
        .into_iter()
        .chain(words.iter().cloned());
    let command: Vec<String> = command.collect();
    let mut process = api.exec(pod, command, &params).await.map_err(refused)?;
    // Held to the end: when it is dropped, the program's input ends.
    let _input = process.stdin();
    let (out, err) = (process.stdout(), process.stderr());
    let status = process.take_status();
    let (out, err) = tokio::join!(
        pass(out, Stream::Out, from, lines),
        pass(err, Stream::Err, from, lines),
    );
    let (_, last_words) = (out?, err?);
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    ended(status.as_ref(), &last_words)
}

/// Runs `skyhook-agent` with these words in a pod, and returns what it printed.
pub(crate) async fn output(api: &Api<Pod>, pod: &str, words: &[String]) -> Result<String> {
    let (sender, mut receiver) = channel(64);
    let run = async move {
        let done = run(api, pod, words, false, 0, &sender).await;
        // Ends the receiver.
        drop(sender);
        done
    };
    let read = async {
        let mut text = String::new();
        while let Some(printed) = receiver.recv().await {
            if printed.stream == Stream::Out {
                text.push_str(&printed.line);
                text.push('\n');
            }
        }
        text
    };
    let (done, text) = tokio::join!(run, read);
    done.map(|()| text)
}

fn refused(error: kube::Error) -> anyhow::Error {
    let is_forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
    let error = said(error);
    if is_forbidden {
        return error.context(
            "running skyhook-agent in the agent's pod needs the verbs create and get for pods/exec in its namespace",
        );
    }
    error.context("running skyhook-agent in the agent's pod")
}

/// Sends the lines of a stream until its end. Returns the last line that is not empty.
async fn pass(
    stream: Option<impl AsyncRead + Unpin>,
    which: Stream,
    from: usize,
    lines: &Sender<Printed>,
) -> Result<String> {
    let mut last = String::new();
    let Some(mut stream) = stream else {
        return Ok(last);
    };
    let (mut buffer, mut rest) = (vec![0; 32 << 10], Vec::new());
    loop {
        let read = stream.read(&mut buffer).await?;
        rest.extend_from_slice(&buffer[..read]);
        let is_over = read == 0;
        for line in whole_lines(&mut rest, is_over) {
            if !line.trim().is_empty() {
                last.clone_from(&line);
            }
            let printed = Printed {
                from,
                stream: which,
                line,
            };
            if lines.send(printed).await.is_err() {
                // Whoever prints the lines has failed, and says why.
                return Ok(last);
            }
        }
        if is_over {
            return Ok(last);
        }
    }
}

/// Takes the whole lines, and at the end the rest as well.
fn whole_lines(bytes: &mut Vec<u8>, is_over: bool) -> Vec<String> {
    let end = match bytes.iter().rposition(|byte| *byte == b'\n') {
        _ if is_over => bytes.len(),
        Some(at) => at + 1,
        None => 0,
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    bytes.drain(..end);
    text.lines().map(str::to_owned).collect()
}

/// How the program ended.
fn ended(status: Option<&Status>, last_words: &str) -> Result<()> {
    let Some(status) = status else {
        bail!("the connection to the pod broke before skyhook-agent had ended");
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(());
    }
    let causes = status.details.as_ref().and_then(|d| d.causes.as_ref());
    let code = causes.into_iter().flatten();
    let code = code
        .filter(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .find_map(|cause| cause.message.as_deref());
    match code {
        // The code of a command line that a program does not understand.
        Some("2") => bail!(
            "the agent is of another version than this plugin, and does not know the command: bring both to the same version"
        ),
        Some(code) if last_words.is_empty() => bail!("skyhook-agent ended with {code}"),
        Some(_) => bail!("{last_words}"),
        None => bail!(
            "{}",
            status
                .message
                .as_deref()
                .unwrap_or("skyhook-agent did not start")
        ),
    }
}

#[cfg(test)]
mod tests;
