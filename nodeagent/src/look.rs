//! Commands that show what is on the host, beside a running agent: they take no lock, write nothing, and read files that
//! an agent or a step may write at the same time.

pub mod logs;
pub mod show;
