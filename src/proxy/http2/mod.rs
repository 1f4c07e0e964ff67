//! HTTP/2 (RFC 9113): between its two ends a message has the form of HTTP/1.1, and is translated here.
//!
//! Heads become text that the one strict parser of [`http1`](super::http1) judges and rewrites, so that there is one answer
//! to what a request means, whichever protocol it came in. The frames are the business of the `h2` crate.

pub mod client;
pub mod head;
pub mod io;
pub mod meter;
pub mod send;
pub mod tunnel;
