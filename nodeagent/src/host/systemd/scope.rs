//! Starts the scope of a step, with old and new versions of systemd.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use zbus::{OwnedObjectPath, Variant};

use super::{Bus, SystemdError};

/// How long a scope may still exist after systemd refused to start it.
const REMNANT: Duration = Duration::from_secs(2);

/// The slice of all steps. In system.slice, steps would use the resources that are reserved for system services.
const SLICE: &str = "skyhook.slice";

/// Where systemd keeps a `MemoryLow` of the slice that was set until the next boot, with new and old versions.
const MEMORY_LOW_FILES: [&str; 2] = [
    "run/systemd/system.control/skyhook.slice.d/50-MemoryLow.conf",
    "run/systemd/system/skyhook.slice.d/50-MemoryLow.conf",
];

/// How often the agent tries to take the memory protection from the slice, and the time between two attempts.
const UNPROTECT_ATTEMPTS: u32 = 5;
const UNPROTECT_PAUSE: Duration = Duration::from_secs(1);

/// A unit in systemd's list: name, description, three states, the unit that it follows, path, and its job.
pub(super) type Listed = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Scope",
    default_service = "org.freedesktop.systemd1"
)]
trait Scope {
    #[zbus(property(emits_changed_signal = "false"))]
    fn memory_low(&self) -> zbus::Result<u64>;
}

/// Limits of CPU and memory of a step's scope, and how long its processes may take to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScopeLimits {
    /// Microseconds of CPU time per second.
    pub cpu_quota: Option<u64>,
    pub cpu_weight: Option<u64>,
    pub memory_max: Option<u64>,
    pub memory_low: Option<u64>,
    /// Microseconds between SIGTERM and SIGKILL when systemd stops the scope, as it does when the host goes down.
    pub stop_timeout: Option<u64>,
}

/// The value of a property of a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Pids(u32),
    Text(String),
    Number(u64),
}

impl Value {
    fn variant(&self) -> Variant<'_> {
        match self {
            Self::Pids(pid) => Variant::from(vec![*pid]),
            Self::Text(text) => Variant::from(text.as_str()),
            Self::Number(number) => Variant::from(*number),
        }
    }
}

impl Bus {
    /// Starts a new scope and moves `pid` into it. Properties that this version of systemd does not know are left out.
    pub async fn start_scope(
        &self,
        name: &str,
        description: &str,
        pid: u32,
        limits: ScopeLimits,
    ) -> Result<(), SystemdError> {
        let mut protected = self.protected.lock().await;
        let requested = limits.memory_low.unwrap_or(0);
        // The step also runs without this protection.
        self.protect_memory(requested, &mut protected).await;
        let mut wanted = properties(description, pid, limits);
        for known in self.unknown.lock().await.iter() {
            leave_out(&mut wanted, known);
        }
        let mut patience = Instant::now();
        loop {
            let properties: Vec<(&str, Variant<'_>)> = wanted
                .iter()
                .map(|(name, value)| (*name, value.variant()))
                .collect();
            let manager = self.manager().await?;
            let started = self
                .slow(
                    &format!("StartTransientUnit({name})"),
                    manager.start_transient_unit(name, "fail", &properties, &[]),
                )
                .await;
            let error = match self.noting_loss(started).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            match error.unknown_property() {
                Some(unknown) if leave_out(&mut wanted, &unknown) => {
                    tracing::info!(property = %unknown, "this systemd does not know a property of scopes: leaving it out");
                    self.unknown.lock().await.push(unknown);
                    patience = Instant::now() + REMNANT;
                }
                // systemd removes the refused unit a moment later.
                None if error.is_unit_exists() && Instant::now() < patience => {
                    sleep(Duration::from_millis(20)).await;
                }
                Some(_) | None => return Err(error),
            }
        }
    }
}

impl Bus {
    /// Takes the memory protection from the slice of all steps, except for what processes that steps have left running
    /// requested. The slice keeps the page cache of steps that have ended, and the kernel could not reclaim this memory
    /// when the host is short of it.
    pub async fn unprotect_memory(&self) {
        for attempt in 0..UNPROTECT_ATTEMPTS {
            if attempt > 0 {
                // systemd notices a little later than the agent that the last scope is empty.
                sleep(UNPROTECT_PAUSE).await;
            }
            let mut protected = self.protected.lock().await;
            self.protect_memory(0, &mut protected).await;
            match *protected {
                Some(0) | None => return,
                Some(_) => {}
            }
        }
    }

    /// Gives the slice of all steps the sum of the `MemoryLow` of its running steps and of one that is about to start.
    /// In cgroup version 2, the memory of a scope is not protected beyond that of its slice, and what a slice protects
    /// beyond its scopes is shared by all of them.
    async fn protect_memory(&self, requested: u64, protected: &mut Option<u64>) {
        if requested == 0 && protected.is_none() && !self.was_protected() {
            *protected = Some(0);
        }
        // A running step that requested memory keeps the value above 0.
        if requested == 0 && *protected == Some(0) {
            return;
        }
        match self.try_to_protect_memory(requested).await {
            Ok(sum) => *protected = Some(sum),
            Err(error) => {
                *protected = None;
                tracing::debug!(%error, "the memory requests of steps have no effect on this host");
            }
        }
    }

    /// False if no agent has given the slice a value since the host has booted: then nothing has to be asked over the
    /// bus.
    fn was_protected(&self) -> bool {
        MEMORY_LOW_FILES.iter().any(|file| self.files.exists(file))
    }

    async fn try_to_protect_memory(&self, requested: u64) -> Result<u64, SystemdError> {
        let manager = self.manager().await?;
        let protect = async {
            let scopes = manager
                .list_units_by_patterns(&["active"], &["skyhook-*.scope"])
                .await?;
            let mut requests = vec![requested];
            for (_, _, _, _, _, _, path, ..) in scopes {
                let scope = ScopeProxy::builder(manager.inner().connection())
                    .path(path)
                    .cache_properties(zbus::proxy::CacheProperties::No)
                    .build()
                    .await?;
                // A scope that has ended meanwhile needs nothing.
                requests.push(scope.memory_low().await.unwrap_or(0));
            }
            let sum = sum(&requests);
            let properties = [("MemoryLow", Variant::from(sum))];
            manager
                .set_unit_properties(SLICE, true, &properties)
                .await?;
            Ok(sum)
        };
        let name = format!("SetUnitProperties({SLICE})");
        let protected = self.slow(&name, protect).await;
        self.noting_loss(protected).await
    }
}

/// The sum of the memory requests of steps. It is never infinity, which is the largest number.
fn sum(requests: &[u64]) -> u64 {
    requests
        .iter()
        .fold(0, |sum: u64, request| sum.saturating_add(*request))
        .min(u64::MAX - 1)
}

fn properties(description: &str, pid: u32, limits: ScopeLimits) -> Vec<(&'static str, Value)> {
    let text = |text: &str| Value::Text(text.to_owned());
    let mut properties = vec![
        ("PIDs", Value::Pids(pid)),
        ("Description", text(description)),
        ("Slice", text(SLICE)),
        ("CollectMode", text("inactive-or-failed")),
        // When the kernel's OOM killer kills a process of the step, the supervisor must go on, to report this.
        ("OOMPolicy", text("continue")),
    ];
    let limits = [
        ("CPUQuotaPerSecUSec", limits.cpu_quota),
        ("CPUWeight", limits.cpu_weight),
        ("MemoryMax", limits.memory_max),
        ("MemoryLow", limits.memory_low),
        ("TimeoutStopUSec", limits.stop_timeout),
    ];
    properties.extend(
        limits
            .into_iter()
            .filter_map(|(name, value)| Some((name, Value::Number(value?)))),
    );
    properties
}

/// Removes a property, or replaces it by its older form. Returns false if the property is not in the list, or is
/// required.
fn leave_out(properties: &mut Vec<(&'static str, Value)>, unknown: &str) -> bool {
    let Some(index) = properties.iter().position(|(name, _)| *name == unknown) else {
        return false;
    };
    let older = match &properties[index] {
        ("PIDs", _) => return false,
        ("CPUWeight", Value::Number(weight)) => Some(("CPUShares", Value::Number(shares(*weight)))),
        ("MemoryMax", value) => Some(("MemoryLimit", value.clone())),
        _ => None,
    };
    match older {
        Some(older) => properties[index] = older,
        None => {
            properties.remove(index);
        }
    }
    true
}

/// Converts a CPU weight of cgroup version 2 to CPU shares of version 1, in the same way as the kubelet.
fn shares(weight: u64) -> u64 {
    2 + (weight.clamp(1, 10_000) - 1) * 262_142 / 9999
}

impl SystemdError {
    /// The name of the property, if systemd refused the scope because of an unknown property.
    fn unknown_property(&self) -> Option<String> {
        let Self::Call { source, .. } = self else {
            return None;
        };
        let text = source.to_string();
        let (_, property) = text.split_once("Cannot set property ")?;
        let (property, _) = property.split_once(", or unknown property")?;
        Some(property.to_owned())
    }

    fn is_unit_exists(&self) -> bool {
        matches!(
            self,
            Self::Call {
                source: zbus::Error::MethodError(name, _, _),
                ..
            } if name.as_str().ends_with(".UnitExists")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slice_protects_what_all_steps_requested() {
        for (requests, want) in [
            (&[][..], 0),
            (&[1 << 20, 2 << 20], 3 << 20),
            (&[u64::MAX, 1], u64::MAX - 1),
        ] {
            assert_eq!(sum(requests), want);
        }
    }

    #[test]
    fn an_older_manager_gets_older_properties() {
        let limits = ScopeLimits {
            cpu_quota: None,
            cpu_weight: Some(39),
            memory_max: Some(1 << 29),
            memory_low: Some(1 << 20),
            stop_timeout: Some(40_000_000),
        };
        let mut wanted = properties("Step", 7, limits);
        for unknown in [
            "OOMPolicy",
            "CPUWeight",
            "MemoryMax",
            "MemoryLow",
            "TimeoutStopUSec",
        ] {
            assert!(leave_out(&mut wanted, unknown), "{unknown}");
        }
        assert_eq!(
            wanted,
            [
                ("PIDs", Value::Pids(7)),
                ("Description", Value::Text("Step".into())),
                ("Slice", Value::Text("skyhook.slice".into())),
                ("CollectMode", Value::Text("inactive-or-failed".into())),
                ("CPUShares", Value::Number(998)),
                ("MemoryLimit", Value::Number(1 << 29)),
            ]
        );
        assert!(!leave_out(&mut wanted, "PIDs"), "there is no scope without");
        assert!(
            !leave_out(&mut wanted, "OOMPolicy"),
            "it is left out already"
        );
    }
}
