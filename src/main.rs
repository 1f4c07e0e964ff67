//! Parses the command line and hands over.

use std::process::ExitCode;

/// Handshakes make many small, short-lived allocations on each worker, and mimalloc keeps them on the worker's own heap.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    hostward::cli::main()
}
