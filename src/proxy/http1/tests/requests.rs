//! Parsing and checking request heads.

use proptest::prelude::*;

use super::corpus::{CASES, Verdict};
use super::*;

/// A summary that does not borrow the input.
type Summary = (usize, String, String, String, Framing, bool);

fn parse(input: &[u8]) -> Result<Parsed<Summary>, Rejected> {
    let mut slots = Slots::default();
    Ok(match Request::parse(input, &LIMITS, &mut slots)? {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete(request) => Parsed::Complete((
            request.head_bytes,
            request.method.to_owned(),
            request.target.to_owned(),
            request.authority.to_owned(),
            request.framing,
            request.keep_alive,
        )),
    })
}

fn judge(input: &[u8]) -> Verdict {
    let mut slots = Slots::default();
    let request = match Request::parse(input, &LIMITS, &mut slots) {
        Ok(Parsed::Complete(request)) => request,
        Ok(Parsed::Incomplete) => panic!("incomplete: {}", input.escape_ascii()),
        Err(rejected) => return Verdict::Refused(rejected.status),
    };
    match request.framing {
        Framing::None => Verdict::NoBody,
        Framing::Length(length) => Verdict::Length(length),
        Framing::Chunked => {
            let mut body = Body::request(request.framing, None, false);
            match pass_all(&mut body, [&input[request.head_bytes..]]).1 {
                Ok(_) if body.is_done() => Verdict::Chunked,
                _ => Verdict::BadChunks,
            }
        }
    }
}

#[test]
fn every_case_of_the_corpus_has_its_verdict() {
    let mut wrong = Vec::new();
    for case in CASES {
        let verdict = judge(case.request);
        if verdict != case.verdict {
            wrong.push((case.name, verdict, case.verdict));
        }
    }
    assert!(wrong.is_empty(), "(case, verdict, expected): {wrong:#?}");
    let names: std::collections::HashSet<_> = CASES.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), CASES.len());
}

/// However the bytes of a case come in, its verdict is the same.
#[test]
fn splitting_changes_no_verdict() {
    for case in CASES {
        let whole = parse(case.request);
        let head = match &whole {
            Ok(Parsed::Complete((head_bytes, ..))) => *head_bytes,
            _ => case.request.len(),
        };
        for at in 0..head {
            let part = parse(&case.request[..at]);
            assert!(part == Ok(Parsed::Incomplete) || part == whole, "{} at {at}: {part:?}", case.name);
        }
    }
}

#[test]
fn limits_hold_exactly() {
    let head = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n";
    let status = |bytes_max, fields_max, input: &[u8]| {
        let limits = HeadLimits { bytes_max, fields_max };
        Request::parse(input, &limits, &mut Slots::default())
            .map(|parsed| matches!(parsed, Parsed::Complete(_)))
            .map_err(|rejected| rejected.status)
    };
    assert_eq!(status(head.len(), 2, head), Ok(true));
    assert_eq!(status(head.len() - 1, 2, head), Err(431));
    assert_eq!(status(head.len(), 1, head), Err(431));
    // Before the end has come: as soon as it cannot come in time any more.
    assert_eq!(status(20, 2, &head[..19]), Ok(false));
    assert_eq!(status(20, 2, &head[..20]), Err(431));
    let fields = "X: y\r\n".repeat(FIELDS_MAX);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    assert_eq!(status(1 << 20, usize::MAX, many.as_bytes()), Err(431));
    let most = many.replacen("X: y\r\n", "", 1);
    assert_eq!(status(1 << 20, usize::MAX, most.as_bytes()), Ok(true));
}

#[test]
fn connections_persist_as_their_version_says() {
    for (version, connection, expected) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
        ("1.1", "Connection: x\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        let head = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let Ok(Parsed::Complete(summary)) = parse(head.as_bytes()) else { panic!("{head}") };
        assert_eq!(summary.5, expected, "{head}");
    }
}

#[test]
fn what_is_asked_for_is_seen() {
    let flags = |head: &str| {
        let mut slots = Slots::default();
        let Ok(Parsed::Complete(request)) = Request::parse(head.as_bytes(), &LIMITS, &mut slots) else {
            panic!("{head}")
        };
        (request.expects_continue, request.websocket, request.is_idempotent(), request.is_head())
    };
    let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n";
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), (false, false, true, false)),
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), (false, false, true, true)),
        (
            "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n".into(),
            (true, false, true, false),
        ),
        ("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n".into(), (false, false, false, false)),
        (
            "POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n".into(),
            (false, false, false, false),
        ),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), (false, true, true, false)),
        (format!("GET / HTTP/1.0\r\nHost: a\r\n{upgrade}\r\n"), (false, false, true, false)),
        (format!("POST / HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n"), (false, false, false, false)),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n{upgrade}\r\n"), (false, false, true, false)),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n{upgrade}\r\n"), (false, false, true, false)),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".into(), (false, false, true, false)),
    ] {
        assert_eq!(flags(&head), expected, "{head}");
    }
}

proptest! {
    /// Bytes near a request and bytes near nothing: all are survived, and none is accepted in part only to be refused or
    /// read otherwise as a whole.
    #[test]
    fn any_bytes_are_survived(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "(GET|POST|\r\n| ) ?(/|\\*|http://a/)[a%;]{0,4} HTTP/1.[0-2](\r\n|\n)((Host|Content-Length|X|Transfer-Encoding) ?: ?(a|5|chunked|)(\r\n|\n|\r)){0,5}(\r\n|\n)?"
                .prop_map(String::into_bytes),
        ],
        at in any::<prop::sample::Index>(),
    ) {
        let whole = parse(&input);
        let part = parse(&input[..at.index(input.len() + 1)]);
        prop_assert!(part == Ok(Parsed::Incomplete) || part == whole, "{part:?} {whole:?}");
    }
}
