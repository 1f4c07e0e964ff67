//! The clients people use, in HTTP mode to nginx; and changes of the edge under their load.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::http::{Http, HttpOrigin};
use crate::harness::nginx::{BIG_BYTES, BODY, Nginx};
use crate::harness::process::{Finished, run, tool};
use crate::harness::{ACME, Edge, End, GLOBEX, SOON, World, wait};

/// The bound on one run of a tool.
const BOUND: Duration = Duration::from_secs(60);

/// The name under which tools that cannot be told an address reach the edge.
const LOCAL: &str = "localhost";

/// Says how many bytes came, once all have come: the first server reads the whole body before it asks the second.
const COUNTING: &str = "server { listen unix:HOME/count.sock; location / { return 200 $content_length; } }";
const STORE: &str = "location /sink { return 200; } location /count { proxy_pass http://unix:HOME/count.sock; }";

struct Shop {
    edge: Edge,
    files: TempDir,
    _nginx: Nginx,
}

impl Shop {
    fn start(world: &World) -> Option<Self> {
        let nginx = Nginx::start_with(COUNTING, STORE)?;
        let edge = Edge::start(world.settings().host(world.host_at(LOCAL, &[&nginx.url()]).http()));
        let files = tempfile::tempdir().expect("a directory");
        fs::write(files.path().join("servers.pem"), world.servers.pem()).expect("a file");
        Some(Self { edge, files, _nginx: nginx })
    }

    fn url(&self, path: &str) -> String {
        format!("https://{LOCAL}:{}{path}", self.edge.address().port())
    }

    fn curl(&self, path: &str, options: &[&str]) -> Option<Finished> {
        let mut command = Command::new(tool("curl")?);
        command.args(["--silent", "--show-error", "--fail", "--max-time", "30", "--ipv4", "--cacert"]);
        command.arg(self.files.path().join("servers.pem"));
        command.arg("--resolve").arg(format!("{LOCAL}:{}:127.0.0.1", self.edge.address().port()));
        Some(run(command.args(options).arg(self.url(path)), BOUND))
    }

    fn upload(&self, bytes: usize) -> PathBuf {
        let path = self.files.path().join(format!("upload{bytes}"));
        fs::write(&path, "x".repeat(bytes)).expect("a file");
        path
    }
}

/// 340: curl: pages, heads, ranges, uploads with and without length and 100-continue, HTTP/1.0.
#[test]
fn t340_curl_is_served() {
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let expect = |path: &str, options: &[&str], output: &str| {
        let Some(finished) = shop.curl(path, options) else { return };
        assert_eq!((finished.code(), finished.stdout.as_str()), (Some(0), output), "{options:?}: {finished:?}");
    };
    expect("/", &[], BODY);
    expect("/", &["--http1.0"], BODY);
    let old = ["--http1.0", "--output", "/dev/null", "--write-out", "%{size_download} %{http_version}"];
    expect("/big", &old, &format!("{BIG_BYTES} 1.1"));
    let code = ["--output", "/dev/null", "--write-out", "%{http_code} %{size_download}"];
    expect("/", &[&["--head"][..], &code].concat(), "200 0");
    expect("/big", &code, &format!("200 {BIG_BYTES}"));
    expect("/big", &[&["--range", "100-199"][..], &code].concat(), "206 100");
    expect("/", &["--range", "0-4"], &BODY[..5]);
    expect("/", &["--header", "Connection: close"], BODY);
    expect("/", &["--compressed", "--cookie", "a=b", "--user", "a:b"], BODY);
    // One connection for all of these: a HEAD, a page and an upload one after the other.
    let again = shop.url("/");
    expect("/", &[&again, "--write-out", "%{num_connects}"], &format!("{BODY}1{BODY}0"));
    for bytes in [0, 1, 5000, 3 << 20] {
        let file = shop.upload(bytes);
        let (file, count) = (file.to_str().expect("UTF-8"), bytes.to_string());
        expect("/count", &["--upload-file", file], &count);
        // A client that would wait for 30 seconds would not be done in its 30 seconds.
        expect(
            "/count",
            &["--upload-file", file, "--header", "Expect: 100-continue", "--expect100-timeout", "40"],
            &count,
        );
        // curl 7.88 never ends an empty body of its own chunks.
        if bytes > 0 {
            expect("/count", &["--upload-file", file, "--header", "Transfer-Encoding: chunked"], &count);
        }
        let data = format!("@{file}");
        expect("/count", &["--data-binary", &data, "--header", "Expect:"], &count);
        expect("/count", &["--request", "PUT", "--data-binary", &data], &count);
        expect("/count", &["--upload-file", file, "--http1.0", "--header", "Expect:"], &count);
    }
    shop.edge.expect_metric("hostward_requests_total{status_class=\"5xx\"}", 0.0);
    shop.edge.expect_metric("hostward_requests_total{status_class=\"4xx\"}", 0.0);
}

/// 341: wrk: thousands of requests over 32 connections, none lost.
#[test]
fn t341_wrk_loses_nothing() {
    let Some(wrk) = tool("wrk") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let report = run(Command::new(wrk).args(["-t2", "-c32", "-d2s", &shop.url("/")]), BOUND);
    assert_eq!(report.code(), Some(0), "{report:?}");
    assert!(!report.stdout.contains("Socket errors") && !report.stdout.contains("Non-2xx"), "{report:?}");
    let requests = report.stdout.lines().find_map(|line| line.trim().split_once(" requests in "));
    let requests: u64 = requests.and_then(|(count, _)| count.parse().ok()).expect("a number of requests");
    assert!(requests > 100, "{report:?}");
    assert!(shop.edge.metric("hostward_requests_total{status_class=\"2xx\"}") as u64 >= requests);
}

/// 342: h2load --h1: exactly as many requests as asked for, all of them answered, with bodies up and down.
#[test]
fn t342_h2load_loses_nothing() {
    let Some(h2load) = tool("h2load") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let upload = shop.upload(100_000);
    let data = format!("--data={}", upload.display());
    for (path, count, more) in [("/", 5000, None), ("/count", 300, Some(data.as_str())), ("/big", 40, None)] {
        let count_text = format!("-n{count}");
        let mut command = Command::new(&h2load);
        command.args(["--h1", "-t2", "-c20", &count_text]).args(more).arg(shop.url(path));
        let report = run(&mut command, BOUND);
        let expected =
            format!("{count} total, {count} started, {count} done, {count} succeeded, 0 failed, 0 errored, 0 timeout");
        assert!(report.code() == Some(0) && report.stdout.contains(&expected), "{path}: {report:?}");
        assert!(report.stdout.contains(&format!("status codes: {count} 2xx")), "{path}: {report:?}");
    }
}

/// 343: reloads that add and remove hostnames and change rules of others fail no request of a load that goes on.
#[test]
fn t343_reloads_fail_nothing_of_a_load() {
    let Some(h2load) = tool("h2load") else { return };
    let world = World::new();
    let Some(shop) = Shop::start(&world) else { return };
    let done = AtomicBool::new(false);
    let reloads = AtomicU64::new(0);
    let other = HttpOrigin::mirror();
    let extra = world.http_host(GLOBEX, &other);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let round = reloads.fetch_add(1, Ordering::Relaxed);
                shop.edge.reconfigure(|settings| {
                    settings.remove(GLOBEX);
                    if round.is_multiple_of(2) {
                        settings.hosts.push(extra.clone().rule("path = \"/a/*\"\ndeny = true").rule("allow = {}"));
                    }
                    settings.named(LOCAL).rules =
                        vec![format!("path = \"/closed/{round}/*\"\ndeny = true"), "allow = {}".into()];
                });
            }
        });
        let report = run(Command::new(h2load).args(["--h1", "-t1", "-c16", "-n30000", &shop.url("/")]), BOUND);
        done.store(true, Ordering::Release);
        let expected = "30000 total, 30000 started, 30000 done, 30000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(report.code() == Some(0) && report.stdout.contains(expected), "{report:?}");
    });
    assert!(reloads.load(Ordering::Relaxed) >= 5, "{reloads:?} reloads");
    shop.edge.expect_metric("hostward_requests_total{status_class=\"5xx\"}", 0.0);
}

/// 344: a drain under load: every request an origin has begun to serve is answered whole, and no answer is ever cut.
#[test]
fn t344_a_drain_cuts_no_request() {
    const SLOW: usize = 24;
    const BUSY: usize = 8;
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() == "/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", &"page ".repeat(2000))
    });
    let edge = Edge::start(world.settings().limit("drain_timeout = \"60s\"").host(world.http_host(ACME, &origin)));
    let served = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (world, edge, served) = (&world, &edge, &served);
        let connect = move || Http::new(world.client().open(edge.address(), ACME).expect("a connection"));
        let slow: Vec<_> = (0..SLOW)
            .map(|_| {
                let mut http = connect();
                scope.spawn(move || {
                    let answer = http.get(ACME, "/slow");
                    assert_eq!(answer.body.start.len(), 10_000);
                    assert_eq!(answer.head.get("connection"), Some("close"), "a draining edge says so");
                    assert_eq!(http.end(), End::CloseNotify);
                })
            })
            .collect();
        let busy: Vec<_> = (0..BUSY)
            .map(|_| {
                let mut http = connect();
                scope.spawn(move || {
                    loop {
                        // A request that meets the goodbye of an idle connection was not begun: the client sends it again
                        // elsewhere. Once there is a head, all of the answer has to come.
                        if http.send(&format!("GET /busy HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).is_err() {
                            return;
                        }
                        let Ok(head) = http.reader.head() else { return };
                        assert_eq!(head.status(), 200);
                        let body = http.reader.body(crate::harness::http::Framing::Length(10_000));
                        body.unwrap_or_else(|end| panic!("an answer was cut: {end:?}"));
                        served.fetch_add(1, Ordering::Relaxed);
                        if head.get("connection") == Some("close") {
                            assert_eq!(http.end(), End::CloseNotify);
                            return;
                        }
                    }
                })
            })
            .collect();
        let slow_heads = || origin.heads().iter().filter(|(_, head)| head.target() == "/slow").count();
        wait::until("all slow requests are under way", SOON, || slow_heads() == SLOW);
        wait::until("the load runs", SOON, || served.load(Ordering::Relaxed) > 200);
        edge.signal(Signal::TERM);
        for client in busy {
            client.join().expect("no answer was cut");
        }
        origin.release();
        for client in slow {
            client.join().expect("a request under way is answered");
        }
    });
    assert_eq!(edge.exit_within(SOON).and_then(|status| status.code()), Some(0));
}
