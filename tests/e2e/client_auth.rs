//! I2: a client certificate counts only if it chains to the hostname's own CAs, is within its dates, is for clients, and
//! its key signed this handshake. Every mode, every fault, both versions, full and resumed.

use rcgen::ExtendedKeyUsagePurpose;
use rustls::AlertDescription;

use crate::harness::origin::Manner;
use crate::harness::{ACME, Auth, Authority, Client, Edge, End, GLOBEX, Identity, Origin, Tls, Validity, World};

/// A client's certificate, and what should become of it.
struct Case {
    name: &'static str,
    identity: Option<Identity>,
    /// The alert in `require`; `None`: let in.
    alert: Option<AlertDescription>,
    /// The label in metrics.
    result: &'static str,
    /// Nothing was proved: the handshake fails in `request` too.
    always_fatal: bool,
}

/// The CAs Acme's hostname trusts, and the certificates brought to it.
struct Matrix {
    world: World,
    expired_ca: Authority,
    cases: Vec<Case>,
}

impl Matrix {
    fn new() -> Self {
        let world = World::new();
        let expired_ca = Authority::with_validity("Old Acme Clients CA", Validity::expired());
        let twin = Authority::new("Acme Clients CA");
        let eve = Authority::new("Nobody").leaf("eve").issue();
        let acme = &world.acme;
        let case = |name, identity, alert, result| Case { name, identity, alert, result, always_fatal: false };
        let refused = |name, identity, alert, result| case(name, Some(identity), Some(alert), result);
        let client = [ExtendedKeyUsagePurpose::ClientAuth];
        let server = [ExtendedKeyUsagePurpose::ServerAuth];

        use AlertDescription as Alert;
        let mut cases = vec![
            case("none", None, Some(Alert::CertificateRequired), "none"),
            case("right", Some(acme.leaf("alice").issue()), None, "accepted"),
            case("right, without EKU", Some(acme.leaf("alice").purposes(&[]).issue()), None, "accepted"),
            case("right, 5 certificates", Some(acme.descend(4).leaf("alice").issue()), None, "accepted"),
            case("right, RSA", Some(acme.leaf("alice").rsa().issue()), None, "accepted"),
            refused("other tenant's", world.globex.leaf("alice").issue(), Alert::UnknownCA, "unknown_ca"),
            refused("self-signed", Identity::self_signed("alice"), Alert::UnknownCA, "unknown_ca"),
            refused("same-subject other CA", twin.leaf("alice").issue(), Alert::UnknownCA, "unknown_ca"),
            refused(
                "expired",
                acme.leaf("alice").valid(Validity::expired()).issue(),
                Alert::CertificateExpired,
                "expired",
            ),
            refused(
                "not yet valid",
                acme.leaf("alice").valid(Validity::future()).issue(),
                Alert::CertificateExpired,
                "not_yet_valid",
            ),
            refused(
                "wrong EKU",
                acme.leaf("alice").purposes(&server).issue(),
                Alert::UnsupportedCertificate,
                "wrong_usage",
            ),
            refused(
                "expired CA",
                expired_ca.leaf("alice").purposes(&client).issue(),
                Alert::CertificateExpired,
                "ca_expired",
            ),
            refused("6 certificates", acme.descend(5).leaf("alice").issue(), Alert::BadCertificate, "chain_too_long"),
            refused("20 KiB of certificate", oversized(acme), Alert::BadCertificate, "chain_too_long"),
        ];
        cases.push(Case {
            name: "right CA, wrong key",
            identity: Some(acme.leaf("alice").issue().with_key_of(&eve)),
            alert: Some(Alert::DecryptError),
            result: "bad_signature",
            always_fatal: true,
        });
        Self { world, expired_ca, cases }
    }

    /// An edge whose Acme hostname asks in this mode, with the origin told who came.
    fn edge(&self, mode: Auth) -> (Edge, Origin) {
        self.edge_of("aws-lc-rs", mode)
    }

    /// The same with one of the crypto providers.
    fn edge_of(&self, provider: &str, mode: Auth) -> (Edge, Origin) {
        let origin = Origin::start(Manner::ProxyEcho);
        let cas: &[_] = if mode == Auth::Off { &[] } else { &[&self.world.acme, &self.expired_ca] };
        let host = self.world.host(ACME, &origin).auth(mode, cas).with_proxy_header();
        (Edge::start(self.world.settings().tls(&format!("provider = {provider:?}")).host(host)), origin)
    }

    fn client(&self, case: &Case, version: Tls) -> Client {
        let client = self.world.client().tls(version);
        match &case.identity {
            Some(identity) => client.with_identity(identity.clone()),
            None => client,
        }
    }
}

/// A certificate that alone exceeds the 16 KiB a chain may have.
fn oversized(authority: &Authority) -> Identity {
    let mut leaf = authority.leaf("alice");
    for number in 0..400 {
        leaf = leaf.san_dns(&format!("a-rather-long-name-that-fills-the-certificate-{number}.acme.test"));
    }
    leaf.issue()
}

/// The counter of verdicts.
fn verdicts(edge: &Edge, result: &str) -> f64 {
    edge.metric(&format!("hostward_client_auth_total{{result=\"{result}\"}}"))
}

/// 010: `off` asks nobody: every client is let in, and none is said to have shown a certificate.
#[test]
fn t010_off_asks_nobody() {
    let matrix = Matrix::new();
    let (edge, origin) = matrix.edge(Auth::Off);
    for version in Tls::BOTH {
        for case in &matrix.cases {
            let client = matrix.client(case, version);
            for resumed in [false, true] {
                let session = client.expect_in(edge.address(), ACME);
                assert_eq!(session.resumed(), resumed, "{version:?} {}", case.name);
                let ssl = origin.last_header().ssl().expect("an SSL TLV");
                assert!(ssl.tls && !ssl.certificate_on_connection && !ssl.certificate_in_session, "{ssl:?}");
                assert_ne!(ssl.verify, 0, "{version:?} {}: nobody was verified", case.name);
                assert_eq!(ssl.common_name, None, "{version:?} {}", case.name);
            }
        }
    }
    assert_eq!(edge.metric("hostward_client_auth_total") as u64, 0);
}

/// 011: `require` refuses each fault with its own alert and counter, and lets the right certificates in.
#[test]
fn t011_require_refuses_with_the_exact_alert() {
    let matrix = Matrix::new();
    let (edge, origin) = matrix.edge(Auth::Require);
    let mut wrong = Vec::new();
    for version in Tls::BOTH {
        for case in &matrix.cases {
            let (before, refused_before) = (verdicts(&edge, reason(case)), edge.refusals(reason(case)));
            let client = matrix.client(case, version);
            let end = client.enter(edge.address(), ACME).err();
            let expected = case.alert.map(End::Alert);
            if end != expected {
                wrong.push(format!("{version:?} {}: {end:?}, expected {expected:?}", case.name));
                continue;
            }
            edge.expect_metric(&format!("hostward_client_auth_total{{result={:?}}}", reason(case)), before + 1.0);
            if case.alert.is_some() {
                edge.expect_refusals(reason(case), refused_before + 1.0);
                assert_eq!(client.tickets().count(), 0, "{version:?} {}: a refused client got a ticket", case.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let let_in = matrix.cases.iter().filter(|case| case.alert.is_none()).count() * 2;
    assert_eq!(origin.accepted(), let_in as u64, "no refused client reaches the origin");
}

/// The reason of a refusal in `require`: that of the verdict, but for a client without a certificate.
fn reason(case: &Case) -> &'static str {
    if case.result == "none" { "no_certificate" } else { case.result }
}

/// 012: `request` lets every client in that proves its key, and carries the verdict to the origin and the counters.
#[test]
fn t012_request_carries_the_verdict_on() {
    let matrix = Matrix::new();
    let (edge, origin) = matrix.edge(Auth::Request);
    let mut wrong = Vec::new();
    for version in Tls::BOTH {
        for case in &matrix.cases {
            let before = verdicts(&edge, case.result);
            let end = matrix.client(case, version).enter(edge.address(), ACME).err();
            let expected = case.alert.filter(|_| case.always_fatal).map(End::Alert);
            if end != expected {
                wrong.push(format!("{version:?} {}: {end:?}, expected {expected:?}", case.name));
                continue;
            }
            edge.expect_metric(&format!("hostward_client_auth_total{{result={:?}}}", case.result), before + 1.0);
            if end.is_none() {
                let ssl = origin.last_header().ssl().expect("an SSL TLV");
                let verified = case.result == "accepted";
                if (ssl.verify == 0) != verified || ssl.certificate_on_connection != case.identity.is_some() {
                    wrong.push(format!("{version:?} {}: the origin was told {ssl:?}", case.name));
                }
                // What an unverified certificate says is hearsay, and must not reach the origin as a name.
                if ssl.common_name.is_some() != verified {
                    wrong.push(format!("{version:?} {}: the origin was told the name {ssl:?}", case.name));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// 013: a rule on `verify` sees the verdict, in full and in resumed handshakes.
#[test]
fn t013_rules_see_the_verdict() {
    let matrix = Matrix::new();
    for (selector, admitted) in [("SUCCESS", "accepted"), ("NONE", "none"), ("FAILED", "")] {
        let origin = Origin::echo();
        let host = matrix.world.host(ACME, &origin).request(&[&matrix.world.acme, &matrix.expired_ca]);
        let edge =
            Edge::start(matrix.world.settings().host(host.rule(&format!("verify = {selector:?}\nallow = {{}}"))));
        for version in Tls::BOTH {
            for case in matrix.cases.iter().filter(|case| !case.always_fatal) {
                let failed = case.alert.is_some() && case.result != "none";
                let expected = case.result == admitted || (admitted.is_empty() && failed);
                let client = matrix.client(case, version);
                for attempt in 1..=2 {
                    let end = client.enter(edge.address(), ACME).err();
                    let as_expected = end.as_ref().map_or(expected, |end| !expected && end.is_denial());
                    assert!(as_expected, "{selector} {version:?} {} attempt {attempt}: {end:?}", case.name);
                }
            }
        }
        assert!(edge.refusals("rule_denied") > 0.0);
    }
}

/// 014: identity rules look at the verified certificate: common name, URI, e-mail, serial, organization.
#[test]
fn t014_rules_look_at_the_identity() {
    let world = World::new();
    let leaf = || {
        let leaf = world.acme.leaf("ops-1").organization("Acme Ltd").serial(0x1234);
        leaf.san_uri("spiffe://acme/ops/deploy").san_email("ops@acme.test").san_dns("ops.acme.test").issue()
    };
    let other = world.acme.leaf("web-1").organization("Acme").san_uri("spiffe://acme/web/x").issue();
    for allow in [
        "common_name = [\"ops-*\"]",
        "organization = [\"Acme Ltd\"]",
        "serial = [\"1234\"]",
        "san_uri = [\"spiffe://acme/ops/*\"]",
        "san_email = [\"ops@acme.test\"]",
        "san_dns = [\"ops.acme.test\"]",
        "issuer_common_name = [\"Acme Clients CA\"], common_name = [\"ops-1\"]",
    ] {
        let origin = Origin::echo();
        let host = world.host(ACME, &origin).require(&[&world.acme]).rule(&format!("allow = {{ {allow} }}"));
        let edge = Edge::start(world.settings().host(host));
        for version in Tls::BOTH {
            let client = world.client().tls(version).with_identity(leaf());
            assert!(!client.expect_in(edge.address(), ACME).resumed());
            assert!(client.expect_in(edge.address(), ACME).resumed(), "{allow}");
            let client = world.client().tls(version).with_identity(other.clone());
            client.expect_alert(edge.address(), ACME, AlertDescription::AccessDenied);
        }
    }
}

/// 015: each of two customers lets in its own clients and refuses the other's.
#[test]
fn t015_customers_do_not_share_trust() {
    let world = World::new();
    let origin = Origin::echo();
    let settings = world.settings();
    let settings = settings.host(world.host(ACME, &origin).require(&[&world.acme]));
    let edge = Edge::start(settings.host(world.host(GLOBEX, &origin).require(&[&world.globex])));
    for version in Tls::BOTH {
        let (alice, bob) = (world.acme_client("alice").tls(version), world.globex_client("bob").tls(version));
        alice.expect_in(edge.address(), ACME);
        bob.expect_in(edge.address(), GLOBEX);
        alice.expect_alert(edge.address(), GLOBEX, AlertDescription::UnknownCA);
        bob.expect_alert(edge.address(), ACME, AlertDescription::UnknownCA);
    }
}

/// 016: two CAs of one subject and different keys both work: the rollover of a customer's CA.
#[test]
fn t016_two_cas_of_one_subject_both_work() {
    let world = World::new();
    let next = Authority::new("Acme Clients CA");
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme, &next])));
    for version in Tls::BOTH {
        for authority in [&world.acme, &next] {
            let client = world.client().tls(version).with_identity(authority.leaf("alice").issue());
            client.expect_in(edge.address(), ACME);
        }
    }
}

/// 017: `allow_expired_ca` lets clients of a CA in that is past its dates, and nothing else.
#[test]
fn t017_an_expired_ca_may_be_allowed() {
    let matrix = Matrix::new();
    let world = &matrix.world;
    let origin = Origin::echo();
    let mut host = world.host(ACME, &origin).require(&[&world.acme, &matrix.expired_ca]);
    host.auth_lines.push("allow_expired_ca = true".into());
    let edge = Edge::start(world.settings().host(host));
    for version in Tls::BOTH {
        for case in &matrix.cases {
            let end = matrix.client(case, version).enter(edge.address(), ACME).err();
            let expected = case.alert.filter(|_| case.result != "ca_expired").map(End::Alert);
            assert_eq!(end, expected, "{version:?} {}", case.name);
        }
    }
}

/// 018: a refused handshake leaves one line with reason, hostname, peer and what the certificate says.
#[test]
fn t018_a_refusal_leaves_a_line() {
    let world = World::new();
    let origin = Origin::echo();
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin).require(&[&world.acme])));
    let client = world.client().with_identity(world.globex.leaf("mallory").serial(0xabcd).issue());
    client.expect_alert(edge.address(), ACME, AlertDescription::UnknownCA);
    let line = crate::harness::wait::for_some("the refusal's line", crate::harness::SOON, || {
        edge.events.named(&["refused"]).pop()
    });
    assert_eq!(line["reason"], "unknown_ca", "{line}");
    assert_eq!(line["hostname"], ACME, "{line}");
    let text = line.to_string();
    for word in ["127.0.0.1:", "mallory", "Globex Clients CA", "abcd"] {
        assert!(text.contains(word), "{word} is not in {line}");
    }
}

/// 019: the provider `ring` lets in and refuses the same, with the same alerts, and resumes.
#[test]
fn t019_the_other_provider_judges_alike() {
    let matrix = Matrix::new();
    for mode in [Auth::Request, Auth::Require] {
        let (edge, _origin) = matrix.edge_of("ring", mode);
        for version in Tls::BOTH {
            for case in &matrix.cases {
                let client = matrix.client(case, version);
                let end = client.enter(edge.address(), ACME).err();
                let expected = case.alert.filter(|_| mode == Auth::Require || case.always_fatal).map(End::Alert);
                assert_eq!(end, expected, "{mode:?} {version:?} {}", case.name);
                if case.alert.is_none() {
                    assert!(client.expect_in(edge.address(), ACME).resumed(), "{mode:?} {version:?} {}", case.name);
                }
            }
        }
    }
}
