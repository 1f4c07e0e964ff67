//! The head of a request: parsed, checked, and written as the origin gets it.

use std::io::Write;
use std::mem::MaybeUninit;

use super::fields::{Facts, Field, write_field};
use super::head::{Fault, bad, find};
use super::target::{self, Target};
use super::{FIELDS_MAX, Framing, HeadLimits, Parsed, Rejected, Slots, authority};
use crate::policy::Refusal;
use crate::policy::rules::is_token;
use crate::proxy::headers::{Begun, Meaning, SessionFields, TraceId, is_spelling_of};
use crate::proxy::origin::balance::hash;
use crate::registry::FieldChanges;

/// The longest method. Registered ones have at most 17 bytes (`UPDATEREDIRECTREF`); what is longer no origin implements,
/// and it would stand in every log line.
const METHOD_BYTES_MAX: usize = 32;

/// The longest `X-Request-Id` that is kept: it is copied into every log line on the way. UUIDs have 36 bytes, the ids of
/// tracing systems up to 100.
const REQUEST_ID_BYTES_MAX: usize = 128;

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
    /// The one `X-Request-Id`, if it is well-formed.
    request_id: Option<&'a str>,
    /// The trace this request belongs to, if it says so well.
    trace_id: Option<TraceId>,
    keeps_tracestate: bool,
    input: &'a [u8],
    slots: &'a Slots,
}

/// What is added to a request on its way.
#[derive(Clone, Copy, Debug)]
pub struct Added<'a> {
    pub session: &'a SessionFields,
    /// What `X-Request-Id` says; [`Request::request_id`] tells whether the client's own is kept.
    pub request_id: &'a str,
    /// The trace that begins with this request; counts only if it brought none.
    pub begun: Option<&'a Begun>,
}

impl From<Fault> for Rejected {
    fn from(fault: Fault) -> Self {
        Self { status: fault.status, reason: Refusal::MalformedRequest, detail: fault.detail }
    }
}

impl<'a> Request<'a> {
    /// Parses the head at the start of `input`.
    ///
    /// # Errors
    ///
    /// [`Rejected`] says what to answer; the connection is closed after it.
    pub fn parse(input: &'a [u8], limits: &HeadLimits, slots: &'a mut Slots) -> Result<Parsed<Self>, Rejected> {
        let Some(span) = find(input, limits, true)? else { return Ok(Parsed::Incomplete) };
        let mut headers = [const { MaybeUninit::uninit() }; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut []);
        let parsed = head.parse_with_uninit_headers(&input[span.start..span.end], &mut headers);
        match parsed {
            Ok(httparse::Status::Complete(bytes)) if span.start + bytes == span.end => {}
            Err(httparse::Error::Version) => {
                return Err(unknown_version(&input[span.start..span.first_line_end]).into());
            }
            Ok(_) | Err(_) => return Err(bad("the head is malformed").into()),
        }
        let (Some(method), Some(target), Some(minor)) = (head.method, head.path, head.version) else {
            return Err(bad("the request line is malformed").into());
        };
        let facts = slots.read(input, head.headers)?;
        let is_http_1_0 = minor == 0;
        check_method(method)?;
        let Target { forwarded, path, authority } = target::read(method, target)?;
        let authority = one_authority(&facts, authority)?;
        let framing = framing(&facts, is_http_1_0)?;
        let has_body = !matches!(framing, Framing::None | Framing::Length(0));
        Ok(Parsed::Complete(Self {
            head_bytes: span.end,
            method,
            target: forwarded,
            path,
            authority,
            framing,
            is_http_1_0,
            keep_alive: !facts.close && (!is_http_1_0 || facts.keep_alive),
            // RFC 9110 section 10.1.1: not from HTTP/1.0, and not without a body to wait with.
            expects_continue: facts.expects_continue && has_body && !is_http_1_0,
            // RFC 6455 section 4.1. With a body it would not be clear what the first bytes of the tunnel are.
            websocket: facts.websocket && facts.upgrade && method == "GET" && !has_body && !is_http_1_0,
            request_id: facts.request_id.flatten().and_then(well_formed_request_id),
            trace_id: facts.trace_id,
            keeps_tracestate: facts.trace_id.is_some() && facts.has_whole_tracestate,
            input,
            slots,
        }))
    }

    /// Whether repeating the request has no other effect than sending it once (RFC 9110 section 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// Whether the response has no body whatever its head says (RFC 9110 section 9.3.2).
    pub fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// Whether the client says that it takes trailers (RFC 9110 section 10.1.4).
    pub fn takes_trailers(&self) -> bool {
        let fields = self.slots.fields().iter().filter(|field| field.name(self.input).eq_ignore_ascii_case(b"te"));
        let mut codings = fields.flat_map(|field| field.value(self.input).split(|byte| *byte == b','));
        codings.any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    }

    /// The first value of a field.
    pub fn value_of(&self, name: &str) -> Option<&'a [u8]> {
        let mut fields = self.slots.fields().iter();
        let found = fields.find(|field| field.name(self.input).eq_ignore_ascii_case(name.as_bytes()));
        found.map(|field| field.value(self.input))
    }

    /// The hash of the values of a field, in their order; `None` if there is none.
    pub fn hash_of(&self, name: &str) -> Option<u64> {
        let named = |field: &&super::fields::Field| field.name(self.input).eq_ignore_ascii_case(name.as_bytes());
        let values = self.slots.fields().iter().filter(named).map(|field| field.value(self.input));
        values.fold(None, |hash, value| Some(hash::of(&(hash, value))))
    }

    /// The `X-Request-Id` that came with the request, if it is kept: it came from a trusted proxy and is well-formed.
    /// Otherwise the driver makes one.
    pub fn request_id(&self, session: &SessionFields) -> Option<&'a str> {
        self.request_id.filter(|_| session.trusts_peer())
    }

    /// The trace this request belongs to; `None`: it names none, or not in a way that is passed on.
    pub fn trace_id(&self) -> Option<TraceId> {
        self.trace_id
    }

    /// The path that rules match: without parameters (`;...`). `scratch` holds it if it is not a part of the head.
    ///
    /// # Errors
    ///
    /// 400 for a path that an origin could resolve to another one (DECISIONS 19).
    pub fn judged_path<'s>(&'s self, scratch: &'s mut String) -> Result<&'s str, Rejected> {
        super::judged_path(self.path, scratch)
    }

    /// Appends the head as it is forwarded: hop-by-hop fields and every copy of an identity removed, then ours added. No
    /// field of the client's, `Connection` included, has a say over what is added. What the hostname changes besides is
    /// changed here, after rules have seen what the client sent.
    ///
    /// # Errors
    ///
    /// 404 or 400 for a path that the hostname's prefix cannot be cut from; nothing is appended then.
    pub fn write(&self, added: &Added<'_>, out: &mut Vec<u8>) -> Result<(), Rejected> {
        let session = added.session;
        let rewrites = session.rewrites();
        let target = match rewrites.and_then(|rewrites| rewrites.strip_prefix.as_deref()) {
            Some(prefix) => target::strip(prefix, self.target, self.path)?,
            None => ["", self.target],
        };
        let host = rewrites.and_then(|rewrites| rewrites.host.as_deref());
        out.reserve(self.input.len().min(self.head_bytes) + session.bytes_max(self.authority, added.request_id));
        for part in [self.method, " ", target[0], target[1], " HTTP/1.1\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        if let Some(host) = host {
            write_field(out, b"Host", host.as_bytes());
        }
        let keeps = |field: &Field| match field.meaning {
            Meaning::Ordinary => true,
            Meaning::Host => host.is_none(),
            Meaning::Traceparent => self.trace_id.is_some(),
            Meaning::Tracestate => self.keeps_tracestate,
            Meaning::Unusual => session.keeps_unusual_names(),
            Meaning::Expect => self.expects_continue,
            Meaning::ForwardedOther => session.trusts_peer(),
            _ => false,
        };
        match rewrites.map(|rewrites| &rewrites.request) {
            None => self.slots.write(self.input, out, keeps),
            Some(changes) => {
                let drops = |field: &Field| drops(changes, field.name(self.input));
                self.slots.write(self.input, out, |field| keeps(field) && !drops(field));
                for (name, value) in changes.added() {
                    write_field(out, name.as_bytes(), value.as_bytes());
                }
            }
        }
        if let Some(begun) = added.begun.filter(|_| self.trace_id.is_none()) {
            write_field(out, b"traceparent", begun.traceparent());
        }
        match self.framing {
            Framing::None => {}
            // Writing to a Vec cannot fail.
            Framing::Length(length) => drop(write!(out, "Content-Length: {length}\r\n")),
            Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        }
        if self.websocket {
            out.extend_from_slice(b"Connection: upgrade\r\nUpgrade: websocket\r\n");
        }
        session.write(self.authority, added.request_id, out, |meaning| {
            let fields = self.slots.fields().iter().filter(move |field| field.meaning == meaning);
            fields.map(|field| field.value(self.input))
        });
        out.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// Whether a field does not pass, in whatever spelling: of one that is put in the origin is to see ours alone.
pub(super) fn drops(changes: &FieldChanges, name: &[u8]) -> bool {
    changes.drops().iter().any(|dropped| is_spelling_of(name, dropped))
}

/// A request line whose version httparse does not know: 505 if it is a version of HTTP (RFC 9112 section 2.3).
fn unknown_version(line: &[u8]) -> Fault {
    let mut parts = line.split(|&byte| byte == b' ');
    let version = parts.nth(2).and_then(|version| version.strip_prefix(b"HTTP/"));
    match version {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() && parts.next().is_none() => {
            Fault { status: 505, detail: "a version other than HTTP/1.0 and HTTP/1.1" }
        }
        _ => bad("the request line ends in no version"),
    }
}

fn check_method(method: &str) -> Result<(), Fault> {
    if method == "CONNECT" {
        return Err(Fault { status: 405, detail: "CONNECT" });
    }
    if method.len() > METHOD_BYTES_MAX {
        return Err(Fault { status: 501, detail: "a longer method than any there is" });
    }
    Ok(())
}

/// The one authority of the request (RFC 9112 section 3.2, DECISIONS 20).
fn one_authority<'a>(facts: &Facts<'a>, of_target: Option<&str>) -> Result<&'a str, Fault> {
    let host = facts.host.ok_or(bad("no Host"))?;
    let authority = std::str::from_utf8(host).map_err(|_| bad("Host is no authority"))?;
    let host = authority::host(authority).ok_or(bad("Host is no authority"))?;
    if let Some(of_target) = of_target {
        // A proxy forwards the target's and drops the other; an origin may not. So they must not differ.
        let is_same = authority::host(of_target).is_some_and(|other| authority::is_same_host(other, host));
        if !is_same {
            return Err(bad("Host and the target name two authorities"));
        }
    }
    Ok(authority)
}

fn framing(facts: &Facts<'_>, is_http_1_0: bool) -> Result<Framing, Fault> {
    match (facts.chunked, facts.content_length) {
        // RFC 9112 section 6.1: its framing is faulty, whoever sent it.
        (true, _) if is_http_1_0 => Err(bad("Transfer-Encoding in HTTP/1.0")),
        (true, _) => Ok(Framing::Chunked),
        (false, Some(length)) => Ok(Framing::Length(length)),
        (false, None) => Ok(Framing::None),
    }
}

/// What can stand in a log line and a header without quoting.
fn well_formed_request_id(value: &[u8]) -> Option<&str> {
    let is_safe = |byte: &u8| is_token(*byte) || matches!(byte, b':' | b'/' | b'=' | b'@');
    let is_well_formed = !value.is_empty() && value.len() <= REQUEST_ID_BYTES_MAX && value.iter().all(is_safe);
    std::str::from_utf8(value).ok().filter(|_| is_well_formed)
}
