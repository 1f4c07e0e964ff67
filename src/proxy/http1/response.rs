//! The head of a response: parsed, checked, and written as the client gets it.
//!
//! An origin is no enemy, but one that can be made to answer ambiguously is a tool of one (response splitting, queue
//! poisoning on a pooled connection). So it is read as strictly as a client.

use std::io::Write;
use std::mem::MaybeUninit;

use super::fields::{Facts, Field, write_field};
use super::head::{Fault, bad, find};
use super::request::drops;
use super::{FIELDS_MAX, HeadLimits, Parsed, ResponseFraming, Slots};
use crate::proxy::headers::Meaning;
use crate::registry::FieldChanges;

/// What stands before the reason in a status line: `HTTP/1.1 200`.
const STATUS_BYTES: usize = 12;

/// A response that is not HTTP/1.1, or not in one way only: 502, and the origin's connection is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Garbled {
    /// For the log.
    pub detail: &'static str,
}

impl From<Fault> for Garbled {
    fn from(fault: Fault) -> Self {
        Self { detail: fault.detail }
    }
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
    /// What the head says of the body, which a response to HEAD and a 304 do not have (RFC 9110 section 8.6).
    declared: ResponseFraming,
    /// The status line from after the status on.
    reason: &'a [u8],
    /// What the hostname changes in final responses.
    pub changes: Option<&'a FieldChanges>,
    input: &'a [u8],
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
    /// Parses the head at the start of `input`; `to_head` says that the request was a HEAD. 1xx are responses without a
    /// body.
    ///
    /// # Errors
    ///
    /// [`Garbled`] if it is no HTTP/1.x response or its framing is ambiguous.
    pub fn parse(
        input: &'a [u8],
        limits: &HeadLimits,
        slots: &'a mut Slots,
        to_head: bool,
    ) -> Result<Parsed<Self>, Garbled> {
        let Some(span) = find(input, limits, false)? else { return Ok(Parsed::Incomplete) };
        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut head,
            &input[..span.end],
            &mut headers,
        );
        if parsed != Ok(httparse::Status::Complete(span.end)) {
            return Err(bad("the head is malformed").into());
        }
        let (Some(status @ 100..=599), Some(minor), Some(reason)) =
            (head.code, head.version, input.get(STATUS_BYTES..span.first_line_end))
        else {
            return Err(bad("a status outside 100 to 599").into());
        };
        let facts = slots.read(input, head.headers)?;
        let is_http_1_0 = minor == 0;
        if is_http_1_0 && facts.chunked {
            return Err(bad("Transfer-Encoding in HTTP/1.0").into());
        }
        let websocket_accepted = status == 101;
        // RFC 6455 section 4.1.
        if websocket_accepted && (is_http_1_0 || !facts.upgrade || !facts.websocket) {
            return Err(bad("a 101 to something else than websocket").into());
        }
        let declared = declared(status, &facts)?;
        let framing = if to_head || status == 304 { ResponseFraming::None } else { declared };
        let persists = !facts.close && (!is_http_1_0 || facts.keep_alive);
        Ok(Parsed::Complete(Self {
            head_bytes: span.end,
            status,
            framing,
            keep_alive: persists && framing != ResponseFraming::UntilClose && !websocket_accepted,
            websocket_accepted,
            declared,
            reason,
            changes: None,
            input,
            slots,
        }))
    }

    /// The fields that are passed on, for a client whose protocol writes heads in another way. Framing is not among them.
    pub fn fields(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let (input, changes) = (self.input, self.changes());
        let fields = self.slots.fields().iter().filter(move |field| goes_on(field));
        let fields = fields.map(move |field| (field.name(input), field.value(input)));
        let fields = fields.filter(move |(name, _)| changes.is_none_or(|changes| !drops(changes, name)));
        let added = changes.map(FieldChanges::added).unwrap_or_default();
        fields.chain(added.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    /// Interim responses are the origin's alone.
    fn changes(&self) -> Option<&'a FieldChanges> {
        self.changes.filter(|_| self.status >= 200)
    }

    /// What `Content-Length` says; of a response without a body, what one with a body would have said.
    pub fn content_length(&self) -> Option<u64> {
        match self.declared {
            ResponseFraming::Length(length) => Some(length),
            _ => None,
        }
    }

    /// Appends the head for the client: hop-by-hop fields removed, framing as the client knows it, `Connection` as needed.
    /// Returns whether the client's connection stays open after the response, as the head says: not if the body ends with
    /// the connection.
    ///
    /// A client of HTTP/1.0 gets no 1xx (RFC 9110 section 15.2); not to write one is up to the caller.
    pub fn write(&self, client: &ClientSide, out: &mut Vec<u8>) -> bool {
        out.reserve(self.head_bytes + 64);
        // Writing to a Vec cannot fail.
        let _ = write!(out, "HTTP/1.1 {}", self.status);
        // The space stands even before an empty reason (RFC 9112 section 4).
        out.extend_from_slice(if self.reason.is_empty() { b" " } else { self.reason });
        out.extend_from_slice(b"\r\n");
        match self.changes() {
            None => self.slots.write(self.input, out, goes_on),
            Some(changes) => {
                self.slots.write(self.input, out, |field| goes_on(field) && !drops(changes, field.name(self.input)));
                for (name, value) in changes.added() {
                    write_field(out, name.as_bytes(), value.as_bytes());
                }
            }
        }
        match self.declared {
            ResponseFraming::Length(length) => drop(write!(out, "Content-Length: {length}\r\n")),
            ResponseFraming::Chunked if !client.is_http_1_0 => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            _ => {}
        }
        let ends_with_connection = match self.framing {
            ResponseFraming::UntilClose => true,
            ResponseFraming::Chunked => client.is_http_1_0,
            ResponseFraming::None | ResponseFraming::Length(_) => false,
        };
        let stays = client.keep_alive && !ends_with_connection;
        if self.websocket_accepted {
            out.extend_from_slice(b"Connection: upgrade\r\nUpgrade: websocket\r\n");
        } else if self.status >= 200 {
            match (stays, client.is_http_1_0) {
                (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
                (true, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
                (true, false) => {}
            }
        }
        out.extend_from_slice(b"\r\n");
        stays
    }
}

/// Whether a field of a response is passed on: not what frames it or is about one connection.
fn goes_on(field: &Field) -> bool {
    use Meaning as M;
    !matches!(field.meaning, M::Hop | M::Connection | M::Upgrade | M::Named | M::ContentLength | M::TransferEncoding)
}

/// What the head says of the body (RFC 9112 section 6.3).
fn declared(status: u16, facts: &Facts<'_>) -> Result<ResponseFraming, Fault> {
    if status < 200 || status == 204 {
        // RFC 9110 section 8.6 and RFC 9112 section 6.1: none may be sent. `Content-Length: 0`, which says the same, is.
        return match (facts.chunked, facts.content_length) {
            (false, None | Some(0)) => Ok(ResponseFraming::None),
            _ => Err(bad("a body where there is none")),
        };
    }
    Ok(match (facts.chunked, facts.content_length) {
        (true, _) => ResponseFraming::Chunked,
        (false, Some(length)) => ResponseFraming::Length(length),
        (false, None) => ResponseFraming::UntilClose,
    })
}
