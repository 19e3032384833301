//! The loop: take changes in, plan, check, write. One task owns the picture.

#![expect(clippy::disallowed_methods, reason = "the shell owns the clock")]

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::{mpsc, watch as channel};

use crate::apply::{Applier, Outcome};
use crate::config::Settings;
use crate::effect::{Effect, Target};
use crate::guard;
use crate::index::{Change, Index, Mono};
use crate::plan::{self, Now, View};
use crate::watch;

/// Changes are gathered this long before the next pass, so that a burst costs one.
const DEBOUNCE: Duration = Duration::from_millis(2);

/// Runs until `stop` says so. Writes under way are finished before it returns.
pub async fn run(
    client: Client,
    settings: &Settings,
    mut stop: channel::Receiver<bool>,
    ready: channel::Sender<bool>,
) -> anyhow::Result<()> {
    let (sender, mut changes) = mpsc::channel(1024);
    let mut watches = watch::all(&client, &settings.namespace, &sender);
    let mut state = Loop {
        index: Index::default(),
        settings,
        applier: Applier::new(client, &settings.namespace, &settings.identity),
        started: Instant::now(),
        retry_at: std::collections::BTreeMap::new(),
    };
    let mut writes = FuturesUnordered::new();
    let mut dirty = false;
    let mut wake_at: Option<Mono> = None;
    loop {
        let now = state.now();
        let pause = if dirty {
            DEBOUNCE
        } else {
            wake_at.map_or(Duration::from_secs(600), |at| at.saturating_sub(now.mono))
        };
        tokio::select! {
            biased;
            _ = stop.changed() => break,
            Some(change) = changes.recv() => {
                dirty |= state.take(change);
                while let Ok(change) = changes.try_recv() {
                    dirty |= state.take(change);
                }
                continue;
            }
            Some((effect, outcome)) = writes.next(), if !writes.is_empty() => {
                state.settle(&effect, outcome);
                dirty = true;
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        state.expire();
        ready.send_replace(state.index.is_synced());
        let plan = state.plan();
        wake_at = plan.wake_at;
        dirty = false;
        for effect in plan.effects {
            if writes.len() >= settings.max_in_flight {
                break;
            }
            let Some(effect) = state.begin(effect) else {
                continue;
            };
            let applier = state.applier.clone();
            let wall = plan::seconds(Timestamp::now());
            writes.push(async move {
                let outcome = applier.apply(&effect, &wall).await;
                (effect, outcome)
            });
        }
    }
    watches.shutdown().await;
    while let Some((effect, outcome)) = writes.next().await {
        state.settle(&effect, outcome);
    }
    Ok(())
}

struct Loop<'a> {
    index: Index,
    settings: &'a Settings,
    applier: Applier,
    started: Instant,
    retry_at: std::collections::BTreeMap<Target, Mono>,
}

impl Loop<'_> {
    fn now(&self) -> Now {
        Now {
            mono: self.started.elapsed(),
            wall: Timestamp::now(),
        }
    }

    fn take(&mut self, change: Change) -> bool {
        let mono = self.now().mono;
        self.index.apply(change, mono)
    }

    fn plan(&self) -> plan::Plan {
        let mut plan = plan::plan(&View {
            index: &self.index,
            settings: self.settings,
            now: self.now(),
        });
        // What has to wait before it is tried again wakes the loop as well.
        plan.wake_at = self.retry_at.values().copied().chain(plan.wake_at).min();
        plan
    }

    /// Marks the effect's target as being written, or drops the effect.
    fn begin(&mut self, effect: Effect) -> Option<Effect> {
        let target = effect.target();
        let now = self.now();
        if self.retry_at.get(&target).is_some_and(|at| *at > now.mono) {
            return None;
        }
        if let Err(broken) = guard::check(&self.index, self.settings, &effect) {
            tracing::error!(effect = effect.kind(), ?target, rule = %broken, "refused: the effect would break a safety rule");
            return None;
        }
        tracing::info!(effect = effect.kind(), ?target, why = why(&effect), "write");
        self.retry_at.remove(&target);
        self.index.busy.insert(target);
        if let Effect::ReserveLease { node, spec } = &effect {
            self.index
                .creating
                .insert(node.clone(), spec.skyhook.uid.clone());
        }
        Some(effect)
    }

    fn settle(&mut self, effect: &Effect, outcome: Outcome) {
        let target = effect.target();
        let now = self.now();
        self.index.busy.remove(&target);
        match outcome {
            Outcome::Done(change) => {
                self.index.written.insert(target.clone(), now.mono);
                match change {
                    Some(change) => {
                        self.index.apply(change, now.mono);
                    }
                    None => self.index.lags(target, effect, now.mono),
                }
                if let Effect::WithdrawLease { node, why, .. } = effect
                    && why == plan::AGENT_NOT_RESPONDING
                {
                    self.index
                        .backoff
                        .insert(node.clone(), now.mono + self.settings.agent_backoff);
                }
            }
            Outcome::Stale => {
                tracing::info!(
                    effect = effect.kind(),
                    ?target,
                    "decided on an older version; waiting for the watch"
                );
                self.index.refused(effect, now.mono);
            }
            Outcome::Retry { after, error } => {
                tracing::warn!(effect = effect.kind(), ?target, %error, "write failed");
                self.index.refused(effect, now.mono);
                self.index.stale.remove(&target);
                self.retry_at.insert(target, now.mono + after);
            }
        }
    }

    fn expire(&mut self) {
        let now = self.now().mono;
        self.index
            .stale
            .retain(|_, (_, since)| *since + plan::STALE > now);
        self.index.backoff.retain(|_, until| *until > now);
        self.retry_at.retain(|_, at| *at > now);
        self.index
            .written
            .retain(|_, at| *at + plan::COALESCE > now);
    }
}

fn why(effect: &Effect) -> &str {
    if let Effect::PatchNode { why, .. } | Effect::WithdrawLease { why, .. } = effect {
        why
    } else {
        ""
    }
}
