//! WebSockets of HTTP/2 (RFC 8441): a stream becomes a tunnel to an origin of HTTP/1.1.

use std::io::{self, Read};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine;

use crate::harness::http::{Conversation, Head, HttpOrigin};
use crate::harness::http2::{Http2, expect_text, extended_connect, field, get, read_some, with_method};
use crate::harness::http2_frames::{self as frames, Raw};
use crate::harness::{ACME, Edge, GLOBEX, SOON, Settings, World, wait};

/// What proves that the origin has read the key (RFC 6455 section 4.2.2).
fn accept(head: &Head) -> String {
    let key = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", head.get("sec-websocket-key").expect("a key"));
    base64::engine::general_purpose::STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes()))
}

fn switch(head: &Head, talk: &mut Conversation, behind: &str) -> io::Result<()> {
    talk.send(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: chat\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n{behind}",
        accept(head)
    ))
}

/// Sends back what comes, until the end.
fn echo(talk: &mut Conversation) -> io::Result<()> {
    loop {
        let mut block = std::mem::take(&mut talk.reader.buffer);
        if block.is_empty() {
            block = vec![0; 4096];
            let count = talk.stream().read(&mut block)?;
            block.truncate(count);
            if count == 0 {
                talk.send("bye")?;
                talk.finish();
                return Err(io::ErrorKind::Other.into());
            }
        }
        talk.send(&block)?;
    }
}

fn origin() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        if head.get("upgrade") != Some("websocket") {
            return talk.answer("200 OK", "no upgrade");
        }
        match head.target() {
            "/wrong" => talk.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
            ),
            "/unproved" => {
                talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            }
            "/refused" => talk.answer("403 Forbidden\r\nX-Why: no", "not you"),
            "/ignored" => talk.answer("200 OK", "a page"),
            "/dead" => Err(io::ErrorKind::Other.into()),
            "/ends" => {
                switch(head, talk, "last words")?;
                talk.finish();
                let mut rest = Vec::new();
                talk.stream().read_to_end(&mut rest)?;
                Err(io::ErrorKind::Other.into())
            }
            "/resets" => {
                switch(head, talk, "hello")?;
                talk.wait_for_release();
                talk.reset();
                Err(io::ErrorKind::Other.into())
            }
            "/silent" => {
                switch(head, talk, "")?;
                talk.stream().read_to_end(&mut Vec::new())?;
                Err(io::ErrorKind::Other.into())
            }
            _ => {
                switch(head, talk, "hello")?;
                echo(talk)
            }
        }
    })
}

fn settings(world: &World, origin: &HttpOrigin) -> Settings {
    world.settings().workers(1).host(world.http_host(ACME, origin))
}

fn connect(world: &World, edge: &Edge) -> Http2 {
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    http.wait_for_extended_connect();
    http
}

/// 550: a WebSocket goes both ways, with what came early, beside other streams; its origin connection is never pooled.
#[test]
fn t550_websockets_are_tunnels() {
    let world = World::new();
    let origin = origin();
    let edge = Edge::start(settings(&world, &origin).log("access = \"access.log\""));
    let mut http = connect(&world, &edge);
    let mut stream =
        http.start(field(extended_connect(ACME, "/chat?room=1", "websocket"), "origin", "https://x.test"), false);
    let head = stream.head();
    assert_eq!(head.status(), 200);
    for name in ["sec-websocket-accept", "upgrade", "connection"] {
        assert!(!head.headers().contains_key(name), "{head:?}");
    }
    assert_eq!(head.headers()["sec-websocket-protocol"], "chat");
    let mut body = head.into_body();
    expect_text(&mut body, "hello");
    for n in 0..100 {
        stream.send(format!("frame {n}").as_bytes(), false);
        expect_text(&mut body, &format!("frame {n}"));
        if n % 10 == 0 {
            assert_eq!(http.get(ACME, "/page").text(), "no upgrade");
        }
    }
    // Half-closed by the client, then by the origin.
    stream.send(b"", true);
    expect_text(&mut body, "bye");
    assert!(read_some(&mut body).is_none());
    let head =
        origin.heads().into_iter().map(|(_, head)| head).find(|head| head.get("upgrade").is_some()).expect("one");
    assert_eq!((head.line.as_str(), head.get("host")), ("GET /chat?room=1 HTTP/1.1", Some(ACME)));
    assert_eq!((head.get("sec-websocket-version"), head.get("origin")), (Some("13"), Some("https://x.test")));
    let is_upgrade = head.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("upgrade"));
    assert!(is_upgrade && head.get("transfer-encoding").is_none(), "{head:?}");
    // Keys are never the same.
    let mut again = http.start(extended_connect(ACME, "/chat", "websocket"), false);
    assert_eq!(again.head().status(), 200);
    let keys: Vec<_> =
        origin.heads().iter().filter_map(|(_, head)| head.get("sec-websocket-key").map(str::to_owned)).collect();
    assert!(keys.len() == 2 && keys[0] != keys[1], "{keys:?}");
    // The second one took the connection that the pages had left.
    edge.expect_metric("hostward_origin_connections_idle", 0.0);
    edge.expect_metric("hostward_requests_total{protocol=\"h2\",status_class=\"1xx\"}", 2.0);
    again.reset(h2::Reason::CANCEL);
    let file = edge.file().with_file_name("access.log");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    wait::until("both have left their lines", SOON, || read().matches("\"/chat\"").count() == 2);
    let line = read().lines().find(|line| line.contains("\"/chat\"") && line.contains("clean")).map(str::to_owned);
    let line: serde_json::Value = serde_json::from_str(&line.expect("the one that ended in order")).expect("JSON");
    assert_eq!((&line["status"], &line["protocol"]), (&200.into(), &"h2".into()), "{line}");
}

/// 551: what is no WebSocket is no success: an origin that proves nothing is 502, one that refuses is heard.
#[test]
fn t551_what_is_no_websocket_is_told() {
    let world = World::new();
    let origin = origin();
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    for (path, status) in [("/wrong", 502), ("/unproved", 502), ("/refused", 403), ("/ignored", 502), ("/dead", 502)] {
        let mut stream = http.start(extended_connect(ACME, path, "websocket"), false);
        let answer = stream.answer();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        match path {
            "/refused" => assert_eq!((answer.get("x-why"), answer.text().as_str()), (Some("no"), "not you")),
            _ => assert!(answer.get("proxy-status").is_some(), "{answer:?}"),
        }
    }
    wait::until("no tunnel is left", SOON, || origin.open() <= 1);
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}

/// 552: other protocols are 501, CONNECT as it was is 405, and an upgrade of HTTP/1.1 is malformed; another hostname is 421.
#[test]
fn t552_only_websockets_are_opened() {
    let world = World::new();
    let origin = origin();
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    for protocol in ["connect-udp", "webtransport", "websocket2", "WEBSOCKET"] {
        assert_eq!(http.start(extended_connect(ACME, "/", protocol), false).answer().status, 501, "{protocol}");
    }
    assert_eq!(http.start(extended_connect(GLOBEX, "/chat", "websocket"), false).answer().status, 421);
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.head(1, &[(":method", "CONNECT"), (":authority", ACME)], false);
    assert_eq!(raw.answer(1), 405);
    raw.head(3, &[(":method", "CONNECT"), (":authority", "pay.acme.test:443")], false);
    assert_eq!(raw.answer(3), 405);
    // What a WebSocket carries is no content of the request that opens it.
    let connect = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")];
    let sized = [&connect[..], &[(":authority", ACME), ("content-length", "5")]].concat();
    raw.head(5, &sized, false);
    assert_eq!(raw.answer(5), 400);
    // RFC 8441 section 4: :scheme and :path stand with :protocol, which stands with CONNECT alone.
    let mut stream = 7;
    for fields in [
        &[(":method", "CONNECT"), (":protocol", "websocket"), (":authority", ACME)][..],
        &[(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/")],
        &[(":method", "GET"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/"), (":authority", ACME)],
        &[(":method", "CONNECT"), (":authority", ACME), (":scheme", "https"), (":path", "/")],
    ] {
        raw.head(stream, fields, false);
        assert_eq!(raw.reset(stream), frames::PROTOCOL_ERROR, "{fields:?}");
        stream += 2;
    }
    raw.get(stream, ACME, "/page");
    assert_eq!(raw.answer(stream), 200);
    assert!(origin.heads().iter().all(|(_, head)| head.target() == "/page"), "{:?}", origin.heads());
    assert_eq!(http.ask(with_method("GET", ACME, "/page")).status, 200);
}

/// 553: each side's end and each side's reset reach the other as what they are.
#[test]
fn t553_ends_and_resets_are_passed_on() {
    let world = World::new();
    let origin = origin();
    let edge = Edge::start(settings(&world, &origin));
    let mut http = connect(&world, &edge);
    // The origin ends first; the client may go on.
    let mut stream = http.start(extended_connect(ACME, "/ends", "websocket"), false);
    let mut body = stream.head().into_body();
    expect_text(&mut body, "last words");
    assert!(read_some(&mut body).is_none());
    stream.send(b"still here", true);
    wait::until("the origin's connection has ended", SOON, || origin.open() == 0);
    let raw = String::from_utf8_lossy(&origin.raw(0)).into_owned();
    assert!(!raw.is_empty());
    edge.expect_metric("hostward_tunnels_ended_total{end=\"clean\"}", 1.0);
    // The client resets.
    let mut stream = http.start(extended_connect(ACME, "/silent", "websocket"), false);
    assert_eq!(stream.head().status(), 200);
    stream.reset(h2::Reason::CANCEL);
    wait::until("the origin's connection has ended", SOON, || origin.open() == 0);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"client_aborted\"}", 1.0);
    // The origin resets.
    let mut stream = http.start(extended_connect(ACME, "/resets", "websocket"), false);
    let mut body = stream.head().into_body();
    expect_text(&mut body, "hello");
    origin.release();
    let end = read_some(&mut body).expect("no end in order").expect_err("a reset");
    assert_eq!(end.reason(), Some(h2::Reason::CANCEL), "{end}");
    edge.expect_metric("hostward_tunnels_ended_total{end=\"origin_aborted\"}", 1.0);
    assert_eq!(http.get(ACME, "/page").status, 200);
}

/// 554: a WebSocket in which nothing moves ends after `tunnel_timeout`; the connection goes on.
#[test]
fn t554_silent_websockets_end() {
    let world = World::new();
    let origin = origin();
    let edge =
        Edge::start(settings(&world, &origin).limit("tunnel_timeout = \"700ms\"").limit("idle_timeout = \"300ms\""));
    let mut http = connect(&world, &edge);
    let mut stream = http.start(extended_connect(ACME, "/silent", "websocket"), false);
    let mut body = stream.head().into_body();
    let end = read_some(&mut body).expect("no end in order").expect_err("a reset");
    assert_eq!(end.reason(), Some(h2::Reason::CANCEL), "{end}");
    edge.expect_metric("hostward_timeouts_total{timeout=\"tunnel\"}", 1.0);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"timed_out\"}", 1.0);
    wait::until("the origin's connection has ended", SOON, || origin.open() == 0);
}

/// 555: rules that deny a WebSocket now end it, and no other stream.
#[test]
fn t555_tightened_rules_end_websockets() {
    let world = World::new();
    let origin = origin();
    let mut settings = settings(&world, &origin);
    settings.named(ACME).rules = vec!["path = \"/open/*\"\nallow = {}".into(), "allow = {}".into()];
    let edge = Edge::start(settings);
    let mut http = connect(&world, &edge);
    let mut denied = http.start(extended_connect(ACME, "/chat", "websocket"), false);
    let mut denied_body = denied.head().into_body();
    expect_text(&mut denied_body, "hello");
    let mut kept = http.start(extended_connect(ACME, "/open/chat", "websocket"), false);
    let mut kept_body = kept.head().into_body();
    expect_text(&mut kept_body, "hello");
    edge.reconfigure(|settings| {
        settings.named(ACME).rules = vec!["path = \"/open/*\"\nallow = {}".into(), "deny = true".into()];
    });
    let begun = std::time::Instant::now();
    let end = read_some(&mut denied_body).expect("no end in order").expect_err("a reset");
    assert_eq!(end.reason(), Some(h2::Reason::CANCEL), "{end}");
    assert!(begun.elapsed() < Duration::from_secs(2));
    kept.send(b"still here", false);
    expect_text(&mut kept_body, "still here");
    assert_eq!(http.start(extended_connect(ACME, "/chat", "websocket"), false).answer().status, 403);
    assert_eq!(http.ask(get(ACME, "/open/page")).status, 200);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"trust_changed\"}", 1.0);
    edge.expect_metric("hostward_http2_resets_total{reason=\"trust_changed\"}", 1.0);
    wait::until("its origin connection has ended", SOON, || origin.open() <= 2);
}

/// 556: a WebSocket whose client reads nothing holds its origin back, and no other stream.
#[test]
fn t556_a_slow_websocket_is_alone() {
    let world = World::new();
    let written = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let origin = {
        let written = std::sync::Arc::clone(&written);
        HttpOrigin::start(move |head, talk| {
            if head.get("upgrade").is_none() {
                return talk.answer("200 OK", "page");
            }
            switch(head, talk, "")?;
            let block = vec![7; 60_000];
            for _ in 0..1_000 {
                talk.send(&block)?;
                written.fetch_add(block.len() as u64, std::sync::atomic::Ordering::Relaxed);
            }
            talk.finish();
            talk.stream().read_to_end(&mut Vec::new())?;
            Err(io::ErrorKind::Other.into())
        })
    };
    let edge = Edge::start(settings(&world, &origin));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(65_535).initial_connection_window_size(1 << 30);
    let mut http = Http2::connect_with(&world.client(), edge.address(), ACME, &builder);
    http.wait_for_extended_connect();
    let mut stream = http.start(extended_connect(ACME, "/flood", "websocket"), false);
    let mut body = stream.head().into_body();
    let read = || written.load(std::sync::atomic::Ordering::Relaxed);
    let stalled = wait::until_still("the origin", Duration::from_millis(500), SOON, read);
    assert!(stalled < 50_000_000, "{stalled}");
    for _ in 0..50 {
        assert_eq!(http.get(ACME, "/page").status, 200);
    }
    let mut bytes = 0;
    while let Some(piece) = read_some(&mut body) {
        bytes += piece.expect("the stream goes on").len();
    }
    assert_eq!(bytes, 60_000_000);
    stream.send(b"", true);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"clean\"}", 1.0);
}
