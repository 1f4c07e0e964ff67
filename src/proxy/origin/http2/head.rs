//! Heads in two forms, towards an origin: requests from the text that was written for it, responses into text that the strict
//! parser reads, so that every rule of HTTP/1.1 holds for them.

use std::mem::MaybeUninit;

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version};

/// The most fields of a head: those a client may send, and as many again that are added.
const FIELDS_MAX: usize = 2 * crate::proxy::http1::FIELDS_MAX;

/// Reads the head of a request, as we have written it. Returns how many bytes it takes. `None` for what HTTP/2 cannot say.
pub fn request(text: &[u8], is_tls: bool, takes_trailers: bool) -> Option<(usize, Request<()>)> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let parsing = parsed.parse_with_uninit_headers(text, &mut fields);
    let Ok(httparse::Status::Complete(bytes)) = parsing else { return None };
    let mut headers = HeaderMap::with_capacity(parsed.headers.len());
    let mut authority = None;
    for field in parsed.headers.iter() {
        let (name, value) = (HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value));
        let value = value.ok()?;
        // RFC 9113 section 8.2.2: what is about one connection has no place in HTTP/2.
        if name == HOST {
            authority = Some(Authority::try_from(value.as_bytes()).ok()?);
        } else if name != CONNECTION && name != UPGRADE && name != TRANSFER_ENCODING && name != TE {
            headers.append(name, value);
        }
    }
    if takes_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(if is_tls { Scheme::HTTPS } else { Scheme::HTTP });
    uri.authority = authority;
    uri.path_and_query = Some(PathAndQuery::try_from(parsed.path?).ok()?);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(parsed.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_parts(uri).ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Some((bytes, request))
}

/// How a response's body is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Coding {
    /// There is none, or `Content-Length` says how long it is.
    Plain,
    Chunked,
}

/// Writes the head of a response as text. `ends`: nothing follows it.
pub fn push_response(response: &Response<()>, ends: bool, to_head: bool, out: &mut Vec<u8>) -> Coding {
    let status = response.status();
    for part in ["HTTP/1.1 ", status.as_str(), " ", status.canonical_reason().unwrap_or_default(), "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    push_fields(response.headers(), out);
    let bodiless =
        to_head || status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut coding = Coding::Plain;
    if !bodiless && !response.headers().contains_key(CONTENT_LENGTH) {
        if ends {
            out.extend_from_slice(b"content-length: 0\r\n");
        } else {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            coding = Coding::Chunked;
        }
    }
    out.extend_from_slice(b"\r\n");
    coding
}

/// Writes the end of a chunked body.
pub fn push_last_chunk(trailers: Option<&HeaderMap>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    if let Some(trailers) = trailers {
        push_fields(trailers, out);
    }
    out.extend_from_slice(b"\r\n");
}

fn push_fields(fields: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in fields {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &[u8] = b"POST /a?b HTTP/1.1\r\nHost: x.test:8\r\nX-One: 1\r\nx-one: 2\r\nConnection: upgrade\r\n\
        Upgrade: websocket\r\nTransfer-Encoding: chunked\r\nx-two: 90S\r\n\r\nrest";

    #[test]
    fn a_request_keeps_what_is_about_the_message() {
        let (bytes, request) = request(HEAD, true, true).unwrap();
        assert_eq!(bytes, HEAD.len() - 4);
        assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "https://x.test:8/a?b"));
        let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected: [(&str, &[u8]); 4] = [("x-one", b"1"), ("x-one", b"2"), ("x-two", b"90S"), ("te", b"trailers")];
        assert_eq!(fields, expected);
    }

    #[test]
    fn a_response_is_framed_as_what_follows() {
        let text = |status: u16, length: Option<&str>, ends, to_head| {
            let mut response = Response::builder().status(status);
            if let Some(length) = length {
                response = response.header("content-length", length);
            }
            let mut out = Vec::new();
            let coding = push_response(&response.body(()).unwrap(), ends, to_head, &mut out);
            (String::from_utf8(out).unwrap(), coding)
        };
        let ok = "HTTP/1.1 200 OK\r\n";
        assert_eq!(text(200, None, false, false), (format!("{ok}transfer-encoding: chunked\r\n\r\n"), Coding::Chunked));
        assert_eq!(text(200, Some("3"), false, false), (format!("{ok}content-length: 3\r\n\r\n"), Coding::Plain));
        assert_eq!(text(200, None, true, false), (format!("{ok}content-length: 0\r\n\r\n"), Coding::Plain));
        assert_eq!(text(200, None, true, true), (format!("{ok}\r\n"), Coding::Plain));
        assert_eq!(text(204, None, true, false), ("HTTP/1.1 204 No Content\r\n\r\n".into(), Coding::Plain));
        assert_eq!(text(103, None, false, false), ("HTTP/1.1 103 Early Hints\r\n\r\n".into(), Coding::Plain));
    }
}
