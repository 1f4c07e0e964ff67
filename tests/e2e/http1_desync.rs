//! What an origin says unasked is never an answer to anybody: a desync that one tenant plants harms no other.

use std::io;
use std::time::Duration;

use crate::harness::http::{Conversation, Head, Http, HttpOrigin};
use crate::harness::{ACME, Edge, GLOBEX, SOON, World, wait};

/// A response that belongs to nobody.
const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Poison: 1\r\n\r\nPOISON";

/// Pooled connections that were closed because something came on them.
const UNSOLICITED: &str = "hostward_origin_pool_total{result=\"unsolicited\"}";

fn proper(head: &Head) -> String {
    let body = format!("page {}", head.target());
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// What the target asks for: the answer with something around it.
fn script(head: &Head, talk: &mut Conversation) -> io::Result<()> {
    talk.body(head)?;
    let answer = proper(head);
    match head.target() {
        // In one piece with the answer.
        "/twice" => talk.send(format!("{answer}{POISON}")),
        "/garbage" => talk.send(format!("{answer}\0\0\0")),
        "/newline" => talk.send(format!("{answer}\r\n")),
        "/head" => talk.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"),
        "/304" => talk.send("HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nPOISON"),
        "/204" => talk.send(format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}")),
        "/interim" => talk.send(format!("{answer}HTTP/1.1 100 Continue\r\n\r\n")),
        "/chunks" => {
            talk.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npage\r\n0\r\n\r\n{POISON}"))
        }
        "/early" => {
            // Answers, and then again once the connection lies in the pool.
            talk.send(answer)?;
            talk.wait_for_release();
            talk.send(POISON)
        }
        "/late" => {
            talk.wait_for_release();
            talk.send(POISON)
        }
        _ => talk.send(answer),
    }
}

/// Two tenants on one origin, one worker: all their requests meet in one pool.
fn two_tenants(world: &World, origin: &HttpOrigin, share: bool) -> Edge {
    let host = world
        .http_host(ACME, origin)
        .origin_line(&format!("share = {share}"))
        .origin_line("response_timeout = \"500ms\"");
    let other = world.http_host(GLOBEX, origin).with_origin_of(0);
    Edge::start(world.settings().workers(1).host(host).host(other))
}

fn connect(world: &World, edge: &Edge, name: &str) -> Http {
    Http::new(world.client().open(edge.address(), name).expect("a connection"))
}

/// 320: what comes behind an answer, in one piece with it, is no answer to the next request, of whatever tenant.
#[test]
fn t320_what_comes_behind_an_answer_is_dropped() {
    for share in [false, true] {
        let world = World::new();
        let origin = HttpOrigin::start(script);
        let edge = two_tenants(&world, &origin, share);
        for path in ["/twice", "/garbage", "/newline", "/head", "/304", "/204", "/interim", "/chunks"] {
            for next in [ACME, GLOBEX] {
                let mut planter = connect(&world, &edge, ACME);
                let mut victim = connect(&world, &edge, next);
                let method = if path == "/head" { "HEAD" } else { "GET" };
                planter.send(&format!("{method} {path} HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
                let planted = planter.response_to(path == "/head").expect("an answer");
                let poisoned = origin.heads().last().map(|(connection, _)| *connection).expect("the request");
                assert!(!planted.body.text().contains("POISON"), "{path}");
                for round in 0..3 {
                    let target = format!("/own/{round}");
                    let answer = victim.get(next, &target);
                    assert_eq!(answer.body.text(), format!("page {target}"), "{path}, then {next}, share = {share}");
                    assert_eq!(answer.head.get("x-poison"), None);
                }
                // The planter's own connection has nothing of it either.
                if planted.head.get("connection") != Some("close") {
                    assert_eq!(planter.get(ACME, "/again").body.text(), "page /again", "{path}");
                }
                let last = origin.heads().into_iter().rfind(|(connection, _)| *connection == poisoned);
                let last = last.map(|(_, head)| head.target().to_owned());
                assert_eq!(last.as_deref(), Some(path), "the connection carries nothing more, share = {share}");
            }
        }
        // Pooled connections were used at all.
        assert!(edge.metric("hostward_origin_pool_total{result=\"hit\"}") >= 16.0);
    }
}

/// 321: bytes that come before a request, into the pool, end the connection they came on.
#[test]
fn t321_what_comes_into_the_pool_ends_the_connection() {
    for share in [false, true] {
        for next in [ACME, GLOBEX] {
            let world = World::new();
            let origin = HttpOrigin::start(script);
            let edge = two_tenants(&world, &origin, share);
            let mut planter = connect(&world, &edge, ACME);
            let mut victim = connect(&world, &edge, next);
            assert_eq!(planter.get(ACME, "/early").body.text(), "page /early");
            if share || next == ACME {
                // The connection is one the victim could have been given.
                origin.release();
                edge.expect_metric(UNSOLICITED, 1.0);
                wait::until("the edge lets go of the connection", SOON, || origin.open() == 0);
                assert_eq!(victim.get(next, "/own").body.text(), "page /own");
            } else {
                // It never is the victim's, whether the bytes have come or not.
                assert_eq!(victim.get(next, "/own").body.text(), "page /own");
                origin.release();
                assert_eq!(victim.get(next, "/own/2").body.text(), "page /own/2");
                edge.expect_metric(UNSOLICITED, 1.0);
                wait::until("the edge lets go of the connection", SOON, || origin.open() == 1);
            }
            assert_eq!(planter.get(ACME, "/again").body.text(), "page /again");
            assert_eq!(origin.heads()[1].0, 1, "the next request came over another connection");
        }
    }
}

/// 322: an answer that comes after its time is nobody's: the connection of a request that timed out is never used again.
#[test]
fn t322_an_answer_that_comes_late_is_nobodys() {
    for share in [false, true] {
        for next in [ACME, GLOBEX] {
            let world = World::new();
            let origin = HttpOrigin::start(script);
            let edge = two_tenants(&world, &origin, share);
            let mut planter = connect(&world, &edge, ACME);
            let mut victim = connect(&world, &edge, next);
            // From the pool, so that it would go back there.
            assert_eq!(planter.get(ACME, "/first").status(), 200);
            assert_eq!(planter.get(ACME, "/late").status(), 504);
            assert_eq!(victim.get(next, "/own").body.text(), "page /own");
            origin.release();
            for round in 0..5 {
                let target = format!("/own/{round}");
                assert_eq!(victim.get(next, &target).body.text(), format!("page {target}"));
            }
            let late =
                origin.heads().iter().find(|(_, head)| head.target() == "/late").map(|(connection, _)| *connection);
            let after = origin.heads().into_iter().rfind(|(connection, _)| Some(*connection) == late);
            assert_eq!(after.map(|(_, head)| head.target().to_owned()).as_deref(), Some("/late"));
        }
    }
}

/// 323: a client that leaves in the middle of its request or its answer leaves no connection behind that another could get
/// the rest on.
#[test]
fn t323_half_an_exchange_is_never_pooled() {
    for share in [false, true] {
        let world = World::new();
        let origin = HttpOrigin::start(|head, talk| {
            if head.target() == "/half" {
                talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
                talk.wait_for_release();
                return talk.send("POISON");
            }
            script(head, talk)
        });
        let edge = two_tenants(&world, &origin, share);
        // Half an answer.
        let mut planter = connect(&world, &edge, ACME);
        planter.send(&format!("GET /half HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        assert_eq!(planter.reader.head().expect("a head").status(), 200);
        drop(planter);
        // Half a request, which would swallow the next one as its body.
        let mut planter = connect(&world, &edge, ACME);
        let secret = "Cookie: secret";
        planter.send(&format!("POST /open HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 400\r\n\r\nab")).expect("sent");
        wait::until("the origin has both heads", SOON, || origin.heads().len() == 2);
        drop(planter);
        wait::until("the edge lets go of both", SOON + Duration::from_secs(5), || {
            origin.release();
            origin.open() == 0
        });
        for next in [GLOBEX, ACME] {
            let mut victim = connect(&world, &edge, next);
            let answer = victim.ask(&format!("GET /own HTTP/1.1\r\nHost: {next}\r\n{secret}\r\n\r\n"));
            assert_eq!(answer.body.text(), "page /own");
        }
        for connection in [0, 1] {
            let raw = String::from_utf8_lossy(&origin.raw(connection)).into_owned();
            assert!(!raw.contains(secret), "{raw:?}");
        }
    }
}
