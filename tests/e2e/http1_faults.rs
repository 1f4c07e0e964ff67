//! Origins that die, stall and talk nonsense, and clients that are slow or large: each ends as it should, told and counted,
//! and nobody takes half a message for a whole one.

use std::time::Duration;

use crate::harness::http::{Framing, Http, HttpOrigin, Response, send_body};
use crate::harness::origin::dead_url;
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Edge, End, SOON, World, wait};

fn connect(world: &World, edge: &Edge) -> Http {
    Http::new(world.client().open(edge.address(), ACME).expect("a connection"))
}

fn start(world: &World, origin: &HttpOrigin, limits: &[&str]) -> Edge {
    let settings = world.settings().host(world.http_host(ACME, origin));
    Edge::start(limits.iter().fold(settings, |settings, line| settings.limit(line)))
}

#[track_caller]
fn expect_error(response: &Response, status: u16, error: &str) {
    let told = response.head.get("proxy-status").unwrap_or_default();
    assert!(response.status() == status && told.contains(error), "{status} {error}: {response:?}");
}

/// 225: an origin that cannot be reached is 502, and says why in `Proxy-Status` (RFC 9209).
#[test]
fn t225_unreachable_origins() {
    let world = World::new();
    let edge = Edge::start(world.settings().host(world.host_at(ACME, &[&dead_url()]).http()));
    let response = connect(&world, &edge).get(ACME, "/");
    expect_error(&response, 502, "connection_refused");
    edge.expect_metric("hostward_requests_total{status_class=\"5xx\"}", 1.0);
}

/// 226: an origin that dies before its response, or in its head, or talks nonsense, is 502; the edge goes on.
#[test]
fn t226_broken_origins_are_told() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        let (bytes, reset) = match head.target() {
            "/eof" => ("", false),
            "/reset" => ("", true),
            "/half" => ("HTTP/1.1 200 OK\r\nContent-Le", false),
            "/nonsense" => ("SSH-2.0-OpenSSH_9.9\r\n\r\n", false),
            "/both" => ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nabc", false),
            "/twice" => ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", false),
            "/switch" => {
                ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", false)
            }
            _ => return talk.answer("200 OK", "fine"),
        };
        talk.send(bytes)?;
        if reset {
            talk.reset();
        }
        Err(std::io::ErrorKind::Other.into())
    });
    let edge = start(&world, &origin, &[]);
    for (path, error) in [
        ("/eof", "connection_terminated"),
        ("/reset", "connection_terminated"),
        ("/half", "http_response_incomplete"),
        ("/nonsense", "http_protocol_error"),
        ("/both", "http_protocol_error"),
        ("/twice", "http_protocol_error"),
        ("/switch", "http_protocol_error"),
    ] {
        let mut http = connect(&world, &edge);
        let response = http.get(ACME, path);
        expect_error(&response, 502, error);
        assert_eq!(http.end(), End::CloseNotify, "{path}");
    }
    assert_eq!(connect(&world, &edge).get(ACME, "/").body.text(), "fine");
}

/// 227: an origin that dies in the middle of a body leaves the client without an end: no last chunk, no close_notify.
#[test]
fn t227_half_a_response_is_no_response() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        let line = match head.target() {
            path if path.starts_with("/length") => "Content-Length: 100000",
            path if path.starts_with("/chunked") => "Transfer-Encoding: chunked",
            _ => "Connection: close",
        };
        let begin = if line.starts_with("Transfer") { "186a0\r\n" } else { "" };
        talk.send(format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n{begin}{}", "x".repeat(5000)))?;
        talk.wait_for_release();
        if head.target().ends_with("reset") {
            talk.reset();
        }
        Err(std::io::ErrorKind::Other.into())
    });
    let edge = start(&world, &origin, &[]);
    let paths = ["/length", "/chunked", "/length-reset", "/chunked-reset", "/close-reset"];
    let mut open: Vec<_> = paths
        .iter()
        .map(|path| {
            let mut http = connect(&world, &edge);
            http.send(&format!("GET {path} HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
            assert_eq!(http.reader.head().expect("a head").status(), 200);
            http
        })
        .collect();
    origin.release();
    for (path, http) in paths.iter().zip(&mut open) {
        let end = http.end();
        assert!(matches!(end, End::Truncated | End::Reset), "{path}: {end:?}");
    }
    edge.expect_metric("hostward_tunnels_ended_total{end=\"origin_aborted\"}", 5.0);
}

/// 228: an origin that does not begin its response is 504 after `response_timeout`, and sees a reset.
#[test]
fn t228_stalled_origins_time_out() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        let mut byte = [0];
        std::io::Read::read(talk.stream(), &mut byte).map(|_| ())
    });
    let host = world.http_host(ACME, &origin).origin_line("response_timeout = \"300ms\"");
    let edge = Edge::start(world.settings().host(host));
    let mut http = connect(&world, &edge);
    let response = http.get(ACME, "/");
    expect_error(&response, 504, "http_response_timeout");
    assert_eq!(http.end(), End::CloseNotify);
    edge.expect_metric("hostward_timeouts_total{timeout=\"response\"}", 1.0);
    wait::until("the origin's connection is gone", SOON, || origin.open() == 0);
}

/// 229: an early response reaches the client, however much of the request is still to come; a small rest is read and the
/// connection goes on, a large one ends it.
#[test]
fn t229_early_responses() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/early" {
            talk.answer("403 Forbidden", "enough")?;
            talk.wait_for_release();
            return Err(std::io::ErrorKind::Other.into());
        }
        talk.body(head)?;
        talk.answer("200 OK", "")
    });
    let edge = start(&world, &origin, &[]);
    let request = |bytes: usize| format!("POST /early HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: {bytes}\r\n\r\n");
    let mut http = connect(&world, &edge);
    let response = http.ask(&request(1000));
    assert_eq!((response.status(), response.body.text().as_str()), (403, "enough"));
    http.send(&"x".repeat(1000)).expect("sent");
    assert_eq!(http.get(ACME, "/next").status(), 200);
    let large = http.ask(&request(10_000_000));
    assert_eq!((large.status(), large.head.get("connection")), (403, Some("close")));
    let mut end = Ok(());
    for _ in 0..200 {
        end = end.and_then(|()| http.send(&"x".repeat(50_000)));
    }
    let last = http.end();
    assert!(end.is_err() || matches!(last, End::CloseNotify | End::Reset), "{last:?}");
    origin.release();
}

/// 230: a body above `body_bytes` is 413, by its head or as its chunks come; one that fits passes.
#[test]
fn t230_large_bodies_are_refused() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        talk.answer("200 OK", &body.digest)
    });
    let edge = start(&world, &origin, &["body_bytes = \"10KiB\""]);
    let post = |line: &str| format!("POST / HTTP/1.1\r\nHost: {ACME}\r\n{line}\r\n\r\n");
    let mut http = connect(&world, &edge);
    let fits = http.ask(&(post("Content-Length: 10240") + &"x".repeat(10_240)));
    assert_eq!(fits.status(), 200);
    let large = http.ask(&post("Content-Length: 10000000"));
    assert_eq!((large.status(), large.head.get("connection")), (413, Some("close")));
    let mut http = connect(&world, &edge);
    http.send(&post("Transfer-Encoding: chunked")).expect("sent");
    for _ in 0..11 {
        http.send(&format!("400\r\n{}\r\n", "x".repeat(1024))).expect("sent");
    }
    assert_eq!(http.response().status(), 413);
    assert_eq!(http.end(), End::CloseNotify);
    wait::until("the origin was told that the request broke off", SOON, || origin.resets() == 1);
}

/// 231: a head that does not come in time is 408; a connection without a request just ends, in order.
#[test]
fn t231_slow_heads_and_idle_connections_end() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &["header_timeout = \"300ms\"", "idle_timeout = \"600ms\""]);
    let mut slow = connect(&world, &edge);
    slow.send("GET / HTTP/1.1\r\nHost: ").expect("sent");
    assert_eq!(slow.response().status(), 408);
    assert_eq!(slow.end(), End::CloseNotify);
    let mut idle = connect(&world, &edge);
    assert_eq!(idle.get(ACME, "/").status(), 200);
    assert_eq!(idle.end(), End::CloseNotify);
    let mut silent = connect(&world, &edge);
    assert_eq!(silent.end(), End::CloseNotify);
    assert!(silent.reader.buffer.is_empty());
    edge.expect_metric("hostward_timeouts_total{timeout=\"header\"}", 1.0);
    edge.expect_metric("hostward_timeouts_total{timeout=\"idle\"}", 2.0);
}

/// 232: a client that stalls in its body is 408 once it falls below `min_body_rate`, and its origin sees a reset.
#[test]
fn t232_stalled_uploads_end() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| talk.body(head).and_then(|_| talk.answer("200 OK", "")));
    let edge = start(&world, &origin, &["min_body_rate = \"1MiB\""]);
    let mut http = connect(&world, &edge);
    http.send(&format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 1000\r\n\r\nabc")).expect("sent");
    origin.head(0);
    let response = http.response();
    assert_eq!((response.status(), response.head.get("connection")), (408, Some("close")));
    edge.expect_metric("hostward_timeouts_total{timeout=\"body_rate\"}", 1.0);
    wait::until("the origin was told that the request broke off", SOON, || origin.resets() == 1);
}

/// 233: a client that goes away takes its origin's connection along, whatever was under way.
#[test]
fn t233_clients_that_vanish_free_their_origins() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        let mut byte = [0];
        std::io::Read::read(talk.stream(), &mut byte)?;
        Err(std::io::ErrorKind::Other.into())
    });
    let edge = start(&world, &origin, &[]);
    let texts = [
        format!("GET /waiting HTTP/1.1\r\nHost: {ACME}\r\n\r\n"),
        format!("POST /sending HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 1000\r\n\r\nabc"),
    ];
    for (index, text) in texts.iter().enumerate() {
        for cut in [false, true] {
            let mut http = connect(&world, &edge);
            http.send(text).expect("sent");
            wait::until("the origin has the request", SOON, || origin.heads().len() > index * 2 + usize::from(cut));
            let session = http.reader.inner;
            if cut {
                session.reset()
            } else {
                session.vanish()
            }
            wait::until("the origin's connection is gone", SOON, || origin.open() == 0);
        }
    }
    edge.expect_metric("hostward_requests_total{status_class=\"none\"}", 4.0);
}

/// 234: a slow reader holds back its own origin and nobody else, and gets everything in the end.
#[test]
fn t234_a_slow_reader_is_alone() {
    let world = World::new();
    const BYTES: u64 = 64 << 20;
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() != "/big" {
            return talk.answer("200 OK", "small");
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        send_body(&head, Framing::Length(BYTES), Payload::new(BYTES, 1), "", |bytes| talk.send(bytes).is_ok());
        talk.wait_for_release();
        Ok(())
    });
    let settings = world.settings().workers(1).host(world.http_host(ACME, &origin));
    let edge = Edge::start(settings);
    let before = edge.proc().rss_kib();
    let mut slow: Vec<_> = (0..4).map(|_| connect(&world, &edge)).collect();
    for http in &mut slow {
        http.send(&format!("GET /big HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    }
    wait::until("all are under way", SOON, || origin.heads().len() == 4);
    let mut quick = connect(&world, &edge);
    for _ in 0..200 {
        assert_eq!(quick.get(ACME, "/small").body.text(), "small");
    }
    let grown = edge.proc().rss_kib().saturating_sub(before);
    assert!(grown < 48 << 10, "four stalled downloads of 64 MiB hold {grown} KiB");
    for http in &mut slow {
        assert_eq!(http.response().body.digest, digest_of(BYTES, 1));
    }
    origin.release();
}

/// 235: an upload that its origin does not read holds the client back, in bounded memory.
#[test]
fn t235_a_slow_origin_holds_its_client_back() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.wait_for_release();
        let body = talk.body(head)?;
        talk.answer("200 OK", &body.digest)
    });
    let edge = start(&world, &origin, &[]);
    const BYTES: u64 = 64 << 20;
    let mut http = connect(&world, &edge);
    let sent = std::sync::atomic::AtomicU64::new(0);
    let before = edge.proc().rss_kib();
    std::thread::scope(|scope| {
        let upload = scope.spawn(|| {
            let head = format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: {BYTES}\r\n\r\n");
            let session = http.session();
            let digest = send_body(&head, Framing::Length(BYTES), Payload::new(BYTES, 5), "", |bytes| {
                sent.fetch_add(bytes.len() as u64, std::sync::atomic::Ordering::Relaxed);
                session.send(bytes).is_ok()
            });
            (digest, http.response().body.text())
        });
        let read = || sent.load(std::sync::atomic::Ordering::Relaxed);
        let stalled = wait::until_still("the upload", Duration::from_millis(500), SOON, read);
        assert!(stalled < BYTES / 2, "the client sent {stalled} bytes to an origin that reads none");
        let grown = edge.proc().rss_kib().saturating_sub(before);
        assert!(grown < 24 << 10, "a stalled upload holds {grown} KiB");
        origin.release();
        let (digest, answer) = upload.join().expect("the upload does not fail");
        assert_eq!(answer, digest);
    });
}

/// 236: a client that waits for 100 and gets a final answer instead may send its body or not (RFC 9110 section 10.1.1), so
/// the connection ends: its next request would be taken for that body.
#[test]
fn t236_an_answer_instead_of_100_ends_the_connection() {
    let world = World::new();
    let origin = HttpOrigin::start(|_, talk| talk.answer("403 Forbidden", "no"));
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let mut http = Http::new(world.client().open(edge.address(), ACME).expect("a connection"));
    let head = format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nExpect: 100-continue\r\nContent-Length: 40\r\n\r\n");
    let answer = http.ask(&head);
    assert_eq!((answer.status(), answer.head.get("connection")), (403, Some("close")));
    assert_eq!(http.end(), End::CloseNotify);
}

/// 237: an origin whose name has no address is unavailable.
#[test]
fn t237_an_origin_without_an_address_is_unavailable() {
    let world = World::new();
    let host = world.host_at(ACME, &["http://nowhere.invalid:80"]).http();
    let edge = Edge::start(world.settings().host(host));
    let answer = connect(&world, &edge).get(ACME, "/");
    assert_eq!(answer.status(), 503);
    assert!(answer.head.get("proxy-status").is_some_and(|told| told.contains("destination_unavailable")));
}
