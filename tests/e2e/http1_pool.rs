//! Origin connections: whose they are, when they are used again and when not; what comes after a switch of protocols; and
//! how a drain ends it all.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::harness::http::{Http, HttpOrigin};
use crate::harness::{ACME, Edge, End, GLOBEX, SOON, World, wait};

fn connect(world: &World, edge: &Edge, name: &str) -> Http {
    Http::new(world.client().open(edge.address(), name).expect("a connection"))
}

/// An edge of one worker with two customers in front of one origin.
fn two_tenants(world: &World, origin: &HttpOrigin, line: &str) -> Edge {
    let acme = world.http_host(ACME, origin).origin_line(line);
    let globex = world.http_host(GLOBEX, origin).with_origin_of(0);
    Edge::start(world.settings().workers(1).host(acme).host(globex))
}

/// 240: an idle connection serves the next request of the same hostname, not of another one, unless the origin is shared.
#[test]
fn t240_connections_belong_to_their_hostname() {
    let world = World::new();
    for (line, connections) in [("share = false", [0, 1, 0, 1]), ("share = true", [0, 0, 0, 0])] {
        let origin = HttpOrigin::mirror();
        let edge = two_tenants(&world, &origin, line);
        for name in [ACME, GLOBEX, ACME, GLOBEX] {
            assert_eq!(connect(&world, &edge, name).get(name, "/").status(), 200);
            edge.expect_metric(
                "hostward_origin_connections_idle",
                if line == "share = true" { 1.0 } else { origin.accepted() as f64 },
            );
        }
        assert_eq!(origin.heads().iter().map(|(connection, _)| *connection).collect::<Vec<_>>(), connections, "{line}");
    }
}

/// 241: what a response brings along beyond its end meets no other request: the connection is closed.
#[test]
fn t241_unsolicited_bytes_end_a_connection() {
    let world = World::new();
    let planted = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted";
    let origin = HttpOrigin::start(move |head, talk| {
        talk.body(head)?;
        let one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        match head.target() {
            "/with" => talk.send(format!("{one}{planted}")),
            "/after" => {
                talk.send(one)?;
                talk.wait_for_release();
                talk.send(planted)
            }
            _ => talk.send(one),
        }
    });
    let edge = two_tenants(&world, &origin, "share = true");
    for name in [ACME, GLOBEX] {
        assert_eq!(connect(&world, &edge, name).get(name, "/with").body.text(), "ok");
    }
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/after").body.text(), "ok");
    origin.release();
    edge.expect_metric("hostward_origin_pool_total{result=\"unsolicited\"}", 1.0);
    for _ in 0..3 {
        assert_eq!(connect(&world, &edge, GLOBEX).get(GLOBEX, "/").body.text(), "ok");
    }
    edge.expect_metric("hostward_origin_connections_idle", 1.0);
}

/// 242: a request on a connection that dies at that very moment is sent once more if that is safe: GET is, POST is not,
/// and nothing is once the origin has answered a byte. A fresh connection is not tried again.
#[test]
fn t242_one_safe_retry() {
    let world = World::new();
    let dying = Arc::new(AtomicBool::new(false));
    let origin = {
        let dying = Arc::clone(&dying);
        HttpOrigin::start(move |head, talk| {
            // An idle connection dies with the next request, once.
            if talk.request > 0 && dying.swap(false, Ordering::Relaxed) {
                if head.target() == "/byte" {
                    talk.send("H")?;
                }
                return Err(io::ErrorKind::Other.into());
            }
            talk.body(head)?;
            talk.answer("200 OK", head.method())
        })
    };
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut retries = 0.0;
    for (method, path, status) in [("GET", "/", 200), ("POST", "/", 502), ("GET", "/byte", 502), ("PUT", "/", 200)] {
        let mut http = connect(&world, &edge, ACME);
        assert_eq!(http.get(ACME, "/").status(), 200);
        edge.expect_metric("hostward_origin_connections_idle", 1.0);
        dying.store(true, Ordering::Relaxed);
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let response = http.ask(&format!("{method} {path} HTTP/1.1\r\nHost: {ACME}\r\n{length}\r\n"));
        assert_eq!(response.status(), status, "{method} {path}");
        retries += if status == 200 { 1.0 } else { 0.0 };
        edge.expect_metric("hostward_origin_retries_total", retries);
    }
    let fresh = HttpOrigin::start(|_, _| Err(io::ErrorKind::Other.into()));
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &fresh)));
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/").status(), 502);
    assert_eq!(fresh.accepted(), 1);
}

/// 243: idle connections are closed when their origin closes them, when they are too many, and when their hostname changes.
#[test]
fn t243_idle_connections_go_in_time() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() == "/wait" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "")?;
        if head.target() == "/close" { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    });
    let host = world.http_host(ACME, &origin).origin_line("idle_connections_per_worker = 2");
    let edge = Edge::start(world.settings().workers(1).host(host));
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/close").status(), 200);
    edge.expect_metric("hostward_origin_pool_total{result=\"closed\"}", 1.0);
    edge.expect_metric("hostward_origin_connections_idle", 0.0);
    let mut many: Vec<_> = (0..4).map(|_| connect(&world, &edge, ACME)).collect();
    for http in &mut many {
        http.send(&format!("GET /wait HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    }
    wait::until("all are under way", SOON, || origin.open() == 4);
    origin.release();
    for http in &mut many {
        assert_eq!(http.response().status(), 200);
    }
    edge.expect_metric("hostward_origin_pool_total{result=\"full\"}", 2.0);
    wait::until("two are left", SOON, || origin.open() == 2);
    edge.reconfigure(|settings| settings.named(ACME).rules = vec!["allow = {}".into()]);
    wait::until("none is left", SOON, || origin.open() == 0);
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/").status(), 200);
    // Nobody asks any more: the last one grows old.
    wait::until("the last one is gone", SOON, || origin.open() == 0);
    edge.expect_metric("hostward_origin_pool_total{result=\"aged\"}", 1.0);
}

/// 244: a WebSocket is a tunnel both ways, with what came early on either side, and its connection is never pooled.
#[test]
fn t244_websockets_are_tunnels() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.get("upgrade") != Some("websocket") {
            return talk.answer("200 OK", "no upgrade");
        }
        talk.send(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
        )?;
        loop {
            let mut block = std::mem::take(&mut talk.reader.buffer);
            if block.is_empty() {
                block = vec![0; 4096];
                let count = io::Read::read(talk.stream(), &mut block)?;
                block.truncate(count);
                if count == 0 {
                    talk.finish();
                    return Err(io::ErrorKind::Other.into());
                }
            }
            talk.send(&block)?;
        }
    });
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let upgrade = |to: &str| {
        format!(
            "GET /chat HTTP/1.1\r\nHost: {ACME}\r\nConnection: Upgrade\r\nUpgrade: {to}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let mut http = connect(&world, &edge, ACME);
    http.send(&(upgrade("websocket") + "early")).expect("sent");
    let response = http.response();
    assert_eq!((response.status(), response.head.get("upgrade")), (101, Some("websocket")));
    let expect = |http: &mut Http, text: &str| {
        while http.reader.buffer.len() < text.len() {
            let mut block = [0; 4096];
            let count = http.session().receive_some(&mut block).expect("the echo");
            http.reader.buffer.extend_from_slice(&block[..count]);
        }
        assert_eq!(String::from_utf8_lossy(&http.reader.buffer), text);
        http.reader.buffer.clear();
    };
    expect(&mut http, "helloearly");
    for n in 0..100 {
        http.send(&format!("frame {n}")).expect("sent");
        expect(&mut http, &format!("frame {n}"));
    }
    http.session().finish_sending().expect("sent");
    assert_eq!(http.end(), End::CloseNotify);
    edge.expect_metric("hostward_origin_connections_idle", 0.0);
    edge.expect_metric("hostward_requests_total{status_class=\"1xx\"}", 1.0);
    // Any other protocol is not passed on.
    assert_eq!(connect(&world, &edge, ACME).ask(&upgrade("h2c")).body.text(), "no upgrade");
}

/// 245: a drain lets the request under way finish and says that the connection closes; those that wait are closed politely.
#[test]
fn t245_draining_finishes_requests() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() == "/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "done")
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let mut idle = connect(&world, &edge, ACME);
    assert_eq!(idle.get(ACME, "/").status(), 200);
    let mut fresh = connect(&world, &edge, ACME);
    let mut busy = connect(&world, &edge, ACME);
    busy.send(&format!("GET /slow HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    wait::until("the request is under way", SOON, || origin.heads().len() == 2);
    edge.signal(Signal::TERM);
    assert_eq!(idle.end(), End::CloseNotify);
    assert_eq!(fresh.end(), End::CloseNotify);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"drained_idle\"}", 2.0);
    origin.release();
    let response = busy.response();
    assert_eq!((response.body.text().as_str(), response.head.get("connection")), ("done", Some("close")));
    assert_eq!(busy.end(), End::CloseNotify);
    let status = edge.exit_within(SOON).expect("nothing is open: the edge ends");
    assert_eq!(status.code(), Some(0));
}

/// 246: a reload under load fails no request.
#[test]
fn t246_reloads_fail_no_request() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut asked = 0;
                    let begun = std::time::Instant::now();
                    while !stop.load(Ordering::Relaxed) && begun.elapsed() < 3 * SOON {
                        let mut http = connect(&world, &edge, ACME);
                        for _ in 0..10 {
                            assert_eq!(http.get(ACME, "/").status(), 200);
                            asked += 1;
                        }
                    }
                    asked
                })
            })
            .collect();
        for n in 0..10 {
            let rule = format!("path = \"/{n}\"\nallow = {{}}");
            edge.reconfigure(|settings| settings.named(ACME).rules = vec![rule, "allow = {}".into()]);
        }
        stop.store(true, Ordering::Relaxed);
        let asked: u32 = clients.into_iter().map(|client| client.join().expect("no request fails")).sum();
        assert!(asked > 100, "{asked} requests");
    });
}
