//! Performs interrupts (reboots and restarts of units) over D-Bus.
#![expect(clippy::disallowed_methods, reason = "the shell reads the clock")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use skyhook_crds::package::{Interrupt, InterruptType};
use tokio::time::{Instant, sleep};

use super::systemd::{Bus, SystemdError, UnitState};
use super::unit_log;

/// How long the bus may be unreachable after the restart of a unit that the bus itself needs.
const BUS_AWAY: Duration = Duration::from_secs(90);
/// How long after the restarts the units are checked again: a service may fail right after its start.
const SETTLE: Duration = Duration::from_millis(200);
/// Time between two queries for inhibitors.
const INHIBITORS: Duration = Duration::from_secs(5);

/// How long the parts of an interrupt may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the restart of one unit. The timeouts in the unit file are usually shorter.
    pub job: Duration,
    /// For inhibitors of a reboot. After this time the host reboots in spite of them.
    pub inhibited: Duration,
    /// For the host to go down after the agent asked for a reboot.
    pub going_down: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            job: Duration::from_secs(600),
            inhibited: Duration::from_secs(300),
            going_down: Duration::from_secs(600),
        }
    }
}

/// Why the interrupt did not happen.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error("nothing was restarted: {0}")]
    Units(String),
    #[error("{unit} {problem}")]
    Unit { unit: String, problem: String },
    #[error("a reboot was asked for {seconds} s ago, and the host is still up")]
    StillUp { seconds: u64 },
}

impl InterruptError {
    /// False when it is certain that systemd got no request for a reboot.
    #[must_use]
    pub fn may_have_been_asked(&self) -> bool {
        match self {
            Self::StillUp { .. } => true,
            Self::Systemd(error) => error.may_have_happened(),
            Self::Units(_) | Self::Unit { .. } => false,
        }
    }
}

/// Interrupts one host.
pub struct Interrupter<'a> {
    pub bus: &'a Bus,
    /// The host's root directory.
    pub root: &'a Path,
    pub patience: Patience,
    /// Called with a message when the interrupt starts to wait for something.
    pub waits: &'a dyn Fn(String),
}

impl std::fmt::Debug for Interrupter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupter")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

impl Interrupter<'_> {
    /// Prepares the interrupt; restarts nothing yet. For a reboot, waits for inhibitors. For the others, returns the
    /// units to restart with their invocation IDs. A unit that cannot be restarted is an error.
    pub async fn prepare(
        &self,
        interrupt: &Interrupt,
    ) -> Result<BTreeMap<String, String>, InterruptError> {
        let units = match interrupt.kind {
            InterruptType::Noop => return Ok(BTreeMap::new()),
            InterruptType::Reboot => {
                self.await_inhibitors().await;
                return Ok(BTreeMap::new());
            }
            InterruptType::Service => units(&interrupt.services),
            // The same as `service procps force-reload`, which NVIDIA Skyhook runs.
            InterruptType::RestartAllServices => {
                let procps = self.bus.unit_state("procps.service").await?;
                let unit = match absence(&procps) {
                    Some(_) => "systemd-sysctl.service",
                    None => "procps.service",
                };
                [unit.to_owned()].into()
            }
        };
        self.bus.reload().await?;
        let states = self.states(units.iter()).await?;
        check_all(&states)?;
        let invocation = |(unit, state): (String, UnitState)| (unit, state.invocation);
        Ok(states.into_iter().map(invocation).collect())
    }

    async fn states(
        &self,
        units: impl Iterator<Item = &String>,
    ) -> Result<BTreeMap<String, UnitState>, InterruptError> {
        let mut states = BTreeMap::new();
        for unit in units {
            states.insert(unit.clone(), self.bus.unit_state(unit).await?);
        }
        Ok(states)
    }

    /// Performs the interrupt: restarts units whose invocation ID is still the one in `before`. A reboot returns only
    /// with an error: only a new boot ID proves a reboot.
    pub async fn execute(
        &self,
        interrupt: &Interrupt,
        before: &BTreeMap<String, String>,
    ) -> Result<(), InterruptError> {
        if interrupt.kind == InterruptType::Reboot {
            return self.reboot().await;
        }
        if before.is_empty() {
            return Ok(());
        }
        self.bus.reload().await?;
        // A unit may have been removed since `prepare`.
        check_all(&self.states(before.keys()).await?)?;
        let started_at = now();
        for (unit, invocation) in before {
            self.restart(unit, invocation, started_at).await?;
        }
        sleep(SETTLE).await;
        for unit in before.keys() {
            if self.bus.unit_state(unit).await?.active == "failed" {
                return Err(self
                    .failed(unit, "failed after its restart".into(), started_at)
                    .await);
            }
        }
        Ok(())
    }

    async fn restart(
        &self,
        unit: &str,
        before: &str,
        started_at: i64,
    ) -> Result<(), InterruptError> {
        let state = self.bus.unit_state(unit).await?;
        if state.invocation != before && !state.invocation.is_empty() && state.active != "failed" {
            tracing::info!(unit, "the unit was restarted already");
            return self
                .await_start(unit, before, self.patience.job, started_at)
                .await;
        }
        match self.bus.restart(unit, self.patience.job).await {
            Ok(result) if result == "done" => Ok(()),
            Ok(result) => {
                let problem = match result.as_str() {
                    "failed" => "failed to start".to_owned(),
                    "timeout" => {
                        "did not start within its own timeout (TimeoutStartSec)".to_owned()
                    }
                    "dependency" => "was not started, since a unit that it needs failed".to_owned(),
                    other => format!("was not restarted: the job's result is {other}"),
                };
                Err(self.failed(unit, problem, started_at).await)
            }
            Err(e) if e.is_bus_lost() => {
                self.bus.reconnect(BUS_AWAY).await?;
                self.await_start(unit, before, BUS_AWAY, started_at).await
            }
            Err(SystemdError::Timeout { after, .. }) => {
                let active = self.bus.unit_state(unit).await?.active;
                let problem = format!("is {active} after {} s", after.as_secs());
                Err(self.failed(unit, problem, started_at).await)
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Waits until the unit has been restarted, by polling its state. Used when the result of the job is not known, for
    /// example because the connection to the bus was lost.
    async fn await_start(
        &self,
        unit: &str,
        before: &str,
        patience: Duration,
        started_at: i64,
    ) -> Result<(), InterruptError> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.bus.unit_state(unit).await?;
            let is_new = now.invocation != before;
            let problem = match now.active.as_str() {
                "active" | "inactive" if is_new => return Ok(()),
                "failed" => Some("failed after its restart".to_owned()),
                state if Instant::now() >= deadline => {
                    Some(format!("is {state} and was not restarted"))
                }
                _ => None,
            };
            if let Some(problem) = problem {
                return Err(self.failed(unit, problem, started_at).await);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// The error for a unit: the problem, with the unit's last lines in systemd's journal.
    async fn failed(&self, unit: &str, problem: String, since: i64) -> InterruptError {
        let lines = unit_log::tail(self.root, unit, since).await;
        InterruptError::Unit {
            unit: unit.to_owned(),
            problem: if lines.is_empty() {
                problem
            } else {
                format!("{problem}: {}", lines.join("\n"))
            },
        }
    }

    /// Waits until nothing inhibits a shutdown, but not longer than the timeout.
    async fn await_inhibitors(&self) {
        let deadline = Instant::now() + self.patience.inhibited;
        let mut reported = Vec::new();
        while Instant::now() < deadline {
            // Without logind there are no inhibitors.
            let inhibitors = self.bus.shutdown_inhibitors().await.unwrap_or_default();
            if inhibitors.is_empty() {
                break;
            }
            if inhibitors != reported {
                (self.waits)(format!(
                    "waits up to {} s for {}",
                    self.patience.inhibited.as_secs(),
                    inhibitors.join(", ")
                ));
                reported = inhibitors;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            sleep(INHIBITORS.min(left)).await;
        }
    }

    async fn reboot(&self) -> Result<(), InterruptError> {
        let asked = Instant::now();
        self.bus.ask_for_reboot().await?;
        (self.waits)("asked for; the host goes down".to_owned());
        sleep(self.patience.going_down).await;
        Err(InterruptError::StillUp {
            seconds: asked.elapsed().as_secs(),
        })
    }
}

/// Names of the units, sorted and without duplicates. A name without a type gets `.service`.
fn units(services: &[String]) -> BTreeSet<String> {
    const TYPES: [&str; 11] = [
        "service",
        "socket",
        "device",
        "mount",
        "automount",
        "swap",
        "target",
        "path",
        "timer",
        "slice",
        "scope",
    ];
    services
        .iter()
        .map(|name| match name.rsplit_once('.') {
            Some((_, kind)) if TYPES.contains(&kind) => name.clone(),
            Some(_) | None => format!("{name}.service"),
        })
        .collect()
}

/// Fails if any unit cannot be restarted. The error names all such units.
fn check_all(states: &BTreeMap<String, UnitState>) -> Result<(), InterruptError> {
    let bad: Vec<String> = states
        .iter()
        .filter_map(|(unit, state)| Some(format!("{unit} {}", absence(state)?)))
        .collect();
    if bad.is_empty() {
        Ok(())
    } else {
        Err(InterruptError::Units(bad.join("; ")))
    }
}

/// Why a unit cannot be restarted; `None` if it can.
fn absence(state: &UnitState) -> Option<&'static str> {
    match state.load.as_str() {
        "not-found" => Some("does not exist on this host"),
        "masked" => Some("is masked: unmask it, or take it out of the interrupt's services"),
        "bad-setting" | "error" => Some("cannot be loaded: its unit file is wrong"),
        _ => None,
    }
}

/// Unix seconds.
fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_named_in_full() {
        let services: Vec<String> = ["cron", "a.b", "x.timer", "cron.service"]
            .map(str::to_owned)
            .into();
        let want: BTreeSet<String> = ["a.b.service", "cron.service", "x.timer"]
            .map(str::to_owned)
            .into();
        assert_eq!(units(&services), want);
    }

    #[test]
    fn all_units_that_cannot_be_restarted_are_named() {
        let state = |load: &str| UnitState {
            load: load.into(),
            active: "active".into(),
            invocation: "1".into(),
        };
        let states = |all: &[(&str, &str)]| {
            all.iter()
                .map(|(unit, load)| ((*unit).to_owned(), state(load)))
                .collect()
        };
        assert!(check_all(&states(&[("a.service", "loaded")])).is_ok());
        let error = check_all(&states(&[
            ("a.service", "loaded"),
            ("b.service", "not-found"),
            ("c.service", "masked"),
        ]));
        assert_eq!(
            error.unwrap_err().to_string(),
            "nothing was restarted: b.service does not exist on this host; c.service is masked: unmask it, or take it \
             out of the interrupt's services"
        );
    }

    #[test]
    fn units_that_cannot_be_restarted_say_why() {
        for (load, want) in [
            ("loaded", None),
            ("not-found", Some("does not exist")),
            ("masked", Some("unmask it")),
            ("bad-setting", Some("its unit file is wrong")),
        ] {
            let state = UnitState {
                load: load.into(),
                active: "inactive".into(),
                invocation: String::new(),
            };
            let problem = absence(&state);
            assert_eq!(problem.is_some(), want.is_some(), "{load}");
            assert!(
                problem
                    .unwrap_or_default()
                    .contains(want.unwrap_or_default())
            );
        }
    }
}
