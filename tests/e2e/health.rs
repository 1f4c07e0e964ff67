//! Checks of origins from the control plane, and what a client and the log are told when no answer came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::http::{Http, HttpOrigin, Vacant};
use crate::harness::{ACME, Edge, SOON, World, wait};

fn connect(world: &World, edge: &Edge) -> Http {
    Http::new(world.client().open(edge.address(), ACME).expect("a connection"))
}

/// An edge with one worker and these addresses, checked often.
fn start(world: &World, urls: &[&str], check: &str) -> Edge {
    let host = world.host_at(ACME, urls).http();
    let check = format!("check = {{ {check}, interval = \"100ms\", timeout = \"2s\" }}");
    let host = host.origin_line(&check).origin_line("slow_start = \"0s\"");
    Edge::start(world.settings().workers(1).host(host))
}

/// Waits until the log has told of so many events of this name.
#[track_caller]
fn expect_events(edge: &Edge, name: &str, count: usize) -> Vec<Value> {
    wait::for_some(&format!("{count} {name}"), SOON, || {
        let events = edge.events.named(&[name]);
        (events.len() >= count).then_some(events)
    })
}

fn addresses(edge: &Edge, state: &str) -> f64 {
    edge.metric(&format!("hostward_origin_addresses{{state=\"{state}\"}}"))
}

/// 405: an address whose check is not answered as it should gets no requests, although it would answer them; once the check
/// passes it is back. The log, the metrics and `status` say so.
#[test]
fn t405_a_check_marks_down_and_up() {
    let world = World::new();
    let ready = Arc::new(AtomicBool::new(true));
    let is_ready = Arc::clone(&ready);
    let one = HttpOrigin::start(move |head, talk| {
        talk.body(head)?;
        match (head.target(), is_ready.load(Ordering::Acquire)) {
            ("/ready", true) => talk.answer("204 No Content", ""),
            ("/ready", false) => talk.answer("500 Internal Server Error", ""),
            _ => talk.answer("200 OK", "one"),
        }
    });
    let two = HttpOrigin::named("two");
    let check = "kind = \"http\", path = \"/ready\", host = \"check.test\", expect = [200, 204]";
    let edge = start(&world, &[&one.url(), &two.url()], check);
    let mut http = connect(&world, &edge);
    let round = |http: &mut Http| (0..6).map(|_| http.get(ACME, "/").body.text()).collect::<Vec<_>>();
    assert_eq!(round(&mut http).iter().filter(|name| *name == "one").count(), 3);
    let checked = one.heads().into_iter().find(|(_, head)| head.target() == "/ready").expect("a check").1;
    assert_eq!(checked.get("host"), Some("check.test"));

    ready.store(false, Ordering::Release);
    let down = expect_events(&edge, "origin_down", 1);
    let address = one.url().replace("http://", "");
    assert_eq!((&down[0]["address"], &down[0]["cause"]), (&address.as_str().into(), &"answered 500".into()));
    assert_eq!((addresses(&edge, "up"), addresses(&edge, "down")), (1.0, 1.0));
    wait::until("workers know", SOON, || round(&mut http).iter().all(|name| name == "two"));
    assert_eq!(round(&mut http), ["two"; 6]);
    let status = edge.cli("status").stdout;
    assert!(status.contains("answered 500") && status.contains(&address), "{status}");

    ready.store(true, Ordering::Release);
    assert_eq!(expect_events(&edge, "origin_up", 1)[0]["address"], address.as_str());
    wait::until("workers know", SOON, || round(&mut http).contains(&"one".to_owned()));
    assert_eq!((addresses(&edge, "up"), addresses(&edge, "down")), (2.0, 0.0));
}

/// 406: an address that is dead from the beginning is down after its first check, and no client waits for it any more.
#[test]
fn t406_the_first_check_decides_alone() {
    let world = World::new();
    let (vacant, two) = (Vacant::new(), HttpOrigin::named("two"));
    let edge = start(&world, &[&vacant.url(), &two.url()], "kind = \"tcp\", unhealthy_after = 100");
    expect_events(&edge, "origin_down", 1);
    let mut http = connect(&world, &edge);
    wait::until("workers know", SOON, || {
        let before = edge.metric("hostward_origin_connects_total{result=\"failed\"}");
        (0..6).for_each(|_| assert_eq!(http.get(ACME, "/").body.text(), "two"));
        edge.metric("hostward_origin_connects_total{result=\"failed\"}") == before
    });
    let _one = HttpOrigin::start_at(vacant.listen(), |head, talk| {
        talk.body(head)?;
        talk.answer("200 OK", "one")
    });
    expect_events(&edge, "origin_up", 1);
    wait::until("it serves", SOON, || http.get(ACME, "/").body.text() == "one");
}

/// 407: with every address down, all are tried all the same; what cannot be reached then is 503 and no riddle.
#[test]
fn t407_with_all_down_all_are_tried() {
    let world = World::new();
    let refusing = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer(if head.target() == "/" { "503 Service Unavailable" } else { "200 OK" }, "well")
    });
    let edge = start(&world, &[&refusing.url()], "kind = \"http\"");
    expect_events(&edge, "origin_down", 1);
    wait::until("it is chosen all the same, and counted", SOON, || {
        assert_eq!(connect(&world, &edge).get(ACME, "/served").body.text(), "well");
        edge.metric("hostward_origin_panics_total") > 0.0
    });

    let vacant = Vacant::new();
    let edge = start(&world, &[&vacant.url()], "kind = \"tcp\"");
    expect_events(&edge, "origin_down", 1);
    wait::until("the client is told that the origin is unavailable", SOON, || {
        let response = connect(&world, &edge).get(ACME, "/");
        let told = response.head.get("proxy-status").unwrap_or_default().to_owned();
        (response.status(), told.as_str()) == (503, "hostward; error=destination_unavailable")
    });
}

/// 408: a reload may begin, change and end checks; what is no longer checked is no longer down.
#[test]
fn t408_checks_follow_the_configuration() {
    let world = World::new();
    let (one, two) = (HttpOrigin::named("one"), HttpOrigin::named("two"));
    let host = world.host_at(ACME, &[&one.url(), &two.url()]).http().origin_line("slow_start = \"0s\"");
    let edge = Edge::start(world.settings().workers(1).host(host));
    assert_eq!((addresses(&edge, "up"), addresses(&edge, "down")), (0.0, 0.0));
    let check = |expect: u16| format!("check = {{ kind = \"http\", expect = {expect}, interval = \"100ms\" }}");
    edge.reconfigure(|settings| settings.named(ACME).origin_lines.push(check(204)));
    expect_events(&edge, "origin_down", 2);
    assert_eq!(addresses(&edge, "down"), 2.0);
    edge.reconfigure(|settings| {
        let lines = &mut settings.named(ACME).origin_lines;
        lines.pop();
        lines.push(check(200));
    });
    wait::until("both are up", SOON, || addresses(&edge, "up") == 2.0);
    edge.reconfigure(|settings| drop(settings.named(ACME).origin_lines.pop()));
    wait::until("none is checked", SOON, || addresses(&edge, "up") + addresses(&edge, "down") == 0.0);
    let asked = one.heads().len();
    assert_eq!(connect(&world, &edge).get(ACME, "/").status(), 200);
    assert!(one.heads().len() <= asked + 1, "checks go on");
}

/// What came of one request: the status, `Proxy-Status`, and the line in the log.
struct Told {
    status: u16,
    proxy_status: String,
    line: Value,
}

/// An edge with an access log, one worker and this host.
struct Logged {
    edge: Edge,
    directory: tempfile::TempDir,
}

impl Logged {
    fn start(world: &World, urls: &[&str], lines: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let host = lines.iter().fold(world.host_at(ACME, urls).http(), |host, line| host.origin_line(line));
        let access = format!("access = {:?}", directory.path().join("access.log"));
        let edge = Edge::start(world.settings().workers(1).log(&access).host(host));
        Self { edge, directory }
    }

    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    #[track_caller]
    fn ask(&self, world: &World, path: &str) -> Told {
        let before = self.lines().len();
        let response = connect(world, &self.edge).get(ACME, path);
        let line = wait::for_some("the access log has its line", SOON, || self.lines().get(before).cloned());
        let proxy_status = response.head.get("proxy-status").unwrap_or_default().to_owned();
        Told { status: response.status(), proxy_status, line }
    }
}

/// Where the origin is in a row of the table of causes.
enum At {
    Script,
    Vacant,
    BlackHole,
    Unresolved,
}

/// 409: whatever 502, 503 and 504 there is, `Proxy-Status` and both logs name the cause alike, the logs name the address and
/// the client is not told it, and a counter moves.
#[test]
fn t409_no_gateway_error_hides_its_cause() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        match head.target() {
            "/eof" => {}
            "/half" => talk.send("HTTP/1.1 200 OK\r\nContent-Le")?,
            "/nonsense" => talk.send("SSH-2.0-OpenSSH_9.9\r\n\r\n")?,
            "/stall" => talk.wait_for_release(),
            _ => return talk.answer("200 OK", "fine"),
        }
        Err(std::io::ErrorKind::Other.into())
    });
    let vacant = Vacant::new();
    let hole = crate::harness::origin::BlackHole::start();
    let connects = |result| format!("hostward_origin_connects_total{{result=\"{result}\"}}");
    let timeouts = |timeout| format!("hostward_timeouts_total{{timeout=\"{timeout}\"}}");
    let server_errors = "hostward_requests_total{status_class=\"5xx\"}".to_owned();
    let rows = [
        (At::Vacant, "/", "", 502, "connection_refused", "origin_unreachable", connects("failed")),
        (
            At::BlackHole,
            "/",
            "connect_timeout = \"200ms\"",
            504,
            "connection_timeout",
            "origin_unreachable",
            timeouts("connect"),
        ),
        (
            At::BlackHole,
            "/",
            "request_timeout = \"200ms\"",
            504,
            "connection_timeout",
            "origin_unreachable",
            timeouts("request"),
        ),
        (At::Unresolved, "/", "", 503, "destination_unavailable", "origin_unreachable", connects("unresolved")),
        (At::Script, "/eof", "", 502, "connection_terminated", "origin_failed", server_errors.clone()),
        (At::Script, "/half", "", 502, "http_response_incomplete", "origin_failed", server_errors.clone()),
        (At::Script, "/nonsense", "", 502, "http_protocol_error", "origin_failed", server_errors),
        (
            At::Script,
            "/stall",
            "response_timeout = \"200ms\"",
            504,
            "http_response_timeout",
            "origin_failed",
            timeouts("response"),
        ),
        (
            At::Script,
            "/stall",
            "request_timeout = \"200ms\"",
            504,
            "http_response_timeout",
            "origin_failed",
            timeouts("request"),
        ),
    ];
    for (at, path, line, status, error, event, counter) in rows {
        let url = match at {
            At::Script => origin.url(),
            At::Vacant => vacant.url(),
            At::BlackHole => hole.url().to_owned(),
            At::Unresolved => "http://does-not-exist.invalid:80".to_owned(),
        };
        let logged = Logged::start(&world, &[&url], &[line]);
        let told = logged.ask(&world, path);
        let row = format!("{error} of {path} {line}");
        assert_eq!((told.status, told.proxy_status), (status, format!("hostward; error={error}")), "{row}");
        assert_eq!((&told.line["status"], &told.line["proxy_error"]), (&status.into(), &error.into()), "{row}");
        let events = wait::for_some("an event", SOON, || {
            Some(logged.edge.events.named(&[event])).filter(|events| !events.is_empty())
        });
        assert_eq!((&events[0]["error"], &events[0]["hostname"]), (&error.into(), &ACME.into()), "{row}");
        let address = url.rsplit('/').next().expect("an address");
        if !matches!(at, At::Unresolved) {
            assert_eq!(events[0]["address"], address, "{row}");
            assert_eq!(told.line["origin_address"], address, "{row}");
        }
        assert!(logged.edge.metric(&counter) >= 1.0, "{row}: {counter}");
    }
    origin.release();
}

/// An origin of two addresses: the first does what it is told to, the second is well.
fn two(world: &World, first: &HttpOrigin, second: &HttpOrigin, lines: &[&str]) -> Logged {
    Logged::start(world, &[&first.url(), &second.url()], lines)
}

fn retries(edge: &Edge, result: &str) -> f64 {
    edge.metric(&format!("hostward_origin_retries_total{{result=\"{result}\"}}"))
}

/// 410: with `retries`, a request that was not answered goes to the next address: whether the connection ended or
/// `response_timeout` did. Nothing is sent again that has a body or another effect when repeated.
#[test]
fn t410_what_is_safe_is_sent_again() {
    let world = World::new();
    let sick = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() == "/stall" {
            talk.wait_for_release();
        }
        Err(std::io::ErrorKind::Other.into())
    });
    let well = HttpOrigin::named("well");
    let lines = ["retries = 1", "eject_after = \"off\"", "response_timeout = \"300ms\""];
    let logged = two(&world, &sick, &well, &lines);
    let edge = &logged.edge;
    for path in ["/eof", "/stall", "/eof", "/stall"] {
        let told = logged.ask(&world, path);
        assert_eq!(told.status, 200, "{path}");
    }
    let asked = sick.heads().len();
    assert!(asked >= 2, "it had its turns");
    assert_eq!(retries(edge, "sent"), asked as f64);
    assert_eq!(logged.lines().iter().filter(|line| line["retried"] == true).count(), asked);
    // A POST takes turns too, and fails where it fails.
    let mut statuses: Vec<u16> = (0..2)
        .map(|_| {
            let post = format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 0\r\n\r\n");
            connect(&world, edge).ask(&post).status()
        })
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502]);
    let with_body = |_| {
        let put = format!("PUT / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 2\r\n\r\nok");
        connect(&world, edge).ask(&put).status()
    };
    let mut statuses: Vec<u16> = (0..2).map(with_body).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 502]);
    assert_eq!(retries(edge, "sent"), asked as f64, "neither was sent again");
    sick.release();
}

/// 411: no more is sent again than the budget allows: the rest is told its error, and counted.
#[test]
fn t411_the_retry_budget_holds() {
    let world = World::new();
    let sick = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        Err(std::io::ErrorKind::Other.into())
    });
    let logged = Logged::start(&world, &[&sick.url()], &["retries = 5", "eject_after = \"off\""]);
    let begun = std::time::Instant::now();
    for _ in 0..50 {
        assert_eq!(connect(&world, &logged.edge).get(ACME, "/").status(), 502);
    }
    let (sent, refused) = (retries(&logged.edge, "sent"), retries(&logged.edge, "budget_exhausted"));
    // A fifth of the requests, three to begin with and three a second.
    let bound = 50.0 / 5.0 + 3.0 + 3.0 * (begun.elapsed().as_secs_f64() + 1.0);
    assert!(sent >= 3.0 && sent <= bound, "{sent} of at most {bound}");
    assert!(refused >= 20.0, "{refused}");
    assert_eq!(sick.heads().len() as f64, 50.0 + sent);
}

/// 412: with `retry_on_status`, that answer is not passed on while another try is left; the last one is.
#[test]
fn t412_a_status_may_be_tried_again() {
    let world = World::new();
    let busy = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.answer("503 Service Unavailable", "busy")
    });
    let well = HttpOrigin::named("well");
    let lines = ["retries = 1", "retry_on_status = 503"];
    let logged = two(&world, &busy, &well, &lines);
    let mut http = connect(&world, &logged.edge);
    // As many as the budget has at least.
    for _ in 0..3 {
        assert_eq!(http.get(ACME, "/").body.text(), "well");
    }
    assert_eq!(retries(&logged.edge, "sent"), busy.heads().len() as f64);
    let all_busy = Logged::start(&world, &[&busy.url()], &lines);
    let response = connect(&world, &all_busy.edge).get(ACME, "/");
    assert_eq!((response.status(), response.body.text().as_str()), (503, "busy"), "what it says at last is passed on");
    assert_eq!(response.head.get("proxy-status"), None);
    assert_eq!(retries(&all_busy.edge, "sent"), 1.0);
}

/// 413: `request_timeout` bounds the whole: a response that has begun breaks off, and a body that does not come is 408.
#[test]
fn t413_the_whole_has_a_time_limit() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
        // Never silent, and never done.
        loop {
            talk.send("x")?;
            let _ = talk.stream().set_read_timeout(Some(std::time::Duration::from_millis(20)));
            match std::io::Read::read(talk.stream(), &mut [0]) {
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {}
                _ => return Err(std::io::ErrorKind::Other.into()),
            }
        }
    });
    let logged = Logged::start(&world, &[&origin.url()], &["request_timeout = \"400ms\""]);
    let mut http = connect(&world, &logged.edge);
    http.send(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    assert_eq!(http.reader.head().expect("a head").status(), 200);
    assert_ne!(http.end(), crate::harness::End::CloseNotify, "half a response is no response");
    logged.edge.expect_metric("hostward_timeouts_total{timeout=\"request\"}", 1.0);
    logged.edge.expect_metric("hostward_tunnels_ended_total{end=\"request_timed_out\"}", 1.0);
    wait::until("the origin's connection is gone", SOON, || origin.open() == 0);
    let mut http = connect(&world, &logged.edge);
    let response = http.ask(&format!("PUT / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 10\r\n\r\nfour"));
    assert_eq!(response.status(), 408);
}
