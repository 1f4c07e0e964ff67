use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{HEAD_BYTES_MAX, Outcome, answer};
use crate::telemetry::counters::Redirect;

fn ask(bytes: &[u8], port: Option<u16>) -> Outcome {
    answer(bytes, port, false, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777), |name| {
        name == "pay.acme.test"
    })
}

/// The result, the Location if there is one, and whether the connection goes on.
fn outcome(bytes: &[u8]) -> (Redirect, Option<String>, bool) {
    let Outcome::Answer { response, keep_alive, result, .. } = ask(bytes, None) else { panic!("incomplete") };
    let text = String::from_utf8(response).unwrap();
    let location = text.lines().find_map(|line| line.strip_prefix("Location: ")).map(str::to_owned);
    (result, location, keep_alive)
}

#[test]
fn the_answer_to_the_byte() {
    let request = b"GET /a?b=c HTTP/1.1\r\nHost: PAY.acme.test.:80\r\nUser-Agent: x\r\n\r\nrest";
    let Outcome::Answer { response, consumed, keep_alive, result } = ask(request, None) else { panic!("incomplete") };
    assert_eq!(
        String::from_utf8(response).unwrap(),
        "HTTP/1.1 308 Permanent Redirect\r\nLocation: https://pay.acme.test/a?b=c\r\n\
         Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!((consumed, keep_alive, result), (request.len() - 4, true, Redirect::Redirected));
    for cut in 0..request.len() - 4 {
        assert_eq!(ask(&request[..cut], None), Outcome::Incomplete, "{cut}");
    }
}

#[test]
fn another_port_is_named() {
    let Outcome::Answer { response, .. } = ask(b"GET / HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Some(8443)) else {
        panic!("incomplete")
    };
    assert!(String::from_utf8(response).unwrap().contains("Location: https://pay.acme.test:8443/\r\n"));
}

#[test]
fn what_is_redirected() {
    for (request, location, keep_alive) in [
        ("POST /x HTTP/1.1\r\nHost: pay.acme.test\r\nContent-Length: 5\r\n\r\n", "/x", false),
        ("POST /x HTTP/1.1\r\nHost: pay.acme.test\r\nContent-Length: 0\r\n\r\n", "/x", true),
        ("POST /x HTTP/1.1\r\nHost: pay.acme.test\r\nTransfer-Encoding: chunked\r\n\r\n", "/x", false),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nConnection: foo, Close\r\n\r\n", "/", false),
        ("GET / HTTP/1.0\r\nHost: pay.acme.test\r\n\r\n", "/", false),
        ("GET http://pay.ACME.test/a HTTP/1.1\r\nHost: pay.acme.test:80\r\n\r\n", "/a", true),
        ("GET HTTP://pay.acme.test HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", "/", true),
        ("GET http://pay.acme.test?q HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", "/?q", true),
        ("GET //evil.test/..%2f HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", "//evil.test/..%2f", true),
        ("GET /a|b{c}^ HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", "/a|b{c}^", true),
    ] {
        let expected = (Redirect::Redirected, Some(format!("https://pay.acme.test{location}")), keep_alive);
        assert_eq!(outcome(request.as_bytes()), expected, "{request:?}");
    }
}

#[test]
fn what_is_refused() {
    use Redirect::{Malformed, Misdirected};
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", Misdirected),
        ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", Misdirected),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Misdirected),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test..\r\n\r\n", Misdirected),
        ("GET / HTTP/1.1\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test@evil.test\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test/evil\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test:80:80\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test:8x\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test evil.test\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost : pay.acme.test\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nX: a\r\n b\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nX: a\nY: b\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\nHost: pay.acme.test\n\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nX: a\rb\r\n\r\n", Malformed),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nX: a\0b\r\n\r\n", Malformed),
        ("GET /\u{e4} HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET /\\evil.test HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET /#f HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET * HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET a HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET  / HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("CONNECT pay.acme.test:443 HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET https://pay.acme.test/ HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET http://evil.test/ HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET http://x@pay.acme.test/ HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("GET / HTTP/2.0\r\nHost: pay.acme.test\r\n\r\n", Malformed),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Malformed),
        ("\r\n\r\n", Malformed),
        ("\u{16}\u{3}\u{1}\r\n\r\n", Malformed),
    ] {
        assert_eq!(outcome(request.as_bytes()), (expected, None, false), "{request:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: pay.acme.test\r\n", "a".repeat(HEAD_BYTES_MAX));
    assert_eq!(outcome(long.as_bytes()).0, Redirect::TooLarge);
    assert_eq!(outcome(format!("{long}\r\n").as_bytes()).0, Redirect::TooLarge);
    let many = format!("GET / HTTP/1.1\r\nHost: pay.acme.test\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(outcome(many.as_bytes()).0, Redirect::Malformed);
}

/// Heads with something of everything in them.
fn head() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(b"GET /".to_vec()),
        Just(b" HTTP/1.1\r\n".to_vec()),
        Just(b"Host: pay.acme.test\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
        Just(b"http://pay.acme.test".to_vec()),
        Just(b"Content-Length: 3\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..6),
        "[ -~]{0,12}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// Whatever comes: an answer is one well-formed response head whose Location, if any, leads to a host of ours.
    #[test]
    fn no_answer_says_more_than_it_may(
        bytes in prop_oneof![
            head(),
            ("[!-~\u{80}-\u{ff}\\t \\r\\n]{0,30}", "[!-~]{0,20}").prop_map(|(target, host)| {
                format!("GET /{target} HTTP/1.1\r\nHost: pay.acme.test{host}\r\n\r\n").into_bytes()
            }),
        ]
    ) {
        if let Outcome::Answer { response, consumed, result, .. } = ask(&bytes, None) {
            prop_assert!(consumed <= bytes.len());
            let text = String::from_utf8(response).unwrap();
            let lines: Vec<&str> = text.split("\r\n").collect();
            prop_assert!(text.ends_with("\r\n\r\n") && !text.replace("\r\n", "").contains(['\r', '\n']));
            prop_assert_eq!(text.matches("\r\n\r\n").count(), 1);
            let locations: Vec<_> = lines.iter().filter(|line| line.starts_with("Location:")).collect();
            prop_assert_eq!(locations.len(), usize::from(result == Redirect::Redirected));
            prop_assert!(locations.iter().all(|line| line.starts_with("Location: https://pay.acme.test/")));
            prop_assert!(lines.len() <= 6, "{}", text);
        }
    }
}
