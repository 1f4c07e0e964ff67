//! Requests and responses through HTTP mode: every method and framing that matters, one after the other and at once.

use crate::harness::http::{Framing, Http, HttpOrigin, Response, send_body};
use crate::harness::nginx::{BIG_BYTES, BODY, Nginx};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Edge, End, Tls, World};

/// Around nothing, around one record, and bulk.
const SIZES: [u64; 7] = [0, 1, 16_384, 65_537, 1 << 20, 5 << 20, 64 << 20];

fn edge(world: &World, origin: &HttpOrigin) -> Edge {
    Edge::start(world.settings().host(world.http_host(ACME, origin)))
}

fn connect(world: &World, edge: &Edge) -> Http {
    Http::new(world.client().open(edge.address(), ACME).expect("a connection"))
}

/// 200: GET, HEAD and POST to a real nginx, over both TLS versions, one connection each.
#[test]
fn t200_a_real_origin() {
    let world = World::new();
    let Some(nginx) = Nginx::start() else { return };
    let edge = Edge::start(world.settings().host(world.host_at(ACME, &[&nginx.url()]).http()));
    for version in Tls::BOTH {
        let session = world.client().tls(version).alpn(&["http/1.1"]).open(edge.address(), ACME).expect("a connection");
        assert_eq!(session.alpn(), Some(&b"http/1.1"[..]));
        let mut http = Http::new(session);
        for _ in 0..3 {
            let page = http.get(ACME, "/");
            assert_eq!((page.status(), page.body.text().as_str()), (200, BODY));
        }
        http.send(&format!("HEAD / HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        let head = http.response_to(true).expect("a response");
        assert_eq!(head.head.get("content-length"), Some(BODY.len().to_string().as_str()));
        assert_eq!(http.get(ACME, "/none").status(), 404);
        let big = http.get(ACME, "/big");
        assert!(big.body.digest.starts_with(&format!("{BIG_BYTES}:")), "{}", big.body.digest);
        let posted = http.ask(&format!("POST /sink HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 5\r\n\r\nhello"));
        assert_eq!(posted.status(), 200);
        let unchanged = http.ask(&format!(
            "GET / HTTP/1.1\r\nHost: {ACME}\r\nIf-None-Match: {}\r\n\r\n",
            page_tag(&mut connect(&world, &edge))
        ));
        assert_eq!(unchanged.status(), 304);
        let last = http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\nConnection: close\r\n\r\n"));
        assert_eq!(last.head.get("connection"), Some("close"));
        assert_eq!(http.end(), End::CloseNotify);
    }
    assert!(edge.metric("hostward_origin_pool_total{result=\"hit\"}") >= 10.0);
    edge.expect_metric("hostward_requests_total{protocol=\"http/1.1\",status_class=\"4xx\"}", 2.0);
}

fn page_tag(http: &mut Http) -> String {
    http.get(ACME, "/").head.get("etag").expect("an ETag").to_owned()
}

/// 201: requests that come all at once are answered in order, whichever way their bodies are framed.
#[test]
fn t201_pipelined_requests_are_answered_in_order() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        talk.answer("200 OK", &format!("{} {}", head.target(), body.text()))
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    let mut text = String::new();
    for n in 0..50 {
        text += &match n % 3 {
            0 => format!("GET /{n} HTTP/1.1\r\nHost: {ACME}\r\n\r\n"),
            1 => format!("POST /{n} HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 3\r\n\r\nabc"),
            _ => {
                format!("POST /{n} HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n")
            }
        };
    }
    http.send(&text).expect("sent");
    for n in 0..50 {
        let expected = format!("/{n} {}", ["", "abc", "de"][n % 3]);
        assert_eq!(http.response().body.text(), expected);
    }
    // The same byte by byte.
    for byte in format!("POST /x HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 3\r\n\r\nabc").bytes() {
        http.session().send(&[byte]).expect("sent");
    }
    assert_eq!(http.response().body.text(), "/x abc");
    assert_eq!(origin.accepted(), 1, "one connection carried everything");
}

/// 202: bodies of every size arrive whole at the origin, in both framings, and so do the responses.
#[test]
fn t202_bodies_arrive_in_every_framing() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let mut words = head.target().split('/').skip(1);
        let (way, size) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let size: u64 = size.parse().expect("a size");
        let body = talk.body(head)?;
        match way {
            "up" => talk.answer("200 OK", &body.digest),
            way => {
                let (framing, line) = match way {
                    "length" => (Framing::Length(size), format!("Content-Length: {size}\r\n")),
                    "chunked" => (Framing::Chunked, "Transfer-Encoding: chunked\r\n".to_owned()),
                    _ => (Framing::UntilClose, "Connection: close\r\n".to_owned()),
                };
                let head = format!("HTTP/1.1 200 OK\r\n{line}\r\n");
                send_body(&head, framing, Payload::new(size, 1), "", |bytes| talk.send(bytes).is_ok());
                if framing == Framing::UntilClose {
                    return Err(std::io::ErrorKind::Other.into());
                }
                Ok(())
            }
        }
    });
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        let open = || Http::new(world.client().tls(version).open(edge.address(), ACME).expect("a connection"));
        let mut http = open();
        for size in SIZES {
            for framing in [Framing::Length(size), Framing::Chunked] {
                let line = match framing {
                    Framing::Length(size) => format!("Content-Length: {size}"),
                    _ => "Transfer-Encoding: chunked".to_owned(),
                };
                let head = format!("POST /up/{size} HTTP/1.1\r\nHost: {ACME}\r\n{line}\r\n\r\n");
                let session = http.session();
                let sent = send_body(&head, framing, Payload::new(size, 7), "", |bytes| session.send(bytes).is_ok());
                assert_eq!(http.response().body.text(), sent, "{framing:?} up");
            }
            for way in ["length", "chunked"] {
                let response = http.get(ACME, &format!("/{way}/{size}"));
                assert_eq!(response.body.digest, digest_of(size, 1), "{way} down");
            }
            let mut last = open();
            assert_eq!(last.get(ACME, &format!("/close/{size}")).body.digest, digest_of(size, 1));
            assert_eq!(last.end(), End::CloseNotify);
            // A client of HTTP/1.0 gets the content of the chunks and the end of the connection as its end.
            let mut old = open();
            let response = old.ask(&format!("GET /chunked/{size} HTTP/1.0\r\nHost: {ACME}\r\n\r\n"));
            assert_eq!(response.head.get("transfer-encoding"), None);
            assert_eq!(response.body.digest, digest_of(size, 1), "1.0");
        }
    }
}

/// 203: trailers pass both ways; those that would say who the client is do not.
#[test]
fn t203_trailers_pass() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        let names: Vec<_> = body.trailers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        talk.send(format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\nX-Sum: 7\r\n\r\n",
            names.join(",").len(),
            names.join(",")
        ))
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    let response = http.ask(&format!(
        "POST / HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Check: 1\r\n\
         Client-Cert: :Zm9yZ2Vk:\r\nX_Forwarded_For: 1.2.3.4\r\n\r\n"
    ));
    assert_eq!(response.body.text(), "X-Check=1");
    assert_eq!(response.body.trailers, [("X-Sum".to_owned(), "7".to_owned())]);
}

/// 204: responses without a body: HEAD, 204 and 304 leave the connection usable, whatever their heads say.
#[test]
fn t204_bodiless_responses() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        match (head.method(), head.target()) {
            ("HEAD", _) => talk.send("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            (_, "/204") => talk.send("HTTP/1.1 204 No Content\r\n\r\n"),
            (_, "/304") => talk.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\n\r\n"),
            _ => talk.answer("200 OK", "end"),
        }
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    for _ in 0..2 {
        http.send(&format!("HEAD /x HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        assert_eq!(http.response_to(true).expect("a response").head.get("content-length"), Some("1000"));
        for status in [204, 304] {
            assert_eq!(http.get(ACME, &format!("/{status}")).status(), status);
        }
        assert_eq!(http.get(ACME, "/").body.text(), "end");
    }
    assert_eq!(origin.accepted(), 1);
}

/// 205: a client that waits for 100 gets the origin's, and only then sends; 103 passes as well.
#[test]
fn t205_interim_responses_are_the_origins() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/refused" {
            talk.answer("403 Forbidden", "no")?;
            return Err(std::io::ErrorKind::Other.into());
        }
        assert_eq!(head.get("expect"), Some("100-continue"));
        talk.wait_for_release();
        talk.send("HTTP/1.1 100 Continue\r\n\r\n")?;
        let body = talk.body(head)?;
        talk.send("HTTP/1.1 103 Early Hints\r\nLink: </s.css>\r\n\r\n")?;
        talk.answer("200 OK", &body.text())
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    http.send(&format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"))
        .expect("sent");
    origin.head(0);
    assert!(http.reader.buffer.is_empty());
    origin.release();
    let interim = http.reader.head().expect("an interim response");
    assert_eq!(interim.status(), 100);
    http.send("body").expect("sent");
    let response = http.response();
    assert_eq!(response.interim.iter().map(|head| head.status()).collect::<Vec<_>>(), [103]);
    assert_eq!(response.interim[0].get("link"), Some("</s.css>"));
    assert_eq!((response.status(), response.body.text().as_str()), (200, "body"));
    let refused = http.ask(&format!(
        "POST /refused HTTP/1.1\r\nHost: {ACME}\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
    ));
    assert_eq!((refused.status(), refused.head.get("connection")), (403, Some("close")));
    assert_eq!(http.end(), End::CloseNotify);
}

/// 206: an origin may answer while it reads: both directions flow at once.
#[test]
fn t206_both_directions_flow_at_once() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.get("content-length").unwrap_or("0")))?;
        let mut left: usize = head.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
        while left > 0 {
            let mut block = std::mem::take(&mut talk.reader.buffer);
            if block.is_empty() {
                block = vec![0; 65_536];
                let count = std::io::Read::read(talk.stream(), &mut block)?;
                block.truncate(count);
            }
            left -= block.len();
            talk.send(&block)?;
        }
        Ok(())
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    const BYTES: usize = 8 << 20;
    http.send(&format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: {BYTES}\r\n\r\n")).expect("sent");
    assert_eq!(http.reader.head().expect("a head").status(), 200);
    let mut payload = Payload::new(BYTES as u64, 3);
    let mut echoed = crate::harness::payload::Hash::new();
    while let Some(block) = payload.next_block() {
        http.session().send(block).expect("sent");
        let mut left = block.len();
        let early = std::mem::take(&mut http.reader.buffer);
        echoed.update(&early);
        left -= early.len();
        let rest = http.session().receive(left).expect("the echo");
        echoed.update(&rest);
    }
    assert_eq!(echoed.digest(), payload.digest());
}

/// 207: a client that has ended its side still gets its answer, and an orderly end behind it.
#[test]
fn t207_half_closed_clients_are_answered() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.wait_for_release();
        talk.answer("200 OK", "late")
    });
    let edge = edge(&world, &origin);
    let mut http = connect(&world, &edge);
    http.send(&format!("GET /1 HTTP/1.1\r\nHost: {ACME}\r\n\r\nGET /2 HTTP/1.1\r\nHost: {ACME}\r\n\r\n"))
        .expect("sent");
    http.session().finish_sending().expect("sent");
    origin.head(0);
    origin.release();
    let first: Response = http.response();
    assert_eq!(first.body.text(), "late");
    assert_eq!(http.response().body.text(), "late");
    assert_eq!(http.end(), End::CloseNotify);
}

/// 208: what a client is told to close is closed: HTTP/1.0 by default, HTTP/1.1 when it asks for it; HTTP/1.0 keeps the
/// connection where both want it.
#[test]
fn t208_connections_close_as_asked() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut old = connect(&world, &edge);
    assert_eq!(old.ask(&format!("GET / HTTP/1.0\r\nHost: {ACME}\r\n\r\n")).status(), 200);
    assert_eq!(old.end(), End::CloseNotify);
    let mut old = connect(&world, &edge);
    for _ in 0..2 {
        let kept = old.ask(&format!("GET / HTTP/1.0\r\nHost: {ACME}\r\nConnection: keep-alive\r\n\r\n"));
        assert_eq!(kept.head.get("connection").map(str::to_ascii_lowercase).as_deref(), Some("keep-alive"));
    }
    assert_eq!(origin.accepted(), 1, "the origin's connection serves them all");
}
