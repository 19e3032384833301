//! Metrics of this replica, in the text format of OpenMetrics. Those of the fleet come from the counts of the last pass: a
//! scrape renders them, and walks over no nodes. A replica that does not lead has none of them.
//!
//! How many series there are does not depend on the number of nodes. Each Skyhook has at most 90, and in addition 10 for each
//! compartment of its policy and 13 for each package version that is on a node, of which at most 128 are told apart.
//! The names of NodeWright add 17, 8 and 13 to these. The replica itself has at most 300.

mod fleet;
mod progress;
pub mod requests;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use skyhook_fleet::effect::Effect;
use skyhook_fleet::index::Kind;
use skyhook_fleet::outcome::Outcome;
use skyhook_fleet::plan::Fleet;
use skyhook_fleet::session::HeldBack;

use crate::server::{self, Answer};
use progress::Progress;

/// How long a scrape may take.
const PATIENCE: Duration = Duration::from_secs(10);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads the wall clock.
pub type Clock = fn() -> Timestamp;

/// What this replica measures. Clones share it.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    seen: Arc<Shared>,
    leader: Gauge,
    passes: Histogram,
    effects: Family<[(&'static str, &'static str); 2], Counter>,
    requests: Family<[(&'static str, String); 2], Counter>,
    breaks: Family<[(&'static str, String); 1], Counter>,
}

/// What the last pass left.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    pub fleet: Arc<Fleet>,
    pub held_back: HeldBack,
    /// How long a watch lags behind a write of this replica.
    pub lag: Duration,
}

/// The collector of what a pass left.
#[derive(Debug)]
struct Shared {
    with_nodewright: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` while another replica leads.
    pass: Option<Pass>,
    progress: Progress,
    now: Timestamp,
}

impl Metrics {
    /// Metrics without any value. With `with_nodewright`, those that NodeWright has are under its names as well.
    #[must_use]
    pub fn new(with_nodewright: bool) -> Self {
        let mut registry = Registry::default();
        let seen = Arc::new(Shared {
            with_nodewright,
            state: Mutex::default(),
        });
        let leader = Gauge::default();
        let passes = Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        let (effects, requests, breaks) = (Family::default(), Family::default(), Family::default());
        registry.register(
            "skyhook_leader",
            "1 if this replica decides, 0 if another one does",
            leader.clone(),
        );
        registry.register(
            "skyhook_plan_seconds",
            "Time that a pass takes to decide what to write",
            passes.clone(),
        );
        registry.register(
            "skyhook_effects",
            "Writes and look-ups that were decided, by how they ended",
            effects.clone(),
        );
        registry.register(
            "skyhook_api_requests",
            "Requests to the API server, by its answer; error: there was none",
            requests.clone(),
        );
        registry.register(
            "skyhook_watch_breaks",
            "How often a watch broke and was taken up again",
            breaks.clone(),
        );
        registry.register_collector(Box::new(Arc::clone(&seen)));
        Self(Arc::new(Inner {
            registry,
            seen,
            leader,
            passes,
            effects,
            requests,
            breaks,
        }))
    }

    /// This replica has made a pass, at the time `now`.
    pub fn passed(&self, pass: Pass, now: Timestamp) {
        self.0.leader.set(1);
        self.0.seen.with(|state| {
            state.progress.observe(&pass.fleet, now);
            state.pass = Some(pass);
        });
    }

    /// Another replica leads.
    pub fn rests(&self) {
        self.0.leader.set(0);
        self.0.seen.with(|state| *state = State::default());
    }

    /// A plan was made in this time.
    pub fn planned(&self, took: Duration) {
        self.0.passes.observe(took.as_secs_f64());
    }

    /// An effect has ended.
    pub fn ended(&self, effect: &Effect, outcome: &Outcome) {
        let outcome = match outcome {
            Outcome::Done(_) => "done",
            Outcome::Stale => "stale",
            Outcome::Retry { .. } => "failed",
            Outcome::Busy { .. } => "busy",
            Outcome::Refused { .. } => "refused",
        };
        self.count(effect, outcome);
    }

    /// The guard has refused an effect.
    pub fn is_unsafe(&self, effect: &Effect) {
        self.count(effect, "unsafe");
    }

    fn count(&self, effect: &Effect, outcome: &'static str) {
        let labels = [("effect", effect.kind()), ("outcome", outcome)];
        self.0.effects.get_or_create(&labels).inc();
    }

    /// The API server has answered a request, or has not.
    pub fn answered(&self, verb: &'static str, code: Option<StatusCode>) {
        let code = code.map_or_else(|| "error".to_owned(), |code| code.as_str().to_owned());
        let labels = [("verb", verb.to_owned()), ("code", code)];
        self.0.requests.get_or_create(&labels).inc();
    }

    /// A watch broke.
    pub fn broke(&self, kind: Kind) {
        let labels = [("kind", format!("{kind:?}"))];
        self.0.breaks.get_or_create(&labels).inc();
    }

    /// What a scrape at the time `now` shows.
    #[must_use]
    pub fn text(&self, now: Timestamp) -> String {
        self.0.seen.with(|state| state.now = now);
        let mut text = String::new();
        if let Err(error) = text::encode(&mut text, &self.0.registry) {
            tracing::error!(%error, "metrics cannot be rendered");
        }
        text
    }
}

impl Shared {
    fn with<T>(&self, of: impl FnOnce(&mut State) -> T) -> T {
        of(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Collector for Shared {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.with(|state| match &state.pass {
            Some(pass) => fleet::encode(
                &mut encoder,
                pass,
                &state.progress,
                state.now,
                self.with_nodewright,
            ),
            None => Ok(()),
        })
    }
}

/// Answers scrapes until the process ends.
pub async fn serve(address: SocketAddr, metrics: Metrics, clock: Clock) {
    let listener = match server::listen(address).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%address, %error, "--metrics-address cannot be listened on; there are no metrics");
            return;
        }
    };
    let handler = move |request: Request<Incoming>| {
        let answer = reply(request.method(), request.uri().path(), &metrics, clock);
        std::future::ready(answer)
    };
    server::serve(listener, PATIENCE, handler).await;
}

fn reply(method: &Method, path: &str, metrics: &Metrics, clock: Clock) -> Answer {
    if path != "/metrics" {
        return server::plain(StatusCode::NOT_FOUND, "not found");
    }
    if method != Method::GET && method != Method::HEAD {
        return server::plain(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    server::answer(StatusCode::OK, OPEN_METRICS, metrics.text(clock()))
}
