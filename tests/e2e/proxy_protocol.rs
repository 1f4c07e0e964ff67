//! 450-469: PROXY headers from balancers in front: who is believed, what follows from it, and what is refused. And what
//! origins are told, read by HAProxy and nginx.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ppp::v2::{Builder, Command, Protocol, Version};
use serde_json::Value;

use crate::harness::edge::Reload;
use crate::harness::haproxy::Haproxy;
use crate::harness::http::{Http, HttpOrigin};
use crate::harness::nginx::Nginx;
use crate::harness::origin::Manner;
use crate::harness::process::{run, tool};
use crate::harness::session::connect_from;
use crate::harness::{ACME, Client, Edge, End, GLOBEX, Origin, SOON, Session, Settings, World, wait};

/// Where the balancer of most cases connects from, and the only peer that is listed there.
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const LISTED: &str = "proxy_protocol_from = [\"127.0.0.2\"]";

const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 443\r\n";

/// The addresses that [`LINE`] names.
fn ends() -> (SocketAddr, SocketAddr) {
    ("203.0.113.7:51000".parse().expect("an address"), "198.51.100.1:443".parse().expect("an address"))
}

/// A header of version 2, by another implementation of the specification.
fn binary(source: &str, destination: &str, tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let addresses: (SocketAddr, SocketAddr) = (source.parse().expect("source"), destination.parse().expect("its end"));
    let mut builder = Builder::with_addresses(Version::Two | Command::Proxy, Protocol::Stream, addresses);
    for (kind, value) in tlvs {
        builder = builder.write_tlv(*kind, value).expect("a TLV");
    }
    builder.build().expect("a header")
}

/// The same addresses as [`LINE`], with these TLVs.
fn binary_with(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    binary("203.0.113.7:51000", "198.51.100.1:443", tlvs)
}

/// Signature, command, family, length and block as they are given.
fn raw(command: u8, family: u8, length: u16, block: &[u8]) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    bytes.extend([command, family]);
    bytes.extend(length.to_be_bytes());
    bytes.extend(block);
    bytes
}

fn local() -> Vec<u8> {
    raw(0x20, 0, 0, &[])
}

fn from_balancer(edge: &Edge) -> TcpStream {
    connect_from(Some(BALANCER), edge.address()).expect("a connection")
}

/// A connection of the balancer's that has said this, and then shakes hands for its client.
fn announce(client: &Client, edge: &Edge, name: &str, header: &[u8]) -> Result<Session, End> {
    let mut socket = from_balancer(edge);
    socket.write_all(header)?;
    let mut session = client.begin_on(socket, name);
    session.shake()?;
    Ok(session)
}

/// Sends bytes over a connection, and expects that it ends without a byte in return: no alert, no answer.
#[track_caller]
fn expect_silence(mut socket: TcpStream, bytes: &[u8]) {
    // It may have ended before all was sent.
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}: {bytes:02x?}"),
        _ => assert_eq!(answer, b"", "after {bytes:02x?}"),
    }
}

fn headers(result: &str) -> String {
    format!("hostward_proxy_headers_total{{result=\"{result}\"}}")
}

/// The refusals logged so far.
fn refused(edge: &Edge) -> Vec<Value> {
    edge.events.named(&["refused"])
}

/// Waits until this many refusals are logged, and returns the last.
#[track_caller]
fn last_refused(edge: &Edge, count: usize) -> Value {
    wait::until("the refusal is logged", SOON, || refused(edge).len() >= count);
    refused(edge).swap_remove(count - 1)
}

fn http_settings(world: &World, origin: &HttpOrigin) -> Settings {
    world.settings().server(LISTED).host(world.http_host(ACME, origin))
}

/// 450: whom the header names is the client everywhere: for rules, in headers, in both logs, and to the origin.
#[test]
fn t450_the_client_is_whom_the_header_names() {
    let world = World::new();
    let (web, bytes) = (HttpOrigin::mirror(), Origin::start(Manner::ProxyEcho));
    let rule = "source = [\"203.0.113.0/24\", \"2001:db8::/32\"]\nallow = {}";
    let settings = world
        .settings()
        .server(LISTED)
        .host(world.http_host(ACME, &web).rule(rule))
        .host(world.host(GLOBEX, &bytes).with_proxy_header().rule(rule))
        .log("access = \"access.log\"");
    let edge = Edge::start(settings);
    let client = world.client();
    let with_id = binary_with(&[(0x05, b"lb-4711")]);
    let six = binary("[2001:db8::7]:51000", "[2001:db8::1]:443", &[]);
    for (header, address, node, id) in [
        (LINE, "203.0.113.7", "203.0.113.7", None),
        (&with_id, "203.0.113.7", "203.0.113.7", Some("lb-4711")),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 51000 443\r\n", "2001:db8::7", "\"[2001:db8::7]\"", None),
        (&six, "2001:db8::7", "\"[2001:db8::7]\"", None),
    ] {
        let log = edge.file().with_file_name("access.log");
        let lines = || std::fs::read_to_string(&log).unwrap_or_default();
        let before = lines().matches('\n').count();
        let mut http = Http::new(announce(&client, &edge, ACME, header).expect("let in"));
        let answer = http.get(ACME, "/").body.text();
        assert!(answer.contains(&format!("X-Forwarded-For: {address}\n")), "{answer}");
        assert!(answer.contains(&format!("Forwarded: for={node};proto=https;host={ACME}\n")), "{answer}");
        drop(http);
        let mut session = announce(&client, &edge, GLOBEX, header).expect("let in");
        session.ping().expect("an echo");
        let told = bytes.last_header();
        let (source, destination) = told.addresses.expect("addresses");
        assert_eq!((source.ip().to_string().as_str(), source.port(), destination.port()), (address, 51000, 443));
        assert_eq!(destination.is_ipv6(), source.is_ipv6());
        assert_eq!(told.unique_id().as_deref(), id);
        session.finish();
        wait::until("both have their lines", SOON, || lines().matches('\n').count() == before + 2);
        for line in lines().lines().skip(before) {
            let line: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!((&line["client_address"], &line["client_port"]), (&address.into(), &51000.into()), "{line}");
            assert!(line["via"].as_str().is_some_and(|via| via.starts_with("127.0.0.2:")), "{line}");
            assert_eq!(line["unique_id"].as_str(), id, "{line}");
        }
    }
    // The rules look at nobody else: not at the balancer, from which all come.
    let denied = announce(&client, &edge, ACME, b"PROXY TCP4 198.51.100.9 198.51.100.1 4711 443\r\n");
    let end = denied.and_then(|mut session| session.ping()).expect_err("denied");
    assert!(end.is_denial(), "{end:?}");
    let line = last_refused(&edge, 1);
    assert_eq!((&line["reason"], &line["peer"]), (&"rule_denied".into(), &"198.51.100.9:4711".into()), "{line}");
    assert!(line["via"].as_str().is_some_and(|via| via.starts_with("127.0.0.2:")), "{line}");
    assert_eq!((edge.metric(&headers("v1")), edge.metric(&headers("v2"))), (5.0, 4.0));
}

/// 451: a header comes in whatever pieces, byte by byte, or in one with the hello behind it.
#[test]
fn t451_a_header_comes_in_pieces() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().server(LISTED).host(world.host(ACME, &origin)));
    let client = world.client();
    let version_2 = binary_with(&[(0x01, b"h2"), (0x04, &[0; 9])]);
    for header in [LINE, &version_2] {
        for cut in 1..=header.len() {
            let mut socket = from_balancer(&edge);
            socket.write_all(&header[..cut]).expect("sending");
            socket.write_all(&header[cut..]).expect("sending");
            let mut session = client.begin_on(socket, ACME);
            session.shake().and_then(|()| session.ping()).unwrap_or_else(|end| panic!("cut at {cut}: {end:?}"));
        }
        let mut socket = from_balancer(&edge);
        for byte in header {
            socket.write_all(&[*byte]).expect("sending");
        }
        let mut session = client.begin_on(socket, ACME);
        let hello = session.take_outgoing();
        for byte in &hello {
            session.send_raw(&[*byte]).expect("sending");
        }
        session.shake().and_then(|()| session.ping()).expect("byte by byte");

        let mut session = client.begin_on(from_balancer(&edge), ACME);
        let hello = session.take_outgoing();
        session.send_raw(&[header, &hello].concat()).expect("sending");
        session.shake().and_then(|()| session.ping()).expect("all at once");
    }
    assert_eq!(edge.metric(&headers("v1")) as usize, LINE.len() + 2);
    assert_eq!(edge.metric(&headers("v2")) as usize, version_2.len() + 2);
}

/// 452: a listed peer that sends no header, or a malformed one, is let go without a word, and the log says what was wrong.
#[test]
fn t452_a_malformed_header_ends_the_connection() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().server(LISTED).host(world.host(ACME, &origin)));
    let hello = world.client().begin_on(from_balancer(&edge), ACME).take_outgoing();
    let long_line = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
    let addresses = [127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2];
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (hello, "missing", "requires one"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "missing", "requires one"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 51000\r\n".to_vec(), "malformed", "of another form"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 0443\r\n".to_vec(), "malformed", "of another form"),
        (b"PROXY TCP4 203.0.113.7 198.51.100.1 51000 443\n".to_vec(), "malformed", "CR and LF"),
        (long_line, "malformed", "more than 107"),
        (raw(0x31, 0x11, 12, &addresses), "malformed", "version"),
        (raw(0x22, 0x11, 12, &addresses), "malformed", "command"),
        (raw(0x21, 0x12, 12, &addresses), "malformed", "datagram"),
        (raw(0x21, 0x10, 12, &addresses), "malformed", "do not exist"),
        (raw(0x21, 0x51, 12, &addresses), "malformed", "do not exist"),
        (raw(0x21, 0x21, 12, &addresses), "malformed", "too small"),
        (raw(0x21, 0x31, 12, &addresses), "malformed", "too small"),
        (raw(0x21, 0x11, 0xffff, &[0; 0xffff]), "malformed", "4096"),
        (raw(0x20, 0x00, 0xffff, &[]), "malformed", "4096"),
        (raw(0x21, 0x11, 14, &[addresses.as_slice(), &[1, 0]].concat()), "malformed", "cut off"),
        (raw(0x21, 0x11, 16, &[addresses.as_slice(), &[1, 0, 9, 0]].concat()), "malformed", "longer than the header"),
        (binary_with(&[(0x03, &[0; 4])]), "malformed", "wrong checksum"),
        (binary_with(&[(0x05, &[b'x'; 129])]), "malformed", "unique id"),
    ];
    for (index, (bytes, result, detail)) in cases.iter().enumerate() {
        let before = edge.metric(&headers(result));
        expect_silence(from_balancer(&edge), bytes);
        edge.expect_metric(&headers(result), before + 1.0);
        let line = last_refused(&edge, index + 1);
        assert_eq!((&line["reason"], &line["alert"]), (&"protocol_error".into(), &Value::Null), "{line}");
        assert!(line["detail"].as_str().is_some_and(|text| text.contains(detail)), "{line}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.2:")), "{line}");
    }
    edge.expect_refusals("protocol_error", cases.len() as f64);
    assert_eq!(origin.accepted(), 0);
    announce(&world.client(), &edge, ACME, LINE).and_then(|mut session| session.ping()).expect("others are served");
}

/// 453: who is not listed is whoever it is; a header from there, and a second one from a balancer, are no TLS.
#[test]
fn t453_a_header_from_others_is_refused() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().server(LISTED).host(world.host(ACME, &origin)));
    world.client().expect_in(edge.address(), ACME);
    for (index, header) in [LINE.to_vec(), binary_with(&[]), local()].iter().enumerate() {
        expect_silence(connect_from(None, edge.address()).expect("a connection"), header);
        let line = last_refused(&edge, index + 1);
        assert!(line["detail"].as_str().is_some_and(|text| text.contains("does not list")), "{line}");
        assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")), "{line}");
    }
    for (index, (first, second)) in
        [(LINE.to_vec(), binary_with(&[])), (binary_with(&[]), LINE.to_vec()), (local(), LINE.to_vec())]
            .iter()
            .enumerate()
    {
        expect_silence(from_balancer(&edge), &[&first[..], second].concat());
        let line = last_refused(&edge, index + 4);
        assert_eq!(line["detail"], "a second PROXY header", "{line}");
    }
    assert_eq!(edge.metric(&headers("misplaced")), 6.0);
    edge.expect_refusals("protocol_error", 6.0);
    assert_eq!(origin.accepted(), 1);
}

/// 454: where no client is named the socket's address counts; and a balancer that only looks whether we live is no news.
#[test]
fn t454_health_checks_are_silent() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(http_settings(&world, &origin));
    let unix = raw(0x21, 0x31, 216, &[b'/'; 216]);
    for header in [local(), raw(0x21, 0, 0, &[]), unix, b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut http = Http::new(announce(&world.client(), &edge, ACME, &header).expect("let in"));
        let answer = http.get(ACME, "/").body.text();
        assert!(answer.contains("X-Forwarded-For: 127.0.0.2\n"), "{answer}");
    }
    for _ in 0..10 {
        for header in [local(), raw(0x20, 0x11, 12, &[1; 12]), b"PROXY UNKNOWN\r\n".to_vec()] {
            let mut socket = from_balancer(&edge);
            socket.write_all(&header).expect("sending");
            socket.shutdown(std::net::Shutdown::Write).expect("the end");
            assert_eq!(socket.read(&mut [0]).expect("it ends in order"), 0);
        }
        // Nor is one that connects and goes.
        drop(from_balancer(&edge));
    }
    edge.expect_metric(&headers("local"), 21.0);
    edge.expect_metric(&headers("unknown"), 13.0);
    edge.expect_metric("hostward_connections_open", 0.0);
    assert_eq!(edge.metric("hostward_handshake_aborts_total"), 10.0, "those of which nothing is known");
    assert_eq!(refused(&edge).len(), 0);
}

/// 455: a balancer that stalls in the middle of a header holds its connection for the time of a handshake, and nobody else.
#[test]
fn t455_a_stalled_header_ends_in_time() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().server(LISTED).host(world.host(ACME, &origin)).limit("handshake_timeout = \"1s\"");
    let edge = Edge::start(settings);
    let begun = Instant::now();
    let stalled: Vec<TcpStream> =
        [&b""[..], b"P", &LINE[..20], &binary_with(&[])[..20], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x0f\xf0"]
            .iter()
            .map(|part| {
                let mut socket = from_balancer(&edge);
                socket.write_all(part).expect("sending");
                socket
            })
            .collect();
    let mut slow = from_balancer(&edge);
    let sender = std::thread::spawn(move || {
        // A length that is allowed, and a byte of it now and then: every one is progress, and the end is the same.
        let _ = slow.write_all(&raw(0x20, 0, 4000, &[]));
        while begun.elapsed() < SOON && slow.write_all(&[0]).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
        begun.elapsed()
    });
    announce(&world.client(), &edge, ACME, LINE).and_then(|mut session| session.ping()).expect("others are served");
    for socket in stalled {
        expect_silence(socket, b"");
    }
    assert!(sender.join().expect("the sender ends") < SOON / 2);
    edge.expect_refusals("handshake_timeout", 6.0);
    edge.expect_metric("hostward_timeouts_total{timeout=\"handshake\"}", 6.0);
}

/// 456: what a header says beside the addresses chooses neither record nor identity: the ClientHello and the handshake do.
#[test]
fn t456_tlvs_choose_nothing() {
    let world = World::new();
    let (acme, globex) = (Origin::start(Manner::ProxyEcho), Origin::start(Manner::ProxyEcho));
    let settings = world
        .settings()
        .server(LISTED)
        .host(world.host(ACME, &acme).request(&[&world.acme]).with_proxy_header())
        .host(world.host(GLOBEX, &globex).require(&[&world.globex]).with_proxy_header());
    let edge = Edge::start(settings);
    // TLS 1.3, a certificate on this connection and in the session, verified, of the common name `root`.
    let ssl = [&[7, 0, 0, 0, 0][..], &[0x21, 0, 7], b"TLSv1.3", &[0x22, 0, 4], b"root"].concat();
    let header = binary_with(&[(0x01, b"h2"), (0x02, GLOBEX.as_bytes()), (0x20, &ssl)]);
    let mut session = announce(&world.client(), &edge, ACME, &header).expect("let in");
    session.ping().expect("an echo");
    assert_eq!((acme.accepted(), globex.accepted()), (1, 0));
    let told = acme.last_header();
    assert_eq!((told.authority().as_deref(), told.alpn()), (Some(ACME), None));
    let ssl = told.ssl().expect("what we know of TLS");
    assert!(!ssl.certificate_on_connection && !ssl.certificate_in_session && ssl.verify != 0, "{ssl:?}");
    assert_eq!(ssl.common_name, None);
    let refused = announce(&world.client(), &edge, GLOBEX, &header).and_then(|mut session| session.ping());
    assert_eq!(refused, Err(End::Alert(rustls::AlertDescription::CertificateRequired)));
    assert_eq!(globex.accepted(), 0);
}

/// 457: whose X-Forwarded-* are kept is decided by the client that the header names, and never by a balancer that does not
/// say whose they are.
#[test]
fn t457_trust_is_in_the_client_that_is_named() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let trusted = "trusted_proxies = [\"203.0.113.7\", \"127.0.0.2\"]";
    let edge = Edge::start(http_settings(&world, &origin).server(trusted));
    for (header, expected) in [
        (LINE.to_vec(), "192.0.2.99, 203.0.113.7"),
        (binary("203.0.113.8:1", "198.51.100.1:2", &[]), "203.0.113.8"),
        (local(), "192.0.2.99, 127.0.0.2"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.2"),
        (raw(0x21, 0, 0, &[]), "127.0.0.2"),
    ] {
        let mut http = Http::new(announce(&world.client(), &edge, ACME, &header).expect("let in"));
        let answer = http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\nX-Forwarded-For: 192.0.2.99\r\n\r\n"));
        let answer = answer.body.text();
        assert!(answer.contains(&format!("X-Forwarded-For: {expected}\n")), "{expected}: {answer}");
    }
}

/// 458: the listener for plain HTTP does the same.
#[test]
fn t458_redirects_come_behind_a_header_too() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let settings =
        http_settings(&world, &origin).server("redirect = [\"127.0.0.1:0\"]").limit("header_timeout = \"1s\"");
    let edge = Edge::start(settings);
    let connect = |source| connect_from(source, edge.redirect()).expect("a connection");
    let request = format!("GET /a HTTP/1.1\r\nHost: {ACME}\r\nConnection: close\r\n\r\n");
    let ask = |mut socket: TcpStream, parts: &[&[u8]]| {
        for part in parts {
            socket.write_all(part).expect("sending");
        }
        let mut answer = String::new();
        let _ = socket.read_to_string(&mut answer);
        answer
    };
    for header in [LINE.to_vec(), binary_with(&[]), local()] {
        let whole = [&header[..], request.as_bytes()].concat();
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        for parts in [&[&whole[..]][..], &[&header, request.as_bytes()], &bytes] {
            let answer = ask(connect(Some(BALANCER)), parts);
            assert!(answer.starts_with("HTTP/1.1 308 ") && answer.contains(&format!("https://{ACME}")), "{answer}");
        }
        // From anybody else it is a malformed request.
        let answer = ask(connect(None), &[&whole]);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert!(ask(connect(None), &[request.as_bytes()]).starts_with("HTTP/1.1 308 "));
    expect_silence(connect(Some(BALANCER)), request.as_bytes());
    let line = last_refused(&edge, 1);
    assert!(line["detail"].as_str().is_some_and(|text| text.contains("requires one")), "{line}");
    expect_silence(connect(Some(BALANCER)), b"PROXY TCP4 1 2 3 4\r\n");
    let mut stalled = connect(Some(BALANCER));
    stalled.write_all(&LINE[..9]).expect("sending");
    expect_silence(stalled, b"");
    edge.expect_metric("hostward_redirects_total{result=\"redirected\"}", 10.0);
    edge.expect_metric("hostward_redirects_total{result=\"malformed\"}", 5.0);
    edge.expect_metric("hostward_redirects_total{result=\"timed_out\"}", 1.0);
    assert_eq!((edge.metric(&headers("missing")), edge.metric(&headers("malformed"))), (1.0, 1.0));
}

/// 459: HAProxy passes TLS on: its header, in each of its forms, names the client; its checks are no news.
#[test]
fn t459_haproxy_in_front_passes_bytes_on() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let settings =
        world.settings().server("proxy_protocol_from = [\"127.0.0.0/8\"]").host(world.http_host(ACME, &origin));
    let edge = Edge::start(settings.log("access = \"access.log\""));
    let all = "proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id";
    for (form, id) in [("send-proxy", false), ("send-proxy-v2", false), (&format!("send-proxy-v2 {all}"), true)] {
        let config = format!(
            "listen in\n mode tcp\n bind LISTENER\n unique-id-format %{{+X}}o\\ %ci:%cp\n \
             server edge {} {form} check check-send-proxy inter 50ms source 127.0.0.3\n",
            edge.address()
        );
        let Some(haproxy) = Haproxy::start(&config, &[]) else { return };
        let client = world.client().sourced_at("127.0.0.7".parse().expect("an address"));
        let mut http = Http::new(client.open(haproxy.address(), ACME).expect("let in"));
        let answer = http.get(ACME, "/").body.text();
        assert!(answer.contains("X-Forwarded-For: 127.0.0.7\n"), "{form}: {answer}");
        drop(http);
        // A header and a reset, which may be here before the connection is accepted.
        let before = edge.metric("hostward_connections_total");
        wait::until("HAProxy looks whether we live", SOON, || {
            edge.metric("hostward_connections_total") >= before + 10.0
        });
        let log = edge.file().with_file_name("access.log");
        wait::until("the request has its line", SOON, || {
            std::fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
        });
        let text = std::fs::read_to_string(&log).expect("the log");
        let line: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(line["unique_id"].is_string(), id, "{line}");
        std::fs::write(&log, "").expect("a file");
    }
    assert_eq!(refused(&edge).len(), 0, "{:?}", refused(&edge));
    assert_eq!(edge.metric("hostward_handshake_failures_total"), 0.0);
}

/// 460: HAProxy terminates TLS itself, verifies a client and tells its name; to us that client has shown no certificate.
#[test]
fn t460_what_haproxy_verified_is_not_our_verdict() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world
        .http_host(ACME, &origin)
        .request(&[&world.acme])
        .auth_line("headers = [\"client-cert\", \"x-client-cert\"]");
    let edge = Edge::start(world.settings().server("proxy_protocol_from = [\"127.0.0.0/8\"]").host(host));
    let config = format!(
        "listen in\n mode tcp\n bind LISTENER ssl crt HOME/server.pem ca-file HOME/acme.pem verify required\n \
         server edge {} ssl verify none sni str({ACME}) send-proxy-v2-ssl-cn source 127.0.0.3\n",
        edge.address()
    );
    let server = world.servers.server(&[ACME]).issue();
    let pem = format!("{}{}", server.chain_pem, server.key_pem);
    let Some(haproxy) = Haproxy::start(&config, &[("server.pem", &pem), ("acme.pem", world.acme.pem())]) else {
        return;
    };
    let client = world.acme_client("alice").sourced_at("127.0.0.7".parse().expect("an address"));
    let mut http = Http::new(client.open(haproxy.address(), ACME).expect("HAProxy lets it in"));
    let answer = http.get(ACME, "/").body.text();
    assert!(answer.contains("X-Forwarded-For: 127.0.0.7\n"), "{answer}");
    assert!(answer.contains("X-Client-Cert-Verify: NONE\n") && !answer.contains("alice"), "{answer}");
    assert_eq!(edge.metric(&headers("v2")), 1.0);
}

/// 461: HAProxy as an origin reads both versions.
#[test]
fn t461_haproxy_behind_reads_both_versions() {
    let world = World::new();
    let config = "frontend in\n mode http\n bind LISTENER accept-proxy\n http-request return status 200 content-type \
                  text/plain lf-string \"%[src]:%[src_port] %[dst]:%[dst_port] [%[fc_pp_authority]] [%[fc_pp_unique_id]]\"\n";
    let Some(haproxy) = Haproxy::start(config, &[]) else { return };
    let url = format!("tcp://{}", haproxy.address());
    let host = |name, version| {
        world.host_at(name, &[&url]).request(&[&world.acme]).origin_line(&format!("proxy_protocol = \"{version}\""))
    };
    let edge = Edge::start(world.settings().server(LISTED).host(host(ACME, "v1")).host(host(GLOBEX, "v2")));
    let client = world.acme_client("alice");
    let id = binary_with(&[(0x05, b"lb-4711")]);
    let (source, destination) = ends();
    for (name, rest) in [(ACME, "[] []".to_owned()), (GLOBEX, format!("[{GLOBEX}] [lb-4711]"))] {
        let request = format!("GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        let ask = |session: Session| Http::new(session).ask(&request).body.text();
        let session = announce(&client, &edge, name, &id).expect("let in");
        assert_eq!(ask(session), format!("{source} {destination} {rest}"));
        let session = client.open(edge.address(), name).expect("let in");
        let own = session.socket().local_addr().expect("an address");
        assert!(ask(session).starts_with(&format!("{own} {} ", edge.address())));
    }
}

/// 462: nginx as an origin reads the header: version 1 always, version 2 from 1.23.2 on, which has room for its TLVs.
#[test]
fn t462_nginx_behind_reads_the_header() {
    let world = World::new();
    let listen = "listen unix:HOME/proxy.sock proxy_protocol; \
                  location = /who { return 200 \"$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_port\"; }";
    let Some(nginx) = Nginx::start_with("", listen) else { return };
    let url = nginx.url().replace("http.sock", "proxy.sock");
    let host = |name, version| world.host_at(name, &[&url]).origin_line(&format!("proxy_protocol = \"{version}\""));
    let edge = Edge::start(world.settings().server(LISTED).host(host(ACME, "v1")).host(host(GLOBEX, "v2")));
    let names = if nginx.version() < (1, 23, 2) { &[ACME][..] } else { &[ACME, GLOBEX] };
    for name in names {
        let session = announce(&world.client(), &edge, name, LINE).expect("let in");
        let answer = Http::new(session).get(name, "/who");
        assert_eq!(answer.body.text(), "203.0.113.7:51000 443", "{name}");
    }
}

/// 463: who must send a header is fixed for the life of the process.
#[test]
fn t463_a_reload_cannot_change_who_is_believed() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().server(LISTED).host(world.host(ACME, &origin)));
    let changed = edge.try_reconfigure(|settings| settings.server = vec!["proxy_protocol_from = []".into()]);
    let Reload::Failed(event) = changed else { panic!("it was changed") };
    assert!(event.to_string().contains("server.proxy_protocol_from changed"), "{event}");
    announce(&world.client(), &edge, ACME, LINE).and_then(|mut session| session.ping()).expect("as before");
}

/// 464: HTTP/2 behind HAProxy: every stream is of the client that is named.
#[test]
fn t464_http2_comes_behind_a_header_too() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let settings = world.settings().server("proxy_protocol_from = [\"127.0.0.0/8\"]");
    let edge = Edge::start(settings.host(world.http_host(ACME, &origin)));
    let server = format!("server edge {} send-proxy-v2 source 127.0.0.3", edge.address());
    let Some(haproxy) = Haproxy::start(&format!("listen in\n mode tcp\n bind LISTENER\n {server}\n"), &[]) else {
        return;
    };
    let authority = edge.file().with_file_name("servers.pem");
    std::fs::write(&authority, world.servers.pem()).expect("a file");
    let port = haproxy.address().port();
    let mut command = std::process::Command::new(curl);
    command.args(["-sS", "--http2", "--interface", "127.0.0.7", "-w", "HTTP/%{http_version}\n", "--cacert"]);
    command.arg(&authority).arg("--resolve").arg(format!("{ACME}:{port}:127.0.0.1"));
    command.args([format!("https://{ACME}:{port}/one"), format!("https://{ACME}:{port}/two")]);
    let output = run(&mut command, SOON).output();
    assert_eq!(output.matches("X-Forwarded-For: 127.0.0.7\n").count(), 2, "{output}");
    assert_eq!(output.matches("HTTP/2\n").count(), 2, "{output}");
    assert_eq!(edge.metric(&headers("v2")), 1.0);
}

/// 465: hashing by the client's address goes by the client that is named, and so clients of one balancer are spread.
#[test]
fn t465_hashing_goes_by_the_client_that_is_named() {
    let world = World::new();
    let origins = ["one", "two", "three"].map(|name| Origin::start(Manner::Name(name)));
    let urls = origins.each_ref().map(Origin::url);
    let host = world.host_at(ACME, &urls).origin_line("balance = { hash = \"client_address\" }");
    let edge = Edge::start(world.settings().server(LISTED).host(host));
    let who = |number: u8| {
        let header = format!("PROXY TCP4 203.0.113.{number} 198.51.100.1 4711 443\r\n");
        announce(&world.client(), &edge, ACME, header.as_bytes()).expect("let in").read_text().0
    };
    for number in 0..60 {
        assert_eq!(who(number), who(number), "203.0.113.{number} is always led to the same");
    }
    for origin in &origins {
        assert!(origin.accepted() > 0, "all came to the same: {:?}", origins.each_ref().map(Origin::accepted));
    }
}

/// 466: a hand-over changes who must send a header, and no connection is lost.
#[test]
fn t466_a_hand_over_changes_who_is_believed() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let client = world.client();
    let plain = client.clone().sourced_at(BALANCER);
    let mut before = plain.expect_in(edge.address(), ACME);
    edge.rewrite(|settings| settings.server.push(LISTED.into()));
    edge.hand_over();
    before.ping().expect("it goes on");
    wait::until("the new process alone accepts", SOON, || plain.enter(edge.address(), ACME).is_err());
    announce(&client, &edge, ACME, LINE).and_then(|mut session| session.ping()).expect("with a header");
    client.expect_in(edge.address(), ACME);
}
