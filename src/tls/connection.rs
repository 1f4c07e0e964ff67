//! One client's TLS connection as a value: bytes in, bytes out, plaintext to a sink. No sockets, no clock.

use std::rc::Rc;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::{Error, HandshakeKind, ProtocolVersion};

use crate::policy::Refusal;

use super::failure::{alert_sent, detail_of, refusal_of};
use super::outgoing::Outgoing;
use super::records::{Broken, Records};
use super::scope::{self, Standing, Trust};
use super::tenant::Tenant;

/// A connection that has ended with an error. What rustls wanted to tell the peer stands in the outgoing bytes.
#[derive(Debug)]
pub struct Fatal {
    /// The reason, as exact as it is known.
    pub reason: Refusal,
    /// The peer itself gave up, with an alert.
    pub by_peer: bool,
    /// What there is to say beyond the reason, for the log.
    pub detail: Option<String>,
    /// The alert the peer is sent, by its RFC 8446 name; `None`: none, or it is not known which.
    pub alert: Option<&'static str>,
}

impl Fatal {
    /// What is found here and not by rustls: no alert is sent.
    fn silent(detail: &str) -> Self {
        Self { reason: Refusal::ProtocolError, by_peer: false, detail: Some(detail.to_owned()), alert: None }
    }
}

/// A handshake, or the connection it became.
pub struct Connection {
    records: Records<UnbufferedServerConnection>,
    /// Present while the handshake runs.
    trust: Option<Box<Trust>>,
}

/// What a finished handshake established.
pub struct Established {
    pub tenant: Rc<Tenant>,
    pub standing: Standing,
    pub resumed: bool,
    pub version: ProtocolVersion,
    /// What became of the tickets of this handshake, to be counted.
    pub ticket_results: Vec<crate::telemetry::counters::Ticket>,
    /// Whether the client's chain was among those verified before, to be counted; `None` where none was verified.
    pub verdict_result: Option<crate::telemetry::counters::Verified>,
}

impl Connection {
    /// Starts a handshake for the tenant in `trust`.
    ///
    /// # Errors
    ///
    /// What rustls says of the tenant's configuration.
    pub fn new(trust: Box<Trust>) -> Result<Self, Error> {
        let tls = UnbufferedServerConnection::new(Arc::clone(&trust.tenant.config))?;
        Ok(Self { records: Records::new(tls), trust: Some(trust) })
    }

    /// Whether the handshake still runs.
    pub fn is_handshaking(&self) -> bool {
        self.records.is_handshaking()
    }

    /// Whether the client has said close_notify: no more plaintext comes.
    pub fn peer_closed(&self) -> bool {
        self.records.peer_closed()
    }

    /// The client's certificate chain, leaf first, as it sent it in this handshake or the one it resumes.
    pub fn peer_certificates(&self) -> Option<&[rustls_pki_types::CertificateDer<'static>]> {
        self.records.side.peer_certificates()
    }

    /// The negotiated application protocol (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.records.side.alpn_protocol()
    }

    /// The negotiated protocol version, once known.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.records.side.protocol_version()
    }

    /// The protocol version and cipher suite, by name (`TLSv1.3`, `TLS_AES_128_GCM_SHA256`).
    pub fn names(&self) -> (&'static str, String) {
        let version = match self.records.side.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let suite = self
            .records
            .side
            .negotiated_cipher_suite()
            .map_or_else(String::new, |suite| super::provider::suite_name(&suite));
        (version, suite)
    }

    /// What the handshake learned so far about the client: the exact reason of a failure above all.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_deref()
    }

    /// Ends the handshake phase: hands over what was established, and frees what only a handshake needs. `None` while the
    /// handshake still runs, or after this was called.
    pub fn establish(&mut self) -> Option<Established> {
        if self.records.side.is_handshaking() {
            return None;
        }
        let version = self.records.side.protocol_version()?;
        let resumed = self.records.side.handshake_kind()? == HandshakeKind::Resumed;
        let trust = self.trust.take()?;
        let standing = trust.standing(resumed);
        let Trust { tenant, ticket_results, verdict_result, .. } = *trust;
        Some(Established { tenant, standing, resumed, version, ticket_results, verdict_result })
    }

    /// Takes bytes from the client. Plaintext goes to `sink`, what must be sent to `out`.
    ///
    /// During the handshake this is the heavy step.
    ///
    /// # Errors
    ///
    /// [`Fatal`]; `out` holds the alert to send before closing.
    pub fn receive(&mut self, bytes: &mut [u8], out: &mut Outgoing, mut sink: impl FnMut(&[u8])) -> Result<(), Fatal> {
        let records = &mut self.records;
        let mut receive = || {
            // A ticket that opened counts only if rustls resumed with it; if this turned out a full handshake, what the
            // ticket said is forgotten before anything else happens.
            let mut step = |tls: &UnbufferedServerConnection| {
                if tls.handshake_kind() != Some(HandshakeKind::Resumed) {
                    scope::with(|trust| trust.candidate = None);
                }
            };
            let received = records.receive(bytes, out, &mut sink, &mut step);
            received.map_err(|broken| fatal(broken, out.as_slice()))
        };
        match self.trust.take() {
            None => receive(),
            Some(trust) => {
                let (trust, result) = scope::enter(trust, receive);
                self.trust = Some(trust);
                result
            }
        }
    }

    /// How many received bytes wait for more.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.records.waiting_bytes()
    }

    /// Encrypts `plaintext` into `out`.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the connection can send no more.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Outgoing) -> Result<(), Fatal> {
        self.records.send(plaintext, out).map_err(|broken| fatal(broken, &[]))
    }

    /// Says goodbye: a close_notify alert into `out`. Nothing if that cannot be said any more.
    pub fn close(&mut self, out: &mut Outgoing) {
        self.records.close(out);
    }
}

/// What an error comes to, with what rustls has to `sent` to the peer about it, and what was noted where it was found.
fn fatal(broken: Broken, sent: &[u8]) -> Fatal {
    let error = match broken {
        Broken::Tls(error) => error,
        Broken::Silent(detail) => return Fatal::silent(detail),
    };
    let (noted, detail) = scope::with(|trust| (trust.failure, trust.detail.take())).unwrap_or_default();
    let reason = noted.unwrap_or_else(|| refusal_of(&error));
    Fatal {
        reason,
        by_peer: matches!(error, Error::AlertReceived(_)),
        detail: detail.or_else(|| detail_of(&error)),
        alert: alert_sent(sent, &error, reason),
    }
}
