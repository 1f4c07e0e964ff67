//! Who is at the other end of a connection.
//!
//! The one place that knows: rules, headers, logs and the origin are told what stands here, and nobody else asks the
//! socket. It is asked once, when the connection begins: one that was reset does not know its peer any more.

use std::net::{IpAddr, SocketAddr};

use crate::ring::Socket;

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// The client's address; `None`: it was gone at once.
    pub client: Option<SocketAddr>,
}

impl Remote {
    /// As the socket has it.
    pub fn of(socket: &Socket) -> Self {
        Self { client: socket.peer_address() }
    }

    /// The client's address without its port, as rules look at it.
    pub fn source(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }
}
