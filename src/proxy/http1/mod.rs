//! HTTP/1.1 as functions of bytes: heads are parsed, judged and rewritten, bodies pass through.
//!
//! For the driver, which owns sockets and clocks. Nothing here reads, waits or allocates per request beyond the output it
//! is given. What can be read in two ways is refused, never repaired (RFC 9112 section 11.2): the origin sees one request
//! for each one we saw, or none.

pub mod answer;
pub mod authority;
mod body;
mod chunked;
pub mod client;
pub mod downstream;
pub mod exchange;
mod fields;
mod head;
pub mod reply;
mod request;
mod response;
mod target;

pub use answer::ProxyError;
pub use body::{BadBody, Body};
pub use fields::Slots;
pub use request::{Added, Request};
pub use response::{ClientSide, Garbled, Response};

use crate::policy::Refusal;

/// A path as rules match it: without the parameters of its segments.
///
/// # Errors
///
/// [`Rejected`] with 400 where an origin could resolve it to another path than the one we see (DECISIONS 19).
pub fn judged_path<'s>(path: &'s str, scratch: &'s mut String) -> Result<&'s str, Rejected> {
    Ok(target::judge(path, scratch)?)
}

/// A path as the origin gets it, without the prefix a hostname cuts from it.
///
/// # Errors
///
/// [`Rejected`] with 404 for a path that is not below the prefix, with 400 for one that could be read in two ways.
pub fn stripped_path(prefix: &str, path: &str) -> Result<String, Rejected> {
    target::strip(prefix, path, path).map(|parts| parts.concat())
}

/// The most fields a head can have, whatever the configuration says.
///
/// Browsers send some 15, chains of proxies some 40. The fields are found in an array on the stack: 8 KiB of it at this
/// bound.
pub const FIELDS_MAX: usize = 256;

/// How large a head may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeadLimits {
    /// Bytes of the head, from its first line to the empty one.
    pub bytes_max: usize,
    /// Fields of the head; more than [`FIELDS_MAX`] are never accepted.
    pub fields_max: usize,
}

/// What became of the bytes so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parsed<T> {
    /// The head has not ended; parse again with more bytes.
    Incomplete,
    Complete(T),
}

/// A request that is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejected {
    /// The status to answer with, after which the connection is closed.
    pub status: u16,
    /// For counters and logs.
    pub reason: Refusal,
    /// For the log only: what it says to whoever plans an attack is none of the client's business.
    pub detail: &'static str,
}

/// How the body of a request is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    None,
    /// Bytes.
    Length(u64),
    Chunked,
}

impl Framing {
    /// Whether the body is known beforehand to have more than `max` bytes.
    pub fn exceeds(self, max: Option<u64>) -> bool {
        matches!((self, max), (Self::Length(length), Some(max)) if length > max)
    }
}

/// How the body of a response is delimited (RFC 9112 section 6.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResponseFraming {
    None,
    /// Bytes.
    Length(u64),
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

#[cfg(test)]
mod tests;
