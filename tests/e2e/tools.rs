//! The clients people use: curl, openssl s_client, wrk and h2load, through tcp mode to nginx.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::harness::nginx::{BIG_BYTES, BODY, Nginx};
use crate::harness::process::{Finished, run, tool};
use crate::harness::{ACME, Edge, GLOBEX, Identity, World};

/// The bound on one run of a tool.
const BOUND: Duration = Duration::from_secs(60);

/// The name under which tools that cannot be told an address reach the edge.
const LOCAL: &str = "localhost";

/// An edge before nginx, and the files its clients need.
struct Shop {
    edge: Edge,
    files: TempDir,
    _nginx: Nginx,
}

impl Shop {
    fn start(world: &World) -> Option<Self> {
        let nginx = Nginx::start()?;
        let url = nginx.url();
        let alpn = "alpn = [\"http/1.1\"]";
        let acme = world.host_at(ACME, &[&url]).require(&[&world.acme]).line(alpn);
        let globex = world.host_at(GLOBEX, &[&url]).require(&[&world.globex]).line(alpn);
        let local = world.host_at(LOCAL, &[&url]).line(alpn);
        let edge = Edge::start(world.settings().host(acme).host(globex).host(local));
        let files = tempfile::tempdir().expect("a directory");
        let shop = Self { edge, files, _nginx: nginx };
        shop.store("servers.pem", world.servers.pem());
        shop.identity("alice", &world.acme.leaf("alice").issue());
        shop.identity("mallory", &Identity::self_signed("mallory"));
        Some(shop)
    }

    fn store(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    }

    fn identity(&self, name: &str, identity: &Identity) {
        self.store(&format!("{name}.pem"), &identity.chain_pem);
        self.store(&format!("{name}.key"), &identity.key_pem);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn port(&self) -> u16 {
        self.edge.address().port()
    }

    /// curl at a hostname, as somebody or nobody.
    fn curl(&self, curl: &Path, host: &str, path: &str, identity: Option<&str>, options: &[&str]) -> Finished {
        let mut command = Command::new(curl);
        command.args(["--silent", "--show-error", "--max-time", "30", "--cacert"]).arg(self.path("servers.pem"));
        command.arg("--resolve").arg(format!("{host}:{}:127.0.0.1", self.port()));
        if let Some(name) = identity {
            command.arg("--cert").arg(self.path(&format!("{name}.pem")));
            command.arg("--key").arg(self.path(&format!("{name}.key")));
        }
        run(command.args(options).arg(format!("https://{host}:{}{path}", self.port())), BOUND)
    }
}

/// 160: curl gets its page with the right certificate, in each version, and an error with the alert's name otherwise.
#[test]
fn t160_curl_is_let_in_or_told_why_not() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    for version in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"][..]] {
        let page = shop.curl(&curl, ACME, "/", Some("alice"), version);
        assert_eq!((page.code(), &page.stdout[..]), (Some(0), BODY), "{page:?}");
        for (host, identity, word) in [
            (ACME, None, "alert"),
            (ACME, Some("mallory"), "unknown ca"),
            (GLOBEX, Some("alice"), "unknown ca"),
            ("nobody.test", Some("alice"), "unrecognized name"),
        ] {
            let refused = shop.curl(&curl, host, "/", identity, version);
            assert_ne!(refused.code(), Some(0), "{host} {identity:?}: {refused:?}");
            assert!(refused.stdout.is_empty(), "{host} {identity:?}: {refused:?}");
            assert!(refused.stderr.contains(word), "{host} {identity:?}: {refused:?}");
        }
    }
}

/// 161: curl keeps its connection for several pages, downloads and uploads.
#[test]
fn t161_curl_keeps_its_connection() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let again = format!("https://{ACME}:{}/", shop.port());
    let format = "%{num_connects} %{size_download}\\n";
    let pages = shop.curl(&curl, ACME, "/", Some("alice"), &[&again, &again, "--write-out", format]);
    assert_eq!(pages.code(), Some(0), "{pages:?}");
    let size = BODY.len();
    assert_eq!(pages.stdout, format!("{BODY}1 {size}\n{BODY}0 {size}\n{BODY}0 {size}\n"), "{pages:?}");
    let options = ["--output", "/dev/null", "--write-out", "%{size_download}"];
    let big = shop.curl(&curl, ACME, "/big", Some("alice"), &options);
    assert_eq!(big.stdout, BIG_BYTES.to_string(), "{big:?}");
    let upload = shop.store("upload", &"x".repeat(3 << 20));
    let data = format!("@{}", upload.display());
    let options = ["--data-binary", &data, "--header", "Expect:", "--write-out", "%{http_code} %{size_upload}"];
    let posted = shop.curl(&curl, ACME, "/sink", Some("alice"), &options);
    assert_eq!(posted.stdout, format!("200 {}", 3 << 20), "{posted:?}");
}

/// 162: openssl s_client: the alert's number, and a session saved at one hostname is worth nothing at another.
#[test]
fn t162_openssl_sees_the_alerts_and_carries_sessions() {
    let Some(openssl) = tool("openssl") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let request = shop.store("request", &format!("GET / HTTP/1.1\r\nHost: {ACME}\r\nConnection: close\r\n\r\n"));
    let connect = |host: &str, identity: Option<&str>, options: &[&str]| {
        let mut command = Command::new("sh");
        command.arg("-c").arg("file=$1; shift; exec \"$@\" <\"$file\"").arg("sh").arg(&request).arg(&openssl);
        // s_client would end when its input does; with -ign_eof it ends when the answer does.
        command.args(["s_client", "-ign_eof", "-servername", host, "-CAfile"]).arg(shop.path("servers.pem"));
        command.arg("-connect").arg(shop.edge.address().to_string());
        if let Some(name) = identity {
            command.arg("-cert").arg(shop.path(&format!("{name}.pem")));
            command.arg("-key").arg(shop.path(&format!("{name}.key")));
        }
        run(command.args(options), BOUND)
    };
    for version in ["-tls1_2", "-tls1_3"] {
        let saved = shop.path(&format!("session{version}"));
        let saved = saved.to_str().expect("UTF-8");
        let page = connect(ACME, Some("alice"), &[version, "-sess_out", saved]);
        assert!(page.stdout.contains(BODY), "{page:?}");
        assert!(page.stdout.contains("\nNew, "), "{page:?}");
        let again = connect(ACME, Some("alice"), &[version, "-sess_in", saved]);
        assert!(again.stdout.contains("\nReused, ") && again.stdout.contains(BODY), "{again:?}");
        // The session of Acme's alice, offered at Globex.
        let crossed = connect(GLOBEX, Some("alice"), &[version, "-sess_in", saved]);
        assert!(!crossed.stdout.contains("\nReused, ") && !crossed.stdout.contains(BODY), "{crossed:?}");
        assert!(crossed.stderr.contains("alert number 48"), "{crossed:?}");
        let nobody = connect(ACME, None, &[version]);
        assert!(nobody.stderr.contains("alert number 116"), "{nobody:?}");
        assert!(!nobody.stdout.contains(BODY), "{nobody:?}");
    }
}

/// 163: wrk: thousands of requests over 32 connections, none lost.
#[test]
fn t163_wrk_loses_nothing() {
    let Some(wrk) = tool("wrk") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let url = format!("https://{LOCAL}:{}/", shop.port());
    let report = run(Command::new(wrk).args(["-t2", "-c32", "-d2s", &url]), BOUND);
    assert_eq!(report.code(), Some(0), "{report:?}");
    assert!(!report.stdout.contains("Socket errors") && !report.stdout.contains("Non-2xx"), "{report:?}");
    let requests = report.stdout.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests: u64 = requests.and_then(|(count, _)| count.parse().ok()).expect("a number of requests");
    assert!(requests > 100, "{report:?}");
}

/// 164: h2load --h1: exactly as many requests as asked for, all of them answered.
#[test]
fn t164_h2load_loses_nothing() {
    let Some(h2load) = tool("h2load") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let url = format!("https://{LOCAL}:{}/", shop.port());
    let report = run(Command::new(h2load).args(["--h1", "-t2", "-c32", "-n5000", &url]), BOUND);
    assert_eq!(report.code(), Some(0), "{report:?}");
    let expected = "5000 total, 5000 started, 5000 done, 5000 succeeded, 0 failed, 0 errored, 0 timeout";
    assert!(report.stdout.contains(expected), "{report:?}");
}

/// 165: a client that gives up in the middle of a download leaves nothing open.
#[test]
fn t165_a_client_that_gives_up() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let mut command = Command::new(curl);
    command.args(["--silent", "--limit-rate", "100k", "--insecure", "--output", "/dev/null"]);
    command.arg(format!("https://{LOCAL}:{}/big", shop.port())).stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("curl starts");
    shop.edge.expect_metric("hostward_connections_open", 1.0);
    child.kill().expect("curl runs");
    child.wait().expect("curl ends");
    shop.edge.expect_metric("hostward_connections_open", 0.0);
}
