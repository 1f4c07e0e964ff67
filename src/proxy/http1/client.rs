//! The client's side of an HTTP connection: plaintext that waits to be read, records that wait to be sent.
//!
//! Neither holds memory while nothing waits. No borrow lasts across an await: several futures of one connection read and
//! write through this.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll};

use super::downstream::{Downstream, Ending};
use super::reply::Sink;
use super::{ClientSide, Response};
use crate::proxy::buffers::{Buffers, GATHER_BYTES};
use crate::ring::{Receive, Socket};
use crate::tls::{Connection, Outgoing};

/// How much plaintext is collected before it is encrypted: one record (RFC 8446 section 5.1), so that a head and a small
/// body travel together. Larger pieces are encrypted from where they lie.
const COLLECT_BYTES: usize = 16 * 1024;

/// How many bytes of later requests are read while a response is under way. Beyond them the client waits.
const PIPELINED_BYTES: usize = 16 * 1024;

/// How a client went away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Without close_notify, or by a reset.
    Cut,
    /// It broke TLS; what rustls says to that waits to be sent.
    Broke,
}

/// One client connection.
pub struct Client<'a> {
    pub socket: &'a Socket,
    pub tls: &'a RefCell<Connection>,
    pub buffers: &'a Buffers,
    inbox: RefCell<Inbox>,
    out: RefCell<Outgoing>,
    /// Records are on their way: nothing may be said in the middle of them.
    sending: Cell<bool>,
    /// close_notify has been said.
    finished: Cell<bool>,
    /// Plaintext bytes written so far.
    written_bytes: Cell<u64>,
    /// The request under way is one of HTTP/1.0.
    is_http_1_0: Cell<bool>,
}

/// A part of a response that is gathered: what was not encrypted yet.
pub struct Gathered {
    plain: Vec<u8>,
    /// How many bytes of records waited at the beginning.
    unsent_before: usize,
    gone: Option<Gone>,
}

/// Takes a response into records.
struct Records<'s, 'a> {
    client: &'s Client<'a>,
    gathered: &'s mut Gathered,
}

impl Sink for Records<'_, '_> {
    fn head(&mut self, response: &Response<'_>, keep_alive: bool) -> bool {
        let is_http_1_0 = self.client.is_http_1_0.get();
        response.write(&ClientSide { keep_alive, is_http_1_0 }, self.gathered.memory(self.client))
    }

    fn piece(&mut self, piece: &[u8]) {
        if let Err(gone) = self.client.collect(self.gathered.memory(self.client), piece) {
            self.gathered.gone = Some(gone);
        }
    }
}

impl Gathered {
    fn memory(&mut self, client: &Client<'_>) -> &mut Vec<u8> {
        if self.plain.capacity() == 0 {
            self.plain = client.buffers.plain();
        }
        &mut self.plain
    }
}

impl Downstream for Client<'_> {
    type Gathered = Gathered;

    fn buffers(&self) -> &Buffers {
        self.buffers
    }

    fn consume<R>(&self, consume: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        Client::consume(self, consume)
    }

    fn poll_pass(&self, cx: &mut Context<'_>, sink: impl FnMut(&[u8]) -> usize) -> Poll<Result<bool, Gone>> {
        Client::poll_pass(self, cx, sink)
    }

    /// Reads ahead, as far as it is little: a client's end comes behind what it has sent.
    fn poll_gone(&self, cx: &mut Context<'_>, body_read: bool) -> Poll<Gone> {
        while body_read && !self.has_finished() && self.waiting() < PIPELINED_BYTES {
            match self.poll_read(cx) {
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(gone)) => return Poll::Ready(gone),
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    fn may_ask_more(&self) -> bool {
        !self.has_finished() || self.waiting() > 0
    }

    fn gather(&self) -> Gathered {
        Gathered { plain: Vec::new(), unsent_before: self.unsent(), gone: None }
    }

    fn sink<'s>(&'s self, gathered: &'s mut Gathered) -> impl Sink + 's {
        Records { client: self, gathered }
    }

    fn gathered_bytes(&self, gathered: &Gathered) -> usize {
        gathered.plain.len() + self.unsent() - gathered.unsent_before
    }

    fn write(&self, gathered: Gathered, ending: Ending) -> Result<(), Gone> {
        let Gathered { plain, gone, .. } = gathered;
        let written = Client::write(self, &plain);
        self.buffers.keep_plain(plain);
        if ending == Ending::WholeAndLast {
            self.say_goodbye();
        }
        gone.map_or(written, Err)
    }

    fn unsent(&self) -> usize {
        Client::unsent(self)
    }

    async fn flush(&self) -> Result<(), Gone> {
        Client::flush(self).await
    }
}

/// Plaintext that has come and was not consumed.
#[derive(Default)]
struct Inbox {
    bytes: Vec<u8>,
    consumed: usize,
}

impl Inbox {
    fn rest(&self) -> &[u8] {
        &self.bytes[self.consumed..]
    }
}

impl<'a> Client<'a> {
    /// `early` is plaintext that came with the end of the handshake, `out` records that may wait for the first answer.
    pub fn new(
        socket: &'a Socket,
        tls: &'a RefCell<Connection>,
        buffers: &'a Buffers,
        early: Vec<u8>,
        out: Outgoing,
    ) -> Self {
        socket.set_receive(Receive::Stream);
        let inbox = RefCell::new(Inbox { bytes: early, consumed: 0 });
        Self {
            socket,
            tls,
            buffers,
            inbox,
            out: RefCell::new(out),
            sending: Cell::new(false),
            finished: Cell::new(false),
            written_bytes: Cell::new(0),
            is_http_1_0: Cell::new(false),
        }
    }

    /// The next response is one to HTTP/1.0.
    pub fn set_http_1_0(&self, is_http_1_0: bool) {
        self.is_http_1_0.set(is_http_1_0);
    }

    /// Whether the client has said that nothing more comes.
    pub fn has_finished(&self) -> bool {
        self.tls.borrow().peer_closed()
    }

    /// How many bytes wait to be consumed.
    pub fn waiting(&self) -> usize {
        self.inbox.borrow().rest().len()
    }

    /// Shows what waits; `consume` says how much of it is done with.
    pub fn consume<R>(&self, consume: impl FnOnce(&[u8]) -> (usize, R)) -> R {
        let mut inbox = self.inbox.borrow_mut();
        let (consumed, result) = consume(inbox.rest());
        inbox.consumed += consumed;
        if inbox.consumed >= inbox.bytes.len() {
            inbox.bytes.clear();
            inbox.consumed = 0;
        }
        result
    }

    /// Gives back memory in which nothing waits.
    pub fn release(&self) {
        let mut inbox = self.inbox.borrow_mut();
        if inbox.bytes.is_empty() && inbox.bytes.capacity() > 0 {
            self.buffers.keep_plain(std::mem::take(&mut inbox.bytes));
        }
        drop(inbox);
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            let (memory, _) = out.take();
            self.buffers.keep_records(memory);
        }
    }

    /// Takes everything that waits out, for a tunnel: plaintext, and records to be sent.
    pub fn into_waiting(self) -> (Vec<u8>, Outgoing) {
        let mut inbox = self.inbox.into_inner();
        inbox.bytes.drain(..inbox.consumed);
        (inbox.bytes, self.out.into_inner())
    }

    /// Reads into the inbox. Ready with false when the client has said close_notify and nothing came before it.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<bool, Gone>> {
        let mut inbox = self.inbox.borrow_mut();
        let inbox = &mut *inbox;
        if inbox.consumed > 0 {
            inbox.bytes.drain(..inbox.consumed);
            inbox.consumed = 0;
        }
        let bytes = &mut inbox.bytes;
        self.poll_read_with(cx, |plain| {
            if bytes.capacity() == 0 {
                *bytes = self.buffers.plain();
            }
            bytes.extend_from_slice(plain);
        })
    }

    /// Reads what has come, past the inbox, which must be empty; `sink` says how much of it it takes in, and the rest waits
    /// in the inbox.
    pub fn poll_pass(&self, cx: &mut Context<'_>, mut sink: impl FnMut(&[u8]) -> usize) -> Poll<Result<bool, Gone>> {
        let mut inbox = self.inbox.borrow_mut();
        debug_assert!(inbox.rest().is_empty(), "what waits comes first");
        self.poll_read_with(cx, |plain| {
            let taken = if inbox.bytes.is_empty() { sink(plain) } else { 0 };
            if taken < plain.len() {
                if inbox.bytes.capacity() == 0 {
                    inbox.bytes = self.buffers.plain();
                }
                inbox.bytes.extend_from_slice(&plain[taken..]);
            }
        })
    }

    fn poll_read_with(&self, cx: &mut Context<'_>, mut sink: impl FnMut(&[u8])) -> Poll<Result<bool, Gone>> {
        if self.has_finished() {
            return Poll::Ready(Ok(false));
        }
        let came = Cell::new(0);
        let mut take = |bytes: &mut [u8]| {
            let mut out = self.out.borrow_mut();
            self.tls.borrow_mut().receive(bytes, &mut out, |plain| {
                came.set(came.get() + plain.len());
                sink(plain);
            })
        };
        let mut received = self.socket.poll_receive(cx, &mut take);
        loop {
            match received {
                Poll::Ready(Ok(Some(Ok(())))) => {}
                Poll::Ready(Ok(Some(Err(_)))) => return Poll::Ready(Err(Gone::Broke)),
                // What came before the end is dealt with first; the end is met again by the next call.
                Poll::Ready(Ok(None) | Err(_)) if came.get() > 0 => return Poll::Ready(Ok(true)),
                // FIN without close_notify: the stream was cut (RFC 8446 section 6.1).
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Err(Gone::Cut)),
                Poll::Pending if came.get() > 0 => return Poll::Ready(Ok(true)),
                Poll::Pending => return Poll::Pending,
            }
            if came.get() >= GATHER_BYTES || self.has_finished() {
                return Poll::Ready(Ok(came.get() > 0));
            }
            received = match self.socket.arrived(&mut take) {
                Some(result) => Poll::Ready(result),
                None if came.get() > 0 => return Poll::Ready(Ok(true)),
                // Records without plaintext (a key update, a part of one) are not worth an answer: wait for more.
                None => self.socket.poll_receive(cx, &mut take),
            };
        }
    }

    /// Encrypts plaintext; [`Client::flush`] sends it.
    ///
    /// # Errors
    ///
    /// [`Gone::Broke`] when the connection can send no more.
    pub fn write(&self, plain: &[u8]) -> Result<(), Gone> {
        if plain.is_empty() {
            return Ok(());
        }
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            *out = Outgoing::with_memory(self.buffers.records());
        }
        self.written_bytes.set(self.written_bytes.get() + plain.len() as u64);
        self.tls.borrow_mut().send(plain, &mut out).map_err(|_| Gone::Broke)
    }

    /// How many bytes of plaintext were written so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes.get()
    }

    /// Says close_notify behind what waits, once.
    pub fn say_goodbye(&self) {
        if !self.finished.replace(true) {
            let mut out = self.out.borrow_mut();
            if out.is_empty() {
                *out = Outgoing::with_memory(self.buffers.records());
            }
            self.tls.borrow_mut().close(&mut out);
        }
    }

    /// Collects a piece in `collected`, or encrypts both if they are too large to wait for more.
    ///
    /// # Errors
    ///
    /// As [`Client::write`].
    pub fn collect(&self, collected: &mut Vec<u8>, piece: &[u8]) -> Result<(), Gone> {
        if collected.len() + piece.len() <= COLLECT_BYTES {
            collected.extend_from_slice(piece);
            return Ok(());
        }
        self.write(collected)?;
        collected.clear();
        self.write(piece)
    }

    /// How many bytes of records wait to be sent.
    pub fn unsent(&self) -> usize {
        self.out.borrow().len()
    }

    /// Sends the records that wait.
    ///
    /// # Errors
    ///
    /// [`Gone::Cut`].
    pub async fn flush(&self) -> Result<(), Gone> {
        let (bytes, filled) = self.out.borrow_mut().take();
        if filled == 0 {
            self.buffers.keep_records(bytes);
            return Ok(());
        }
        self.sending.set(true);
        let (result, memory) = self.socket.send_prefix(bytes, filled).await;
        self.sending.set(false);
        self.buffers.keep_records(memory);
        result.map_err(|_| Gone::Cut)
    }

    /// The records that wait to be sent, for who sends them by itself. Give the memory back to [`Client::buffers`].
    pub fn take_records(&self) -> (Vec<u8>, usize) {
        self.out.borrow_mut().take()
    }

    /// What waits to be sent, as the last bytes of the connection. None while a record is on its way.
    pub fn last_words(&self) -> Outgoing {
        if self.sending.get() {
            return Outgoing::default();
        }
        std::mem::take(&mut *self.out.borrow_mut())
    }
}
