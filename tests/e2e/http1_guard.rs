//! I4 and I5: every request is for the connection's own hostname, passes its rules, and tells the origin who the client is
//! in our words only. Whoever is refused may go on asking on the same connection.

use crate::harness::http::{Head, Http, HttpOrigin};
use crate::harness::{ACME, Auth, Edge, End, GLOBEX, SOON, World, wait};

fn two_hosts(world: &World, origin: &HttpOrigin) -> Edge {
    let settings = world.settings().host(world.http_host(ACME, origin));
    Edge::start(settings.host(world.http_host(GLOBEX, origin)).host(world.http_host("*.wild.test", origin)))
}

fn connect(world: &World, edge: &Edge, name: &str) -> Http {
    Http::new(world.client().open(edge.address(), name).expect("a connection"))
}

/// 215: another hostname's Host is 421 on the first, the second and a pipelined request; the connection stays usable and
/// the origin never hears of it.
#[test]
fn t215_the_authority_is_the_connections_own() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = two_hosts(&world, &origin);
    let mut http = connect(&world, &edge, ACME);
    assert_eq!(http.get(GLOBEX, "/first").status(), 421);
    assert_eq!(http.get(ACME, "/own").status(), 200);
    assert_eq!(http.get(GLOBEX, "/second").status(), 421);
    let request = |host: &str, path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    http.send(&(request(ACME, "/a") + &request(GLOBEX, "/pipelined") + &request(ACME, "/b"))).expect("sent");
    assert_eq!([http.response().status(), http.response().status(), http.response().status()], [200, 421, 200]);
    // With a body, which is read and forgotten.
    let posted = http.ask(&format!("POST / HTTP/1.1\r\nHost: {GLOBEX}\r\nContent-Length: 5\r\n\r\nGET /"));
    assert_eq!(posted.status(), 421);
    assert_eq!(http.get("unknown.test", "/").status(), 421);
    assert_eq!(http.get("127.0.0.1", "/").status(), 421);
    let absolute = http.ask(&format!("GET http://{GLOBEX}/ HTTP/1.1\r\nHost: {GLOBEX}\r\n\r\n"));
    assert_eq!(absolute.status(), 421);
    // Spellings of the own name.
    for host in ["PAY.ACME.TEST", "pay.acme.test:443", "pay.acme.test.", "Pay.Acme.Test.:8443"] {
        assert_eq!(http.get(host, "/spelled").status(), 200, "{host}");
    }
    let targets: Vec<_> = origin.heads().iter().map(|(_, head)| head.target().to_owned()).collect();
    assert_eq!(targets, ["/own", "/a", "/b", "/spelled", "/spelled", "/spelled", "/spelled"]);
    let raw = String::from_utf8_lossy(&origin.raw(0)).to_lowercase();
    assert!(!raw.contains(GLOBEX) && !raw.contains("pipelined"), "{raw}");
    edge.expect_metric("hostward_requests_refused_total{reason=\"authority_mismatch\"}", 7.0);
}

/// 216: two names of one record are one authority; two records are two, whatever they share.
#[test]
fn t216_the_record_counts_not_the_name() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = two_hosts(&world, &origin);
    let client = world.client().any_server();
    let mut http = Http::new(client.open(edge.address(), "a.wild.test").expect("a connection"));
    assert_eq!(http.get("b.wild.test", "/").status(), 200);
    assert_eq!(http.get("a.b.wild.test", "/").status(), 421);
    assert_eq!(http.get(ACME, "/").status(), 421);
}

/// 217: heads that can be read in two ways are refused, and the connection with them; the origin sees nothing.
#[test]
fn t217_ambiguous_requests_end_the_connection() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = two_hosts(&world, &origin);
    for (text, status) in [
        (
            format!(
                "POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            400,
        ),
        (format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"), 400),
        (format!("GET / HTTP/1.1\r\nHost: {ACME}\r\nHost: {GLOBEX}\r\n\r\n"), 400),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (format!("GET / HTTP/1.1\nHost: {ACME}\n\n"), 400),
        (format!("CONNECT {ACME}:443 HTTP/1.1\r\nHost: {ACME}\r\n\r\n"), 405),
        (format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n{}\r\n", "X: y\r\n".repeat(200)), 431),
        (format!("GET / HTTP/1.1\r\nHost: {ACME}\r\nX: {}\r\n\r\n", "y".repeat(70_000)), 431),
    ] {
        let mut http = connect(&world, &edge, ACME);
        let short: String = text.chars().take(60).collect();
        http.send(&format!("{text}GET /smuggled HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
        let response = http.response();
        assert_eq!((response.status(), response.head.get("connection")), (status, Some("close")), "{short:?}");
        assert_eq!(http.end(), End::CloseNotify, "{short:?}");
    }
    // Chunks are met only once the head is on its way.
    let mut http = connect(&world, &edge, ACME);
    let response = http
        .ask(&format!("POST / HTTP/1.1\r\nHost: {ACME}\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n"));
    assert_eq!(response.status(), 400);
    assert!(origin.heads().iter().all(|(_, head)| head.target() != "/smuggled"));
}

/// 218: no identity of the client's own making reaches the origin, whatever the mode; what we know does.
#[test]
fn t218_identity_headers_are_ours() {
    let world = World::new();
    let forged = "Client-Cert: :Zm9yZ2Vk:\r\nclient_cert: forged\r\nCLIENT-CERT-CHAIN: forged\r\nX-Client-Cert-Verify: SUCCESS\r\n\
                  X_Client_Cert_Subject: CN=root\r\nx-forwarded-client-cert: forged\r\nSSL_CLIENT_VERIFY: forged\r\n\
                  Cf-Client-Cert-Sha256: forged\r\nX-Amzn-Mtls-Clientcert: forged\r\nX-Forwarded-For: 6.6.6.6\r\n\
                  Forwarded: for=6.6.6.6\r\nConnection: X-Client-Cert-Verify, Client-Cert\r\n";
    let values = |head: &Head| head.fields.iter().map(|(_, value)| value.clone()).collect::<Vec<_>>().join("\n");
    for mode in [Auth::Off, Auth::Request, Auth::Require] {
        let origin = HttpOrigin::mirror();
        let host = world.http_host(ACME, &origin);
        let host = if mode == Auth::Off { host } else { host.auth(mode, &[&world.acme]) };
        let edge = Edge::start(world.settings().host(host));
        let client = world.acme_client("alice");
        let mut http = Http::new(client.open(edge.address(), ACME).expect("a connection"));
        for _ in 0..2 {
            assert_eq!(http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n{forged}\r\n")).status(), 200);
        }
        for (_, head) in origin.heads() {
            let text = values(&head);
            assert!(!text.contains("forged") && !text.contains("Zm9yZ2Vk") && !text.contains("6.6.6.6"), "{head:?}");
            let verify = head.get("x-client-cert-verify");
            let certificate = head.get("client-cert");
            match mode {
                Auth::Off => assert_eq!((verify, certificate), (None, None)),
                _ => {
                    assert_eq!(verify, Some("SUCCESS"));
                    assert!(
                        certificate.is_some_and(|value| value.starts_with(':') && value.ends_with(':')),
                        "{head:?}"
                    );
                }
            }
            assert_eq!(head.get("x-forwarded-for"), Some("127.0.0.1"));
            assert_eq!(head.get("x-forwarded-proto"), Some("https"));
            assert_eq!(head.get("x-request-id").map(str::len), Some(32));
        }
        let heads = origin.heads();
        assert_ne!(heads[0].1.get("x-request-id"), heads[1].1.get("x-request-id"));
    }
}

/// 219: what is sent about clients follows `client_auth.headers`, and an unverified certificate is never shown.
#[test]
fn t219_only_what_is_proved_is_told() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host =
        world.http_host(ACME, &origin).request(&[&world.acme]).auth_line("headers = [\"x-client-cert\", \"xfcc\"]");
    let edge = Edge::start(world.settings().host(host));
    let ask = |client: crate::harness::Client| {
        let mut http = Http::new(client.open(edge.address(), ACME).expect("a connection"));
        assert_eq!(http.get(ACME, "/").status(), 200);
        origin.heads().pop().expect("a request").1
    };
    let known = ask(world.acme_client("alice"));
    assert_eq!(known.get("x-client-cert-verify"), Some("SUCCESS"));
    assert!(known.get("x-client-cert-subject").is_some_and(|subject| subject.contains("alice")), "{known:?}");
    assert!(known.get("x-forwarded-client-cert").is_some() && known.get("client-cert").is_none(), "{known:?}");
    let stranger = ask(world.globex_client("mallory"));
    assert_eq!(stranger.get("x-client-cert-verify"), Some("FAILED:unknown_ca"));
    let nobody = ask(world.client());
    assert_eq!(nobody.get("x-client-cert-verify"), Some("NONE"));
    for head in [stranger, nobody] {
        assert!(
            head.get("x-client-cert-subject").is_none() && head.get("x-forwarded-client-cert").is_none(),
            "{head:?}"
        );
    }
}

/// 220: rules on path and method are judged for each request; what they deny is 403, and the connection goes on.
#[test]
fn t220_rules_judge_each_request() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).request(&[&world.acme]);
    let host = host
        .rule("path = \"/admin/*\"\nallow = { common_name = \"root\" }")
        .rule("method = \"DELETE\"\nverify = \"NONE\"\ndeny = true")
        .rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let mut nobody = connect(&world, &edge, ACME);
    let mut root = Http::new(world.acme_client("root").open(edge.address(), ACME).expect("a connection"));
    for _ in 0..2 {
        assert_eq!(nobody.get(ACME, "/admin/x").status(), 403);
        assert_eq!(nobody.get(ACME, "/").status(), 200);
        assert_eq!(root.get(ACME, "/admin/x").status(), 200);
    }
    let delete = |http: &mut Http| http.ask(&format!("DELETE / HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).status();
    assert_eq!((delete(&mut nobody), delete(&mut root)), (403, 200));
    // A path that an origin could take for another one is no path to judge.
    for path in ["/x/../admin/x", "/%61dmin/x", "//admin/x", "/x/..%2fadmin/x"] {
        assert_eq!(connect(&world, &edge, ACME).get(ACME, path).status(), 400, "{path}");
    }
    assert!(origin.heads().iter().all(|(_, head)| !head.target().contains("..")));
}

/// 221: a rule that is tightened acts on the next request of an open connection, and closes a request that is under way.
#[test]
fn t221_tightened_rules_act_on_open_connections() {
    let world = World::new();
    let origin = HttpOrigin::start(|head, talk| {
        talk.body(head)?;
        if head.target() == "/secret/slow" {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "page")
    });
    let host = world.http_host(ACME, &origin).rule("path = \"/public/*\"\nallow = {}").rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let mut idle = connect(&world, &edge, ACME);
    assert_eq!(idle.get(ACME, "/secret/x").status(), 200);
    let mut busy = connect(&world, &edge, ACME);
    busy.send(&format!("GET /secret/slow HTTP/1.1\r\nHost: {ACME}\r\n\r\n")).expect("sent");
    wait::until("the request is under way", SOON, || origin.heads().len() == 2);
    edge.reconfigure(|settings| {
        settings.named(ACME).rules = vec!["path = \"/public/*\"\nallow = {}".into(), "deny = true".into()];
    });
    assert!(matches!(busy.end(), End::Truncated | End::Reset), "a denied request under way is closed");
    assert_eq!(idle.get(ACME, "/secret/x").status(), 403);
    assert_eq!(idle.get(ACME, "/public/x").status(), 200);
    // The hostname goes away: its connections too.
    edge.reconfigure(|settings| settings.remove(ACME));
    assert!(matches!(idle.end(), End::Truncated | End::Reset | End::CloseNotify));
}
