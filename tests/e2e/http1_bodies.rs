//! Bodies that are large, clients that are slow, origins that break at every place where one can break.

use std::io;
use std::time::{Duration, Instant};

use crate::harness::http::{Framing, Http, HttpOrigin, send_body};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Edge, End, Settings, Tls, World};

const GIBIBYTE: u64 = 1 << 30;

/// What the whole edge may need while bodies of any size flow, KiB: it starts at a fraction of this, and a body of a
/// gigabyte that was kept anywhere would need sixteen times as much.
const MEMORY_KIB: u64 = 64 * 1024;

/// The bound on a client of many that misbehave.
const BOUND: Duration = Duration::from_secs(30);

fn settings(world: &World, origin: &HttpOrigin) -> Settings {
    world.settings().host(world.http_host(ACME, origin))
}

fn connect(world: &World, edge: &Edge) -> Http {
    Http::new(world.client().open(edge.address(), ACME).expect("a connection"))
}

/// 330: a gigabyte up and one down, in both framings, arrive whole in memory that does not depend on their size.
#[test]
fn t330_a_gigabyte_each_way_in_bounded_memory() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        let (framing, line) = match head.target() {
            "/length" => (Framing::Length(GIBIBYTE), format!("Content-Length: {GIBIBYTE}")),
            "/chunked" => (Framing::Chunked, "Transfer-Encoding: chunked".to_owned()),
            _ => return talk.answer("200 OK", &body.digest),
        };
        let head = format!("HTTP/1.1 200 OK\r\n{line}\r\n\r\n");
        send_body(&head, framing, Payload::new(GIBIBYTE, 5), "", |bytes| talk.send(bytes).is_ok());
        Ok(())
    });
    let edge = Edge::start(settings(&world, &origin));
    std::thread::scope(|scope| {
        // Up by its length and down in chunks, at once; the other framings have their turn in smaller bodies (202).
        let (world, edge) = (&world, &edge);
        let up = scope.spawn(move || {
            let mut http = connect(world, edge);
            let head = format!("POST /up HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: {GIBIBYTE}\r\n\r\n");
            let session = http.session();
            let sent = send_body(&head, Framing::Length(GIBIBYTE), Payload::new(GIBIBYTE, 9), "", |bytes| {
                session.send(bytes).is_ok()
            });
            assert_eq!(http.response().body.text(), sent);
        });
        let down = scope.spawn(move || connect(world, edge).get(ACME, "/chunked").body.digest);
        up.join().expect("the gigabyte went up");
        assert_eq!(down.join().expect("the gigabyte came down"), digest_of(GIBIBYTE, 5));
    });
    let peak = edge.proc().peak_kib();
    assert!(peak < MEMORY_KIB, "{peak} KiB");
}

/// 331: hundreds of clients that trickle heads and bodies are told 408, one by one, and keep nobody else waiting.
#[test]
fn t331_clients_that_trickle_end_and_hold_up_nobody() {
    const TRICKLING: usize = 150;
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge =
        Edge::start(settings(&world, &origin).limit("header_timeout = \"2s\"").limit("min_body_rate = \"1MiB\""));
    let begun = Instant::now();
    let mut trickling: Vec<_> = (0..TRICKLING).map(|_| connect(&world, &edge)).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 1000000\r\n\r\n");
    for (number, http) in trickling.iter_mut().enumerate() {
        // Every third has sent its head, and trickles its body.
        http.send(if number % 3 == 0 { &head } else { "GET / HTTP/1.1\r\nX: " }).expect("sent");
    }
    let mut honest = connect(&world, &edge);
    let mut ended = 0;
    let mut longest = Duration::ZERO;
    while ended < TRICKLING {
        assert!(begun.elapsed() < BOUND, "{ended} ended");
        // A byte each, again and again: the head never ends, and the body is never done.
        ended = trickling.iter_mut().map(|http| usize::from(http.send("x").is_err())).sum();
        let asked = Instant::now();
        assert_eq!(honest.get(ACME, "/honest").status(), 200);
        longest = longest.max(asked.elapsed());
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    edge.expect_metric("hostward_connections_open", 1.0);
    assert_eq!(edge.metric("hostward_requests_total{status_class=\"4xx\"}") as usize, TRICKLING);
}

/// 332: clients and origins that send byte by byte, in every framing, are understood.
#[test]
fn t332_byte_by_byte_is_understood() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        let text = format!("{} {:?}", body.text(), body.trailers);
        let answer = match head.target() {
            "/length" => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()),
            "/chunked" => {
                let (start, rest) = text.split_at(3);
                format!(
                    "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                     3;x=y\r\n{start}\r\n{:X}\r\n{rest}\r\n00\r\nX-Sum: 1\r\n\r\n",
                    rest.len()
                )
            }
            _ => format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{text}"),
        };
        for byte in answer.bytes() {
            talk.send([byte])?;
        }
        if head.target() == "/close" { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    });
    let edge = Edge::start(settings(&world, &origin));
    for version in Tls::BOTH {
        let mut http = Http::new(world.client().tls(version).open(edge.address(), ACME).expect("a connection"));
        for target in ["/length", "/chunked", "/length", "/close"] {
            let request = format!(
                "POST {target} HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n\
                 4;a=\"b\"\r\nbyte\r\n003\r\n by\r\n5\r\n byte\r\n0;end\r\nX-Trailer: 1\r\n\r\n"
            );
            for byte in request.bytes() {
                http.session().send(&[byte]).expect("sent");
            }
            let response = http.response();
            assert_eq!(response.body.text(), "byte by byte [(\"X-Trailer\", \"1\")]", "{target}");
            assert_eq!(response.body.trailers.len(), usize::from(target == "/chunked"));
            if response.head.get("connection") == Some("close") {
                assert_eq!(http.end(), End::CloseNotify);
                http = Http::new(world.client().tls(version).open(edge.address(), ACME).expect("a connection"));
            }
        }
    }
}

/// 333: an origin that dies after any byte of its response never makes a whole one: in the head it is 502, in the body
/// the client can tell.
#[test]
fn t333_an_origin_may_die_at_any_byte() {
    const RESPONSES: [&str; 2] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nX: y\r\n\r\n0123456789",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n5\r\n56789\r\n0\r\nX: y\r\n\r\n",
    ];
    let world = World::new();
    // The target says which response, up to where, and how the connection ends.
    let origin = HttpOrigin::start(|head, talk| {
        let words: Vec<usize> = head.target().split('/').skip(1).map(|word| word.parse().expect("a number")).collect();
        talk.send(&RESPONSES[words[0]].as_bytes()[..words[1]])?;
        if words[2] == 1 {
            talk.reset();
        }
        Err(io::ErrorKind::Other.into())
    });
    let edge = Edge::start(settings(&world, &origin));
    for (number, response) in RESPONSES.iter().enumerate() {
        let head = response.find("\r\n\r\n").expect("the end of a head") + 4;
        for reset in [0, 1] {
            for cut in 0..=response.len() {
                let mut http = connect(&world, &edge);
                let at = format!("/{number}/{cut}/{reset}");
                // POST: a retry would be another case.
                let request = format!("POST {at} HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 0\r\n\r\n");
                http.send(&request).expect("sent");
                let answer = http.response_to(false);
                if cut == response.len() && reset == 0 {
                    let answer = answer.expect("all of it");
                    assert_eq!((answer.status(), answer.body.text().as_str()), (200, "0123456789"), "{at}");
                } else if cut < head {
                    assert_eq!(answer.expect("an answer of ours").status(), 502, "{at}");
                } else if cut < response.len() && reset == 0 {
                    assert!(matches!(answer, Err(End::Truncated | End::Reset)), "{at}: {answer:?}");
                } else {
                    // A reset may overtake what was sent before it: then it is as if it had never been sent.
                    let known = match &answer {
                        Ok(answer) if cut == response.len() => matches!(answer.status(), 200 | 502),
                        Ok(answer) => answer.status() == 502,
                        Err(end) => matches!(end, End::Truncated | End::Reset),
                    };
                    assert!(known, "{at}: {answer:?}");
                }
            }
        }
    }
}

/// 334: an origin that refuses an upload by its head and closes is heard, however much of the body is under way.
#[test]
fn t334_an_early_refusal_is_heard() {
    const BYTES: u64 = 4 << 20;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.send("HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig")?;
        talk.finish();
        // Some read what is still to come before they close, as nginx does; it ends when the edge closes.
        talk.body(head)?;
        Err(io::ErrorKind::Other.into())
    });
    let edge = Edge::start(settings(&world, &origin));
    for round in 0..20 {
        let mut http = connect(&world, &edge);
        let (framing, line) = match round % 2 {
            0 => (Framing::Length(BYTES), format!("Content-Length: {BYTES}")),
            _ => (Framing::Chunked, "Transfer-Encoding: chunked".to_owned()),
        };
        let head = format!("POST /{round} HTTP/1.1\r\nHost: {ACME}\r\n{line}\r\n\r\n");
        // The client stops sending when it cannot, and reads what it was told.
        let session = http.session();
        send_body(&head, framing, Payload::new(BYTES, 3), "", |bytes| session.send(bytes).is_ok());
        let answer = http.response_to(false);
        let answer = answer.unwrap_or_else(|end| panic!("{round}: {end:?}"));
        assert_eq!((answer.status(), answer.body.text().as_str()), (413, "big"), "{round}");
    }
}
