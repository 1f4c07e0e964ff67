//! What the origin gets: nothing a client made up, and all that is ours.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::policy::{Identity, Refusal};
use crate::proxy::headers::{Begun, Meaning, meaning};
use crate::registry::{FieldChanges, Rewrites};

/// What is added where no client is asked for a certificate.
const OURS: &str = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: pay.acme.test\r\n\
                    X-Forwarded-Port: 443\r\nForwarded: for=192.0.2.7;proto=https;host=pay.acme.test\r\nX-Request-Id: made-7\r\n\r\n";

fn head(fields: &str) -> Vec<u8> {
    format!("GET /a?b HTTP/1.1\r\nHost: pay.acme.test\r\n{fields}\r\n").into_bytes()
}

#[test]
fn a_request_is_forwarded_as_it_came_and_ours_is_added() {
    let start = "GET /a?b HTTP/1.1\r\nHost: pay.acme.test\r\n";
    for (fields, kept) in [
        ("Accept: */*\r\nCookie: a=b\r\n", "Accept: */*\r\nCookie: a=b\r\n"),
        ("Accept:*/*  \r\nX:\r\nY: 1\r\n", "Accept: */*\r\nX: \r\nY: 1\r\n"),
        ("Connection: keep-alive, x-hop\r\nA: 1\r\nX-HOP: 2\r\nB: 3\r\n", "A: 1\r\nB: 3\r\n"),
        ("Connection: Host, X-Forwarded-For, Client-Cert, close\r\nA: 1\r\n", "A: 1\r\n"),
        ("Keep-Alive: 5\r\nTE: trailers\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nTrailer: a\r\n", "Trailer: a\r\n"),
        ("Content_Length: 5\r\nTransfer.Encoding: chunked\r\nmy_field: 1\r\nA: 1\r\n", "A: 1\r\n"),
        ("Content-Length: 0\r\nA: 1\r\n", "A: 1\r\nContent-Length: 0\r\n"),
        (
            "Transfer-Encoding: Chunked\r\nExpect: 100-continue\r\n",
            "Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("Expect: 100-continue\r\n", ""),
        (
            "Sec-WebSocket-Key: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
            "Sec-WebSocket-Key: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        ),
        (
            "X-Forwarded-For: 1\r\nForwarded: for=1\r\nX-Forwarded-Port: 1\r\nX-Request-Id: 1\r\nX_Forwarded_For: 1\r\n",
            "",
        ),
    ] {
        assert_eq!(forwarded(&head(fields), &facts()), format!("{start}{kept}{OURS}"), "{fields}");
    }
    let unusual = SessionFacts { keep_unusual_names: true, ..facts() };
    let fields = "my_field: 1\r\nContent_Length: 5\r\nClient_Cert: 1\r\nX_Request_Id: 1\r\n";
    assert_eq!(forwarded(&head(fields), &unusual), format!("{start}my_field: 1\r\n{OURS}"));
    assert!(
        forwarded(b"GET http://pay.acme.test HTTP/1.0\r\nHost: pay.acme.test\r\n\r\n", &facts())
            .starts_with("GET / HTTP/1.1\r\n")
    );
}

#[test]
fn a_trusted_peer_is_added_to() {
    let trusted = SessionFacts { trusted_peer: true, client: "2001:db8::7".parse().expect("an address"), ..facts() };
    let text = forwarded(
        &head(
            "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-For: 198.51.100.2\r\nX-Forwarded-Proto: http\r\n\
             X-Forwarded-Host: shop.acme.test\r\nX-Forwarded-Port: 80\r\nForwarded: for=198.51.100.1\r\n\
             X_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Client-Cert: Hash=0\r\n",
        ),
        &trusted,
    );
    assert_eq!(
        text,
        "GET /a?b HTTP/1.1\r\nHost: pay.acme.test\r\n\
         X-Forwarded-For: 198.51.100.1, 198.51.100.2, 2001:db8::7\r\nX-Forwarded-Proto: http\r\n\
         X-Forwarded-Host: shop.acme.test\r\nX-Forwarded-Port: 80\r\n\
         Forwarded: for=198.51.100.1, for=\"[2001:db8::7]\";proto=https;host=pay.acme.test\r\n\
         X-Request-Id: made-7\r\n\r\n"
    );
    // What the first proxy says of host and protocol has no port of ours beside it.
    for (fields, expected) in [
        ("", Some("443")),
        ("X-Forwarded-For: 198.51.100.1\r\n", Some("443")),
        ("X-Forwarded-Port: 8443\r\n", Some("8443")),
        ("X-Forwarded-Port:\r\n", Some("443")),
        ("X-Forwarded-Proto: http\r\n", None),
        ("X-Forwarded-Host: shop.acme.test\r\n", None),
        ("X-Forwarded-Host: shop.acme.test:81\r\nX-Forwarded-Port: 81\r\n", Some("81")),
    ] {
        let text = forwarded(&head(fields), &trusted);
        let port = text.lines().find_map(|line| line.strip_prefix("X-Forwarded-Port: "));
        assert_eq!(port, expected, "{fields}");
        assert!(forwarded(&head(fields), &facts()).contains("\r\nX-Forwarded-Port: 443\r\n"), "{fields}");
    }
    for (host, expected) in
        [("pay.acme.test:8443", "8443"), ("pay.acme.test:", "443"), ("[::1]", "443"), ("[::1]:8443", "8443")]
    {
        let text = forwarded(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes(), &facts());
        assert!(text.contains(&format!("\r\nX-Forwarded-Port: {expected}\r\n")), "{host}: {text}");
    }
    // An open quote must not swallow our element.
    let text = forwarded(&head("Forwarded: for=\"\\\"\r\n"), &trusted);
    assert!(text.contains("\r\nForwarded: for=\"[2001:db8::7]\";"), "{text}");
    let text = forwarded(b"GET / HTTP/1.1\r\nHost: [::1]:8443\r\n\r\n", &facts());
    assert!(text.contains(";host=\"[::1]:8443\"\r\n"), "{text}");
}

#[test]
fn a_request_id_is_kept_from_those_who_are_trusted() {
    let trusted = SessionFields::new(&SessionFacts { trusted_peer: true, ..facts() });
    let untrusted = SessionFields::new(&facts());
    for (fields, expected) in [
        ("X-Request-ID: 0af7651916cd43dd8448eb211c80319c\r\n", Some("0af7651916cd43dd8448eb211c80319c")),
        ("X-Request-Id: a\r\nX-Request-Id: b\r\n", None),
        ("X-Request-Id: a\r\nX-Request-Id: b\r\nX-Request-Id: c\r\n", None),
        ("X-Request-Id: a,b\r\n", None),
        ("X-Request-Id: \"a\"\r\n", None),
        ("X-Request-Id: a b\r\n", None),
        ("X-Request-Id:\r\n", None),
        ("X_Request_Id: a\r\n", None),
        ("", None),
    ] {
        let head = head(fields);
        let mut slots = Slots::default();
        let Ok(Parsed::Complete(request)) = Request::parse(&head, &LIMITS, &mut slots) else { panic!("{fields}") };
        assert_eq!(request.request_id(&trusted), expected, "{fields}");
        assert_eq!(request.request_id(&untrusted), None, "{fields}");
    }
}

/// A hostname that changes everything that can be changed.
fn rewrites() -> Arc<Rewrites> {
    Arc::new(Rewrites {
        host: Some("app.internal:8080".into()),
        strip_prefix: Some("/a".into()),
        request: FieldChanges::new(
            vec![("X-Env".into(), "prod".into()), ("Accept".into(), "*/*".into())],
            &["X-Debug".into(), "Cookie".into()],
        ),
        response: FieldChanges::default(),
    })
}

#[test]
fn what_a_hostname_changes_is_changed_in_every_spelling() {
    let rewrites = rewrites();
    let changing = SessionFacts { rewrites: Some(&rewrites), ..facts() };
    let start = "GET /b/c?d=/a HTTP/1.1\r\nHost: app.internal:8080\r\n";
    let added = "X-Env: prod\r\nAccept: */*\r\n";
    let head = |fields: &str| format!("GET /a/b/c?d=/a HTTP/1.1\r\nHost: pay.acme.test\r\n{fields}\r\n").into_bytes();
    for (fields, kept) in [
        ("", ""),
        ("X-Env: forged\r\nACCEPT: text/html\r\nA: 1\r\nx-env:again\r\n", "A: 1\r\n"),
        ("Cookie: a=b\r\nB: 2\r\nx-DEBUG: 1\r\nX-Debugger: 1\r\n", "B: 2\r\nX-Debugger: 1\r\n"),
        ("Connection: X-Env, Accept, Host\r\nX-Env: 1\r\n", ""),
    ] {
        assert_eq!(forwarded(&head(fields), &changing), format!("{start}{kept}{added}{OURS}"), "{fields}");
    }
    // Where unusual names pass, those that an origin may read as ours do not.
    let unusual = SessionFacts { keep_unusual_names: true, ..changing };
    let fields = "X_Env: forged\r\nx.env: forged\r\nX_Debug: 1\r\nmy_field: 1\r\n";
    assert_eq!(forwarded(&head(fields), &unusual), format!("{start}my_field: 1\r\n{added}{OURS}"));
    // An authority in the target is the client's too.
    let absolute = b"GET http://pay.acme.test/a?b HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n";
    assert!(forwarded(absolute, &changing).starts_with("GET /?b HTTP/1.1\r\nHost: app.internal:8080\r\n"));
}

#[test]
fn a_path_outside_the_prefix_is_not_there() {
    let rewrites = rewrites();
    let session = SessionFields::new(&SessionFacts { rewrites: Some(&rewrites), ..facts() });
    for (target, status) in [("/ab", 404), ("/", 404), ("/a//evil.test/", 400), ("/a/../b", 400), ("/a/%2Fevil", 400)] {
        let head = format!("GET {target} HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n");
        let mut slots = Slots::default();
        let parsed = Request::parse(head.as_bytes(), &LIMITS, &mut slots);
        let Ok(Parsed::Complete(request)) = parsed else { panic!("{target}") };
        let mut out = Vec::new();
        let refused = request.write(&Added { session: &session, request_id: "made-7", begun: None }, &mut out);
        assert_eq!(refused.map_err(|rejected| rejected.status), Err(status), "{target}");
        assert!(out.is_empty());
    }
}

#[test]
fn traces_pass_if_they_are_well_formed() {
    const PARENT: &str = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
    let begun = Begun::new([7; 24], true);
    let ours = "traceparent: 00-07070707070707070707070707070707-0707070707070707-01\r\n";
    let session = SessionFields::new(&facts());
    let start = "GET /a?b HTTP/1.1\r\nHost: pay.acme.test\r\n";
    for (fields, kept) in [
        (String::new(), None),
        (PARENT.to_owned(), Some(PARENT.to_owned())),
        (
            format!("{PARENT}tracestate: a=b\r\ntracestate: c=d\r\n"),
            Some(format!("{PARENT}tracestate: a=b\r\ntracestate: c=d\r\n")),
        ),
        (format!("tracestate: a=b\r\n{PARENT}"), Some(format!("tracestate: a=b\r\n{PARENT}"))),
        (format!("{PARENT}tracestate: A=b\r\n"), Some(PARENT.to_owned())),
        (format!("{PARENT}tracestate: a=b\r\ntracestate: =\r\n"), Some(PARENT.to_owned())),
        (format!("{PARENT}tracestate: {}\r\n", vec!["a=b"; 33].join(",")), Some(PARENT.to_owned())),
        (format!("{PARENT}{PARENT}tracestate: a=b\r\n"), None),
        (PARENT.to_uppercase(), None),
        (PARENT.replace("-01", "-1"), None),
        ("tracestate: a=b\r\n".to_owned(), None),
    ] {
        let head = head(&fields);
        for begins in [None, Some(&begun)] {
            let mut slots = Slots::default();
            let Ok(Parsed::Complete(request)) = Request::parse(&head, &LIMITS, &mut slots) else { panic!("{fields}") };
            assert_eq!(request.trace_id().is_some(), kept.is_some(), "{fields}");
            let mut out = Vec::new();
            let added = Added { session: &session, request_id: "made-7", begun: begins };
            request.write(&added, &mut out).expect("is forwarded");
            let expected = kept.as_deref().unwrap_or(if begins.is_some() { ours } else { "" });
            let text = String::from_utf8(out).expect("text");
            assert_eq!(text, format!("{start}{expected}{OURS}"), "{fields}");
        }
    }
}

fn ann() -> Identity {
    Identity {
        subject: "CN=ann\\,CN=root,O=B\u{fc}ro".into(),
        issuer: "CN=Acme CA".into(),
        serial: "0af7".into(),
        fingerprint_sha256: [0xab; 32],
        san_dns: vec!["ann.acme.test".into()],
        san_uri: vec!["spiffe://acme/ann".into(), "https://a/?b=c,d;\"".into()],
        san_email: vec!["ann@acme.test".into()],
        san_ip: vec!["2001:db8::1".parse().expect("an address")],
        not_after_unix_s: 1_800_000_000,
        ..Identity::default()
    }
}

/// What `headers::identity` makes stands in the head as it is; nothing of it where nobody is asked.
#[test]
fn identities_are_added_where_clients_are_asked() {
    let ann = ann();
    let chain = [vec![1, 2, 3].into()];
    let facts = SessionFacts {
        mode: ClientAuthMode::Request,
        verdict: Verdict::Success,
        sets: IdentitySets { client_cert: true, ..IdentitySets::default() },
        identity: Some(&ann),
        chain: &chain,
        ..facts()
    };
    let start = "GET /a?b HTTP/1.1\r\nHost: pay.acme.test\r\n";
    let ours = "X-Client-Cert-Verify: SUCCESS\r\nClient-Cert: :AQID:\r\n";
    assert_eq!(forwarded(&head("Client-Cert: :BA==:\r\n"), &facts), format!("{start}{ours}{OURS}"));
    let failed = SessionFacts { verdict: Verdict::Failed(Refusal::Expired), ..facts };
    let ours = "X-Client-Cert-Verify: FAILED:expired\r\n";
    assert_eq!(forwarded(&head("Client-Cert: :BA==:\r\n"), &failed), format!("{start}{ours}{OURS}"));
    let off = SessionFacts { mode: ClientAuthMode::Off, ..facts };
    assert_eq!(forwarded(&head(""), &off), format!("{start}{OURS}"));
}

/// Lines of fields: ordinary ones and identities in any spelling, `Connection` with any of their names.
fn any_fields() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[A-Za-z][A-Za-z0-9_.-]{0,12}",
        "(x|X)[-_.!](client|Client|CLIENT)[-_](cert|Cert)([-_](verify|San|subject))?",
        "(client|Client)[-_~](cert|CERT)([-_]chain)?",
        "(X[-_]Forwarded[-_](For|Client[-_]Cert|Proto|x))|Forwarded|X[-_]Request[-_]Id",
        "(ssl|SSL)[-_]client[-_]verify|cf[-_]cert[-_]verified|X-Amzn_Mtls-Clientcert",
        "Connection",
    ];
    let value =
        "([ -~]{0,12})|(Client-Cert, Host, X-Client-Cert-Verify, close)|([A-Za-z-]{1,8}(, ?[A-Za-z-]{1,8}){0,3})";
    prop::collection::vec((name, value).prop_map(|(name, value)| format!("{name}:{value}\r\n")), 0..8)
        .prop_map(|fields| fields.concat())
}

proptest! {
    /// Whatever a client sends and whoever it is: of identities the origin sees ours, each once, and all of ours; and what
    /// is written is read as what came, and written again as it was.
    #[test]
    fn no_identity_is_forged_and_ours_is_never_lost(fields in any_fields(), unusual in any::<bool>(), trusted in any::<bool>()) {
        let ann = ann();
        let facts = SessionFacts {
            mode: ClientAuthMode::Request,
            verdict: Verdict::Success,
            sets: IdentitySets { x_client_cert: true, ..IdentitySets::default() },
            identity: Some(&ann),
            trusted_peer: trusted,
            keep_unusual_names: unusual,
            ..facts()
        };
        let input = head(&fields);
        let session = SessionFields::new(&facts);
        let added = Added { session: &session, request_id: "made-7", begun: None };
        let mut slots = Slots::default();
        let Ok(Parsed::Complete(request)) = Request::parse(&input, &LIMITS, &mut slots) else { return Ok(()) };
        let mut once = Vec::new();
        request.write(&added, &mut once).expect("is forwarded");
        let (framing, websocket) = (request.framing, request.websocket);

        let text = String::from_utf8(once.clone()).expect("text");
        let names = text.lines().filter_map(|line| line.split_once(": ").map(|(name, _)| name));
        let identities: Vec<&str> = names.filter(|name| meaning(name.as_bytes()) == Meaning::Identity).collect();
        prop_assert_eq!(identities, [
            "X-Client-Cert-Verify", "X-Client-Cert-Subject", "X-Client-Cert-Issuer", "X-Client-Cert-Serial",
            "X-Client-Cert-Fingerprint", "X-Client-Cert-San", "X-Client-Cert-Not-After",
        ]);
        prop_assert_eq!(text.matches("\r\nX-Client-Cert-Verify: SUCCESS\r\n").count(), 1);
        prop_assert_eq!(text.matches("\r\nHost: ").count(), 1);

        let mut slots = Slots::default();
        let Ok(Parsed::Complete(again)) = Request::parse(&once, &LIMITS, &mut slots) else {
            panic!("what is written is a request: {text}")
        };
        prop_assert_eq!((again.framing, again.websocket, again.target), (framing, websocket, "/a?b"));
        if !trusted {
            let mut twice = Vec::new();
            again.write(&added, &mut twice).expect("is forwarded");
            prop_assert_eq!(String::from_utf8(twice).expect("text"), text);
        }
    }
}
