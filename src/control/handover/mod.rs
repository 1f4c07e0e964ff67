//! The hand-over: USR2 starts the binary anew, and the new process takes over sockets, ticket keys and the identities of
//! records while the old one serves on. Nothing is given up before the new one serves.
//!
//! ```text
//! old                                            new
//!  | hello, listeners, admin, state, keys, records |   the old one serves as if nothing were
//!  |---------------------------------------------->|
//!  |                                               | reads its configuration, takes over or opens sockets, starts workers
//!  |<-------------------------------------- ready -|   or: failed, and why; or it ends; or a minute passes
//!  |- go ----------------------------------------->|   until here it has accepted nothing: its end costs nobody anything
//!  |                                               | accepts
//!  |<------------------------------------ serving -|   both accept from the same queues
//!  |- over --------------------------------------->|   the old one has told systemd who is main, and drains
//!  |<------------------------------------ reload --|   what the new one reloads, the old one's connections are judged by
//! ```
//!
//! All of it passes over one Unix-domain socket pair, descriptors as ancillary data: the new process inherits no other
//! descriptor, every socket arrives with close-on-exec set, and secrets pass neither environment nor disk. The environment
//! variable [`VARIABLE`] says which descriptor it is.
//!
//! | file | what it holds |
//! |---|---|
//! | `message` | what is said, as bytes |
//! | `channel` | the socket pair |
//! | `program` | which binary is started |
//! | `successor` | the old process's side |
//! | `predecessor` | the new process's side |
//! | `conduct` | what the control loop does about it, on both sides |

mod channel;
mod conduct;
mod message;
mod predecessor;
mod program;
mod successor;

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::listen::Group;
use crate::registry::RecordId;
use crate::tls::ticket::Keyring;

pub use conduct::{AdminTasks, Handover};
pub use predecessor::{Inherited, Predecessor, Word, receive};
pub use program::Program;
pub use successor::{News, Report};

/// Where a new process finds the channel to the old one: `DESCRIPTOR:PID`, where PID is the old one's. A process that has
/// another parent ignores it, and whoever is started by hand-over gets its own: it means nothing to anybody else.
pub const VARIABLE: &str = "HOSTWARD_HANDOVER";

/// Every listening socket of a process.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those for TLS, then those that redirect. A successor knows them by their addresses alone.
    pub groups: Vec<Group>,
    pub admin: Option<AdminAddress>,
    pub socket: Option<AdminSocket>,
}

/// The listener of `admin.listen`.
#[derive(Debug)]
pub struct AdminAddress {
    /// As the configuration says it; its port may be 0.
    pub configured: SocketAddr,
    pub bound: SocketAddr,
    pub listener: TcpListener,
}

/// The listener of `admin.socket`.
#[derive(Debug)]
pub struct AdminSocket {
    pub path: PathBuf,
    pub listener: UnixListener,
}

/// What a successor goes on with, beside sockets.
#[derive(Debug)]
pub struct State {
    pub generation: u64,
    pub keyring: Keyring,
    pub ids: HashMap<String, RecordId>,
}
