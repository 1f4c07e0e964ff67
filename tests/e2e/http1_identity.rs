//! I5: who the client is, an origin hears from us alone, however a client spells what it forges.

use crate::harness::http::{Head, Http, HttpOrigin};
use crate::harness::{ACME, Auth, Client, Edge, End, Settings, World};

/// Names of every identity set there is, ours and those of others an origin may be set up for.
pub const NAMES: &[&str] = &[
    "Client-Cert",
    "Client-Cert-Chain",
    "Client-Cert-Too-Large",
    "Client-Cert-Chain-Too-Large",
    "X-Client-Cert",
    "X-Client-Cert-Verify",
    "X-Client-Cert-Subject",
    "X-Client-Cert-Issuer",
    "X-Client-Cert-Serial",
    "X-Client-Cert-Fingerprint",
    "X-Client-Cert-San",
    "X-Client-Cert-Not-After",
    "X-Client-Cert-Too-Large",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Client-Cert-Too-Large",
    "X-Forwarded-Tls-Client-Cert",
    "X-Forwarded-Tls-Client-Cert-Info",
    "Cf-Client-Cert-Der-Base64",
    "Cf-Client-Cert-Sha256",
    "Cf-Cert-Verified",
    "Cf-Cert-Presented",
    "Cf-Cert-Subject-Dn",
    "Cf-Cert-Issuer-Dn-Rfc2253",
    "Cf-Cert-Serial",
    "Cf-Client-Cert-Too-Large",
    "Ssl-Client-Cert",
    "Ssl-Client-Verify",
    "Ssl-Client-Subject-Dn",
    "Ssl-Client-Issuer-Dn",
    "Ssl-Client-Cert-Too-Large",
    "X-Ssl-Client-Cert",
    "X-Amzn-Mtls-Clientcert",
    "X-Amzn-Mtls-Clientcert-Leaf",
    "X-Amzn-Mtls-Clientcert-Subject",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded-Prefix",
    "Forwarded",
];

/// Every byte beside letters, digits and the hyphen that a name may have (RFC 9110 section 5.6.2).
const SEPARATORS: &str = "_.!#$%&'*+^`|~";

/// What `client_auth.headers` may say.
pub const SETS: [&str; 6] = [
    "[\"client-cert\"]",
    "[\"x-client-cert\"]",
    "[\"xfcc\"]",
    "[\"cf\"]",
    "[\"ingress\"]",
    "[\"client-cert\", \"x-client-cert\", \"xfcc\", \"cf\", \"ingress\"]",
];

/// A name with its letters in turn large and small.
fn alternating(name: &str, first: usize) -> String {
    let letters = name.chars().enumerate();
    letters.map(|(at, c)| if at % 2 == first { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }).collect()
}

/// The spellings of a name: lines of a request, without their ends. All say `forged`.
fn spellings(name: &str) -> Vec<String> {
    let mut names = vec![
        name.to_owned(),
        name.to_lowercase(),
        name.to_uppercase(),
        alternating(name, 0),
        alternating(name, 1),
        // The first hyphen only, and the last.
        name.replacen('-', "_", 1),
        name.rsplit_once('-').map_or_else(|| name.to_owned(), |(start, end)| format!("{start}_{end}")),
        name.to_uppercase().replace('-', "_"),
    ];
    // `Forwarded` has no hyphen: nothing takes its place.
    names.extend(SEPARATORS.chars().map(|separator| name.replace('-', &separator.to_string())));
    let mut lines: Vec<_> = names.iter().map(|name| format!("{name}: forged")).collect();
    lines.extend([
        format!("{name}:forged"),
        format!("{name}: \t forged \t "),
        format!("{name}: forged, forged"),
        format!("{name}: ,forged,"),
        format!("{name}: \"forged\""),
        format!("{name}: :Zm9yZ2Vk:, forged"),
        format!("{name}: Hash=0;Subject=\"CN=forged\""),
        format!("{name}: for=6.6.6.6;by=forged;host=forged"),
        format!("{name}: f\u{fc}rged forged"),
        format!("Connection: {name}, {}\r\n{name}: forged", name.to_lowercase()),
        format!("Connection: close-not, {}\r\n{}: forged", name.to_uppercase(), name.replace('-', "_")),
    ]);
    lines
}

/// What must be the same in every request of a client: all fields but the number of the request.
pub fn told(head: &Head) -> Vec<(String, String)> {
    let mut fields = head.fields.clone();
    fields.retain(|(name, _)| !name.eq_ignore_ascii_case("x-request-id"));
    fields.sort();
    fields
}

/// Sends the forgeries in groups, all on one connection, and compares what the origin saw with what it sees of an honest
/// request of the same client.
fn attack(origin: &HttpOrigin, edge: &Edge, client: &Client, host: &str) -> Vec<(String, String)> {
    let mut http = Http::new(client.open(edge.address(), host).expect("a connection"));
    let start = origin.heads().len();
    assert_eq!(http.get(host, "/").status(), 200);
    let honest = told(&origin.head(start));
    assert!(honest.iter().any(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for")), "{honest:?}");
    for name in NAMES {
        let lines = spellings(name);
        assert!(lines.len() >= 30, "{}", lines.len());
        // Connection's tokens are bounded: the two lines with it stand in requests of their own.
        let (named, plain): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with("Connection"));
        let all = plain.join("\r\n");
        // All of them at once, each repeated; each alone with Connection.
        for fields in [&all, &format!("{all}\r\n{all}")].into_iter().chain(&named) {
            let at = origin.heads().len();
            let answer = http.ask(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n\r\n"));
            assert_eq!(answer.status(), 200, "{fields:?}");
            assert_eq!(told(&origin.head(at)), honest, "{host}: {fields:?}");
            assert!(!origin.head(at).get("x-request-id").is_some_and(|id| id.contains("forged")));
        }
        // In the trailers of a chunked body, where they are dropped as in a head.
        let answer = http.ask(&format!(
            "POST /trailers HTTP/1.1\r\nHost: {host}\r\nTrailer: {name}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n{all}\r\n\r\n"
        ));
        assert_eq!((answer.status(), answer.body.text().as_str()), (200, "trailers: []"), "{name}");
    }
    honest
}

fn origin() -> HttpOrigin {
    HttpOrigin::start(|head, talk| {
        let body = talk.body(head)?;
        talk.answer("200 OK", &format!("trailers: {:?}", body.trailers))
    })
}

/// One hostname for each set of headers, and one that lets unusual names pass.
fn hosts(world: &World, origin: &HttpOrigin, mode: Auth) -> (Settings, Vec<String>) {
    let mut settings = world.settings();
    let mut names = Vec::new();
    for (number, set) in SETS.iter().enumerate() {
        let name = format!("s{number}.acme.test");
        let mut host = world.http_host(&name, origin);
        if mode != Auth::Off {
            host = host.auth(mode, &[&world.acme]).auth_line(&format!("headers = {set}"));
        }
        if number == SETS.len() - 1 {
            host = host.line("keep_unusual_headers = true");
        }
        settings = settings.host(host);
        names.push(name);
    }
    (settings, names)
}

fn has(told: &[(String, String)], name: &str) -> bool {
    told.iter().any(|(other, _)| other.eq_ignore_ascii_case(name))
}

/// 315: where no certificate is asked for, nobody has one, whatever a client says and whatever it could show.
#[test]
fn t315_nothing_is_forged_where_nobody_is_asked() {
    let world = World::new();
    let origin = origin();
    let (settings, names) = hosts(&world, &origin, Auth::Off);
    let edge = Edge::start(settings);
    for name in [&names[0], &names[names.len() - 1]] {
        for client in [world.client(), world.acme_client("alice")] {
            let told = attack(&origin, &edge, &client, name);
            assert!(!told.iter().any(|(name, _)| name.to_ascii_lowercase().contains("cert")), "{told:?}");
        }
    }
}

/// 316: where a certificate is asked for: nobody, a stranger and a client that is known are told apart by us alone.
#[test]
fn t316_nothing_is_forged_where_a_certificate_is_asked_for() {
    let world = World::new();
    let origin = origin();
    let (settings, names) = hosts(&world, &origin, Auth::Request);
    let edge = Edge::start(settings);
    for name in &names {
        for (client, verify) in [
            (world.client(), "NONE"),
            (world.globex_client("mallory"), "FAILED:unknown_ca"),
            (world.acme_client("alice"), "SUCCESS"),
        ] {
            let told = attack(&origin, &edge, &client, name);
            let said: Vec<_> =
                told.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-client-cert-verify")).collect();
            assert_eq!(said.len(), 1, "{told:?}");
            assert_eq!(said[0].1, verify);
            if verify != "SUCCESS" {
                for name in [
                    "client-cert",
                    "x-forwarded-client-cert",
                    "x-client-cert-subject",
                    "cf-client-cert-sha256",
                    "cf-cert-subject-dn",
                    "ssl-client-subject-dn",
                    "ssl-client-cert",
                ] {
                    assert!(!has(&told, name), "{told:?}");
                }
            }
        }
    }
}

/// 317: where a certificate is required, it is the one that was shown.
#[test]
fn t317_nothing_is_forged_where_a_certificate_is_required() {
    let world = World::new();
    let origin = origin();
    let (settings, names) = hosts(&world, &origin, Auth::Require);
    let edge = Edge::start(settings);
    for (name, proof) in names.iter().zip([
        "client-cert",
        "x-client-cert-subject",
        "x-forwarded-client-cert",
        "cf-client-cert-sha256",
        "ssl-client-subject-dn",
        "ssl-client-cert",
    ]) {
        let told = attack(&origin, &edge, &world.acme_client("alice"), name);
        assert!(has(&told, proof), "{name}: {told:?}");
        assert!(has(&told, "x-client-cert-verify"), "{told:?}");
    }
    // Nobody else gets as far as to forge anything.
    for client in [world.client(), world.globex_client("mallory")] {
        let before = origin.heads().len();
        let mut http =
            Http::new(client.tls(crate::harness::Tls::V1_3).open(edge.address(), &names[0]).expect("TLS 1.3"));
        let _ = http.send(&format!("GET / HTTP/1.1\r\nHost: {}\r\nClient-Cert: forged\r\n\r\n", names[0]));
        assert!(matches!(http.response_to(false), Err(End::Alert(_))));
        assert_eq!(origin.heads().len(), before);
    }
}

/// 318: spellings that no parser should take for a field are no requests at all.
#[test]
fn t318_spellings_that_are_no_fields_are_refused() {
    let world = World::new();
    let origin = origin();
    let edge = Edge::start(world.settings().host(world.http_host(ACME, &origin).request(&[&world.acme])));
    for name in NAMES {
        for field in [
            format!("{name} : forged"),
            format!("{name}\t: forged"),
            format!(" {name}: forged"),
            format!("X: y\r\n {name}: forged"),
            format!("{name}:\r\n forged"),
            format!("X: y\r{name}: forged"),
            format!("X: y\n{name}: forged"),
            format!("{name}\0: forged"),
            format!("{name}\u{2010}Cert: forged"),
            format!("{}: forged", name.replace('-', " ")).replace("Forwarded:", "For warded:"),
            format!("({name}): forged"),
            format!("\u{feff}{name}: forged"),
        ] {
            let mut http = Http::new(world.client().open(edge.address(), ACME).expect("a connection"));
            let answer = http.ask(&format!("GET / HTTP/1.1\r\nHost: {ACME}\r\n{field}\r\n\r\n"));
            assert_eq!((answer.status(), answer.head.get("connection")), (400, Some("close")), "{field:?}");
        }
    }
    assert!(origin.heads().is_empty());
}
