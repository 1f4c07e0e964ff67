//! Clients of HTTP/2 that mean harm: each is bounded, counted and answered by its code, and nobody else feels it.

use std::time::{Duration, Instant};

use crate::harness::http::{Framing, HttpOrigin, send_body};
use crate::harness::http2::{Http2, get};
use crate::harness::http2_frames::{self as frames, END_HEADERS, END_STREAM, Raw, block, frame, request};
use crate::harness::payload::Payload;
use crate::harness::process::tool;
use crate::harness::{ACME, Edge, End, GLOBEX, SOON, World, wait};

/// More than any budget, and soon sent.
const MANY: usize = 50_000;

/// The longest another client may wait meanwhile, on a machine whose cores are busy with other tests.
const LONGEST: Duration = Duration::from_secs(3);

fn start(world: &World, origin: &HttpOrigin, limits: &[&str]) -> Edge {
    let mut settings = world.settings().workers(1).host(world.http_host(ACME, origin));
    settings = settings.host(world.http_host(GLOBEX, origin));
    for limit in limits {
        settings = settings.limit(limit);
    }
    Edge::start(settings)
}

fn open(world: &World, edge: &Edge) -> Raw {
    Raw::open(&world.client(), edge.address(), ACME)
}

fn goaways(edge: &Edge, code: &str) -> f64 {
    edge.metric(&format!("hostward_http2_goaways_total{{code=\"{code}\"}}"))
}

/// A neighbour on the same worker asks until the attack is over; fails when it waits too long or is refused.
fn beside<T>(world: &World, edge: &Edge, attack: impl FnOnce() -> T) -> T {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let neighbour = scope.spawn(|| {
            let mut http = Http2::connect(&world.client(), edge.address(), GLOBEX);
            let mut longest = Duration::ZERO;
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                let asked = Instant::now();
                assert_eq!(http.get(GLOBEX, "/neighbour").status, 200);
                longest = longest.max(asked.elapsed());
            }
            longest
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let longest = neighbour.join().expect("the neighbour is served");
        assert!(longest < LONGEST, "the neighbour waited {longest:?}");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// 525: a flood of any frame that is no request ends with ENHANCE_YOUR_CALM, after a number of them that no client needs.
#[test]
fn t525_floods_of_control_frames_end() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    beside(&world, &edge, || {
        for (number, (what, bytes)) in [
            ("PING", frame(frames::PING, 0, 0, &[7; 8])),
            ("PING answers nobody asked for", frame(frames::PING, frames::ACK, 0, &[7; 8])),
            ("SETTINGS", frame(frames::SETTINGS, 0, 0, &[])),
            ("SETTINGS that change", frame(frames::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255, 0, 1, 0, 0, 0, 0])),
            ("PRIORITY", frame(frames::PRIORITY, 0, 5, &[0, 0, 0, 1, 9])),
            ("WINDOW_UPDATE", frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            ("a type nobody knows", frame(77, 0, 0, b"what")),
            ("PRIORITY_UPDATE", frame(16, 0, 0, &[0, 0, 0, 1, b'u'])),
        ]
        .into_iter()
        .enumerate()
        {
            let mut raw = open(&world, &edge);
            let sent = raw.flood(MANY, |_| bytes.clone());
            assert!((500..MANY).contains(&sent), "{what}: {sent}");
            assert_eq!(raw.goaway().0, frames::ENHANCE_YOUR_CALM, "{what}");
            edge.expect_metric("hostward_limit_reached_total{limit=\"http2_control_frames\"}", number as f64 + 1.0);
            edge.expect_metric("hostward_http2_goaways_total{code=\"enhance_your_calm\"}", number as f64 + 1.0);
        }
    });
    // On a stream: DATA that brings nothing, updates of a window that is large enough.
    for (what, bytes) in [
        ("empty DATA", frame(frames::DATA, 0, 1, &[])),
        ("DATA of padding", frame(frames::DATA, 8, 1, &[5, 0, 0, 0, 0, 0])),
        ("WINDOW_UPDATE of a stream", frame(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])),
    ] {
        let before = goaways(&edge, "enhance_your_calm");
        let mut raw = Raw::open_with(&world.client(), edge.address(), ACME, &[(4, 65_535)]);
        raw.head(1, &request("POST", ACME, "/upload"), false);
        let sent = raw.flood(MANY, |_| bytes.clone());
        assert!(sent < MANY, "{what}");
        assert_eq!(raw.goaway().0, frames::ENHANCE_YOUR_CALM, "{what}");
        edge.expect_metric("hostward_http2_goaways_total{code=\"enhance_your_calm\"}", before + 1.0);
    }
    // Slowly, a client may say as much as it likes.
    let mut raw = open(&world, &edge);
    for number in 0..200 {
        raw.ping(number);
    }
    raw.get(1, ACME, "/after");
    assert_eq!(raw.answer(1), 200);
}

/// 526: a client that resets what it has just asked for, again and again, is stopped soon (CVE-2023-44487).
#[test]
fn t526_rapid_reset_ends() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    let head = block(&request("GET", ACME, "/rapid"));
    beside(&world, &edge, || {
        for pairs_at_once in [1, 50] {
            let before = goaways(&edge, "enhance_your_calm");
            let mut raw = open(&world, &edge);
            let mut next = 1;
            let sent = raw.flood(MANY, |_| {
                let mut bytes = Vec::new();
                for _ in 0..pairs_at_once {
                    bytes.extend(frame(frames::HEADERS, END_HEADERS | END_STREAM, next, &head));
                    bytes.extend(frame(frames::RST_STREAM, 0, next, &frames::CANCEL.to_be_bytes()));
                    next += 2;
                }
                bytes
            });
            assert!(sent < MANY, "{sent} times {pairs_at_once}");
            assert_eq!(raw.goaway().0, frames::ENHANCE_YOUR_CALM);
            let asked = origin.heads().iter().filter(|(_, head)| head.target() == "/rapid").count();
            assert!(asked < 1_500, "{asked} requests reached the origin");
            edge.expect_metric("hostward_http2_goaways_total{code=\"enhance_your_calm\"}", before + 1.0);
        }
    });
    // A page that is left: a hundred requests under way, all reset at once. That is no attack.
    let waiting = HttpOrigin::start(|head, talk| {
        if head.target() == "/page" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "")
    });
    let edge = start(&world, &waiting, &[]);
    let mut raw = open(&world, &edge);
    let mut stream = 1;
    for _ in 0..3 {
        let first = stream;
        let before = waiting.heads().len();
        for _ in 0..100 {
            raw.get(stream, ACME, "/page");
            stream += 2;
        }
        wait::until("all are under way", SOON, || waiting.heads().len() == before + 100);
        let all: Vec<_> = (first..stream)
            .step_by(2)
            .flat_map(|stream| frame(frames::RST_STREAM, 0, stream, &frames::CANCEL.to_be_bytes()))
            .collect();
        raw.send_bytes(&all).expect("sent");
    }
    raw.get(stream, ACME, "/next");
    assert_eq!(raw.answer(stream), 200);
    edge.expect_metric("hostward_http2_resets_total{reason=\"client\"}", 300.0);
    waiting.release();
}

/// 527: a client that makes us reset its streams gets no further than one that resets them itself ("made you reset").
#[test]
fn t527_made_you_reset_ends() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    let post = block(&request("POST", ACME, "/made"));
    let mut told = request("POST", ACME, "/made");
    told.push(("content-length", "1"));
    let told = block(&told);
    let mut malformed = request("GET", ACME, "/made");
    malformed.push(("connection", "close"));
    let malformed = block(&malformed);
    let mut other = request("GET", ACME, "/made");
    other.push(("host", GLOBEX));
    let other = block(&other);
    let open_stream = |stream: u32, block: &[u8]| frame(frames::HEADERS, END_HEADERS, stream, block);
    let made = |number: usize, stream: u32| match number {
        // A window that overflows.
        0 => [open_stream(stream, &post), frame(frames::WINDOW_UPDATE, 0, stream, &[0x7f, 255, 255, 255])].concat(),
        // A body that is longer than told.
        1 => [open_stream(stream, &told), frame(frames::DATA, 0, stream, b"abc")].concat(),
        // A head that is malformed.
        2 => frame(frames::HEADERS, END_HEADERS | END_STREAM, stream, &malformed),
        // What we find malformed ourselves.
        3 => frame(frames::HEADERS, END_HEADERS | END_STREAM, stream, &other),
        // Streams over the limit: nobody ends the first ones.
        4 => open_stream(stream, &post),
        // An update by nothing.
        5 => [open_stream(stream, &post), frame(frames::WINDOW_UPDATE, 0, stream, &[0; 4])].concat(),
        // DATA behind its end.
        _ => [
            open_stream(stream, &post),
            frame(frames::DATA, END_STREAM, stream, b"a"),
            frame(frames::DATA, 0, stream, b"b"),
        ]
        .concat(),
    };
    beside(&world, &edge, || {
        for (number, (what, reason)) in [
            ("a window that overflows", "flow_control"),
            ("a body longer than told", "malformed"),
            ("a malformed head", "malformed"),
            ("host differs from :authority", "malformed"),
            ("streams over the limit", "refused"),
            ("an update by nothing", ""),
            ("DATA behind the end", ""),
        ]
        .into_iter()
        .enumerate()
        {
            let mut raw = open(&world, &edge);
            let mut stream = 1;
            let mut next = || {
                stream += 2;
                made(number, stream - 2)
            };
            // A few, one by one: each is told and counted. Of those that come with the last straw none is.
            if !reason.is_empty() {
                let limit = if reason == "refused" { 128 } else { 0 };
                for mark in 0..limit + 20 {
                    raw.send_bytes(&next()).expect("sent");
                    raw.ping(mark);
                }
                let query = format!("hostward_http2_resets_total{{reason=\"{reason}\"}}");
                frames::expect_at_least(&edge, &query, 20.0);
            }
            let sent = raw.flood(5_000, |_| next());
            assert!(sent < 5_000, "{what}: {sent}");
            let code = raw.goaway().0;
            match number {
                0..=4 => assert_eq!(code, frames::ENHANCE_YOUR_CALM, "{what}"),
                // Errors of the whole connection from the first one on.
                _ => assert!(matches!(code, frames::PROTOCOL_ERROR | frames::STREAM_CLOSED), "{what}: {code}"),
            }
        }
    });
    frames::expect_at_least(&edge, "hostward_http2_goaways_total", 7.0);
}

/// 528: a header block that never ends is stopped early, whether its pieces are empty, small or large.
#[test]
fn t528_endless_header_blocks_are_stopped() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    let before = edge.proc().rss_kib();
    let filler = block(&[("x", &"y".repeat(16_000))]);
    beside(&world, &edge, || {
        for piece in [&[][..], &block(&[("a", "b")]), &filler] {
            let mut raw = open(&world, &edge);
            raw.send(frames::HEADERS, END_STREAM, 1, &block(&request("GET", ACME, "/endless")));
            let sent = raw.flood(MANY, |_| frame(frames::CONTINUATION, 0, 1, piece));
            assert!(sent < MANY / 2, "{} bytes each: {sent}", piece.len());
            let code = raw.goaway().0;
            assert!(matches!(code, frames::ENHANCE_YOUR_CALM | frames::COMPRESSION_ERROR), "{code}");
        }
    });
    let grown = edge.proc().peak_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert!(origin.heads().iter().all(|(_, head)| head.target() == "/neighbour"));
    frames::expect_at_least(&edge, "hostward_http2_goaways_total", 3.0);
}

/// 529: a head that is too large is 431, and the connection goes on.
#[test]
fn t529_large_heads_are_431() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &["headers = 50"]);
    let mut raw = open(&world, &edge);
    let large = "y".repeat(40_000);
    let mut stream = 1;
    let mut ask = |raw: &mut Raw, fields: &[(&str, &str)]| {
        let bytes = block(fields);
        let mut pieces = bytes.chunks(16_384);
        let first = pieces.next().expect("a piece");
        let mut rest: Vec<_> = pieces.collect();
        let last = rest.pop();
        raw.send(frames::HEADERS, END_STREAM | if last.is_none() { END_HEADERS } else { 0 }, stream, first);
        for piece in rest {
            raw.send(frames::CONTINUATION, 0, stream, piece);
        }
        if let Some(last) = last {
            raw.send(frames::CONTINUATION, END_HEADERS, stream, last);
        }
        stream += 2;
        raw.answer(stream - 2)
    };
    let with = |fields: &[(&'static str, &'static str)]| [request("GET", ACME, "/"), fields.to_vec()].concat();
    assert_eq!(ask(&mut raw, &with(&[("x", "y")])), 200);
    // One field that is, some that are together, too many.
    let mut one = request("GET", ACME, "/");
    one.push(("x-large", &large));
    one.push(("x-more", &large));
    assert_eq!(ask(&mut raw, &one), 431);
    let mut some = request("GET", ACME, "/");
    some.extend(std::iter::repeat_n(("x-part", &large[..2000]), 40));
    assert_eq!(ask(&mut raw, &some), 431);
    let mut many = request("GET", ACME, "/");
    many.extend(std::iter::repeat_n(("x", "y"), 60));
    assert_eq!(ask(&mut raw, &many), 431);
    let path = format!("/{}", "p".repeat(70_000));
    assert!(matches!(ask(&mut raw, &request("GET", ACME, &path)), 414 | 431));
    assert_eq!(ask(&mut raw, &with(&[("x", "z")])), 200);
    assert_eq!(origin.heads().len(), 2);
    // As many as it may.
    let mut fits = request("GET", ACME, "/");
    fits.extend(std::iter::repeat_n(("x", "y"), 40));
    assert_eq!(ask(&mut raw, &fits), 200);
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}

/// 530: streams that stand still end, each by its own limit: a window that stays shut, a body that does not come. A header
/// block that is not finished ends the connection. Others of the connection go on.
#[test]
fn t530_what_stands_still_ends() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        if head.target() != "/big" {
            return talk.answer("200 OK", &body.digest);
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n";
        send_body(head, Framing::Length(10_000_000), Payload::new(10_000_000, 1), "", |bytes| talk.send(bytes).is_ok());
        Ok(())
    });
    let edge = start(&world, &origin, &["min_body_rate = \"1MiB\"", "header_timeout = \"400ms\""]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Nothing may be sent on any stream: not even our own answers hold anything up.
            let mut raw = Raw::open_with(&world.client(), edge.address(), ACME, &[(4, 0)]);
            raw.get(1, ACME, "/big");
            raw.get(3, GLOBEX, "/misdirected");
            assert_eq!(raw.status(1), 200);
            assert_eq!(raw.status(3), 421);
            assert_eq!(raw.reset(1), frames::CANCEL);
            // The window opens: what waited comes.
            raw.send(frames::WINDOW_UPDATE, 0, 3, &[0, 0, 255, 255]);
            assert!(raw.end_of(3) > 0);
            edge.expect_metric("hostward_timeouts_total{timeout=\"slow_reader\"}", 1.0);
            edge.expect_metric("hostward_http2_resets_total{reason=\"slow_reader\"}", 1.0);
        });
        scope.spawn(|| {
            let mut raw = open(&world, &edge);
            raw.head(1, &request("POST", ACME, "/half-open"), false);
            raw.head(3, &request("POST", ACME, "/dripping"), false);
            raw.send(frames::DATA, 0, 3, b"a");
            raw.get(5, ACME, "/meanwhile");
            assert_eq!(raw.answer(5), 200);
            assert_eq!((raw.answer(1), raw.answer(3)), (408, 408));
            assert_eq!((raw.reset(1), raw.reset(3)), (frames::NO_ERROR, frames::NO_ERROR));
            raw.get(7, ACME, "/after");
            assert_eq!(raw.answer(7), 200);
            edge.expect_metric("hostward_timeouts_total{timeout=\"body_rate\"}", 2.0);
        });
        scope.spawn(|| {
            // Two beginnings of a head: in a frame that is not whole, and in a block that goes on and on.
            for bytes in [
                frame(frames::HEADERS, END_HEADERS | END_STREAM, 3, &block(&request("GET", ACME, "/")))[..20].to_vec(),
                frame(frames::HEADERS, END_STREAM, 3, &block(&request("GET", ACME, "/"))),
            ] {
                let mut raw = open(&world, &edge);
                raw.get(1, ACME, "/first");
                assert_eq!(raw.answer(1), 200);
                raw.send_bytes(&bytes).expect("sent");
                let (code, last) = raw.goaway();
                assert_eq!((code, last), (frames::PROTOCOL_ERROR, 1));
                assert_eq!(raw.end_within(SOON), Some(End::CloseNotify));
            }
            edge.expect_metric("hostward_timeouts_total{timeout=\"header\"}", 2.0);
            edge.expect_metric("hostward_http2_goaways_total{code=\"protocol_error\"}", 2.0);
        });
    });
}

/// 531: who chose HTTP/2 and then does not speak it is sent away: silence, another preface, HTTP/1.1.
#[test]
fn t531_what_is_no_http2_ends() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &["header_timeout = \"400ms\""]);
    let mut wrong = frames::PREFACE.to_vec();
    wrong[10] = b'X';
    let http1 = format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n");
    for (what, bytes) in [
        ("silence", &b""[..]),
        ("half a preface", &frames::PREFACE[..12]),
        ("a preface alone", frames::PREFACE),
        ("another preface", &wrong),
        ("HTTP/1.1", http1.as_bytes()),
    ] {
        let mut raw = Raw::silent(&world.client(), edge.address(), ACME);
        raw.send_bytes(bytes).expect("sent");
        let begun = Instant::now();
        let end = raw.end_within(SOON);
        assert!(matches!(end, Some(End::CloseNotify | End::Reset)), "{what}: {end:?}");
        assert!(begun.elapsed() < SOON / 2, "{what}");
    }
    assert!(origin.heads().is_empty());
    edge.expect_metric("hostward_connections_open", 0.0);
    edge.expect_metric("hostward_timeouts_total{timeout=\"header\"}", 3.0);
}

/// 532: a client that asks for a hundred large responses and reads nothing holds a bounded amount of memory.
///
/// The bound: for each stream what an exchange gathers (60 KiB and one receive of 64 KiB beyond it), what `h2` may hold of it
/// (64 KiB) and what the ring keeps of the origin's (64 KiB), in buffers that grow by doubling; for the connection two batches
/// of records. 34 MiB were measured.
#[test]
fn t532_who_never_reads_holds_little() {
    const STREAMS: u32 = 100;
    const BOUND_KIB: u64 = 45 * 1024;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() != "/big" {
            return talk.answer("200 OK", "small");
        }
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 16000000\r\n\r\n";
        let payload = Payload::new(16_000_000, 1);
        send_body(head, Framing::Length(16_000_000), payload, "", |bytes| talk.send(bytes).is_ok());
        Ok(())
    });
    let edge = start(&world, &origin, &[]);
    let mut neighbour = Http2::connect(&world.client(), edge.address(), GLOBEX);
    assert_eq!(neighbour.get(GLOBEX, "/").status, 200);
    let before = edge.proc().rss_kib();
    // Its windows are open; TCP's is not, as nobody reads.
    let mut raw = open(&world, &edge);
    raw.open_wide();
    for n in 0..STREAMS {
        raw.get(1 + 2 * n, ACME, "/big");
    }
    wait::until("all are under way", SOON, || origin.heads().len() as u32 == STREAMS + 1);
    let read = || edge.metric("hostward_bytes_total{direction=\"out\"}") as u64;
    wait::until_still("what is sent", Duration::from_millis(500), 3 * SOON, read);
    let grown = edge.proc().rss_kib().saturating_sub(before);
    assert!(grown < BOUND_KIB, "{STREAMS} responses that nobody reads hold {grown} KiB");
    assert_eq!(neighbour.get(GLOBEX, "/").text(), "small");
    drop(raw);
    wait::until("the origin's connections are gone", 3 * SOON, || origin.open() <= 1);
}

/// 533: connections that are idle hold little.
#[test]
fn t533_idle_connections_hold_little() {
    const CONNECTIONS: usize = 200;
    /// TLS, and `h2`'s buffers and tables. 60 KiB were measured.
    const EACH_KIB: u64 = 80;
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    let client = world.client();
    let ask = |raw: &mut Raw| {
        raw.get(1, ACME, "/");
        assert_eq!(raw.answer(1), 200);
    };
    let mut warm: Vec<_> = (0..20).map(|_| open(&world, &edge)).collect();
    warm.iter_mut().for_each(ask);
    let before = edge.proc().rss_kib();
    let mut idle: Vec<_> = (0..CONNECTIONS).map(|_| Raw::open(&client, edge.address(), ACME)).collect();
    idle.iter_mut().for_each(ask);
    edge.expect_metric("hostward_connections_open", (CONNECTIONS + 20) as f64);
    let each = edge.proc().rss_kib().saturating_sub(before) / CONNECTIONS as u64;
    assert!(each < EACH_KIB, "{each} KiB each");
}

/// 534: frames that no client may send end the connection with the code of their fault, which is counted.
#[test]
fn t534_faults_have_their_code() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = start(&world, &origin, &[]);
    let head = block(&request("GET", ACME, "/"));
    let get = frame(frames::HEADERS, END_HEADERS | END_STREAM, 1, &head);
    let setting = |key: u8, value: u32| {
        let mut payload = vec![0, key];
        payload.extend(value.to_be_bytes());
        frame(frames::SETTINGS, 0, 0, &payload)
    };
    let mut counted = std::collections::BTreeMap::new();
    for (what, bytes, code) in [
        ("DATA on no stream", frame(frames::DATA, 0, 0, b"x"), frames::PROTOCOL_ERROR),
        ("HEADERS on no stream", frame(frames::HEADERS, END_HEADERS, 0, &head), frames::PROTOCOL_ERROR),
        ("a stream of the server's", frame(frames::HEADERS, END_HEADERS, 2, &head), frames::PROTOCOL_ERROR),
        ("DATA on a stream that is idle", frame(frames::DATA, 0, 9, b"x"), frames::PROTOCOL_ERROR),
        ("RST_STREAM on one", frame(frames::RST_STREAM, 0, 9, &[0; 4]), frames::PROTOCOL_ERROR),
        ("WINDOW_UPDATE on one", frame(frames::WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1]), frames::PROTOCOL_ERROR),
        ("a frame too large", frame(frames::DATA, 0, 1, &[0; 16_385]), frames::FRAME_SIZE_ERROR),
        ("PING of 7 bytes", frame(frames::PING, 0, 0, &[0; 7]), frames::FRAME_SIZE_ERROR),
        ("PING on a stream", frame(frames::PING, 0, 1, &[0; 8]), frames::PROTOCOL_ERROR),
        ("SETTINGS of 5 bytes", frame(frames::SETTINGS, 0, 0, &[0; 5]), frames::FRAME_SIZE_ERROR),
        ("an ACK that says something", frame(frames::SETTINGS, frames::ACK, 0, &[0; 6]), frames::FRAME_SIZE_ERROR),
        ("SETTINGS on a stream", frame(frames::SETTINGS, 0, 1, &[]), frames::PROTOCOL_ERROR),
        ("a window too large", setting(4, 1 << 31), frames::FLOW_CONTROL_ERROR),
        ("frames too small", setting(5, 100), frames::PROTOCOL_ERROR),
        ("a push that is neither", setting(2, 2), frames::PROTOCOL_ERROR),
        ("an update of 3 bytes", frame(frames::WINDOW_UPDATE, 0, 0, &[0; 3]), frames::FRAME_SIZE_ERROR),
        ("an update by nothing", frame(frames::WINDOW_UPDATE, 0, 0, &[0; 4]), frames::PROTOCOL_ERROR),
        (
            "a window that overflows",
            frame(frames::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            frames::FLOW_CONTROL_ERROR,
        ),
        ("a promise", frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]), frames::PROTOCOL_ERROR),
        ("CONTINUATION of nothing", frame(frames::CONTINUATION, END_HEADERS, 1, &head), frames::PROTOCOL_ERROR),
        (
            "another frame in a block",
            [frame(frames::HEADERS, 0, 3, &head), frame(frames::PING, 0, 0, &[0; 8])].concat(),
            frames::PROTOCOL_ERROR,
        ),
        (
            "a block on another stream",
            [frame(frames::HEADERS, 0, 3, &head), frame(frames::CONTINUATION, END_HEADERS, 5, &head)].concat(),
            frames::PROTOCOL_ERROR,
        ),
        (
            "a block that is none",
            frame(frames::HEADERS, END_HEADERS | END_STREAM, 3, &[0xff; 20]),
            frames::COMPRESSION_ERROR,
        ),
        (
            "an entry that is none",
            frame(frames::HEADERS, END_HEADERS | END_STREAM, 3, &[0x80]),
            frames::COMPRESSION_ERROR,
        ),
        (
            "a table too large",
            frame(frames::HEADERS, END_HEADERS, 3, &[0x3f, 0xff, 0xff, 0x03, 0x82]),
            frames::COMPRESSION_ERROR,
        ),
        (
            "padding longer than the frame",
            frame(frames::HEADERS, END_HEADERS | 8, 3, &[200, 0, 0]),
            frames::PROTOCOL_ERROR,
        ),
        ("a stream again", get.clone(), frames::PROTOCOL_ERROR),
    ] {
        let mut raw = Raw::open_with(&world.client(), edge.address(), ACME, &[]);
        raw.send_bytes(&get).expect("sent");
        assert_eq!(raw.answer(1), 200);
        raw.send_bytes(&bytes).expect("sent");
        let told = raw.goaway().0;
        // `h2` often says PROTOCOL_ERROR instead (tests/conformance/expected.toml has the list).
        let known = told == code || told == frames::PROTOCOL_ERROR || told == frames::STREAM_CLOSED;
        assert!(known, "{what}: {told} instead of {code}");
        let end = raw.end_within(SOON);
        assert!(matches!(end, Some(End::CloseNotify | End::Reset)), "{what}: {end:?}");
        *counted.entry(told).or_insert(0.0) += 1.0;
    }
    for (code, label) in [
        (frames::PROTOCOL_ERROR, "protocol_error"),
        (frames::FRAME_SIZE_ERROR, "frame_size_error"),
        (frames::FLOW_CONTROL_ERROR, "flow_control_error"),
        (frames::COMPRESSION_ERROR, "compression_error"),
    ] {
        let told = counted.get(&code).copied().unwrap_or(0.0);
        edge.expect_metric(&format!("hostward_http2_goaways_total{{code=\"{label}\"}}"), told);
    }
    assert!(counted.contains_key(&frames::FLOW_CONTROL_ERROR) && counted.contains_key(&frames::FRAME_SIZE_ERROR));
}

/// 535: a client that sends more than the windows allow is stopped: its stream by the stream's, its connection by the
/// connection's. What is not read of it is not kept.
#[test]
fn t535_windows_are_kept_to() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.target() != "/stalled" {
            return talk.answer("200 OK", "");
        }
        talk.wait_for_release();
        Ok(())
    });
    let edge = start(&world, &origin, &[]);
    let mut raw = open(&world, &edge);
    raw.head(1, &request("POST", ACME, "/stalled"), false);
    wait::until("the request is under way", SOON, || origin.heads().len() == 1);
    // The origin's socket takes some; then the stream's window is full.
    let sent = raw.flood(2_000, |_| frame(frames::DATA, 0, 1, &[0; 16_000]));
    let code = raw.next_where("the stop", |frame| match frame.kind {
        frames::RST_STREAM => Some(frame.number(0)),
        frames::GOAWAY => Some(frame.number(4)),
        _ => None,
    });
    assert_eq!(code, frames::FLOW_CONTROL_ERROR, "after {sent}");
    frames::expect_at_least(&edge, "hostward_http2_resets_total{reason=\"flow_control\"}", 1.0);
    // The connection's window: many streams, a little each.
    let mut raw = open(&world, &edge);
    for n in 0..40 {
        raw.head(1 + 2 * n, &request("POST", ACME, "/stalled"), false);
    }
    wait::until("all are under way", SOON, || origin.heads().len() == 41);
    let mut turn = 0;
    raw.flood(20_000, |_| {
        turn += 1;
        frame(frames::DATA, 0, 1 + 2 * (turn % 40), &[0; 16_000])
    });
    assert_eq!(raw.goaway().0, frames::FLOW_CONTROL_ERROR);
    edge.expect_metric("hostward_http2_goaways_total{code=\"flow_control_error\"}", 1.0);
    origin.release();
}

/// 536: a client that takes a response byte by byte is stopped: each crumb costs us a frame and a record (CVE-2019-9511).
#[test]
fn t536_crumbs_have_an_end() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", &"x".repeat(if head.target() == "/big" { 1_000_000 } else { 1 }))
    });
    let edge = start(&world, &origin, &[]);
    beside(&world, &edge, || {
        let mut raw = Raw::open_with(&world.client(), edge.address(), ACME, &[(4, 0)]);
        raw.get(1, ACME, "/big");
        assert_eq!(raw.status(1), 200);
        let sent = raw.flood(MANY, |_| frame(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
        assert!(sent < 5_000, "{sent}");
        assert_eq!(raw.goaway().0, frames::ENHANCE_YOUR_CALM);
    });
    edge.expect_metric("hostward_limit_reached_total{limit=\"http2_control_frames\"}", 1.0);
}

/// 537: a client that is sent many small messages may answer each with a PING and updates, as clients of gRPC do.
#[test]
fn t537_many_small_messages_are_no_flood() {
    const MESSAGES: usize = 2_000;
    let world = World::new();
    let origin = HttpOrigin::start(|_, talk| {
        talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        let mut byte = [0];
        for _ in 0..MESSAGES {
            // One for each that the client acknowledges, over a body that goes up.
            while byte[0] != b'.' {
                match talk.reader.buffer.first().copied() {
                    Some(next) => {
                        talk.reader.buffer.remove(0);
                        byte[0] = next;
                    }
                    None => {
                        std::io::Read::read_exact(talk.stream(), &mut byte)?;
                    }
                }
            }
            byte[0] = 0;
            talk.send("7\r\nmessage\r\n")?;
        }
        talk.send("0\r\n\r\n")
    });
    let edge = start(&world, &origin, &[]);
    let mut raw = Raw::open_with(&world.client(), edge.address(), ACME, &[(4, 65_535)]);
    raw.head(1, &request("POST", ACME, "/stream"), false);
    assert_eq!(raw.status(1), 200);
    for number in 0..MESSAGES as u64 {
        raw.send_bytes(
            &[
                frame(frames::DATA, 0, 1, b"."),
                frame(frames::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 7]),
                frame(frames::PING, 0, 0, &number.to_be_bytes()),
            ]
            .concat(),
        )
        .expect("sent");
        raw.next_where("a message", |frame| (frame.kind == frames::DATA && !frame.payload.is_empty()).then_some(()));
        raw.next_where("an answer", |frame| (frame.kind == frames::PING).then_some(()));
    }
    edge.expect_metric("hostward_http2_goaways_total", 0.0);
}

/// 538: streams that wait for a silent origin do not take the connections of other hostnames: beyond its share a hostname is
/// answered 503, and the others are served.
#[test]
fn t538_waiting_streams_take_only_their_share() {
    let Some(prlimit) = tool("prlimit") else { return };
    let world = World::new();
    let silent = HttpOrigin::start(|head, talk| {
        if head.target() == "/wait" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "late")
    });
    let other = HttpOrigin::mirror();
    let settings = world.settings().workers(1).host(world.http_host(ACME, &silent));
    // Half of 80 descriptors are for clients: 16 connections with two each, and 8 more streams.
    let wrapper = [prlimit.to_str().expect("UTF-8"), "--nofile=80:80"];
    let edge = Edge::start_under(&wrapper, settings.host(world.http_host(GLOBEX, &other)));
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    // One for the connection itself, and half of the half that a worker has for more.
    let mut waiting: Vec<_> = (0..5).map(|_| http.start(get(ACME, "/wait"), true)).collect();
    wait::until("all wait at the origin", SOON, || silent.heads().len() == 5);
    let refused = http.ask(get(ACME, "/more"));
    assert_eq!(refused.status, 503);
    assert_eq!(refused.get("proxy-status"), Some("hostward; error=connection_limit_reached"));
    edge.expect_metric("hostward_limit_reached_total{limit=\"origin_connections\"}", 1.0);
    let mut neighbour = Http2::connect(&world.client(), edge.address(), GLOBEX);
    assert_eq!(neighbour.ask(get(GLOBEX, "/")).status, 200);
    silent.release();
    for stream in &mut waiting {
        assert_eq!(stream.answer().text(), "late");
    }
    assert_eq!(http.ask(get(ACME, "/more")).status, 200);
}
