//! The response to one request: the origin's bytes become the client's.
//!
//! A function of bytes, as the parts it is made of; the driver feeds it what arrives.

use std::cell::RefCell;
use std::sync::Arc;

use crate::registry::Rewrites;

use super::{BadBody, Body, HeadLimits, Parsed, Response, ResponseFraming, Slots};

/// Most interim responses (1xx) before the final one. Servers send one or two; without a bound an origin could keep a
/// request open for good.
const INTERIMS_MAX: u8 = 16;

/// What the client can take, and what it asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The method was HEAD.
    pub head: bool,
    pub websocket: bool,
    pub dialect: Dialect,
}

/// What the client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dialect {
    /// No chunked coding, no interim responses, no trailers.
    Http1_0,
    Http1_1,
    /// Bodies and trailers are framed by the protocol itself.
    Http2,
}

/// Where a response goes, in the order it comes.
pub trait Sink {
    /// A head, interim (1xx) or not; after a final one `keep_alive` says whether the client's connection may stay open.
    /// Returns whether it does, as the head tells it.
    fn head(&mut self, response: &Response<'_>, keep_alive: bool) -> bool;

    /// A piece of the body, in the framing of the client's dialect.
    fn piece(&mut self, piece: &[u8]);

    /// The trailer fields of a response whose body has ended, for a dialect that has them apart from the body: lines, and an
    /// empty one.
    fn trailers(&mut self, _lines: &[u8]) {}
}

/// The origin's bytes are no response to the request; says why, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unintelligible(pub &'static str);

/// What becomes of a final response, by its status.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It is the client's, whose connection may stay open or not.
    PassOn { keep_alive: bool },
    /// The request is sent again instead.
    Withhold,
}

/// How far the response is.
enum Stage {
    Head,
    Body(Body),
    Done,
    /// The connection is a WebSocket from here on.
    Switched,
    /// The response is not passed on.
    Withheld,
}

/// A response on its way.
pub struct Reply {
    asked: Asked,
    limits: HeadLimits,
    rewrites: Option<Arc<Rewrites>>,
    stage: Stage,
    /// Part of a head; or what came behind a switch.
    carry: Vec<u8>,
    interims: u8,
    /// Bytes have come.
    pub started: bool,
    /// A head has been passed on.
    pub has_spoken: bool,
    /// The status of the final head, once it has been passed on; 0 before.
    pub status: u16,
    /// Bytes of the body that were passed on.
    pub body_bytes: u64,
    /// The client's connection stays open afterwards, as the head told it.
    pub keeps_client: bool,
    /// The origin's connection can carry another exchange.
    pub keeps_origin: bool,
}

impl Reply {
    /// Waits for its first byte.
    pub fn new(asked: Asked, limits: HeadLimits) -> Self {
        Self {
            asked,
            limits,
            rewrites: None,
            stage: Stage::Head,
            carry: Vec::new(),
            interims: 0,
            started: false,
            has_spoken: false,
            status: 0,
            body_bytes: 0,
            keeps_client: false,
            keeps_origin: false,
        }
    }

    /// The same, with the hostname's changes to responses.
    pub fn rewritten(self, rewrites: Option<&Arc<Rewrites>>) -> Self {
        Self { rewrites: rewrites.map(Arc::clone), ..self }
    }

    /// Whether the response is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether the connection is a WebSocket now.
    pub fn has_switched(&self) -> bool {
        matches!(self.stage, Stage::Switched)
    }

    /// Whether there is a response, and it is not passed on.
    pub fn is_withheld(&self) -> bool {
        matches!(self.stage, Stage::Withheld)
    }

    /// What the origin sent behind its switch.
    pub fn take_leftover(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.carry)
    }

    /// Takes bytes of the origin. `fate` says what becomes of a response of this status.
    ///
    /// # Errors
    ///
    /// [`Unintelligible`]; the origin's connection is of no use any more.
    pub fn take(
        &mut self,
        bytes: &[u8],
        slots: &RefCell<Slots>,
        fate: &dyn Fn(u16) -> Fate,
        sink: &mut impl Sink,
    ) -> Result<(), Unintelligible> {
        self.started |= !bytes.is_empty();
        if !matches!(self.stage, Stage::Head) {
            return self.body(bytes, sink);
        }
        if self.carry.is_empty() {
            let consumed = self.heads(bytes, slots, fate, sink)?;
            return self.rest(&bytes[consumed..], sink);
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(bytes);
        let consumed = self.heads(&carry, slots, fate, sink)?;
        self.rest(&carry[consumed..], sink)
    }

    /// What follows the heads that were complete: more of the next one, or the body.
    fn rest(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Unintelligible> {
        match self.stage {
            Stage::Head | Stage::Switched => {
                self.carry.extend_from_slice(bytes);
                Ok(())
            }
            Stage::Body(_) | Stage::Done => self.body(bytes, sink),
            Stage::Withheld => Ok(()),
        }
    }

    /// Parses as many heads as there are, to the final one. Returns how many bytes they took.
    fn heads(
        &mut self,
        bytes: &[u8],
        slots: &RefCell<Slots>,
        fate: &dyn Fn(u16) -> Fate,
        sink: &mut impl Sink,
    ) -> Result<usize, Unintelligible> {
        let mut consumed = 0;
        loop {
            let mut slots = slots.borrow_mut();
            let parsed = Response::parse(&bytes[consumed..], &self.limits, &mut slots, self.asked.head);
            let mut response = match parsed.map_err(|garbled| Unintelligible(garbled.detail))? {
                Parsed::Incomplete => return Ok(consumed),
                Parsed::Complete(response) => response,
            };
            consumed += response.head_bytes;
            response.changes = self.rewrites.as_deref().map(|rewrites| &rewrites.response);
            let dialect = self.asked.dialect;
            if response.status == 101 {
                if !(self.asked.websocket && response.websocket_accepted) {
                    return Err(Unintelligible("a 101 to a request that did not ask for it"));
                }
                sink.head(&response, true);
                self.has_spoken = true;
                self.status = response.status;
                self.stage = Stage::Switched;
                return Ok(consumed);
            }
            if response.status < 200 {
                self.interims += 1;
                if self.interims > INTERIMS_MAX {
                    return Err(Unintelligible("too many interim responses"));
                }
                // RFC 9110 section 15.2: a server does not send 1xx to a client of HTTP/1.0.
                if dialect != Dialect::Http1_0 {
                    sink.head(&response, true);
                    self.has_spoken = true;
                }
                continue;
            }
            let keep_alive = match fate(response.status) {
                Fate::PassOn { keep_alive } => keep_alive,
                Fate::Withhold => {
                    self.stage = Stage::Withheld;
                    return Ok(consumed);
                }
            };
            self.keeps_client = sink.head(&response, keep_alive);
            self.has_spoken = true;
            self.keeps_origin = response.keep_alive;
            self.status = response.status;
            let body = Body::response(response.framing, dialect != Dialect::Http1_1);
            let until_close = response.framing == ResponseFraming::UntilClose;
            self.stage = if body.is_done() && !until_close { Stage::Done } else { Stage::Body(body) };
            return Ok(consumed);
        }
    }

    fn body(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Unintelligible> {
        let consumed = match &mut self.stage {
            Stage::Body(body) => {
                let consumed = body.pass(bytes, &mut |piece| sink.piece(piece)).map_err(|bad| {
                    Unintelligible(match bad {
                        BadBody::Malformed(detail) => detail,
                        BadBody::TooLarge | BadBody::TooLong | BadBody::CutShort => "trailers too long",
                    })
                })?;
                self.body_bytes = body.passed_bytes();
                if body.is_done() {
                    if !body.trailers().is_empty() {
                        sink.trailers(body.trailers());
                    }
                    self.stage = Stage::Done;
                }
                consumed
            }
            _ => 0,
        };
        // Bytes nobody asked for: the next request must not meet them.
        self.keeps_origin &= consumed == bytes.len();
        Ok(())
    }

    /// The origin has ended its side. Returns whether the response is whole.
    pub fn end_of_stream(&mut self) -> bool {
        self.keeps_origin = false;
        let whole = match &mut self.stage {
            Stage::Done => true,
            Stage::Body(body) => body.end_of_stream().is_ok(),
            Stage::Head | Stage::Switched | Stage::Withheld => false,
        };
        if whole {
            self.stage = Stage::Done;
        }
        whole
    }
}
