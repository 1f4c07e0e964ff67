//! Heads in two forms: HTTP/2's fields, and the text of HTTP/1.1 that the strict parser of [`http1`](crate::proxy::http1)
//! reads.
//!
//! Nothing is judged here but what only HTTP/2 has: pseudo-header fields, and fields that mean another connection
//! (RFC 9113 section 8). `h2` has already refused names in capitals, pseudo-header fields that are unknown, missing, doubled
//! or late, fields of HTTP/1.1 connections, and a `te` other than `trailers`.

use http::header::{
    CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TE,
};
use http::{StatusCode, request};

use crate::proxy::http1::{Response, authority};

/// A request that is malformed as HTTP/2 has it (RFC 9113 section 8.1.1): its stream is reset with PROTOCOL_ERROR. Says what
/// is wrong, for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed(pub &'static str);

/// What a request asks for beyond its fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind<'a> {
    /// It has no body.
    Bodiless,
    WithBody,
    /// Extended CONNECT (RFC 8441): the text becomes the upgrade of HTTP/1.1 that opens a WebSocket, with this key.
    WebSocket {
        key: &'a str,
    },
}

/// Appends a request's head as text.
///
/// # Errors
///
/// [`Malformed`].
pub fn push_request(parts: &request::Parts, kind: Kind<'_>, out: &mut Vec<u8>) -> Result<(), Malformed> {
    let authority = one_authority(parts)?;
    let method = match kind {
        Kind::WebSocket { .. } => "GET",
        _ => parts.method.as_str(),
    };
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    for part in [method, " ", target, " HTTP/1.1\r\nHost: ", authority, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut cookies = 0;
    for (name, value) in &parts.headers {
        if name == HOST || name == TE && value != "trailers" {
            continue;
        }
        // The key is ours, and so is the proof (RFC 8441 section 5).
        let is_handshake = name == SEC_WEBSOCKET_KEY || name == SEC_WEBSOCKET_ACCEPT;
        if is_handshake && matches!(kind, Kind::WebSocket { .. }) {
            continue;
        }
        if name == COOKIE {
            cookies += 1;
            continue;
        }
        push_field(name.as_str(), value.as_bytes(), out)?;
    }
    if cookies > 0 {
        // RFC 9113 section 8.2.3: the pieces of a cookie are put together for who does not know them.
        out.extend_from_slice(b"cookie: ");
        for (index, value) in parts.headers.get_all(COOKIE).iter().enumerate() {
            check_value(value.as_bytes())?;
            if index > 0 {
                out.extend_from_slice(b"; ");
            }
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    match kind {
        Kind::WithBody if !parts.headers.contains_key(CONTENT_LENGTH) => {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        Kind::WithBody | Kind::Bodiless => {}
        Kind::WebSocket { key } => {
            out.extend_from_slice(b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: ");
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// The one authority of a request (RFC 9113 section 8.3.1): `:authority`, or `Host` of a client that was translated from
/// HTTP/1.1. Where there are both they must be one.
fn one_authority(parts: &request::Parts) -> Result<&str, Malformed> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Malformed("more than one host"));
    }
    let host = host.map(|host| host.to_str().map_err(|_| Malformed("host is no authority"))).transpose()?;
    let pseudo = parts.uri.authority().map(http::uri::Authority::as_str);
    match (pseudo, host) {
        (Some(pseudo), Some(host)) => {
            let is_same = pseudo == host
                || authority::host(pseudo)
                    .zip(authority::host(host))
                    .is_some_and(|(a, b)| authority::is_same_host(a, b));
            if is_same { Ok(pseudo) } else { Err(Malformed("host differs from :authority")) }
        }
        (Some(authority), None) | (None, Some(authority)) => Ok(authority),
        (None, None) => Err(Malformed("neither :authority nor host")),
    }
}

fn push_field(name: &str, value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    check_value(value)?;
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// RFC 9113 section 8.2.1: no value begins or ends with white space. Control characters `http` has refused.
fn check_value(value: &[u8]) -> Result<(), Malformed> {
    let is_white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if is_white(value.first()) || is_white(value.last()) {
        return Err(Malformed("a field value begins or ends with white space"));
    }
    Ok(())
}

/// Appends trailer fields as the lines that end a chunked body.
///
/// # Errors
///
/// [`Malformed`].
pub fn push_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) -> Result<(), Malformed> {
    for (name, value) in trailers {
        push_field(name.as_str(), value.as_bytes(), out)?;
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// A response's head as HTTP/2 has it. `None` for what HTTP/2 cannot say; the strict parser lets no such thing pass.
pub fn response(response: &Response<'_>) -> Option<http::Response<()>> {
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::from_u16(response.status).ok()?;
    let headers = head.headers_mut();
    // Grown once, where most heads would have grown twice.
    headers.reserve(FIELDS_EXPECTED);
    for (name, value) in response.fields() {
        headers.append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    if let Some(length) = response.content_length().filter(|_| response.status >= 200) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    Some(head)
}

/// The fields of trailer lines (with an empty line behind), as the chunked coding of [`http1`](crate::proxy::http1) gives
/// them. Empty if there are none.
pub fn trailers(lines: &[u8]) -> HeaderMap {
    if lines.is_empty() {
        return HeaderMap::new();
    }
    let mut headers = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let mut map = HeaderMap::new();
    if let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(lines, &mut headers) {
        for field in fields {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
            {
                map.append(name, value);
            }
        }
    }
    map
}

/// As many fields as most responses have.
const FIELDS_EXPECTED: usize = 12;

/// As many as the chunked coding lets pass.
const TRAILERS_MAX: usize = 32;

/// Reads an answer of our own, which is text, into HTTP/2's form: head and body.
pub fn own_answer(text: &[u8]) -> Option<(http::Response<()>, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(bytes)) = parsed.parse(text) else { return None };
    let mut head = http::Response::new(());
    *head.status_mut() = StatusCode::from_u16(parsed.code?).ok()?;
    for field in parsed.headers.iter().filter(|field| !field.name.eq_ignore_ascii_case("connection")) {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value));
        head.headers_mut().append(name, value.ok()?);
    }
    Some((head, &text[bytes..]))
}

/// What proves that a server has read this key (RFC 6455 section 4.2.2).
pub fn websocket_accept(key: &str) -> String {
    use aws_lc_rs::digest;
    use base64::Engine;
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::engine::general_purpose::STANDARD.encode(context.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(build: impl FnOnce(request::Builder) -> request::Builder) -> request::Parts {
        build(http::Request::builder()).body(()).expect("a request").into_parts().0
    }

    fn text(parts: &request::Parts, kind: Kind<'_>) -> Result<String, Malformed> {
        let mut out = Vec::new();
        push_request(parts, kind, &mut out)?;
        Ok(String::from_utf8(out).expect("ASCII"))
    }

    #[test]
    fn requests_become_text() {
        let get = parts(|b| b.uri("https://pay.acme.test/a?b=c").header("accept", "*/*").header("te", "trailers"));
        assert_eq!(
            text(&get, Kind::Bodiless).unwrap(),
            "GET /a?b=c HTTP/1.1\r\nHost: pay.acme.test\r\naccept: */*\r\nte: trailers\r\n\r\n"
        );
        let post = parts(|b| b.method("POST").uri("https://a.test/").header("cookie", "a=b").header("cookie", "c=d"));
        assert_eq!(
            text(&post, Kind::WithBody).unwrap(),
            "POST / HTTP/1.1\r\nHost: a.test\r\ncookie: a=b; c=d\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let sized = parts(|b| b.method("PUT").uri("https://a.test/").header("content-length", "5"));
        assert!(text(&sized, Kind::WithBody).unwrap().ends_with("content-length: 5\r\n\r\n"));
        // The key is ours, whatever the client says.
        let socket = parts(|b| {
            let b = b.method("CONNECT").uri("https://a.test/chat").header("sec-websocket-version", "13");
            b.header("sec-websocket-key", "theirs").header("sec-websocket-accept", "theirs")
        });
        assert_eq!(
            text(&socket, Kind::WebSocket { key: "abc=" }).unwrap(),
            "GET /chat HTTP/1.1\r\nHost: a.test\r\nsec-websocket-version: 13\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Key: abc=\r\n\r\n"
        );
    }

    #[test]
    fn there_is_one_authority() {
        for (uri, hosts, expected) in [
            ("https://a.test/", vec![], Ok("a.test")),
            ("https://a.test/", vec!["A.test."], Ok("a.test")),
            ("https://a.test:443/", vec!["a.test"], Ok("a.test:443")),
            ("/", vec!["a.test"], Ok("a.test")),
            ("https://a.test/", vec!["b.test"], Err(Malformed("host differs from :authority"))),
            ("https://a.test/", vec![""], Err(Malformed("host differs from :authority"))),
            ("https://a.test/", vec!["a.test", "a.test"], Err(Malformed("more than one host"))),
            ("/", vec![], Err(Malformed("neither :authority nor host"))),
        ] {
            let parts = parts(|b| hosts.iter().fold(b.uri(uri), |b, host| b.header("host", *host)));
            assert_eq!(one_authority(&parts), expected, "{uri} {hosts:?}");
        }
    }

    #[test]
    fn white_space_around_a_value_is_malformed() {
        for value in [" a", "a ", "\ta", "a\t"] {
            let parts = parts(|b| b.uri("https://a.test/").header("x", value));
            assert!(text(&parts, Kind::Bodiless).is_err(), "{value:?}");
        }
    }

    #[test]
    fn trailers_go_both_ways() {
        let mut map = HeaderMap::new();
        map.append("grpc-status", HeaderValue::from_static("0"));
        map.append("x-sum", HeaderValue::from_static("7"));
        let mut lines = Vec::new();
        push_trailers(&map, &mut lines).unwrap();
        assert_eq!(lines, b"grpc-status: 0\r\nx-sum: 7\r\n\r\n");
        assert_eq!(trailers(&lines), map);
        assert!(trailers(b"\r\n").is_empty());
        assert!(trailers(b"").is_empty());
    }

    #[test]
    fn our_answers_are_read() {
        let mut out = Vec::new();
        crate::proxy::http1::answer::answer(403, None, false, false, &mut out);
        let (head, body) = own_answer(&out).expect("an answer");
        assert_eq!((head.status().as_u16(), body), (403, &b"403 Forbidden\n"[..]));
        assert!(!head.headers().contains_key("connection"));
        assert_eq!(head.headers()["content-length"], "14");
    }

    /// The example of RFC 6455 section 1.3.
    #[test]
    fn a_websocket_is_proved() {
        assert_eq!(websocket_accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
