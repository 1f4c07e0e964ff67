//! HTTP/2 from the client: who speaks it, requests and responses in every form, many at once and one after the other.

use std::io;

use bytes::Bytes;

use crate::harness::http::{Body, Framing, Http, HttpOrigin, send_body};
use crate::harness::http2::{self, Http2, field, get, with_method};
use crate::harness::http2_frames::{self as frames, Raw};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Edge, GLOBEX, SOON, Settings, Tls, World, wait};

const SIZES: [u64; 5] = [0, 1, 16_384, 65_537, 5 << 20];

fn settings(world: &World, origin: &HttpOrigin) -> Settings {
    world.settings().host(world.http_host(ACME, origin))
}

fn connect(world: &World, edge: &Edge) -> Http2 {
    Http2::connect(&world.client(), edge.address(), ACME)
}

/// 500: HTTP/2 is spoken with who offers it, unless the hostname says otherwise; in both versions, with a certificate, and
/// over a resumed session.
#[test]
fn t500_alpn_decides() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let old = world.http_host(GLOBEX, &origin).line("alpn = [\"http/1.1\"]");
    let own = world.http_host("mtls.acme.test", &origin).require(&[&world.acme]);
    let edge = Edge::start(settings(&world, &origin).host(old).host(own));
    for version in Tls::BOTH {
        for (name, offered, chosen) in [
            (ACME, &["h2", "http/1.1"][..], Some(&b"h2"[..])),
            (ACME, &["http/1.1", "h2"], Some(b"h2")),
            (ACME, &["http/1.1"], Some(b"http/1.1")),
            (ACME, &[], None),
            (GLOBEX, &["h2", "http/1.1"], Some(b"http/1.1")),
        ] {
            let session = world.client().tls(version).alpn(offered).open(edge.address(), name).expect("a connection");
            assert_eq!(session.alpn(), chosen, "{name} {offered:?} {version:?}");
            if chosen != Some(b"h2") {
                assert_eq!(Http::new(session).get(name, "/").status(), 200);
            }
        }
        // A client that only speaks what the hostname does not has nothing to say (RFC 7301 section 3.2).
        let refused = world.client().tls(version).alpn(&["h2"]).open(edge.address(), GLOBEX);
        assert!(refused.is_err(), "{version:?}");
        let client = world.acme_client("alice").tls(version);
        for round in 0..2 {
            let mut http = Http2::connect(&client, edge.address(), "mtls.acme.test");
            assert_eq!(http.get("mtls.acme.test", "/").status, 200);
            let label = format!(
                "hostward_handshakes_total{{result=\"ok\",version=\"{}\",resumed=\"{}\"}}",
                version.label(),
                round == 1
            );
            frames::expect_at_least(&edge, &label, 1.0);
        }
    }
    edge.expect_metric("hostward_requests_total{protocol=\"h2\"}", 4.0);
}

fn digest_origin() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        let words: Vec<_> = head.target().split('/').collect();
        let (kind, bytes) = (words[1], words[2].parse().expect("a number"));
        let (framing, line) = match kind {
            "length" => (Framing::Length(bytes), format!("Content-Length: {bytes}")),
            "close" => (Framing::UntilClose, "Connection: close".to_owned()),
            _ => (Framing::Chunked, "Transfer-Encoding: chunked".to_owned()),
        };
        let text = format!("HTTP/1.1 200 OK\r\nX-Got: {}\r\n{line}\r\n\r\n", body.digest);
        if head.method() == "HEAD" {
            talk.send(&text)?;
        } else {
            send_body(&text, framing, Payload::new(bytes, 3), "", |bytes| talk.send(bytes).is_ok());
        }
        if kind == "close" { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    })
}

/// 501: bodies of every size go up and down unchanged, with their length told and without, in every framing of the origin.
#[test]
fn t501_bodies_arrive_whole() {
    let world = World::new();
    let origin = digest_origin();
    let edge = Edge::start(settings(&world, &origin));
    for version in Tls::BOTH {
        let mut http = Http2::connect(&world.client().tls(version), edge.address(), ACME);
        for bytes in SIZES {
            for kind in ["length", "chunked", "close"] {
                let path = format!("/{kind}/{bytes}");
                let answer = http.get(ACME, &path);
                assert_eq!((answer.status, &answer.digest), (200, &digest_of(bytes, 3)), "{path}");
                let length = bytes.to_string();
                assert_eq!(answer.get("content-length"), (kind == "length").then_some(length.as_str()));
                for name in ["transfer-encoding", "connection", "keep-alive"] {
                    assert_eq!(answer.get(name), None, "{path}");
                }
                let answer = http.ask(with_method("HEAD", ACME, &path));
                assert_eq!((answer.status, answer.start.len()), (200, 0), "{path}");
                assert_eq!(answer.get("content-length"), (kind == "length").then_some(length.as_str()));
                for told in [true, false] {
                    let mut request = with_method("POST", ACME, &path);
                    if told {
                        request = field(request, "content-length", &length);
                    }
                    let answer = http.post(request, Payload::new(bytes, 7));
                    assert_eq!(answer.get("x-got"), Some(digest_of(bytes, 7).as_str()), "{path} {told}");
                    assert_eq!(answer.digest, digest_of(bytes, 3), "{path} {told}");
                }
            }
        }
        assert!(!http.has_ended());
    }
    // The origin is told of a body how long it is, if the client knew, and nothing of a body that is none.
    for (_, head) in origin.heads() {
        let framing = (head.get("content-length").is_some(), head.get("transfer-encoding").is_some());
        assert_eq!(framing.0 || framing.1, head.method() == "POST", "{head:?}");
        assert_ne!(framing, (true, true));
    }
    edge.expect_metric("hostward_http2_resets_total", 0.0);
}

/// 502: trailers go both ways; what says who a client is goes up in none.
#[test]
fn t502_trailers_go_both_ways() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        let text = format!("{} {:?}", body.text(), body.trailers);
        talk.send(format!(
            "HTTP/1.1 200 OK\r\nTrailer: grpc-status\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\n\
             grpc-status: 0\r\nx-sum: a\r\nx-sum: b\r\nContent-Length: 7\r\nConnection: close\r\n\
             Transfer-Encoding: gzip\r\n\r\n",
            text.len()
        ))
    });
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    let mut stream = http.start(field(with_method("POST", ACME, "/"), "te", "trailers"), false);
    stream.send(b"abc", false);
    stream.send_trailers(&[
        ("x-checksum", "1"),
        ("client-cert", "forged"),
        ("x-forwarded-for", "6.6.6.6"),
        ("content-length", "99"),
        ("host", "evil.test"),
    ]);
    let answer = stream.answer();
    assert_eq!(answer.text(), "abc [(\"x-checksum\", \"1\")]");
    assert_eq!(answer.trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));
    assert_eq!(answer.trailers.get_all("x-sum").iter().count(), 2);
    assert_eq!(answer.trailers.len(), 3, "{:?}", answer.trailers);
    // A body whose length is told, and trailers behind: the body arrives, its trailers have no place.
    let mut stream = http.start(field(with_method("POST", ACME, "/"), "content-length", "3"), false);
    stream.send(b"abc", false);
    stream.send_trailers(&[("x-checksum", "1")]);
    assert_eq!(stream.answer().text(), "abc []");
    // Trailers alone.
    let mut stream = http.start(with_method("POST", ACME, "/"), false);
    stream.send_trailers(&[("x-checksum", "1")]);
    assert_eq!(stream.answer().text(), " [(\"x-checksum\", \"1\")]");
    // Trailers that HTTP/1.1 would read as something else end their stream, and nobody is told that the origin is at fault.
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let mut fields = frames::request("POST", ACME, "/");
    fields.push(("x-n", "1"));
    raw.head(1, &fields, false);
    raw.send(frames::DATA, 0, 1, b"abc");
    raw.head(1, &[("x-sum", "1 ")], true);
    assert_eq!(raw.reset(1), frames::PROTOCOL_ERROR);
    edge.expect_metric("hostward_http2_resets_total{reason=\"malformed\"}", 1.0);
    assert_eq!(http.get(ACME, "/").status, 200);
}

/// 503: responses without a body, cookies in pieces, fields as they are.
#[test]
fn t503_heads_say_the_same() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let status = match head.target() {
            "/204" => "204 No Content\r\nX-A: 1",
            "/304" => "304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"",
            "/hop" => {
                "200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nProxy-Connection: x\r\nContent-Length: 0"
            }
            _ => {
                let text = format!("{}|{}", head.all("cookie").join("+"), head.all("x-many").join("+"));
                return talk.answer("200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-CaSe: V", &text);
            }
        };
        talk.send(format!("HTTP/1.1 {status}\r\n\r\n"))
    });
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    assert_eq!(http.get(ACME, "/204").status, 204);
    let unmodified = http.get(ACME, "/304");
    assert_eq!((unmodified.status, unmodified.get("content-length")), (304, Some("1000")));
    let hop = http.get(ACME, "/hop");
    let names: Vec<_> = hop.headers.keys().map(|name| name.as_str().to_owned()).collect();
    assert_eq!(names, ["content-length"], "what is about the origin's connection stays there");
    let mut request = get(ACME, "/cookies?a=b&c");
    for (name, value) in [("cookie", "a=1"), ("cookie", "b=2; c=3"), ("x-many", "1"), ("x-many", "2"), ("cookie", "d")]
    {
        request = field(request, name, value);
    }
    let answer = http.ask(request);
    assert_eq!(answer.text(), "a=1; b=2; c=3; d|1+2");
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    assert_eq!(answer.get("x-case"), Some("V"));
    let head = origin.heads().pop().expect("a request").1;
    assert_eq!((head.line.as_str(), head.get("host")), ("GET /cookies?a=b&c HTTP/1.1", Some(ACME)));
    // Every method the origin may know, as it is.
    for method in ["OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "M-SEARCH"] {
        assert_eq!(http.ask(with_method(method, ACME, "/m")).status, 200);
        assert_eq!(origin.heads().pop().expect("a request").1.method(), method);
    }
}

/// 504: interim responses come before the final one, and a client may wait for them.
#[test]
fn t504_interim_responses_are_passed_on() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/refuse" {
            return talk.answer("417 Expectation Failed", "no");
        }
        if head.get("expect").is_some() {
            talk.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        talk.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")?;
        let body = talk.body(head)?;
        talk.answer("200 OK", &body.digest)
    });
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    let post = |path: &str| field(with_method("POST", ACME, path), "expect", "100-continue");
    let mut stream = http.start(post("/"), false);
    // The origin does not read before it has said that it will.
    origin.head(0);
    stream.send(b"hello", true);
    let answer = stream.answer();
    let interim: Vec<_> = answer.interim.iter().map(|head| head.status().as_u16()).collect();
    assert_eq!((interim, answer.status), (vec![100, 103], 200));
    assert_eq!(answer.interim[1].headers()["link"], "</a.css>");
    assert!(answer.digest.starts_with("69:") || answer.text().starts_with("5:"), "{answer:?}");
    // A refusal ends the stream; nobody waits for the body.
    let mut stream = http.start(post("/refuse"), false);
    assert_eq!(stream.answer().status, 417);
    assert_eq!(http.get(ACME, "/").status, 200);
}

/// 505: a hundred streams at once are a hundred requests, on no more origin connections than that, and used again.
#[test]
fn t505_a_hundred_streams_at_once() {
    const STREAMS: usize = 100;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target().starts_with("/wait") {
            talk.wait_for_release();
        }
        talk.answer("200 OK", head.target())
    });
    let host = world.http_host(ACME, &origin).origin_line("idle_connections_per_worker = 200");
    let edge = Edge::start(world.settings().workers(1).host(host));
    let mut http = connect(&world, &edge);
    let mut streams: Vec<_> = (0..STREAMS).map(|n| http.start(get(ACME, &format!("/wait/{n}")), true)).collect();
    wait::until("all are under way", SOON, || origin.heads().len() == STREAMS);
    assert_eq!(origin.accepted() as usize, STREAMS);
    // Others go on meanwhile.
    assert_eq!(http.get(ACME, "/other").text(), "/other");
    origin.release();
    for (n, stream) in streams.iter_mut().enumerate().rev() {
        assert_eq!(stream.answer().text(), format!("/wait/{n}"));
    }
    let accepted = origin.accepted();
    edge.expect_metric("hostward_origin_connections_idle", accepted as f64);
    // Again: nobody connects anew.
    let mut streams: Vec<_> = (0..STREAMS).map(|n| http.start(get(ACME, &format!("/again/{n}")), true)).collect();
    for (n, stream) in streams.iter_mut().enumerate() {
        assert_eq!(stream.answer().text(), format!("/again/{n}"));
    }
    assert_eq!(origin.accepted(), accepted);
}

/// 506: an answer that comes before the request has been sent is passed on whole, and the stream then ends without an error;
/// a request over the limit of streams is refused retryably.
#[test]
fn t506_early_answers_and_too_many_streams() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| match head.target() {
        "/early" => talk.answer("403 Forbidden", "no").and(Err(io::ErrorKind::Other.into())),
        "/wait" => {
            talk.wait_for_release();
            talk.answer("200 OK", "late")
        }
        _ => talk.answer("200 OK", ""),
    });
    let edge = Edge::start(settings(&world, &origin).limit("http2_streams = 4"));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.head(1, &frames::request("POST", ACME, "/early"), false);
    raw.send(frames::DATA, 0, 1, &[0; 1000]);
    assert_eq!(raw.answer(1), 403);
    assert_eq!(raw.reset(1), frames::NO_ERROR);
    // What was on its way is no error.
    raw.send(frames::DATA, 0, 1, &[0; 1000]);
    raw.send(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]);
    raw.send(frames::DATA, frames::END_STREAM, 1, b"end");
    for n in 1..=4 {
        raw.get(1 + 2 * n, ACME, "/wait");
    }
    raw.get(11, ACME, "/fifth");
    assert_eq!(raw.reset(11), frames::REFUSED_STREAM);
    origin.release();
    for n in 1..=4 {
        assert_eq!(raw.answer(1 + 2 * n), 200);
    }
    raw.get(13, ACME, "/sixth");
    assert_eq!(raw.answer(13), 200);
    assert!(!origin.heads().iter().any(|(_, head)| head.target() == "/fifth"));
    edge.expect_metric("hostward_http2_resets_total{reason=\"refused\"}", 1.0);
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}

/// 507: thousands of requests on one connection leave nothing behind.
#[test]
fn t507_thousands_of_requests_leave_nothing() {
    const ROUNDS: usize = 60;
    const STREAMS: usize = 100;
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut http = connect(&world, &edge);
    let mut rss = Vec::new();
    for round in 0..ROUNDS {
        let fields = |n: usize| field(get(ACME, &format!("/{round}/{n}")), "x-fill", &"x".repeat(n * 7));
        let mut streams: Vec<_> = (0..STREAMS).map(|n| http.start(fields(n), true)).collect();
        for stream in &mut streams {
            assert_eq!(stream.answer().status, 200);
        }
        rss.push(edge.proc().rss_kib());
    }
    // The first rounds fill pools and tables. Afterwards less than a KiB a request, where a stream takes several; the
    // allocator grows by steps of 2 MiB.
    let (warm, end) = (rss[ROUNDS / 3], rss[ROUNDS - 1]);
    let requests = (ROUNDS - ROUNDS / 3) * STREAMS;
    assert!(end < warm + requests as u64, "{rss:?}");
    edge.expect_metric("hostward_requests_total{protocol=\"h2\",status_class=\"2xx\"}", (ROUNDS * STREAMS) as f64);
    edge.expect_metric("hostward_connections_total", 1.0);
}

/// 508: a request that is malformed as HTTP/2 has it ends its own stream, is counted, and reaches no origin.
#[test]
fn t508_malformed_requests_end_their_stream() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(settings(&world, &origin));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let mut stream = 1;
    let usual = || frames::request("GET", ACME, "/");
    let with = |name: &'static str, value: &'static str| {
        let mut fields = usual();
        fields.push((name, value));
        fields
    };
    let without = |name: &str| usual().into_iter().filter(|(other, _)| *other != name).collect::<Vec<_>>();
    let cases = [
        ("a capital", with("X-Upper", "1")),
        ("connection", with("connection", "close")),
        ("transfer-encoding", with("transfer-encoding", "chunked")),
        ("keep-alive", with("keep-alive", "5")),
        ("proxy-connection", with("proxy-connection", "close")),
        ("upgrade", with("upgrade", "websocket")),
        ("te", with("te", "gzip")),
        ("an unknown pseudo-header field", with(":unknown", "1")),
        ("a response's", with(":status", "200")),
        ("one that is late", {
            let mut fields = without(":path");
            fields.push(("x", "y"));
            fields.push((":path", "/"));
            fields
        }),
        ("one twice", with(":method", "GET")),
        ("no path", without(":path")),
        ("no method", without(":method")),
        ("no scheme", without(":scheme")),
        ("an empty path", frames::request("GET", ACME, "")),
        ("white space before", with("x", " y")),
        ("white space after", with("x", "y\t")),
        ("a line end in a value", with("x", "y\r\nclient-cert: forged")),
        ("a zero in a value", with("x", "y\0")),
        ("a line end in a name", with("x\r\nclient-cert", "forged")),
        ("a colon in a name", with("x:y", "1")),
        ("a length that is no number", with("content-length", "+1")),
        ("a length without a body", with("content-length", "5")),
    ];
    let (mut resets, mut goaways) = (0.0, 0.0);
    for (what, fields) in &cases {
        raw.head(stream, fields, true);
        let ended = raw.next_where(what, |frame| match frame.kind {
            frames::RST_STREAM if frame.stream == stream => Some((true, frame.number(0))),
            // What HPACK cannot make a field of, `h2` takes for an error of the connection's table.
            frames::GOAWAY => Some((false, frame.number(4))),
            _ => None,
        });
        assert_eq!(ended.1, frames::PROTOCOL_ERROR, "{what}");
        if ended.0 {
            (resets, stream) = (resets + 1.0, stream + 2);
        } else {
            goaways += 1.0;
            (raw, stream) = (Raw::open(&world.client(), edge.address(), ACME), 1);
        }
    }
    assert!(resets >= 15.0, "{resets}");
    // Bodies that are longer or shorter than told.
    for (sent, ends) in [(&b"123456"[..], false), (b"123", true)] {
        let mut fields = frames::request("POST", ACME, "/body");
        fields.push(("content-length", "5"));
        raw.head(stream, &fields, false);
        raw.send(frames::DATA, if ends { frames::END_STREAM } else { 0 }, stream, sent);
        assert_eq!(raw.reset(stream), frames::PROTOCOL_ERROR);
        stream += 2;
    }
    // The connection is none the worse for it.
    raw.get(stream, ACME, "/after");
    assert_eq!(raw.answer(stream), 200);
    let targets: Vec<_> = origin.heads().iter().map(|(_, head)| head.target().to_owned()).collect();
    assert!(targets.iter().all(|target| ["/body", "/after"].contains(&target.as_str())), "{targets:?}");
    edge.expect_metric("hostward_http2_resets_total{reason=\"malformed\"}", resets + 2.0);
    edge.expect_metric("hostward_http2_goaways_total{code=\"protocol_error\"}", goaways);
}

/// 509: a client of gRPC gets what befalls its call in its own terms.
#[test]
fn t509_grpc_clients_are_refused_in_their_terms() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        match head.target() {
            "/break" => {
                talk.send("HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
                Err(io::ErrorKind::Other.into())
            }
            "/silent" => {
                talk.wait_for_release();
                Ok(())
            }
            _ => talk.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
                 {:x}\r\n{}\r\n0\r\ngrpc-status: 0\r\n\r\n",
                body.text().len(),
                body.text()
            )),
        }
    });
    let dead = world.host_at(GLOBEX, &[&crate::harness::origin::dead_url()]).http();
    let host = world.http_host(ACME, &origin).rule("path = \"/denied\"\ndeny = true").rule("allow = {}");
    let host = host.origin_line("response_timeout = \"500ms\"");
    let edge = Edge::start(world.settings().host(host).host(dead));
    let call = |host: &str, path: &str| {
        field(field(with_method("POST", host, path), "content-type", "application/grpc+proto"), "te", "trailers")
    };
    let mut http = connect(&world, &edge);
    let mut stream = http.start(call(ACME, "/echo"), false);
    stream.send(b"hello", true);
    let answer = stream.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    assert_eq!(answer.trailers["grpc-status"], "0");
    let mut other = Http2::connect(&world.client(), edge.address(), GLOBEX);
    for (own, host, path, status) in [
        (true, ACME, "/denied", "7"),
        (true, ACME, "/silent", "4"),
        (true, ACME, "/%2e%2e/x", "13"),
        (false, GLOBEX, "/call", "14"),
        (false, ACME, "/call", "13"),
    ] {
        let http = if own { &mut http } else { &mut other };
        let mut stream = http.start(call(host, path), false);
        // Where the answer is there already, nobody wants it any more.
        let _ = stream.try_send(Bytes::from_static(b"hello"), true);
        let answer = stream.answer();
        assert_eq!((answer.status, answer.get("grpc-status")), (200, Some(status)), "{path}: {answer:?}");
        assert_eq!(answer.get("content-type"), Some("application/grpc"));
        assert!(answer.get("grpc-message").is_some_and(|message| message.contains("hostward")), "{answer:?}");
        assert!(answer.start.is_empty() && answer.trailers.is_empty());
    }
    let mut stream = http.start(call(ACME, "/break"), false);
    stream.send(b"hello", true);
    assert_eq!(stream.reset_code(), h2::Reason::INTERNAL_ERROR);
    // What befell is counted as it was, not as it was told.
    for (class, count) in [("4xx", 3.0), ("5xx", 2.0)] {
        edge.expect_metric(&format!("hostward_requests_total{{protocol=\"h2\",status_class=\"{class}\"}}"), count);
    }
    origin.release();
}

/// 510: what an origin says that is no response is 502, whatever was asked; HEAD is told so without a body.
#[test]
fn t510_origins_that_fail_are_told_apart() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        match head.target() {
            "/garbled" => talk.send("nonsense\r\n\r\n")?,
            "/close" => {}
            "/short" => talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123")?,
            "/chunk" => talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")?,
            _ => talk.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")?,
        }
        Err(io::ErrorKind::Other.into())
    });
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    for method in ["POST", "HEAD"] {
        for (path, error) in [
            ("/garbled", "http_protocol_error"),
            ("/close", "connection_terminated"),
            ("/switch", "http_protocol_error"),
        ] {
            let answer = http.ask(with_method(method, ACME, path));
            assert_eq!(answer.status, 502, "{method} {path}");
            assert!(answer.get("proxy-status").is_some_and(|told| told.contains(error)), "{path}: {answer:?}");
            assert_eq!(answer.start.is_empty(), method == "HEAD");
        }
    }
    edge.expect_metric("hostward_http2_resets_total", 0.0);
    for path in ["/short", "/chunk"] {
        assert_eq!(http.start(get(ACME, path), true).reset_code(), h2::Reason::INTERNAL_ERROR, "{path}");
    }
    edge.expect_metric("hostward_http2_resets_total{reason=\"broken_off\"}", 2.0);
}

/// 511: each request of HTTP/2 leaves its line in the access log, refused ones too.
#[test]
fn t511_each_request_leaves_its_line() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body: Body = talk.body(head)?;
        talk.answer("200 OK", &body.text())
    });
    let host = world.http_host(ACME, &origin).request(&[&world.acme]);
    let dead = world.host_at(GLOBEX, &[&crate::harness::origin::dead_url()]).http();
    let edge = Edge::start(world.settings().host(host).host(dead).log("access = \"access.log\""));
    let mut http = Http2::connect(&world.acme_client("ops-ann"), edge.address(), ACME);
    let mut stream = http.start(with_method("POST", ACME, "/p?token=secret"), false);
    stream.send(b"hello", true);
    assert_eq!(stream.answer().text(), "hello");
    assert_eq!(http.get(GLOBEX, "/other").status, 421);
    let mut other = Http2::connect(&world.client(), edge.address(), GLOBEX);
    assert_eq!(other.get(GLOBEX, "/x").status, 502);
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let mut fields = frames::request("GET", ACME, "/malformed");
    fields.push(("host", GLOBEX));
    raw.head(1, &fields, true);
    assert_eq!(raw.reset(1), frames::PROTOCOL_ERROR);
    raw.head(3, &[(":method", "CONNECT"), (":authority", ACME)], true);
    assert_eq!(raw.answer(3), 405);
    let file = edge.file().with_file_name("access.log");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    wait::for_value("lines in the access log", SOON, &5, || read().matches('\n').count());
    let text = read();
    assert!(!text.contains("secret"), "queries are not logged");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for line in &lines {
        assert_eq!(line["protocol"], "h2", "{line}");
    }
    let of = |path: &str| lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("{path}: {text}"));
    let posted = of("/p");
    assert_eq!((&posted["status"], &posted["bytes_in"], &posted["bytes_out"]), (&200.into(), &5.into(), &5.into()));
    assert_eq!((&posted["client_subject"], &posted["authority"]), (&"CN=ops-ann".into(), &ACME.into()), "{posted}");
    assert_eq!((&of("/other")["status"], &of("/x")["proxy_error"]), (&421.into(), &"connection_refused".into()));
    assert!(of("/malformed").get("status").is_none(), "it was answered: {text}");
    assert!(lines.iter().any(|line| line["status"] == 405), "{text}");
}

/// 512: what a client resets takes its request along, in whatever state it is, and nothing else.
#[test]
fn t512_a_reset_stream_takes_its_request_along() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/flow" {
            talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")?;
        }
        if head.target() != "/ok" {
            io::Read::read_to_end(talk.stream(), &mut Vec::new())?;
        }
        talk.answer("200 OK", "ok")
    });
    let edge = Edge::start(settings(&world, &origin).workers(1));
    let mut http = connect(&world, &edge);
    for (index, (path, ends)) in [("/wait", true), ("/upload", false), ("/flow", true)].into_iter().enumerate() {
        let mut stream = http.start(with_method("POST", ACME, path), ends);
        if !ends {
            stream.send(b"some", false);
        }
        origin.head(2 * index);
        if path == "/flow" {
            let mut body = stream.head().into_body();
            http2::expect_text(&mut body, "abc");
        }
        stream.reset(h2::Reason::CANCEL);
        // It was the only one: each request takes the one that is idle.
        wait::until("its origin connection is gone", SOON, || origin.open() == 0);
        edge.expect_metric("hostward_http2_resets_total{reason=\"client\"}", index as f64 + 1.0);
        assert_eq!(http.get(ACME, "/ok").text(), "ok");
        edge.expect_metric("hostward_origin_connections_idle", 1.0);
    }
}

/// 513: an answer of ours to a request that is still to end comes alone: who takes a reset behind it for a failure has it by
/// then. The rest of a small request is waited for; the client of a large one is told to stop.
#[test]
fn t513_answers_of_ours_come_before_resets() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(settings(&world, &origin));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let post = |length| [frames::request("POST", GLOBEX, "/"), vec![("content-length", length)]].concat();
    raw.head(1, &post("1"), false);
    assert_eq!(raw.answer(1), 421);
    raw.ping(1);
    assert!(!raw.was_reset(1), "its body is waited for");
    raw.send(frames::DATA, frames::END_STREAM, 1, b"x");
    raw.ping(2);
    assert!(!raw.was_reset(1), "it has ended");
    raw.head(3, &post("1000000"), false);
    assert_eq!(raw.answer(3), 421);
    assert_eq!(raw.reset(3), frames::NO_ERROR);
    assert!(origin.heads().is_empty());
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}
