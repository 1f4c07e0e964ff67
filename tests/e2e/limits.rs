//! Every limit holds, is counted, and lets go again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustls::AlertDescription as Alert;

use crate::harness::clienthello::Raw;
use crate::harness::process::tool;
use crate::harness::{ACME, Edge, Origin, SOON, Session, World, wait};

/// 130: above `connections_per_worker` accepting pauses; a connection that waits is served when another ends.
#[test]
fn t130_connections_are_bounded() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().workers(1).limit("connections_per_worker = 4");
    let edge = Edge::start(settings.host(world.host(ACME, &origin)));
    let client = world.client();
    let mut open: Vec<Session> = (0..4).map(|_| client.expect_in(edge.address(), ACME)).collect();
    std::thread::scope(|scope| {
        let fifth = scope.spawn(|| client.expect_in(edge.address(), ACME));
        wait::until("the limit is counted", SOON, || {
            edge.metric("hostward_limit_reached_total{limit=\"connections\"}") > 0.0
        });
        assert!(!wait::within(Duration::from_millis(300), || fifth.is_finished()), "a fifth connection was served");
        for session in &mut open {
            session.ping().expect("those who are in go on");
        }
        drop(open.pop());
        wait::until("the fifth is served", SOON, || fifth.is_finished());
    });
}

/// 131: `handshakes_per_worker` makes connections wait for their turn, and all get it; a staller gives its turn back.
#[test]
fn t131_handshakes_are_bounded() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().workers(1).limit("handshakes_per_worker = 2").limit("handshake_timeout = \"1s\"");
    let edge = Edge::start(settings.host(world.host(ACME, &origin)));
    let stallers: Vec<_> = (0..6).map(|_| Raw::connect(edge.address())).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.client().expect_in(edge.address(), ACME));
        }
    });
    drop(stallers);
}

/// 132: a tunnel in which nothing moves is closed after `tunnel_timeout`; one that moves is not.
#[test]
fn t132_idle_tunnels_are_closed() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().limit("tunnel_timeout = \"1s\"");
    let edge = Edge::start(settings.host(world.host(ACME, &origin)));
    let mut busy = world.client().expect_in(edge.address(), ACME);
    let begun = Instant::now();
    let mut idle = world.client().expect_in(edge.address(), ACME);
    let mut ended = None;
    wait::until("the idle tunnel is closed", SOON, || {
        busy.ping().expect("a busy tunnel stays");
        ended = idle.end_within(Duration::from_millis(50));
        ended.is_some()
    });
    assert!(begun.elapsed() > Duration::from_millis(900), "closed after {:?}", begun.elapsed());
    edge.expect_metric("hostward_timeouts_total{timeout=\"tunnel\"}", 1.0);
    busy.ping().expect("a busy tunnel stays");
}

/// 133: more clients than there are descriptors: accepting pauses in time, those who are in go on, a reload still reads its
/// files, and it recovers.
#[test]
fn t133_few_descriptors_are_never_all_taken() {
    let Some(prlimit) = tool("prlimit") else { return };
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().workers(1).limit("handshake_timeout = \"3s\"");
    let wrapper = [prlimit.to_str().expect("UTF-8"), "--nofile=80:80"];
    let edge = Edge::start_under(&wrapper, settings.host(world.host(ACME, &origin)));
    let mut first = world.client().expect_in(edge.address(), ACME);
    let raw: Vec<_> = (0..120).map(|_| Raw::connect(edge.address())).collect();
    wait::until("accepting has paused", SOON, || {
        first.ping().expect("those who are in go on");
        edge.metric("hostward_limit_reached_total{limit=\"connections\"}") > 0.0
    });
    assert!(edge.proc().fds() < 78, "{} descriptors", edge.proc().fds());
    edge.reload();
    first.ping().expect("those who are in go on");
    drop(raw);
    wait::until("the edge serves again", SOON, || world.client().enter(edge.address(), ACME).is_ok());
    first.ping().expect("those who are in go on");
    assert!(edge.metric("hostward_limit_reached_total{limit=\"file_descriptors\"}") < 1.0);
}

/// 134: rules on the client's address: `source` chooses.
#[test]
fn t134_rules_see_the_address() {
    let world = World::new();
    let origin = Origin::echo();
    let host = world.host(ACME, &origin).rule("source = [\"127.0.0.2/32\"]\ndeny = true").rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let client = world.client();
    client.expect_in(edge.address(), ACME);
    let other = client.clone().sourced_at(IpAddr::from([127, 0, 0, 2]));
    let end = other.enter(edge.address(), ACME).err().expect("a denied address is refused");
    assert!(end.is_denial(), "{end:?}");
    client.clone().sourced_at(IpAddr::from([127, 0, 0, 3])).expect_in(edge.address(), ACME);
    edge.expect_refusals("rule_denied", 1.0);
}

/// 135: more names than the tenant cache holds are all served, and trust is none the weaker for it.
#[test]
fn t135_more_tenants_than_the_cache_holds() {
    let world = World::new();
    let origin = Origin::echo();
    let mut settings = world.settings().workers(1);
    // The smallest cache there is; a tenant takes a few KiB of it.
    settings.cache.push("tenants_per_worker = \"1MiB\"".into());
    let mut host = world.host("*.shop.test", &origin).require(&[&world.acme]);
    host.names = (0..1200).map(|number| format!("n{number}.shop.test")).collect();
    let names = host.names.clone();
    let edge = Edge::start(settings.host(host));
    let (alice, bob) = (world.acme_client("alice"), world.globex_client("bob"));
    alice.tickets().withhold(true);
    for (index, name) in names.iter().enumerate() {
        alice.expect_in(edge.address(), name);
        if index % 20 == 0 {
            bob.expect_alert(edge.address(), name, Alert::UnknownCA);
        }
    }
    assert!(edge.metric("hostward_tenant_cache_total{result=\"evicted\"}") > 0.0, "the cache held all of them");
    for name in &names[..100] {
        alice.expect_in(edge.address(), name);
        bob.expect_alert(edge.address(), name, Alert::UnknownCA);
    }
}

/// 136: a flood of names that nobody has is refused in bounded memory.
#[test]
fn t136_a_flood_of_unknown_names_is_bounded() {
    use crate::harness::clienthello::Hello;
    let world = World::new();
    let origin = Origin::echo();
    let mut settings = world.settings().workers(1);
    settings.cache.push("misses_per_worker = 100".into());
    let edge = Edge::start(settings.host(world.host(ACME, &origin)));
    let flood = |from: u32, to: u32| {
        for number in from..to {
            let reply = Raw::ask(edge.address(), &Hello::modern(&format!("nobody-{number}.test")).bytes());
            assert_eq!(reply.alert(), Some(112), "{reply:?}");
        }
    };
    flood(0, 500);
    let before = edge.proc().rss_kib();
    flood(500, 2500);
    let after = edge.proc().rss_kib();
    assert!(after < before + 4096, "memory grew from {before} to {after} KiB");
    edge.expect_refusals("unknown_hostname", 2500.0);
    assert!(edge.metric("hostward_limit_reached_total{limit=\"misses\"}") > 0.0);
    world.client().expect_in(edge.address(), ACME);
}
