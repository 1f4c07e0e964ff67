//! 250-254: the access log's lines of HTTP requests.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::http::{Http, HttpOrigin};
use crate::harness::{ACME, Edge, GLOBEX, SOON, World, wait};

/// Waits for this many lines.
#[track_caller]
fn expect_lines(path: &Path, count: usize) -> Vec<Value> {
    let whole = || fs::read_to_string(path).unwrap_or_default().matches('\n').count();
    wait::for_value("lines in the access log", SOON, &count, whole);
    let text = fs::read_to_string(path).expect("the log");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// 250: each request leaves one line, refused ones too: what was asked, what was answered, and by whom.
#[test]
fn t250_each_request_leaves_its_line() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).request(&[&world.acme]);
    // Nobody listens on a port that has just been given back.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let dead = world.host_at(GLOBEX, &[&format!("http://{gone}")]).http();
    let edge = Edge::start(world.settings().host(host).host(dead).log("access = \"access.log\""));
    let mut http = Http::new(world.acme_client("ops-ann").open(edge.address(), ACME).expect("a connection"));
    assert_eq!(http.get(ACME, "/a\"b?token=secret").status(), 200);
    let posted = http.ask(&format!("POST /p HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 5\r\n\r\nhello"));
    assert_eq!(posted.status(), 200);
    assert_eq!(http.get(GLOBEX, "/other").status(), 421);
    assert_eq!(http.ask("GET / HTTP/1.1\r\n\r\n").status(), 400);
    let mut other = Http::new(world.client().open(edge.address(), GLOBEX).expect("a connection"));
    assert_eq!(other.get(GLOBEX, "/x").status(), 502);

    let file = edge.file().with_file_name("access.log");
    let lines = expect_lines(&file, 5);
    assert!(!fs::read_to_string(&file).expect("the log").contains("secret"), "queries are not logged");
    let line = |path: &str| {
        lines.iter().find(|line| line["path"] == path).unwrap_or_else(|| panic!("no line of {path}: {lines:?}"))
    };
    for (path, method, status, bytes_in) in [("/a\"b", "GET", 200, 0), ("/p", "POST", 200, 5)] {
        let line = line(path);
        assert_eq!(
            (&line["method"], &line["status"], &line["bytes_in"]),
            (&method.into(), &status.into(), &bytes_in.into())
        );
        assert_eq!((&line["protocol"], &line["authority"]), (&"http/1.1".into(), &ACME.into()), "{line}");
        assert_eq!((&line["verdict"], &line["client_subject"]), (&"SUCCESS".into(), &"CN=ops-ann".into()), "{line}");
        let address = line["origin_address"].as_str().unwrap_or_default();
        assert_eq!(origin.url(), format!("http://{address}"), "{line}");
        assert!(line["origin_us"].is_u64() && line["bytes_out"].as_u64() > Some(0), "{line}");
        assert!(line["duration_us"].as_u64() >= line["origin_us"].as_u64(), "{line}");
        // The origin was told the same id.
        let id = line["request_id"].as_str().unwrap_or_default();
        assert!(
            !id.is_empty() && origin.heads().iter().any(|(_, head)| head.get("x-request-id") == Some(id)),
            "{line}"
        );
    }
    // The second request found the first one's connection.
    assert!(line("/a\"b").get("origin_connect_us").is_some() && line("/p").get("origin_connect_us").is_none());
    let misdirected = line("/other");
    assert_eq!((&misdirected["status"], &misdirected["authority"]), (&421.into(), &GLOBEX.into()));
    assert!(misdirected.get("origin").is_none() && misdirected["bytes_out"].as_u64() > Some(0), "{misdirected}");
    let malformed = lines.iter().find(|line| line["status"] == 400).expect("a line of the malformed request");
    assert_eq!(malformed["hostname"], ACME);
    let unreachable = line("/x");
    assert_eq!((&unreachable["status"], &unreachable["proxy_error"]), (&502.into(), &"connection_refused".into()));
}

/// 251: what is cut off leaves a line that says so: by a reload that withdraws trust, and by the origin.
#[test]
fn t251_what_is_cut_off_is_told() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
        if head.target() == "/waits" {
            talk.wait_for_release();
        }
        talk.finish();
        Ok(())
    });
    let host = world.http_host(ACME, &origin).request(&[&world.acme]);
    let edge = Edge::start(world.settings().host(host).log("access = \"access.log\""));
    let open = || Http::new(world.acme_client("ops-ann").open(edge.address(), ACME).expect("a connection"));
    let ask = |http: &mut Http, path: &str| {
        http.send(&format!("GET {path} HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    };
    let mut cut = open();
    ask(&mut cut, "/dies");
    let file = edge.file().with_file_name("access.log");
    let line = expect_lines(&file, 1).pop().expect("a line");
    assert_eq!(
        (&line["path"], &line["status"], &line["end"]),
        (&"/dies".into(), &200.into(), &"origin_aborted".into())
    );
    let mut waiting = open();
    ask(&mut waiting, "/waits");
    wait::until("the request is under way", SOON, || origin.heads().len() == 2);
    edge.reconfigure(|settings| settings.named(ACME).set_auth(crate::harness::Auth::Require, &[&world.globex]));
    let line = expect_lines(&file, 2).pop().expect("a line");
    assert_eq!((&line["path"], &line["end"]), (&"/waits".into(), &"trust_changed".into()), "{line}");
    origin.release();
}
