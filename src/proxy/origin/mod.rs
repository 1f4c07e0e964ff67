//! Origins: which address next, and a connection to it.

pub mod balance;
pub mod connect;

pub use connect::{Origins, Unreachable, Upstream};
