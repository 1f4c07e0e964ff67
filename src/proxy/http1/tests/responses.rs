//! Parsing, checking and rewriting response heads.

use proptest::prelude::*;

use super::*;
use crate::registry::FieldChanges;

fn parse(input: &[u8], to_head: bool) -> Result<Parsed<(u16, ResponseFraming, bool)>, Garbled> {
    let mut slots = Slots::default();
    Ok(match Response::parse(input, &LIMITS, &mut slots, to_head)? {
        Parsed::Incomplete => Parsed::Incomplete,
        Parsed::Complete(response) => Parsed::Complete((response.status, response.framing, response.keep_alive)),
    })
}

fn written(input: &str, client: ClientSide) -> (String, bool) {
    let mut slots = Slots::default();
    let Ok(Parsed::Complete(response)) = Response::parse(input.as_bytes(), &LIMITS, &mut slots, false) else {
        panic!("{input}");
    };
    let mut out = Vec::new();
    let stays = response.write(&client, &mut out);
    (String::from_utf8(out).expect("text"), stays)
}

const MODERN: ClientSide = ClientSide { keep_alive: true, is_http_1_0: false };
const OLD: ClientSide = ClientSide { keep_alive: true, is_http_1_0: true };

#[test]
fn responses_are_framed_as_they_say() {
    use ResponseFraming::{Chunked, Length, None, UntilClose};
    for (head, to_head, expected) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, (200, Length(5), true)),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", false, (200, Length(0), true)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, (200, Chunked, true)),
        ("HTTP/1.1 200 OK\r\n\r\n", false, (200, UntilClose, false)),
        ("HTTP/1.1 200 OK\r\n\r\n", true, (200, None, true)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, (200, None, true)),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, (200, None, true)),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, (304, None, true)),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", false, (204, None, true)),
        ("HTTP/1.1 100 Continue\r\n\r\n", false, (100, None, true)),
        ("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", false, (103, None, true)),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n", false, (200, Length(5), false)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, (200, Length(5), false)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", false, (200, Length(5), true)),
        ("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", false, (101, None, false)),
        ("HTTP/1.1 599 \r\nContent-Length: 5\r\n\r\n", false, (599, Length(5), true)),
    ] {
        assert_eq!(parse(head.as_bytes(), to_head), Ok(Parsed::Complete(expected)), "{head}");
    }
}

#[test]
fn what_can_be_read_in_two_ways_is_garbled() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 101 x\r\n\r\n",
        "HTTP/1.1 101 x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.0 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\nContent-Length: 5\n\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n",
        "HTTP/1.1 200 O\x01K\r\n\r\n",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 600 x\r\n\r\n",
        "HTTP/1.1 20 x\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "HTTP/1.1  200 x\r\n\r\n",
        "HTTP/2.0 200 OK\r\n\r\n",
        "HTTP/1.2 200 OK\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        " HTTP/1.1 200 OK\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ] {
        assert!(parse(head.as_bytes(), false).is_err(), "{head}");
    }
}

/// What is changed in responses, as lines and as the fields another protocol writes.
#[test]
fn a_hostname_changes_final_responses() {
    let changes = FieldChanges::new(
        vec![("Strict-Transport-Security".into(), "max-age=1".into())],
        &["Server".into(), "X-Powered-By".into()],
    );
    let of = |input: &str| {
        let mut slots = Slots::default();
        let Ok(Parsed::Complete(mut response)) = Response::parse(input.as_bytes(), &LIMITS, &mut slots, false) else {
            panic!("{input}");
        };
        response.changes = Some(&changes);
        let mut out = Vec::new();
        response.write(&MODERN, &mut out);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        let lines: String =
            response.fields().map(|(name, value)| format!("{}: {}\r\n", text(name), text(value))).collect();
        (text(&out), lines)
    };
    let fields = "A: 1\r\nSERVER: x\r\nstrict-transport-security: max-age=0\r\nX_Powered_By: y\r\nB: 2\r\n";
    let (text, lines) = of(&format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\n"));
    let kept = "A: 1\r\nB: 2\r\nStrict-Transport-Security: max-age=1\r\n";
    assert_eq!(text, format!("HTTP/1.1 200 OK\r\n{kept}Content-Length: 5\r\n\r\n"));
    assert_eq!(lines, kept);
    let (text, lines) = of("HTTP/1.1 103 Early Hints\r\nServer: x\r\n\r\n");
    assert_eq!((text.as_str(), lines.as_str()), ("HTTP/1.1 103 Early Hints\r\nServer: x\r\n\r\n", "Server: x\r\n"));
}

#[test]
fn a_response_is_written_for_its_client() {
    let chunked = "HTTP/1.1 200 Fine\r\nServer: x\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                   Transfer-Encoding: chunked\r\nmy_field: \t1 \r\n\r\n";
    assert_eq!(
        written(chunked, MODERN),
        ("HTTP/1.1 200 Fine\r\nServer: x\r\nmy_field: 1\r\nTransfer-Encoding: chunked\r\n\r\n".into(), true)
    );
    assert_eq!(
        written(chunked, OLD),
        ("HTTP/1.1 200 Fine\r\nServer: x\r\nmy_field: 1\r\nConnection: close\r\n\r\n".into(), false)
    );
    let plain = "HTTP/1.0 404\r\nContent-Length: 007\r\n\r\n";
    assert_eq!(written(plain, MODERN), ("HTTP/1.1 404 \r\nContent-Length: 7\r\n\r\n".into(), true));
    assert_eq!(
        written(plain, OLD),
        ("HTTP/1.1 404 \r\nContent-Length: 7\r\nConnection: keep-alive\r\n\r\n".into(), true)
    );
    assert_eq!(
        written(plain, ClientSide { keep_alive: false, ..MODERN }),
        ("HTTP/1.1 404 \r\nContent-Length: 7\r\nConnection: close\r\n\r\n".into(), false)
    );
    assert_eq!(
        written("HTTP/1.1 200 OK\r\n\r\n", MODERN),
        ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".into(), false)
    );
    assert_eq!(
        written("HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n", MODERN).0,
        "HTTP/1.1 103 Hints\r\nLink: </a>\r\n\r\n"
    );
    assert_eq!(
        written(
            "HTTP/1.1 101 Go\r\nUPGRADE: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
            MODERN
        )
        .0,
        "HTTP/1.1 101 Go\r\nSec-WebSocket-Accept: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
}

proptest! {
    /// No bytes panic, more bytes change no verdict, and what is written is read as what was.
    #[test]
    fn any_bytes_are_survived(
        input in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            "HTTP/1.[01] (200|204|304|101|100)( OK)?\r\n((Connection|Content-Length|Upgrade|Transfer-Encoding|X): ?(a|5|0|chunked|close|upgrade|websocket|)(\r\n|\r\n|\n)){0,5}\r\n"
                .prop_map(String::into_bytes),
        ],
        at in any::<prop::sample::Index>(),
        to_head in any::<bool>(),
    ) {
        let whole = parse(&input, to_head);
        let part = parse(&input[..at.index(input.len() + 1)], to_head);
        prop_assert!(part == Ok(Parsed::Incomplete) || part == whole, "{part:?} {whole:?}");

        let mut slots = Slots::default();
        if let Ok(Parsed::Complete(response)) = Response::parse(&input, &LIMITS, &mut slots, to_head) {
            let mut out = Vec::new();
            let stays = response.write(&MODERN, &mut out);
            let expected = (response.status, response.framing, stays && response.status != 101);
            prop_assert_eq!(parse(&out, to_head), Ok(Parsed::Complete(expected)));
        }
    }
}
