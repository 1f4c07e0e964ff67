//! What is known of gRPC: how its calls are told, how long they may take, and how they are refused in their own terms.

use std::io::Write;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};

/// The code of gRPC for an answer of ours, which a gRPC client gets as `grpc-status` in place of a status it would have to
/// guess from: the mapping of <https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html>, with two that say
/// more, DEADLINE_EXCEEDED for an origin that did not answer in time and RESOURCE_EXHAUSTED for what is too large.
fn status_of(status: u16) -> u8 {
    match status {
        // INTERNAL.
        400 | 421 => 13,
        // UNAUTHENTICATED.
        401 => 16,
        // PERMISSION_DENIED.
        403 => 7,
        // UNIMPLEMENTED.
        404 | 405 | 501 | 505 => 12,
        // RESOURCE_EXHAUSTED.
        413 | 431 => 8,
        // DEADLINE_EXCEEDED.
        408 | 504 => 4,
        // UNAVAILABLE.
        429 | 502 | 503 => 14,
        // UNKNOWN.
        _ => 2,
    }
}

/// Whether content of this type is gRPC's (`application/grpc`, `application/grpc+proto` and so on).
pub fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

/// The answer to a gRPC request that is not forwarded or got no response: a response of trailers alone.
pub fn answer(status: u16, proxy_status: Option<&'static str>) -> http::Response<()> {
    let mut head = http::Response::new(());
    let headers = head.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(status_of(status))));
    let mut message = Vec::new();
    // Writing to a Vec cannot fail. Percent-encoded where it has to be (gRPC over HTTP/2), which these words need not be.
    let _ = write!(
        message,
        "hostward answered {status}{}",
        proxy_status.map_or(String::new(), |error| format!(": {error}"))
    );
    if let Ok(message) = HeaderValue::from_bytes(&message) {
        headers.insert(HeaderName::from_static("grpc-message"), message);
    }
    if let Some(error) = proxy_status.and_then(|error| HeaderValue::from_str(&format!("hostward; error={error}")).ok())
    {
        headers.insert(HeaderName::from_static("proxy-status"), error);
    }
    head
}

/// How long a call may take, as `grpc-timeout` says: at most eight digits and a unit.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_known_by_their_content() {
        for (content, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc; x=y", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(content.as_bytes()), expected, "{content}");
        }
        let answer = answer(502, Some("connection_refused"));
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["grpc-status"]),
            (200, &HeaderValue::from_static("14"))
        );
    }

    #[test]
    fn deadlines_are_read() {
        for (value, expected) in [
            ("90S", Some(90)),
            ("1H", Some(3600)),
            ("100000000S", None),
            ("S", None),
            ("1X", None),
            ("-1S", None),
            ("", None),
        ] {
            assert_eq!(timeout(value.as_bytes()), expected.map(Duration::from_secs), "{value}");
        }
    }
}
