//! What a hostname changes on the way: host, path and headers, traces that pass or begin; how deep a client's chain may be;
//! and that the pages which tell of it are true.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustls::AlertDescription as Alert;
use serde_json::Value;

use crate::harness::http::{Head, Http, HttpOrigin};
use crate::harness::process::{HOSTWARD, run, tool};
use crate::harness::{ACME, Client, Edge, End, Origin, SOON, Tls, World, wait};

fn connect(client: &Client, edge: &Edge) -> Http {
    Http::new(client.open(edge.address(), ACME).expect("a connection"))
}

/// The head of the request that came last.
#[track_caller]
fn last(origin: &HttpOrigin) -> Head {
    origin.heads().pop().expect("a request").1
}

/// 430: host, path and headers are the hostname's, whatever the client sends; rules have judged what it sent.
#[test]
fn t430_host_path_and_headers_are_rewritten() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world
        .http_host(ACME, &origin)
        .request(&[&world.acme])
        .line("host_header = \"app.internal:8080\"")
        .line("strip_prefix = \"/api\"")
        .line("add_headers = { X-Env = \"prod\", X-Tenant = \"acme, inc.\" }")
        .line("remove_headers = [\"X-Debug\", \"Cookie\"]")
        .line("keep_unusual_headers = true")
        .rule("path = \"/api/admin/*\"\ndeny = true")
        .rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let mut http = connect(&world.acme_client("alice"), &edge);
    for (path, forwarded) in
        [("/api/a/b?c=/api", "/a/b?c=/api"), ("/api", "/"), ("/api/", "/"), ("/api?x", "/?x"), ("/api/api/a", "/api/a")]
    {
        let answer = http.ask(&format!(
            "GET {path} HTTP/1.1\r\nHost: {ACME}\r\nx-env: forged\r\nX_Env: forged\r\nX-TENANT: forged\r\n\
             x-debug: 1\r\nX_Debug: 1\r\nCookie: a=b\r\nX-Other: stays\r\nConnection: X-Env, X-Tenant\r\n\r\n"
        ));
        assert_eq!(answer.status(), 200, "{path}");
        let head = last(&origin);
        assert_eq!(head.target(), forwarded);
        assert_eq!((head.get("host"), head.get("x-forwarded-host")), (Some("app.internal:8080"), Some(ACME)));
        assert!(head.get("forwarded").is_some_and(|value| value.ends_with(&format!("host={ACME}"))), "{head:?}");
        assert_eq!((head.get("x-env"), head.get("x-tenant")), (Some("prod"), Some("acme, inc.")));
        assert_eq!(head.get("x-other"), Some("stays"));
        assert_eq!(head.get("x-client-cert-verify"), Some("SUCCESS"));
        let text = format!("{head:?}").to_lowercase();
        assert!(!text.contains("forged") && !text.contains("debug") && !text.contains("cookie"), "{head:?}");
    }
    // The rule is about the client's path, not about what is left of it.
    assert_eq!(http.get(ACME, "/api/admin/x").status(), 403);
    assert_eq!(http.get(ACME, "/api/x/admin/x").status(), 200);
    // With a body, and one that is not known beforehand.
    let answer = http.ask(&format!(
        "POST /api/p HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\nX-Env: forged\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    ));
    assert_eq!((answer.status(), last(&origin).get("x-env")), (200, Some("prod")));
    assert_eq!(http.ask(&format!("OPTIONS * HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).status(), 200);
    assert_eq!(last(&origin).target(), "*");
}

/// 431: what is not below the prefix is not there, and what could be read as another path or host never leaves.
#[test]
fn t431_no_path_escapes_its_prefix() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin).line("strip_prefix = \"/api\"")));
    let mut http = connect(&world.client(), &edge);
    for path in ["/", "/apis", "/API/x", "/x/api/y", "/api;v=1/x", "/x?/api/y"] {
        assert_eq!(http.get(ACME, path).status(), 404, "{path}");
    }
    // The connection goes on.
    assert_eq!(http.get(ACME, "/api/x").status(), 200);
    edge.expect_metric("hostward_requests_refused_total{reason=\"not_found\"}", 6.0);
    for path in [
        "/api//evil.test/",
        "/api///",
        "//api/x",
        "/api/\\evil.test",
        "/api\\x",
        "/api/%2Fevil.test",
        "/api/%5Cevil.test",
        "/api/../admin",
        "/api/..",
        "/api/./x",
        "/api/..;/admin",
        "/%61pi/x",
        "/api/%2e%2e/admin",
        "/api/;/x",
    ] {
        let mut http = connect(&world.client(), &edge);
        assert_eq!(http.get(ACME, path).status(), 400, "{path}");
    }
    let targets: Vec<_> = origin.heads().iter().map(|(_, head)| head.target().to_owned()).collect();
    assert_eq!(targets, ["/x"]);
}

/// 432: responses are changed for the client: what is put in stands once, what is taken out is gone, framing is untouched.
#[test]
fn t432_responses_are_rewritten() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        let fields = "Server: nginx\r\nX-Powered-By: PHP\r\nx_powered_by: PHP\r\nStrict-Transport-Security: max-age=0\r\n\
                      Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n";
        match head.target() {
            "/chunked" => talk
                .send(format!("HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")),
            _ => {
                let body = if head.method() == "HEAD" { "" } else { "hello" };
                talk.send(format!(
                    "HTTP/1.1 103 Early Hints\r\nServer: nginx\r\n\r\nHTTP/1.1 200 OK\r\n{fields}Content-Length: 5\r\n\r\n{body}"
                ))
            }
        }
    });
    let host = world
        .http_host(ACME, &origin)
        .line("response_headers = { Strict-Transport-Security = \"max-age=31536000\" }")
        .line("remove_response_headers = [\"Server\", \"X-Powered-By\"]");
    let edge = Edge::start(world.settings().host(host));
    let mut http = connect(&world.client(), &edge);
    for (method, path) in [("GET", "/chunked"), ("GET", "/plain"), ("HEAD", "/plain"), ("GET", "/chunked")] {
        http.send(&format!("{method} {path} HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        let answer = http.response_to(method == "HEAD").expect("a response");
        assert_eq!(answer.status(), 200);
        let hints = answer.interim.iter().map(|hints| (hints.get("server"), hints.get("strict-transport-security")));
        assert!(hints.eq((path == "/plain").then_some((Some("nginx"), None))), "{method} {path}: {answer:?}");
        assert_eq!(answer.head.get("strict-transport-security"), Some("max-age=31536000"), "{method} {path}");
        assert_eq!(answer.head.all("set-cookie"), ["a=b", "c=d"]);
        assert!(!format!("{:?}", answer.head).to_lowercase().contains("powered"), "{:?}", answer.head);
        assert_eq!(answer.head.get("server"), None);
        if method == "GET" {
            assert_eq!(answer.body.text(), "hello");
        }
    }
    assert_eq!(origin.accepted(), 1, "one pooled connection carried them all");
    // What changes is in force for the next request of an open connection.
    edge.reconfigure(|settings| {
        settings.named(ACME).lines = vec!["response_headers = { X-Env = \"next\" }".into()];
    });
    let answer = http.get(ACME, "/chunked");
    assert_eq!((answer.head.get("x-env"), answer.head.get("server")), (Some("next"), Some("nginx")));
}

/// 433: a trace that is well-formed passes, a malformed one does not; with sampling one begins where there is none, and the
/// log names it.
#[test]
fn t433_traces_pass_or_begin() {
    const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{ID}-00f067aa0ba902b7-01");
    let world = World::new();
    for sampling in ["0.0", "1.0", "0.000001"] {
        let origin = HttpOrigin::mirror();
        let settings = world.settings().server(&format!("trace_sampling = {sampling}"));
        let edge = Edge::start(settings.host(world.http_host(ACME, &origin)).log("access = \"access.log\""));
        let mut http = connect(&world.client(), &edge);
        let mut ask = |fields: &str| {
            assert_eq!(http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n{fields}\r\n")).status(), 200);
            let head = last(&origin);
            (head.get("traceparent").map(str::to_owned), head.all("tracestate").join(","))
        };
        assert_eq!(ask(&format!("traceparent: {parent}\r\ntracestate: a=b\r\n")), (Some(parent.clone()), "a=b".into()));
        assert_eq!(ask(&format!("TraceParent: {parent}\r\nTRACESTATE: =\r\n")), (Some(parent.clone()), String::new()));
        let mut begun = Vec::new();
        for fields in [
            String::new(),
            "tracestate: a=b\r\n".to_owned(),
            format!("traceparent: {}\r\ntracestate: a=b\r\n", parent.to_uppercase()),
            format!("traceparent: {parent}\r\ntraceparent: {parent}\r\n"),
            format!("traceparent: 00-{}-00f067aa0ba902b7-01\r\n", "0".repeat(32)),
        ] {
            let (traceparent, tracestate) = ask(&fields);
            assert_eq!(tracestate, "");
            begun.push(traceparent);
        }
        let file = edge.file().with_file_name("access.log");
        let whole = || fs::read_to_string(&file).unwrap_or_default().matches('\n').count();
        wait::for_value("lines in the access log", SOON, &7, whole);
        let text = fs::read_to_string(&file).expect("the log");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let logged: Vec<_> = lines.map(|line| line["trace_id"].as_str().map(str::to_owned)).collect();
        assert_eq!(logged[..2], [Some(ID.to_owned()), Some(ID.to_owned())]);
        if sampling == "0.0" {
            assert_eq!(begun, vec![None; 5]);
            assert_eq!(logged[2..], vec![None; 5]);
            continue;
        }
        let flags = if sampling == "1.0" { "01" } else { "00" };
        for (traceparent, logged) in begun.iter().zip(&logged[2..]) {
            let parts: Vec<_> = traceparent.as_deref().expect("begun").split('-').collect();
            assert_eq!((parts[0], parts[1].len(), parts[2].len(), parts[3]), ("00", 32, 16, flags), "{parts:?}");
            assert_eq!(logged.as_deref(), Some(parts[1]));
        }
        begun.sort();
        begun.dedup();
        assert_eq!(begun.len(), 5, "each is a trace of its own");
    }
}

/// 434: a chain deeper than `verify_depth` is refused as such, in both versions; where certificates are only requested it is
/// the verdict.
#[test]
fn t434_a_chain_is_no_deeper_than_allowed() {
    let world = World::new();
    let clients: Vec<_> = (0..4)
        .map(|depth| match depth {
            0 => world.acme.leaf("alice").issue(),
            _ => world.acme.descend(depth).leaf("alice").issue(),
        })
        .map(|identity| world.client().with_identity(identity))
        .collect();
    let mut refused = 0.0;
    for allowed in 0..3 {
        let origin = Origin::echo();
        let host = world.host(ACME, &origin).require(&[&world.acme]).auth_line(&format!("verify_depth = {allowed}"));
        let edge = Edge::start(world.settings().host(host));
        for (depth, client) in clients.iter().enumerate() {
            for version in Tls::BOTH {
                let client = client.clone().tls(version);
                if depth <= allowed {
                    client.expect_in(edge.address(), ACME);
                } else {
                    client.expect_alert(edge.address(), ACME, Alert::BadCertificate);
                    refused += 1.0;
                }
            }
        }
        edge.expect_refusals("chain_too_long", refused);
        refused = 0.0;
        world.globex_client("mallory").expect_alert(edge.address(), ACME, Alert::UnknownCA);
    }
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).request(&[&world.acme]).auth_line("verify_depth = 1");
    let edge = Edge::start(world.settings().host(host));
    for (client, verdict) in
        clients.iter().zip(["SUCCESS", "SUCCESS", "FAILED:chain_too_long", "FAILED:chain_too_long"])
    {
        assert_eq!(connect(client, &edge).get(ACME, "/").status(), 200);
        assert_eq!(last(&origin).get("x-client-cert-verify"), Some(verdict));
        assert_eq!(last(&origin).get("client-cert").is_some(), verdict == "SUCCESS");
    }
}

/// 435: a smaller `verify_depth` acts on what is open within a second, and on tickets and remembered chains at once.
#[test]
fn t435_a_smaller_depth_acts_on_what_is_open() {
    let world = World::new();
    let origin = Origin::echo();
    let host = world.host(ACME, &origin).require(&[&world.acme]);
    for version in Tls::BOTH {
        let edge = Edge::start(world.settings().workers(1).host(host.clone()));
        let deep = world.client().with_identity(world.acme.descend(2).leaf("deep").issue()).tls(version);
        let flat = world.acme_client("flat").tls(version);
        let mut open = [deep.expect_in(edge.address(), ACME), flat.expect_in(edge.address(), ACME)];
        assert!(deep.expect_in(edge.address(), ACME).resumed(), "control: the ticket is good");
        edge.reconfigure(|settings| settings.named(ACME).auth_lines = vec!["verify_depth = 2".into()]);
        open.iter_mut().for_each(|session| session.ping().expect("deep enough for both"));
        edge.reconfigure(|settings| settings.named(ACME).auth_lines = vec!["verify_depth = 1".into()]);
        assert!(open[0].end_within(Duration::from_secs(1)).is_some(), "{version:?}: still open");
        open[1].ping().expect("what is within the bound stays");
        // The ticket does not open, and the chain that was remembered is judged by the new bound.
        deep.expect_alert(edge.address(), ACME, Alert::BadCertificate);
        // Without its certificate at hand a client with the ticket alone does not get in either.
        deep.present(None);
        deep.expect_alert(edge.address(), ACME, Alert::CertificateRequired);
        flat.expect_in(edge.address(), ACME);
    }
    // An HTTP connection between two requests is closed as well, before another reaches the origin.
    let origin = HttpOrigin::mirror();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin).require(&[&world.acme])));
    let deep = world.client().with_identity(world.acme.descend(2).leaf("deep").issue());
    let mut http = connect(&deep, &edge);
    assert_eq!(http.get(ACME, "/first").status(), 200);
    edge.reconfigure(|settings| settings.named(ACME).auth_lines = vec!["verify_depth = 1".into()]);
    let _ = http.send(&format!("GET /second HTTP/1.1\r\nHost: {ACME}\r\n\r\n"));
    let end = http.response_to(false).map(|answer| answer.status());
    assert!(matches!(end, Err(End::CloseNotify | End::Truncated | End::Reset)), "{end:?}");
    assert!(origin.heads().iter().all(|(_, head)| head.target() != "/second"));
}

/// 436: `explain` tells what the hostname changes, and at which depth a chain is too deep.
#[test]
fn t436_explain_tells_of_it() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world
        .http_host(ACME, &origin)
        .require(&[&world.acme])
        .auth_line("verify_depth = 1")
        .auth_line("headers = [\"ingress\", \"xfcc\"]")
        .line("host_header = \"app.internal\"")
        .line("strip_prefix = \"/api\"")
        .line("add_headers = { X-Env = \"prod\" }")
        .line("remove_headers = [\"X-Debug\"]")
        .line("remove_response_headers = [\"Server\"]");
    let directory = tempfile::tempdir().expect("a directory");
    let file = world.settings().host(host).write(directory.path());
    let explain = |identity: &crate::harness::Identity, path: &str| {
        let pem = directory.path().join("client.pem");
        fs::write(&pem, &identity.chain_pem).expect("a file");
        let mut command = Command::new(HOSTWARD);
        command.arg("explain").arg("-c").arg(&file).args(["--host", ACME, "--path", path, "--json", "--cert"]).arg(pem);
        let finished = run(&mut command, Duration::from_secs(30));
        let value: Value = serde_json::from_str(&finished.stdout).unwrap_or_else(|_| panic!("{}", finished.output()));
        (value, finished.code())
    };
    let flat = world.acme.leaf("alice").issue();
    let (answer, code) = explain(&flat, "/api/x");
    assert_eq!(code, Some(0), "{answer}");
    let sent = &answer["origin_request"];
    assert_eq!((&sent["path"], &sent["host"]), (&"/x".into(), &"app.internal".into()), "{answer}");
    assert_eq!((&sent["added"]["X-Env"], &sent["removed"][0]), (&"prod".into(), &"x-debug".into()), "{answer}");
    assert_eq!(answer["client_response"]["removed"][0], "server");
    let identity = &answer["identity_headers"];
    assert_eq!(identity["ssl-client-verify"], "SUCCESS", "{answer}");
    assert_eq!(identity["ssl-client-subject-dn"], "CN=alice");
    assert!(identity["X-Forwarded-Client-Cert"].as_str().is_some_and(|value| value.starts_with("Hash=")), "{answer}");
    for (path, status) in [("/other", "the status 404"), ("/api//x", "the status 400")] {
        let (answer, code) = explain(&flat, path);
        assert_eq!((&answer["client_sees"], code), (&status.into(), Some(4)), "{answer}");
    }
    let (answer, code) = explain(&world.acme.descend(2).leaf("deep").issue(), "/api/x");
    assert_eq!((&answer["refusal"], code), (&"chain_too_long".into(), Some(4)), "{answer}");
    let failed = &answer["chain"]["failed"];
    assert_eq!(failed["depth"], 2, "{answer}");
    assert!(failed["what"].as_str().is_some_and(|what| what.contains("verify_depth allows 1")), "{answer}");
}

/// 437: every configuration in the pages this belongs to is one, without a warning, and every kind of `auth-tls-*` has its
/// line.
#[test]
fn t437_the_pages_configurations_are_good() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    for (page, blocks_min) in [("migrating-from-ingress-nginx.md", 7), ("identity-headers.md", 1)] {
        let text = fs::read_to_string(docs.join(page)).expect("a page");
        let blocks: Vec<_> =
            text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or("")).collect();
        assert!(blocks.len() >= blocks_min, "{page}: {} blocks", blocks.len());
        for block in blocks {
            let directory = tempfile::tempdir().expect("a directory");
            let file = directory.path().join("hostward.toml");
            fs::write(&file, block).expect("a file");
            let finished = run(Command::new(HOSTWARD).arg("check").arg("-c").arg(&file), Duration::from_secs(30));
            let output = finished.output();
            assert_eq!(finished.code(), Some(0), "{page}:\n{block}\n{output}");
            assert!(!output.contains("warning"), "{page}:\n{block}\n{output}");
        }
    }
    let text = fs::read_to_string(docs.join("migrating-from-ingress-nginx.md")).expect("the page");
    for annotation in
        ["secret", "verify-depth", "verify-client", "error-page", "pass-certificate-to-upstream", "match-cn"]
    {
        assert!(text.contains(&format!("auth-tls-{annotation}")), "{annotation}");
    }
}

/// 438: over HTTP/2 all of it holds alike: identities, rewriting, traces, what is not there, and response headers.
#[test]
fn t438_http2_is_rewritten_alike() {
    let Some(curl) = tool("curl") else { return };
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world
        .http_host(ACME, &origin)
        .require(&[&world.acme])
        .auth_line("headers = [\"client-cert\", \"x-client-cert\", \"xfcc\", \"cf\", \"ingress\"]")
        .line("host_header = \"app.internal\"")
        .line("strip_prefix = \"/api\"")
        .line("add_headers = { X-Env = \"prod\" }")
        .line("remove_headers = [\"X-Debug\"]")
        .line("response_headers = { Strict-Transport-Security = \"max-age=31536000\" }");
    let edge = Edge::start(world.settings().server("trace_sampling = 1.0").host(host));
    let files = tempfile::tempdir().expect("a directory");
    let alice = world.acme.leaf("alice").issue();
    let store = |name: &str, text: &str| {
        let path = files.path().join(name);
        fs::write(&path, text).expect("a file");
        path
    };
    let (ca, pem) = (store("ca.pem", world.servers.pem()), store("alice.pem", &alice.chain_pem));
    let key = store("alice.key", &alice.key_pem);
    let port = edge.address().port();
    let ask = |path: &str| {
        let mut command = Command::new(&curl);
        command.args(["--silent", "--show-error", "--max-time", "30", "--http2", "--path-as-is", "--dump-header", "-"]);
        command.arg("--cacert").arg(&ca).arg("--cert").arg(&pem).arg("--key").arg(&key);
        for forged in [
            "Client-Cert: forged",
            "Ssl-Client-Verify: forged",
            "ssl_client_verify: forged",
            "Cf-Cert-Verified: forged",
            "X-Env: forged",
            "x_env: forged",
            "X-Debug: forged",
            "X-Forwarded-Port: 1",
            "traceparent: forged",
            "tracestate: a=forged",
        ] {
            command.arg("--header").arg(forged);
        }
        command.arg("--resolve").arg(format!("{ACME}:{port}:127.0.0.1"));
        run(command.arg(format!("https://{ACME}:{port}{path}")), Duration::from_secs(60)).stdout
    };
    let answer = ask("/api/a?b").to_lowercase();
    assert!(answer.starts_with("http/2 200"), "{answer}");
    assert_eq!(answer.matches("strict-transport-security: max-age=31536000\r\n").count(), 1, "{answer}");
    let head = last(&origin);
    assert_eq!(head.target(), "/a?b");
    let authority = format!("{ACME}:{port}");
    for (name, expected) in [
        ("host", "app.internal"),
        ("x-forwarded-host", &authority),
        ("x-forwarded-port", &port.to_string()),
        ("x-forwarded-proto", "https"),
        ("x-env", "prod"),
        ("x-client-cert-verify", "SUCCESS"),
        ("x-client-cert-subject", "CN=alice"),
        ("ssl-client-verify", "SUCCESS"),
        ("ssl-client-subject-dn", "CN=alice"),
        ("cf-cert-verified", "true"),
    ] {
        assert_eq!(head.get(name), Some(expected), "{name}: {head:?}");
    }
    assert!(head.get("client-cert").is_some_and(|value| value.starts_with(':')), "{head:?}");
    assert!(
        head.get("traceparent").is_some_and(|value| value.starts_with("00-") && value.ends_with("-01")),
        "{head:?}"
    );
    assert!(!format!("{head:?}").contains("forged"), "{head:?}");
    for (path, status) in [("/other", "404"), ("/api//evil.test", "400"), ("/api/../x", "400")] {
        let answer = ask(path);
        assert!(answer.starts_with(&format!("HTTP/2 {status}")), "{path}: {answer}");
    }
    assert_eq!(origin.heads().len(), 1);
}

/// 439: what the page for those who come from ingress-nginx says of `optional`, `optional_no_ca` and `match-cn` is so.
#[test]
fn t439_clients_fare_as_the_migration_page_says() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = |name: &str| world.http_host(name, &origin).auth_line("headers = [\"ingress\"]");
    let optional = host("optional.test").request(&[&world.acme]);
    let optional = optional.rule("path = \"/*\"\nverify = \"FAILED\"\ndeny = true").rule("allow = {}");
    let no_ca = host("no-ca.test").request(&[&world.acme]);
    let match_cn = host("match-cn.test").require(&[&world.acme]);
    let match_cn = match_cn.rule("path = \"/*\"\nallow = { common_name = [\"alice\", \"ops-*\"] }");
    let edge = Edge::start(world.settings().host(optional).host(no_ca).host(match_cn));
    let (nobody, stranger) = (world.client(), world.globex_client("alice"));
    for (name, client, status, verify) in [
        ("optional.test", &nobody, 200, "NONE"),
        ("optional.test", &world.acme_client("eve"), 200, "SUCCESS"),
        ("optional.test", &stranger, 403, ""),
        ("no-ca.test", &nobody, 200, "NONE"),
        ("no-ca.test", &stranger, 200, "FAILED:unknown_ca"),
        ("match-cn.test", &world.acme_client("alice"), 200, "SUCCESS"),
        ("match-cn.test", &world.acme_client("ops-7"), 200, "SUCCESS"),
        ("match-cn.test", &world.acme_client("alice2"), 403, ""),
        ("match-cn.test", &world.acme_client("eve,CN=alice"), 403, ""),
    ] {
        let mut http = Http::new(client.open(edge.address(), name).expect("a connection"));
        for path in ["/", "/x", "/x?y"] {
            let before = origin.heads().len();
            assert_eq!(http.get(name, path).status(), status, "{name} {path} {verify}");
            let told = origin.heads().get(before).map(|(_, head)| head.get("ssl-client-verify").map(str::to_owned));
            assert_eq!(told.flatten(), (status == 200).then(|| verify.to_owned()), "{name} {path}");
        }
    }
}
