//! Limits of a step: limits of its scope from the package's resources, and rlimits of its processes from the host.
#![expect(
    clippy::disallowed_methods,
    reason = "this is the shell's view of the host"
)]

use std::collections::BTreeMap;
use std::fs;

use skyhook_crds::package::Resources;
use skyhook_crds::quantity::InvalidQuantity;

use super::systemd::{Bus, ScopeLimits};
use crate::supervise::{ProcessLimit, Resource};

/// Units of container runtimes, or of programs that start a container runtime. Containers inherit the rlimits of the
/// unit.
const RUNTIMES: [&str; 10] = [
    "containerd.service",
    "crio.service",
    "docker.service",
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
    "snap.microk8s.daemon-containerd.service",
];

/// Names of rlimits: in `/proc/PID/limits`, and in systemd's `DefaultLimit…` properties.
const NAMES: [(&str, &str, Resource); 16] = [
    ("Max address space", "AS", Resource::As),
    ("Max core file size", "CORE", Resource::Core),
    ("Max cpu time", "CPU", Resource::Cpu),
    ("Max data size", "DATA", Resource::Data),
    ("Max file size", "FSIZE", Resource::Fsize),
    ("Max file locks", "LOCKS", Resource::Locks),
    ("Max locked memory", "MEMLOCK", Resource::Memlock),
    ("Max msgqueue size", "MSGQUEUE", Resource::Msgqueue),
    ("Max nice priority", "NICE", Resource::Nice),
    ("Max open files", "NOFILE", Resource::Nofile),
    ("Max processes", "NPROC", Resource::Nproc),
    ("Max resident set", "RSS", Resource::Rss),
    ("Max realtime priority", "RTPRIO", Resource::Rtprio),
    ("Max realtime timeout", "RTTIME", Resource::Rttime),
    ("Max pending signals", "SIGPENDING", Resource::Sigpending),
    ("Max stack size", "STACK", Resource::Stack),
];

/// Limits of a step's scope, from the package's resources.
pub fn scope(resources: &Resources) -> Result<ScopeLimits, InvalidQuantity> {
    let unsigned = |value: i128| u64::try_from(value.max(0)).unwrap_or(u64::MAX);
    let milli = |q: &Option<_>| {
        q.as_ref()
            .map(|q: &skyhook_crds::quantity::Quantity| q.milli())
    };
    let bytes = |q: &Option<_>| {
        q.as_ref()
            .map(|q: &skyhook_crds::quantity::Quantity| q.bytes())
    };
    Ok(ScopeLimits {
        cpu_quota: milli(&resources.cpu_limit)
            .transpose()?
            .map(|m| unsigned(m).saturating_mul(1000)),
        cpu_weight: milli(&resources.cpu_request)
            .transpose()?
            .map(|m| weight(unsigned(m))),
        memory_max: bytes(&resources.memory_limit).transpose()?.map(unsigned),
        memory_low: bytes(&resources.memory_request).transpose()?.map(unsigned),
        stop_timeout: None,
    })
}

/// Bytes as a Kubernetes quantity: a whole number with the largest possible unit.
#[must_use]
pub(crate) fn quantity(bytes: u64) -> String {
    const UNITS: [(u64, &str); 8] = [
        (1 << 40, "Ti"),
        (1 << 30, "Gi"),
        (1 << 20, "Mi"),
        (1 << 10, "Ki"),
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
        (1000, "k"),
    ];
    UNITS
        .into_iter()
        .find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit))
        .map_or_else(
            || bytes.to_string(),
            |(unit, suffix)| format!("{}{suffix}", bytes / unit),
        )
}

/// Converts milli-CPUs to the weight of cgroup version 2 in the same way as the kubelet: first to CPU shares, then to
/// the weight.
fn weight(milli: u64) -> u64 {
    let shares = (milli.saturating_mul(1024) / 1000).clamp(2, 262_144);
    1 + (shares - 2) * 9999 / 262_142
}

/// The rlimits for the processes of steps: those of the container runtime if it runs as a unit, else systemd's
/// defaults. Empty if both are unknown.
pub async fn process(bus: &Bus) -> Vec<ProcessLimit> {
    let main_pid = async |unit: &'static str| bus.main_pid(unit).await.unwrap_or(0);
    if let Some(limits) = of_runtime(main_pid).await {
        return limits;
    }
    match bus.default_limits().await {
        Ok(values) => from_defaults(&values),
        Err(error) => {
            tracing::warn!(%error, "systemd's default limits are not known");
            Vec::new()
        }
    }
}

/// The rlimits of the container runtime. `main_pid` is the main process of a unit, or 0 if there is none.
async fn of_runtime(main_pid: impl AsyncFn(&'static str) -> u32) -> Option<Vec<ProcessLimit>> {
    for unit in RUNTIMES {
        let pid = main_pid(unit).await;
        if pid > 0
            && let Ok(text) = fs::read_to_string(format!("/proc/{pid}/limits"))
        {
            return Some(parse(&text));
        }
    }
    None
}

fn from_defaults(values: &BTreeMap<String, u64>) -> Vec<ProcessLimit> {
    NAMES
        .iter()
        .filter_map(|(_, name, resource)| {
            let hard = *values.get(&format!("DefaultLimit{name}"))?;
            let soft = values.get(&format!("DefaultLimit{name}Soft"));
            Some(ProcessLimit {
                resource: *resource,
                soft: soft.copied().unwrap_or(hard),
                hard,
            })
        })
        .collect()
}

/// Reads `/proc/PID/limits`.
fn parse(text: &str) -> Vec<ProcessLimit> {
    let value = |text: &str| match text {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    text.lines()
        .filter_map(|line| {
            let (name, _, resource) = NAMES.iter().find(|(name, _, _)| line.starts_with(name))?;
            let mut fields = line[name.len()..].split_whitespace();
            Some(ProcessLimit {
                resource: *resource,
                soft: value(fields.next()?)?,
                hard: value(fields.next()?)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use skyhook_crds::quantity::Quantity;

    use super::*;

    #[test]
    fn limits_of_a_running_process() {
        let text = "\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 524288               files
Max stack size            8388608              unlimited            bytes
";
        let limit = |resource, soft, hard| ProcessLimit {
            resource,
            soft,
            hard,
        };
        assert_eq!(
            parse(text),
            [
                limit(Resource::Cpu, u64::MAX, u64::MAX),
                limit(Resource::Nofile, 1024, 524_288),
                limit(Resource::Stack, 8_388_608, u64::MAX),
            ]
        );
    }

    #[tokio::test]
    async fn each_distribution_of_kubernetes_has_its_own_unit_with_a_container_runtime() {
        let own = parse(&fs::read_to_string("/proc/self/limits").unwrap());
        for unit in [
            "containerd.service",
            "crio.service",
            // Docker with cri-dockerd.
            "docker.service",
            // k3s: a server, and an agent.
            "k3s.service",
            "k3s-agent.service",
            // RKE2: a server, and an agent.
            "rke2-server.service",
            "rke2-agent.service",
            // k0s: a controller, and a worker.
            "k0scontroller.service",
            "k0sworker.service",
            // MicroK8s.
            "snap.microk8s.daemon-containerd.service",
        ] {
            let main_pid = async |asked: &str| {
                if asked == unit { std::process::id() } else { 0 }
            };
            assert_eq!(of_runtime(main_pid).await.as_ref(), Some(&own), "{unit}");
        }
        assert_eq!(of_runtime(async |_| 0).await, None);
    }

    #[test]
    fn bytes_are_told_as_users_write_them() {
        for text in [
            "512Mi", "1536Mi", "2Gi", "4Ti", "500M", "1G", "100k", "123", "0",
        ] {
            let bytes = Quantity(text.into()).bytes().unwrap();
            assert_eq!(quantity(u64::try_from(bytes).unwrap()), text);
        }
    }

    #[test]
    fn resources_become_properties_of_the_scope() {
        let quantity = |text: &str| Some(Quantity(text.into()));
        let resources = Resources {
            cpu_request: quantity("250m"),
            cpu_limit: quantity("1500m"),
            memory_request: quantity("64Mi"),
            memory_limit: quantity("1Gi"),
        };
        assert_eq!(
            scope(&resources).unwrap(),
            ScopeLimits {
                cpu_quota: Some(1_500_000),
                cpu_weight: Some(10),
                memory_max: Some(1 << 30),
                memory_low: Some(64 << 20),
                stop_timeout: None,
            }
        );
        assert_eq!(
            scope(&Resources::default()).unwrap(),
            ScopeLimits::default()
        );
    }
}
