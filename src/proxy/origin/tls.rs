//! A socket with TLS on it, towards an origin.
//!
//! No borrow lasts across an await: one future reads while another sends. What rustls wants to say while reading (the
//! answer to a key update) travels in front of the next bytes that are sent.

use std::cell::RefCell;
use std::io;
use std::task::{Context, Poll, ready};

use crate::proxy::buffers::Buffers;
use crate::ring::{self, Socket};
use crate::tls::Outgoing;
use crate::tls::origin::{Connection, Failed};

/// A TLS connection to an origin.
pub struct Tls {
    pub socket: Socket,
    tls: RefCell<Connection>,
    /// Records that wait to be sent.
    out: RefCell<Outgoing>,
    /// Plaintext that came with the end of the handshake.
    early: RefCell<Vec<u8>>,
    /// Why nothing more comes.
    failed: RefCell<Option<Failed>>,
}

/// Why there is no TLS on a socket.
#[derive(Debug)]
pub enum NotShaken {
    /// The connection broke.
    Broken,
    Failed(Failed),
}

impl From<io::Error> for NotShaken {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

impl Tls {
    /// Runs a handshake to its end. The caller bounds its time.
    ///
    /// # Errors
    ///
    /// [`NotShaken`]; the origin has been sent the alert, if there is one.
    pub async fn connect(socket: Socket, mut tls: Connection) -> Result<Self, NotShaken> {
        let mut out = Outgoing::default();
        let mut early = Vec::new();
        let mut received = Vec::new();
        // Public-key cryptography is heavy: I/O of other connections goes first.
        ring::heavy().await;
        tls.begin(&mut out).map_err(NotShaken::Failed)?;
        loop {
            let (bytes, filled) = out.take();
            let (sent, memory) = socket.send_prefix(bytes, filled).await;
            sent?;
            out = Outgoing::with_memory(memory);
            received.clear();
            if socket.receive(|bytes| received.extend_from_slice(bytes)).await?.is_none() {
                return Err(NotShaken::Broken);
            }
            ring::heavy().await;
            if let Err(failed) = tls.receive(&mut received, &mut out, |plain| early.extend_from_slice(plain)) {
                let (bytes, filled) = out.take();
                if filled > 0 {
                    // Whether the origin hears why changes nothing here.
                    let _ = socket.send_prefix(bytes, filled).await;
                }
                return Err(NotShaken::Failed(failed));
            }
            if !tls.is_handshaking() {
                break;
            }
        }
        // What is left to say (our Finished, our certificate) goes with the request.
        Ok(Self {
            socket,
            tls: RefCell::new(tls),
            out: RefCell::new(out),
            early: RefCell::new(early),
            failed: RefCell::default(),
        })
    }

    /// Whether the handshake resumed an earlier session.
    pub fn resumed(&self) -> bool {
        self.tls.borrow().resumed()
    }

    /// Whether HTTP/2 was negotiated.
    pub fn is_http2(&self) -> bool {
        self.tls.borrow().alpn() == Some(b"h2")
    }

    /// Why the connection carries nothing more, if TLS is the reason.
    pub fn failed(&self) -> Option<Failed> {
        self.failed.borrow().clone()
    }

    /// Hands the next plaintext to `take`, record by record until one is not taken well. `None`: the origin has said
    /// close_notify.
    ///
    /// # Errors
    ///
    /// What recv(2) says; an end without close_notify (RFC 8446 section 6.1); TLS that is broken, see [`Tls::failed`].
    pub fn poll_receive<E>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Poll<io::Result<Option<Result<(), E>>>> {
        loop {
            if let Some(known) = self.known(&mut take) {
                return Poll::Ready(known);
            }
            let opened = ready!(self.socket.poll_receive(cx, |bytes| self.open(bytes, &mut take)));
            if let Some(outcome) = outcome(opened) {
                return Poll::Ready(outcome);
            }
        }
    }

    /// As [`Tls::poll_receive`], but only for what is here already. `None`: nothing is here.
    pub fn arrived<E>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Option<io::Result<Option<Result<(), E>>>> {
        loop {
            if let Some(known) = self.known(&mut take) {
                return Some(known);
            }
            let opened = self.socket.arrived(|bytes| self.open(bytes, &mut take))?;
            if let Some(outcome) = outcome(opened) {
                return Some(outcome);
            }
        }
    }

    /// What there is without asking the socket.
    fn known<E>(&self, take: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Option<io::Result<Option<Result<(), E>>>> {
        let early = self.early.take();
        if !early.is_empty() {
            return Some(Ok(Some(take(&early))));
        }
        if self.failed.borrow().is_some() {
            return Some(Err(io::ErrorKind::InvalidData.into()));
        }
        self.tls.borrow().peer_closed().then_some(Ok(None))
    }

    /// Opens records; `None`: there was no plaintext in them.
    fn open<E>(&self, bytes: &mut [u8], take: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Option<Result<(), E>> {
        let mut taken: Option<Result<(), E>> = None;
        let mut out = self.out.borrow_mut();
        let received = self.tls.borrow_mut().receive(bytes, &mut out, |plain| {
            if !matches!(taken, Some(Err(_))) {
                taken = Some(take(plain));
            }
        });
        if let Err(failed) = received {
            *self.failed.borrow_mut() = Some(failed);
        }
        taken
    }

    /// Sends the first `filled` bytes of a buffer and gives it back as it was.
    ///
    /// Dropped, an unknown part of the bytes has been sent: close the connection then.
    pub async fn send_prefix(&self, buffers: &Buffers, bytes: Vec<u8>, filled: usize) -> (io::Result<()>, Vec<u8>) {
        let sealed = self.say(buffers, |tls, out| tls.send(&bytes[..filled], out));
        if let Err(failed) = sealed {
            *self.failed.borrow_mut() = Some(failed);
            return (Err(io::ErrorKind::InvalidData.into()), bytes);
        }
        (self.flush(buffers).await, bytes)
    }

    /// Says that nothing more is sent: close_notify, then the end of the stream.
    pub async fn finish(&self, buffers: &Buffers) -> io::Result<()> {
        self.say(buffers, Connection::close);
        self.flush(buffers).await?;
        self.socket.shutdown_write()
    }

    fn say<R>(&self, buffers: &Buffers, say: impl FnOnce(&mut Connection, &mut Outgoing) -> R) -> R {
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            *out = Outgoing::with_memory(buffers.records());
        }
        say(&mut self.tls.borrow_mut(), &mut out)
    }

    async fn flush(&self, buffers: &Buffers) -> io::Result<()> {
        let (records, filled) = self.out.borrow_mut().take();
        let (sent, memory) = self.socket.send_prefix(records, filled).await;
        buffers.keep_records(memory);
        sent
    }
}

/// What a receive came to; `None`: nothing that is worth an answer (a ticket, a part of a record).
fn outcome<E>(opened: io::Result<Option<Option<Result<(), E>>>>) -> Option<io::Result<Option<Result<(), E>>>> {
    match opened {
        Ok(Some(None)) => None,
        Ok(Some(Some(taken))) => Some(Ok(Some(taken))),
        Ok(None) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => Some(Err(error)),
    }
}
