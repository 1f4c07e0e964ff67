//! The admin server: metrics and health over HTTP/1.1 on `admin.listen`, the same and the commands on `admin.socket`.
//!
//! It knows no state: each request becomes an [`Ask`] that the control loop answers.

pub mod client;
mod server;
mod socket;

use serde_json::Value;
use tokio::sync::oneshot;

pub use server::{Access, Listener, serve};
pub use socket::{OwnSocket, bind_socket};

/// What a reload came to.
pub type ReloadResult = Result<Reloaded, Vec<String>>;

/// A reload that took effect on every worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reloaded {
    pub generation: u64,
    /// What is worth knowing about the new configuration.
    pub warnings: Vec<String>,
}

/// What the admin server asks of the control loop.
#[derive(Debug)]
pub enum Ask {
    /// The metrics text.
    Metrics(oneshot::Sender<String>),
    /// Whether clients are served; if not, why.
    Ready(oneshot::Sender<Result<(), String>>),
    /// Everything `hostward status` shows.
    Status(oneshot::Sender<Value>),
    /// Reads the configuration again; answered when it is in force everywhere, or with the problems.
    Reload(oneshot::Sender<ReloadResult>),
    /// Stops accepting, lets connections end, exits; answered at once.
    Drain(oneshot::Sender<()>),
}
