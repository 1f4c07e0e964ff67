//! One TLS connection to an origin as a value: bytes in, bytes out, plaintext to a sink. No sockets, no clock.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::ServerName;

use super::failure::Failed;
use crate::tls::outgoing::Outgoing;
use crate::tls::records::Records;

/// A handshake, or the connection it became.
pub struct Connection {
    records: Records<UnbufferedClientConnection>,
    server_name: ServerName<'static>,
}

impl Connection {
    pub(super) fn new(
        config: Arc<ClientConfig>,
        server_name: ServerName<'static>,
        alpn: Vec<Vec<u8>>,
    ) -> Result<Self, Failed> {
        let tls = UnbufferedClientConnection::new_with_alpn(config, server_name.clone(), alpn);
        let tls = tls.map_err(|error| Failed::of_tls(&error, &server_name))?;
        Ok(Self { records: Records::new(tls), server_name })
    }

    /// Writes the ClientHello into `out`. A heavy step: it makes the keys of the exchange.
    ///
    /// # Errors
    ///
    /// What rustls says.
    pub fn begin(&mut self, out: &mut Outgoing) -> Result<(), Failed> {
        self.records.begin(out).map_err(|broken| Failed::of(broken, &self.server_name))
    }

    /// Takes bytes from the origin. Plaintext goes to `sink`, what must be sent to `out`.
    ///
    /// During the handshake this is a heavy step.
    ///
    /// # Errors
    ///
    /// [`Failed`]; `out` holds the alert to send before closing.
    pub fn receive(&mut self, bytes: &mut [u8], out: &mut Outgoing, mut sink: impl FnMut(&[u8])) -> Result<(), Failed> {
        let received = self.records.receive(bytes, out, &mut sink, &mut |_| {});
        received.map_err(|broken| Failed::of(broken, &self.server_name))
    }

    /// Encrypts `plaintext` into `out`.
    ///
    /// # Errors
    ///
    /// [`Failed`] when the connection can send no more.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Outgoing) -> Result<(), Failed> {
        self.records.send(plaintext, out).map_err(|broken| Failed::of(broken, &self.server_name))
    }

    /// Says goodbye: a close_notify alert into `out`. Nothing if that cannot be said any more.
    pub fn close(&mut self, out: &mut Outgoing) {
        self.records.close(out);
    }

    /// Whether the handshake still runs.
    pub fn is_handshaking(&self) -> bool {
        self.records.is_handshaking()
    }

    /// Whether the origin has said close_notify: no more plaintext comes.
    pub fn peer_closed(&self) -> bool {
        self.records.peer_closed()
    }

    /// Whether the handshake resumed an earlier session.
    pub fn resumed(&self) -> bool {
        self.records.side.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The negotiated application protocol (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.records.side.alpn_protocol()
    }
}
