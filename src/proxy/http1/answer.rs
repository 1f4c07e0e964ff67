//! Answers of our own: short, and without a word that helps an attacker; what was wrong stands in the log.

use std::io::Write;

/// What went wrong between us and the origin, by RFC 9209 section 2.3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProxyError {
    DnsTimeout,
    DnsError,
    DestinationUnavailable,
    DestinationIpUnroutable,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionWriteTimeout,
    ConnectionLimitReached,
    TlsProtocolError,
    TlsCertificateError,
    TlsAlertReceived,
    HttpResponseIncomplete,
    HttpResponseTimeout,
    HttpUpgradeFailed,
    HttpProtocolError,
    ProxyInternalError,
}

impl ProxyError {
    /// The error type as `Proxy-Status` names it; also fit for counters and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::DnsTimeout => "dns_timeout",
            Self::DnsError => "dns_error",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DestinationIpUnroutable => "destination_ip_unroutable",
            Self::ConnectionRefused => "connection_refused",
            Self::ConnectionTerminated => "connection_terminated",
            Self::ConnectionTimeout => "connection_timeout",
            Self::ConnectionReadTimeout => "connection_read_timeout",
            Self::ConnectionWriteTimeout => "connection_write_timeout",
            Self::ConnectionLimitReached => "connection_limit_reached",
            Self::TlsProtocolError => "tls_protocol_error",
            Self::TlsCertificateError => "tls_certificate_error",
            Self::TlsAlertReceived => "tls_alert_received",
            Self::HttpResponseIncomplete => "http_response_incomplete",
            Self::HttpResponseTimeout => "http_response_timeout",
            Self::HttpUpgradeFailed => "http_upgrade_failed",
            Self::HttpProtocolError => "http_protocol_error",
            Self::ProxyInternalError => "proxy_internal_error",
        }
    }

    /// The status RFC 9209 section 2.3 recommends for it.
    pub fn status(self) -> u16 {
        match self {
            Self::DnsTimeout
            | Self::ConnectionTimeout
            | Self::ConnectionReadTimeout
            | Self::ConnectionWriteTimeout
            | Self::HttpResponseTimeout => 504,
            Self::DestinationUnavailable | Self::ConnectionLimitReached => 503,
            Self::ProxyInternalError => 500,
            _ => 502,
        }
    }
}

/// The statuses we answer with, and their reasons (RFC 9110 section 15).
fn reason(status: u16) -> &'static str {
    match status {
        308 => "Permanent Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// Whether the status is given where it is not known what the next bytes of the connection are.
fn loses_place(status: u16) -> bool {
    matches!(status, 400 | 405 | 408 | 413 | 417 | 431 | 501 | 505)
}

/// Appends an answer of ours, to a HEAD without its body. Returns whether the connection stays open after it, as its head
/// says: with `keep_alive`, unless the status is one after which there is no next request.
pub fn answer(
    status: u16,
    proxy_status: Option<ProxyError>,
    keep_alive: bool,
    head_only: bool,
    out: &mut Vec<u8>,
) -> bool {
    debug_assert!(proxy_status.is_some() || !matches!(status, 502..=504), "a gateway error never hides its cause");
    let fields = |out: &mut Vec<u8>| {
        if let Some(error) = proxy_status {
            let _ = write!(out, "Proxy-Status: hostward; error={}\r\n", error.label());
        }
        if status == 405 {
            // RFC 9110 section 15.5.6 wants the list; any other method is the origin's to judge.
            out.extend_from_slice(b"Allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n");
        }
        // Some of these statuses may be stored otherwise (RFC 9110 section 15.1), and one client's refusal is not
        // another's.
        out.extend_from_slice(b"Cache-Control: no-store\r\n");
    };
    push(status, fields, keep_alive && !loses_place(status), head_only, out)
}

/// Appends the redirect to HTTPS: 308 to `https://` + `host` + `target`. `host` is an authority without its port, `target`
/// a path with its query, both of a request that was parsed.
pub fn redirect(host: &str, target: &str, keep_alive: bool, head_only: bool, out: &mut Vec<u8>) -> bool {
    // The asterisk of OPTIONS has no URI of its own.
    let target = if target.starts_with('/') { target } else { "/" };
    let fields = |out: &mut Vec<u8>| {
        let _ = write!(out, "Location: https://{host}{target}\r\n");
    };
    push(308, fields, keep_alive, head_only, out)
}

/// Appends one answer. Writing to a Vec cannot fail.
fn push(status: u16, fields: impl FnOnce(&mut Vec<u8>), stays: bool, head_only: bool, out: &mut Vec<u8>) -> bool {
    let reason = reason(status);
    // `400 Bad Request` and a line feed.
    let body_bytes = 3 + 1 + reason.len() + 1;
    let _ = write!(out, "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {body_bytes}\r\n");
    fields(out);
    if !stays {
        out.extend_from_slice(b"Connection: close\r\n");
    }
    out.extend_from_slice(b"\r\n");
    if !head_only {
        let _ = writeln!(out, "{status} {reason}");
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(status: u16, error: Option<ProxyError>, keep_alive: bool, head_only: bool) -> (String, bool) {
        let mut out = Vec::new();
        let stays = answer(status, error, keep_alive, head_only, &mut out);
        (String::from_utf8(out).expect("ASCII"), stays)
    }

    #[test]
    fn answers_are_short() {
        assert_eq!(
            text(421, None, true, false),
            (
                "HTTP/1.1 421 Misdirected Request\r\nContent-Type: text/plain\r\nContent-Length: 24\r\n\
                 Cache-Control: no-store\r\n\r\n421 Misdirected Request\n"
                    .into(),
                true
            )
        );
        assert_eq!(
            text(502, Some(ProxyError::ConnectionRefused), false, true),
            (
                "HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nContent-Length: 16\r\n\
                 Proxy-Status: hostward; error=connection_refused\r\nCache-Control: no-store\r\n\
                 Connection: close\r\n\r\n"
                    .into(),
                false
            )
        );
    }

    #[test]
    fn every_answer_is_a_response_that_is_framed_as_it_says() {
        use crate::proxy::http1::{HeadLimits, Parsed, Response, ResponseFraming, Slots};
        let statuses = [400, 403, 404, 405, 408, 413, 417, 421, 431, 500, 501, 502, 503, 504, 505];
        for (status, keep_alive) in statuses.into_iter().flat_map(|status| [(status, false), (status, true)]) {
            let error = matches!(status, 502..=504).then_some(ProxyError::ConnectionTerminated);
            let (text, stays) = text(status, error, keep_alive, false);
            let mut slots = Slots::default();
            let limits = HeadLimits { bytes_max: 4096, fields_max: 16 };
            let Ok(Parsed::Complete(response)) = Response::parse(text.as_bytes(), &limits, &mut slots, false) else {
                panic!("{text}");
            };
            assert_eq!((response.status, response.keep_alive), (status, stays), "{text}");
            let body = (text.len() - response.head_bytes) as u64;
            assert_eq!(response.framing, ResponseFraming::Length(body), "{text}");
            assert!(!text.contains("Error\r\n") || status == 500, "{text}");
        }
    }

    #[test]
    fn what_cannot_go_on_does_not() {
        assert!(!text(400, None, true, false).1);
        assert!(!text(413, None, true, false).1);
        assert!(text(403, None, true, false).1);
        assert!(text(405, None, true, false).0.contains("\r\nAllow: GET,"));
    }

    #[test]
    fn the_redirect_names_the_same_place() {
        for (target, location) in [("/a?b", "https://pay.acme.test/a?b\r\n"), ("*", "https://pay.acme.test/\r\n")] {
            let mut out = Vec::new();
            redirect("pay.acme.test", target, true, false, &mut out);
            let text = String::from_utf8(out).expect("ASCII");
            assert!(text.starts_with("HTTP/1.1 308 ") && text.contains(&format!("\r\nLocation: {location}")), "{text}");
        }
    }
}
