//! One TLS connection as a value: bytes in, bytes out, plaintext to a sink. No sockets, no clock.
//!
//! Built on rustls' unbuffered API, which gives exact control over every byte of ciphertext: what a call did not consume
//! stays with the caller, and nothing is read ahead.

use std::rc::Rc;
use std::sync::Arc;

use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{Error, HandshakeKind, ProtocolVersion};

use crate::policy::Refusal;

use super::failure::{alert_sent, detail_of, refusal_of};
use super::outgoing::Outgoing;
use super::scope::{self, Standing, Trust};
use super::tenant::Tenant;

/// Most plaintext a record holds (RFC 8446 section 5.1).
const FRAGMENT_BYTES_MAX: usize = 16 * 1024;

/// Most a record adds to its plaintext: header 5, then TLS 1.2's explicit nonce 8 and tag 16, or TLS 1.3's type 1 and tag
/// 16.
const RECORD_OVERHEAD_BYTES: usize = 5 + 8 + 16;

/// Most bytes of a handshake message and its records that wait for their rest while the handshake runs.
///
/// rustls takes messages of up to 64 KiB, and keeps nothing: all the records a message is cut into wait here until it is
/// whole. In records of a sensible size that is 64 KiB and a partial record; in records of one byte each it would be more
/// than a megabyte, asked for by anyone.
const HANDSHAKE_WAITING_BYTES_MAX: usize = 96 * 1024;

/// The same for an established connection, where the one handshake message that may come is a key update of 5 bytes: two
/// of the longest records (RFC 8446 section 5.2, RFC 5246 section 6.2.3).
const WAITING_BYTES_MAX: usize = 2 * (5 + FRAGMENT_BYTES_MAX + 2048);

/// How often rustls is asked to encrypt before giving up: the answer to a key update may have to go first, for which it
/// asks for more room, then to be encoded, then to be told that it is sent, and only then for the plaintext again. Twice
/// that.
const SEND_ROUNDS_MAX: usize = 8;

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
    tls: Box<UnbufferedServerConnection>,
    /// Present while the handshake runs.
    trust: Option<Box<Trust>>,
    /// Received and not yet consumed: part of a record, or of a handshake message.
    incoming: Vec<u8>,
    peer_closed: bool,
    /// rustls has reported an error, and must not be asked again.
    failed: bool,
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
        Ok(Self { tls: Box::new(tls), trust: Some(trust), incoming: Vec::new(), peer_closed: false, failed: false })
    }

    /// Whether the handshake still runs.
    pub fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether the client has said close_notify: no more plaintext comes.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// The client's certificate chain, leaf first, as it sent it in this handshake or the one it resumes.
    pub fn peer_certificates(&self) -> Option<&[rustls_pki_types::CertificateDer<'static>]> {
        self.tls.peer_certificates()
    }

    /// The negotiated application protocol (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The negotiated protocol version, once known.
    pub fn version(&self) -> Option<ProtocolVersion> {
        self.tls.protocol_version()
    }

    /// The protocol version and cipher suite, by name (`TLSv1.3`, `TLS_AES_128_GCM_SHA256`).
    pub fn names(&self) -> (&'static str, String) {
        let version = match self.tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "TLSv1.3",
        };
        let suite =
            self.tls.negotiated_cipher_suite().map_or_else(String::new, |suite| super::provider::suite_name(&suite));
        (version, suite)
    }

    /// What the handshake learned so far about the client: the exact reason of a failure above all.
    pub fn trust(&self) -> Option<&Trust> {
        self.trust.as_deref()
    }

    /// Ends the handshake phase: hands over what was established, and frees what only a handshake needs. `None` while the
    /// handshake still runs, or after this was called.
    pub fn establish(&mut self) -> Option<Established> {
        if self.tls.is_handshaking() {
            return None;
        }
        let version = self.tls.protocol_version()?;
        let resumed = self.tls.handshake_kind()? == HandshakeKind::Resumed;
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
        // RFC 8446 section 6.1: what comes after a close_notify is ignored. rustls would leave it lying with us for good.
        if self.peer_closed {
            return Ok(());
        }
        if self.failed {
            return Err(Fatal::silent("failed before"));
        }
        let mut rest = bytes;
        // What was left over before is completed first, with no more bytes than it needs, so that bulk is opened in place.
        while !self.incoming.is_empty() && !rest.is_empty() {
            let take = if self.is_handshaking() { rest.len() } else { missing(&self.incoming).min(rest.len()) };
            let (part, after) = rest.split_at_mut(take);
            self.incoming.extend_from_slice(part);
            rest = after;
            let mut incoming = std::mem::take(&mut self.incoming);
            let consumed = self.pump(&mut incoming, out, &mut sink)?;
            if consumed < incoming.len() {
                incoming.drain(..consumed);
                self.incoming = incoming;
            }
        }
        if !rest.is_empty() {
            let consumed = self.pump(rest, out, &mut sink)?;
            self.incoming.extend_from_slice(&rest[consumed..]);
        }
        if self.peer_closed {
            self.incoming = Vec::new();
        }
        let most = if self.is_handshaking() { HANDSHAKE_WAITING_BYTES_MAX } else { WAITING_BYTES_MAX };
        if self.incoming.len() > most {
            self.failed = true;
            return Err(Fatal::silent("a handshake message in too many small records"));
        }
        Ok(())
    }

    /// How many received bytes wait for more.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.incoming.capacity()
    }

    /// Encrypts `plaintext` into `out`.
    ///
    /// # Errors
    ///
    /// [`Fatal`] when the connection can send no more.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Outgoing) -> Result<(), Fatal> {
        let records = plaintext.len().div_ceil(FRAGMENT_BYTES_MAX).max(1);
        let mut needed = plaintext.len() + records * RECORD_OVERHEAD_BYTES;
        for _ in 0..SEND_ROUNDS_MAX {
            if self.failed {
                break;
            }
            // Not an empty slice: part of a handshake message may wait in `incoming`, and rustls panics if it does not
            // find there what it left. Nothing whole waits there, so that nothing is discarded.
            let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut self.incoming);
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.failed = true;
                    return Err(fatal(&error, &[]));
                }
            };
            match state {
                ConnectionState::WriteTraffic(mut traffic) => match traffic.encrypt(plaintext, out.room(needed)) {
                    Ok(written) => {
                        out.advance(written);
                        return Ok(());
                    }
                    Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) => {
                        needed = required_size;
                    }
                    Err(EncryptError::EncryptExhausted) => break,
                },
                // The record is in here and nowhere else: dropped, it would be lost.
                ConnectionState::EncodeTlsData(mut data) => encode(out, |room| data.encode(room)),
                ConnectionState::TransmitTlsData(data) => data.done(),
                _ => break,
            }
        }
        Err(Fatal::silent("cannot encrypt any more"))
    }

    /// Says goodbye: a close_notify alert into `out`. Nothing if that cannot be said any more.
    pub fn close(&mut self, out: &mut Outgoing) {
        if self.failed {
            return;
        }
        self.flush(out);
        let UnbufferedStatus { state, .. } = self.tls.process_tls_records(&mut self.incoming);
        let state = match state {
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                self.tls.process_tls_records(&mut self.incoming).state
            }
            state => state,
        };
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
            match traffic.queue_close_notify(out.room(2 + RECORD_OVERHEAD_BYTES)) {
                Ok(written) => out.advance(written),
                // The answer to a key update goes first and did not fit: rustls keeps both to be encoded.
                Err(_) => self.flush(out),
            }
        }
    }

    /// Runs rustls over `bytes` until it needs more. Returns how many it consumed.
    fn pump(&mut self, bytes: &mut [u8], out: &mut Outgoing, sink: &mut dyn FnMut(&[u8])) -> Result<usize, Fatal> {
        match self.trust.take() {
            None => self.pump_inner(bytes, out, sink),
            Some(trust) => {
                let (trust, result) = scope::enter(trust, || self.pump_inner(bytes, out, sink));
                self.trust = Some(trust);
                result
            }
        }
    }

    fn pump_inner(
        &mut self,
        bytes: &mut [u8],
        out: &mut Outgoing,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, Fatal> {
        let mut consumed = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.tls.process_tls_records(&mut bytes[consumed..]);
            let mut blocked = false;
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(out, |room| data.encode(room));
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|error| fatal(&error, &[]))?;
                        discard += record.discard;
                        sink(record.payload);
                    }
                }
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(_) => blocked = true,
                Err(error) => {
                    self.failed = true;
                    self.flush(out);
                    return Err(fatal(&error, out.as_slice()));
                }
            }
            consumed += discard;
            // A ticket that opened counts only if rustls resumed with it; if this turned out a full handshake, what the
            // ticket said is forgotten before anything else happens.
            if self.tls.handshake_kind() != Some(HandshakeKind::Resumed) {
                scope::with(|trust| trust.candidate = None);
            }
            if blocked {
                return Ok(consumed);
            }
        }
    }

    /// Gets out what rustls has queued, without letting it read: after an error its alert.
    ///
    /// What is queued comes before anything is read, so that no input is needed; and none may be given after an error:
    /// rustls would fail again over the same bytes, and look for messages of the failed flight where they are no more.
    fn flush(&mut self, out: &mut Outgoing) {
        while self.tls.wants_write() {
            match self.tls.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => encode(out, |room| data.encode(room)),
                _ => return,
            }
        }
    }
}

/// Room for one handshake message as rustls encodes it; a larger one asks for its size.
const ENCODE_BYTES: usize = 4 * 1024;

fn encode(out: &mut Outgoing, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let mut needed = ENCODE_BYTES;
    loop {
        match encode(out.room(needed)) {
            Ok(written) => return out.advance(written),
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => needed = required_size,
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

/// What rustls' error comes to, with what it has to `sent` to the peer about it, and what was noted where it was found.
fn fatal(error: &Error, sent: &[u8]) -> Fatal {
    let (noted, detail) = scope::with(|trust| (trust.failure, trust.detail.take())).unwrap_or_default();
    let reason = noted.unwrap_or_else(|| refusal_of(error));
    Fatal {
        reason,
        by_peer: matches!(error, Error::AlertReceived(_)),
        detail: detail.or_else(|| detail_of(error)),
        alert: alert_sent(sent, error, reason),
    }
}

/// How many bytes the last, incomplete record of `bytes` still needs: the rest of its header first, then of its body.
fn missing(bytes: &[u8]) -> usize {
    const HEADER: usize = 5;
    let mut rest = bytes;
    loop {
        let [_, _, _, high, low, body @ ..] = rest else { return HEADER - rest.len() };
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        if body.len() < len {
            return len - body.len();
        }
        rest = &body[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn missing_asks_for_the_header_then_for_the_body_of_the_last_record() {
        assert_eq!(missing(&[]), 5);
        assert_eq!(missing(&[23, 3, 3]), 2);
        assert_eq!(missing(&[23, 3, 3, 0, 4]), 4);
        assert_eq!(missing(&[23, 3, 3, 0, 4, 1, 2]), 2);
        assert_eq!(missing(&[23, 3, 3, 0, 1, 9]), 5);
        assert_eq!(missing(&[23, 3, 3, 0, 1, 9, 23, 3, 3, 1, 0, 7]), 255);
    }
}
