//! TLS and identity: the ClientHello, tenants, verification, tickets, the stream.
//!
//! rustls stays behind this room. A handshake is a value that is fed bytes and says what it needs next; nothing here does
//! I/O.
#![forbid(unsafe_code)]

pub mod connection;
pub mod failure;
pub mod hello;
pub mod identity;
pub mod origin;
pub mod outgoing;
pub mod provider;
mod records;
pub mod scope;
pub mod tenant;
pub mod ticket;
pub mod trace;
pub mod verdicts;
pub mod verify;

#[cfg(test)]
pub(crate) mod tests;

pub use connection::{Connection, Established, Fatal};
pub use outgoing::Outgoing;
pub use provider::Provider;
pub use tenant::{Base, Factory, Options, Tenant};
pub use verdicts::Verdicts;
pub use verify::CHAIN_CERTIFICATES_MAX;
