//! What the cross-crate tests share. The tests themselves are in `tests/`.

pub mod bench;
pub mod coreagent;
pub mod crash;
pub mod crowd;
pub mod model;
pub mod pace;
pub mod plugin;
pub mod seen;
pub mod sim;
pub mod world;
