//! The version of systemd on the host, and whether Skyhook can work with this version.

use super::{Bus, SystemdError};

/// The first version with invocation IDs of units. Without them, a restart of a unit cannot be recognised.
const OLDEST: u32 = 232;

impl Bus {
    /// systemd's property `Version`, for example `252.39-1~deb12u1`.
    pub async fn version(&self) -> Result<String, SystemdError> {
        let manager = self.manager().await?;
        let version = self.quick("Version", manager.version()).await;
        self.noting_loss(version).await
    }

    /// systemd's property `SystemState`, for example `running`, `degraded` or `stopping`.
    pub async fn system_state(&self) -> Result<String, SystemdError> {
        let manager = self.manager().await?;
        let state = self.quick("SystemState", manager.system_state()).await;
        self.noting_loss(state).await
    }
}

/// A message for the user if this version of systemd is too old. A version without a number counts as new.
#[must_use]
pub fn too_old(version: &str) -> Option<String> {
    let number = number(version).filter(|number| *number < OLDEST)?;
    Some(format!(
        "systemd {number} on this host is too old: Skyhook needs {OLDEST} or later to tell whether a unit was restarted; \
         upgrade the host's operating system, or take this node out of the Skyhook's nodeSelectors"
    ))
}

fn number(version: &str) -> Option<u32> {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (version, want) in [
            ("252.39-1~deb12u1", Some(252)),
            ("v219", Some(219)),
            ("systemd 219", Some(219)),
            ("257~rc1-4", Some(257)),
            ("245 (245.4-4ubuntu3.22)", Some(245)),
            ("229", Some(229)),
            ("", None),
            ("main", None),
        ] {
            assert_eq!(number(version), want, "{version}");
        }
    }

    #[test]
    fn what_is_too_old_says_what_to_do() {
        for fine in ["232", "257.9-1", "", "main"] {
            assert_eq!(too_old(fine), None, "{fine}");
        }
        let problem = too_old("v219").unwrap();
        assert!(
            problem.starts_with("systemd 219 on this host is too old: Skyhook needs 232 or later"),
            "{problem}"
        );
        assert!(problem.contains("nodeSelectors"), "{problem}");
        assert!(too_old("231-5").is_some());
    }
}
