//! What the access log is told of a connection and its requests.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::policy::Verdict;
use crate::proxy::http1::exchange::Facts;
use crate::proxy::tunnel::Traffic;
use crate::telemetry::counters::{Protocol, TunnelEnd};
use crate::telemetry::log::access::{self, Connection, Entry, Origin};

use super::core::Core;
use super::sessions::Session;

/// What is seen of a connection whose bytes are forwarded as they come, for the line at its end.
#[derive(Default)]
pub struct Seen {
    pub traffic: Traffic,
    /// How long connecting to the origin took; `None` if it was not reached.
    pub connect: Cell<Option<Duration>>,
    /// Which of the origin's addresses it was.
    pub address: Cell<Option<SocketAddr>>,
}

/// What all lines of a connection say. Made once for each connection, and only if the log is on.
pub fn connection(core: &Core, session: &Session) -> Arc<Connection> {
    let tls = session.tls.borrow();
    let (tls_version, cipher) = tls.names();
    let verified = session.standing.verdict == Verdict::Success;
    let leaf = tls.peer_certificates().and_then(|chain| chain.first()).filter(|_| verified);
    Arc::new(Connection {
        worker: core.config.index,
        hostname: session.server_name.clone(),
        record: session.tenant.borrow().record.name.as_str().into(),
        tls_version,
        cipher,
        resumed: session.resumed,
        client: session.remote.client,
        via: session.remote.announced_by(),
        unique_id: session.remote.announced.as_ref().and_then(|announced| announced.unique_id.clone()),
        verdict: session.standing.verdict,
        leaf: leaf.map(|leaf| leaf.as_ref().into()),
        text: OnceLock::new(),
    })
}

/// The line of a connection whose bytes were forwarded as they came.
pub fn log_connection(core: &Core, session: &Session, accepted: Instant, seen: Seen, end: TunnelEnd) {
    let origin = Origin {
        name: session.tenant.borrow().record.origin.name.as_str().into(),
        address: seen.address.get(),
        connect: seen.connect.get(),
        response: None,
    };
    core.access.log(Entry {
        connection: connection(core, session),
        protocol: "tcp",
        request: None,
        bytes_in: seen.traffic.in_bytes.get(),
        bytes_out: seen.traffic.out_bytes.get(),
        duration: Instant::now().saturating_duration_since(accepted),
        origin: Some(origin),
        end: Some(end.label()),
    });
}

/// The line of a request, or of the WebSocket it became. Written when this is dropped: at the request's end, or when the
/// connection is ended from outside in the middle of it.
pub struct Line<'a> {
    pub core: &'a Core,
    pub session: &'a Session,
    pub connection: Arc<Connection>,
    pub began: Instant,
    pub protocol: Protocol,
    pub request: access::Request,
    pub facts: Facts,
    /// The request was on its way to its origin.
    pub asked_origin: bool,
    /// How it ended, unless in order.
    pub end: Option<TunnelEnd>,
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let origin = self.asked_origin.then(|| Origin {
            name: self.session.tenant.borrow().record.origin.name.as_str().into(),
            address: self.facts.address,
            connect: self.facts.connect,
            response: self.facts.response,
        });
        let nothing = access::Request::new(b"", b"", b"", b"");
        self.core.access.log(Entry {
            connection: Arc::clone(&self.connection),
            protocol: self.protocol.label(),
            request: Some(std::mem::replace(&mut self.request, nothing)),
            bytes_in: self.facts.in_bytes,
            bytes_out: self.facts.out_bytes,
            duration: Instant::now().saturating_duration_since(self.began),
            origin,
            end: self.end.or(self.session.end.get()).map(TunnelEnd::label),
        });
    }
}
