//! Tests of the bus with fake managers: old versions of systemd, slow ones, and hosts without logind.
#![expect(clippy::disallowed_methods, reason = "tests make files")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zbus::{Guid, fdo, interface};

use super::scope::Listed;
use super::*;

/// Behaviour of a fake manager: its version, what it does not know, how slow it is; and the calls that it got.
#[derive(Default)]
struct Manners {
    version: String,
    unknown: BTreeSet<&'static str>,
    reload: Duration,
    logind: Option<Logind>,
    /// After a refused scope, the next attempt fails with `UnitExists`.
    has_remnants: bool,
    remnant: Mutex<bool>,
    /// Memory requests of the running steps.
    scopes: Mutex<Vec<u64>>,
    calls: Mutex<Vec<String>>,
}

#[derive(Clone, Copy)]
enum Logind {
    /// Does not have the method `RebootWithFlags`.
    Before249,
    /// Does not know the flag to ignore inhibitors.
    Before257,
    Since257,
    /// Refuses every reboot.
    Refuses,
}

impl Manners {
    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

/// systemd's own errors.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refused {
    #[zbus(error)]
    Bus(zbus::Error),
    UnitExists(String),
}

/// The bus daemon: the first calls of every client.
struct Daemon;

#[interface(name = "org.freedesktop.DBus")]
impl Daemon {
    fn hello(&self) -> String {
        ":1.1".to_owned()
    }

    fn add_match(&self, _rule: &str) {}

    fn remove_match(&self, _rule: &str) {}
}

struct FakeManager(Arc<Manners>);

fn object(path: &str) -> OwnedObjectPath {
    path.to_owned().try_into().unwrap()
}

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl FakeManager {
    #[zbus(property)]
    fn version(&self) -> String {
        self.0.version.clone()
    }

    #[zbus(property)]
    fn system_state(&self) -> String {
        "stopping".to_owned()
    }

    async fn reload(&self) {
        self.0.note("Reload");
        sleep(self.0.reload).await;
    }

    fn start_unit(&self, name: &str, mode: &str) -> OwnedObjectPath {
        self.0.note(format!("StartUnit {name} {mode}"));
        object("/org/freedesktop/systemd1/job/1")
    }

    fn list_units_by_patterns(&self, states: Vec<String>, patterns: Vec<String>) -> Vec<Listed> {
        assert_eq!(
            (states, patterns),
            (vec!["active".into()], vec!["skyhook-*.scope".into()])
        );
        (0..self.0.scopes.lock().unwrap().len())
            .map(|n| {
                let text = String::new;
                let path = object(&format!("/org/freedesktop/systemd1/unit/s{n}"));
                let job = object("/");
                (
                    text(),
                    text(),
                    text(),
                    text(),
                    text(),
                    text(),
                    path,
                    0,
                    text(),
                    job,
                )
            })
            .collect()
    }

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: Vec<(String, zbus::OwnedVariant)>,
    ) {
        for (property, value) in properties {
            let value = u64::try_from(value).unwrap();
            self.0.note(format!("{name} {runtime} {property}={value}"));
        }
    }

    fn start_transient_unit(
        &self,
        name: &str,
        _mode: &str,
        properties: Vec<(String, zbus::OwnedVariant)>,
        _aux: Vec<(String, Vec<(String, zbus::OwnedVariant)>)>,
    ) -> Result<OwnedObjectPath, Refused> {
        if std::mem::take(&mut *self.0.remnant.lock().unwrap()) {
            return Err(Refused::UnitExists(format!("Unit {name} already exists.")));
        }
        for (property, _) in &properties {
            if self.0.unknown.contains(property.as_str()) {
                *self.0.remnant.lock().unwrap() = self.0.has_remnants;
                let problem = format!("Cannot set property {property}, or unknown property.");
                return Err(Refused::Bus(fdo::Error::PropertyReadOnly(problem).into()));
            }
        }
        let names: Vec<String> = properties.into_iter().map(|(name, _)| name).collect();
        self.0.note(format!("{name}: {}", names.join(" ")));
        Ok(object("/org/freedesktop/systemd1/job/1"))
    }
}

/// A running step that has requested this much memory.
struct FakeScope(u64);

#[interface(name = "org.freedesktop.systemd1.Scope")]
impl FakeScope {
    #[zbus(property)]
    fn memory_low(&self) -> u64 {
        self.0
    }
}

struct FakeLogin(Arc<Manners>);

#[interface(name = "org.freedesktop.login1.Manager")]
impl FakeLogin {
    fn reboot(&self, interactive: bool) -> fdo::Result<()> {
        self.0.note(format!("Reboot {interactive}"));
        match self.0.logind {
            Some(Logind::Refuses) => Err(fdo::Error::AccessDenied("Access denied".into())),
            Some(Logind::Before249 | Logind::Before257 | Logind::Since257) | None => Ok(()),
        }
    }

    fn reboot_with_flags(&self, flags: u64) -> fdo::Result<()> {
        self.0.note(format!("RebootWithFlags {flags}"));
        match self.0.logind {
            Some(Logind::Before249) | None => Err(fdo::Error::UnknownMethod("Unknown".into())),
            Some(Logind::Before257) => Err(fdo::Error::InvalidArgs("Invalid flags".into())),
            Some(Logind::Refuses) => Err(fdo::Error::AccessDenied("Access denied".into())),
            Some(Logind::Since257) => Ok(()),
        }
    }
}

/// A fake manager that listens on its own socket.
struct Fake {
    bus: Bus,
    manners: Arc<Manners>,
    server: JoinHandle<()>,
    directory: tempfile::TempDir,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    /// The host has the file of a property that was set until the next boot.
    fn has_drop_in(&self, system: &str) {
        let directory = format!("run/systemd/{system}/skyhook.slice.d");
        let directory = self.directory.path().join(directory);
        std::fs::create_dir_all(&directory).unwrap();
        let content = "[Slice]\nMemoryLow=100\n";
        std::fs::write(directory.join("50-MemoryLow.conf"), content).unwrap();
    }
}

fn fake(manners: Manners) -> Fake {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("bus");
    let listener = UnixListener::bind(&socket).unwrap();
    let manners = Arc::new(manners);
    let served = Arc::clone(&manners);
    let server = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            let mut builder = zbus::connection::Builder::unix_stream(stream.into_std().unwrap())
                .server(Guid::generate())
                .p2p()
                .serve_at("/org/freedesktop/DBus", Daemon)
                .serve_at(
                    "/org/freedesktop/systemd1",
                    FakeManager(Arc::clone(&served)),
                );
            for (n, memory_low) in served.scopes.lock().unwrap().iter().enumerate() {
                let path = format!("/org/freedesktop/systemd1/unit/s{n}");
                builder = builder.serve_at(path, FakeScope(*memory_low));
            }
            if served.logind.is_some() {
                builder =
                    builder.serve_at("/org/freedesktop/login1", FakeLogin(Arc::clone(&served)));
            }
            connections.push(builder.build().await.unwrap());
        }
    });
    let timeouts = CallTimeouts {
        quick: Duration::from_secs(2),
        slow: Duration::from_secs(10),
    };
    Fake {
        bus: Bus::at(&Root::open(directory.path()).unwrap(), "/bus", timeouts),
        manners,
        server,
        directory,
    }
}

const LIMITS: ScopeLimits = ScopeLimits {
    cpu_quota: Some(1),
    cpu_weight: Some(39),
    memory_max: Some(2),
    memory_low: Some(3),
    stop_timeout: None,
};

#[tokio::test]
async fn properties_that_a_manager_does_not_know_are_left_out_from_then_on() {
    for (unknown, want) in [
        (
            BTreeSet::new(),
            "PIDs Description Slice CollectMode OOMPolicy CPUQuotaPerSecUSec CPUWeight MemoryMax MemoryLow",
        ),
        // systemd 252.
        (
            ["OOMPolicy"].into(),
            "PIDs Description Slice CollectMode CPUQuotaPerSecUSec CPUWeight MemoryMax MemoryLow",
        ),
        (
            [
                "OOMPolicy",
                "CollectMode",
                "CPUWeight",
                "MemoryMax",
                "MemoryLow",
            ]
            .into(),
            "PIDs Description Slice CPUQuotaPerSecUSec CPUShares MemoryLimit",
        ),
    ] {
        let fake = fake(Manners {
            unknown,
            has_remnants: true,
            ..Manners::default()
        });
        for scope in ["a.scope", "b.scope"] {
            fake.bus
                .start_scope(scope, "Step", 7, LIMITS)
                .await
                .unwrap();
            let calls = fake.manners.calls();
            assert_eq!(calls.last(), Some(&format!("{scope}: {want}")));
        }
    }
}

/// In cgroup version 2, the memory of a scope is not protected beyond that of its slice.
#[tokio::test]
async fn the_slice_of_all_steps_protects_the_memory_that_they_requested() {
    let fake = fake(Manners {
        scopes: vec![100, 0].into(),
        ..Manners::default()
    });
    let start = async |limits| {
        let started = fake.bus.start_scope("a.scope", "Step", 7, limits).await;
        started.unwrap();
        fake.manners.calls()
    };
    let without = ScopeLimits::default();
    assert_eq!(start(LIMITS).await[0], "skyhook.slice true MemoryLow=103");
    // A step without a request gets no part of what a step before it requested.
    assert_eq!(start(without).await[0], "skyhook.slice true MemoryLow=100");
    fake.manners.scopes.lock().unwrap().clear();
    assert_eq!(start(without).await[0], "skyhook.slice true MemoryLow=0");
    let calls = start(without).await;
    assert_eq!(calls.len(), 1, "the slice has this value: {calls:?}");
}

/// Most packages request no memory, and connecting to the bus takes time at the end of each lease.
#[tokio::test]
async fn nothing_is_asked_about_memory_that_no_step_has_requested() {
    let fake = fake(Manners::default());
    fake.bus.unprotect_memory().await;
    assert!(fake.bus.connection.lock().await.is_none(), "no connection");
    let without = ScopeLimits::default();
    let started = fake.bus.start_scope("a.scope", "Step", 7, without).await;
    started.unwrap();
    assert_eq!(fake.manners.calls().len(), 1, "the scope alone");
}

/// The agent before this one may have given the slice a value.
#[tokio::test]
async fn a_new_agent_takes_the_memory_protection_that_another_has_left() {
    for directory in ["system.control", "system"] {
        let fake = fake(Manners::default());
        fake.has_drop_in(directory);
        fake.bus.unprotect_memory().await;
        assert_eq!(fake.manners.calls(), ["skyhook.slice true MemoryLow=0"]);
    }
}

/// The slice keeps the page cache of steps that have ended.
#[tokio::test]
async fn the_slice_protects_no_memory_when_its_last_step_has_ended() {
    let fake = fake(Manners {
        scopes: vec![100].into(),
        ..Manners::default()
    });
    fake.has_drop_in("system.control");
    // systemd still lists the scope for a moment.
    let end = async {
        sleep(Duration::from_millis(300)).await;
        fake.manners.scopes.lock().unwrap().clear();
    };
    tokio::join!(fake.bus.unprotect_memory(), end);
    let calls = fake.manners.calls();
    assert_eq!(
        calls,
        [
            "skyhook.slice true MemoryLow=100",
            "skyhook.slice true MemoryLow=0"
        ]
    );
    fake.bus.unprotect_memory().await;
    assert!(fake.manners.calls().is_empty(), "it has this value");
}

#[tokio::test]
async fn a_property_that_nothing_works_without_is_an_error() {
    let fake = fake(Manners {
        unknown: ["PIDs"].into(),
        ..Manners::default()
    });
    let error = fake.bus.start_scope("a.scope", "Step", 7, LIMITS).await;
    let error = error.unwrap_err();
    assert!(!error.is_bus_lost(), "an answer came, so the bus is there");
    let told = skyhook_oci::chain(&error);
    assert!(told.contains("Cannot set property PIDs"), "{told}");
}

#[tokio::test]
async fn a_reload_may_take_longer_than_other_calls() {
    let fake = fake(Manners {
        reload: Duration::from_secs(3),
        ..Manners::default()
    });
    let begin = Instant::now();
    fake.bus.reload().await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(3));
    assert!(CallTimeouts::default().slow >= Duration::from_secs(180));
}

#[tokio::test]
async fn a_reboot_is_asked_for_in_the_way_that_the_host_knows() {
    let flags = "RebootWithFlags 16";
    let plain = "Reboot false";
    let target = "StartUnit reboot.target replace-irreversibly";
    for (logind, want) in [
        (Some(Logind::Since257), vec![flags]),
        (Some(Logind::Before257), vec![flags, plain]),
        (Some(Logind::Before249), vec![flags, plain]),
        (Some(Logind::Refuses), vec![flags, plain, target]),
        (None, vec![target]),
    ] {
        let fake = fake(Manners {
            logind,
            ..Manners::default()
        });
        let begin = Instant::now();
        fake.bus.ask_for_reboot().await.unwrap();
        assert_eq!(fake.manners.calls(), want);
        // The job of reboot.target ends only when the host goes down, so the agent does not wait for it.
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
}

#[tokio::test]
async fn a_manager_says_what_it_is_and_does() {
    let fake = fake(Manners {
        version: "v219".into(),
        ..Manners::default()
    });
    assert!(fake.bus.is_there().await);
    assert_eq!(fake.bus.system_state().await.unwrap(), "stopping");
    let version = fake.bus.version().await.unwrap();
    assert_eq!(version, "v219");
    assert!(too_old(&version).is_some());
}

/// On a host, `/run/dbus` may be an absolute symlink.
#[tokio::test]
async fn the_bus_is_found_in_the_root_of_the_host() {
    let fake = fake(Manners {
        version: "257".to_owned(),
        ..Manners::default()
    });
    let root = fake.directory.path();
    let bus = Bus::of(&Root::open(root).unwrap());
    let error = skyhook_oci::chain(&bus.version().await.unwrap_err());
    assert!(
        error.starts_with("the system bus at /run/dbus/system_bus_socket does not answer: "),
        "{error}"
    );
    std::fs::create_dir(root.join("run")).unwrap();
    std::fs::rename(root.join("bus"), root.join("system_bus_socket")).unwrap();
    std::os::unix::fs::symlink("/", root.join("run/dbus")).unwrap();
    assert_eq!(bus.version().await.unwrap(), "257");
}
