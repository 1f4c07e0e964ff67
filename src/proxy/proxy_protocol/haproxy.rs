//! HAProxy reads the header as it was meant. Its specification is the one the header is written by.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;

/// Ends the process with the test, however the test ends.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How long each step may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What HAProxy answers about the header, as `source:port destination:port authority`.
fn ask(socket: &std::path::Path, header: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(header).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_string())
}

#[test]
fn haproxy_understands() {
    let dir = tempfile::tempdir().unwrap();
    let (config, socket) = (dir.path().join("haproxy.cfg"), dir.path().join("in.sock"));
    std::fs::write(
        &config,
        format!(
            "defaults\n mode http\n timeout client 10s\n timeout server 10s\n timeout connect 10s\n\
             frontend in\n bind unix@{} accept-proxy\n http-request return status 200 content-type text/plain \
             lf-string \"%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority]\"\n",
            socket.display()
        ),
    )
    .unwrap();
    // Debian keeps it where the PATH of users does not look.
    let spawned = ["haproxy", "/usr/sbin/haproxy"].into_iter().find_map(|program| {
        let mut command = Command::new(program);
        command.arg("-db").arg("-f").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().ok()
    });
    let Some(child) = spawned else {
        eprintln!("SKIPPED: haproxy is not installed, so the header was not tried on it");
        return;
    };
    let _haproxy = Stopped(child);
    let deadline = std::time::Instant::now() + PATIENCE;
    while UnixStream::connect(&socket).is_err() {
        assert!(std::time::Instant::now() < deadline, "haproxy does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }

    let header = |source: &str, destination: &str| {
        let mut out = vec![];
        Header {
            endpoints: Some(Endpoints { source: source.parse().unwrap(), destination: destination.parse().unwrap() }),
            alpn: Some(b"http/1.1"),
            authority: Some("pay.acme.example"),
            unique_id: None,
            ssl: Some(Ssl {
                version: "TLSv1.3",
                cipher: Some("TLS13_AES_128_GCM_SHA256"),
                client_certificate: ClientCertificate::Session,
                verify: 0,
                common_name: Some("ops-ann"),
            }),
        }
        .encode(&mut out);
        out
    };
    assert_eq!(
        ask(&socket, &header("192.0.2.7:51000", "198.51.100.1:443")),
        "192.0.2.7:51000 198.51.100.1:443 pay.acme.example"
    );
    assert_eq!(
        ask(&socket, &header("[2001:db8::7]:51000", "[2001:db8::1]:443")),
        "2001:db8::7:51000 2001:db8::1:443 pay.acme.example"
    );
    let mut local = vec![];
    encode_local(&mut local);
    assert!(ask(&socket, &local).ends_with(' '), "no authority on LOCAL");
}
