//! A client's TLS connection as `tokio::io::AsyncRead + AsyncWrite`, for `h2`.
//!
//! What `h2` writes is collected and leaves in one piece at the end of its turn ([`Transport::push`]): the answers of many
//! streams share records, and one send. Its flushes therefore do nothing; it flushes after every large frame.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::meter::{Fault, Meter, Resets};
use crate::proxy::buffers::GATHER_BYTES;
use crate::proxy::http1::client::{Client, Gone};
use crate::ring;
use crate::tls::Outgoing;

type Sending<'a> = Pin<Box<dyn Future<Output = (io::Result<()>, Vec<u8>)> + 'a>>;

/// What `h2` reads from and writes to, shared with whoever drives it.
pub struct Transport<'a> {
    client: Client<'a>,
    began: Instant,
    /// Plaintext that waits to be encrypted: at most [`GATHER_BYTES`] and one frame.
    collected: RefCell<Vec<u8>>,
    /// One send at a time.
    sending: RefCell<Option<Sending<'a>>>,
    meter: RefCell<Meter>,
    /// What the meter has found: nothing more is read.
    fault: Cell<Option<Fault>>,
    /// How the client went away, once it has.
    gone: Cell<Option<Gone>>,
    written_bytes: Cell<u64>,
    resets: RefCell<Resets>,
    /// The codes of streams that were reset and not asked for yet.
    reset_codes: RefCell<Vec<u32>>,
    /// When a send was last completed.
    moved: Cell<Instant>,
    /// A write found no room.
    blocked: Cell<bool>,
}

impl<'a> Transport<'a> {
    /// Takes a client's connection over.
    pub fn new(client: Client<'a>) -> Rc<Self> {
        let now = ring::now();
        Rc::new(Self {
            client,
            began: now,
            collected: RefCell::default(),
            sending: RefCell::default(),
            meter: RefCell::new(Meter::new(0)),
            fault: Cell::new(None),
            gone: Cell::new(None),
            written_bytes: Cell::new(0),
            resets: RefCell::default(),
            reset_codes: RefCell::default(),
            moved: Cell::new(now),
            blocked: Cell::new(false),
        })
    }

    /// Why the connection cannot go on, as far as its frames' heads tell.
    pub fn fault(&self) -> Option<Fault> {
        self.fault.get()
    }

    /// How the client went away, if it did.
    pub fn gone(&self) -> Option<Gone> {
        self.gone.get()
    }

    /// Since when the client owes the rest of a header block, or its preface.
    pub fn waiting_since(&self) -> Option<Instant> {
        let since_ms = self.meter.borrow().waiting_since_ms();
        since_ms.map(|since_ms| self.began + std::time::Duration::from_millis(since_ms))
    }

    /// The client was sent so many pieces of responses, for each of which it may say something.
    pub fn answered(&self, pieces: u32) {
        if pieces > 0 {
            self.meter.borrow_mut().answered(pieces);
        }
    }

    /// A stream was reset for what the client did on it.
    pub fn made_us_reset(&self) {
        if let Err(fault) = self.meter.borrow_mut().made_us_reset() {
            self.fault.set(Some(fault));
        }
    }

    /// The codes of the streams that were reset since this was asked last.
    pub fn take_reset_codes(&self) -> Vec<u32> {
        self.reset_codes.take()
    }

    /// Since when the client has taken nothing of what is on its way to it; `None` if nothing is.
    pub fn stalled_since(&self) -> Option<Instant> {
        self.sending.borrow().is_some().then(|| self.moved.get())
    }

    /// Plaintext bytes written since this was asked last.
    pub fn take_written_bytes(&self) -> u64 {
        self.written_bytes.take()
    }

    /// Whether a write found no room since this was asked last, and there is room now.
    pub fn take_blocked(&self) -> bool {
        self.collected.borrow().len() < GATHER_BYTES && self.blocked.take()
    }

    /// Encrypts what is collected and sends it, unless a send is under way. Ready when nothing is left to be sent.
    pub fn push(&self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        loop {
            let mut sending = self.sending.borrow_mut();
            if let Some(send) = sending.as_mut() {
                let Poll::Ready((result, memory)) = send.as_mut().poll(cx) else { return Poll::Pending };
                *sending = None;
                self.moved.set(ring::now());
                self.client.buffers.keep_records(memory);
                if result.is_err() {
                    return Poll::Ready(Err(self.lose(Gone::Cut)));
                }
            }
            let mut collected = self.collected.borrow_mut();
            if !collected.is_empty() {
                self.client.write(&collected).map_err(|gone| self.lose(gone))?;
                let plain = std::mem::take(&mut *collected);
                self.client.buffers.keep_plain(plain);
            }
            let (bytes, filled) = self.client.take_records();
            if filled == 0 {
                self.client.buffers.keep_records(bytes);
                return Poll::Ready(Ok(()));
            }
            self.meter.borrow_mut().sent(filled);
            let socket = self.client.socket;
            self.moved.set(ring::now());
            *sending = Some(Box::pin(async move { socket.send_prefix(bytes, filled).await }));
        }
    }

    /// Ends our side: close_notify behind everything else. [`Transport::push`] sends it.
    pub fn say_goodbye(&self) -> Result<(), Gone> {
        let plain = std::mem::take(&mut *self.collected.borrow_mut());
        let written = self.client.write(&plain);
        self.client.buffers.keep_plain(plain);
        self.client.say_goodbye();
        written
    }

    /// What waits to be sent, as the last bytes of the connection. None while a send is under way.
    pub fn last_words(&self) -> Outgoing {
        if self.sending.borrow().is_some() { Outgoing::default() } else { self.client.last_words() }
    }

    /// Gives back memory in which nothing waits.
    pub fn release(&self) {
        self.client.release();
    }

    fn lose(&self, gone: Gone) -> Gone {
        self.gone.set(Some(gone));
        gone
    }
}

/// `h2`'s end of a [`Transport`].
pub struct Io<'a>(pub Rc<Transport<'a>>);

impl AsyncRead for Io<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let transport = &*self.0;
        if transport.fault().is_some() {
            // Whoever drives the connection ends it in this turn.
            return Poll::Pending;
        }
        if transport.client.waiting() == 0 {
            match transport.client.poll_read(cx) {
                Poll::Ready(Ok(true)) => {}
                // close_notify: the end in order.
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(gone)) => {
                    transport.lose(gone);
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        let now_ms = ring::now().saturating_duration_since(transport.began).as_millis() as u64;
        transport.client.consume(|waiting| {
            let taken = waiting.len().min(out.remaining());
            let bytes = &waiting[..taken];
            if let Err(fault) = transport.meter.borrow_mut().received(bytes, now_ms) {
                transport.fault.set(Some(fault));
                return (waiting.len(), Poll::Pending);
            }
            out.put_slice(bytes);
            (taken, Poll::Ready(Ok(())))
        })
    }
}

impl AsyncWrite for Io<'_> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let transport = &*self.0;
        if transport.collected.borrow().len() >= GATHER_BYTES {
            match transport.push(cx) {
                Poll::Ready(Err(_)) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                // What is under way must leave first: a client that does not read holds its own streams back.
                _ if transport.collected.borrow().len() >= GATHER_BYTES => {
                    transport.blocked.set(true);
                    return Poll::Pending;
                }
                _ => {}
            }
        }
        let mut collected = transport.collected.borrow_mut();
        if collected.capacity() == 0 {
            *collected = transport.client.buffers.plain();
        }
        collected.extend_from_slice(bytes);
        let mut codes = transport.reset_codes.borrow_mut();
        transport.resets.borrow_mut().sent(bytes, |code| codes.push(code));
        transport.written_bytes.set(transport.written_bytes.get() + bytes.len() as u64);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Nothing to do: see the head of this file.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end is said by whoever drives the connection, behind what waits.
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
