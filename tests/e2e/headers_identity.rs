//! Who the client is, as an origin reads it: every set decodes to the certificate that was shown, whatever that is like;
//! and the way a request came, told by us or by a proxy we trust.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::harness::http::{Head, Http, HttpOrigin};
use crate::harness::{ACME, Client, Edge, Tls, World};

const ALL: &str = "headers = [\"client-cert\", \"x-client-cert\", \"xfcc\", \"cf\", \"ingress\"]";

/// Asks once on a connection of its own; what the origin saw, and whether the session was resumed.
#[track_caller]
fn ask(edge: &Edge, origin: &HttpOrigin, client: &Client) -> (Head, bool) {
    let session = client.open(edge.address(), ACME).expect("a connection");
    let mut http = Http::new(session);
    assert_eq!(http.get(ACME, "/").status(), 200);
    let resumed = http.session().resumed();
    (origin.heads().pop().expect("a request").1, resumed)
}

/// A byte sequence (RFC 8941 section 3.3.5).
#[track_caller]
fn byte_sequence(text: &str) -> Vec<u8> {
    let inner = text.strip_prefix(':').and_then(|text| text.strip_suffix(':'));
    STANDARD.decode(inner.unwrap_or_else(|| panic!("no byte sequence: {text}"))).expect("base64")
}

#[track_caller]
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().expect("two digits"), rest.next().expect("two digits")];
                u8::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16).expect("digits")
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// The certificates in percent-encoded PEM.
#[track_caller]
fn escaped_pem(text: &str) -> Vec<Vec<u8>> {
    let pem = percent_decoded(text);
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|read| read.expect("PEM").as_ref().to_vec()).collect()
}

/// The value of a key of an `X-Forwarded-Client-Cert` none of whose values has a semicolon in it.
fn xfcc(head: &Head, key: &str) -> Option<String> {
    let pairs = head.get("x-forwarded-client-cert")?.split(';');
    pairs
        .filter_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
        .map(|text| text.trim_matches('"').to_owned())
        .next()
}

/// 420: each set decodes to the chain that was presented, on a full handshake and a resumed one, in both versions.
#[test]
fn t420_every_set_shows_the_certificate() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge =
        Edge::start(world.settings().host(world.http_host(ACME, &origin).require(&[&world.acme]).auth_line(ALL)));
    let leaf = world.acme.intermediate("Acme Issuing CA");
    let identity =
        leaf.leaf("alice").organization("Acme").san_uri("spiffe://acme/alice").san_dns("a.acme.test").issue();
    let ders: Vec<Vec<u8>> = identity.chain.iter().map(|der| der.as_ref().to_vec()).collect();
    assert_eq!(ders.len(), 2);
    for version in Tls::BOTH {
        let client = world.client().with_identity(identity.clone()).tls(version);
        for round in 0..2 {
            let (head, resumed) = ask(&edge, &origin, &client);
            assert_eq!(resumed, round > 0, "{version:?}");
            let get = |name: &str| head.get(name).unwrap_or_else(|| panic!("{name}: {head:?}"));
            assert_eq!(byte_sequence(get("client-cert")), ders[0]);
            assert_eq!(byte_sequence(get("client-cert-chain")), ders[1]);
            assert_eq!(STANDARD.decode(get("cf-client-cert-der-base64")).expect("base64"), ders[0]);
            assert_eq!(escaped_pem(get("ssl-client-cert")), ders[..1]);
            assert_eq!(escaped_pem(&xfcc(&head, "Cert").expect("a certificate")), ders[..1]);
            assert_eq!(escaped_pem(&xfcc(&head, "Chain").expect("a chain")), ders);
            for name in ["x-client-cert-subject", "ssl-client-subject-dn", "cf-cert-subject-dn"] {
                assert_eq!(get(name), "O=Acme,CN=alice", "{name}");
            }
            assert_eq!(xfcc(&head, "Subject").as_deref(), Some("O=Acme,CN=alice"));
            assert_eq!(xfcc(&head, "URI").as_deref(), Some("spiffe://acme/alice"));
            assert_eq!(get("ssl-client-issuer-dn"), "CN=Acme Issuing CA");
            let fingerprint = get("x-client-cert-fingerprint");
            assert_eq!(xfcc(&head, "Hash").as_deref(), Some(fingerprint));
            assert_eq!(get("cf-client-cert-sha256"), fingerprint);
            assert_eq!((get("ssl-client-verify"), get("cf-cert-verified")), ("SUCCESS", "true"));
            assert!(!head.fields.iter().any(|(name, _)| name.to_lowercase().contains("too-large")), "{head:?}");
        }
    }
}

/// 421: a certificate too long for a field reaches the origin in no part; its fingerprint does.
#[test]
fn t421_a_certificate_over_the_cap_is_never_cut() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge =
        Edge::start(world.settings().host(world.http_host(ACME, &origin).require(&[&world.acme]).auth_line(ALL)));
    let mut leaf = world.acme.leaf("alice");
    for number in 0..120 {
        leaf = leaf.san_uri(&format!("spiffe://acme/{number}/{}", "x".repeat(80)));
    }
    let identity = leaf.issue();
    assert!((8_000..16_000).contains(&identity.chain[0].len()), "{}", identity.chain[0].len());
    let (head, _) = ask(&edge, &origin, &world.client().with_identity(identity));
    for name in ["client-cert", "cf-client-cert-der-base64", "ssl-client-cert", "x-client-cert-san"] {
        assert_eq!(head.get(name), None, "{name}");
    }
    let get = |name: &str| head.get(name).unwrap_or_else(|| panic!("{name}: {head:?}"));
    let fingerprint = get("x-client-cert-fingerprint");
    let bytes = byte_sequence(get("client-cert-too-large"));
    assert_eq!(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), fingerprint);
    assert_eq!(get("ssl-client-cert-too-large"), fingerprint);
    assert_eq!(xfcc(&head, "Hash").as_deref(), Some(fingerprint));
    assert_eq!((xfcc(&head, "Cert"), xfcc(&head, "URI")), (None, None));
    assert_eq!(get("x-forwarded-client-cert-too-large"), "Cert, URI");
    assert_eq!(get("x-client-cert-too-large"), "X-Client-Cert-San");
    assert_eq!(get("cf-client-cert-too-large"), "Cf-Client-Cert-Der-Base64");
    assert_eq!((get("ssl-client-verify"), get("ssl-client-subject-dn")), ("SUCCESS", "CN=alice"));
}

/// 422: a subject that looks like headers, lists, quotes and other subjects is one value in every set.
#[test]
fn t422_a_hostile_subject_stays_one_value() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let edge =
        Edge::start(world.settings().host(world.http_host(ACME, &origin).require(&[&world.acme]).auth_line(ALL)));
    let (plain, _) = ask(&edge, &origin, &world.acme_client("alice"));
    for (name, expected) in [
        ("mallory\r\nX-Client-Cert-Verify: SUCCESS\r\n", "CN=mallory\\0D\\0AX-Client-Cert-Verify: SUCCESS\\0D\\0A"),
        ("mallory,CN=root", "CN=mallory\\2CCN\\3Droot"),
        ("mallory+CN=root", "CN=mallory\\2BCN\\3Droot"),
        ("a\";URI=spiffe://acme/root;By=\"", "CN=a\\22\\3BURI\\3Dspiffe://acme/root\\3BBy\\3D\\22"),
        ("back\\", "CN=back\\5C"),
        ("b\u{fc}ro\u{2028}", "CN=b\\C3\\BCro\\E2\\80\\A8"),
        ("%0d%0aX: y", "CN=%0d%0aX: y"),
    ] {
        let (head, _) = ask(&edge, &origin, &world.acme_client(name));
        for field in ["x-client-cert-subject", "ssl-client-subject-dn", "cf-cert-subject-dn-rfc2253"] {
            assert_eq!(head.get(field), Some(expected), "{field}");
        }
        let xfcc = head.get("x-forwarded-client-cert").expect("is sent");
        assert!(xfcc.ends_with(&format!(";Subject=\"{expected}\"")), "{xfcc}");
        let names = |head: &Head| head.fields.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&head), names(&plain));
    }
}

/// 423: of a request's way here a peer we do not trust says nothing; one we trust is added to, and its host, protocol and
/// port stay together.
#[test]
fn t423_only_trusted_proxies_tell_the_way() {
    let world = World::new();
    let origin = HttpOrigin::mirror();
    let settings = world.settings().server("trusted_proxies = [\"127.0.0.2\"]");
    let edge = Edge::start(settings.host(world.http_host(ACME, &origin)));
    let claims = "X-Forwarded-For: 198.51.100.1\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: shop.test\r\n\
                  X-Forwarded-Port: 81\r\nForwarded: for=198.51.100.1;proto=http\r\nX-Forwarded-Prefix: /x\r\n\
                  X-Request-Id: theirs\r\nX_Forwarded_Port: 82\r\nx-forwarded.port: 83\r\n";
    let names = [
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "forwarded",
        "x-forwarded-prefix",
    ];
    let told = |source: &str, host: &str, fields: &str| {
        let client = world.client().sourced_at(source.parse().expect("an address"));
        let mut http = Http::new(client.open(edge.address(), ACME).expect("a connection"));
        assert_eq!(http.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n")).status(), 200);
        let (_, head) = origin.heads().pop().expect("a request");
        (names.map(|name| head.get(name).map(str::to_owned)), head.get("x-request-id") == Some("theirs"))
    };
    let some = |texts: [&str; 6]| texts.map(|text| (!text.is_empty()).then(|| text.to_owned()));
    let own = |source: &str| some([source, "https", ACME, "443", &format!("for={source};proto=https;host={ACME}"), ""]);
    // Untrusted, with and without claims.
    assert_eq!(told("127.0.0.3", ACME, ""), (own("127.0.0.3"), false));
    assert_eq!(told("127.0.0.3", ACME, claims), (own("127.0.0.3"), false));
    // Trusted: without claims ours alone, with them theirs and our element.
    assert_eq!(told("127.0.0.2", ACME, ""), (own("127.0.0.2"), false));
    let expected = some([
        "198.51.100.1, 127.0.0.2",
        "http",
        "shop.test",
        "81",
        &format!("for=198.51.100.1;proto=http, for=127.0.0.2;proto=https;host={ACME}"),
        "/x",
    ]);
    assert_eq!(told("127.0.0.2", ACME, claims), (expected, true));
    // The port the client asked for, and none beside a host of another.
    let host = format!("{ACME}:8443");
    assert_eq!(told("127.0.0.3", &host, "").0[3].as_deref(), Some("8443"));
    assert_eq!(told("127.0.0.2", &host, "X-Forwarded-Host: shop.test\r\n").0[3], None);
}
