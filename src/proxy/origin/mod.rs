//! Origins: which address next, a connection to it, and the connections kept for the next request.

pub mod balance;
pub mod connect;
pub mod pool;

pub use connect::{Lease, Origins, Unreachable, Upstream};
