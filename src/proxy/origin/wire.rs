//! What an exchange or a tunnel sends to an origin through, whatever carries it there.

use std::io;
use std::task::{Context, Poll};

use super::tls::Tls;
use crate::proxy::buffers::Buffers;
use crate::ring::{Receive, Socket};
use crate::tls::origin::Failed;

/// A connection to an origin.
pub enum Wire {
    Plain(Socket),
    /// Boxed: what is most common is small.
    Tls(Box<Tls>),
}

impl Wire {
    /// How the next receives are asked for.
    pub fn set_receive(&self, mode: Receive) {
        self.socket().set_receive(mode);
    }

    /// Hands the next bytes to `take`, in one or several pieces until one is not taken well. `None`: the origin has ended
    /// its side in order.
    ///
    /// # Errors
    ///
    /// The connection is broken, or was cut.
    pub fn poll_receive<E>(
        &self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Poll<io::Result<Option<Result<(), E>>>> {
        match self {
            Self::Plain(socket) => socket.poll_receive(cx, |bytes| take(bytes)),
            Self::Tls(tls) => tls.poll_receive(cx, take),
        }
    }

    /// As [`Wire::poll_receive`], but only for what is here already: nothing is asked of the kernel and nobody is woken
    /// later. `None`: nothing is here.
    pub fn arrived<E>(
        &self,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Option<io::Result<Option<Result<(), E>>>> {
        match self {
            Self::Plain(socket) => socket.arrived(|bytes| take(bytes)),
            Self::Tls(tls) => tls.arrived(take),
        }
    }

    /// Sends the first `filled` bytes of a buffer and gives it back as it was.
    ///
    /// Dropped, an unknown part of the bytes has been sent: close the connection then.
    pub async fn send_prefix(&self, buffers: &Buffers, bytes: Vec<u8>, filled: usize) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Plain(socket) => socket.send_prefix(bytes, filled).await,
            // Boxed, so that exchanges without TLS do not carry it along.
            Self::Tls(tls) => Box::pin(tls.send_prefix(buffers, bytes, filled)).await,
        }
    }

    /// Says that nothing more is sent.
    ///
    /// # Errors
    ///
    /// The origin has reset.
    pub async fn finish(&self, buffers: &Buffers) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown_write(),
            Self::Tls(tls) => Box::pin(tls.finish(buffers)).await,
        }
    }

    /// Makes the coming close a reset, so that the origin cannot take a broken stream for a finished one.
    pub fn reset_on_close(&self) {
        self.socket().reset_on_close();
    }

    /// Why it carries nothing more, if TLS is the reason.
    pub fn failed(&self) -> Option<Failed> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.failed(),
        }
    }

    /// What it rests on.
    pub fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }
}
