//! The client's side of an exchange, whatever protocol the client speaks.
//!
//! Between its two ends a message has the form of HTTP/1.1: the request's body comes in its framing, the response goes into
//! a [`Sink`]. An HTTP/1.1 connection passes it on as it is, a stream of HTTP/2 translates.

use std::task::{Context, Poll};

use super::client::Gone;
use super::reply::Sink;
use crate::proxy::buffers::Buffers;

/// What becomes of the client's side with what is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// More of the response follows.
    More,
    /// The response is whole.
    Whole,
    /// The response is whole, and the connection ends with it.
    WholeAndLast,
}

/// One client that waits for one response.
///
/// No borrow lasts across an await: the future that reads the request and the one that writes the response share this.
pub trait Downstream {
    /// What is gathered of a response before it is sent.
    type Gathered;

    /// The worker's spare memory.
    fn buffers(&self) -> &Buffers;

    /// Shows what has come of the request's body, in HTTP/1.1 framing, and was not consumed; `consume` says how much of it is
    /// done with.
    fn consume<R>(&self, consume: impl FnOnce(&[u8]) -> (usize, R)) -> R;

    /// Reads more of the body past what waits, of which there must be nothing; `sink` says how much of it it takes, the rest
    /// waits. Ready with false when the client has ended in order and nothing more comes.
    fn poll_pass(&self, cx: &mut Context<'_>, sink: impl FnMut(&[u8]) -> usize) -> Poll<Result<bool, Gone>>;

    /// Notices a client that goes away. Never ready otherwise. `body_read`: nobody else reads.
    fn poll_gone(&self, cx: &mut Context<'_>, body_read: bool) -> Poll<Gone>;

    /// Whether another request may come on the connection, as far as the client is concerned.
    fn may_ask_more(&self) -> bool;

    /// Begins to gather.
    fn gather(&self) -> Self::Gathered;

    /// Where the response goes, into what is gathered.
    fn sink<'s>(&'s self, gathered: &'s mut Self::Gathered) -> impl Sink + 's;

    /// How many bytes are gathered.
    fn gathered_bytes(&self, gathered: &Self::Gathered) -> usize;

    /// Makes ready for sending what was gathered; [`Downstream::flush`] sends it.
    ///
    /// # Errors
    ///
    /// The client can be sent nothing more.
    fn write(&self, gathered: Self::Gathered, ending: Ending) -> Result<(), Gone>;

    /// How many bytes wait to be sent.
    fn unsent(&self) -> usize;

    /// Sends what was written; ready when the client's side has room for more.
    fn flush(&self) -> impl Future<Output = Result<(), Gone>>;
}
