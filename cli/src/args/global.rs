//! Flags that every command has: those of kubectl about the connection, and those about the output.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use skyhook_crds::duration::GoDuration;

use crate::output::Format;

/// Flags that every command has.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Form of the output: table, json, yaml or wide.
    #[arg(short, long, global = true, default_value = "table")]
    pub output: String,
    /// Say more on stderr.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Show what would be done, and do nothing.
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// Namespace of the installation.
    #[arg(short, long, global = true, default_value = "skyhook")]
    pub namespace: String,
    #[command(flatten)]
    pub connection: Connection,
}

impl Global {
    /// The form of the output.
    pub fn format(&self) -> Result<Format, crate::output::InvalidFormat> {
        self.output.parse()
    }
}

/// kubectl's flags about the connection.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection, as for kubectl")]
pub struct Connection {
    /// Path of the kubeconfig file.
    #[arg(long, global = true, hide_short_help = true)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context.
    #[arg(long, global = true, hide_short_help = true)]
    pub context: Option<String>,
    /// The kubeconfig's cluster.
    #[arg(long, global = true, hide_short_help = true)]
    pub cluster: Option<String>,
    /// The kubeconfig's user.
    #[arg(long, global = true, hide_short_help = true)]
    pub user: Option<String>,
    /// Address of the API server.
    #[arg(short, long, global = true, hide_short_help = true)]
    pub server: Option<String>,
    /// Bearer token.
    #[arg(long, global = true, hide_short_help = true)]
    pub token: Option<String>,
    /// File with the certificate authority of the API server.
    #[arg(long, global = true, hide_short_help = true)]
    pub certificate_authority: Option<PathBuf>,
    /// File with the client certificate.
    #[arg(long, global = true, hide_short_help = true)]
    pub client_certificate: Option<String>,
    /// File with the key of the client certificate.
    #[arg(long, global = true, hide_short_help = true)]
    pub client_key: Option<String>,
    /// Do not check the API server's certificate.
    #[arg(long, global = true, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub insecure_skip_tls_verify: Option<bool>,
    /// Name that the API server's certificate has to be for.
    #[arg(long, global = true, hide_short_help = true)]
    pub tls_server_name: Option<String>,
    /// How long one request may take, for example 30s; 0 is for ever.
    #[arg(long, global = true, hide_short_help = true, value_parser = request_timeout)]
    pub request_timeout: Option<Duration>,
    /// Act as this user.
    #[arg(long = "as", global = true, hide_short_help = true)]
    pub as_user: Option<String>,
    /// Act as a member of this group; any number of times.
    #[arg(long, global = true, hide_short_help = true)]
    pub as_group: Vec<String>,
    /// Act as the user with this UID.
    #[arg(long, global = true, hide_short_help = true)]
    pub as_uid: Option<String>,
    /// Has no effect: nothing is compressed.
    #[arg(long, global = true, hide_short_help = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub disable_compression: Option<bool>,
    /// Has no effect: nothing is cached.
    #[arg(long, global = true, hide_short_help = true)]
    pub cache_dir: Option<PathBuf>,
}

/// A duration as Go writes it.
pub(super) fn duration(text: &str) -> Result<Duration, skyhook_crds::duration::InvalidDuration> {
    GoDuration(text.to_owned()).value()
}

/// The same, or a number of seconds, as kubectl takes it.
fn request_timeout(text: &str) -> Result<Duration, skyhook_crds::duration::InvalidDuration> {
    text.parse()
        .map(Duration::from_secs)
        .or_else(|_| duration(text))
}
