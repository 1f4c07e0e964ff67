//! `perf-baseline`: the TLS terminator any engineer writes in an hour, and the bar Hostward has to clear.
//!
//! tokio and tokio-rustls on one thread: accept, choose a `ServerConfig` by SNI, handshake, connect to the origin, copy
//! bytes both ways. It is decent on purpose: aws-lc-rs, mimalloc, `TCP_NODELAY` on both sides, tickets, a client verifier
//! of its own per hostname. What it leaves out (limits, timeouts, safe tickets across hostnames, metrics) only makes it
//! cheaper, so a comparison against it flatters nobody.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
mod common;
mod hosts;
mod proxy;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

use common::Failure;
use hosts::{Hosts, KeyKind};

// The allocator Hostward uses too, so that the comparison is between designs and not between allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A minimal tokio + tokio-rustls bytes proxy.
#[derive(Parser)]
struct Options {
    /// Where clients connect.
    #[arg(long)]
    listen: SocketAddr,
    /// Where decrypted bytes go: one new connection per client.
    #[arg(long)]
    origin: SocketAddr,
    /// The directory `perf-pki` wrote.
    #[arg(long)]
    pki: PathBuf,
    /// The server certificate to present.
    #[arg(long, value_enum, default_value = "p256")]
    key: KeyKind,
    /// Demand a client certificate under the hostname's own CA.
    #[arg(long)]
    mutual: bool,
    /// Size of the copy buffer of each direction, in bytes. The default is tokio's own.
    #[arg(long, default_value_t = 8 * 1024)]
    buffer_bytes: usize,
}

fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let hosts = Hosts::load(&options.pki, options.key, options.mutual)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(proxy::serve(options.listen, options.origin, hosts, options.buffer_bytes))
}
