//! logind, and what else is asked of the bus once per run.

use std::collections::BTreeMap;

use zbus::Variant;

use super::{Bus, SystemdError, call};

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Login {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
}

impl Bus {
    /// Who holds up a shutdown, and why.
    pub async fn shutdown_inhibitors(&self) -> Result<Vec<String>, SystemdError> {
        let connection = self.connection().await?;
        let list = async { LoginProxy::new(&connection).await?.list_inhibitors().await };
        let all = self.noting_loss(call("ListInhibitors", list).await).await?;
        Ok(all
            .into_iter()
            .filter(|(what, _, _, mode, _, _)| {
                mode == "block" && what.split(':').any(|w| w == "shutdown")
            })
            .map(|(_, who, why, _, _, _)| format!("{who}: {why}"))
            .collect())
    }

    /// Asks logind for a reboot, or systemd for `reboot.target` where there is no logind. Both stop all services first.
    pub async fn ask_for_reboot(&self) -> Result<(), SystemdError> {
        let connection = self.connection().await?;
        let login = async { LoginProxy::new(&connection).await?.reboot(false).await };
        match self.noting_loss(call("login1.Reboot", login).await).await {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::warn!(%error, "logind does not reboot; reboot.target is started");
                self.run_job("reboot.target", false, super::CALL)
                    .await
                    .map(drop)
            }
        }
    }

    /// What systemd as a whole is at: `running`, `degraded`, `stopping` and the like.
    pub async fn system_state(&self) -> Result<String, SystemdError> {
        let connection = self.connection().await?;
        let state = async {
            let value = zbus::fdo::PropertiesProxy::builder(&connection)
                .destination("org.freedesktop.systemd1")
                .path("/org/freedesktop/systemd1")
                .build()
                .await?
                .get(
                    "org.freedesktop.systemd1.Manager".try_into()?,
                    "SystemState",
                )
                .await?;
            Ok(String::try_from(value)?)
        };
        self.noting_loss(call("SystemState", state).await).await
    }

    /// Main process of a service; 0 when it has none.
    pub async fn main_pid(&self, unit: &str) -> Result<u32, SystemdError> {
        let connection = self.connection().await?;
        let pid = async {
            let manager = super::ManagerProxy::new(&connection).await?;
            let path = manager.get_unit(unit).await?;
            let value = zbus::fdo::PropertiesProxy::builder(&connection)
                .destination("org.freedesktop.systemd1")
                .path(path)
                .build()
                .await?
                .get("org.freedesktop.systemd1.Service".try_into()?, "MainPID")
                .await?;
            Ok(u32::try_from(value).unwrap_or(0))
        };
        self.noting_loss(call(&format!("MainPID of {unit}"), pid).await)
            .await
    }

    /// The manager's numeric properties: `DefaultLimitNOFILE` and the like.
    pub async fn default_limits(&self) -> Result<BTreeMap<String, u64>, SystemdError> {
        let connection = self.connection().await?;
        let all = async {
            let properties = zbus::fdo::PropertiesProxy::builder(&connection)
                .destination("org.freedesktop.systemd1")
                .path("/org/freedesktop/systemd1")
                .build()
                .await?
                .get_all("org.freedesktop.systemd1.Manager".try_into()?)
                .await?;
            Ok(properties)
        };
        let all = self
            .noting_loss(call("manager properties", all).await)
            .await?;
        Ok(all
            .into_iter()
            .filter_map(|(name, value)| {
                let Variant::U64(number) = *value else {
                    return None;
                };
                Some((name.to_string(), number))
            })
            .collect())
    }
}
