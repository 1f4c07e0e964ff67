//! A socket as `tokio::io::AsyncRead + AsyncWrite`, for libraries that speak those traits (`h2`).
//!
//! The traits lend buffers for the length of one poll; the ring owns buffers until completion. So the adapter copies: what
//! is written goes into a buffer of its own, one send at a time, and what is received beyond the reader's room waits here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socket::Socket;

/// Most bytes taken into one send. A write beyond it is taken in parts, which is the trait's way to push back.
const WRITE_BYTES: usize = 64 * 1024;

type Sending = Pin<Box<dyn Future<Output = (io::Result<()>, Vec<u8>)>>>;

/// A socket with the traits of `tokio::io`.
pub struct Stream {
    socket: std::rc::Rc<Socket>,
    /// Received and not yet read.
    unread: Vec<u8>,
    read_at: usize,
    sending: Option<Sending>,
    spare: Vec<u8>,
}

impl Stream {
    /// Wraps a socket.
    pub fn new(socket: Socket) -> Self {
        Self { socket: std::rc::Rc::new(socket), unread: Vec::new(), read_at: 0, sending: None, spare: Vec::new() }
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sending) = &mut self.sending {
            let (result, mut buffer) = ready!(sending.as_mut().poll(cx));
            buffer.clear();
            self.spare = buffer;
            self.sending = None;
            result?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.read_at < this.unread.len() {
            let rest = &this.unread[this.read_at..];
            let count = rest.len().min(out.remaining());
            out.put_slice(&rest[..count]);
            this.read_at += count;
            if this.read_at == this.unread.len() {
                this.unread.clear();
                this.read_at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        let unread = &mut this.unread;
        ready!(this.socket.poll_receive(cx, |bytes| {
            let count = bytes.len().min(out.remaining());
            out.put_slice(&bytes[..count]);
            unread.extend_from_slice(&bytes[count..]);
        }))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_sent(cx))?;
        let count = bytes.len().min(WRITE_BYTES);
        let mut buffer = std::mem::take(&mut self.spare);
        buffer.extend_from_slice(&bytes[..count]);
        let socket = std::rc::Rc::clone(&self.socket);
        self.sending = Some(Box::pin(async move { socket.send(buffer).await }));
        // Started at once; its end is awaited by the next write or flush.
        match self.poll_sent(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        Poll::Ready(self.socket.shutdown_write())
    }
}
