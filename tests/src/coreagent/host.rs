//! The faked host: what is on its disk, and what happened there.

#![expect(clippy::disallowed_methods, reason = "a host has a clock of its own")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skyhook_nodeagent::journal::State;
use skyhook_nodeagent::report::HostFacts;

/// How the host behaves.
#[derive(Clone, Debug)]
pub struct HostScript {
    pub namespace: String,
    /// How long a step takes.
    pub step_time: Duration,
    /// Steps that fail: package to how often.
    pub failures: BTreeMap<String, u32>,
    /// What a step that fails says last.
    pub output: String,
    /// How many times faster than real time the host's clock runs, by which the agent waits before it tries again.
    pub haste: i64,
}

impl Default for HostScript {
    fn default() -> Self {
        Self {
            namespace: "skyhook".into(),
            step_time: Duration::ZERO,
            failures: BTreeMap::new(),
            output: "step test.sh exited with 1".into(),
            haste: 1,
        }
    }
}

/// What is on the host's disk, and what happened there: outlives the agent.
#[derive(Clone, Debug)]
pub struct FakeHost {
    inner: Arc<Mutex<Disk>>,
}

#[derive(Debug)]
pub(super) struct Disk {
    pub(super) journal: State,
    pub(super) facts: HostFacts,
    pub(super) boots: u32,
    pub(super) script: HostScript,
    pub(super) ledger: Vec<String>,
    /// When the host was made.
    began: Timestamp,
}

impl Disk {
    /// The host's clock at a moment, in Unix milliseconds.
    pub(super) fn clock(&self, now: Timestamp) -> i64 {
        let began = self.began.as_millisecond();
        began + (now.as_millisecond() - began) * self.script.haste
    }
}

impl FakeHost {
    /// A host with an empty disk.
    #[must_use]
    pub fn new(node: &str, script: HostScript) -> Self {
        let boot_id = crate::bench::boot_id(node);
        let facts = HostFacts {
            epoch: boot_id.clone(),
            boot_id,
            machine_id: node.to_owned(),
            agent_version: "test".to_owned(),
            ..HostFacts::default()
        };
        let disk = Disk {
            journal: State::default(),
            facts,
            boots: 0,
            script,
            ledger: Vec::new(),
            began: Timestamp::now(),
        };
        Self {
            inner: Arc::new(Mutex::new(disk)),
        }
    }

    /// Everything that ran there, as `package|version stage[-check]` or `interrupt …`, in order.
    #[must_use]
    pub fn ledger(&self) -> Vec<String> {
        self.with(|disk| disk.ledger.clone())
    }

    /// Changes how the host behaves.
    pub fn change(&self, change: impl FnOnce(&mut HostScript)) {
        self.with(|disk| change(&mut disk.script));
    }

    /// Boots the host again, and says what its boot ID is then. Unless Skyhook has asked for the boot, nothing that was in
    /// effect in the last one can be relied on.
    pub(crate) fn boot(&self, asked: bool) -> String {
        self.with(|disk| {
            disk.boots += 1;
            let first = crate::bench::boot_id(&disk.facts.machine_id);
            disk.facts.boot_id = format!("{first}-{}", disk.boots);
            if !asked {
                disk.facts.epoch.clone_from(&disk.facts.boot_id);
            }
            disk.facts.boot_id.clone()
        })
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
