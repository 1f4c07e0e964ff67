//! Sending what is at hand as the peer's windows allow.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;

/// A message that ends with up to so many bytes does not wait for the peer's window: one frame (RFC 9113 section 4.2). `h2`
/// keeps it, and the stream stays one of those that count.
const SMALL_BYTES: usize = 16 * 1024;

/// The stream carries nothing more: it was reset, or its connection has ended.
#[derive(Debug)]
pub struct Closed;

/// Sends as much as the peer's window takes, until all is sent. `ends`: END_STREAM goes with the last of it, or alone if there
/// is nothing.
pub fn poll_send(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    bytes: &mut Bytes,
    ends: bool,
) -> Poll<Result<(), Closed>> {
    if ends && bytes.len() <= SMALL_BYTES {
        return Poll::Ready(stream.send_data(std::mem::take(bytes), true).map_err(|_| Closed));
    }
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        let mut room = stream.capacity();
        while room == 0 {
            room = match ready!(stream.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Poll::Ready(Err(Closed)),
            };
        }
        let piece = bytes.split_to(room.min(bytes.len()));
        let last = ends && bytes.is_empty();
        stream.send_data(piece, last).map_err(|_| Closed)?;
    }
    Poll::Ready(Ok(()))
}
