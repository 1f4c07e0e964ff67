//! Origins: which address next, a connection to it, and the connections kept for the next request.

pub mod balance;
pub mod budget;
pub mod connect;
pub mod http2;
pub mod pool;
pub mod tell;
mod tls;
mod wire;

pub use connect::{Lease, Manner, Origins, Place, Unreachable, Upstream};
pub use wire::Wire;

/// One address of an origin, and what this worker knows of it.
pub type Address = balance::Slot<crate::registry::origins::ResolvedAddress>;
