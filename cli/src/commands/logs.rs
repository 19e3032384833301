//! `package logs`: what the steps of a package have printed. The logs are on the nodes, and the agents' pods show them.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use kube::api::Api;
use serde_json::Value;
use skyhook_crds::Stage;
use tokio::sync::mpsc::{Receiver, channel};

use super::node;
use crate::agents::{self, CONTAINER, Printed, Stream};
use crate::args::LogsArgs;
use crate::output::Format;
use crate::patterns::matching;
use crate::record::Read;
use crate::session::Session;

/// How many nodes can be followed at the same time: as many as `kubectl logs` follows.
const FOLLOWED: usize = 5;
/// How many lines may wait until they are written.
const WAITING: usize = 256;

/// An agent's pod, and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    node: String,
    pod: String,
}

/// Runs `package logs`.
pub(crate) async fn run(session: &mut Session<'_>, args: &LogsArgs) -> Result<()> {
    let form = form(session.global.format()?)?;
    let words = words(args, form)?;
    let namespace = session.global.namespace.clone();
    let client = session.client().await?;
    let wanted = wanted(&node::all(&client).await?, args)?;
    if wanted.is_empty() {
        session.say(&nobody(args))?;
        let text = format!(
            "No pods found for skyhook {:?} in namespace {namespace:?}\n",
            args.skyhook
        );
        return session.print(&text);
    }
    if args.follow && wanted.len() > FOLLOWED {
        bail!(
            "-f follows at most {FOLLOWED} nodes, and these are {}: name some of them with --node",
            wanted.len()
        );
    }
    let pods = agents::pods(&client, &namespace).await?;
    let (mut targets, mut problems) = (Vec::new(), Vec::new());
    for node in wanted {
        match agents::on_node(&pods, &node, &namespace) {
            Ok(pod) => targets.push(Target { node, pod }),
            Err(problem) => problems.push(format!("{node}: {problem}")),
        }
    }
    let api: Api<Pod> = Api::namespaced(client, &namespace);
    let mut shown = Shown::new(form, args.follow && targets.len() > 1);
    let at_once = if args.follow { targets.len().max(1) } else { 1 };
    for some in targets.chunks(at_once) {
        let done = read(session, &api, some, &words, args.follow, &mut shown).await?;
        problems.extend(done);
    }
    for problem in &problems {
        session.say(problem)?;
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!("the logs of {} node(s) could not be read", problems.len())
}

/// The form of the output: text, or a JSON object in each line.
fn form(format: Format) -> Result<Format> {
    match format {
        Format::Table | Format::Wide => Ok(Format::Table),
        Format::Json => Ok(Format::Json),
        Format::Yaml => bail!("logs have no form {:?}: use json, or none", "yaml"),
    }
}

/// The command line of `skyhook-agent`.
fn words(args: &LogsArgs, form: Format) -> Result<Vec<String>> {
    let mut words = vec![
        "logs".to_owned(),
        format!("--skyhook={}", args.skyhook),
        format!("--package={}", args.package),
        format!("--tail={}", args.tail),
    ];
    if let Some(stage) = &args.stage {
        match Stage::ALL.into_iter().find(|one| one.as_str() == stage) {
            None => bail!("invalid stage {stage:?}"),
            Some(Stage::Interrupt | Stage::UninstallInterrupt) => bail!(
                "an interrupt has no steps, so it has no logs; how far it is: kubectl skyhook explain NODE"
            ),
            Some(stage) => words.push(format!("--stage={}", stage.as_str())),
        }
    }
    if args.all {
        words.push("--all".to_owned());
    }
    if args.follow {
        words.extend(["--follow".to_owned(), "--while-stdin".to_owned()]);
    }
    if form == Format::Json {
        words.push("--output=json".to_owned());
    }
    Ok(words)
}

/// The nodes whose logs are wanted: those that have the package on record, and those that are named.
fn wanted(nodes: &[Node], args: &LogsArgs) -> Result<Vec<String>> {
    let names: BTreeSet<String> = nodes.iter().map(|node| node.name_any()).collect();
    let has_package = |node: &&Node| {
        let entries = Read::of(node, &args.skyhook).entries();
        let mut entries = entries.iter().flat_map(|record| record.values());
        entries.any(|entry| entry.name == args.package)
    };
    let recorded: BTreeSet<String> = nodes
        .iter()
        .filter(has_package)
        .map(|node| node.name_any())
        .collect();
    if args.node.is_empty() {
        return Ok(recorded.into_iter().collect());
    }
    let names = names.iter().map(String::as_str);
    let matched = matching(&args.node, names).context("matching nodes")?;
    if matched.is_empty() {
        bail!("no node is named {}", args.node.join(", "));
    }
    let is_named = |name: &String| args.node.contains(name) || recorded.contains(name);
    Ok(matched.into_iter().filter(is_named).collect())
}

fn nobody(args: &LogsArgs) -> String {
    let LogsArgs {
        package, skyhook, ..
    } = args;
    format!(
        "No node has package {package:?} of Skyhook {skyhook:?} on record. Logs of a package that is gone: name its node with \
         --node"
    )
}

/// Reads the logs of some nodes at the same time. Returns what went wrong.
async fn read(
    session: &mut Session<'_>,
    api: &Api<Pod>,
    targets: &[Target],
    words: &[String],
    follow: bool,
    shown: &mut Shown,
) -> Result<Vec<String>> {
    let (sender, receiver) = channel(WAITING);
    let reads = targets.iter().enumerate().map(|(at, target)| {
        let sender = sender.clone();
        async move { agents::run(api, &target.pod, words, follow, at, &sender).await }
    });
    let reads = join_all(reads.collect::<Vec<_>>());
    // When all reads have ended, so does the receiver.
    drop(sender);
    let reads = async { Ok::<_, anyhow::Error>(reads.await) };
    let written = write(session, receiver, targets, shown);
    let (done, ()) = tokio::try_join!(reads, written)?;
    let problems = targets.iter().zip(done).filter_map(|(target, done)| {
        let error = done.err()?;
        Some(format!("{}: {error:#}", target.node))
    });
    Ok(problems.collect())
}

async fn write(
    session: &mut Session<'_>,
    mut receiver: Receiver<Printed>,
    targets: &[Target],
    shown: &mut Shown,
) -> Result<()> {
    if let [target] = targets {
        session.print(&shown.heading(target))?;
    }
    while let Some(printed) = receiver.recv().await {
        let Some(target) = targets.get(printed.from) else {
            continue;
        };
        match printed.stream {
            Stream::Out => session.print(&shown.line(target, &printed.line)?)?,
            Stream::Err => session.say(&format!("{}: {}", target.node, printed.line))?,
        }
    }
    Ok(())
}

/// What was written already.
#[derive(Debug)]
struct Shown {
    form: Format,
    /// Lines of several nodes come in any order.
    is_mixed: bool,
    /// The node of the heading that was written last.
    node: Option<String>,
}

impl Shown {
    fn new(form: Format, is_mixed: bool) -> Self {
        Self {
            form,
            is_mixed,
            node: None,
        }
    }

    /// The heading of a node, unless the last heading was that of the same one.
    fn heading(&mut self, target: &Target) -> String {
        let Target { node, pod } = target;
        if self.form == Format::Json || self.node.as_ref() == Some(node) {
            return String::new();
        }
        let between = if self.node.is_some() { "---\n" } else { "" };
        self.node = Some(node.clone());
        format!("{between}==> Pod: {pod}, Container: {CONTAINER} [Running], Node: {node} <==\n")
    }

    /// A line of a node, with the heading if it needs one.
    fn line(&mut self, target: &Target, line: &str) -> Result<String> {
        if self.form == Format::Json {
            let mut object: Value = serde_json::from_str(line)
                .with_context(|| format!("the agent on {} printed no JSON: {line}", target.node))?;
            object["node"] = target.node.clone().into();
            return Ok(format!("{object}\n"));
        }
        let heading = if self.is_mixed {
            self.heading(target)
        } else {
            String::new()
        };
        Ok(format!("{heading}{line}\n"))
    }
}

#[cfg(test)]
mod tests;
