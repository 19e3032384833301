//! A host whose registries need what only the host is configured with.

use anyhow::{Context, Result};
use skyhook_integration::cluster::{Cluster, Setup};
use skyhook_integration::site::{self, Site};
use skyhook_integration::skip::hosts_can_run;
use skyhook_integration::wait::MINUTE;
use skyhook_testkit::cannot_run;

const TEST: &str = "images_come_from_where_the_host_is_told_to_get_them";

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_where_the_host_is_told_to_get_them() -> Result<()> {
    if !hosts_can_run(TEST).await {
        return Ok(());
    }
    if let Some(missing) = site::missing().await {
        cannot_run(TEST, missing);
        return Ok(());
    }
    let cluster = Cluster::start(Setup::hosts(1)).await?;
    let site = Site::build(&cluster).await?;
    site.roll_out(&cluster, "/usr/bin/containerd", MINUTE)
        .await
        .with_context(|| cluster.logs())
}
