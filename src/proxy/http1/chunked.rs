//! The chunked coding (RFC 9112 section 7.1), checked and passed on in canonical form.
//!
//! What is canonical already, and that is nearly everything, is passed on as it stands: chunk headers, data and line ends
//! in one slice. Chunk sizes with leading zeros or extensions are written anew, so that the receiver has nothing left to
//! interpret; of trailers only fields are passed on that are harmless when they are taken for head fields.

use std::io::Write;

use memchr::memchr;

use super::body::BadBody;
use super::fields::write_field;
use crate::proxy::headers::{Meaning, meaning};

/// The most hexadecimal digits of a chunk size: those of 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// How many bytes extensions may come to, over what 1/[`EXTENSION_SHARE`] of the content allows.
///
/// Extensions mean nothing to anyone in practice. Unbounded, a sender could make us read a megabyte for each byte that is
/// forwarded and counted (CVE-2023-39326 in Go's net/http).
const EXTENSION_BYTES_MAX: u64 = 4096;

/// For so many bytes of content one byte of extension is forgiven.
const EXTENSION_SHARE: u64 = 16;

/// The longest trailers, with their line ends. They hold a checksum, a status, a signature.
const TRAILER_BYTES_MAX: usize = 8192;

/// The most trailer fields.
const TRAILER_FIELDS_MAX: usize = 32;

const TRUNCATED_LINE: &str = "a line of the chunked coding does not end in CRLF";

/// Where in the coding we are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In the digits of a size.
    Size {
        digits: u8,
    },
    Extension,
    SizeLineFeed,
    Data,
    DataReturn,
    DataLineFeed,
    /// After the line of the last chunk.
    Trailers,
    Done,
}

/// A chunked body on its way.
#[derive(Debug)]
pub(super) struct Chunks {
    place: Place,
    /// The size being read, or what is left of the data.
    size: u64,
    /// The line of the size is as we would write it, and stands in one input.
    is_plain: bool,
    /// Extension bytes so far, less what the content forgives.
    extension_bytes: u64,
    content_bytes: u64,
    content_bytes_max: u64,
    /// As they come; once they are whole, in canonical form if they are to be had apart.
    trailers: Vec<u8>,
    way: Way,
}

/// What is passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    to_client: bool,
    /// Content alone: the receiver does not know the coding, or frames it itself. Trailers can be had apart.
    decoded: bool,
}

impl Chunks {
    pub fn of_request(content_bytes_max: Option<u64>, decoded: bool) -> Self {
        Self::new(Way { to_client: false, decoded }, content_bytes_max.unwrap_or(u64::MAX))
    }

    pub fn of_response(decoded: bool) -> Self {
        Self::new(Way { to_client: true, decoded }, u64::MAX)
    }

    /// The trailer fields that may be passed on, as lines with an empty one behind; empty unless the body was decoded and
    /// has ended.
    pub fn trailers(&self) -> &[u8] {
        if self.way.decoded && self.is_done() { &self.trailers } else { &[] }
    }

    fn new(way: Way, content_bytes_max: u64) -> Self {
        Self {
            place: Place::Size { digits: 0 },
            size: 0,
            is_plain: true,
            extension_bytes: 0,
            content_bytes: 0,
            content_bytes_max,
            trailers: Vec::new(),
            way,
        }
    }

    pub fn is_done(&self) -> bool {
        self.place == Place::Done
    }

    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// As [`super::Body::pass`].
    pub fn pass(&mut self, input: &[u8], emit: &mut dyn FnMut(&[u8])) -> Result<usize, BadBody> {
        let mut emit = |bytes: &[u8]| {
            if !bytes.is_empty() {
                emit(bytes);
            }
        };
        let decode = self.way.decoded;
        // `input[run..at]` has been read and is passed on as it stands, up to the line of a size that is not over yet.
        let mut run = 0;
        let mut at = 0;
        let mut size_line = 0;
        while let Some(&byte) = input.get(at) {
            match self.place {
                Place::Size { .. } | Place::Extension => {
                    at += self.read_size(&input[at..])?;
                }
                Place::SizeLineFeed => {
                    if byte != b'\n' {
                        return Err(BadBody::Malformed(TRUNCATED_LINE));
                    }
                    at += 1;
                    self.begin_chunk()?;
                    if decode || !self.is_plain {
                        emit(&input[run..size_line]);
                        run = at;
                        if !decode {
                            emit(SizeLine::new(self.size).as_bytes());
                        }
                    }
                }
                Place::Data => {
                    let bytes = (input.len() - at).min(usize::try_from(self.size).unwrap_or(usize::MAX));
                    at += bytes;
                    // No more than `size`, which is a u64.
                    self.size -= bytes as u64;
                    self.content_bytes = self.content_bytes.saturating_add(bytes as u64);
                    if self.size == 0 {
                        self.place = Place::DataReturn;
                    }
                    if decode {
                        emit(&input[run..at]);
                        run = at;
                    }
                }
                Place::DataReturn | Place::DataLineFeed => {
                    let (expected, next) = match self.place {
                        Place::DataReturn => (b'\r', Place::DataLineFeed),
                        _ => (b'\n', Place::Size { digits: 0 }),
                    };
                    if byte != expected {
                        return Err(BadBody::Malformed("a chunk is longer than its size"));
                    }
                    at += 1;
                    self.place = next;
                    if decode {
                        run = at;
                    }
                    if matches!(next, Place::Size { .. }) {
                        size_line = at;
                        self.size = 0;
                        self.is_plain = true;
                    }
                }
                Place::Trailers => {
                    if self.trailers.is_empty() && input[at..].starts_with(b"\r\n") {
                        at += 2;
                        self.place = Place::Done;
                        if decode {
                            run = at;
                        }
                        continue;
                    }
                    emit(&input[run..at]);
                    at += self.read_trailers(&input[at..])?;
                    run = at;
                    if self.place == Place::Done {
                        let trailers = canonical_trailers(&self.trailers, self.way)?;
                        if decode {
                            self.trailers = trailers;
                        } else {
                            emit(&trailers);
                        }
                    }
                }
                Place::Done => break,
            }
        }
        // A line that is cut by the end of the input is written once it is whole.
        let is_in_size_line = matches!(self.place, Place::Size { .. } | Place::Extension | Place::SizeLineFeed);
        let end = if is_in_size_line { size_line } else { at };
        if is_in_size_line && size_line < at {
            self.is_plain = false;
        }
        emit(&input[run.min(end)..end]);
        Ok(at)
    }

    /// Reads on in the line of a size, up to its carriage return. Returns the number of bytes consumed, at least one.
    fn read_size(&mut self, input: &[u8]) -> Result<usize, BadBody> {
        for (at, &byte) in input.iter().enumerate() {
            match (self.place, byte) {
                (Place::Size { digits }, byte) if byte.is_ascii_hexdigit() => {
                    if digits == SIZE_DIGITS_MAX {
                        return Err(BadBody::Malformed("a chunk size of more than 16 digits"));
                    }
                    if digits > 0 && self.size == 0 {
                        // A leading zero.
                        self.is_plain = false;
                    }
                    let digit = char::from(byte).to_digit(16).unwrap_or_default();
                    self.size = self.size << 4 | u64::from(digit);
                    self.place = Place::Size { digits: digits + 1 };
                }
                (Place::Size { digits: 0 }, _) => return Err(BadBody::Malformed("a chunk without size")),
                (Place::Size { .. }, b';') => {
                    self.is_plain = false;
                    self.place = Place::Extension;
                    self.count_extension()?;
                }
                (_, b'\r') => {
                    self.place = Place::SizeLineFeed;
                    return Ok(at + 1);
                }
                // RFC 9112 section 7.1.1; a line feed above all, which some take for the end of the line.
                (Place::Extension, b'\t' | b' '..=b'~' | 0x80..) => self.count_extension()?,
                (Place::Extension, _) => return Err(BadBody::Malformed("a chunk extension has a control character")),
                _ => return Err(BadBody::Malformed("a chunk size is no number")),
            }
        }
        Ok(input.len())
    }

    fn count_extension(&mut self) -> Result<(), BadBody> {
        self.extension_bytes += 1;
        if self.extension_bytes > EXTENSION_BYTES_MAX {
            return Err(BadBody::Malformed("chunk extensions are longer than allowed"));
        }
        Ok(())
    }

    /// The line of a size has ended.
    fn begin_chunk(&mut self) -> Result<(), BadBody> {
        let total = self.content_bytes.checked_add(self.size);
        if total.is_none_or(|total| total > self.content_bytes_max) {
            return Err(BadBody::TooLarge);
        }
        self.extension_bytes = self.extension_bytes.saturating_sub(self.size / EXTENSION_SHARE);
        self.place = if self.size == 0 { Place::Trailers } else { Place::Data };
        Ok(())
    }

    /// Collects trailers up to their empty line. Returns the number of bytes consumed.
    fn read_trailers(&mut self, input: &[u8]) -> Result<usize, BadBody> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            let (bytes, is_line) = memchr(b'\n', rest).map_or((rest.len(), false), |end| (end + 1, true));
            if self.trailers.len() + bytes > TRAILER_BYTES_MAX {
                return Err(BadBody::TooLong);
            }
            self.trailers.extend_from_slice(&rest[..bytes]);
            at += bytes;
            if is_line {
                if !self.trailers.ends_with(b"\r\n") {
                    return Err(BadBody::Malformed(TRUNCATED_LINE));
                }
                if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
                    self.place = Place::Done;
                    break;
                }
            }
        }
        Ok(at)
    }
}

/// The trailer fields that are passed on, and the empty line.
fn canonical_trailers(trailers: &[u8], way: Way) -> Result<Vec<u8>, BadBody> {
    let mut headers = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
    let fields = match httparse::parse_headers(trailers, &mut headers) {
        Ok(httparse::Status::Complete((bytes, fields))) if bytes == trailers.len() => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(BadBody::TooLong),
        Ok(_) | Err(_) => return Err(BadBody::Malformed("the trailers are malformed")),
    };
    let mut out = Vec::with_capacity(trailers.len());
    for field in fields.iter().filter(|field| may_trail(meaning(field.name.as_bytes()), way)) {
        if UNFIT_TO_TRAIL.iter().any(|name| field.name.eq_ignore_ascii_case(name)) {
            continue;
        }
        write_field(&mut out, field.name.as_bytes(), field.value);
    }
    out.extend_from_slice(b"\r\n");
    Ok(out)
}

/// Whether a field may stand in trailers: not if it frames or routes a message (RFC 9110 section 6.5.1), is about this hop,
/// or, on the way to an origin, says what only we say.
fn may_trail(meaning: Meaning, way: Way) -> bool {
    use Meaning as M;
    match meaning {
        M::Ordinary => true,
        M::Hop
        | M::Host
        | M::ContentLength
        | M::TransferEncoding
        | M::Connection
        | M::Upgrade
        | M::Expect
        | M::Named
        | M::Disguised => false,
        M::Unusual
        | M::Identity
        | M::Forwarded
        | M::ForwardedFor
        | M::ForwardedProto
        | M::ForwardedHost
        | M::ForwardedPort
        | M::ForwardedOther
        | M::RequestId
        | M::Traceparent
        | M::Tracestate => way.to_client,
    }
}

/// What speaks for somebody, or is read before the body: an origin that takes trailers for head fields would be told late
/// who asks (RFC 9110 section 6.5.1).
const UNFIT_TO_TRAIL: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-real-ip",
    "range",
    "content-type",
    "content-encoding",
];

/// The line of a chunk's size.
struct SizeLine {
    bytes: [u8; SIZE_DIGITS_MAX as usize + 2],
    len: usize,
}

impl SizeLine {
    fn new(size: u64) -> Self {
        let mut bytes = [0; SIZE_DIGITS_MAX as usize + 2];
        let mut rest = &mut bytes[..];
        // 64 bits have at most 16 digits: it always fits.
        let _ = write!(rest, "{size:x}\r\n");
        let left = rest.len();
        Self { len: bytes.len() - left, bytes }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}
