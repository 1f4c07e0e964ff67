//! `hostward -V`: what this binary is and what it finds on this machine.

use super::say;
use crate::control::Failure;
use crate::tls::Provider;

/// Prints it. A machine without io_uring is told so here too, and it is no failure: this is where people look.
pub fn print() -> Result<(), Failure> {
    say(format_args!("hostward {}", env!("CARGO_PKG_VERSION")));
    say(format_args!("kernel: {}", crate::sys::kernel_release()));
    match crate::ring::probe() {
        Ok(features) => say(format_args!("ring: {features}")),
        Err(unavailable) => say(format_args!("ring: unusable: {unavailable}")),
    }
    say(format_args!("crypto providers: {} (default), {}", Provider::AwsLcRs.name(), Provider::Ring.name()));
    say("kTLS: no");
    Ok(())
}
