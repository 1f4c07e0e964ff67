//! Plain HTTP, answered with a redirect to https and with nothing else: 308 (RFC 9110 section 15.4.9), which keeps the
//! method, to the same host and target.
//!
//! Pure: bytes in, an answer out. Nothing a client sends is repeated before it has been checked: the host only in its
//! normalised form and only if somebody serves it, the target only with the bytes a URI may have. Whatever has two
//! readings is a 400 and the end of the connection. Bodies are not read: a request that announces one is answered, and
//! the connection closed.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::registry::name::normalise_sni;
use crate::telemetry::counters::Redirect;

/// The most bytes of a request's head: what nginx takes by default for one header line, and four times what browsers send
/// to a name they have no cookies for.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// The most header lines; browsers send about fifteen.
const HEADERS_MAX: usize = 64;

/// What is answered to the bytes received so far.
#[derive(PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The head is not complete.
    Incomplete,
    /// This, to the first `consumed` bytes.
    Answer {
        response: Vec<u8>,
        consumed: usize,
        /// Another request may follow.
        keep_alive: bool,
        result: Redirect,
    },
}

/// Answers the request at the beginning of `bytes`.
///
/// `serves` says whether a normalised hostname is one of ours; `port` is where its https is, `None` for 443; `last` says
/// that the connection ends after this answer anyway.
pub fn answer(
    bytes: &[u8],
    port: Option<u16>,
    last: bool,
    now: SystemTime,
    serves: impl FnOnce(&str) -> bool,
) -> Outcome {
    let Some(end) = head_end(bytes) else {
        return match bytes.len() > HEAD_BYTES_MAX {
            true => refuse("431 Request Header Fields Too Large", Redirect::TooLarge, now),
            false if has_bare_line_end(bytes) => refuse("400 Bad Request", Redirect::Malformed, now),
            false => Outcome::Incomplete,
        };
    };
    if end > HEAD_BYTES_MAX {
        return refuse("431 Request Header Fields Too Large", Redirect::TooLarge, now);
    }
    let Some(request) = read(&bytes[..end]) else { return refuse("400 Bad Request", Redirect::Malformed, now) };
    let mut name = [0; 255];
    let Some(name) = normalise_sni(request.host, &mut name).filter(|name| serves(name)) else {
        return refuse("421 Misdirected Request", Redirect::Misdirected, now);
    };
    let keep_alive = request.keep_alive && !last;
    let mut response = Vec::with_capacity(256 + request.target.len());
    response.extend_from_slice(b"HTTP/1.1 308 Permanent Redirect\r\nLocation: https://");
    response.extend_from_slice(name.as_bytes());
    if let Some(port) = port {
        response.extend_from_slice(format!(":{port}").as_bytes());
    }
    if !request.target.starts_with(b"/") {
        response.push(b'/');
    }
    response.extend_from_slice(request.target);
    finish(&mut response, keep_alive, now);
    Outcome::Answer { response, consumed: end, keep_alive, result: Redirect::Redirected }
}

fn refuse(status: &'static str, result: Redirect, now: SystemTime) -> Outcome {
    let mut response = format!("HTTP/1.1 {status}").into_bytes();
    finish(&mut response, false, now);
    // What follows is not looked at any more.
    Outcome::Answer { response, consumed: 0, keep_alive: false, result }
}

/// The fields every answer has, after a line that has no end yet.
fn finish(response: &mut Vec<u8>, keep_alive: bool, now: SystemTime) {
    // RFC 9110 section 6.6.1: who has a clock and answers for itself says when.
    const DATE: &[BorrowedFormatItem<'_>] =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    if let Ok(date) = OffsetDateTime::from(now).format(DATE) {
        response.extend_from_slice(b"\r\nDate: ");
        response.extend_from_slice(date.as_bytes());
    }
    response.extend_from_slice(b"\r\nContent-Length: 0\r\n");
    if !keep_alive {
        response.extend_from_slice(b"Connection: close\r\n");
    }
    response.extend_from_slice(b"\r\n");
}

/// Where the head ends: after its empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// Whether a CR or LF stands alone. RFC 9112 section 2.2 lets a recipient take a bare LF for a line's end; who does and
/// who does not then disagree about where a request ends.
fn has_bare_line_end(head: &[u8]) -> bool {
    memchr::memchr2_iter(b'\r', b'\n', head).any(|at| match head[at] {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        _ => head.get(at + 1).is_some_and(|next| *next != b'\n'),
    })
}

/// A request that may be redirected, if its host is ours.
struct Request<'a> {
    /// The host, without its port.
    host: &'a [u8],
    /// Path and query; empty, or a query alone, where an absolute URI has no path.
    target: &'a [u8],
    keep_alive: bool,
}

/// Reads a complete head; `None`: it is malformed.
fn read(head: &[u8]) -> Option<Request<'_>> {
    if has_bare_line_end(head) {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    // httparse passes over empty lines in front; so does it say in RFC 9112 section 2.2, and the end found is not its own
    // then.
    if request.parse(head).ok()? != httparse::Status::Complete(head.len()) {
        return None;
    }
    let target = request.path?.as_bytes();
    let (mut host, mut body, mut close) = (None, false, request.version? == 0);
    for header in request.headers.iter() {
        // RFC 9112 section 5.2: a folded line is refused. httparse does not take them; a field without a name would be one.
        if header.name.is_empty() || header.value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
            return None;
        }
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("host") && host.replace(header.value).is_some() {
            // RFC 9112 section 3.2: more than one Host is a 400, and so is none.
            return None;
        } else if is("content-length") {
            body |= header.value != b"0";
        } else if is("transfer-encoding") {
            body = true;
        } else if is("connection") {
            let options = header.value.split(|byte| *byte == b',');
            close |= options.map(<[u8]>::trim_ascii).any(|option| option.eq_ignore_ascii_case(b"close"));
        }
    }
    let (host, _) = split_authority(host?)?;
    let target = match target.first()? {
        b'/' => target,
        // RFC 9112 section 3.2.2: a whole URI; what it names must be what Host names (DECISIONS 20).
        _ => {
            let (scheme, rest) = target.split_at_checked(b"http://".len())?;
            if !scheme.eq_ignore_ascii_case(b"http://") {
                return None;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            let (authority, target) = rest.split_at(end);
            if !same_host(split_authority(authority)?.0, host) {
                return None;
            }
            target
        }
    };
    target.iter().all(|byte| may_stand_in_target(*byte)).then_some(Request {
        host,
        target,
        keep_alive: !close && !body,
    })
}

/// Host and port of an authority without user information (RFC 3986 section 3.2); `None`: it is none.
fn split_authority(authority: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = match authority.iter().rposition(|byte| *byte == b']') {
        Some(bracket) => authority[bracket..].iter().position(|byte| *byte == b':').map(|at| bracket + at),
        None => authority.iter().position(|byte| *byte == b':'),
    };
    let (host, port) = match colon {
        Some(at) => (&authority[..at], &authority[at + 1..]),
        None => (authority, &authority[authority.len()..]),
    };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let literal =
        host.first() == Some(&b'[') && host.iter().all(|byte| plain(byte) || matches!(byte, b'[' | b']' | b':'));
    let sound = !host.is_empty() && (literal || host.iter().all(plain));
    (sound && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)).then_some((host, port))
}

/// Whether two hosts are one: in any case, with or without the root's dot.
fn same_host(a: &[u8], b: &[u8]) -> bool {
    let cut = |host: &'_ [u8]| host.strip_suffix(b".").unwrap_or(host).to_ascii_lowercase();
    cut(a) == cut(b)
}

/// What may be repeated in Location: visible ASCII, without what a URI never has and browsers rewrite (`\`), and without
/// what would be a danger where the header is shown (`"`, `<`, `>`). Some that RFC 3986 has escaped (`|`, `{`) browsers
/// send as they are.
fn may_stand_in_target(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'#' | b'<' | b'>' | b'\\')
}

#[cfg(test)]
mod tests;
