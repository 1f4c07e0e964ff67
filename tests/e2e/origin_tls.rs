//! Origins over TLS: whom we trust, who we are to them, what is cut off, sessions that resume, and pools that never mix.

use std::fs;
use std::io;
use std::path::Path;

use rcgen::ExtendedKeyUsagePurpose;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::config::Host;
use crate::harness::http::{Framing, Http, HttpOrigin, send_body};
use crate::harness::nginx::Nginx;
use crate::harness::payload::{Payload, digest_of};
use crate::harness::process::hostward;
use crate::harness::tls_origin::{Front, V1_2, V1_3};
use crate::harness::{ACME, Authority, Edge, End, GLOBEX, Identity, SOON, Validity, World, wait};

const ORIGIN: &str = "origin.test";

fn connect(world: &World, edge: &Edge, name: &str) -> Http {
    Http::new(world.client().open(edge.address(), name).expect("a connection"))
}

/// Files for the configuration of an origin.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("hostward-origin-").tempdir().expect("a directory"))
    }

    /// Writes a file; its path as the configuration has it.
    fn put(&self, name: &str, content: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.0.path().join(name);
        fs::write(&path, content).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode");
        format!("{:?}", path.display().to_string())
    }

    fn ca(&self, authority: &Authority) -> String {
        self.put("ca.pem", authority.pem())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// A hostname whose origin is spoken with over TLS; `tls` are the members of the inline table.
fn host(world: &World, name: &str, url: &str, tls: &str) -> Host {
    let host = world.host_at(name, &[url]).http();
    if tls.is_empty() { host } else { host.origin_line(&format!("tls = {{ {tls} }}")) }
}

fn unreachable(edge: &Edge) -> Vec<Value> {
    edge.events.named(&["origin_unreachable", "origin_failed"])
}

/// 360: a certificate that the given CA issued passes: for the URL's host, for its address, or for the name in `sni`; one
/// that is trusted itself passes too, and so does one of the system's CAs.
#[test]
fn t360_good_certificates_pass() {
    let world = World::new();
    let (authority, files, origin) = (Authority::new("Origins"), Files::new(), HttpOrigin::mirror());
    let by_address = authority.server(&[ORIGIN]).san_ip("127.0.0.1".parse().expect("an address")).issue();
    let by_name = authority.server(&[ORIGIN, "localhost"]).issue();
    let pinned = Identity::self_signed_server(&["localhost"]);
    let (ca, pin) = (files.ca(&authority), files.put("pin.pem", &pinned.chain_pem));
    for (identity, hostname, tls, name) in [
        (&by_address, "127.0.0.1", format!("ca = {ca}"), None),
        (&by_name, "localhost", format!("ca = [{ca}]"), Some("localhost")),
        (&by_name, "127.0.0.1", format!("ca = {ca}, sni = \"{ORIGIN}\", min_version = \"1.3\""), Some(ORIGIN)),
        (&pinned, "localhost", format!("ca = {pin}"), Some("localhost")),
    ] {
        let front = Front::new(identity.clone()).alpn(&["h2", "http/1.1"]).serve(origin.address());
        let url = format!("https://{hostname}:{}", front.address().port());
        let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &url, &tls)));
        let response = connect(&world, &edge, ACME).get(ACME, "/there?q=1");
        assert_eq!(response.status(), 200, "{tls}");
        assert!(response.body.text().contains("GET /there?q=1 "), "{}", response.body.text());
        assert_eq!(front.shown()[0].server_name.as_deref(), name, "{tls}");
        assert_eq!(front.shown()[0].alpn.as_deref(), Some("http/1.1"), "{tls}");
        edge.expect_metric("hostward_origin_handshakes_total{kind=\"full\"}", 1.0);
    }
    // Without a word about CAs: those of the system, here of a file in their place.
    let front = Front::new(by_address).serve(origin.address());
    let store = files.path().join("ca.pem");
    let variable = format!("SSL_CERT_FILE={}", store.display());
    let settings = world.settings().workers(1).host(host(&world, ACME, &front.url(), ""));
    let edge = Edge::start_under(&["env", &variable], settings);
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/").status(), 200);
}

/// 361: a certificate that is not good is a 502 that says so, is counted, and leaves a line that says what is wrong.
#[test]
fn t361_bad_certificates_do_not() {
    let world = World::new();
    let (authority, files, origin) = (Authority::new("Origins"), Files::new(), HttpOrigin::mirror());
    let server = || authority.server(&[ORIGIN]);
    let cases = [
        (server().valid(Validity::expired()).issue(), "has expired"),
        (server().valid(Validity::future()).issue(), "not valid yet"),
        (Authority::new("Somebody").server(&[ORIGIN]).issue(), "no CA that this origin trusts"),
        (authority.server(&["else.test"]).issue(), "not for origin.test but for"),
        (server().purposes(&[ExtendedKeyUsagePurpose::ClientAuth]).issue(), "not for a server"),
        (Identity::self_signed_server(&[ORIGIN]), "put this very certificate into tls.ca"),
    ];
    let tls = format!("ca = {}, sni = \"{ORIGIN}\"", files.ca(&authority));
    for (identity, detail) in cases {
        let front = Front::new(identity).serve(origin.address());
        let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &front.url(), &tls)));
        let response = connect(&world, &edge, ACME).get(ACME, "/");
        assert_eq!(response.status(), 502, "{detail}");
        assert_eq!(response.head.get("proxy-status"), Some("hostward; error=tls_certificate_error"), "{detail}");
        edge.expect_metric("hostward_origin_connects_total{result=\"tls_certificate_error\"}", 1.0);
        let line = wait::for_some("the line", SOON, || unreachable(&edge).pop());
        assert_eq!(line["error"], "tls_certificate_error");
        assert!(line["detail"].as_str().is_some_and(|text| text.contains(detail)), "{detail}: {line}");
    }
    assert!(origin.heads().is_empty(), "no request went where the certificate was not good");
}

/// 362: what else may go wrong is told apart: no TLS at all, no common version, an origin that closes, one that is silent.
#[test]
fn t362_other_failures_are_told_apart() {
    let world = World::new();
    let (authority, files, origin) = (Authority::new("Origins"), Files::new(), HttpOrigin::mirror());
    let old = Front::new(authority.server(&[ORIGIN]).issue()).versions(V1_2).serve(origin.address());
    let ca = files.ca(&authority);
    let garbage =
        crate::harness::Origin::start(crate::harness::origin::Manner::Name("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let closing = crate::harness::Origin::start(crate::harness::origin::Manner::CloseAfterOne);
    let silent = crate::harness::Origin::start(crate::harness::origin::Manner::Stall);
    let https = |origin: &crate::harness::Origin| origin.url().replace("tcp://", "https://");
    for (url, min_version, error, status, detail) in [
        (https(&garbage), "1.2", "tls_protocol_error", 502, "does not speak TLS"),
        (old.url(), "1.3", "tls_alert_received", 502, "protocol_version"),
        (https(&closing), "1.2", "tls_protocol_error", 502, "closed the connection during"),
        (https(&silent), "1.2", "connection_timeout", 504, ""),
    ] {
        let tls = format!("ca = {ca}, min_version = \"{min_version}\"");
        let host = host(&world, ACME, &url, &tls).origin_line("connect_timeout = \"500ms\"");
        let edge = Edge::start(world.settings().workers(1).host(host));
        let response = connect(&world, &edge, ACME).get(ACME, "/");
        assert_eq!(response.status(), status, "{error}");
        assert_eq!(response.head.get("proxy-status"), Some(format!("hostward; error={error}").as_str()));
        let line = wait::for_some("the line", SOON, || unreachable(&edge).pop());
        assert_eq!(line["error"], error);
        assert!(line["detail"].as_str().unwrap_or_default().contains(detail), "{detail}: {line}");
    }
}

/// 363: an origin that asks for a certificate is shown ours: nginx with ssl_verify_client lets us in, and tells who we are;
/// without one it does not. One that requires it in TLS itself ends with an alert, which is told.
#[test]
fn t363_our_certificate_is_shown() {
    let world = World::new();
    let (authority, clients, files) = (Authority::new("Origins"), Authority::new("Edges"), Files::new());
    let server = authority.server(&[ORIGIN]).issue();
    let ours = clients.leaf("edge-1").issue();
    let tls = format!("ca = {}, sni = \"{ORIGIN}\"", files.ca(&authority));
    let with = format!(
        "{tls}, certificate = {}, private_key = {}",
        files.put("edge.pem", &ours.chain_pem),
        files.put("edge.key", &ours.key_pem)
    );
    let strict = Front::new(server.clone()).require(&clients).serve(HttpOrigin::mirror().address());
    let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &strict.url(), &tls)));
    let response = connect(&world, &edge, ACME).get(ACME, "/");
    assert_eq!(response.head.get("proxy-status"), Some("hostward; error=tls_alert_received"));
    let line = wait::for_some("the line", SOON, || unreachable(&edge).pop());
    assert!(line["detail"].as_str().is_some_and(|text| text.contains("certificate_required")), "{line}");

    let home = Files::new().0;
    for (name, content) in [("server.pem", &server.chain_pem), ("server.key", &server.key_pem)] {
        fs::write(home.path().join(name), content).expect("a file");
    }
    fs::write(home.path().join("clients.pem"), clients.pem()).expect("a file");
    let directives = "ssl_certificate HOME/server.pem; ssl_certificate_key HOME/server.key;
        ssl_client_certificate HOME/clients.pem; ssl_verify_client on;
        location = /who { return 200 \"$ssl_client_s_dn $ssl_session_reused\"; }";
    let Some((_nginx, address)) = Nginx::start_tcp(home, "ssl", directives) else { return };
    let url = format!("https://{address}");
    for (tls, status, said) in [(&tls, 400, "No required SSL certificate"), (&with, 200, "CN=edge-1 .")] {
        let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &url, tls)));
        let response = connect(&world, &edge, ACME).get(ACME, "/who");
        assert_eq!(response.status(), status);
        assert!(response.body.text().contains(said), "{}", response.body.text());
        if status == 200 {
            let big = connect(&world, &edge, ACME).get(ACME, "/big");
            assert_eq!(big.head.get("content-length"), Some((8 << 20).to_string().as_str()));
        }
    }
}

/// An origin whose responses end with the connection.
fn until_close() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.send("HTTP/1.1 200 OK\r\n\r\nall of it")?;
        talk.finish();
        Err(io::ErrorKind::Other.into())
    })
}

/// 364: a response that ends with the connection is whole only if the origin says close_notify: who cuts the connection must
/// not pass half a message off as a whole one (RFC 8446 section 6.1).
#[test]
fn t364_truncation_is_seen() {
    let world = World::new();
    let (authority, files, origin) = (Authority::new("Origins"), Files::new(), until_close());
    let tls = format!("ca = {}, sni = \"{ORIGIN}\"", files.ca(&authority));
    for impolite in [false, true] {
        let front = Front::new(authority.server(&[ORIGIN]).issue());
        let front = if impolite { front.impolite() } else { front };
        let front = front.serve(origin.address());
        let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &front.url(), &tls)));
        let mut http = connect(&world, &edge, ACME);
        http.send(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        match http.response_to(false) {
            Ok(response) => {
                assert_eq!(response.body.text(), "all of it");
                assert!(!impolite, "half a response passed for a whole one");
            }
            Err(end) => assert!(impolite && end != End::CloseNotify, "{end:?}"),
        }
    }
}

/// 365: bodies of every size pass both ways, whole, over one connection that is used again; and an upgrade is a tunnel.
#[test]
fn t365_bodies_pass() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        if head.get("upgrade").is_some() {
            talk.send(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nhello",
            )?;
            let mut block = [0; 64];
            loop {
                let count = io::Read::read(talk.stream(), &mut block)?;
                if count == 0 {
                    talk.send("bye")?;
                    talk.finish();
                    return Err(io::ErrorKind::Other.into());
                }
                talk.send(&block[..count])?;
            }
        }
        let received = talk.body(head)?.digest;
        let bytes = head.target().trim_start_matches('/').parse().expect("a size");
        let framing = if head.get("x-chunked").is_some() { Framing::Chunked } else { Framing::Length(bytes) };
        let framed = match framing {
            Framing::Chunked => "Transfer-Encoding: chunked".to_owned(),
            _ => format!("Content-Length: {bytes}"),
        };
        let head = format!("HTTP/1.1 200 OK\r\nX-Received: {received}\r\n{framed}\r\n\r\n");
        send_body(&head, framing, Payload::new(bytes, 2), "", |bytes| talk.send(bytes).is_ok());
        Ok(())
    });
    let (authority, files) = (Authority::new("Origins"), Files::new());
    let front = Front::new(authority.server(&[ORIGIN]).issue()).serve(origin.address());
    let tls = format!("ca = {}, sni = \"{ORIGIN}\"", files.ca(&authority));
    let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &front.url(), &tls)));
    let mut http = connect(&world, &edge, ACME);
    for bytes in [0, 1, 65_537, 5 << 20] {
        for framing in [Framing::Length(bytes), Framing::Chunked] {
            let framed = match framing {
                Framing::Chunked => "X-Chunked: 1\r\nTransfer-Encoding: chunked".to_owned(),
                _ => format!("Content-Length: {bytes}"),
            };
            let head = format!("POST /{bytes} HTTP/1.1\r\nHost: {ACME}\r\n{framed}\r\n\r\n");
            let payload = Payload::new(bytes, 1);
            let sent = send_body(&head, framing, payload, "", |bytes| http.session().send(bytes).is_ok());
            let response = http.response();
            assert_eq!(response.head.get("x-received"), Some(sent.as_str()), "{bytes} {framing:?}");
            assert_eq!(response.body.digest, digest_of(bytes, 2), "{bytes} {framing:?}");
        }
    }
    assert_eq!(origin.accepted(), 1, "one connection carried them all");

    http.send(&format!(
        "GET /chat HTTP/1.1\r\nHost: {ACME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ))
    .expect("sent");
    assert_eq!(http.response().status(), 101);
    http.send("ping").expect("sent");
    http.session().finish_sending().expect("sent");
    let mut all = std::mem::take(&mut http.reader.buffer);
    let (text, end) = http.session().read_text();
    all.extend_from_slice(text.as_bytes());
    assert_eq!((String::from_utf8_lossy(&all).as_ref(), end), ("hellopingbye", End::CloseNotify));
}

/// 366: sessions with origins resume; under another certificate of ours they do not.
#[test]
fn t366_sessions_resume() {
    let world = World::new();
    let (authority, clients, files) = (Authority::new("Origins"), Authority::new("Edges"), Files::new());
    // Each response ends its connection.
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", "one")?;
        Err(io::ErrorKind::Other.into())
    });
    for versions in [V1_2, V1_3] {
        let server = authority.server(&[ORIGIN]).issue();
        let front = Front::new(server).request(&clients).versions(versions).serve(origin.address());
        let ours = ["edge-1", "edge-2"].map(|name| clients.leaf(name).issue());
        let (certificate, key) = (files.put("c.pem", &ours[0].chain_pem), files.put("c.key", &ours[0].key_pem));
        let tls = format!(
            "ca = {}, sni = \"{ORIGIN}\", certificate = {certificate}, private_key = {key}",
            files.ca(&authority)
        );
        let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &front.url(), &tls)));
        let ask = || {
            assert_eq!(connect(&world, &edge, ACME).get(ACME, "/").status(), 200);
            edge.expect_metric("hostward_origin_connections_idle", 0.0);
            let shown = front.shown().pop().expect("a connection");
            (shown.resumed, shown.certificate.expect("a certificate"))
        };
        let leaf = |index: usize| ours[index].chain[0].to_vec();
        assert_eq!([ask(), ask()], [(false, leaf(0)), (true, leaf(0))]);
        edge.expect_metric("hostward_origin_handshakes_total{kind=\"resumed\"}", 1.0);
        // The same paths with other content: a reload picks them up.
        files.put("c.pem", &ours[1].chain_pem);
        files.put("c.key", &ours[1].key_pem);
        edge.reconfigure(|_| {});
        assert_eq!([ask(), ask()], [(false, leaf(1)), (true, leaf(1))]);
    }
}

/// 367: an idle connection serves only who has its TLS identity: a reload that changes trust, name or certificate closes
/// those that were made before, of a shared origin too, and no request meets them.
#[test]
fn t367_pools_never_mix_identities() {
    let world = World::new();
    let (authority, clients, files) = (Authority::new("Origins"), Authority::new("Edges"), Files::new());
    let origin = HttpOrigin::mirror();
    let server = authority.server(&[ORIGIN, "second.test"]).issue();
    let front = Front::new(server).request(&clients).serve(origin.address());
    let ours = clients.leaf("edge").issue();
    let ca = files.ca(&authority);
    let certificate = format!(
        "certificate = {}, private_key = {}",
        files.put("edge.pem", &ours.chain_pem),
        files.put("edge.key", &ours.key_pem)
    );
    let tables = [
        format!("ca = {ca}, sni = \"{ORIGIN}\""),
        format!("ca = {ca}, sni = \"second.test\""),
        format!("ca = {ca}, sni = \"second.test\", {certificate}"),
    ];
    let acme = host(&world, ACME, &front.url(), &tables[0]).origin_line("share = true");
    let globex = world.host_at(GLOBEX, &[]).http().with_origin_of(0);
    let edge = Edge::start(world.settings().workers(1).host(acme).host(globex));
    for (index, tls) in tables.iter().enumerate() {
        if index > 0 {
            edge.reconfigure(|settings| {
                settings.named(ACME).origin_lines = vec![format!("tls = {{ {tls} }}"), "share = true".into()]
            });
            wait::until("the connection of before is closed", SOON, || origin.open() == 0);
        }
        // One connection for both, since it is shared and its identity is one.
        for name in [ACME, GLOBEX] {
            assert_eq!(connect(&world, &edge, name).get(name, "/").status(), 200);
            edge.expect_metric("hostward_origin_connections_idle", 1.0);
        }
        let shown = front.shown();
        assert_eq!(shown.len(), index + 1, "{tls}");
        assert_eq!(shown[index].server_name.as_deref(), Some(if index == 0 { ORIGIN } else { "second.test" }));
        assert_eq!(shown[index].certificate.is_some(), index == 2);
    }
    edge.expect_metric("hostward_origin_pool_total{result=\"changed\"}", 2.0);
    // The file behind the same path: the CA is another's, and so the origin is not trusted any more.
    files.ca(&Authority::new("Others"));
    edge.reconfigure(|_| {});
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/").status(), 502);
    // A bad file changes nothing.
    files.put("ca.pem", "nothing");
    assert!(matches!(edge.reload(), crate::harness::edge::Reload::Failed(_)));
}

/// 368: what is wrong with the configuration of an origin is told with its place and what to do.
#[test]
fn t368_faults_of_the_configuration_are_told() {
    let world = World::new();
    let (authority, files) = (Authority::new("Origins"), Files::new());
    let (ours, other) = (authority.leaf("edge").issue(), authority.leaf("other").issue());
    let ca = files.ca(&authority);
    let (certificate, key) = (files.put("edge.pem", &ours.chain_pem), files.put("other.key", &other.key_pem));
    let expired = files.put("old.pem", Authority::with_validity("Old", Validity::expired()).pem());
    let empty = files.put("empty.pem", "nothing\n");
    let https = "https://origin.test";
    for (url, tls, problem) in [
        (https, "ca = \"missing.pem\"".to_owned(), "missing.pem: cannot be opened"),
        (https, format!("ca = {empty}"), "holds no PEM certificate"),
        (https, format!("ca = {expired}"), "it vouches for nobody"),
        (https, format!("ca = {ca}, sni = \"10.0.0.1\""), "sni is \"10.0.0.1\": an address is verified as the host"),
        (https, format!("ca = {ca}, sni = \"*.test\""), "not a wildcard"),
        (https, format!("ca = {ca}, private_key = {key}"), "private_key stands without a certificate"),
        (
            https,
            format!("ca = {ca}, certificate = {certificate}, private_key = {key}"),
            "does not belong to certificate",
        ),
        (https, format!("ca = {ca}, verify = false"), "unknown key \"verify\" in [origin.o0.tls]"),
        (https, format!("ca = {ca}, min_version = \"1.1\""), "must be \"1.2\" or \"1.3\""),
        ("http://origin.test", format!("ca = {ca}"), "TLS is spoken with https:// origins only"),
    ] {
        let home = Files::new();
        let file = world.settings().host(host(&world, ACME, url, &tls)).write(home.path());
        let finished = hostward(&["check", "--full", "-c", file.to_str().expect("UTF-8")]);
        assert_eq!(finished.code(), Some(1), "{tls}: {}", finished.output());
        let output = finished.output();
        let line = output.lines().find(|line| line.contains(problem));
        let line = line.unwrap_or_else(|| panic!("{problem}: {output}"));
        assert!(line.contains("hostward.toml:"), "no place: {line}");
    }
    // In tcp mode bytes pass as they come.
    let home = Files::new();
    let mut tcp = host(&world, ACME, https, "");
    tcp.mode = "tcp";
    let file = world.settings().host(tcp).write(home.path());
    let finished = hostward(&["check", "-c", file.to_str().expect("UTF-8")]);
    assert!(finished.output().contains("is https://, and mode is \"tcp\""), "{}", finished.output());
}

/// 369: an idle connection on which the origin says goodbye, or something nobody asked for, is closed; what TLS itself says
/// there (a ticket) is not taken for either.
#[test]
fn t369_idle_connections_are_watched() {
    let world = World::new();
    let (authority, files) = (Authority::new("Origins"), Files::new());
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", "one")?;
        if head.target() == "/speak" {
            talk.wait_for_release();
            talk.send("unasked")?;
        }
        if head.target() == "/close" { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    });
    let front = Front::new(authority.server(&[ORIGIN]).issue()).serve(origin.address());
    let tls = format!("ca = {}, sni = \"{ORIGIN}\"", files.ca(&authority));
    let edge = Edge::start(world.settings().workers(1).host(host(&world, ACME, &front.url(), &tls)));
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/close").status(), 200);
    edge.expect_metric("hostward_origin_pool_total{result=\"closed\"}", 1.0);
    assert_eq!(connect(&world, &edge, ACME).get(ACME, "/speak").status(), 200);
    edge.expect_metric("hostward_origin_connections_idle", 1.0);
    origin.release();
    edge.expect_metric("hostward_origin_pool_total{result=\"unsolicited\"}", 1.0);
    edge.expect_metric("hostward_origin_connections_idle", 0.0);
}
