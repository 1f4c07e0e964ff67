//! I1 and the first bytes of a connection: which record a name belongs to, and what becomes of hellos that no TLS
//! library would send. Each ends in a clean alert or close, and a counter.

use std::time::{Duration, Instant};

use rustls::AlertDescription as Alert;

use crate::harness::clienthello::{Hello, Raw, Reply, record, server_name};
use crate::harness::{ACME, Edge, End, GLOBEX, Origin, SOON, Tls, World, wait};

/// Alerts by number (RFC 8446 section 6).
const PROTOCOL_VERSION: u8 = 70;
const UNRECOGNIZED_NAME: u8 = 112;

/// An edge with Acme's and Globex' hostnames, a wildcard and an exact name below it, and little patience.
fn edge(world: &World, origin: &Origin) -> Edge {
    let mut settings = world.settings().limit("handshake_timeout = \"1s\"");
    for name in [ACME, GLOBEX, "*.shop.test", "vip.shop.test"] {
        settings = settings.host(world.host(name, origin));
    }
    Edge::start(settings)
}

/// 040: a name is found exactly, else through its wildcard of one label, else refused; case and a final dot are nothing.
#[test]
fn t040_a_name_finds_its_record() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let known = [ACME, "PAY.Acme.Test", "pay.acme.test.", "a.shop.test", "B.SHOP.TEST", "vip.shop.test"];
    let unknown =
        ["acme.test", "xpay.acme.test", "a.b.shop.test", "shop.test", "pay.acme.test.evil.test", "xn--a.test"];
    for name in known {
        for hello in [Hello::modern(name), Hello::tls12(name)] {
            let reply = Raw::ask(edge.address(), &hello.bytes());
            assert!(reply.is_server_hello(), "{name}: {reply:?}");
        }
    }
    for name in unknown {
        for hello in [Hello::modern(name), Hello::tls12(name)] {
            let reply = Raw::ask(edge.address(), &hello.bytes());
            assert_eq!(reply.alert(), Some(UNRECOGNIZED_NAME), "{name}: {reply:?}");
            assert!(reply.is_clean_refusal(), "{name}: {reply:?}");
        }
    }
    edge.expect_refusals("unknown_hostname", unknown.len() as f64 * 2.0);
    assert_eq!(origin.accepted(), 0);
}

/// 041: a client that names no host is refused, and so is one that names an address.
#[test]
fn t041_no_name_and_no_default_is_a_refusal() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        let client = world.client().tls(version);
        client.expect_alert(edge.address(), "127.0.0.1", Alert::UnrecognisedName);
        client.expect_alert(edge.address(), "nobody.test", Alert::UnrecognisedName);
    }
    edge.expect_refusals("no_sni", 2.0);
    edge.expect_refusals("unknown_hostname", 2.0);
}

/// 042: the default serves those who name no host or an unknown one, with its own certificate and trust.
#[test]
fn t042_the_default_serves_the_rest() {
    let world = World::new();
    let (acme, rest) = (Origin::echo(), Origin::echo());
    let settings = world.settings().host(world.host(ACME, &acme));
    let host = world.host("default.test", &rest).require(&[&world.globex]).line("default = true");
    let edge = Edge::start(settings.host(host));
    for version in Tls::BOTH {
        let bob = world.globex_client("bob").any_server().tls(version);
        for name in ["127.0.0.1", "nobody.test", "default.test"] {
            bob.expect_in(edge.address(), name);
            world.acme_client("alice").any_server().tls(version).expect_alert(edge.address(), name, Alert::UnknownCA);
        }
        world.client().tls(version).expect_in(edge.address(), ACME);
    }
    assert_eq!((acme.accepted(), rest.accepted()), (2, 6));
}

/// 043: a server name that is none (an address, an empty one, two of them, bytes that are no name) never finds a record.
#[test]
fn t043_a_malformed_name_finds_nothing() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let (_, one) = server_name(ACME.as_bytes());
    let mut two = one[2..].repeat(2);
    two.splice(0..0, u16::try_from(two.len()).expect("short").to_be_bytes());
    let long = [&[b'a'; 300][..], b".test"].concat();
    let names: [(&str, Vec<u8>); 8] = [
        ("empty name", server_name(b"").1),
        ("address", server_name(b"127.0.0.1").1),
        ("NUL", server_name(b"pay.acme.test\0.evil.test").1),
        ("not ASCII", server_name(b"pay.\xc3\xa4cme.test").1),
        ("longer than a name can be", server_name(&long).1),
        ("wildcard", server_name(b"*.shop.test").1),
        ("two names", two),
        ("truncated list", one[..one.len() - 3].to_vec()),
    ];
    for (what, body) in names {
        for hello in [Hello::modern(""), Hello::tls12("")] {
            let reply = Raw::ask(edge.address(), &hello.extension(0, body.clone()).bytes());
            assert!(!reply.is_server_hello(), "{what}: {reply:?}");
            assert!(reply.is_clean_refusal(), "{what}: {reply:?}");
        }
    }
    assert_eq!(origin.accepted(), 0);
    world.client().expect_in(edge.address(), ACME);
}

/// 044: versions below the minimum get the alert `protocol_version`.
#[test]
fn t044_old_versions_are_told_so() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    for version in [0x0300, 0x0301, 0x0302] {
        let reply = Raw::ask(edge.address(), &Hello::antique(version, ACME).bytes());
        assert_eq!(reply.alert(), Some(PROTOCOL_VERSION), "{version:#x}: {reply:?}");
        assert!(reply.is_clean_refusal(), "{version:#x}: {reply:?}");
    }
    edge.expect_refusals("no_common_version", 3.0);
}

/// 045: `min_version = "1.3"` of one hostname refuses TLS 1.2 there and nowhere else.
#[test]
fn t045_the_minimum_is_each_hostnames_own() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin).line("min_version = \"1.3\""));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin)));
    let old = world.client().tls(Tls::V1_2);
    old.expect_alert(edge.address(), ACME, Alert::ProtocolVersion);
    old.expect_in(edge.address(), GLOBEX);
    world.client().tls(Tls::V1_3).expect_in(edge.address(), ACME);
    edge.expect_refusals("no_common_version", 1.0);
}

/// 046: no cipher suite in common: `handshake_failure`, counted as no common version.
#[test]
fn t046_nothing_in_common_is_a_handshake_failure() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let mut hello = Hello::tls12(ACME);
    hello.cipher_suites = vec![0x002f];
    let reply = Raw::ask(edge.address(), &hello.bytes());
    assert_eq!(reply.alert(), Some(40), "{reply:?}");
    edge.expect_refusals("no_common_version", 1.0);
}

/// 047: what is not TLS, or not as the RFCs allow it, ends in a clean alert or close and one count.
#[test]
fn t047_malformed_hellos_end_cleanly() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let good = Hello::modern(ACME);
    let message = good.message();

    // RFC 6101 appendix E: what SSLv2 clients sent; bit 15 and a length instead of a record.
    let mut ssl2 = vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10, 0, 0, 0x39];
    ssl2.resize(48, 0x11);
    let mut trailing = good.clone();
    trailing.trailing = vec![0xff; 9];
    let mut no_compression = good.clone();
    no_compression.compressions = Vec::new();
    let mut long_header = message.clone();
    long_header[1..4].copy_from_slice(&[0xff, 0xff, 0xff]);
    let giant = good.clone().extension(0xfafa, vec![0; 60_000]).extension(21, vec![0; 5_000]);
    let mut other_message = message.clone();
    other_message[0] = 2;

    let cases: [(&str, Vec<u8>); 13] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n".to_vec()),
        ("zeros", vec![0; 100]),
        ("random", (0..100u8).map(|n| n.wrapping_mul(167) ^ 0x9d).collect()),
        ("SSLv2", ssl2),
        ("a hello of 65 KiB", giant.bytes()),
        ("a hello that announces 16 MiB", [record(22, 0x0301, &long_header), vec![0; 70_000]].concat()),
        ("a record of more than 2^14 bytes", record(22, 0x0301, &vec![1; 0x4801])),
        ("trailing bytes inside the message", trailing.bytes()),
        ("no compression method", no_compression.bytes()),
        ("a ServerHello", record(22, 0x0301, &other_message)),
        ("application data first", record(23, 0x0303, b"hello")),
        ("an alert first", record(21, 0x0301, &[2, 80])),
        ("an empty record first", [record(22, 0x0301, &[]), good.bytes()].concat()),
    ];
    for (index, (what, bytes)) in cases.iter().enumerate() {
        let begun = Instant::now();
        let reply = Raw::ask(edge.address(), bytes);
        assert!(reply.is_clean_refusal(), "{what}: {reply:?}");
        assert!(begun.elapsed() < SOON, "{what}: took {:?}", begun.elapsed());
        let sum = || edge.refusals("protocol_error") + edge.metric("hostward_handshake_aborts_total");
        wait::for_value(&format!("{what}: counted"), SOON, &(index as f64 + 1.0), sum);
    }
    assert_eq!(edge.metric("hostward_timeouts_total{timeout=\"handshake\"}") as u64, 0, "none is left to time out");
    assert_eq!(origin.accepted(), 0);
    world.client().expect_in(edge.address(), ACME);
}

/// 048: bytes after a good hello that are no answer to the server's: the handshake fails, cleanly.
#[test]
fn t048_garbage_after_the_hello_fails_the_handshake() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    for hello in [Hello::modern(ACME), Hello::tls12(ACME)] {
        for garbage in [vec![0xee; 64], record(23, 0x0303, &[7; 64]), record(22, 0x0303, &[0xff; 64]), hello.bytes()] {
            let before = edge.refusals("protocol_error");
            let mut raw = Raw::connect(edge.address());
            raw.send(&[hello.bytes(), garbage].concat()).expect("sent");
            let ended = wait::within(SOON, || raw.reply(Duration::from_millis(50)).end.is_some());
            assert!(ended, "the connection stays open");
            edge.expect_refusals("protocol_error", before + 1.0);
        }
    }
}

/// 049: a hello in many small records is still a hello (RFC 8446 section 5.1), and the handshake completes.
#[test]
fn t049_fragmented_hellos_complete() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    for version in Tls::BOTH {
        for fragment in [1000, 100, 16] {
            let mut session = world.client().tls(version).begin(edge.address(), ACME).expect("a connection");
            let flight = session.take_outgoing();
            let hello = crate::harness::clienthello::fragment_message(0x0301, &flight[5..], fragment);
            session.send_raw(&hello).expect("sent");
            session.shake().unwrap_or_else(|end| panic!("{version:?}, {fragment} bytes a record: {end:?}"));
            session.ping().expect("the origin echoes");
        }
        // A byte a record is nobody's habit: accepted or refused, but neither a crash nor a hang.
        let reply = Raw::ask(edge.address(), &Hello::modern(ACME).records(1));
        assert!(reply.is_server_hello() || reply.is_clean_refusal(), "{reply:?}");
    }
}

/// 050: a client that sends byte by byte completes the handshake.
#[test]
fn t050_byte_by_byte_completes() {
    let world = World::new();
    let origin = Origin::echo();
    let mut settings = world.settings();
    settings = settings.host(world.host(ACME, &origin).require(&[&world.acme]));
    let edge = Edge::start(settings);
    for version in Tls::BOTH {
        let mut session = world.acme_client("alice").tls(version).begin(edge.address(), ACME).expect("a connection");
        while session.is_handshaking() {
            for byte in session.take_outgoing() {
                session.send_raw(&[byte]).expect("sent");
            }
            session.receive_flight().unwrap_or_else(|end| panic!("{version:?}: {end:?}"));
        }
        for byte in session.take_outgoing() {
            session.send_raw(&[byte]).expect("sent");
        }
        session.ping().expect("the origin echoes");
    }
}

/// 051: a client that stalls before, within or after its hello is closed when its time is up, and counted.
#[test]
fn t051_a_stalled_client_runs_out_of_time() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let whole = Hello::modern(ACME).bytes();
    for (index, bytes) in [&[][..], &whole[..3], &whole[..whole.len() - 1], &whole].into_iter().enumerate() {
        let mut raw = Raw::connect(edge.address());
        let begun = Instant::now();
        raw.send(bytes).expect("sent");
        let mut first: Option<Reply> = None;
        wait::until("the edge closes", SOON, || {
            let reply = raw.reply(SOON);
            let ended = reply.end.is_some();
            first.get_or_insert(reply);
            ended
        });
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(900), "after {} bytes closed within {took:?}", bytes.len());
        assert!(took < Duration::from_secs(4), "after {} bytes closed within {took:?}", bytes.len());
        edge.expect_refusals("handshake_timeout", index as f64 + 1.0);
    }
}

/// 052: a client that drips a byte now and then gains no time by it.
#[test]
fn t052_dripping_does_not_stretch_the_time() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let mut raw = Raw::connect(edge.address());
    let begun = Instant::now();
    let mut bytes = Hello::modern(ACME).bytes().into_iter();
    wait::until("the edge closes", SOON, || {
        let sent = bytes.next().is_none_or(|byte| raw.send(&[byte]).is_ok());
        !sent || raw.reply(Duration::from_millis(20)).end.is_some()
    });
    assert!(begun.elapsed() < Duration::from_secs(4), "closed after {:?}", begun.elapsed());
    edge.expect_refusals("handshake_timeout", 1.0);
}

/// 053: a client that goes away in the middle of its handshake is an abort, not a refusal.
#[test]
fn t053_going_away_is_an_abort() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let mut raw = Raw::connect(edge.address());
    raw.send(&Hello::modern(ACME).bytes()[..100]).expect("sent");
    drop(raw);
    edge.expect_metric("hostward_handshake_aborts_total", 1.0);
    assert_eq!(edge.metric("hostward_handshakes_total{result=\"refused\"}") as u64, 0);
}

/// 054: ALPN is each hostname's own; without a common protocol the alert says so (RFC 7301 section 3.2).
#[test]
fn t054_alpn_is_each_hostnames_own() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin).line("alpn = [\"acme/1\", \"http/1.1\"]"));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin)));
    for version in Tls::BOTH {
        let client = world.client().tls(version);
        let both = client.clone().alpn(&["http/1.1", "acme/1"]);
        assert_eq!(both.expect_in(edge.address(), ACME).alpn(), Some(&b"acme/1"[..]), "the server's preference");
        assert_eq!(client.clone().alpn(&["http/1.1"]).expect_in(edge.address(), ACME).alpn(), Some(&b"http/1.1"[..]));
        assert_eq!(client.expect_in(edge.address(), ACME).alpn(), None);
        assert_eq!(both.expect_in(edge.address(), GLOBEX).alpn(), None, "tcp mode offers none by default");
        let other = client.clone().alpn(&["other"]);
        let end = other.enter(edge.address(), ACME).err();
        assert_eq!(end, Some(End::Alert(Alert::NoApplicationProtocol)), "{version:?}");
    }
}

/// 055: of several server certificates a client gets the one whose signature algorithm it knows.
#[test]
fn t055_the_certificate_follows_the_client() {
    let world = World::new();
    let origin = Origin::echo();
    let mut host = world.host(ACME, &origin);
    let rsa = world.servers.server(&[ACME]).rsa().issue();
    let ecdsa_der = host.certificates[0].chain[0].to_vec();
    host.certificates.push(rsa.clone());
    let edge = Edge::start(world.settings().host(host));
    // TLS 1.2 shows the certificate in the clear: look for its bytes.
    for (schemes, suites, expected) in [
        (vec![0, 2, 4, 3], vec![0xc02b, 0xc02f], &ecdsa_der),
        (vec![0, 4, 4, 1, 8, 4], vec![0xc02f, 0xc02b], &rsa.chain[0].to_vec()),
    ] {
        let mut hello = Hello::tls12(ACME).extension(13, schemes);
        hello.cipher_suites = suites;
        let mut raw = Raw::connect(edge.address());
        raw.send(&hello.bytes()).expect("sent");
        let mut seen = Vec::new();
        wait::until("the server's certificate is the right one", SOON, || {
            seen.extend(raw.reply(Duration::from_millis(100)).bytes);
            seen.windows(expected.len()).any(|window| window == &expected[..])
        });
    }
    let session = world.client().expect_in(edge.address(), ACME);
    assert_eq!(session.server_certificate().expect("a certificate")[..], ecdsa_der[..]);
}
