//! Flow control couples a client to its own origin and to nobody else's; drains and hand-overs let what is under way finish.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::Builder;
use rustix::process::Signal;

use crate::harness::http::{Framing, HttpOrigin, send_body};
use crate::harness::http2::{self, Http2, get, with_method};
use crate::harness::http2_frames::{self as frames, END_HEADERS, END_STREAM, Raw, block, frame, request};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::{ACME, Edge, End, SOON, World, wait};

/// How long something has to stand still to be called stalled.
const QUIET: Duration = Duration::from_millis(500);

/// 540: a stream that is read slowly holds back its own origin, and no other stream of its connection; it gets everything in
/// the end.
#[test]
fn t540_a_slow_stream_is_alone() {
    const BYTES: u64 = 64 << 20;
    let world = World::new();
    let written = std::sync::Arc::new(AtomicU64::new(0));
    let origin = {
        let written = std::sync::Arc::clone(&written);
        HttpOrigin::start(move |head, talk| {
            if head.target() != "/big" {
                return talk.answer("200 OK", &"small".repeat(10_000));
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
            send_body(&head, Framing::Length(BYTES), Payload::new(BYTES, 1), "", |bytes| {
                written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                talk.send(bytes).is_ok()
            });
            Ok(())
        })
    };
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut builder = Builder::new();
    builder.initial_window_size(100_000).initial_connection_window_size(1 << 30);
    let mut http = Http2::connect_with(&world.client(), edge.address(), ACME, &builder);
    let before = edge.proc().rss_kib();
    let mut slow: Vec<_> = (0..4).map(|_| http.start(get(ACME, "/big"), true)).collect();
    let mut bodies: Vec<_> = slow.iter_mut().map(|stream| stream.head().into_body()).collect();
    let stalled = wait::until_still("the origin", QUIET, SOON, || written.load(Ordering::Relaxed));
    assert!(stalled < 4 * BYTES / 2, "{stalled} bytes were taken for clients that read nothing");
    for _ in 0..200 {
        assert_eq!(http.get(ACME, "/small").start.len(), 50_000);
    }
    let grown = edge.proc().rss_kib().saturating_sub(before);
    assert!(grown < 24 << 10, "four stalled downloads hold {grown} KiB");
    for body in &mut bodies {
        let mut hash = crate::harness::payload::Hash::new();
        while let Some(piece) = http2::read_some(body) {
            hash.update(&piece.expect("the stream goes on"));
        }
        assert_eq!(hash.digest(), digest_of(BYTES, 1));
    }
}

/// 541: uploads whose origins read nothing hold up no other upload of their connection, in bounded memory, and end well once
/// their origins read.
#[test]
fn t541_stalled_uploads_are_alone() {
    const STALLED: usize = 3;
    const BYTES: u64 = 16 << 20;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/stalled" {
            talk.wait_for_release();
        }
        let body = talk.body(head)?;
        talk.answer("200 OK", &body.digest)
    });
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    assert_eq!(http.get(ACME, "/").status, 200);
    let before = edge.proc().rss_kib();
    let zeros = Bytes::from(vec![0; BYTES as usize]);
    let mut stalled: Vec<_> = (0..STALLED).map(|_| http.start(with_method("POST", ACME, "/stalled"), false)).collect();
    for stream in &mut stalled {
        // Its origin's socket takes some; then its window is full.
        assert!(!stream.sends_within(zeros.clone(), 2 * QUIET), "an upload that nobody reads went on to its end");
    }
    let begun = Instant::now();
    for bytes in [1, 65_537, 5 << 20] {
        let answer = http.post(with_method("POST", ACME, "/quick"), Payload::new(bytes, 9));
        assert_eq!(answer.text(), digest_of(bytes, 9));
    }
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let grown = edge.proc().rss_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "{STALLED} stalled uploads hold {grown} KiB");
    // A client that gives up gives its share back.
    for stream in &mut stalled {
        stream.reset(h2::Reason::CANCEL);
    }
    let mut again = http.start(with_method("POST", ACME, "/stalled"), false);
    origin.release();
    let sent = again.send_payload(Payload::new(BYTES, 3));
    assert_eq!(again.answer().text(), sent);
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}

/// 542: an edge that drains says so, finishes what is under way, and refuses what comes later in a way that can be retried.
#[test]
fn t542_draining_finishes_streams() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        if head.target() == "/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", &format!("done {}", body.digest))
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let open = || Raw::open(&world.client(), edge.address(), ACME);
    let (mut idle, mut fresh, mut busy) = (open(), open(), open());
    idle.get(1, ACME, "/");
    assert_eq!(idle.answer(1), 200);
    busy.get(1, ACME, "/slow");
    busy.head(3, &request("POST", ACME, "/upload"), false);
    wait::until("the requests are under way", SOON, || origin.heads().len() == 3);
    edge.signal(Signal::TERM);
    for raw in [&mut idle, &mut fresh] {
        assert_eq!(raw.goaway().0, frames::NO_ERROR);
        assert_eq!(raw.end_within(SOON), Some(End::CloseNotify));
    }
    // First a GOAWAY that refuses nothing yet, and a PING: what crosses it on its way is served.
    assert_eq!(busy.goaway(), (frames::NO_ERROR, (1 << 31) - 1));
    let ping = busy.next_where("PING", |frame| {
        (frame.kind == frames::PING && frame.flags & frames::ACK == 0).then(|| frame.payload.clone())
    });
    busy.get(5, ACME, "/crossed");
    assert_eq!(busy.answer(5), 200);
    busy.send(frames::PING, frames::ACK, 0, &ping);
    assert_eq!(busy.goaway(), (frames::NO_ERROR, 5));
    // What comes now is above the last stream: the client knows that it was not looked at.
    busy.get(7, ACME, "/late");
    busy.send(frames::DATA, END_STREAM, 3, b"body");
    assert_eq!(busy.answer(3), 200);
    origin.release();
    assert_eq!(busy.answer(1), 200);
    assert_eq!(busy.end_within(SOON), Some(End::CloseNotify));
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
    assert!(!origin.heads().iter().any(|(_, head)| head.target() == "/late"));
}

/// 543: a hand-over under load fails no request: a client that is told to go connects anew, and sends again only what was not
/// looked at.
#[test]
fn t543_a_hand_over_fails_no_request() {
    const CLIENTS: usize = 4;
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let stop = AtomicBool::new(false);
    let asked = AtomicU64::new(0);
    let connections = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let begun = Instant::now();
                    let mut open = None;
                    while !stop.load(Ordering::Relaxed) && begun.elapsed() < 6 * SOON {
                        let http = open.get_or_insert_with(|| {
                            connections.fetch_add(1, Ordering::Relaxed);
                            Http2::connect(&world.client(), edge.address(), ACME)
                        });
                        let mut streams = Vec::new();
                        for n in 0..10 {
                            match http.try_start(get(ACME, &format!("/{n}")), true) {
                                Ok(stream) => streams.push(stream),
                                // It was told to go; nothing was sent.
                                Err(_) => break,
                            }
                        }
                        let all = streams.len() == 10;
                        for mut stream in streams {
                            match stream.try_answer() {
                                Ok(answer) => {
                                    assert_eq!(answer.status, 200);
                                    asked.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(error) => assert!(
                                    error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
                                        || error.reason() == Some(h2::Reason::REFUSED_STREAM),
                                    "a request failed: {error:?}"
                                ),
                            }
                        }
                        if !all {
                            open = None;
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            let before = asked.load(Ordering::Relaxed);
            wait::until("the load runs", 3 * SOON, || asked.load(Ordering::Relaxed) > before + 100);
            let old = edge.hand_over();
            assert_eq!(edge.exit_code_within(old, 3 * SOON), Some(0));
        }
        let before = asked.load(Ordering::Relaxed);
        wait::until("the load runs on", 3 * SOON, || asked.load(Ordering::Relaxed) > before + 100);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no request fails");
        }
    });
    assert!(connections.load(Ordering::Relaxed) >= 3 * CLIENTS as u64);
}

/// 544: a connection without a stream ends after `idle_timeout`, in order; one with a stream does not.
#[test]
fn t544_idle_connections_end_in_order() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "done")
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)).limit("idle_timeout = \"500ms\""));
    let mut busy = Raw::open(&world.client(), edge.address(), ACME);
    busy.get(1, ACME, "/slow");
    wait::until("the request is under way", SOON, || origin.heads().len() == 1);
    for asks in [false, true] {
        let mut raw = Raw::open(&world.client(), edge.address(), ACME);
        if asks {
            raw.get(1, ACME, "/");
            assert_eq!(raw.answer(1), 200);
        }
        assert_eq!(raw.goaway(), (frames::NO_ERROR, u32::from(asks)));
        assert_eq!(raw.end_within(SOON), Some(End::CloseNotify));
    }
    edge.expect_metric("hostward_timeouts_total{timeout=\"idle\"}", 2.0);
    edge.expect_metric("hostward_http2_goaways_total{code=\"no_error\"}", 2.0);
    edge.expect_metric("hostward_tunnels_ended_total{end=\"idle\"}", 2.0);
    origin.release();
    assert_eq!(busy.answer(1), 200);
}

/// 545: what a slow client has not taken yet is still its own when the edge drains, or nothing else is asked for: the response
/// arrives whole, however long it takes within the limits.
#[test]
fn t545_the_end_of_a_response_is_waited_for() {
    const BYTES: u64 = 24 << 20;
    let world = World::new();
    let sent = std::sync::Arc::new(AtomicU64::new(0));
    let origin = {
        let sent = std::sync::Arc::clone(&sent);
        HttpOrigin::start(move |head, talk| {
            if head.target() != "/big" {
                return talk.answer("200 OK", "small");
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
            send_body(&head, Framing::Length(BYTES), Payload::new(BYTES, 1), "", |bytes| talk.send(bytes).is_ok());
            sent.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    };
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.open_wide();
    raw.get(1, ACME, "/big");
    assert_eq!(raw.status(1), 200);
    // Reads until nothing is left at the origin, which is before all has been read: then not at all for a while.
    let mut read = 0;
    while sent.load(Ordering::Relaxed) == 0 {
        let frame = raw.next().expect("more of it");
        read += if frame.kind == frames::DATA { frame.payload.len() as u64 } else { 0 };
        assert!(read < BYTES, "everything was read before the origin had sent it");
    }
    wait::until("the request has ended for the edge", SOON, || {
        edge.metric("hostward_requests_total{protocol=\"h2\",status_class=\"2xx\"}") == 1.0 || {
            // Some more, if it waits for that.
            let frame = raw.next().expect("more of it");
            read += if frame.kind == frames::DATA { frame.payload.len() as u64 } else { 0 };
            false
        }
    });
    assert!(read < BYTES, "nothing was left to be waited for");
    edge.signal(Signal::TERM);
    let begun = Instant::now();
    wait::until("a while has passed", SOON, || begun.elapsed() > Duration::from_secs(4));
    loop {
        let frame = raw.next().unwrap_or_else(|end| panic!("{end:?} after {read} bytes of {BYTES}"));
        if frame.kind == frames::DATA {
            read += frame.payload.len() as u64;
            if frame.ends_stream() {
                break;
            }
        }
    }
    assert_eq!(read, BYTES);
    assert_eq!(raw.end_within(SOON), Some(End::CloseNotify));
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
}

/// 546: a client that says goodbye while responses are under way gets them, and then the end.
#[test]
fn t546_a_clients_goodbye_is_waited_for() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", &"x".repeat(1 << 20))
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.open_wide();
    raw.get(1, ACME, "/slow");
    wait::until("the request is under way", SOON, || origin.heads().len() == 1);
    raw.send(frames::GOAWAY, 0, 0, &[0; 8]);
    origin.release();
    assert_eq!(raw.status(1), 200);
    assert_eq!(raw.end_of(1), 1 << 20);
    assert_eq!(raw.end_within(SOON), Some(End::CloseNotify));
    // One that goes without a word is no harm to anybody.
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.get(1, ACME, "/quick");
    assert_eq!(raw.status(1), 200);
    raw.session.reset();
    edge.expect_metric("hostward_connections_open", 0.0);
}

/// 547: many streams share the connection's window fairly: a large response holds up no small one behind it.
#[test]
fn t547_large_and_small_share() {
    const BYTES: u64 = 32 << 20;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() != "/big" {
            return talk.answer("200 OK", "small");
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n");
        send_body(&head, Framing::Length(BYTES), Payload::new(BYTES, 1), "", |bytes| talk.send(bytes).is_ok());
        Ok(())
    });
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    raw.open_wide();
    for n in 0..4 {
        raw.get(1 + 2 * n, ACME, "/big");
    }
    wait::until("all are under way", SOON, || origin.heads().len() == 4);
    raw.get(9, ACME, "/small");
    // It comes before the large ones have ended.
    let mut ended = 0;
    let mut bytes = 0;
    loop {
        let frame = raw.next().expect("a frame");
        bytes += frame.payload.len() as u64;
        if frame.stream == 9 && frame.kind == frames::HEADERS {
            break;
        }
        ended += u32::from(frame.ends_stream());
    }
    assert_eq!(ended, 0);
    assert!(bytes < 2 * BYTES, "the small response came after {bytes} bytes of others");
}

/// 548: the end of a client's TCP stream without close_notify, in the middle of streams, reaches their origins as a reset.
#[test]
fn t548_a_cut_connection_takes_its_streams_along() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        std::io::Read::read_to_end(talk.stream(), &mut Vec::new())?;
        Err(std::io::ErrorKind::Other.into())
    });
    let edge = Edge::start(world.settings().workers(1).host(world.http_host(ACME, &origin)));
    for (round, cut) in [true, false].into_iter().enumerate() {
        let mut raw = Raw::open(&world.client(), edge.address(), ACME);
        let head = block(&request("POST", ACME, "/up"));
        for n in 0..20_u32 {
            raw.get(1 + 4 * n, ACME, "/wait");
            raw.send_bytes(
                &[frame(frames::HEADERS, END_HEADERS, 3 + 4 * n, &head), frame(frames::DATA, 0, 3 + 4 * n, b"some")]
                    .concat(),
            )
            .expect("sent");
        }
        wait::until("all are under way", SOON, || origin.heads().len() == 40 * (round + 1));
        if cut {
            raw.session.vanish();
        } else {
            raw.session.reset();
        }
        wait::until("the origin's connections are gone", SOON, || origin.open() == 0);
    }
    edge.expect_metric("hostward_http2_resets_total{reason=\"client\"}", 80.0);
    edge.expect_metric("hostward_connections_open", 0.0);
    edge.expect_metric("hostward_requests_total{status_class=\"none\"}", 80.0);
}

/// 549: a call of gRPC whose client is silent for long is no stalled upload, before the first answer and after it; one of
/// anything else is, until it is answered.
#[test]
fn t549_dialogues_may_pause() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() == "/answers" {
            talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")?;
            let body = talk.body(head)?;
            return talk.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", body.text().len(), body.text()));
        }
        let body = talk.body(head)?;
        talk.answer("200 OK", &body.text())
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)).limit("min_body_rate = \"1MiB\""));
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    let grpc = |path: &str| http2::field(with_method("POST", ACME, path), "content-type", "application/grpc");
    let mut streams = [
        (http.start(grpc("/waits"), false), "onetwo"),
        (http.start(with_method("POST", ACME, "/answers"), false), "hionetwo"),
        (http.start(grpc("/answers"), false), "hionetwo"),
    ];
    let mut plain = http.start(with_method("POST", ACME, "/waits"), false);
    for (stream, _) in &mut streams {
        stream.send(b"one", false);
    }
    plain.send(b"one", false);
    // The plain one is given the time in which it ends.
    assert_eq!(plain.answer().status, 408);
    edge.expect_metric("hostward_timeouts_total{timeout=\"body_rate\"}", 1.0);
    for (stream, expected) in &mut streams {
        stream.send(b"two", true);
        let answer = stream.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, *expected));
    }
    edge.expect_metric("hostward_timeouts_total{timeout=\"body_rate\"}", 1.0);
}
