//! What an exchange or a tunnel sends to an origin through, whatever carries it there.

use std::io;
use std::task::{Context, Poll};

use super::http2::Stream;
use super::tls::Tls;
use crate::proxy::buffers::Buffers;
use crate::proxy::http1::ProxyError;
use crate::ring::{Receive, Socket};
use crate::tls::origin::Fault;

/// A connection to an origin.
pub enum Wire {
    Plain(Socket),
    /// Boxed: what is most common is small.
    Tls(Box<Tls>),
    /// One stream of a connection that others use too.
    Http2(Box<Stream>),
}

impl Wire {
    /// How the next receives are asked for.
    pub fn set_receive(&self, mode: Receive) {
        match self {
            Self::Plain(socket) => socket.set_receive(mode),
            Self::Tls(tls) => tls.socket.set_receive(mode),
            Self::Http2(_) => {}
        }
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
            Self::Http2(stream) => stream.poll_receive(cx, take),
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
            // What has come is asked for anew: a stream wakes for all of it.
            Self::Http2(_) => None,
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
            Self::Http2(stream) => (Box::pin(stream.send(&bytes[..filled], false, &[])).await, bytes),
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
            Self::Http2(stream) => Box::pin(stream.send(&[], true, &[])).await,
        }
    }

    /// Makes the coming close a reset, so that the origin cannot take a broken stream for a finished one; of a stream it is one
    /// at once.
    pub fn reset_on_close(&self) {
        match self {
            Self::Plain(socket) => socket.reset_on_close(),
            Self::Tls(tls) => tls.socket.reset_on_close(),
            Self::Http2(stream) => stream.reset(),
        }
    }

    /// Why it carries nothing more, if more is known than that it broke: what the client is told, and words for the log.
    pub fn fault(&self) -> Option<(ProxyError, String)> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.failed().map(|failed| {
                let error = match failed.fault {
                    Fault::Certificate => ProxyError::TlsCertificateError,
                    Fault::Alert => ProxyError::TlsAlertReceived,
                    Fault::Protocol => ProxyError::TlsProtocolError,
                };
                (error, failed.detail)
            }),
            Self::Http2(stream) => stream.fault().map(|fault| (fault.error, fault.detail)),
        }
    }

    /// Whether the origin is known not to have looked at the request (RFC 9113 section 8.7).
    pub fn is_unprocessed(&self) -> bool {
        matches!(self, Self::Http2(stream) if stream.fault().is_some_and(|fault| fault.unprocessed))
    }

    /// Whether its protocol frames bodies itself.
    pub fn is_http2(&self) -> bool {
        matches!(self, Self::Http2(_))
    }
}
