//! Hostname records, CA sets and origins: what is served, as one immutable snapshot with a generation.
//!
//! The control plane builds a [`Snapshot`]; workers read it without locks and never change it.
#![forbid(unsafe_code)]

pub mod balancing;
pub mod name;
pub mod origins;
pub mod record;
pub mod rewrites;
pub mod snapshot;

pub use name::Name;
pub use record::{
    Ca, CaSet, ClientAuth, ClientAuthMode, HostnameRecord, Mode, Origin, OriginAddress, OriginTls, ProxyProtocol,
    RecordId, Scheme, ServerCertificate, TlsVersion,
};
pub use rewrites::{FieldChanges, Rewrites};
pub use snapshot::{Resolution, Snapshot};
