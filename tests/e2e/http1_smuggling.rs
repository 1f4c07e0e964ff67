//! Requests that are malformed, ambiguous, or look like another one, at origins that tell exactly what they saw.

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

#[path = "../corpus/requests.rs"]
mod requests;

use requests::{CASES, Case, Verdict};

use crate::harness::http::{Http, HttpOrigin, Response};
use crate::harness::nginx::Nginx;
use crate::harness::{ACME, Edge, End, GLOBEX, SOON, World, wait};

/// Two servers: `seen.log` has a line for every request nginx began to read, `done.log` for every one that came whole,
/// because the first server reads all of a request before it asks the second one.
const TWO_SERVERS: &str = "log_format seen '$request_method $request_uri $status';
    log_format done '$request_method $request_uri $content_length';
    server { listen unix:HOME/done.sock; access_log HOME/done.log done; location / { return 200 done; } }";
const FIRST_SERVER: &str = "access_log HOME/seen.log seen; location / { proxy_pass http://unix:HOME/done.sock; }";

/// What nginx refuses though it is well-formed.
const NOT_FOR_NGINX: [&str; 2] = ["asterisk_for_options", "method_small"];

fn canary(case: &Case) -> String {
    format!("/smuggled-{}", case.name)
}

/// Sends the case and a canary behind it in one piece. Returns the answers up to the end of the connection or to the
/// canary's, whichever comes first, and whether the connection goes on.
fn send(world: &World, edge: &Edge, case: &Case) -> (Vec<Response>, bool) {
    let mut http = Http::new(world.client().open(edge.address(), ACME).expect("a connection"));
    let mut bytes = case.request.to_vec();
    bytes.extend_from_slice(format!("GET {} HTTP/1.1\r\nHost: {ACME}\r\n\r\n", canary(case)).as_bytes());
    http.session().send(&bytes).unwrap_or_else(|end| panic!("{}: {end:?}", case.name));
    let mut responses = Vec::new();
    while responses.len() < 2 {
        match http.response_to(false) {
            Ok(response) => {
                let closes = response.head.get("connection") == Some("close");
                responses.push(response);
                if closes {
                    assert_eq!(http.end(), End::CloseNotify, "{}", case.name);
                    return (responses, false);
                }
            }
            Err(end) => {
                assert!(matches!(end, End::CloseNotify | End::Truncated | End::Reset), "{}: {end:?}", case.name);
                return (responses, false);
            }
        }
    }
    (responses, true)
}

/// The answers a client must have had; returns how many requests the origin must have had, the canary with them.
#[track_caller]
fn check_answers(case: &Case, responses: &[Response], goes_on: bool, success: u16) -> usize {
    let statuses: Vec<_> = responses.iter().map(Response::status).collect();
    match case.verdict {
        Verdict::Refused(status) => {
            assert_eq!((&statuses[..], goes_on), (&[status][..], false), "{}", case.name);
            0
        }
        Verdict::BadChunks => {
            assert_eq!((&statuses[..], goes_on), (&[400][..], false), "{}", case.name);
            0
        }
        Verdict::NoBody | Verdict::Length(_) | Verdict::Chunked => {
            let count = statuses.len();
            assert!(count == 1 + usize::from(goes_on), "{}: {statuses:?}", case.name);
            assert_eq!(statuses[0], success, "{}", case.name);
            assert!(!goes_on || statuses[1] == 200, "{}: {statuses:?}", case.name);
            count
        }
    }
}

/// Whether a request is forwarded at all, and if so whether its body is sound: those whose traces come late come last.
fn order(case: &Case) -> u8 {
    match case.verdict {
        Verdict::Refused(_) => 0,
        Verdict::NoBody | Verdict::Length(_) | Verdict::Chunked => 1,
        Verdict::BadChunks => 2,
    }
}

fn sorted() -> Vec<&'static Case> {
    let mut cases: Vec<_> = CASES.iter().collect();
    cases.sort_by_key(|case| order(case));
    cases
}

/// Bytes of the content of a case's body.
fn content(case: &Case) -> &'static str {
    match (case.verdict, case.name) {
        (Verdict::NoBody, _) | (_, "chunk_empty") => "",
        (_, "chunk_capitals") => "hellohello",
        _ => "hello",
    }
}

/// 310: of every request of the corpus a real nginx sees one or none, never two; of those that are refused, nothing.
#[test]
fn t310_nginx_sees_one_request_or_none() {
    let world = World::new();
    let Some(nginx) = Nginx::start_with(TWO_SERVERS, FIRST_SERVER) else { return };
    let edge = Edge::start(world.settings().host(world.host_at(ACME, &[&nginx.url()]).http()));
    assert!(CASES.len() >= 60);
    let (mut seen, mut done) = (Vec::new(), Vec::new());
    for case in sorted() {
        let nginx_refuses = NOT_FOR_NGINX.contains(&case.name);
        let (responses, goes_on) = send(&world, &edge, case);
        let count = check_answers(case, &responses, goes_on, if nginx_refuses { 400 } else { 200 });
        if count > 0 && !nginx_refuses {
            let line = String::from_utf8_lossy(case.request.trim_ascii_start());
            let method = line.split(' ').next().unwrap_or_default().to_owned();
            let target = line.split(' ').nth(1).expect("a target").to_owned();
            let target = if target.starts_with("HTTP") { "/" } else { &target };
            seen.push(format!("{method} {target} 200"));
            let length = content(case).len();
            let framed = matches!(case.verdict, Verdict::Length(_) | Verdict::Chunked);
            done.push(format!("{method} {target} {}", if framed { length.to_string() } else { "-".into() }));
        } else if count > 0 {
            seen.push("400".into());
        }
        if goes_on {
            seen.push(format!("GET {} 200", canary(case)));
            done.push(format!("GET {} -", canary(case)));
        }
        let lines = |name| nginx.read(name).lines().count();
        wait::within(SOON, || lines("done.log") >= done.len());
        if case.verdict != Verdict::BadChunks {
            wait::within(SOON, || lines("seen.log") >= seen.len());
            assert_eq!(lines("seen.log"), seen.len(), "{}: {}", case.name, nginx.read("seen.log"));
        }
        assert_eq!(lines("done.log"), done.len(), "{}: {}", case.name, nginx.read("done.log"));
    }
    let log = nginx.read("done.log");
    assert_eq!(log.lines().collect::<Vec<_>>(), done);
    let log = nginx.read("seen.log");
    for (line, expected) in log.lines().zip(&seen) {
        assert!(line == expected || expected == "400" && line.ends_with(" 400"), "{line:?}, expected {expected:?}");
    }
    // Of chunks that are none nginx saw at most the head, and never what came behind them.
    for line in log.lines().skip(seen.len()) {
        assert!(line.starts_with("POST / ") && !line.ends_with(" 200"), "{line:?}");
    }
}

/// The target of a request and the content it came with.
type Arrived = (String, Vec<u8>);

/// 311: what stands in a forwarded body is the case's body, byte for byte, and nothing that came behind it.
#[test]
fn t311_no_byte_crosses_from_one_request_to_the_next() {
    let world = World::new();
    let bodies: Arc<Mutex<Vec<Arrived>>> = Arc::default();
    let record = Arc::clone(&bodies);
    let origin = HttpOrigin::start(move |head, talk| {
        let body = talk.body(head)?;
        record.lock().expect("no test panics while holding this").push((head.target().to_owned(), body.start));
        talk.answer("200 OK", "done")
    });
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin)));
    for case in sorted() {
        let (responses, goes_on) = send(&world, &edge, case);
        let count = check_answers(case, &responses, goes_on, 200);
        let arrived = std::mem::take(&mut *bodies.lock().expect("no test panics while holding this"));
        assert_eq!(arrived.len(), count, "{}: {arrived:?}", case.name);
        if let Some((target, body)) = arrived.first() {
            assert_eq!(body, content(case).as_bytes(), "{} as {target}", case.name);
        }
        if goes_on {
            assert_eq!(arrived[1], (canary(case), Vec::new()), "{}", case.name);
        }
        // Wherever the canary's name came to an origin, it was as the target of the canary.
        let raw: Vec<u8> =
            (0..usize::try_from(origin.accepted()).expect("a count")).flat_map(|n| origin.raw(n)).collect();
        let name = canary(case).into_bytes();
        let names =
            raw.windows(name.len() + 1).filter(|window| window[..name.len()] == name && window[name.len()] == b' ');
        assert_eq!(names.count(), usize::from(goes_on), "{}", case.name);
    }
}

/// 312: whatever a path looks like: if a rule denies `/admin/*` and lets it through, nginx does not find it there.
#[test]
fn t312_no_path_gets_around_a_rule() {
    let world = World::new();
    let locations = "location /admin/ { return 200 admin; } location /public/ { return 200 public; }
        location / { return 200 other; }";
    let Some(nginx) = Nginx::start_with("", locations) else { return };
    let guarded =
        world.host_at(ACME, &[&nginx.url()]).http().rule("path = \"/admin/*\"\ndeny = true").rule("allow = {}");
    let open = world.host_at(GLOBEX, &[&nginx.url()]).http();
    let edge = Edge::start(world.settings().host(guarded).host(open));
    let connect = |name: &str| Http::new(world.client().open(edge.address(), name).expect("a connection"));
    let (acme, globex) = (RefCell::new(connect(ACME)), RefCell::new(connect(GLOBEX)));
    // Asks on the connection, and makes a new one where the answer closes it.
    let ask = |http: &RefCell<Http>, name: &str, path: &str| {
        let response = http.borrow_mut().get(name, path);
        if response.head.get("connection") == Some("close") {
            *http.borrow_mut() = connect(name);
        }
        response
    };
    let piece = prop::sample::select(vec![
        "admin",
        "admin/",
        "/admin/",
        "public/",
        "x",
        "/",
        "//",
        "/./",
        "/../",
        "../",
        "..",
        ".",
        "%2f",
        "%2F",
        "%5c",
        "\\",
        "%2e",
        "%2E%2e",
        "/%2e%2e/",
        "/.%2e/",
        "%61dmin/",
        "adm%69n/",
        "%41dmin/",
        "ADMIN/",
        "Admin/",
        ";a=b",
        ";",
        "/..;/",
        "%3b",
        "%00",
        "\0",
        "%25",
        "%252e",
        "%2561dmin/",
        "?",
        "?/../admin/",
        "#",
        "%",
        "%zz",
        "%c0%ae",
        "%c0%af",
        "~",
        "*",
        "%20",
        "\t",
        "%09",
        "%0d%0a",
        ":",
        "@",
        "&",
        "=",
        "+",
        "%2fadmin%2f",
        "/admin/../",
        "secret",
    ]);
    let paths = prop_oneof![
        prop::collection::vec(piece.clone(), 1..6).prop_map(|pieces| format!("/{}", pieces.concat())),
        prop::collection::vec(piece, 0..4)
            .prop_map(|pieces| format!("{}admin/secret", ["/", &pieces.concat()].concat())),
    ];
    let (mut passed, mut reached) = (Cell::new(0), Cell::new(0));
    let config = Config { cases: 400, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&paths, |path| {
        let there = ask(&globex, GLOBEX, &path);
        let is_admin = there.status() == 200 && there.body.text() == "admin";
        reached.set(reached.get() + usize::from(is_admin));
        let answer = ask(&acme, ACME, &path);
        passed.set(passed.get() + usize::from(answer.status() == 200));
        if answer.status() == 200 && answer.body.text() == "admin" {
            return Err(TestCaseError::fail(format!("{path:?} gets around the rule")));
        }
        prop_assert!(matches!(answer.status(), 200 | 400 | 403), "{:?}: {}", path, answer.status());
        prop_assert!(!is_admin || answer.status() != 200, "{:?}", path);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    // The paths are worth trying: many lead there, and many are let through.
    assert!(*reached.get_mut() > 20 && *passed.get_mut() > 20, "{reached:?} {passed:?}");
    assert_eq!(acme.borrow_mut().get(ACME, "/admin/").status(), 403);
    assert_eq!(acme.borrow_mut().get(ACME, "/public/").body.text(), "public");
}
