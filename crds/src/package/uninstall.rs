//! What a package says about its uninstall.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a package can be uninstalled, and whether it is to be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Uninstall {
    /// The package has steps that uninstall it. If it is false, they never run: when the package is removed from the spec or
    /// gets a lower version, what is on the host stays there.
    #[serde(default)]
    pub enabled: bool,
    /// Uninstall the package from every node now. It needs enabled. While it is true, the package is not installed.
    #[serde(default)]
    pub apply: bool,
}

impl Uninstall {
    /// True when the package has to go from every node.
    #[must_use]
    pub const fn is_due(self) -> bool {
        self.enabled && self.apply
    }

    /// False for a package that has to go and has nothing to uninstall it with.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.enabled || !self.apply
    }
}
