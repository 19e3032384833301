//! Numbers about leases and packages, for metrics. Each lease and each record contributes what was noted when it last
//! changed; a pass only adds up.

pub mod leases;
pub mod packages;
