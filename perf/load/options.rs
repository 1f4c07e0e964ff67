//! The command line of the load generator, and what does not go together in it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::common::{Failure, HOSTS};

/// What is asked of the server again and again.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Connect, full handshake, one GET, close.
    Full,
    /// The same with a resumed handshake; what did not resume is counted.
    Resumed,
    /// GETs of `--path` on connections that stay open.
    Download,
    /// POSTs of `--bytes` on connections that stay open.
    Upload,
    /// Open `--count` connections, one GET each, and hold them.
    Idle,
}

/// The protocol version offered; one only, so that a run never mixes them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Version {
    #[value(name = "1.2")]
    Tls12,
    #[value(name = "1.3")]
    Tls13,
}

/// Load for a TLS server.
#[derive(Parser)]
pub struct Options {
    /// What to do.
    #[arg(value_enum)]
    pub work: Work,
    /// The server's address.
    #[arg(long)]
    pub connect: SocketAddr,
    /// The directory `perf-pki` wrote.
    #[arg(long)]
    pub pki: PathBuf,
    /// The server certificate that is expected: p256 or rsa.
    #[arg(long, default_value = "p256", value_parser = ["p256", "rsa"])]
    pub key: String,
    /// How many hostnames to walk over.
    #[arg(long, default_value_t = 1)]
    pub hosts: usize,
    /// Present each hostname's client certificate.
    #[arg(long)]
    pub mutual: bool,
    /// TLS version.
    #[arg(long, value_enum, default_value = "1.3")]
    pub tls: Version,
    /// How many connections are in progress at once.
    #[arg(long, default_value_t = 32)]
    pub concurrency: usize,
    /// How long to run, in seconds (idle without `--gate`: how long to hold).
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Operations after which to stop although time is left (idle: connections to open).
    #[arg(long)]
    pub count: Option<u64>,
    /// The path that is requested.
    #[arg(long, default_value = "/1k")]
    pub path: String,
    /// Size of an upload, in bytes.
    #[arg(long, default_value_t = 10_000_000)]
    pub bytes: u64,
    /// Warm up, print `{"ready":true}`, wait for a line on stdin, then measure.
    #[arg(long)]
    pub gate: bool,
}

impl Options {
    /// The options, or what is wrong with them.
    ///
    /// # Errors
    /// A value out of range, in words for the one who typed it.
    pub fn checked(self) -> Result<Self, Failure> {
        if !(1..=HOSTS).contains(&self.hosts) {
            return Err(format!("--hosts must be 1 to {HOSTS}").into());
        }
        if self.concurrency == 0 {
            return Err("--concurrency must be at least 1".into());
        }
        if !(self.seconds.is_finite() && self.seconds > 0.0) {
            return Err("--seconds must be more than 0".into());
        }
        if self.work == Work::Idle && self.count.is_none() {
            return Err("idle needs --count, the number of connections".into());
        }
        Ok(self)
    }

    /// How long the measured part runs.
    pub fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}
