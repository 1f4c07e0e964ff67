//! Origins that die, stall, reset or are one of several; and what an origin is told about its client.

use std::time::{Duration, Instant};

use crate::harness::origin::{BlackHole, Last, Manner, dead_url};
use crate::harness::{ACME, Edge, End, Origin, SOON, Tls, World, wait};

/// The counter of attempts to reach an origin.
fn connects(result: &str) -> String {
    format!("hostward_origin_connects_total{{result=\"{result}\"}}")
}

/// Which origin answered: each says its name and closes.
fn who(world: &World, edge: &Edge) -> Result<String, End> {
    let mut session = world.client().open(edge.address(), ACME)?;
    match session.read_text() {
        (name, End::CloseNotify) => Ok(name),
        (_, end) => Err(end),
    }
}

/// 140: an origin that nobody listens at: the client is let go without a clean end, and it is counted.
#[test]
fn t140_a_dead_origin_lets_the_client_go() {
    let world = World::new();
    let edge = Edge::start(world.settings().host(world.host_at(ACME, &[&dead_url()])));
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("the handshake is the edge's");
        let end = session.end_within(SOON).expect("the client is let go");
        assert_ne!(end, End::CloseNotify, "{version:?}: nothing was ended in order");
    }
    assert!(edge.metric(&connects("failed")) >= 2.0);
    edge.expect_metric(&connects("exhausted"), 2.0);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"origin_unreachable\"}", 2.0);
    wait::until("it is told whose origin that is", SOON, || {
        edge.events.named(&["origin_unreachable"]).iter().any(|line| line["hostname"] == ACME)
    });
}

/// 141: an origin that does not answer: the client is let go after `connect_timeout`.
#[test]
fn t141_a_silent_origin_times_out() {
    let world = World::new();
    let hole = BlackHole::start();
    let host = world.host_at(ACME, &[hole.url()]).origin_line("connect_timeout = \"500ms\"");
    let edge = Edge::start(world.settings().host(host));
    let begun = Instant::now();
    let mut session = world.client().open(edge.address(), ACME).expect("the handshake is the edge's");
    assert!(session.end_within(SOON).is_some(), "the client is let go");
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(400) && took < Duration::from_secs(4), "it took {took:?}");
    assert!(edge.metric(&connects("timed_out")) >= 1.0);
    assert!(edge.metric("hostward_timeouts_total{timeout=\"connect\"}") >= 1.0);
}

/// 142: several addresses take turns.
#[test]
fn t142_several_addresses_take_turns() {
    let world = World::new();
    let origins = [Manner::Name("one"), Manner::Name("two"), Manner::Name("three")].map(Origin::start);
    let urls = origins.each_ref().map(Origin::url);
    let edge = Edge::start(world.settings().workers(1).host(world.host_at(ACME, &urls)));
    for _ in 0..12 {
        who(&world, &edge).expect("an answer");
    }
    for origin in &origins {
        assert_eq!(origin.accepted(), 4, "of 12 connections to 3 addresses");
    }
}

/// 143: one dead address of several: every client is served, and the dead one is not asked each time.
#[test]
fn t143_a_dead_address_is_passed_over() {
    let world = World::new();
    let (one, two) = (Origin::start(Manner::Name("one")), Origin::start(Manner::Name("two")));
    let dead = dead_url();
    let host = world.host_at(ACME, &[one.url(), &dead, two.url()]);
    let edge = Edge::start(world.settings().workers(1).host(host));
    for attempt in 0..30 {
        let name = who(&world, &edge).unwrap_or_else(|end| panic!("attempt {attempt}: {end:?}"));
        assert!(["one", "two"].contains(&&name[..]), "{name:?}");
    }
    assert_eq!(edge.metric(&connects("ok")) as u64, 30);
    assert!(edge.metric(&connects("failed")) < 10.0, "the dead address was asked each time");
}

/// 144: an address that dies while others live is passed over, and all clients are served meanwhile.
#[test]
fn t144_an_address_may_die_later() {
    let world = World::new();
    let (one, two) = (Origin::start(Manner::Name("one")), Origin::start(Manner::Name("two")));
    let edge = Edge::start(world.settings().workers(1).host(world.host_at(ACME, &[one.url(), two.url()])));
    for _ in 0..4 {
        who(&world, &edge).expect("an answer");
    }
    one.stop_listening();
    for attempt in 0..20 {
        let name = who(&world, &edge);
        assert_eq!(name.as_deref(), Ok("two"), "attempt {attempt}");
    }
}

/// 145: an origin behind a Unix-domain socket.
#[test]
fn t145_an_origin_on_a_unix_socket() {
    let world = World::new();
    let directory = tempfile::tempdir().expect("a directory");
    let origin = Origin::start_unix(Manner::Hash, directory.path());
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        let payload = crate::harness::payload::Payload::new(3 << 20, 8);
        let sent = session.send_payload(payload).expect("sent");
        session.finish_sending().expect("finished");
        assert_eq!(session.read_text(), (sent, End::CloseNotify));
    }
}

/// 146: an origin that closes without reading all: the client is not left hanging.
#[test]
fn t146_an_origin_that_closes_early() {
    let world = World::new();
    let origin = Origin::start(Manner::CloseAfterOne);
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        let _ = session.send(&[1; 100_000]);
        assert!(session.end_within(SOON).is_some(), "{version:?}: left hanging");
    }
    wait::for_value("open connections", SOON, &0.0, || edge.metric("hostward_connections_open"));
}

/// 147: an origin that accepts and then does nothing ends with the tunnel's timeout.
#[test]
fn t147_an_origin_that_stalls() {
    let world = World::new();
    let origin = Origin::start(Manner::Stall);
    let settings = world.settings().limit("tunnel_timeout = \"1s\"");
    let edge = Edge::start(settings.host(world.host(ACME, &origin)));
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    session.send(b"anybody there?").expect("sent");
    assert!(session.end_within(SOON).is_some());
    edge.expect_metric("hostward_timeouts_total{timeout=\"tunnel\"}", 1.0);
    origin.release();
}

/// 148: the PROXY v2 header says who connected, to which name, over what, and who was verified; then come the bytes.
#[test]
fn t148_the_proxy_header_says_who_came() {
    let world = World::new();
    let origin = Origin::start(Manner::ProxyEcho);
    let host = world.host(ACME, &origin).require(&[&world.acme]).with_proxy_header().line("alpn = [\"acme/1\"]");
    let edge = Edge::start(world.settings().host(host));
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version).alpn(&["acme/1"]);
        let session = client.expect_in(edge.address(), ACME);
        let header = origin.last_header();
        let source = session.socket().local_addr().expect("an address");
        assert_eq!(header.addresses, Some((source, edge.address())), "{version:?}");
        assert_eq!(header.authority().as_deref(), Some(ACME));
        assert_eq!(header.alpn().as_deref(), Some("acme/1"));
        let ssl = header.ssl().expect("an SSL TLV");
        assert!(ssl.tls && ssl.certificate_on_connection && ssl.certificate_in_session, "{ssl:?}");
        assert_eq!((ssl.verify, ssl.common_name.as_deref()), (0, Some("alice")), "{ssl:?}");
        let expected = if version == Tls::V1_3 { "TLSv1.3" } else { "TLSv1.2" };
        assert_eq!(ssl.version.as_deref(), Some(expected));
    }
}

/// 149: an origin that does not ask for the header gets the client's bytes and nothing before them.
#[test]
fn t149_no_header_unless_asked_for() {
    let world = World::new();
    let origin = Origin::start(Manner::Hash);
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    session.finish_sending().expect("finished");
    assert!(matches!(origin.last(0), Last::End(digest) if digest.starts_with("0:")));
    assert_eq!(session.drain().1, End::CloseNotify);
}

/// 150: an origin by name: `localhost` is resolved by the control plane, and the first connection already finds it.
#[test]
fn t150_an_origin_by_name() {
    let world = World::new();
    let origin = Origin::start(Manner::Name("by name"));
    let url = origin.url().replace("127.0.0.1", "localhost");
    let edge = Edge::start(world.settings().host(world.host_at(ACME, &[&url])));
    assert_eq!(who(&world, &edge).as_deref(), Ok("by name"));
}

/// 151: a client that speaks first and one that listens first are both served: the edge waits for neither.
#[test]
fn t151_either_side_may_speak_first() {
    let world = World::new();
    let (echo, source) = (Origin::echo(), Origin::start(Manner::Source(10)));
    let settings = world.settings().host(world.host(ACME, &echo));
    let edge = Edge::start(settings.host(world.host("source.test", &source)));
    for version in Tls::BOTH {
        let client = world.client().tls(version);
        client.expect_in(edge.address(), ACME);
        let mut session = client.open(edge.address(), "source.test").expect("a connection");
        assert_eq!(session.receive(10).expect("the origin speaks first").len(), 10);
    }
}
