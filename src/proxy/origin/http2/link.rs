//! A connection to an origin as `tokio::io::AsyncRead + AsyncWrite`, for `h2`.
//!
//! What `h2` writes is collected and leaves in one piece at the end of its driver's turn ([`Link::push`]), so that frames of
//! many streams share a send. Its flushes therefore do nothing.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::buffers::{Buffers, GATHER_BYTES};
use crate::proxy::origin::Wire;
use crate::ring;

type Sending = Pin<Box<dyn Future<Output = (io::Result<()>, Vec<u8>)>>>;

/// What `h2` reads from and writes to, shared with its driver.
pub struct Link {
    wire: Wire,
    buffers: Rc<Buffers>,
    /// Received and not yet read.
    unread: RefCell<(Vec<u8>, usize)>,
    /// What waits to be sent: at most [`GATHER_BYTES`] and one frame.
    collected: RefCell<Vec<u8>>,
    /// One send at a time. It holds this link: [`Link::end`] breaks the circle.
    sending: RefCell<Option<Sending>>,
    /// A write found no room.
    blocked: Cell<bool>,
    heard: Cell<Option<Instant>>,
}

impl Link {
    pub fn new(wire: Wire, buffers: Rc<Buffers>) -> Rc<Self> {
        wire.set_receive(ring::Receive::Stream);
        Rc::new(Self {
            wire,
            buffers,
            unread: RefCell::default(),
            collected: RefCell::default(),
            sending: RefCell::default(),
            blocked: Cell::new(false),
            heard: Cell::new(None),
        })
    }

    /// When something came last; `None`: nothing ever did.
    pub fn heard(&self) -> Option<Instant> {
        self.heard.get()
    }

    /// Sends what is collected, unless a send is under way. Ready when nothing is left to be sent.
    pub fn push(self: &Rc<Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut sending = self.sending.borrow_mut();
            if let Some(send) = sending.as_mut() {
                let (result, memory) = ready!(send.as_mut().poll(cx));
                *sending = None;
                self.buffers.keep_plain(memory);
                result?;
            }
            let collected = std::mem::take(&mut *self.collected.borrow_mut());
            if collected.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let link = Rc::clone(self);
            let filled = collected.len();
            *sending = Some(Box::pin(async move { link.wire.send_prefix(&link.buffers, collected, filled).await }));
        }
    }

    /// Whether a write found no room since this was asked last, and there is room now.
    pub fn take_blocked(&self) -> bool {
        self.collected.borrow().len() < GATHER_BYTES && self.blocked.take()
    }

    /// Nothing is sent any more.
    pub fn end(&self) {
        self.sending.borrow_mut().take();
    }
}

/// `h2`'s end of a [`Link`].
pub struct Io(pub Rc<Link>);

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let link = &*self.0;
        let mut unread = link.unread.borrow_mut();
        let (bytes, at) = &mut *unread;
        if *at == bytes.len() {
            bytes.clear();
            *at = 0;
            let take = |piece: &[u8]| {
                let count = if bytes.is_empty() { piece.len().min(out.remaining()) } else { 0 };
                out.put_slice(&piece[..count]);
                if count < piece.len() {
                    if bytes.capacity() == 0 {
                        *bytes = link.buffers.plain();
                    }
                    bytes.extend_from_slice(&piece[count..]);
                }
                Ok::<(), Infallible>(())
            };
            if ready!(link.wire.poll_receive(cx, take))?.is_some() {
                link.heard.set(Some(ring::now()));
            }
            return Poll::Ready(Ok(()));
        }
        let count = (bytes.len() - *at).min(out.remaining());
        out.put_slice(&bytes[*at..*at + count]);
        *at += count;
        if *at == bytes.len() {
            link.buffers.keep_plain(std::mem::take(bytes));
            *at = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let link = &self.0;
        if link.collected.borrow().len() >= GATHER_BYTES {
            if let Poll::Ready(Err(error)) = link.push(cx) {
                return Poll::Ready(Err(error));
            }
            if link.collected.borrow().len() >= GATHER_BYTES {
                link.blocked.set(true);
                return Poll::Pending;
            }
        }
        let mut collected = link.collected.borrow_mut();
        if collected.capacity() == 0 {
            *collected = link.buffers.plain();
        }
        collected.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// Nothing to do: see the head of this file.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
