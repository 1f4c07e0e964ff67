//! Bodies on their way.

use super::{Framing, ResponseFraming};

/// Why a body cannot be passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadBody {
    /// Its chunks are not those of RFC 9112 section 7.1; says what is wrong, for the log.
    Malformed(&'static str),
    /// It has more bytes than allowed: 413.
    TooLarge,
    /// Its trailers are longer or more than allowed.
    TooLong,
    /// The connection ended before it did.
    CutShort,
}

/// A body on its way: its framing is checked, and its bytes are passed on in canonical form (chunk extensions dropped,
/// trailers stripped as heads are).
#[derive(Debug)]
pub struct Body {}

impl Body {
    /// The body of a request, of at most `max` bytes.
    pub fn request(_framing: Framing, _max: Option<u64>) -> Self {
        unimplemented!()
    }

    /// The body of a response; `decode_chunks` for a client that does not know chunked coding.
    pub fn response(_framing: ResponseFraming, _decode_chunks: bool) -> Self {
        unimplemented!()
    }

    /// Takes what of `input` belongs to the body and hands it on in order, mostly as slices of `input`. Returns how many
    /// bytes were consumed; what is left belongs to the next message.
    ///
    /// # Errors
    ///
    /// [`BadBody`]; nothing more can be passed then, and what was handed on must not look complete to its receiver.
    pub fn pass(&mut self, _input: &[u8], _emit: &mut dyn FnMut(&[u8])) -> Result<usize, BadBody> {
        unimplemented!()
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        unimplemented!()
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// [`BadBody::CutShort`] if the body had not.
    pub fn end_of_stream(&mut self) -> Result<(), BadBody> {
        unimplemented!()
    }

    /// How many bytes of content have passed, without chunk headers and trailers.
    pub fn passed_bytes(&self) -> u64 {
        unimplemented!()
    }
}
