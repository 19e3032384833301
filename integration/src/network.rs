//! The wire between this machine and its hosts: a bridge with one address for this machine, and a
//! network namespace with a veth pair for each host, so that a host can be cut off.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::process::sh;
use crate::run::{Leftover, Run};

/// A bridge and its subnet, `10.213.<number>.0/24`. It goes away with its run.
#[derive(Debug)]
pub struct Network {
    run: Arc<Run>,
    number: u8,
}

/// One host's end of the wire.
#[derive(Debug, Clone)]
pub struct Link {
    pub address: Ipv4Addr,
    /// Only hosts have it: the wire of a virtual machine ends in its network card.
    netns: String,
    bridge: String,
    veth: String,
}

impl Network {
    /// Takes the first subnet that is free: creating the bridge is what claims it.
    pub async fn create(run: Arc<Run>) -> Result<Self> {
        for number in 1..=250 {
            let bridge = format!("sky{number}");
            if Path::new("/sys/class/net").join(&bridge).exists() {
                continue;
            }
            if sh("ip", ["link", "add", "name", &bridge, "type", "bridge"])
                .await
                .is_err()
            {
                if Path::new("/sys/class/net").join(&bridge).exists() {
                    continue;
                }
                bail!("cannot make a bridge: needs root, CAP_NET_ADMIN and the bridge driver");
            }
            run.record(Leftover::Link(&bridge))?;
            let network = Self { run, number };
            let address = format!("{}/24", network.gateway());
            sh("ip", ["addr", "add", &address, "dev", &bridge]).await?;
            sh("ip", ["link", "set", &bridge, "up"]).await?;
            return Ok(network);
        }
        bail!("250 harness networks exist already: see `ip link show type bridge`")
    }

    /// This machine's address on the bridge: bind servers here, and hosts reach them.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.number, 1)
    }

    /// Unique on this machine while the network exists.
    pub fn name(&self) -> String {
        format!("sky{}", self.number)
    }

    /// Makes the namespace and veth pair of the host with this index, counted from 0.
    pub async fn attach(&self, index: u8) -> Result<Link> {
        let link = self.link(index)?;
        self.run.record(Leftover::Netns(&link.netns))?;
        sh("ip", ["netns", "add", &link.netns]).await?;
        self.run.record(Leftover::Link(&link.veth))?;
        let veth = link.veth.as_str();
        let peer = ["peer", "name", "host0", "netns", link.netns.as_str()];
        sh(
            "ip",
            [
                "link", "add", veth, "type", "veth", peer[0], peer[1], peer[2], peer[3], peer[4],
            ],
        )
        .await?;
        sh("ip", ["link", "set", veth, "master", &link.bridge, "up"]).await?;
        let address = format!("{}/24", link.address);
        let netns = link.netns.as_str();
        sh("ip", ["-n", netns, "addr", "add", &address, "dev", "host0"]).await?;
        sh("ip", ["-n", netns, "link", "set", "host0", "up"]).await?;
        sh("ip", ["-n", netns, "link", "set", "lo", "up"]).await?;
        Ok(link)
    }

    /// Makes the tap device that is the other end of the network card of the virtual machine with
    /// this index, counted from 0.
    pub async fn tap(&self, index: u8) -> Result<Link> {
        let link = self.link(index)?;
        let tap = link.veth.as_str();
        self.run.record(Leftover::Link(tap))?;
        sh("ip", ["tuntap", "add", "dev", tap, "mode", "tap"]).await?;
        sh("ip", ["link", "set", tap, "master", &link.bridge, "up"]).await?;
        Ok(link)
    }

    fn link(&self, index: u8) -> Result<Link> {
        let last = index.checked_add(10).context("a network holds 245 hosts")?;
        let name = format!("{}h{index}", self.name());
        Ok(Link {
            address: Ipv4Addr::new(10, 213, self.number, last),
            netns: name.clone(),
            bridge: self.name(),
            veth: name,
        })
    }
}

impl Link {
    /// The device on this machine.
    pub(crate) fn device(&self) -> &str {
        &self.veth
    }

    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// Packets vanish without a word, as behind a failed switch: neither end sees its link go down.
    pub async fn cut(&self) -> Result<()> {
        sh("ip", ["link", "set", &self.veth, "nomaster"])
            .await
            .map(drop)
    }

    /// Gives the host a default route.
    pub(crate) async fn route_through(&self, gateway: Ipv4Addr) -> Result<()> {
        let (netns, gateway) = (self.netns.as_str(), gateway.to_string());
        sh(
            "ip",
            ["-n", netns, "route", "add", "default", "via", &gateway],
        )
        .await
        .map(drop)
    }

    pub async fn reconnect(&self) -> Result<()> {
        sh("ip", ["link", "set", &self.veth, "master", &self.bridge])
            .await
            .map(drop)
    }

    pub fn is_cut(&self) -> bool {
        !fs::exists(format!("/sys/class/net/{}/master", self.veth)).unwrap_or(false)
    }
}
