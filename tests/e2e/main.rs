//! End to end: the real binary against real clients and servers, as small numbered cases.
//!
//! | cases | where | what they attack |
//! |---|---|---|
//! | 001-009 | `selftest` | the harness itself, against a server that is not ours |
//! | 010-019 | `client_auth` | I2: every mode, every faulty certificate, both versions |
//! | 020-039 | `tickets` | I3: resumption never widens access |
//! | 040-054 | `hello` | I1, and first bytes that no TLS library would send |
//! | 055-059 | `records` | records after the handshake that no TLS library would send |
//! | 060-079 | `bytes` | bodies, half-close, cuts, back-pressure |
//! | 080-099 | `churn` | what connections that come and go leave behind |
//! | 100-119 | `reload` | I6 and I10: changes act on what is open, bad ones on nothing |
//! | 120-129 | `drain` | TERM, INT and the deadline |
//! | 130-139 | `limits` | every limit holds, is counted, and lets go again |
//! | 140-159 | `origins` | origins that die, stall, reset; the PROXY header |
//! | 160-169 | `tools` | curl, openssl, wrk, h2load |
//! | 170-179 | `cli` | outputs and exit codes |
//! | 290-309 | `handover` | USR2: a new process takes over, or does not |
//!
//! Everything runs on the loopback network on ports the kernel chooses, needs no privileges, and is bounded in time. A
//! case whose tool is not installed prints a line that begins with SKIPPED.

mod bytes;
mod churn;
mod cli;
mod client_auth;
mod drain;
mod handover;
mod harness;
mod hello;
mod limits;
mod origins;
mod records;
mod reload;
mod selftest;
mod tickets;
mod tools;
