//! What goes in comes out: bodies of every size both ways with their hashes compared, half-close, the difference between
//! an end and a cut, and memory that stays bounded whoever is slow.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::origin::{Last, Manner};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Client, Edge, End, Origin, SOON, Tls, World, wait};

/// Around one TLS record (2^14 bytes) and around nothing.
const SIZES: [u64; 8] = [0, 1, 16_383, 16_384, 16_385, 64 << 10, 1 << 20, 64 << 20];

/// How far the edge's memory may grow while one connection moves a lot, KiB: each worker touches its receive buffers in
/// turn and keeps some spare ones, whoever uses them (17 MiB seen). The bodies are at least five times as large.
const BUFFERS_KIB: u64 = 48 << 10;

fn edge(world: &World, origin: &Origin) -> Edge {
    Edge::start(world.settings().host(world.host(ACME, origin)))
}

/// Sends a payload, says that this was all, and expects its digest as the answer and an orderly end.
#[track_caller]
fn upload(client: &Client, edge: &Edge, bytes: u64) {
    let mut session = client.open(edge.address(), ACME).expect("a connection");
    let sent = session.send_payload(Payload::new(bytes, bytes + 3)).expect("sent");
    session.finish_sending().expect("finished");
    assert_eq!(session.read_text(), (sent, End::CloseNotify), "{bytes} bytes up");
}

/// Reads what the origin sends to its orderly end.
#[track_caller]
fn download(client: &Client, edge: &Edge, bytes: u64, expected: &str) {
    let mut session = client.open(edge.address(), ACME).expect("a connection");
    let (digest, end) = session.drain();
    assert_eq!((&digest[..], end), (expected, End::CloseNotify), "{bytes} bytes down");
}

/// 060: bodies up to 64 MiB reach the origin unchanged, and so does the answer.
#[test]
fn t060_uploads_arrive() {
    let world = World::new();
    let origin = Origin::start(Manner::Hash);
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        for bytes in SIZES {
            upload(&world.client().tls(version), &edge, bytes);
        }
    }
    let total = SIZES.iter().sum::<u64>() * 2;
    edge.expect_metric("hostward_bytes_total{direction=\"in\"}", total as f64);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"clean\"}", SIZES.len() as f64 * 2.0);
}

/// 061: bodies up to 64 MiB reach the client unchanged.
#[test]
fn t061_downloads_arrive() {
    let world = World::new();
    for bytes in SIZES {
        let origin = Origin::start(Manner::Source(bytes));
        let edge = edge(&world, &origin);
        let expected = digest_of(bytes, 1);
        for version in Tls::BOTH {
            download(&world.client().tls(version), &edge, bytes, &expected);
        }
        edge.expect_metric("hostward_bytes_total{direction=\"out\"}", bytes as f64 * 2.0);
    }
}

/// 062: both directions at once, 32 MiB echoed while it is still being sent.
#[test]
fn t062_both_directions_flow_at_once() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        let mut payload = Payload::new(32 << 20, 5);
        let mut hash = crate::harness::payload::Hash::new();
        let mut buffer = vec![0; 64 << 10];
        // A few blocks stay under way: more than the edge buffers, so that neither direction may wait for the other.
        let mut ahead = 0;
        loop {
            let sent = match payload.next_block() {
                Some(block) => {
                    session.send(block).expect("sent");
                    block.len()
                }
                None => 0,
            };
            ahead += sent;
            let keep = if sent == 0 { 0 } else { 256 << 10 };
            while ahead > keep {
                let count = session.receive_some(&mut buffer).expect("the echo");
                hash.update(&buffer[..count]);
                ahead -= count;
            }
            if sent == 0 {
                break;
            }
        }
        assert_eq!(hash.digest(), payload.digest());
        assert_eq!(session.finish(), End::CloseNotify);
    }
}

/// Runs `body` while watching the edge's memory; it may not grow by more than `bound_kib`.
fn with_bounded_memory(edge: &Edge, bound_kib: u64, body: impl FnOnce()) {
    let before = edge.proc().rss_kib();
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before;
            wait::within(Duration::from_secs(300), || {
                most = most.max(edge.proc().rss_kib());
                done.load(Ordering::Relaxed)
            });
            most
        });
        body();
        done.store(true, Ordering::Relaxed);
        watch.join().expect("the watch does not fail")
    });
    assert!(most < before + bound_kib, "memory grew from {before} to {most} KiB");
}

/// 063: a gigabyte up, in bounded memory.
#[test]
fn t063_a_gigabyte_up() {
    let world = World::new();
    let origin = Origin::start(Manner::Hash);
    let edge = edge(&world, &origin);
    upload(&world.client(), &edge, 1 << 20);
    with_bounded_memory(&edge, BUFFERS_KIB, || upload(&world.client(), &edge, 1 << 30));
}

/// 064: a gigabyte down, in bounded memory.
#[test]
fn t064_a_gigabyte_down() {
    let world = World::new();
    let bytes = 1 << 30;
    let origin = Origin::start(Manner::Source(bytes));
    let edge = edge(&world, &origin);
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    std::thread::scope(|scope| {
        let expected = scope.spawn(move || digest_of(bytes, 1));
        with_bounded_memory(&edge, BUFFERS_KIB, || {
            let received = session.drain();
            assert_eq!(received, (expected.join().expect("hashing does not fail"), End::CloseNotify));
        });
    });
}

/// 065: the origin may end its direction first: the client hears it, and can still talk (TLS 1.3, RFC 8446 section 6.1).
#[test]
fn t065_the_origin_ends_first() {
    let world = World::new();
    let origin = Origin::start(Manner::Source(1000));
    let edge = edge(&world, &origin);
    let mut session = world.client().tls(Tls::V1_3).open(edge.address(), ACME).expect("a connection");
    assert_eq!(session.drain(), (digest_of(1000, 1), End::CloseNotify));
    let sent = session.send_payload(Payload::new(100_000, 9)).expect("the other direction is open");
    session.finish_sending().expect("finished");
    assert_eq!(origin.last(0), Last::End(sent));
}

/// 066: the client may end its direction first: the origin hears an end, and its answer still arrives.
#[test]
fn t066_the_client_ends_first() {
    let world = World::new();
    let origin = Origin::start(Manner::HashOnRelease);
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        let sent = session.send_payload(Payload::new(1000, 4)).expect("sent");
        session.finish_sending().expect("finished");
        origin.release();
        assert_eq!(session.read_text(), (sent, End::CloseNotify), "{version:?}");
    }
}

/// 067: a client that vanishes without close_notify is a cut, not an end: the origin sees a reset.
#[test]
fn t067_a_cut_connection_is_no_end_for_the_origin() {
    let world = World::new();
    let origin = Origin::start(Manner::Hash);
    let edge = edge(&world, &origin);
    for (index, version) in Tls::BOTH.into_iter().enumerate() {
        for (way, cut) in [false, true].into_iter().enumerate() {
            let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
            session.send(&[7; 10_000]).expect("sent");
            wait::until("the origin has the bytes", SOON, || origin.read() >= (index * 2 + way + 1) as u64 * 10_000);
            if cut {
                session.reset()
            } else {
                session.vanish()
            }
            assert_eq!(origin.last(index * 2 + way), Last::Reset, "{version:?}, {}", if cut { "RST" } else { "FIN" });
        }
    }
    edge.expect_metric("hostward_tunnels_ended_total{end=\"client_aborted\"}", 4.0);
}

/// 068: an origin that resets is a cut, not an end: the client gets no close_notify.
#[test]
fn t068_a_reset_origin_is_no_end_for_the_client() {
    let world = World::new();
    let origin = Origin::start(Manner::ResetAfter(10_000));
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        session.send(&[7; 10_000]).expect("sent");
        let end = session.end_within(SOON).expect("the connection ends");
        assert!(matches!(end, End::Truncated | End::Reset), "{version:?}: {end:?}");
    }
    edge.expect_metric("hostward_tunnels_ended_total{end=\"origin_aborted\"}", 2.0);
}

/// 069: a record that does not decrypt ends the connection with `bad_record_mac`, and the origin sees a reset.
#[test]
fn t069_a_forged_record_is_a_cut() {
    let world = World::new();
    let origin = Origin::start(Manner::Hash);
    let edge = edge(&world, &origin);
    for (index, version) in Tls::BOTH.into_iter().enumerate() {
        let mut session = world.client().tls(version).open(edge.address(), ACME).expect("a connection");
        session.send(&[7; 100]).expect("sent");
        wait::until("the origin has the bytes", SOON, || origin.read() == (index as u64 + 1) * 100);
        session.send_raw(&crate::harness::clienthello::record(23, 0x0303, &[9; 60])).expect("sent");
        let end = session.end_within(SOON).expect("the connection ends");
        assert_eq!(end, End::Alert(rustls::AlertDescription::BadRecordMac), "{version:?}");
        assert_eq!(origin.last(index), Last::Reset, "{version:?}");
    }
    edge.expect_metric("hostward_tunnels_ended_total{end=\"protocol_error\"}", 2.0);
}

/// 070: a client that does not read stops the origin, in bounded memory; when it reads on, nothing is missing.
#[test]
fn t070_a_slow_reader_stops_the_origin() {
    let world = World::new();
    let bytes = 256 << 20;
    let origin = Origin::start(Manner::Source(bytes));
    let edge = edge(&world, &origin);
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    with_bounded_memory(&edge, BUFFERS_KIB, || {
        let stalled =
            wait::until_still("what the origin has sent", Duration::from_millis(500), SOON * 3, || origin.written());
        assert!(stalled > 0 && stalled < bytes / 2, "{stalled} bytes went somewhere");
        assert_eq!(session.drain(), (digest_of(bytes, 1), End::CloseNotify));
    });
}

/// 071: an origin that does not read stops the client, in bounded memory; when it reads on, nothing is missing.
#[test]
fn t071_a_slow_origin_stops_the_client() {
    let world = World::new();
    let bytes = 256 << 20;
    let origin = Origin::start(Manner::HashOnRelease);
    let edge = edge(&world, &origin);
    let mut session = world.client().open(edge.address(), ACME).expect("a connection");
    let taken = std::sync::atomic::AtomicU64::new(0);
    with_bounded_memory(&edge, BUFFERS_KIB, || {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut payload = Payload::new(bytes, 6);
                while let Some(block) = payload.next_block() {
                    session.send(block).expect("sent");
                    taken.fetch_add(block.len() as u64, Ordering::Relaxed);
                }
                session.finish_sending().expect("finished");
                (payload.digest(), session.read_text())
            });
            let stalled = wait::until_still("what the client has sent", Duration::from_millis(500), SOON * 3, || {
                taken.load(Ordering::Relaxed)
            });
            assert!(stalled > 0 && stalled < bytes / 2, "{stalled} bytes went somewhere");
            origin.release();
            let (sent, answer) = sender.join().expect("the sender does not fail");
            assert_eq!(answer, (sent, End::CloseNotify));
        });
    });
}

/// 072: one slow reader does not slow the others of its worker: it may not drain the ring's buffers.
#[test]
fn t072_a_slow_reader_is_alone() {
    let world = World::new();
    let (flood, echo) = (Origin::start(Manner::Source(1 << 30)), Origin::echo());
    let settings = world.settings().workers(1).host(world.host("flood.test", &flood));
    let edge = Edge::start(settings.host(world.host(ACME, &echo)));
    let slow: Vec<_> =
        (0..50).map(|_| world.client().open(edge.address(), "flood.test").expect("a connection")).collect();
    wait::until_still("what the origin has sent", Duration::from_millis(300), SOON * 3, || flood.written());
    let mut session = world.client().expect_in(edge.address(), ACME);
    for _ in 0..200 {
        session.ping().expect("the origin echoes");
    }
    drop(slow);
}

/// 073: bytes of one connection never reach another: many echo their own stream at once, while others are cut in the
/// middle of theirs and their buffers are used again.
#[test]
fn t073_streams_do_not_mix() {
    const BYTES: u64 = 3 << 20;
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    std::thread::scope(|scope| {
        for thread in 0..12u64 {
            let (world, edge) = (&world, &edge);
            scope.spawn(move || {
                let client = world.client().tls(Tls::BOTH[thread as usize % 2]);
                for round in 0..4 {
                    let mut session = client.open(edge.address(), ACME).expect("a connection");
                    let mut payload = Payload::new(BYTES, thread << 8 | round);
                    let mut cut = 0;
                    while let Some(block) = payload.next_block() {
                        session.send(block).expect("sent");
                        let echo = session.receive(block.len()).expect("the echo");
                        assert!(echo == block, "bytes of another connection, or of an earlier one");
                        cut += 1;
                        // Every third thread cuts each of its connections with a block under way.
                        if thread % 3 == 0 && cut > 10 {
                            session.send(&[0xdd; 100_000]).expect("sent");
                            break;
                        }
                    }
                    if thread % 3 == 0 { session.reset() } else { assert_eq!(session.finish(), End::CloseNotify) }
                }
            });
        }
    });
}
