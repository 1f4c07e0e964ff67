//! What the cases stand on: a PKI with every fault, the real binary under a configuration, clients that attack exactly,
//! origins that misbehave on demand, and waits that are bounded.
//!
//! Nothing here sleeps to let something happen: [`wait::until`] asks again and again until its bound and then fails with
//! what it last saw. Every socket has a time limit.

pub mod client;
pub mod clienthello;
pub mod config;
pub mod edge;
pub mod events;
pub mod h2_origin;
pub mod haproxy;
pub mod http;
pub mod http2;
pub mod http2_frames;
pub mod metrics;
pub mod nginx;
pub mod origin;
pub mod payload;
pub mod pki;
pub mod process;
pub mod proxy_header;
pub mod session;
pub mod tickets;
pub mod tls_origin;
pub mod wait;
pub mod websocket;

pub use client::{Client, Tls};
pub use config::{Auth, Settings};
pub use edge::Edge;
pub use origin::Origin;
pub use pki::{Authority, Identity, Validity};
pub use session::{End, Session};

use std::time::Duration;

/// The bound on anything that should happen at once, on a machine whose two cores are busy with other tests.
pub const SOON: Duration = Duration::from_secs(10);

/// Acme's hostname, in the cases that need only one or two customers.
pub const ACME: &str = "pay.acme.test";
/// Globex' hostname.
pub const GLOBEX: &str = "api.globex.test";

/// The authorities of a small world: who signs the servers, and whom two customers trust.
pub struct World {
    pub servers: Authority,
    pub acme: Authority,
    pub globex: Authority,
}

impl World {
    pub fn new() -> Self {
        Self {
            servers: Authority::new("Test Servers CA"),
            acme: Authority::new("Acme Clients CA"),
            globex: Authority::new("Globex Clients CA"),
        }
    }

    /// The settings of an edge that serves nothing yet.
    pub fn settings(&self) -> Settings {
        Settings::new()
    }

    /// A client that trusts this world's servers and has no certificate.
    pub fn client(&self) -> Client {
        Client::new(&self.servers)
    }

    /// A client with a certificate of Acme's.
    pub fn acme_client(&self, common_name: &str) -> Client {
        self.client().with_identity(self.acme.leaf(common_name).issue())
    }

    /// A client with a certificate of Globex'.
    pub fn globex_client(&self, common_name: &str) -> Client {
        self.client().with_identity(self.globex.leaf(common_name).issue())
    }
}
