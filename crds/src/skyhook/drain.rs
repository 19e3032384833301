//! How nodes are drained: the options, and what they mean.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::checked_selector;
use crate::admission::words;
use crate::duration::GoDuration;
use crate::field::Problems;

/// How a node is drained. If no field is set, every pod is evicted, with these exceptions: pods of DaemonSets, mirror pods,
/// finished pods, pods in kube-system, and pods that tolerate the taint of cordoned nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DrainConfig {
    /// Delete pods and do not evict them. PodDisruptionBudgets have no effect then. The default is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disable_eviction: Option<bool>,
    /// Evict also pods with an emptyDir volume, whose data is lost then. If it is false, such a pod blocks the drain. The
    /// default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_empty_dir_data: Option<bool>,
    /// Evict also pods that no controller replaces. If it is false, such a pod blocks the drain. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub force: Option<bool>,
    /// Let the pods of DaemonSets stay. If it is false, they are evicted like others. The default is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore_daemon_sets: Option<bool>,
    /// How long pods may take to leave, from the time when all pods of podNonInterruptLabels have finished. The default is
    /// 1h; with 0s there is no limit. After that time, the node is uncordoned and tried again later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// Grace period of evicted pods, rounded up to whole seconds. If it is unset, each pod has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<GoDuration>,
    /// Only pods that match have to leave. If it is unset, all pods have to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
}

/// Drain options after the checks, defaults filled in.
#[derive(Clone, Debug)]
pub struct CheckedDrain {
    /// `None` never gives up.
    pub timeout: Option<Duration>,
    /// In seconds; `None` leaves each pod its own.
    pub grace_period: Option<u32>,
    pub force: bool,
    pub delete_empty_dir_data: bool,
    pub disable_eviction: bool,
    pub ignore_daemon_sets: bool,
    pub pod_selector: Selector,
}

impl CheckedDrain {
    pub(super) fn new(config: &DrainConfig, problems: &mut Problems) -> Self {
        let mut value = |given: &Option<GoDuration>, field: &str| {
            let value = given.as_ref()?.value();
            if value.is_err() {
                problems.add(format!("spec.drainConfig.{field}"), words::DURATION);
            }
            value.ok()
        };
        let timeout = value(&config.timeout, "timeout");
        let timeout = timeout.unwrap_or(Duration::from_secs(3600));
        let grace = value(&config.grace_period, "gracePeriod");
        let path = "spec.drainConfig.podSelector";
        Self {
            timeout: (!timeout.is_zero()).then_some(timeout),
            grace_period: grace.map(whole_seconds),
            force: config.force.unwrap_or(true),
            delete_empty_dir_data: config.delete_empty_dir_data.unwrap_or(true),
            disable_eviction: config.disable_eviction.unwrap_or(false),
            ignore_daemon_sets: config.ignore_daemon_sets.unwrap_or(true),
            pod_selector: checked_selector(config.pod_selector.as_ref(), path, problems),
        }
    }
}

/// A duration in seconds, rounded up.
fn whole_seconds(duration: Duration) -> u32 {
    let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::SkyhookSpec;

    fn checked(config: &Value) -> Result<CheckedDrain, String> {
        let spec: SkyhookSpec = serde_json::from_value(json!({ "drainConfig": config })).unwrap();
        let checked = spec.check("s").map_err(|problem| problem.to_string())?;
        Ok(checked.drain)
    }

    #[test]
    fn a_drain_ends_after_an_hour_unless_the_timeout_says_otherwise() {
        for (config, want) in [
            (json!({}), Some(3600)),
            (json!({ "timeout": "0" }), None),
            (json!({ "timeout": "0s" }), None),
            (json!({ "timeout": "90s" }), Some(90)),
        ] {
            let timeout = checked(&config).unwrap().timeout;
            assert_eq!(timeout, want.map(Duration::from_secs), "{config}");
        }
    }

    #[test]
    fn a_grace_period_is_rounded_up_to_whole_seconds() {
        for (config, want) in [
            (json!({}), None),
            (json!({ "gracePeriod": "1500ms" }), Some(2)),
            (json!({ "gracePeriod": "1ns" }), Some(1)),
            (json!({ "gracePeriod": "0s" }), Some(0)),
            (json!({ "gracePeriod": "30s" }), Some(30)),
            (json!({ "gracePeriod": "2000000h" }), Some(u32::MAX)),
        ] {
            assert_eq!(checked(&config).unwrap().grace_period, want, "{config}");
        }
    }

    #[test]
    fn an_empty_config_is_as_good_as_none() {
        let drain = checked(&json!({})).unwrap();
        let flags = [
            drain.disable_eviction,
            drain.delete_empty_dir_data,
            drain.force,
            drain.ignore_daemon_sets,
        ];
        assert_eq!(flags, [false, true, true, true]);
        assert!(drain.pod_selector.selects_all());
        let unlike = json!({
            "disableEviction": true, "deleteEmptyDirData": false, "force": false, "ignoreDaemonSets": false,
            "podSelector": { "matchLabels": { "a": "b" } },
        });
        let drain = checked(&unlike).unwrap();
        let flags = [
            drain.disable_eviction,
            drain.delete_empty_dir_data,
            drain.force,
            drain.ignore_daemon_sets,
        ];
        assert_eq!(flags, [true, false, false, false]);
        assert!(!drain.pod_selector.selects_all());
    }

    #[test]
    fn a_negative_duration_is_refused_by_the_name_of_its_field() {
        for field in ["timeout", "gracePeriod"] {
            let problem = checked(&json!({ field: "-1s" })).unwrap_err();
            let want = format!(
                "spec.drainConfig.{field}: must be a duration greater than or equal to 0 (write for example 30s, 1m30s \
                 or 2h)"
            );
            assert_eq!(problem, want);
        }
    }
}
