//! Bodies on their way: how long they are, and that they end where they say.

use super::chunked::Chunks;
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
pub struct Body {
    state: State,
    passed_bytes: u64,
}

#[derive(Debug)]
enum State {
    /// Bytes to come; 0 is the end.
    Length(u64),
    Chunked(Chunks),
    UntilClose,
    Ended,
    /// Nothing passes any more.
    Bad(BadBody),
}

impl Body {
    /// The body of a request, of at most `max` bytes; `decode_chunks` for an origin whose protocol frames bodies itself: it
    /// gets the content, and [`Body::trailers`] apart.
    pub fn request(framing: Framing, max: Option<u64>, decode_chunks: bool) -> Self {
        let state = match framing {
            framing if framing.exceeds(max) => State::Bad(BadBody::TooLarge),
            Framing::None => State::Length(0),
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunks::of_request(max, decode_chunks)),
        };
        Self { state, passed_bytes: 0 }
    }

    /// The body of a response; `decode_chunks` for a client that does not know chunked coding: it gets the content, and
    /// [`Body::trailers`] apart if it knows them.
    pub fn response(framing: ResponseFraming, decode_chunks: bool) -> Self {
        let state = match framing {
            ResponseFraming::None => State::Length(0),
            ResponseFraming::Length(length) => State::Length(length),
            ResponseFraming::Chunked => State::Chunked(Chunks::of_response(decode_chunks)),
            ResponseFraming::UntilClose => State::UntilClose,
        };
        Self { state, passed_bytes: 0 }
    }

    /// Takes what of `input` belongs to the body and hands it on in order, mostly as slices of `input`. Returns how many
    /// bytes were consumed; what is left belongs to the next message.
    ///
    /// # Errors
    ///
    /// [`BadBody`], then and ever after; what was handed on must not look complete to its receiver.
    pub fn pass(&mut self, input: &[u8], emit: &mut dyn FnMut(&[u8])) -> Result<usize, BadBody> {
        match &mut self.state {
            State::Length(left) => {
                let bytes = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                // No more than `left`, which is a u64.
                *left -= bytes as u64;
                self.passed_bytes += bytes as u64;
                if bytes > 0 {
                    emit(&input[..bytes]);
                }
                Ok(bytes)
            }
            State::UntilClose => {
                self.passed_bytes = self.passed_bytes.saturating_add(input.len() as u64);
                if !input.is_empty() {
                    emit(input);
                }
                Ok(input.len())
            }
            State::Chunked(chunks) => {
                let passed = chunks.pass(input, emit);
                self.passed_bytes = chunks.content_bytes();
                if let Err(bad) = passed {
                    self.state = State::Bad(bad);
                }
                passed
            }
            State::Ended => Ok(0),
            State::Bad(bad) => Err(*bad),
        }
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Length(left) => *left == 0,
            State::Chunked(chunks) => chunks.is_done(),
            State::Ended => true,
            State::UntilClose | State::Bad(_) => false,
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// [`BadBody::CutShort`] if the body had not, or what was wrong with it before.
    pub fn end_of_stream(&mut self) -> Result<(), BadBody> {
        match &self.state {
            State::Bad(bad) => return Err(*bad),
            State::UntilClose => self.state = State::Ended,
            _ if self.is_done() => {}
            _ => {
                self.state = State::Bad(BadBody::CutShort);
                return Err(BadBody::CutShort);
            }
        }
        Ok(())
    }

    /// The trailer fields of a decoded body that has ended, as lines with an empty one behind. Empty if there are none.
    pub fn trailers(&self) -> &[u8] {
        match &self.state {
            State::Chunked(chunks) => chunks.trailers(),
            _ => &[],
        }
    }

    /// How many bytes of content have passed, without chunk headers and trailers.
    pub fn passed_bytes(&self) -> u64 {
        self.passed_bytes
    }
}
