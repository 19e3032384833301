//! Calls to systemd over D-Bus: starts scopes for steps, and restarts units for interrupts. Does not use systemctl.

use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use skyhook_oci::Root;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use zbus::Connection;
use zbus::{OwnedObjectPath, Variant, fdo};

mod login;
mod scope;
mod version;

pub use scope::ScopeLimits;
pub use version::too_old;

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For a call that systemd answers at once.
    quick: Duration,
    /// For a reload of all units, and for calls that may have to wait for a reload: systemd answers no call during it.
    slow: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            quick: Duration::from_secs(25),
            // The timeout of `systemctl daemon-reload`.
            slow: Duration::from_secs(180),
        }
    }
}

/// Why a call to systemd failed.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    #[error("the system bus at {} does not answer", socket.display())]
    Connect {
        socket: PathBuf,
        #[source]
        source: zbus::Error,
    },
    #[error("systemd: {call} failed")]
    Call {
        call: String,
        #[source]
        source: zbus::Error,
    },
    #[error("systemd: {call} took more than {seconds} s", seconds = .after.as_secs())]
    Timeout { call: String, after: Duration },
}

impl SystemdError {
    /// False when it is certain that the call had no effect.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Call { source, .. } => !is_answer(source),
            Self::Timeout { .. } => true,
            Self::Connect { .. } => false,
        }
    }

    /// True when the connection to the bus failed or was lost. The call may have had an effect.
    #[must_use]
    pub fn is_bus_lost(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Call { source, .. } => !is_answer(source),
            Self::Timeout { .. } => false,
        }
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn reload(&self) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn get_unit_processes(&self, name: &str) -> zbus::Result<Vec<(String, u32, String)>>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn system_state(&self) -> zbus::Result<String>;
    fn list_units_by_patterns(
        &self,
        states: &[&str],
        patterns: &[&str],
    ) -> zbus::Result<Vec<scope::Listed>>;
    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Variant<'_>)],
    ) -> zbus::Result<()>;
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Variant<'_>)],
        aux: &[(&str, Vec<(&str, Variant<'_>)>)],
    ) -> zbus::Result<OwnedObjectPath>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: OwnedObjectPath,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn load_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"), name = "InvocationID")]
    fn invocation_id(&self) -> zbus::Result<Vec<u8>>;
}

/// The connection to the system bus. It is made at the first call, and again after it was lost.
#[derive(Debug)]
pub struct Bus {
    /// The host's files, and the path of the bus's socket in them.
    files: Root,
    socket: PathBuf,
    connection: Mutex<Option<Connection>>,
    patience: Patience,
    /// Properties of scopes that this version of systemd has refused as unknown, in the order of the refusals.
    unknown: Mutex<Vec<String>>,
    /// Held while the slice of all steps gets its properties and a scope is started.
    starting: Mutex<()>,
}

impl Bus {
    /// The system bus of the host with these files.
    #[must_use]
    pub fn of(files: &Root) -> Self {
        Self::at(files, "/run/dbus/system_bus_socket", Patience::default())
    }

    fn at(files: &Root, socket: impl Into<PathBuf>, patience: Patience) -> Self {
        Self {
            files: files.clone(),
            socket: socket.into(),
            connection: Mutex::new(None),
            patience,
            unknown: Mutex::new(Vec::new()),
            starting: Mutex::new(()),
        }
    }

    /// Closes the connection, so that the bus does not wake an idle agent.
    pub async fn release(&self) {
        *self.connection.lock().await = None;
    }

    /// True when systemd answers.
    pub async fn is_there(&self) -> bool {
        self.version().await.is_ok()
    }

    pub(crate) async fn connection(&self) -> Result<Connection, SystemdError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref() {
            return Ok(connection.clone());
        }
        let connect = async {
            // The socket or its directory may be a symlink, and may be made later than the agent.
            let socket = self.files.locate(&self.socket)?;
            let address = format!("unix:path={}", socket.display());
            zbus::connection::Builder::address(address.as_str())
                .build()
                .await
        };
        let connection = self.quick("connect", connect).await.map_err(|e| match e {
            SystemdError::Call { source, .. } => SystemdError::Connect {
                socket: self.socket.clone(),
                source,
            },
            SystemdError::Connect { .. } | SystemdError::Timeout { .. } => e,
        })?;
        *slot = Some(connection.clone());
        Ok(connection)
    }

    async fn manager(&self) -> Result<ManagerProxy<'static>, SystemdError> {
        let connection = self.connection().await?;
        let proxy = ManagerProxy::builder(&connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .build();
        self.noting_loss(self.quick("connect to the manager", proxy).await)
            .await
    }

    /// Passes an answer on. If it says that the bus was lost, closes the connection, so that the next call makes a new
    /// one.
    async fn noting_loss<T>(&self, answer: Result<T, SystemdError>) -> Result<T, SystemdError> {
        if let Err(e) = &answer
            && e.is_bus_lost()
        {
            self.release().await;
        }
        answer
    }

    /// Makes a call that systemd answers at once.
    async fn quick<T>(
        &self,
        name: &str,
        future: impl Future<Output = zbus::Result<T>>,
    ) -> Result<T, SystemdError> {
        within(name, self.patience.quick, future).await
    }

    /// Makes a call that may have to wait for the end of a reload.
    async fn slow<T>(
        &self,
        name: &str,
        future: impl Future<Output = zbus::Result<T>>,
    ) -> Result<T, SystemdError> {
        within(name, self.patience.slow, future).await
    }

    /// Number of processes of a unit; 0 when there is no such unit.
    pub async fn count_processes(&self, unit: &str) -> Result<usize, SystemdError> {
        let manager = self.manager().await?;
        let name = format!("GetUnitProcesses({unit})");
        let processes = self.slow(&name, manager.get_unit_processes(unit)).await;
        match self.noting_loss(processes).await {
            Ok(processes) => Ok(processes.len()),
            Err(e) if e.is_no_such_unit() => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Stops a unit. Does not wait until the unit has stopped.
    pub async fn stop(&self, unit: &str) -> Result<(), SystemdError> {
        let manager = self.manager().await?;
        let name = format!("StopUnit({unit})");
        let stopped = self.slow(&name, manager.stop_unit(unit, "replace")).await;
        self.noting_loss(stopped).await.map(drop)
    }

    /// Sends a signal to every process of a unit.
    pub async fn kill(&self, unit: &str, signal: i32) -> Result<(), SystemdError> {
        let manager = self.manager().await?;
        let killed = self
            .slow(
                &format!("KillUnit({unit})"),
                manager.kill_unit(unit, "all", signal),
            )
            .await;
        self.noting_loss(killed).await
    }

    /// Makes systemd read all unit files again, as `systemctl daemon-reload` does.
    pub async fn reload(&self) -> Result<(), SystemdError> {
        let manager = self.manager().await?;
        let reloaded = self.slow("Reload", manager.reload()).await;
        self.noting_loss(reloaded).await
    }

    /// State of a unit. Makes systemd load the unit if necessary.
    pub async fn unit_state(&self, unit: &str) -> Result<UnitState, SystemdError> {
        let manager = self.manager().await?;
        let state = async {
            let path = manager.load_unit(unit).await?;
            let proxy = UnitProxy::builder(manager.inner().connection())
                .path(path)
                .cache_properties(zbus::proxy::CacheProperties::No)
                .build()
                .await?;
            Ok(UnitState {
                load: proxy.load_state().await?,
                active: proxy.active_state().await?,
                invocation: invocation(&proxy.invocation_id().await?),
            })
        };
        let state = self.slow(&format!("state of {unit}"), state).await;
        self.noting_loss(state).await
    }

    /// Restarts (or starts) a unit, and waits for the end of the job. Returns the job's result: `done` means success.
    pub async fn restart(&self, unit: &str, patience: Duration) -> Result<String, SystemdError> {
        let manager = self.manager().await?;
        let job = async {
            manager.subscribe().await.or_else(already_subscribed)?;
            let mut removed = manager.receive_job_removed().await?;
            let job = manager.restart_unit(unit, "replace").await?;
            while let Some(signal) = removed.next().await {
                let args = signal.args()?;
                if args.job() == &job {
                    return Ok(args.result().clone());
                }
            }
            Err(zbus::Error::InputOutput(std::sync::Arc::new(
                std::io::Error::other("the bus was closed"),
            )))
        };
        let name = format!("restart of {unit}");
        let result = within(&name, patience, job).await;
        self.noting_loss(result).await
    }

    /// Waits until systemd answers on the bus again.
    pub async fn reconnect(&self, patience: Duration) -> Result<(), SystemdError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            self.release().await;
            match self.manager().await {
                Ok(manager) => {
                    // The bus may be up before systemd has connected to it.
                    if self
                        .quick("GetUnit", manager.get_unit("-.mount"))
                        .await
                        .is_ok()
                    {
                        return Ok(());
                    }
                }
                Err(e) if tokio::time::Instant::now() >= deadline => return Err(e),
                Err(_) => {}
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(SystemdError::Timeout {
                    call: "reconnecting".into(),
                    after: patience,
                });
            }
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// State of a unit: systemd's properties `LoadState`, `ActiveState` and `InvocationID`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitState {
    pub load: String,
    pub active: String,
    /// The invocation ID: a new value at every start. Empty for a unit that was never started.
    pub invocation: String,
}

fn invocation(id: &[u8]) -> String {
    if id.iter().all(|b| *b == 0) {
        return String::new();
    }
    hex::encode(id)
}

impl SystemdError {
    /// True when systemd does not know the unit.
    #[must_use]
    pub fn is_no_such_unit(&self) -> bool {
        match self {
            Self::Call {
                source: zbus::Error::MethodError(name, _, _),
                ..
            } => name.as_str().ends_with("NoSuchUnit"),
            Self::Connect { .. } | Self::Call { .. } | Self::Timeout { .. } => false,
        }
    }
}

/// True for an error that systemd itself sent as its answer. Other errors come from the bus or the connection.
fn is_answer(error: &zbus::Error) -> bool {
    if let zbus::Error::FDO(error) = error {
        return !matches!(
            **error,
            fdo::Error::Disconnected(_)
                | fdo::Error::IOError(_)
                | fdo::Error::NameHasNoOwner(_)
                | fdo::Error::NoReply(_)
                | fdo::Error::NoServer(_)
                | fdo::Error::ServiceUnknown(_)
                | fdo::Error::TimedOut(_)
                | fdo::Error::Timeout(_)
        );
    }
    matches!(error, zbus::Error::MethodError(..))
}

fn already_subscribed(error: zbus::Error) -> zbus::Result<()> {
    if let zbus::Error::MethodError(name, _, _) = &error
        && name.as_str().ends_with("AlreadySubscribed")
    {
        return Ok(());
    }
    Err(error)
}

async fn within<T>(
    name: &str,
    after: Duration,
    future: impl Future<Output = zbus::Result<T>>,
) -> Result<T, SystemdError> {
    match timeout(after, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(SystemdError::Call {
            call: name.to_owned(),
            source,
        }),
        Err(_) => Err(SystemdError::Timeout {
            call: name.to_owned(),
            after,
        }),
    }
}

#[cfg(test)]
mod tests;
