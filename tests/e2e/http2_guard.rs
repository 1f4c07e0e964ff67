//! I4, I5 and I6 over HTTP/2: every stream is a request of the connection's own hostname, passes its rules, and tells the
//! origin who the client is in our words only. What one stream does wrong no other feels.

use std::time::Duration;

use crate::harness::http::{Head, HttpOrigin};
use crate::harness::http2::{Http2, field, get, with_method};
use crate::harness::http2_frames::{self as frames, Raw};
use crate::harness::{ACME, Auth, Client, Edge, GLOBEX, SOON, World, wait};
use crate::http1_identity::{NAMES, SETS, told};

fn two_hosts(world: &World, origin: &HttpOrigin) -> Edge {
    let settings = world.settings().host(world.http_host(ACME, origin));
    Edge::start(settings.host(world.http_host(GLOBEX, origin)).host(world.http_host("*.wild.test", origin)))
}

/// 515: another hostname's authority is 421 on its stream alone; the connection stays usable, and the origin never hears of
/// it.
#[test]
fn t515_the_authority_is_the_connections_own() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = two_hosts(&world, &origin);
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    assert_eq!(http.get(GLOBEX, "/first").status, 421);
    assert_eq!(http.get(ACME, "/own").status, 200);
    // At once, in any order.
    let mut streams: Vec<_> = [ACME, GLOBEX, ACME, "unknown.test", "127.0.0.1", ACME]
        .iter()
        .map(|host| (*host, http.start(get(host, "/at-once"), true)))
        .collect();
    for (host, stream) in &mut streams {
        assert_eq!(stream.answer().status, if *host == ACME { 200 } else { 421 }, "{host}");
    }
    // With a body, of which the origin gets nothing.
    let mut stream = http.start(with_method("POST", GLOBEX, "/posted"), false);
    stream.send(b"secret", true);
    assert_eq!(stream.answer().status, 421);
    for host in ["PAY.ACME.TEST", "pay.acme.test:443", "pay.acme.test.", "Pay.Acme.Test.:8443"] {
        assert_eq!(http.get(host, "/spelled").status, 200, "{host}");
    }
    for host in ["pay.acme.test.evil.test", "pay.acme.tes", "xpay.acme.test", "pay.acme.test..", "[::1]"] {
        assert!(matches!(http.get(host, "/no").status, 400 | 421), "{host}");
    }
    let targets: Vec<_> = origin.heads().iter().map(|(_, head)| head.target().to_owned()).collect();
    assert!(targets.iter().all(|target| ["/own", "/at-once", "/spelled"].contains(&target.as_str())), "{targets:?}");
    assert_eq!(targets.len(), 8, "{targets:?}");
    // A wildcard's names are one record.
    let client = world.client().any_server();
    let mut http = Http2::connect(&client, edge.address(), "a.wild.test");
    assert_eq!(http.get("b.wild.test", "/").status, 200);
    assert_eq!(http.get("a.b.wild.test", "/").status, 421);
    assert_eq!(http.get(ACME, "/").status, 421);
}

/// 516: a host that differs from :authority makes a request malformed; one that is the same, or stands alone, does not.
#[test]
fn t516_host_and_authority_are_one() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge = two_hosts(&world, &origin);
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let mut stream = 1;
    let without = || vec![(":method", "GET"), (":scheme", "https"), (":path", "/")];
    let both = |authority: &'static str, hosts: &[&'static str]| {
        let mut fields = frames::request("GET", authority, "/");
        fields.extend(hosts.iter().map(|host| ("host", *host)));
        fields
    };
    let alone = |hosts: &[&'static str]| {
        let mut fields = without();
        fields.extend(hosts.iter().map(|host| ("host", *host)));
        fields
    };
    for (fields, expected) in [
        (both(ACME, &[ACME]), Ok(200)),
        (both(ACME, &["Pay.Acme.Test."]), Ok(200)),
        (both("pay.acme.test:443", &[ACME]), Ok(200)),
        (both(ACME, &["pay.acme.test:8443"]), Ok(200)),
        (alone(&[ACME]), Ok(200)),
        (alone(&["PAY.acme.test:443"]), Ok(200)),
        (alone(&[GLOBEX]), Ok(421)),
        (both(GLOBEX, &[GLOBEX]), Ok(421)),
        (both(ACME, &[GLOBEX]), Err(frames::PROTOCOL_ERROR)),
        (both(GLOBEX, &[ACME]), Err(frames::PROTOCOL_ERROR)),
        (both(ACME, &[""]), Err(frames::PROTOCOL_ERROR)),
        (both(ACME, &[ACME, ACME]), Err(frames::PROTOCOL_ERROR)),
        (both(ACME, &[ACME, GLOBEX]), Err(frames::PROTOCOL_ERROR)),
        (both(ACME, &["pay.acme.test, api.globex.test"]), Err(frames::PROTOCOL_ERROR)),
        (alone(&[ACME, GLOBEX]), Err(frames::PROTOCOL_ERROR)),
        (without(), Err(frames::PROTOCOL_ERROR)),
    ] {
        raw.head(stream, &fields, true);
        match expected {
            Ok(status) => assert_eq!(raw.answer(stream), status, "{fields:?}"),
            Err(code) => assert_eq!(raw.reset(stream), code, "{fields:?}"),
        }
        stream += 2;
    }
    // Authorities that are none, as `host` alone and as :authority: refused, however.
    for authority in
        ["user@pay.acme.test", "pay.acme.test/x", "pay.acme.test:x", "pay acme.test", "", "pay.acme.test:443:443"]
    {
        let mut alone = without();
        alone.push(("host", authority));
        for fields in [alone, frames::request("GET", authority, "/")] {
            raw.head(stream, &fields, true);
            let refused = raw.refusal(stream);
            assert!(matches!(refused, 0 | 400 | 421), "{fields:?}: {refused}");
            stream += 2;
        }
    }
    for (_, head) in origin.heads() {
        assert!(head.get("host").is_some_and(|host| host.to_ascii_lowercase().starts_with(ACME)), "{head:?}");
    }
    assert_eq!(origin.heads().len(), 6);
}

/// Every spelling of a name that HTTP/2 lets a client send: small letters alone.
fn spellings(name: &str) -> Vec<(String, &'static str)> {
    let name = name.to_lowercase();
    let mut names = vec![
        name.clone(),
        name.replacen('-', "_", 1),
        name.rsplit_once('-').map_or_else(|| name.clone(), |(start, end)| format!("{start}_{end}")),
    ];
    names.extend("_.!#$%&'*+^`|~".chars().map(|separator| name.replace('-', &separator.to_string())));
    let mut fields: Vec<_> = names.into_iter().map(|name| (name, "forged")).collect();
    for value in [
        "forged, forged",
        ",forged,",
        "\"forged\"",
        ":Zm9yZ2Vk:, forged",
        "Hash=0;Subject=\"CN=forged\"",
        "for=6.6.6.6;by=forged;host=forged",
    ] {
        fields.push((name.clone(), value));
    }
    fields
}

/// Sends the forgeries as heads and as trailers, and compares what the origin saw with what it sees of an honest request.
fn attack(origin: &HttpOrigin, edge: &Edge, client: &Client, host: &str) -> Vec<(String, String)> {
    let mut http = Http2::connect(client, edge.address(), host);
    let start = origin.heads().len();
    assert_eq!(http.get(host, "/").status, 200);
    let honest = told(&origin.head(start));
    assert!(honest.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for")), "{honest:?}");
    for name in NAMES {
        let fields = spellings(name);
        for times in 1..=2 {
            let mut request = get(host, "/");
            for (name, value) in std::iter::repeat_n(&fields, times).flatten() {
                request = field(request, name, value);
            }
            let at = origin.heads().len();
            assert_eq!(http.ask(request).status, 200, "{name}");
            assert_eq!(told(&origin.head(at)), honest, "{host}: {name}");
            assert!(!origin.head(at).get("x-request-id").is_some_and(|id| id.contains("forged")));
        }
        let mut stream = http.start(with_method("POST", host, "/trailers"), false);
        stream.send(b"abc", false);
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        stream.send_trailers(&fields[..20]);
        let answer = stream.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "trailers: []"), "{name}");
    }
    // The extended CONNECT is translated too.
    http.wait_for_extended_connect();
    let mut request = crate::harness::http2::extended_connect(host, "/socket", "websocket");
    for (name, value) in
        [("client-cert", "forged"), ("x_client_cert_verify", "SUCCESS"), ("x-forwarded-for", "6.6.6.6")]
    {
        request = field(request, name, value);
    }
    let at = origin.heads().len();
    http.start(request, false).answer();
    let head = origin.head(at);
    assert!(head.fields.iter().all(|(_, value)| !value.contains("forged") && !value.contains("6.6.6.6")), "{head:?}");
    honest
}

fn origin() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        talk.answer("200 OK", &format!("trailers: {:?}", body.trailers))
    })
}

fn attack_all(mode: Auth, clients: impl Fn(&World) -> Vec<(Client, Option<&'static str>)>) {
    let world = World::new();
    let origin = origin();
    let mut settings = world.settings();
    let names: Vec<_> = (0..SETS.len()).map(|number| format!("s{number}.acme.test")).collect();
    for (number, name) in names.iter().enumerate() {
        let mut host = world.http_host(name, &origin);
        if mode != Auth::Off {
            host = host.auth(mode, &[&world.acme]).auth_line(&format!("headers = {}", SETS[number]));
        }
        if number == SETS.len() - 1 {
            host = host.line("keep_unusual_headers = true");
        }
        settings = settings.host(host);
    }
    let edge = Edge::start(settings);
    let names = if mode == Auth::Off { vec![&names[0], &names[SETS.len() - 1]] } else { names.iter().collect() };
    for name in names {
        for (client, verify) in clients(&world) {
            let told = attack(&origin, &edge, &client, name);
            let said: Vec<_> =
                told.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-client-cert-verify")).collect();
            assert_eq!(said.first().map(|(_, value)| value.as_str()), verify, "{told:?}");
            assert!(said.len() <= 1);
            // What says who it is, is said of who has proved it.
            let names = told.iter().any(|(name, value)| {
                let name = name.to_ascii_lowercase();
                let says = [
                    "client-cert",
                    "x-client-cert-subject",
                    "x-forwarded-client-cert",
                    "cf-client-cert-sha256",
                    "ssl-client-cert",
                ];
                says.contains(&name.as_str()) && !value.is_empty()
            });
            assert_eq!(names, verify == Some("SUCCESS"), "{told:?}");
        }
    }
}

/// 517: nobody forges who it is: where nobody is asked, where a certificate is asked for, and where one is required.
#[test]
fn t517_nothing_is_forged_where_nobody_is_asked() {
    attack_all(Auth::Off, |world| vec![(world.client(), None), (world.acme_client("alice"), None)]);
}

#[test]
fn t518_nothing_is_forged_where_a_certificate_is_asked_for() {
    attack_all(Auth::Request, |world| {
        vec![
            (world.client(), Some("NONE")),
            (world.globex_client("mallory"), Some("FAILED:unknown_ca")),
            (world.acme_client("alice"), Some("SUCCESS")),
        ]
    });
}

#[test]
fn t519_nothing_is_forged_where_a_certificate_is_required() {
    attack_all(Auth::Require, |world| vec![(world.acme_client("alice"), Some("SUCCESS"))]);
}

/// 520: rules on path and method are judged for each stream; what they deny is 403 on it alone, and paths that an origin could
/// take for others are 400.
#[test]
fn t520_rules_judge_each_stream() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).request(&[&world.acme]);
    let host = host
        .rule("path = \"/admin/*\"\nallow = { common_name = \"root\" }")
        .rule("method = \"DELETE\"\nverify = \"NONE\"\ndeny = true")
        .rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let mut nobody = Http2::connect(&world.client(), edge.address(), ACME);
    let mut root = Http2::connect(&world.acme_client("root"), edge.address(), ACME);
    for _ in 0..2 {
        assert_eq!(nobody.get(ACME, "/admin/x").status, 403);
        assert_eq!(nobody.get(ACME, "/").status, 200);
        assert_eq!(root.get(ACME, "/admin/x").status, 200);
    }
    assert_eq!(nobody.ask(with_method("DELETE", ACME, "/")).status, 403);
    assert_eq!(root.ask(with_method("DELETE", ACME, "/")).status, 200);
    for path in
        ["/x/../admin/x", "/%61dmin/x", "//admin/x", "/x/..%2fadmin/x", "/x/%2e%2e/admin/x", "/admin%5cx", "/a%00"]
    {
        assert_eq!(nobody.get(ACME, path).status, 400, "{path}");
    }
    // And what no library sends: a path that is a whole URI, that is relative, that hides another.
    let mut raw = Raw::open(&world.client(), edge.address(), ACME);
    let mut stream = 1;
    for path in [
        "admin/x",
        "*",
        "http://pay.acme.test/admin/x",
        "https://api.globex.test/",
        "/x y",
        "/\\admin",
        "/admin/x#f",
        "/;/../admin/x",
    ] {
        raw.get(stream, ACME, path);
        let refused = raw.refusal(stream);
        assert!(matches!(refused, 0 | 400 | 403), "{path}: {refused}");
        stream += 2;
    }
    raw.get(stream, ACME, "/fine");
    assert_eq!(raw.answer(stream), 200);
    assert!(
        origin.heads().iter().all(|(_, head)| ["/", "/admin/x", "/fine"].contains(&head.target())),
        "{:?}",
        origin.heads()
    );
    frames::expect_at_least(&edge, "hostward_requests_refused_total{reason=\"rule_denied\"}", 3.0);
}

fn slow_origin() -> HttpOrigin {
    HttpOrigin::start(|head: &Head, talk| {
        talk.body(head)?;
        if head.target().ends_with("/slow") {
            talk.wait_for_release();
        }
        talk.answer("200 OK", "page")
    })
}

/// 521: a rule that is tightened resets the streams it denies now, and no other of the same connection.
#[test]
fn t521_tightened_rules_end_the_streams_they_deny() {
    let world = World::new();
    let origin = slow_origin();
    let host = world.http_host(ACME, &origin).rule("path = \"/public/*\"\nallow = {}").rule("allow = {}");
    let edge = Edge::start(world.settings().host(host));
    let mut http = Http2::connect(&world.client(), edge.address(), ACME);
    let mut denied: Vec<_> = (0..3).map(|n| http.start(get(ACME, &format!("/secret/{n}/slow")), true)).collect();
    let mut uploading = http.start(with_method("POST", ACME, "/secret/upload"), false);
    uploading.send(b"some", false);
    let mut public = http.start(get(ACME, "/public/slow"), true);
    wait::until("all are under way", SOON, || origin.heads().len() == 5);
    edge.reconfigure(|settings| {
        settings.named(ACME).rules = vec!["path = \"/public/*\"\nallow = {}".into(), "deny = true".into()];
    });
    let begun = std::time::Instant::now();
    for stream in &mut denied {
        assert_eq!(stream.reset_code(), h2::Reason::CANCEL);
    }
    assert_eq!(uploading.reset_code(), h2::Reason::CANCEL);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(http.get(ACME, "/secret/x").status, 403);
    assert_eq!(http.get(ACME, "/public/x").status, 200);
    origin.release();
    assert_eq!(public.answer().text(), "page");
    edge.expect_metric("hostward_http2_resets_total{reason=\"trust_changed\"}", 4.0);
    edge.expect_metric("hostward_client_auth_total{result=\"trust_changed\"}", 4.0);
}

/// 522: a CA that is removed takes its clients' connections along, streams and all, within a second; others stay.
#[test]
fn t522_a_removed_ca_ends_its_connections() {
    let world = World::new();
    let origin = slow_origin();
    let host = world.http_host(ACME, &origin).require(&[&world.acme, &world.globex]);
    let edge = Edge::start(world.settings().host(host));
    let mut leaves = Http2::connect(&world.acme_client("alice"), edge.address(), ACME);
    let mut stays = Http2::connect(&world.globex_client("bob"), edge.address(), ACME);
    let mut idle = Http2::connect(&world.acme_client("carol"), edge.address(), ACME);
    assert_eq!(idle.get(ACME, "/").status, 200);
    let mut ended: Vec<_> = (0..5).map(|n| leaves.start(get(ACME, &format!("/{n}/slow")), true)).collect();
    let mut kept = stays.start(get(ACME, "/kept/slow"), true);
    wait::until("all are under way", SOON, || origin.heads().len() == 7);
    edge.reconfigure(|settings| settings.named(ACME).set_auth(Auth::Require, &[&world.globex]));
    wait::until("the connections are gone", Duration::from_secs(3), || leaves.has_ended() && idle.has_ended());
    for stream in &mut ended {
        assert!(stream.try_answer().is_err());
    }
    edge.expect_metric("hostward_requests_total{status_class=\"none\"}", 5.0);
    origin.release();
    assert_eq!(kept.answer().text(), "page");
    edge.expect_metric("hostward_tunnels_ended_total{end=\"trust_changed\"}", 2.0);
    // The hostname goes away: so do its connections.
    edge.reconfigure(|settings| {
        settings.remove(ACME);
        settings.hosts.push(world.http_host(GLOBEX, &origin));
    });
    wait::until("the last one is gone", SOON, || stays.has_ended());
}

/// 523: a client of another customer gets no further over HTTP/2 than over anything else, with its certificate or with its
/// session.
#[test]
fn t523_another_customers_client_stays_out() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let host = world.http_host(ACME, &origin).require(&[&world.acme]);
    let other = world.http_host(GLOBEX, &origin).require(&[&world.globex]);
    let edge = Edge::start(world.settings().host(host).host(other));
    let mallory = world.globex_client("mallory");
    let mut own = Http2::connect(&mallory, edge.address(), GLOBEX);
    assert_eq!(own.get(GLOBEX, "/").status, 200);
    assert_eq!(own.get(ACME, "/").status, 421);
    wait::until("a ticket has come", SOON, || mallory.tickets().count() > 0);
    let asked = origin.heads().len();
    for _ in 0..3 {
        // In TLS 1.3 the client learns of its refusal behind its own last word.
        let refused = match Http2::try_connect(&mallory, edge.address(), ACME, &h2::client::Builder::new()) {
            Ok(mut http) => http.try_ask(get(ACME, "/")).is_err(),
            Err(_) => true,
        };
        assert!(refused);
    }
    assert_eq!(origin.heads().len(), asked);
    assert_eq!(own.get(GLOBEX, "/").status, 200);
}
