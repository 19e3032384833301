//! The limits of the steps: those that a node would set.

use std::time::Duration;

use skyhook_crds::Package;
use skyhook_crds::package::Resources;
use skyhook_crds::quantity::Quantity;

use crate::config::LocalRunArgs;
use crate::host::limits;
use crate::host::systemd::{Bus, ScopeLimits};
use crate::machine::attempts::StepLimit;
use crate::supervise::ProcessLimit;

/// Limits of all steps of a run.
#[derive(Debug)]
pub(super) struct Limits {
    pub(super) scope: ScopeLimits,
    pub(super) process: Vec<ProcessLimit>,
    /// CPU and memory. `None`: nothing here can limit them, or nobody wants it.
    resources: Option<Resources>,
    why_none: &'static str,
    step: Option<Duration>,
    stage: Option<Duration>,
}

/// What the chart gives packages without resources of their own.
fn usual() -> Resources {
    let quantity = |text: &str| Some(Quantity(text.to_owned()));
    Resources {
        cpu_request: quantity("250m"),
        cpu_limit: quantity("500m"),
        memory_request: quantity("256Mi"),
        memory_limit: quantity("512Mi"),
    }
}

impl Limits {
    /// `bus`: systemd, which limits CPU and memory, and has the rlimits of the container runtime.
    pub(super) async fn of(
        args: &LocalRunArgs,
        package: &Package,
        bus: Option<&Bus>,
    ) -> anyhow::Result<Self> {
        let given = package.resources.clone().unwrap_or_else(usual);
        let process = match bus {
            Some(bus) => limits::process(bus).await,
            None => Vec::new(),
        };
        let why_none = match (bus, args.no_limits) {
            (_, true) => "--no-limits",
            (None, false) => "--root is given, or there is no system bus",
            (Some(_), false) => "",
        };
        let resources = (bus.is_some() && !args.no_limits).then_some(given);
        let stage = package.stage_timeout.as_ref();
        let stage = stage
            .map(skyhook_crds::duration::GoDuration::value)
            .transpose()?;
        Ok(Self {
            scope: limits::scope(&resources.clone().unwrap_or_default())?,
            process,
            resources,
            why_none,
            step: args.step_timeout_seconds.map(Duration::from_secs),
            stage: stage.filter(|stage| !stage.is_zero()),
        })
    }

    /// The limits of CPU and memory in words.
    pub(super) fn describe(&self) -> String {
        let Some(resources) = &self.resources else {
            return format!("steps have no limits of CPU and memory: {}", self.why_none);
        };
        let text = |quantity: &Option<Quantity>| {
            quantity
                .as_ref()
                .map_or("any".to_owned(), |quantity| quantity.0.clone())
        };
        let (cpu, memory) = (text(&resources.cpu_limit), text(&resources.memory_limit));
        format!("limits of each step: {cpu} CPU, {memory} memory")
    }

    /// What limits the time of the next step of a stage whose earlier steps ran for `spent`.
    pub(super) fn time(&self, spent: Duration) -> Option<StepLimit> {
        let stage = self.stage.map(|whole| StepLimit::Stage {
            left: whole.saturating_sub(spent),
            whole,
        });
        let step = self.step.map(StepLimit::Step);
        step.into_iter()
            .chain(stage)
            .min_by_key(|limit| limit.duration())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use skyhook_crds::duration::GoDuration;

    use super::*;
    use crate::config::{Cli, Command};

    fn args(more: &[&str]) -> LocalRunArgs {
        let words = ["skyhook-agent", "local-run", "."];
        let command = Cli::parse_from(words.iter().chain(more)).command;
        let Command::LocalRun(args) = command else {
            panic!("{command:?}");
        };
        *args
    }

    async fn limits(more: &[&str], stage: Option<&str>) -> Limits {
        let package = Package {
            stage_timeout: stage.map(|text| GoDuration(text.to_owned())),
            ..Package::default()
        };
        let bus = Bus::of(&skyhook_oci::Root::open("/").unwrap());
        Limits::of(&args(more), &package, Some(&bus)).await.unwrap()
    }

    #[tokio::test]
    async fn a_package_without_resources_has_those_of_the_chart() {
        let given = limits(&[], None).await;
        assert_eq!(
            given.describe(),
            "limits of each step: 500m CPU, 512Mi memory"
        );
        assert_eq!(given.scope.memory_max, Some(512 << 20));
        assert_eq!(given.scope.cpu_quota, Some(500_000));
        let none = limits(&["--no-limits"], None).await;
        assert_eq!(none.scope, ScopeLimits::default());
        assert_eq!(
            none.describe(),
            "steps have no limits of CPU and memory: --no-limits"
        );
    }

    #[tokio::test]
    async fn a_step_has_what_earlier_ones_have_left_of_the_stage() {
        let seconds = Duration::from_secs;
        let both = limits(&["--step-timeout-seconds", "90"], Some("2m")).await;
        assert_eq!(both.time(seconds(0)), Some(StepLimit::Step(seconds(90))));
        let left = StepLimit::Stage {
            left: seconds(20),
            whole: seconds(120),
        };
        assert_eq!(both.time(seconds(100)), Some(left));
        assert_eq!(limits(&[], Some("0s")).await.time(seconds(9)), None);
    }
}
