//! Records of one TLS connection, either side's: bytes in, bytes out, plaintext to a sink. No sockets, no clock.
//!
//! Built on rustls' unbuffered API, which gives exact control over every byte of ciphertext: what a call did not consume
//! stays here, and nothing is read ahead.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{CommonState, Error};

use super::outgoing::Outgoing;

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

/// How often rustls is asked to encrypt before giving up: the answer to a key update may have to go first, for which it
/// asks for more room, then to be encoded, then to be told that it is sent, and only then for the plaintext again. Twice
/// that.
const SEND_ROUNDS_MAX: usize = 8;

/// Which side of a connection this is.
pub(super) trait Side: std::ops::Deref<Target: std::ops::Deref<Target = CommonState>> {
    type Data;

    /// Most bytes that wait for their rest once the handshake is over.
    const WAITING_BYTES_MAX: usize;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    /// The one handshake message that may come is a key update of 5 bytes: two of the longest records (RFC 8446 section
    /// 5.2, RFC 5246 section 6.2.3).
    const WAITING_BYTES_MAX: usize = 2 * (5 + FRAGMENT_BYTES_MAX + 2048);

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    /// Servers send tickets, which may hold a chain of certificates.
    const WAITING_BYTES_MAX: usize = HANDSHAKE_WAITING_BYTES_MAX;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Why a connection carries nothing more.
#[derive(Debug)]
pub(super) enum Broken {
    /// rustls says so; the alert it wants sent stands in the outgoing bytes.
    Tls(Error),
    /// Found here: no alert is sent.
    Silent(&'static str),
}

/// A handshake, or the connection it became.
pub(super) struct Records<S> {
    /// Boxed: it is large, and moves with what holds it.
    pub side: Box<S>,
    /// Received and not yet consumed: part of a record, or of a handshake message.
    incoming: Vec<u8>,
    peer_closed: bool,
    /// rustls has reported an error, and must not be asked again.
    failed: bool,
}

impl<S: Side> Records<S> {
    pub fn new(side: S) -> Self {
        Self { side: Box::new(side), incoming: Vec::new(), peer_closed: false, failed: false }
    }

    /// Whether the handshake still runs.
    pub fn is_handshaking(&self) -> bool {
        self.side.is_handshaking()
    }

    /// Whether the peer has said close_notify: no more plaintext comes.
    pub fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// Takes bytes from the peer. Plaintext goes to `sink`, what must be sent to `out`; `step` is called after each step of
    /// rustls.
    ///
    /// # Errors
    ///
    /// [`Broken`]; `out` holds the alert to send before closing.
    pub fn receive(
        &mut self,
        bytes: &mut [u8],
        out: &mut Outgoing,
        sink: &mut dyn FnMut(&[u8]),
        step: &mut dyn FnMut(&S),
    ) -> Result<(), Broken> {
        // RFC 8446 section 6.1: what comes after a close_notify is ignored. rustls would leave it lying with us for good.
        if self.peer_closed {
            return Ok(());
        }
        if self.failed {
            return Err(Broken::Silent("failed before"));
        }
        let mut rest = bytes;
        // What was left over before is completed first, with no more bytes than it needs, so that bulk is opened in place.
        while !self.incoming.is_empty() && !rest.is_empty() {
            let take = if self.is_handshaking() { rest.len() } else { missing(&self.incoming).min(rest.len()) };
            let (part, after) = rest.split_at_mut(take);
            self.incoming.extend_from_slice(part);
            rest = after;
            let mut incoming = std::mem::take(&mut self.incoming);
            let consumed = self.pump(&mut incoming, out, sink, step)?;
            if consumed < incoming.len() {
                incoming.drain(..consumed);
                self.incoming = incoming;
            }
        }
        if !rest.is_empty() {
            let consumed = self.pump(rest, out, sink, step)?;
            self.incoming.extend_from_slice(&rest[consumed..]);
        }
        if self.peer_closed {
            self.incoming = Vec::new();
        }
        let most = if self.is_handshaking() { HANDSHAKE_WAITING_BYTES_MAX } else { S::WAITING_BYTES_MAX };
        if self.incoming.len() > most {
            self.failed = true;
            return Err(Broken::Silent("a handshake message in too many small records"));
        }
        Ok(())
    }

    /// Takes the first step of a side that speaks first: its ClientHello into `out`.
    ///
    /// # Errors
    ///
    /// As [`Records::receive`].
    pub fn begin(&mut self, out: &mut Outgoing) -> Result<(), Broken> {
        self.pump(&mut [], out, &mut |_| {}, &mut |_| {}).map(drop)
    }

    /// How many received bytes wait for more.
    #[cfg(test)]
    pub fn waiting_bytes(&self) -> usize {
        self.incoming.capacity()
    }

    /// Encrypts `plaintext` into `out`.
    ///
    /// # Errors
    ///
    /// [`Broken`] when the connection can send no more.
    pub fn send(&mut self, plaintext: &[u8], out: &mut Outgoing) -> Result<(), Broken> {
        let records = plaintext.len().div_ceil(FRAGMENT_BYTES_MAX).max(1);
        let mut needed = plaintext.len() + records * RECORD_OVERHEAD_BYTES;
        for _ in 0..SEND_ROUNDS_MAX {
            if self.failed {
                break;
            }
            // Not an empty slice: part of a handshake message may wait in `incoming`, and rustls panics if it does not
            // find there what it left. Nothing whole waits there, so that nothing is discarded.
            let UnbufferedStatus { state, .. } = self.side.process(&mut self.incoming);
            let state = match state {
                Ok(state) => state,
                Err(error) => {
                    self.failed = true;
                    return Err(Broken::Tls(error));
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
        Err(Broken::Silent("cannot encrypt any more"))
    }

    /// Says goodbye: a close_notify alert into `out`. Nothing if that cannot be said any more.
    pub fn close(&mut self, out: &mut Outgoing) {
        if self.failed {
            return;
        }
        self.flush(out);
        let UnbufferedStatus { state, .. } = self.side.process(&mut self.incoming);
        let state = match state {
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                self.side.process(&mut self.incoming).state
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
    fn pump(
        &mut self,
        bytes: &mut [u8],
        out: &mut Outgoing,
        sink: &mut dyn FnMut(&[u8]),
        step: &mut dyn FnMut(&S),
    ) -> Result<usize, Broken> {
        let mut consumed = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.side.process(&mut bytes[consumed..]);
            let mut blocked = false;
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(out, |room| data.encode(room));
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(Broken::Tls)?;
                        discard += record.discard;
                        sink(record.payload);
                    }
                }
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(_) => blocked = true,
                Err(error) => {
                    self.failed = true;
                    self.flush(out);
                    return Err(Broken::Tls(error));
                }
            }
            consumed += discard;
            step(&self.side);
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
        while self.side.wants_write() {
            match self.side.process(&mut []).state {
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
