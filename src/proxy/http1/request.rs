//! The head of a request.

use super::{Framing, HeadLimits, Parsed, Rejected, Slots};
use crate::proxy::headers::SessionFields;

/// The head of a request, in the bytes it came in.
#[derive(Debug)]
pub struct Request<'a> {
    /// Bytes of the input that the head takes.
    pub head_bytes: usize,
    pub method: &'a str,
    /// Path and query, as forwarded (origin-form, or `*`).
    pub target: &'a str,
    /// The target without its query.
    pub path: &'a str,
    /// As sent; already checked to be one authority, and the same everywhere it stands (DECISIONS 20).
    pub authority: &'a str,
    pub framing: Framing,
    pub is_http_1_0: bool,
    /// Whether the client means to send another request on this connection.
    pub keep_alive: bool,
    /// The client waits for `100 Continue` before it sends its body.
    pub expects_continue: bool,
    /// The client asks to go on as WebSocket (RFC 6455).
    pub websocket: bool,
}

/// What is added to a request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    pub session: &'a SessionFields,
    /// What `X-Request-Id` says; [`Request::request_id`] tells whether the client's own is kept.
    pub request_id: &'a str,
}

impl<'a> Request<'a> {
    /// Parses the head at the start of `input`.
    ///
    /// # Errors
    ///
    /// [`Rejected`] says what to answer; the connection is closed after it.
    pub fn parse(_input: &'a [u8], _limits: &HeadLimits, _slots: &'a mut Slots) -> Result<Parsed<Self>, Rejected> {
        unimplemented!()
    }

    /// Whether repeating the request has no other effect than sending it once (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        unimplemented!()
    }

    /// Whether the response has no body whatever its head says (RFC 9110 section 9.3.2).
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The `X-Request-Id` that came with the request, if it is kept: it came from a trusted proxy and is well-formed.
    /// Otherwise the driver makes one.
    pub fn request_id(&self, _session: &SessionFields) -> Option<&'a str> {
        unimplemented!()
    }

    /// The path that rules match: without parameters (`;...`). `scratch` holds it if it is not a part of the head.
    ///
    /// # Errors
    ///
    /// 400 for a path that an origin could resolve to another one (DECISIONS 19).
    pub fn judged_path<'s>(&'s self, _scratch: &'s mut String) -> Result<&'s str, Rejected> {
        unimplemented!()
    }

    /// Appends the head as it is forwarded.
    pub fn write(&self, _added: &Added<'_>, _out: &mut Vec<u8>) {
        unimplemented!()
    }
}
