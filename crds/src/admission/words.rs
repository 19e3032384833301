//! What the rules of the API server and `check` both say. `%s` stands for a list of what is wrong.

pub(crate) const BUDGET: &str =
    "both percent and count can not be set at the same time: leave one of them out";
pub(crate) const POLICY_AND_BUDGET: &str =
    "deploymentPolicy and interruptionBudget are mutually exclusive: leave one of them out";

pub(crate) const PACKAGE_NAME: &str =
    "package name %s is not valid: 2 to 43 characters a-z, 0-9 and -, first and last a letter";
pub(crate) const NAME_DIFFERS: &str =
    "name must not be set explicitly, or equal the key: leave it out in %s";
pub(crate) const MISSING: &str = "graph is not valid, missing: %s";
pub(crate) const CYCLE: &str = "dependsOn forms a cycle: %s";

/// After the version.
pub(crate) const VERSION: (&str, &str) = (
    "error version string is invalid: ",
    " (write for example 1.2.3, v1.2 or 1.2.3-rc.1)",
);
pub(crate) const IMAGE: &str = "not an image: write a registry and a path without spaces; a digest is sha256: and 64 \
     hexadecimal digits";
/// Around the tag and before the version.
pub(crate) const TAG: (&str, &str) = (
    "the tag is the version, so leave out ",
    " or write it as version ",
);
pub(crate) const DIGEST: &str =
    "not a digest: write sha256: and 64 hexadecimal digits, or leave it out";
pub(crate) const DIGESTS: &str = "image carries another digest than containerSHA: leave one out";
pub(crate) const RESOURCES: &str =
    "set all four of cpuRequest, cpuLimit, memoryRequest, memoryLimit, or none";
pub(crate) const CPU_LIMIT: &str =
    "cpuLimit is below cpuRequest: raise the limit or lower the request";
pub(crate) const MEMORY_LIMIT: &str =
    "memoryLimit is below memoryRequest: raise the limit or lower the request";
pub(crate) const DURATION: &str =
    "must be a duration greater than or equal to 0 (write for example 30s, 1m30s or 2h)";
pub(crate) const CONFIG_KEY: &str =
    "not file names of at most 253 characters A-Z, a-z, 0-9, -, _ and .: %s";
pub(crate) const CONFIG_INTERRUPT: &str =
    "neither a key of configMap nor a glob that matches one: %s";
pub(crate) const ENV_VALUE: &str =
    "value and valueFrom are mutually exclusive: leave one of them out";
pub(crate) const ENV_SOURCE: &str =
    "set exactly one of configMapKeyRef, fieldRef, fileKeyRef, resourceFieldRef and secretKeyRef";
pub(crate) const UNINSTALL: &str =
    "uninstall.apply requires uninstall.enabled to be true: set enabled to true, or apply to false";

pub(crate) const SELECTOR_VALUES: &str =
    "In and NotIn need values, Exists and DoesNotExist have none";
pub(crate) const LABEL_KEY: &str = "not a label key: an optional DNS name and /, then at most 63 characters A-Z, a-z, 0-9, -, _ \
     and ., first and last alphanumeric";

pub(crate) const BUDGET_BOTH: &str = "percent and count are both set: set one of them";
pub(crate) const BUDGET_NEITHER: &str = "neither percent nor count is set: set one of them";
pub(crate) const STRATEGY: &str = "set exactly one of fixed, linear and exponential";
pub(crate) const DEFAULT_NAME: &str = "__default__ is the name of spec.default: choose another one";
pub(crate) const SAME_NAMES: &str = "several compartments have the same name: %s";
pub(crate) const SAME_SELECTORS: &str = "several compartments have the same selector: %s";

/// One of these texts, with a list in place of `%s`. It is written as the API server writes one.
pub(crate) fn with<T: std::fmt::Debug>(message: &str, list: &[T]) -> String {
    message.replace("%s", &format!("{list:?}"))
}
