//! Flags about the disk and the time that images may take.

use std::time::Duration;

use clap::Args;
use skyhook_crds::quantity::Quantity;
use skyhook_oci::{Limits, PullerConfig, Room, StoreConfig};

/// How much of the host's disk package images may take, and when a download counts as stalled.
#[derive(Args, Debug, Clone, PartialEq, Eq)]
pub struct ImageArgs {
    /// Size of the store of images, as a Kubernetes quantity. Images that no installed package needs are removed when
    /// the store is larger, the least recently used ones first.
    #[arg(long, env = "IMAGE_STORE_MAX_SIZE", value_parser = size, default_value = "4Gi")]
    pub image_store_max_size: u64,
    /// Images that no installed package needs are removed after so many hours without use. When it is unset, their age
    /// does not matter.
    #[arg(long, env = "IMAGE_MAX_UNUSED_HOURS")]
    pub image_max_unused_hours: Option<u64>,
    /// Layers that were downloaded in part are removed after so many hours without a pull that continues them.
    #[arg(long, env = "PARTIAL_LAYER_MAX_HOURS", default_value_t = 168)]
    pub partial_layer_max_hours: u64,
    /// Images that no installed package needs are removed while less than this part of the file system of the state
    /// directory is free, in percent, and also less than --image-min-free-size.
    #[arg(long, env = "IMAGE_MIN_FREE_PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_min_free_percent: u64,
    /// This much free space is enough on a large disk, as a Kubernetes quantity.
    #[arg(long, env = "IMAGE_MIN_FREE_SIZE", value_parser = size, default_value = "20Gi")]
    pub image_min_free_size: u64,
    /// A pull fails at its beginning if it would leave less free space than this, as a Kubernetes quantity. On a small
    /// disk, 5 % of its size are enough.
    #[arg(long, env = "PULL_MIN_FREE_SIZE", value_parser = size, default_value = "256Mi")]
    pub pull_min_free_size: u64,
    /// Largest image that is pulled: the size of all its layers in the registry, as a Kubernetes quantity.
    #[arg(long, env = "IMAGE_MAX_SIZE", value_parser = size, default_value = "8Gi")]
    pub image_max_size: u64,
    /// A download has stalled when less than --pull-stall-size arrives within so many seconds. It is then continued
    /// with a new connection. A pull as a whole may take any time.
    #[arg(long, env = "PULL_STALL_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub pull_stall_seconds: u64,
    /// See --pull-stall-seconds, as a Kubernetes quantity.
    #[arg(long, env = "PULL_STALL_SIZE", value_parser = size, default_value = "16Ki")]
    pub pull_stall_size: u64,
    /// How many layers of an image are downloaded at the same time.
    #[arg(long, env = "PULL_PARALLEL_LAYERS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub pull_parallel_layers: u64,
}

impl Default for ImageArgs {
    /// The values that the flags have when nobody sets them.
    fn default() -> Self {
        let (store, puller) = (StoreConfig::default(), PullerConfig::default());
        Self {
            image_store_max_size: store.max_bytes,
            image_max_unused_hours: store.max_unused.map(hours),
            partial_layer_max_hours: hours(store.max_partial),
            image_min_free_percent: store.room.percent,
            image_min_free_size: store.room.bytes,
            pull_min_free_size: store.room.after_pull,
            image_max_size: store.limits.image_bytes,
            pull_stall_seconds: puller.timeouts.slow_window.as_secs(),
            pull_stall_size: puller.timeouts.slow_bytes,
            pull_parallel_layers: puller.parallel_layers as u64,
        }
    }
}

impl ImageArgs {
    /// The settings of the store.
    #[must_use]
    pub fn store(&self) -> StoreConfig {
        let of_hours = |hours: u64| Duration::from_secs(hours.saturating_mul(3600));
        StoreConfig {
            limits: Limits {
                image_bytes: self.image_max_size,
                ..Limits::default()
            },
            max_bytes: self.image_store_max_size,
            max_unused: self.image_max_unused_hours.map(of_hours),
            max_partial: of_hours(self.partial_layer_max_hours),
            room: Room {
                percent: self.image_min_free_percent,
                bytes: self.image_min_free_size,
                after_pull: self.pull_min_free_size,
            },
            ..StoreConfig::default()
        }
    }

    /// Completes the settings of the puller.
    #[must_use]
    pub fn puller(&self, mut config: PullerConfig) -> PullerConfig {
        let stall = Duration::from_secs(self.pull_stall_seconds);
        config.timeouts.slow_window = stall;
        config.timeouts.read = stall;
        config.timeouts.slow_bytes = self.pull_stall_size;
        config.parallel_layers = usize::try_from(self.pull_parallel_layers).unwrap_or(1);
        config
    }
}

fn hours(duration: Duration) -> u64 {
    duration.as_secs() / 3600
}

fn size(text: &str) -> Result<u64, String> {
    let bytes = Quantity(text.to_owned()).bytes();
    let bytes = bytes.map_err(|error| error.to_string())?;
    u64::try_from(bytes).map_err(|_| format!("{text} is not a size that a disk can have"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::config::{Cli, Command};

    fn parse(flags: &[&str]) -> Result<ImageArgs, clap::Error> {
        let cli =
            Cli::try_parse_from([&["skyhook-agent", "run", "--node-name=n"], flags].concat())?;
        let Command::Run(args) = cli.command else {
            panic!("it is run");
        };
        Ok(args.images)
    }

    #[test]
    fn every_flag_reaches_the_store_or_the_puller() {
        assert_eq!(parse(&[]).unwrap(), ImageArgs::default());
        assert_eq!(ImageArgs::default().store(), StoreConfig::default());
        let args = parse(&[
            "--image-store-max-size=1Gi",
            "--image-max-unused-hours=48",
            "--partial-layer-max-hours=24",
            "--image-min-free-percent=0",
            "--image-min-free-size=5G",
            "--pull-min-free-size=1Mi",
            "--image-max-size=100Mi",
            "--pull-stall-seconds=300",
            "--pull-stall-size=1",
            "--pull-parallel-layers=1",
        ])
        .unwrap();
        let want = StoreConfig {
            limits: Limits {
                image_bytes: 100 << 20,
                ..Limits::default()
            },
            max_bytes: 1 << 30,
            max_unused: Some(Duration::from_secs(48 * 3600)),
            max_partial: Duration::from_secs(24 * 3600),
            room: Room {
                percent: 0,
                bytes: 5_000_000_000,
                after_pull: 1 << 20,
            },
            ..StoreConfig::default()
        };
        assert_eq!(args.store(), want);
        let puller = args.puller(PullerConfig::default());
        assert_eq!(puller.timeouts.slow_window, Duration::from_secs(300));
        assert_eq!(puller.timeouts.read, Duration::from_secs(300));
        assert_eq!((puller.timeouts.slow_bytes, puller.parallel_layers), (1, 1));
    }

    #[test]
    fn wrong_values_are_refused_by_the_name_of_their_flag() {
        for (flag, value, want) in [
            (
                "--image-store-max-size",
                "much",
                "not a Kubernetes quantity",
            ),
            ("--image-store-max-size", "-1Gi", "not a size"),
            ("--image-min-free-percent", "101", "101 is not in 0..=100"),
            ("--pull-stall-seconds", "0", "0 is not in 1.."),
            ("--pull-parallel-layers", "0", "0 is not in 1..=64"),
        ] {
            let flag = format!("{flag}={value}");
            let error = parse(&[&flag]).unwrap_err().to_string();
            assert!(error.contains(want), "{flag}: {error}");
        }
    }
}
