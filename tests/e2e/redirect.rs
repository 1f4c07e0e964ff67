//! 270-279: plain HTTP is redirected to hostnames of ours, and nothing else comes of it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::edge::Reload;
use crate::harness::process::{run, tool};
use crate::harness::{ACME, Edge, Origin, SOON, World, wait};

const LISTEN: &str = "redirect = [\"127.0.0.1:0\"]";

fn edge(world: &World, origin: &Origin) -> Edge {
    let settings = world.settings().host(world.host(ACME, origin)).server(LISTEN).limit("header_timeout = \"1s\"");
    Edge::start(settings)
}

fn connect(edge: &Edge) -> TcpStream {
    let socket = TcpStream::connect(edge.redirect()).expect("a connection");
    socket.set_read_timeout(Some(SOON)).expect("a time limit");
    socket
}

/// One answer: its status line and Location.
#[track_caller]
fn answer(socket: &mut TcpStream) -> (String, Option<String>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(socket.read(&mut byte).expect("an answer"), 1, "{}", String::from_utf8_lossy(&head));
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).map(str::to_owned);
    (head.lines().next().unwrap_or_default().to_owned(), location)
}

/// Everything up to the end of the connection; a reset ends it too.
fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

fn redirects(edge: &Edge, result: &str, count: f64) {
    edge.expect_metric(&format!("hostward_redirects_total{{result=\"{result}\"}}"), count);
}

/// 270: requests one after the other, pipelined and cut into bytes are redirected on one connection.
#[test]
fn t270_requests_are_redirected() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let port = edge.address().port();
    let mut socket = connect(&edge);
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {ACME}:{}\r\n\r\n", edge.redirect().port());
    let expected =
        |path: &str| ("HTTP/1.1 308 Permanent Redirect".to_owned(), Some(format!("https://{ACME}:{port}{path}")));
    socket.write_all(request("/a?b=c").as_bytes()).expect("sending");
    assert_eq!(answer(&mut socket), expected("/a?b=c"));
    socket.write_all((request("/1") + &request("/2") + &request("/3")).as_bytes()).expect("sending");
    for path in ["/1", "/2", "/3"] {
        assert_eq!(answer(&mut socket), expected(path));
    }
    socket.set_nodelay(true).expect("an option");
    for byte in request("/slow").as_bytes() {
        socket.write_all(&[*byte]).expect("sending");
    }
    assert_eq!(answer(&mut socket), expected("/slow"));
    // More than a head may have, in requests that each have less: nothing falls out between them.
    let many: Vec<String> = (0..60).map(|n| format!("/{n}/{}", "a".repeat(300))).collect();
    socket.write_all(many.iter().map(|path| request(path)).collect::<String>().as_bytes()).expect("sending");
    for path in &many {
        assert_eq!(answer(&mut socket), expected(path));
    }
    redirects(&edge, "redirected", 65.0);
    assert_eq!(edge.metric("hostward_connections_open"), 1.0, "it counts as a client connection");
    drop(socket);
    edge.expect_metric("hostward_connections_open", 0.0);
    assert_eq!(origin.accepted(), 0);
}

/// 271: names of nobody, malformed heads and heads that are too long are refused, and say nothing of what was sent.
#[test]
fn t271_the_rest_is_refused() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let long = format!("GET /{} HTTP/1.1\r\nHost: {ACME}\r\n\r\n", "a".repeat(20_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "421 Misdirected Request"),
        ("GET / HTTP/1.1\r\nHost: pay.acme.test\r\nHost: evil.test\r\n\r\n", "400 Bad Request"),
        ("GET / HTTP/1.1\r\n\r\n", "400 Bad Request"),
        ("GET /\nX: y\n\n", "400 Bad Request"),
        ("\u{16}\u{3}\u{1}\u{2}\n\r\n\r\n", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let mut socket = connect(&edge);
        socket.write_all(request.as_bytes()).expect("sending");
        assert_eq!(answer(&mut socket), (format!("HTTP/1.1 {status}"), None), "{request:.60?}");
        assert_eq!(rest(&mut socket), "", "the connection ends");
    }
    redirects(&edge, "misdirected", 1.0);
    redirects(&edge, "malformed", 4.0);
    redirects(&edge, "too_large", 1.0);
    redirects(&edge, "redirected", 0.0);
}

/// 272: a request with a body is redirected and the connection ends: the body is never taken for a request.
#[test]
fn t272_a_body_is_no_request() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let smuggled = format!("GET /smuggled HTTP/1.1\r\nHost: {ACME}\r\n\r\n");
    for framing in [format!("Content-Length: {}", smuggled.len()), "Transfer-Encoding: chunked".into()] {
        let mut socket = connect(&edge);
        let request = format!("POST /form HTTP/1.1\r\nHost: {ACME}\r\n{framing}\r\n\r\n{smuggled}");
        socket.write_all(request.as_bytes()).expect("sending");
        let (status, location) = answer(&mut socket);
        assert_eq!(status, "HTTP/1.1 308 Permanent Redirect");
        assert!(location.is_some_and(|location| location.ends_with("/form")));
        socket.shutdown(std::net::Shutdown::Write).expect("the end of the request");
        assert_eq!(rest(&mut socket), "");
    }
    redirects(&edge, "redirected", 2.0);
}

/// 273: a head that does not come in time ends its connection, and idle connections end silently.
#[test]
fn t273_slow_heads_end() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let mut slow = connect(&edge);
    let mut kept = connect(&edge);
    kept.write_all(format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n").as_bytes()).expect("sending");
    answer(&mut kept);
    let begun = Instant::now();
    let mut writer = slow.try_clone().expect("a second handle");
    std::thread::spawn(move || {
        for byte in
            b"GET / HTTP/1.1\r\nHost: pay.acme.test\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".iter().cycle()
        {
            if writer.write_all(&[*byte]).is_err() || begun.elapsed() > SOON {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    assert_eq!(rest(&mut slow), "", "no answer to half a head");
    assert!(begun.elapsed() < SOON / 2, "{:?}", begun.elapsed());
    assert_eq!(rest(&mut kept), "");
    redirects(&edge, "timed_out", 1.0);
    edge.expect_metric("hostward_timeouts_total{timeout=\"header\"}", 1.0);
}

/// 274: a reload serves new names at once and cannot move the listener.
#[test]
fn t274_a_reload_changes_names_not_places() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = edge(&world, &origin);
    let ask = |socket: &mut TcpStream, name: &str| {
        socket.write_all(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").as_bytes()).expect("sending");
        answer(socket).0
    };
    assert!(ask(&mut connect(&edge), "new.test").contains("421"));
    edge.reconfigure(|settings| settings.hosts.push(world.host("new.test", &origin)));
    assert!(ask(&mut connect(&edge), "new.test").contains("308"));
    let moved = edge.try_reconfigure(|settings| settings.server.retain(|line| line != LISTEN));
    let Reload::Failed(event) = moved else { panic!("the listener was moved") };
    assert!(event.to_string().contains("server.redirect changed"), "{event}");
    assert!(ask(&mut connect(&edge), ACME).contains("308"));
}

/// 275: a drain ends kept connections and listens no more.
#[test]
fn t275_a_drain_ends_kept_connections() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings().host(world.host(ACME, &origin)).server(LISTEN).limit("header_timeout = \"60s\"");
    let edge = Edge::start(settings);
    let mut kept = connect(&edge);
    kept.write_all(format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n").as_bytes()).expect("sending");
    answer(&mut kept);
    let redirect = edge.redirect();
    edge.signal(Signal::TERM);
    wait::until("new connections are refused", SOON, || TcpStream::connect(redirect).is_err());
    assert_eq!(rest(&mut kept), "");
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
}

/// 276: curl follows the redirect to the hostname's own door.
#[test]
fn t276_curl_follows() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let origin = Origin::start(crate::harness::origin::Manner::Name("HTTP/1.0 200 OK\r\n\r\nthe origin"));
    let edge = edge(&world, &origin);
    let authority = edge.file().with_file_name("servers.pem");
    std::fs::write(&authority, world.servers.pem()).expect("a file");
    let mut command = Command::new(curl);
    command.arg("-sSL").arg("--cacert").arg(&authority);
    for port in [edge.redirect().port(), edge.address().port()] {
        command.arg("--resolve").arg(format!("{ACME}:{port}:127.0.0.1"));
    }
    command.arg(format!("http://{ACME}:{}/x", edge.redirect().port()));
    let finished = run(&mut command, SOON);
    assert_eq!(finished.stdout, "the origin", "{}", finished.output());
}
