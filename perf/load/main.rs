//! `perf-load`: the load generator for what wrk cannot do: client certificates, SNI, tickets, idle connections.
//!
//! One thread, `--concurrency` tasks, each walking round robin over `--hosts` hostnames. Only X25519 and AES-128-GCM are
//! offered, so that every server does the same cryptography. It prints one JSON object with what it did and what it cost
//! itself; the cost of the server is measured by `perf/run`, from outside.
//!
//! With `--gate` it speaks to `perf/run`: after its warm-up (which collects tickets and fills caches) it prints
//! `{"ready":true}` and waits for a line on stdin, so that the warm-up stays outside the measured window.
#![forbid(unsafe_code)]

mod bulk;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod handshakes;
mod http;
mod idle;
mod options;
mod report;

use std::io::{BufRead, Write};

use clap::Parser;
use tokio::task::LocalSet;

use common::Failure;
use options::{Options, Work};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Failure> {
    let options = Options::parse().checked()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let summary = LocalSet::new().block_on(&runtime, async {
        match options.work {
            Work::Full | Work::Resumed => handshakes::run(&options).await,
            Work::Download | Work::Upload => bulk::run(&options).await,
            Work::Idle => idle::run(&options).await,
        }
    })?;
    print_line(&serde_json::to_string(&summary)?)
}

/// Ends the warm-up: tells `perf/run` and waits for its word. Nothing happens without `--gate`.
fn pass_gate(options: &Options) -> Result<(), Failure> {
    if options.gate {
        print_line("{\"ready\":true}")?;
        await_line()?;
    }
    Ok(())
}

/// Blocks the whole program until a line or the end of stdin; nothing else is to run meanwhile.
fn await_line() -> Result<(), Failure> {
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// One line on stdout, out at once although stdout may be a pipe.
fn print_line(line: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
