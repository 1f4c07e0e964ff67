//! Hostward: a TLS terminator for SaaS providers.
//!
//! The map of this house; ARCHITECTURE.md tells why it is built this way.
//!
//! | room | what it holds |
//! |---|---|
//! | `cli` | one file per subcommand |
//! | `config` | the TOML file: types, loading, checking |
//! | `registry` | hostname records, CA sets, origins; lookup |
//! | `policy` | refusals, verdicts, identity, rules: pure functions |
//! | `ring` | io_uring: driver, executor, buffers, timers, sockets, mailbox |
//! | `tls` | ClientHello, tenants, verification, tickets, identity, the stream |
//! | `proxy` | the tunnel to the origin |
//! | `worker` | one core: accept, cache, admission, session |
//! | `control` | reload, hand-over, signals, admin, name resolution |
//! | `telemetry` | counters, histograms, log, metrics text |
//! | `sys` | affinity, limits, inherited descriptors: the few calls no crate wraps |

pub mod cli;
pub mod config;
pub mod control;
pub mod policy;
pub mod proxy;
pub mod registry;
pub mod ring;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod worker;
