//! The harness against a rustls server: a client that could not see a refusal would let every case pass.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use rustls::{AlertDescription, RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use crate::harness::clienthello::{Hello, Raw};
use crate::harness::payload::{Payload, digest_of};
use crate::harness::pki::{Authority, Identity, Validity};
use crate::harness::{ACME, Client, End, Tls, World, metrics};

/// An echo server over rustls that trusts the clients of one authority.
fn server(world: &World) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(world.acme.der().clone()).expect("a root");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let certified = world.servers.server(&[ACME]).issue();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified.certified_key())));
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("a ticketer");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let config = Arc::clone(&config);
            std::thread::spawn(move || echo(config, socket));
        }
    });
    address
}

fn echo(config: Arc<ServerConfig>, socket: TcpStream) {
    let mut stream = StreamOwned::new(ServerConnection::new(config).expect("a server"), socket);
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => {
                stream.conn.send_close_notify();
                let _ = stream.flush();
                return;
            }
            Ok(count) => stream.write_all(&buffer[..count]).expect("the client reads"),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                let _ = stream.conn.write_tls(&mut stream.sock);
                let _ = stream.sock.shutdown(std::net::Shutdown::Write);
                // As the edge does: a RST would eat the alert.
                let _ = stream.sock.set_read_timeout(Some(Duration::from_millis(500)));
                let _ = std::io::copy(&mut stream.sock, &mut std::io::sink());
                return;
            }
        }
    }
}

/// 001: the client is let in with the right certificate, resumes with its ticket, and sees the exact alert otherwise.
#[test]
fn t001_the_client_sees_what_happened() {
    let world = World::new();
    let server = server(&world);
    for version in Tls::BOTH {
        let client = world.acme_client("alice").tls(version);
        assert!(!client.expect_in(server, ACME).resumed(), "{version:?}");
        assert!(client.tickets().count() > 0, "{version:?}");
        assert!(client.expect_in(server, ACME).resumed(), "{version:?}");
        assert_eq!(client.expect_in(server, ACME).finish(), End::CloseNotify, "{version:?}");

        let refusals: [(Client, AlertDescription); 5] = [
            (world.client(), AlertDescription::CertificateRequired),
            (world.globex_client("eve"), AlertDescription::UnknownCA),
            (world.client().with_identity(Identity::self_signed("eve")), AlertDescription::UnknownCA),
            (stolen(&world), AlertDescription::DecryptError),
            (
                world.client().with_identity(world.acme.leaf("late").valid(Validity::expired()).issue()),
                AlertDescription::CertificateExpired,
            ),
        ];
        for (client, alert) in refusals {
            client.tls(version).expect_alert(server, ACME, alert);
        }
    }
}

fn stolen(world: &World) -> Client {
    let own = Authority::new("Nobody").leaf("eve").issue();
    world.client().with_identity(world.acme.leaf("alice").issue().with_key_of(&own))
}

/// 002: hellos made by hand are hellos, and what comes back is understood.
#[test]
fn t002_handmade_hellos_are_understood() {
    let world = World::new();
    let server = server(&world);
    for hello in [Hello::modern(ACME), Hello::tls12(ACME)] {
        let reply = Raw::ask(server, &hello.bytes());
        assert!(reply.is_server_hello(), "{reply:?}");
        let reply = Raw::ask(server, &hello.records(7));
        assert!(reply.is_server_hello(), "{reply:?}");
    }
    for version in [0x0301, 0x0302] {
        let reply = Raw::ask(server, &Hello::antique(version, ACME).bytes());
        assert_eq!(reply.alert(), Some(70), "{reply:?}");
        assert!(reply.is_clean_refusal(), "{reply:?}");
    }
}

/// 003: a payload's digest is what its receiver computes, and metrics are read as Prometheus writes them.
#[test]
fn t003_digests_and_metrics_add_up() {
    let world = World::new();
    let server = server(&world);
    let mut session = world.acme_client("alice").expect_in(server, ACME);
    let sent = session.send_payload(Payload::new(10_000, 7)).expect("sent");
    session.finish_sending().expect("finished");
    assert_eq!(session.drain(), (sent.clone(), End::CloseNotify));
    assert_eq!(sent, digest_of(10_000, 7));
    assert_ne!(sent, digest_of(10_000, 8));

    let text = "# HELP a b\na{x=\"1\",y=\"2\"} 3\na{x=\"1\",y=\"3\"} 4\nab 7\na{x=\"2\"} 1e1\n";
    assert!((metrics::sum(text, "a{x=\"1\"}") - 7.0).abs() < 1e-9);
    assert!((metrics::sum(text, "a") - 17.0).abs() < 1e-9);
    assert!((metrics::sum(text, "b")).abs() < 1e-9);
}

/// 004: every test that ARCHITECTURE.md's table of invariants names exists, and every invariant that is built has one.
#[test]
fn t004_the_invariants_name_tests_that_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let mut cases = String::new();
    for entry in std::fs::read_dir(root.join("tests/e2e")).expect("the cases") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            cases.push_str(&std::fs::read_to_string(path).expect("a file of cases"));
        }
    }
    for invariant in ["I1", "I2", "I3", "I6", "I7", "I8", "I9", "I10"] {
        let begin = format!("| {invariant} |");
        let row = text.lines().find(|line| line.starts_with(&begin)).unwrap_or_else(|| panic!("no row {begin}"));
        let is_test = |word: &&str| word.len() > 5 && word.starts_with('t') && word[1..4].parse::<u16>().is_ok();
        let words = row.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let tests: Vec<_> = words.filter(|word| word.is_ascii()).filter(is_test).collect();
        assert!(!tests.is_empty(), "{invariant} names no test");
        for test in tests {
            assert!(cases.contains(&format!("fn {test}()")), "{invariant} names {test}, which does not exist");
        }
    }
}
