//! The fields of a head: where they stand, what they mean, and what they say together about framing and the connection.

use httparse::Header;

use super::head::{Fault, bad};
use crate::policy::rules::is_token;
use crate::proxy::headers::{Meaning, TRACESTATE_MEMBERS_MAX, TraceId, meaning, parse_traceparent, tracestate_members};

/// The most names a `Connection` field can have besides those that mean something to us.
///
/// Each is compared with every field of the head; in use are one or two.
const OPTIONS_MAX: usize = 16;

/// Where the fields of one head stand; reused from head to head, so that parsing does not allocate.
#[derive(Debug, Default)]
pub struct Slots {
    fields: Vec<Field>,
}

/// One field, as places in the input.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    name_start: u32,
    name_end: u32,
    value_start: u32,
    value_end: u32,
    pub meaning: Meaning,
    /// The field stands in the input as we would write it: `name: value` CRLF.
    is_plain: bool,
}

impl Field {
    pub fn name<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        &input[self.name_start as usize..self.name_end as usize]
    }

    pub fn value<'a>(&self, input: &'a [u8]) -> &'a [u8] {
        &input[self.value_start as usize..self.value_end as usize]
    }
}

/// What the fields of a head say together.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    pub content_length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// `Connection: upgrade`.
    pub upgrade: bool,
    /// `Upgrade` is `websocket` and nothing else.
    pub websocket: bool,
    pub host: Option<&'a [u8]>,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// `X-Request-Id`; `Some(None)` if there are several.
    pub request_id: Option<Option<&'a [u8]>>,
    /// The trace the one `traceparent` names; `None` also if it is malformed.
    pub trace_id: Option<TraceId>,
    /// Every `tracestate` is well-formed, and there is not too much of it.
    pub has_whole_tracestate: bool,
    traceparents: usize,
    tracestate_members: usize,
    upgrades: usize,
    transfer_encodings: usize,
}

impl Slots {
    pub(super) fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Takes over the fields httparse found in `input` and reads those that mean something.
    pub(super) fn read<'a>(&mut self, input: &'a [u8], headers: &[Header<'a>]) -> Result<Facts<'a>, Fault> {
        self.fields.clear();
        let mut facts = Facts { has_whole_tracestate: true, ..Facts::default() };
        let mut options = Options::default();
        for header in headers {
            let name = header.name.as_bytes();
            let meaning = meaning(name);
            self.fields.push(locate(input, name, header.value, meaning)?);
            if !matches!(meaning, Meaning::Ordinary | Meaning::Unusual) {
                facts.note(meaning, header.value, &mut options)?;
            }
        }
        if facts.transfer_encodings > 0 && facts.content_length.is_some() {
            // RFC 9112 section 6.3: may be an attempt at request smuggling.
            return Err(bad("both Transfer-Encoding and Content-Length"));
        }
        // RFC 9110 section 7.6.1: what Connection names goes no further. It has no say over fields with a meaning here.
        for option in &options.names[..options.len] {
            for field in &mut self.fields {
                let is_ours_to_drop = matches!(field.meaning, Meaning::Ordinary | Meaning::Unusual);
                if is_ours_to_drop && field.name(input).eq_ignore_ascii_case(option) {
                    field.meaning = Meaning::Named;
                }
            }
        }
        Ok(facts)
    }

    /// Appends the fields that `keeps` says, in their order. Neighbours that stand as we would write them are copied as
    /// one.
    pub(super) fn write(&self, input: &[u8], out: &mut Vec<u8>, keeps: impl Fn(&Field) -> bool) {
        let mut run = 0..0;
        for field in &self.fields {
            if !keeps(field) {
                continue;
            }
            let start = field.name_start as usize;
            if field.is_plain {
                if run.end != start {
                    out.extend_from_slice(&input[run]);
                    run = start..start;
                }
                run.end = field.value_end as usize + 2;
            } else {
                out.extend_from_slice(&input[run]);
                run = start..start;
                write_field(out, field.name(input), field.value(input));
            }
        }
        out.extend_from_slice(&input[run]);
    }
}

/// Appends one field.
pub(super) fn write_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The names in `Connection` that mean nothing to us.
struct Options<'a> {
    names: [&'a [u8]; OPTIONS_MAX],
    len: usize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self { names: [&[]; OPTIONS_MAX], len: 0 }
    }
}

impl<'a> Facts<'a> {
    /// Takes note of a field that means something.
    fn note(&mut self, meaning: Meaning, value: &'a [u8], options: &mut Options<'a>) -> Result<(), Fault> {
        match meaning {
            Meaning::Host => {
                let other = self.host.replace(value);
                if other.is_some() {
                    return Err(bad("more than one Host"));
                }
            }
            Meaning::ContentLength => {
                let length = parse_length(value).ok_or(bad("Content-Length is no number"))?;
                if self.content_length.replace(length).is_some() {
                    return Err(bad("more than one Content-Length"));
                }
            }
            Meaning::TransferEncoding => {
                self.transfer_encodings += 1;
                check_coding(value)?;
                if self.transfer_encodings > 1 {
                    return Err(bad("more than one Transfer-Encoding"));
                }
                self.chunked = true;
            }
            Meaning::Connection => self.note_options(value, options)?,
            Meaning::Upgrade => {
                self.upgrades += 1;
                self.websocket = self.upgrades == 1 && value.eq_ignore_ascii_case(b"websocket");
            }
            Meaning::Expect => {
                // RFC 9110 section 10.1.1.
                if !value.eq_ignore_ascii_case(b"100-continue") || self.expects_continue {
                    return Err(Fault { status: 417, detail: "Expect other than 100-continue" });
                }
                self.expects_continue = true;
            }
            Meaning::RequestId => {
                self.request_id = Some(if self.request_id.is_none() { Some(value) } else { None });
            }
            Meaning::Traceparent => {
                self.traceparents += 1;
                self.trace_id = if self.traceparents == 1 { parse_traceparent(value) } else { None };
            }
            Meaning::Tracestate => {
                let members = tracestate_members(value);
                self.tracestate_members += members.unwrap_or(0);
                self.has_whole_tracestate &= members.is_some() && self.tracestate_members <= TRACESTATE_MEMBERS_MAX;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes note of one `Connection` field.
    fn note_options(&mut self, value: &'a [u8], options: &mut Options<'a>) -> Result<(), Fault> {
        for option in list(value) {
            if !option.iter().copied().all(is_token) {
                return Err(bad("Connection is no list of names"));
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if matches!(meaning(option), Meaning::Ordinary | Meaning::Unusual) {
                let slot = options.names.get_mut(options.len).ok_or(bad("Connection names too much"))?;
                *slot = option;
                options.len += 1;
            }
        }
        Ok(())
    }
}

/// The elements of a list (RFC 9110 section 5.6.1), empty ones passed over.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// RFC 9110 section 8.6: digits, and nothing that others could read as another number. `None` also if it does not fit.
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        length.checked_mul(10)?.checked_add(digit.into())
    })
}

/// Accepts `chunked` alone.
fn check_coding(value: &[u8]) -> Result<(), Fault> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    // RFC 9112 section 6.1: 501 is for codings we do not know; what is not even framed is a bad request.
    let mut last: &[u8] = b"";
    for coding in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
        if last.eq_ignore_ascii_case(b"chunked") || coding.is_empty() || !coding.iter().copied().all(is_token) {
            return Err(bad("Transfer-Encoding is ambiguous"));
        }
        last = coding;
    }
    if last.eq_ignore_ascii_case(b"chunked") {
        return Err(Fault { status: 501, detail: "a transfer coding besides chunked" });
    }
    Err(bad("Transfer-Encoding does not end in chunked"))
}

/// Finds a field's name and value in the input they are slices of.
fn locate(input: &[u8], name: &[u8], value: &[u8], meaning: Meaning) -> Result<Field, Fault> {
    let place = |part: &[u8]| -> Option<(u32, u32)> {
        let start = part.as_ptr().addr().checked_sub(input.as_ptr().addr())?;
        let end = start.checked_add(part.len()).filter(|&end| end <= input.len())?;
        Some((start.try_into().ok()?, end.try_into().ok()?))
    };
    let lost = bad("a head of more than 4 GiB");
    let (name_start, name_end) = place(name).ok_or(lost)?;
    // An empty value need not point anywhere.
    let (value_start, value_end) = if value.is_empty() { (name_end, name_end) } else { place(value).ok_or(lost)? };
    let is_plain = value_start == name_end + 2
        && input[name_end as usize + 1] == b' '
        && input.get(value_end as usize) == Some(&b'\r');
    Ok(Field { name_start, name_end, value_start, value_end, meaning, is_plain })
}
