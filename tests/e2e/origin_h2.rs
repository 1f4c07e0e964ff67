//! Origins over HTTP/2: many exchanges on few connections, each with its own flow control, and every end told apart.

use std::fs;
use std::time::Instant;

use h2::Reason;

use crate::harness::h2_origin::H2Origin;
use crate::harness::http::{Framing, Http, HttpOrigin, send_body};
use crate::harness::nginx::{BIG_BYTES, Nginx};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::tls_origin::Front;
use crate::harness::{ACME, Authority, Edge, GLOBEX, SOON, World, wait};

fn connect(world: &World, edge: &Edge, name: &str) -> Http {
    Http::new(world.client().open(edge.address(), name).expect("a connection"))
}

fn start(world: &World, origin: &H2Origin) -> Edge {
    Edge::start(world.settings().workers(1).host(world.host_at(ACME, &[&origin.url()]).http()))
}

/// A request with a body; its response's digests are as they must be.
#[track_caller]
fn exchange(http: &mut Http, bytes: u64, framing: Framing, query: &str) {
    let framed = match framing {
        Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
        _ => format!("Content-Length: {bytes}"),
    };
    let head = format!("POST /{bytes}{query} HTTP/1.1\r\nHost: {ACME}\r\n{framed}\r\n\r\n");
    let sent = send_body(&head, framing, Payload::new(bytes, 1), "", |bytes| http.session().send(bytes).is_ok());
    let response = http.response();
    assert_eq!(response.status(), 200, "{bytes} {framing:?}");
    assert_eq!(response.head.get("x-received"), Some(sent.as_str()), "{bytes} {framing:?}");
    assert_eq!(response.body.digest, digest_of(bytes, 2), "{bytes} {framing:?}{query}");
}

/// 375: bodies of every size and framing pass both ways, over one connection, and heads say what they said.
#[test]
fn t375_bodies_pass() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let edge = start(&world, &origin);
    let mut http = connect(&world, &edge, ACME);
    for bytes in [0, 1, 65_537, 5 << 20] {
        for framing in [Framing::Length(bytes), Framing::Chunked] {
            for query in ["", "?unsized"] {
                exchange(&mut http, bytes, framing, query);
            }
        }
    }
    assert_eq!(origin.connections(), 1);
    let first = &origin.seen()[0];
    assert_eq!((first.method.as_str(), first.uri.as_str()), ("POST", format!("http://{ACME}/0").as_str()));
    assert!(first.headers.contains_key("x-forwarded-for") && first.headers.contains_key("x-request-id"));
    assert!(!first.headers.contains_key("te"), "the client takes no trailers: {:?}", first.headers);
    // The other kinds of responses: without a body, and with something before them.
    let head = http.ask(&format!("OPTIONS /only HTTP/1.1\r\nHost: {ACME}\r\n\r\n"));
    assert_eq!((head.status(), head.head.get("grpc-status"), head.body.text().as_str()), (200, Some("5"), ""));
    let hinted = http.get(ACME, "/hints");
    assert_eq!((hinted.interim[0].status(), hinted.status()), (103, 200));
    http.send(&format!("HEAD /17 HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    let head = http.response_to(true).expect("a response");
    assert_eq!(head.head.get("content-length"), Some("17"));
    exchange(&mut http, 1, Framing::Length(1), "");
    assert_eq!(origin.connections(), 1);
}

/// 376: over TLS HTTP/2 is spoken where it is asked for and the origin has it; else HTTP/1.1 is.
#[test]
fn t376_alpn_decides() {
    let world = World::new();
    let authority = Authority::new("Origins");
    let home = tempfile::tempdir().expect("a directory");
    let ca = home.path().join("ca.pem");
    fs::write(&ca, authority.pem()).expect("a file");
    let (new, old) = (H2Origin::start(None), HttpOrigin::mirror());
    let identity = authority.server(&["origin.test"]).issue();
    for (http2, alpn, spoken) in [
        (true, vec!["h2", "http/1.1"], "h2"),
        (true, vec!["http/1.1"], "http/1.1"),
        (false, vec!["h2", "http/1.1"], "http/1.1"),
    ] {
        let backend = if spoken == "h2" { new.address() } else { old.address() };
        let front = Front::new(identity.clone()).alpn(&alpn).serve(backend);
        let host = world.host_at(ACME, &[&front.url()]).http().origin_line(&format!(
            "http2 = {http2}\ntls = {{ ca = {:?}, sni = \"origin.test\" }}",
            ca.display().to_string()
        ));
        let edge = Edge::start(world.settings().workers(1).host(host));
        let mut http = connect(&world, &edge, ACME);
        for _ in 0..2 {
            let response = http.ask(&format!(
                "POST /3 HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            ));
            assert_eq!(response.status(), 200, "{http2} {alpn:?}");
        }
        let shown = front.shown();
        assert_eq!((shown.len(), shown[0].alpn.as_deref()), (1, Some(spoken)), "{http2} {alpn:?}");
    }
}

/// 377: many requests at once share a connection, up to as many streams as the origin allows; then there is one more.
#[test]
fn t377_many_streams_on_few_connections() {
    let world = World::new();
    for (streams_max, connections) in [(None, 1), (Some(4), 3)] {
        let origin = H2Origin::start(streams_max);
        let edge = start(&world, &origin);
        let mut clients: Vec<_> = (0..12).map(|_| connect(&world, &edge, ACME)).collect();
        for http in &mut clients {
            http.send(&format!("GET /wait HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        }
        wait::until("all are under way", SOON, || origin.streams() == 12);
        assert_eq!(origin.connections(), connections, "{streams_max:?}");
        origin.release();
        for http in &mut clients {
            assert_eq!(http.response().status(), 200);
        }
        assert_eq!(origin.streams_most(), 12);
    }
}

/// 378: what the origin has not looked at is sent again, whatever it is: after REFUSED_STREAM, and where its connection goes
/// away. What it keeps refusing is a 502.
#[test]
fn t378_what_was_not_processed_is_sent_again() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let edge = start(&world, &origin);
    let mut http = connect(&world, &edge, ACME);
    exchange(&mut http, 1, Framing::Length(1), "");
    origin.refuse(1);
    exchange(&mut http, 3_000, Framing::Length(3_000), "");
    edge.expect_metric("hostward_origin_retries_total{result=\"unprocessed\"}", 1.0);
    for round in 0..5 {
        let before = origin.connections();
        origin.go_away();
        exchange(&mut http, 100, Framing::Chunked, "");
        exchange(&mut http, 100, Framing::Chunked, "");
        assert!(origin.connections() <= before + 1, "round {round}");
    }
    origin.refuse(u32::MAX);
    let response = http.get(ACME, "/1");
    assert_eq!(
        (response.status(), response.head.get("proxy-status")),
        (502, Some("hostward; error=connection_terminated"))
    );
}

/// 379: resets are passed on: an origin's as a 502 or a cut, a client's as CANCEL. Neither touches other streams.
#[test]
fn t379_resets_end_one_stream() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let edge = start(&world, &origin);
    let mut cut = connect(&world, &edge, ACME);
    cut.send(&format!("GET /cut HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    assert_eq!(cut.reader.head().expect("a head").status(), 200);
    origin.release();
    assert!(cut.reader.body(Framing::Chunked).is_err(), "half a response passed for a whole one");
    let mut other = connect(&world, &edge, ACME);
    other.send(&format!("GET /wait HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    wait::until("it is under way", SOON, || origin.streams() == 1);
    let response =
        connect(&world, &edge, ACME).ask(&format!("POST /reset HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(
        (response.status(), response.head.get("proxy-status")),
        (502, Some("hostward; error=connection_terminated"))
    );
    let mut gone = connect(&world, &edge, ACME);
    gone.send(&format!("GET /hang HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    wait::until("it is under way", SOON, || origin.streams() == 2);
    gone.reader.inner.vanish();
    assert_eq!(origin.reset(), Reason::CANCEL);
    origin.release();
    assert_eq!(other.response().status(), 200);
    assert_eq!(origin.connections(), 1);
}

/// 380: trailers pass both ways, and `te: trailers` where the client says so.
#[test]
fn t380_trailers_pass() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let edge = start(&world, &origin);
    let mut http = connect(&world, &edge, ACME);
    let response = http.ask(&format!(
        "POST /5?unsized HTTP/1.1\r\nHost: {ACME}\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n\
         3\r\nabc\r\n0\r\nX-Sum: 6\r\nX-Client-Cert-Verify: SUCCESS\r\n\r\n"
    ));
    assert_eq!(response.body.trailers, [("x-checksum".to_owned(), "abc".to_owned())]);
    assert_eq!(origin.seen()[0].headers.get("te").map(|value| value.as_bytes()), Some(&b"trailers"[..]));
    let trailers = origin.trailers();
    assert_eq!(trailers[0].get("x-sum").map(|value| value.as_bytes()), Some(&b"6"[..]));
    assert_eq!(trailers[0].len(), 1, "what speaks of the client is ours alone: {trailers:?}");
    // A conversation: each piece comes back before the next is sent.
    http.send(&format!("POST /converse HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n")).expect("sent");
    for piece in ["one", "two", "three"] {
        http.send(&format!("{:x}\r\n{piece}\r\n", piece.len())).expect("sent");
        while !http.reader.buffer.windows(piece.len()).any(|window| window == piece.as_bytes()) {
            let mut block = [0; 4096];
            let count = http.session().receive_some(&mut block).expect("the echo");
            http.reader.buffer.extend_from_slice(&block[..count]);
        }
    }
    http.send("0\r\n\r\n").expect("sent");
    let response = http.response();
    assert_eq!((response.body.text().as_str(), response.body.trailers.len()), ("onetwothree", 1));
}

/// 381: a client that does not read holds back its own stream and nothing else: what is on its way is bounded by the stream's
/// window, and others of the same connection go on.
#[test]
fn t381_a_slow_reader_is_alone() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let edge = start(&world, &origin);
    let before = edge.proc().rss_kib();
    let mut slow: Vec<_> = (0..20).map(|_| connect(&world, &edge, ACME)).collect();
    for http in &mut slow {
        http.send(&format!("GET /50000000 HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    }
    wait::until("all are under way", SOON, || origin.streams() == 20);
    let mut http = connect(&world, &edge, ACME);
    let began = Instant::now();
    exchange(&mut http, 5 << 20, Framing::Length(5 << 20), "");
    assert!(began.elapsed() < SOON);
    assert_eq!(origin.connections(), 1);
    let grown = edge.proc().rss_kib().saturating_sub(before);
    assert!(grown < 60 * 1024, "{grown} KiB for responses that nobody reads");
    let last = slow.pop().map(|mut http| http.response().body.digest);
    assert_eq!(last, Some(digest_of(50_000_000, 2)));
}

/// 382: an origin that does not speak HTTP/2 is told apart from one that is not there.
#[test]
fn t382_what_is_no_http2_is_told() {
    let world = World::new();
    let origin = HttpOrigin::start(|_, talk| talk.answer("400 Bad Request", ""));
    let url = origin.url().replace("http://", "h2c://");
    let edge = Edge::start(world.settings().workers(1).host(world.host_at(ACME, &[&url]).http()));
    let response = connect(&world, &edge, ACME).get(ACME, "/");
    assert_eq!(
        (response.status(), response.head.get("proxy-status")),
        (502, Some("hostward; error=http_protocol_error"))
    );
    edge.expect_metric("hostward_origin_connects_total{result=\"not_http2\"}", 1.0);
}

/// 383: connections belong to their hostname as those of HTTP/1.1 do, unless the origin is shared; a reload that changes the
/// hostname ends them, and what is under way goes on.
#[test]
fn t383_connections_belong_to_their_hostname() {
    let world = World::new();
    for (line, connections) in [("share = false", 2), ("share = true", 1)] {
        let origin = H2Origin::start(None);
        let acme = world.host_at(ACME, &[&origin.url()]).http().origin_line(line);
        let globex = world.host_at(GLOBEX, &[]).http().with_origin_of(0);
        let edge = Edge::start(world.settings().workers(1).host(acme).host(globex));
        for name in [ACME, GLOBEX, ACME, GLOBEX] {
            assert_eq!(connect(&world, &edge, name).get(name, "/1").status(), 200);
        }
        assert_eq!(origin.connections(), connections, "{line}");
        if connections == 2 {
            let mut waiting = connect(&world, &edge, ACME);
            waiting.send(&format!("GET /wait HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
            wait::until("it is under way", SOON, || origin.streams() == 1);
            edge.reconfigure(|settings| settings.named(ACME).rules = vec!["allow = {}".into()]);
            assert_eq!(connect(&world, &edge, ACME).get(ACME, "/1").status(), 200);
            assert_eq!(origin.connections(), 3);
            origin.release();
            assert_eq!(waiting.response().status(), 200);
            wait::until("the old one has ended", SOON, || origin.open() == 2);
        }
    }
}

/// 384: a call of gRPC may take as long as it says, though responses of the origin must come sooner.
#[test]
fn t384_deadlines_are_not_shortened() {
    let world = World::new();
    let origin = H2Origin::start(None);
    let host = world.host_at(ACME, &[&origin.url()]).http().origin_line("response_timeout = \"300ms\"");
    let edge = Edge::start(world.settings().workers(1).host(host));
    let response = connect(&world, &edge, ACME).get(ACME, "/wait");
    assert_eq!(
        (response.status(), response.head.get("proxy-status")),
        (504, Some("hostward; error=http_response_timeout"))
    );
    let mut http = connect(&world, &edge, ACME);
    let before = origin.seen().len();
    http.send(&format!(
        "POST /wait HTTP/1.1\r\nHost: {ACME}\r\nContent-Type: application/grpc\r\ngrpc-timeout: 30S\r\nContent-Length: 0\r\n\r\n"
    ))
    .expect("sent");
    wait::until("it is under way", SOON, || origin.seen().len() == before + 1);
    // Longer than the limit it would have had.
    assert!(http.session().ended().is_none());
    let began = Instant::now();
    wait::until("the other limit is over", SOON, || began.elapsed().as_millis() > 900);
    origin.release();
    assert_eq!(http.response().status(), 200);
}

/// 385: nginx speaks HTTP/2 with us by prior knowledge.
#[test]
fn t385_nginx_speaks_it_too() {
    let world = World::new();
    let home = tempfile::Builder::new().prefix("hostward-nginx-").tempdir().expect("a directory");
    let directives = "location = /sink { client_max_body_size 0; return 200 \"$server_protocol\"; }";
    let Some((_nginx, address)) = Nginx::start_tcp(home, "http2", directives) else { return };
    let url = format!("h2c://{address}");
    let edge = Edge::start(world.settings().workers(1).host(world.host_at(ACME, &[&url]).http()));
    let mut http = connect(&world, &edge, ACME);
    assert_eq!(http.get(ACME, "/sink").body.text(), "HTTP/2.0");
    for _ in 0..3 {
        let big = http.get(ACME, "/big");
        assert_eq!(big.head.get("content-length"), Some(BIG_BYTES.to_string().as_str()));
    }
}
