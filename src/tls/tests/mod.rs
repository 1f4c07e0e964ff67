//! The TLS room by pairs in memory: a rustls client against our [`Connection`](super::Connection), no sockets.
//!
//! `pki` makes certificates and records, `pair` and `client` the two ends; the others are cases, by theme.

mod client;
mod client_auth;
mod forged;
mod pair;
pub(crate) mod pki;
mod selection;
mod tickets;
mod traffic;
mod verify;
