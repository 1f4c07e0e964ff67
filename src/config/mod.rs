//! The configuration: from TOML text to a checked, typed [`Config`], or to a [`Report`] that names every fault at once.
//!
//! [`load()`] reads the file and what it includes, checks every key against what this version knows and every value
//! against its range, and resolves origins and duplicate names. It opens configuration files only; certificates, keys and
//! CAs are opened by `control::assemble`, which turns a [`Config`] into what workers serve.
//!
//! | file | what it holds |
//! |---|---|
//! | `types` | the typed configuration, with units, ranges and defaults |
//! | `report` | problems and where they are |
//! | `units` | sizes and durations as people write them |
//! | `reader` | TOML tables read key by key, collecting problems |
//! | `schema` | which keys each table has and what they mean |
//! | `load` | files, includes, and what only shows when all are read |
//!
//! No value of the file is trusted to be harmless to print: one that looks like PEM text is never repeated in a message,
//! since it may be a private key pasted where a path belongs.
#![forbid(unsafe_code)]

mod load;
mod reader;
mod report;
mod schema;
mod types;
mod units;

pub use load::{CONFIG_BYTES_MAX, FILES_MAX, INCLUDE_DEPTH_MAX, load, read};
pub use report::{Place, Problem, Report, Severity};
pub use types::{
    Access, Admin, Cache, CertificateFiles, ClientAuthFiles, Config, Group, Hostname, Limits, Log, LogLevel,
    OriginTlsFiles, Rule, Server, Tls, Workers,
};

#[cfg(test)]
mod tests;
