//! The head of a response.

use super::{HeadLimits, Parsed, ResponseFraming, Slots};

/// A response that is not HTTP/1.1, or not in one way only: 502, and the origin's connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbled {
    /// For the log.
    pub detail: &'static str,
}

/// The head of a response, in the bytes it came in.
#[derive(Debug)]
pub struct Response<'a> {
    /// Bytes of the input that the head takes.
    pub head_bytes: usize,
    /// 100 to 599.
    pub status: u16,
    pub framing: ResponseFraming,
    /// Whether the origin's connection can carry another exchange once this one has ended.
    pub keep_alive: bool,
    /// A valid 101 to `websocket`. Every other 101 is garbled; this one is too unless the request asked for it.
    pub websocket_accepted: bool,
    slots: &'a Slots,
}

/// What the client's side of the connection needs of a response head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClientSide {
    /// The client's connection may stay open after this response.
    pub keep_alive: bool,
    /// The client speaks HTTP/1.0: it knows no chunked coding and no 1xx.
    pub is_http_1_0: bool,
}

impl<'a> Response<'a> {
    /// Parses the head at the start of `input`. 1xx are responses without a body.
    ///
    /// # Errors
    ///
    /// [`Garbled`] if it is no HTTP/1.x response or its framing is ambiguous.
    pub fn parse(
        _input: &'a [u8],
        _limits: &HeadLimits,
        _slots: &'a mut Slots,
        _to_head: bool,
    ) -> Result<Parsed<Self>, Garbled> {
        unimplemented!()
    }

    /// Appends the head for the client. Returns whether the client's connection stays open after the response, as the
    /// head says: not if its body ends with the connection.
    pub fn write(&self, _client: &ClientSide, _out: &mut Vec<u8>) -> bool {
        unimplemented!()
    }
}
