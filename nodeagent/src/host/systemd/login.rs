//! Calls to logind, and rare queries to systemd: the main process of a service, and the default limits.

use std::collections::BTreeMap;

use zbus::Variant;

use super::{Bus, SystemdError};

/// logind's flag to ignore inhibitors, since systemd 257. Before 257, inhibitors do not stop root.
const SKIP_INHIBITORS: u64 = 1 << 4;

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Login {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
    fn reboot_with_flags(&self, flags: u64) -> zbus::Result<()>;
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
}

impl Bus {
    /// The programs that block a shutdown, each with its reason.
    pub async fn shutdown_inhibitors(&self) -> Result<Vec<String>, SystemdError> {
        let connection = self.connection().await?;
        let list = async { LoginProxy::new(&connection).await?.list_inhibitors().await };
        let all = self
            .noting_loss(self.quick("ListInhibitors", list).await)
            .await?;
        Ok(all
            .into_iter()
            .filter(|(what, _, _, mode, _, _)| {
                mode == "block" && what.split(':').any(|w| w == "shutdown")
            })
            .map(|(_, who, why, _, _, _)| format!("{who}: {why}"))
            .collect())
    }

    /// Asks logind for a reboot that ignores inhibitors or, without logind, starts `reboot.target`. Both stop all
    /// services first. Does not wait, because the reboot ends this process.
    pub async fn ask_for_reboot(&self) -> Result<(), SystemdError> {
        let connection = self.connection().await?;
        let flagged = async {
            let login = LoginProxy::new(&connection).await?;
            login.reboot_with_flags(SKIP_INHIBITORS).await
        };
        let flagged = self.quick("login1.RebootWithFlags", flagged).await;
        let Err(error) = flagged else { return Ok(()) };
        // systemd before 249 does not have this method, and before 257 not this flag.
        tracing::info!(%error, "this logind cannot ignore inhibitors: asking for a plain reboot");
        let plain = async { LoginProxy::new(&connection).await?.reboot(false).await };
        let plain = self.quick("login1.Reboot", plain).await;
        let Err(error) = self.noting_loss(plain).await else {
            return Ok(());
        };
        tracing::warn!(%error, "logind does not reboot the host: starting reboot.target");
        let manager = self.manager().await?;
        let queued = self
            .slow(
                "StartUnit(reboot.target)",
                manager.start_unit("reboot.target", "replace-irreversibly"),
            )
            .await;
        self.noting_loss(queued).await.map(drop)
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
        self.noting_loss(self.slow(&format!("MainPID of {unit}"), pid).await)
            .await
    }

    /// All numeric properties of the manager, among them `DefaultLimitNOFILE` and the other default limits.
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
            .noting_loss(self.slow("manager properties", all).await)
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
