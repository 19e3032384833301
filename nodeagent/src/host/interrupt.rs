//! Interrupting the host, over D-Bus.

use std::collections::BTreeSet;
use std::time::Duration;

use skyhook_crds::package::{Interrupt, InterruptType};
use tokio::time::{Instant, sleep};

use super::systemd::{Bus, SystemdError, UnitState};

/// How long the bus may be away after a unit that carries it was restarted.
const BUS_AWAY: Duration = Duration::from_secs(90);
/// How long inhibitors are waited for before a reboot goes through them.
const INHIBITED: Duration = Duration::from_secs(300);
/// How long a host may take to go down.
const GOING_DOWN: Duration = Duration::from_secs(600);

/// Why the interrupt did not happen.
#[derive(Debug, thiserror::Error)]
pub enum InterruptError {
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    #[error("{unit}: {problem}")]
    Unit { unit: String, problem: String },
    #[error("a reboot was asked for {seconds} s ago, and the host is still up")]
    StillUp { seconds: u64 },
}

/// Carries the interrupt out. A reboot never returns but with an error: that it happened shows in the boot ID alone.
pub async fn execute(bus: &Bus, interrupt: &Interrupt) -> Result<(), InterruptError> {
    match interrupt.kind {
        InterruptType::Noop => Ok(()),
        InterruptType::Service => {
            bus.reload().await?;
            for unit in units(&interrupt.services) {
                restart(bus, &unit).await?;
            }
            Ok(())
        }
        InterruptType::RestartAllServices => {
            bus.reload().await?;
            // What `service procps force-reload` does, which is all that the reference does.
            let procps = bus.unit_state("procps.service").await?;
            let unit = if is_absent(&procps) {
                "systemd-sysctl.service"
            } else {
                "procps.service"
            };
            restart(bus, unit).await
        }
        InterruptType::Reboot => reboot(bus).await,
    }
}

/// Sorted, once each, with `.service` where the type is left out.
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

fn is_absent(state: &UnitState) -> bool {
    state.load == "not-found" || state.load == "masked"
}

async fn restart(bus: &Bus, unit: &str) -> Result<(), InterruptError> {
    let failed = |problem: String| InterruptError::Unit {
        unit: unit.to_owned(),
        problem,
    };
    let before = bus.unit_state(unit).await?;
    if is_absent(&before) {
        return Err(failed(format!("the unit is {}", before.load)));
    }
    match bus.run_job(unit, true).await {
        Ok(result) if result == "done" => {}
        Ok(result) => return Err(failed(format!("the restart's result is {result}"))),
        Err(e) if e.is_bus_lost() => {
            bus.reconnect(BUS_AWAY).await?;
            return await_new_start(bus, unit, &before).await;
        }
        Err(e) => return Err(e.into()),
    }
    let after = bus.unit_state(unit).await?;
    if after.active == "failed" {
        return Err(failed("it failed after the restart".to_owned()));
    }
    Ok(())
}

/// The bus was lost with the job: the unit's state is the truth.
async fn await_new_start(bus: &Bus, unit: &str, before: &UnitState) -> Result<(), InterruptError> {
    let deadline = Instant::now() + BUS_AWAY;
    loop {
        let now = bus.unit_state(unit).await?;
        let problem = match now.active.as_str() {
            "active" if now.active_since != before.active_since => return Ok(()),
            "failed" => Some("it failed after the restart".to_owned()),
            state if Instant::now() >= deadline => {
                Some(format!("it is {state} and was not started anew"))
            }
            _ => None,
        };
        if let Some(problem) = problem {
            return Err(InterruptError::Unit {
                unit: unit.to_owned(),
                problem,
            });
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn reboot(bus: &Bus) -> Result<(), InterruptError> {
    let deadline = Instant::now() + INHIBITED;
    while Instant::now() < deadline {
        let inhibitors = bus.shutdown_inhibitors().await.unwrap_or_default();
        if inhibitors.is_empty() {
            break;
        }
        tracing::info!(?inhibitors, "the reboot waits for inhibitors");
        sleep(Duration::from_secs(5)).await;
    }
    let asked = Instant::now();
    bus.ask_for_reboot().await?;
    sleep(GOING_DOWN).await;
    Err(InterruptError::StillUp {
        seconds: asked.elapsed().as_secs(),
    })
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
}
