//! Who is at the other end of a connection.
//!
//! The one place that knows: rules, headers, logs and the origin are told what stands here, and nobody else asks the
//! socket. It is asked once, when the connection begins: one that was reset does not know its peer any more.
//!
//! Behind a balancer that speaks the PROXY protocol (`server.proxy_protocol_from`) the socket's peer is the balancer; the
//! client is whom its header names. Such a peer must send one, and is refused without: what it forwards would otherwise be
//! taken for its own. From everybody else a header is as malformed as any other bytes that are not TLS or HTTP.

use std::net::{IpAddr, SocketAddr};

use crate::proxy::proxy_protocol::read::{self, Announced, Told, Unread, Version};
use crate::ring::Socket;
use crate::telemetry::counters::{Counter, ProxyHeader, Shard};

use super::WorkerConfig;

/// The other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Remote {
    /// The client's address; `None`: it was gone at once.
    pub client: Option<SocketAddr>,
    /// What a PROXY header told; `None` without one.
    pub announced: Option<Box<Announcement>>,
}

/// What a PROXY header told, and who sent it.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// The balancer.
    pub by: SocketAddr,
    /// The address the client connected to.
    pub destination: Option<SocketAddr>,
    /// The id the balancer gave the connection.
    pub unique_id: Option<Box<[u8]>>,
    what: What,
}

/// Whom [`Remote::client`] names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    /// The client.
    Client,
    /// The balancer, in place of a client of which it does not tell.
    Unknown,
    /// The balancer, which asks for itself.
    Local,
}

/// Why a connection has no header, where one is required.
pub enum Unannounced {
    /// The peer went away.
    Gone,
    /// It is refused, because of this.
    Refused(String),
}

impl Remote {
    /// As the socket has it.
    pub fn of(socket: &Socket) -> Self {
        Self { client: socket.peer_address(), announced: None }
    }

    /// The client's address without its port, as rules look at it.
    pub fn source(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }

    /// The balancer that told who the client is.
    pub fn announced_by(&self) -> Option<SocketAddr> {
        self.announced.as_ref().map(|announced| announced.by)
    }

    /// Whether whoever wrote what comes over this connection is known. Not where a balancer forwards for a client without
    /// telling which: its own address then says nothing of whose word it is.
    pub fn is_known(&self) -> bool {
        self.announced.as_ref().is_none_or(|announced| announced.what != What::Unknown)
    }

    /// Whether it may be a balancer's look at whether we live: no client is named. Version 1 has no other word for that than
    /// UNKNOWN.
    pub fn may_be_health_check(&self) -> bool {
        self.announced.as_ref().is_some_and(|announced| announced.what != What::Client)
    }

    /// The peer, if it must begin with a PROXY header.
    ///
    /// # Errors
    ///
    /// [`Unannounced::Gone`]: it is not known who it was, and so not how to take what it said before it went. Balancers look
    /// whether we live by a header and a reset; their addresses are gone before we accept.
    pub fn must_announce(&self, config: &WorkerConfig) -> Result<Option<SocketAddr>, Unannounced> {
        // One branch, where nobody must.
        if config.proxy_protocol_from.is_empty() {
            return Ok(None);
        }
        let peer = self.client.ok_or(Unannounced::Gone)?;
        let ip = peer.ip().to_canonical();
        Ok(Some(peer).filter(|_| config.proxy_protocol_from.iter().any(|net| net.contains(&ip))))
    }

    fn announced(by: SocketAddr, header: Announced) -> Self {
        let (client, destination, what) = match header.told {
            Told::Client(ends) => (ends.source, Some(ends.destination), What::Client),
            Told::Unknown => (by, None, What::Unknown),
            Told::Local => (by, None, What::Local),
        };
        let announced = Announcement { by, destination, unique_id: header.unique_id, what };
        Self { client: Some(client), announced: Some(Box::new(announced)) }
    }
}

/// Reads the PROXY header of a peer that must send one. Returns who is behind it, and what came after it.
///
/// At most [`read::READ_BYTES_MAX`] bytes and one receive are held meanwhile; `holds` is told how many, whenever more have to
/// come. The caller bounds the time.
pub async fn read_header(
    socket: &Socket,
    by: SocketAddr,
    shard: &Shard,
    holds: impl Fn(usize),
) -> Result<(Remote, Vec<u8>), Unannounced> {
    let mut received = Vec::new();
    loop {
        match socket.receive(|chunk| received.extend_from_slice(chunk)).await {
            Ok(Some(())) => {}
            Ok(None) | Err(_) => return Err(Unannounced::Gone),
        }
        let refused = |result, detail: String| {
            shard.count(Counter::ProxyHeader(result));
            Err(Unannounced::Refused(detail))
        };
        match read::read(&received) {
            Ok((header, bytes)) => {
                shard.count(Counter::ProxyHeader(match (&header.told, header.version) {
                    (Told::Local, _) => ProxyHeader::Local,
                    (Told::Unknown, _) => ProxyHeader::Unknown,
                    (Told::Client(_), Version::V1) => ProxyHeader::V1,
                    (Told::Client(_), Version::V2) => ProxyHeader::V2,
                }));
                received.drain(..bytes);
                return Ok((Remote::announced(by, header), received));
            }
            Err(Unread::Incomplete) => holds(received.capacity()),
            Err(Unread::Missing) => {
                let detail = "no PROXY header, and server.proxy_protocol_from requires one from this peer";
                return refused(ProxyHeader::Missing, detail.into());
            }
            Err(Unread::Malformed(what)) => {
                return refused(ProxyHeader::Malformed, format!("a malformed PROXY header: {what}"));
            }
        }
    }
}

/// Says of bytes that should have been a client's and begin with a PROXY header what is wrong with that.
pub fn misplaced_header(remote: &Remote, bytes: &[u8], shard: &Shard) -> Option<String> {
    if !read::is_header(bytes) {
        return None;
    }
    shard.count(Counter::ProxyHeader(ProxyHeader::Misplaced));
    Some(match remote.announced {
        None => "a PROXY header from a peer that server.proxy_protocol_from does not list".into(),
        Some(_) => "a second PROXY header".into(),
    })
}
