//! Connections that come and go at every moment leave nothing behind: neither descriptors nor memory nor kernel threads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::harness::clienthello::{Hello, Raw};
use crate::harness::origin::Manner;
use crate::harness::{ACME, Client, Edge, End, Origin, SOON, Session, Tls, World, wait};

/// The seed of the random points; a failure prints it.
const SEED: u64 = 0x5eed_1e55_ca11_ab1e;

/// Threads that open and drop.
const THREADS: u64 = 8;

/// Connections that warm allocator, caches and spare buffers before memory is measured.
const WARMING: u64 = 2000;

/// Connections opened and dropped between the two measurements.
const DROPPED: u64 = 10_000;

/// How much memory may differ between them, KiB. Over ten rounds of 1,500 it wandered by 6 MiB around one value; 2 KiB
/// lost by each connection would make 20 MiB.
const LEFTOVER_KIB: u64 = 14 << 10;

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % bound
    }
}

/// Opens one connection and drops it at a random point, in a random way.
fn open_and_drop(random: &mut Random, client: &Client, edge: &Edge) {
    let point = random.below(10);
    if point < 3 {
        let mut raw = Raw::connect(edge.address());
        let hello = Hello::modern(ACME).bytes();
        let cut = random.below(hello.len() as u64 + 1);
        let _ = raw.send(&hello[..usize::try_from(cut).expect("short")]);
        if random.below(2) == 0 {
            raw.finish_sending();
        }
        return;
    }
    let Ok(mut session) = client.begin(edge.address(), ACME) else { return };
    let done = match point {
        // Within the handshake: some of the first flight, then some of the second.
        3 => send_some(random, &mut session),
        4 => {
            let hello = session.take_outgoing();
            let answered = session.send_raw(&hello).and_then(|()| session.receive_flight());
            answered.and_then(|()| send_some(random, &mut session))
        }
        // After it, before, within and after data.
        5 => session.shake(),
        6 => session.shake().and_then(|()| session.ping()),
        7 => session.shake().and_then(|()| session.send(&vec![1; 200_000])),
        8 => session.shake().and_then(|()| session.ping()).and_then(|()| session.finish_sending()),
        _ => {
            if session.shake().and_then(|()| session.ping()).is_ok() {
                session.finish();
            }
            return;
        }
    };
    // However far it got: the point is that it goes now.
    let _ = done;
    if random.below(2) == 0 {
        session.reset();
    } else {
        session.vanish();
    }
}

/// Sends a random part of what the handshake has to send.
fn send_some(random: &mut Random, session: &mut Session) -> Result<(), End> {
    let flight = session.take_outgoing();
    let cut = random.below(flight.len() as u64 + 1);
    session.send_raw(&flight[..usize::try_from(cut).expect("short")])
}

/// Opens and drops this many connections from several threads.
fn churn(world: &World, edge: &Edge, connections: u64, round: u64) {
    let left = AtomicU64::new(connections);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let left = &left;
            scope.spawn(move || {
                let mut random = Random(SEED ^ (thread + 1) << 8 ^ round);
                let version = if thread % 2 == 0 { Tls::V1_2 } else { Tls::V1_3 };
                let client = world.acme_client("alice").tls(version);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    open_and_drop(&mut random, &client, edge);
                }
            });
        }
    });
}

/// 080: thousands of connections dropped at random points; then descriptors are back to start and memory is near it.
#[test]
fn t080_dropped_connections_leave_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().limit("handshake_timeout = \"2s\"");
    let edge = Edge::start(settings.host(world.host(ACME, &origin).require(&[&world.acme])));
    let settled = |edge: &Edge| {
        wait::for_value("open connections", SOON * 2, &0.0, || edge.metric("hostward_connections_open"));
        wait::until_still("descriptors", Duration::from_millis(200), SOON, || edge.proc().fds())
    };
    let start = settled(&edge);
    churn(&world, &edge, WARMING, 1);
    wait::for_value("descriptors after a first round", SOON, &start, || settled(&edge));
    let warm = edge.proc().rss_kib();
    churn(&world, &edge, DROPPED, 2);
    wait::for_value("descriptors", SOON, &start, || settled(&edge));
    let end = edge.proc().rss_kib();
    assert!(end < warm + LEFTOVER_KIB, "memory grew from {warm} to {end} KiB (seed {SEED:#x})");
    wait::for_value("connections at the origin", SOON, &0, || origin.open());
    world.acme_client("alice").expect_in(edge.address(), ACME);
}

/// 081: under load no io-wq worker thread appears: nothing on the data path is punted to the kernel's threads.
#[test]
fn t081_no_kernel_worker_appears() {
    let world = World::new();
    let (echo, source) = (Origin::echo(), Origin::start(Manner::Source(8 << 20)));
    let settings = world.settings().host(world.host("down.test", &source));
    let edge = Edge::start(settings.host(world.host(ACME, &echo).require(&[&world.acme])));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (done, edge, world) = (&done, &edge, &world);
            scope.spawn(move || {
                let client = world.acme_client("alice");
                for _ in 0..30 {
                    assert_eq!(client.expect_in(edge.address(), ACME).finish(), End::CloseNotify);
                }
                for _ in 0..5 {
                    client.open(edge.address(), "down.test").expect("a connection").drain();
                }
                churn(world, edge, 30, thread);
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut seen = Vec::new();
        wait::until("the load is over", SOON * 6, || {
            seen.extend(edge.proc().threads().into_iter().filter(|name| name.starts_with("iou-wrk")));
            done.load(Ordering::Relaxed) == 4 || !seen.is_empty()
        });
        assert!(seen.is_empty(), "kernel workers appeared: {seen:?}");
    });
}
