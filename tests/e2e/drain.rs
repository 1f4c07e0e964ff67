//! TERM and INT let open connections finish, up to a deadline, and take no new ones; a second one ends at once.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{ACME, Edge, End, Origin, SOON, Session, Tls, World, wait};

fn edge(world: &World, origin: &Origin, drain_timeout: &str) -> Edge {
    let settings = world.settings().limit(&format!("drain_timeout = {drain_timeout:?}"));
    Edge::start(settings.host(world.host(ACME, origin)))
}

fn open(world: &World, edge: &Edge, count: usize) -> Vec<Session> {
    (0..count).map(|n| world.client().tls(Tls::BOTH[n % 2]).expect_in(edge.address(), ACME)).collect()
}

/// Waits until connecting is refused.
#[track_caller]
fn expect_no_more(world: &World, edge: &Edge) {
    wait::until("new connections are refused", SOON, || {
        matches!(world.client().enter(edge.address(), ACME), Err(End::Refused | End::Reset))
    });
}

/// 120: under load: what is open goes on and finishes in order, new connections are refused, and the exit code is 0.
#[test]
fn t120_draining_lets_connections_finish() {
    for signal in [Signal::TERM, Signal::INT] {
        let world = World::new();
        let origin = Origin::echo();
        let edge = edge(&world, &origin, "60s");
        let mut sessions = open(&world, &edge, 50);
        edge.signal(signal);
        expect_no_more(&world, &edge);
        for _ in 0..20 {
            for session in &mut sessions {
                session.ping().expect("an open connection goes on while the edge drains");
            }
        }
        let (status, _) = edge.admin("/readyz");
        assert_eq!(status, 503, "a draining edge is not ready");
        for session in sessions {
            assert_eq!(session.finish(), End::CloseNotify);
        }
        let status = edge.exit_within(SOON).expect("nothing is open: the edge ends");
        assert_eq!(status.code(), Some(0), "{}", edge.events.text());
    }
}

/// 121: what is open at the deadline is cut, and the exit code is still 0.
#[test]
fn t121_draining_has_a_deadline() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin, "1s");
    let mut sessions = open(&world, &edge, 10);
    let begun = Instant::now();
    edge.signal(Signal::TERM);
    let status = edge.exit_within(SOON).expect("the edge ends at its deadline");
    assert_eq!(status.code(), Some(0), "{}", edge.events.text());
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(5), "it took {took:?}");
    for session in &mut sessions {
        assert!(session.end_within(SOON).is_some());
    }
}

/// 122: a second signal ends at once.
#[test]
fn t122_a_second_signal_ends_at_once() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin, "60s");
    let _sessions = open(&world, &edge, 10);
    edge.signal(Signal::TERM);
    expect_no_more(&world, &edge);
    assert!(edge.exit_within(Duration::from_millis(300)).is_none(), "the first signal waits for the connections");
    edge.signal(Signal::TERM);
    assert!(edge.exit_within(Duration::from_secs(2)).is_some(), "the second signal does not wait");
}

/// 123: with nothing open the edge ends at once.
#[test]
fn t123_an_idle_edge_ends_at_once() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin, "60s");
    edge.signal(Signal::TERM);
    assert_eq!(edge.exit_within(Duration::from_secs(3)).and_then(|status| status.code()), Some(0));
}

/// 124: draining over the admin socket is draining.
#[test]
fn t124_drain_by_command() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin, "60s");
    let mut sessions = open(&world, &edge, 1);
    assert_eq!(edge.cli("drain").code(), Some(0));
    expect_no_more(&world, &edge);
    sessions[0].ping().expect("an open connection goes on while the edge drains");
    drop(sessions);
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
}

/// 125: a large transfer under way when draining begins arrives whole.
#[test]
fn t125_a_transfer_under_way_arrives() {
    use crate::harness::origin::Manner;
    let world = World::new();
    let bytes = 64 << 20;
    let origin = Origin::start(Manner::Source(bytes));
    let edge = edge(&world, &origin, "60s");
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    let first = session.receive(1000).expect("the beginning");
    assert_eq!(first.len(), 1000);
    edge.signal(Signal::TERM);
    let (digest, end) = session.drain();
    assert!(digest.starts_with(&format!("{}:", bytes - 1000)), "{digest}");
    assert_eq!(end, End::CloseNotify);
    session.finish();
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
}
