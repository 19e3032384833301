//! Harness for tests, demo and benchmarks against the real thing: a real control plane, real hosts
//! with systemd, a real registry. Which file to open:
//!
//! - [`run`], [`process`]: nothing that a run makes survives it, whatever way it ends
//! - [`assets`], [`controlplane`]: etcd, kube-apiserver and their friends; request counters
//! - [`network`]: one wire per host, so that it can be cut
//! - [`machine`]: what a computer of the harness can do; [`rootfs`], [`host`]: systemd hosts: boot, reboot,
//!   power cut, freeze; [`vm`]: virtual machines, which have a kernel of their own
//! - [`kubelet`], [`images`]: hosts with containerd and a real kubelet, and our images for them
//! - [`chart`], [`real`]: helm, and a cluster that runs the chart on such hosts
//! - [`node`]: the kubelet's part: Node objects that say what is true of the host
//! - [`programs`]: our two programs' command lines; [`agent`], [`coordinator`]: running them
//! - [`registry`]: package folders to images in a registry; [`site`]: private ones, a mirror and a proxy
//! - [`install`]: CRDs, RBAC and namespace
//! - [`cluster`]: all of the above in one call
//! - [`record`]: what a watch tells of one kind; [`cordons`]: which nodes were cordoned when;
//!   [`crash`]: death right after the agent's `n`th write of its journal
//! - [`rollout`]: apply a Skyhook, wait for it, record every grant
//! - [`wait`]: ask again until it is so
//! - [`source`]: where the checkout is; [`skip`]: what a test says when it cannot run
#![expect(clippy::disallowed_methods, reason = "the harness is shell throughout")]

pub mod agent;
pub mod assets;
pub mod chart;
pub mod cluster;
pub mod controlplane;
pub mod coordinator;
pub mod cordons;
pub mod crash;
pub mod host;
pub mod images;
pub mod install;
pub mod kubelet;
pub mod machine;
pub mod network;
pub mod node;
pub mod process;
pub mod programs;
pub mod real;
pub mod record;
pub mod registry;
pub mod rollout;
pub mod rootfs;
pub mod run;
pub mod site;
pub mod skip;
pub mod source;
pub mod vm;
pub mod wait;
