//! HTTP/2 to origins: many exchanges on few connections.
//!
//! | file | what it holds |
//! |---|---|
//! | `head` | heads and trailers in two forms: text of HTTP/1.1, and HTTP/2's |
//! | `connection` | one connection: who may use it, how many streams it has room for, how it ends |
//! | `stream` | one exchange: a wire like a socket, whose bytes have the form of HTTP/1.1 |
//! | `link` | what `h2` reads from and writes to |
//! | `pings` | when a silent connection is asked whether it lives |

pub mod connection;
mod head;
mod link;
mod pings;
pub mod stream;

pub use connection::Connection;
pub use stream::Stream;

/// Most streams on one connection, however many the origin allows: with [`STREAM_WINDOW_BYTES`] it bounds what clients that
/// do not read can make a connection hold.
const STREAMS_MAX: usize = 128;

/// How many bytes of one response may be on their way here unread. In a data centre (0.5 ms) it does not hold a stream below
/// 250 MB/s.
const STREAM_WINDOW_BYTES: u32 = 128 * 1024;

/// The same for a connection: room for all of its streams, so that those whose clients do not read never hold the others
/// back.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX as u32 * STREAM_WINDOW_BYTES;

/// Most bytes of one request that wait to be written.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
