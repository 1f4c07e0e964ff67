//! Every kind of client certificate against every mode and version: the reason we name and the alert the client hears.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::client::ResolvesClientCert;
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{AlertDescription, Error, SignatureAlgorithm, SignatureScheme, SupportedProtocolVersion};

use super::client::{Client, VERSIONS};
use super::pair::Server;
use super::pki::{Authority, Certified, client_auth, dates, record, rules, tenant};
use crate::policy::{AllowSpec, Refusal, RuleSpec, Verdict, VerifySelector};
use crate::registry::ClientAuthMode;

type Versions = &'static [&'static SupportedProtocolVersion];

/// What must become of a certificate where certificates are required.
type Expected = Result<(), (Refusal, AlertDescription)>;

struct Case {
    what: &'static str,
    certified: Option<Certified>,
    required: Expected,
    /// Where certificates are requested: the verdict, or the refusal that is the same as above.
    requested: Option<Verdict>,
}

/// The CAs of a hostname and clients of all kinds.
struct World {
    acme: Authority,
    expired_ca: Authority,
    future_ca: Authority,
    cases: Vec<Case>,
}

fn usage(purposes: Vec<ExtendedKeyUsagePurpose>) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.extended_key_usages = purposes
}

fn world() -> World {
    use AlertDescription as A;
    use Refusal as R;

    let acme = Authority::root("Acme");
    let same_subject = Authority::root("Acme");
    let expired_ca = Authority::root_with("Old", |params| dates(params, -30, -1));
    let future_ca = Authority::root_with("New", |params| dates(params, 1, 30));
    let ann = acme.client("ann");
    let mut cases = Vec::new();
    let mut case = |what, certified: Option<Certified>, required: Expected| {
        let requested = match required {
            Ok(()) => Some(Verdict::Success),
            Err((R::NoCertificate, _)) => Some(Verdict::None),
            // The key was not proved: refused in every mode.
            Err((R::BadSignature, _)) => None,
            Err((reason, _)) => Some(Verdict::Failed(reason)),
        };
        cases.push(Case { what, certified, required, requested });
    };
    case("the right one", Some(ann.clone()), Ok(()));
    case("none", None, Err((R::NoCertificate, A::CertificateRequired)));
    case("below an intermediate", Some(acme.intermediate_with("Acme Europe", |_| {}).client("ann")), Ok(()));
    case("without extKeyUsage", Some(acme.client_with("ann", usage(vec![]))), Ok(()));
    case("another tenant's", Some(Authority::root("Globex").client("bob")), Err((R::UnknownCa, A::UnknownCA)));
    case("of a CA of the same subject", Some(same_subject.client("ann")), Err((R::UnknownCa, A::UnknownCA)));
    case("self-signed", Some(Certified::self_signed("ann")), Err((R::UnknownCa, A::UnknownCA)));
    case(
        "expired",
        Some(acme.client_with("ann", |params| dates(params, -30, -1))),
        Err((R::Expired, A::CertificateExpired)),
    );
    case(
        "not yet valid",
        Some(acme.client_with("ann", |params| dates(params, 1, 30))),
        Err((R::NotYetValid, A::CertificateExpired)),
    );
    case(
        "below an expired intermediate",
        Some(acme.intermediate_with("Acme Europe", |params| dates(params, -30, -1)).client("ann")),
        Err((R::Expired, A::CertificateExpired)),
    );
    case(
        "for servers",
        Some(acme.client_with("ann", usage(vec![ExtendedKeyUsagePurpose::ServerAuth]))),
        Err((R::WrongUsage, A::UnsupportedCertificate)),
    );
    case(
        "a CA's own",
        Some(Certified { chain: vec![acme.der().to_vec().into()], key: acme.key().serialize_der() }),
        Err((R::WrongUsage, A::UnsupportedCertificate)),
    );
    case(
        "another's key",
        Some(Certified { key: acme.client("ann").key, ..ann.clone() }),
        Err((R::BadSignature, A::DecryptError)),
    );
    case("of an expired CA", Some(expired_ca.client("ann")), Err((R::CaExpired, A::CertificateExpired)));
    case("of a CA that is not yet valid", Some(future_ca.client("ann")), Err((R::CaExpired, A::CertificateExpired)));
    let five = Certified { chain: vec![ann.leaf().clone(); 5], ..ann.clone() };
    case("five in the chain", Some(five), Ok(()));
    let six = Certified { chain: vec![ann.leaf().clone(); 6], ..ann.clone() };
    case("six in the chain", Some(six), Err((R::ChainTooLong, A::BadCertificate)));
    let mut large = acme.client_with("ann", |params| {
        let oid = &[1, 3, 6, 1, 4, 1, 99999, 7];
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(oid, vec![4; 17_000]));
    });
    case("too large", Some(large.clone()), Err((R::ChainTooLong, A::BadCertificate)));
    large = acme.client_with("ann", |params| {
        let oid = &[1, 3, 6, 1, 4, 1, 99999, 7];
        params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(oid, vec![4; 15_000]));
    });
    case("large", Some(large), Ok(()));
    let mut garbage = Authority::root("Globex").client("bob");
    garbage.chain.push(vec![0x30, 3, 1, 2, 3].into());
    case("behind an intermediate that is none", Some(garbage), Err((R::MalformedCertificate, A::BadCertificate)));
    World { acme, expired_ca, future_ca, cases }
}

fn server_of(world: &World, mode: ClientAuthMode, specs: Vec<RuleSpec>) -> Server {
    let cas = [world.acme.der(), world.expired_ca.der(), world.future_ca.der()];
    let record = record(1, "a.test", |record| {
        record.client_auth = client_auth(mode, &cas);
        record.rules = rules(specs);
    });
    Server::new(tenant(&record))
}

fn for_each_case(world: &World, mut check: impl FnMut(&Case, Versions, &Client)) {
    for case in &world.cases {
        for versions in VERSIONS {
            check(case, versions, &Client::new(versions, case.certified.as_ref()));
        }
    }
}

#[test]
fn where_certificates_are_required_each_fault_has_its_reason_and_its_alert() {
    let world = world();
    let server = server_of(&world, ClientAuthMode::Require, vec![]);
    for_each_case(&world, |case, _, client| match (server.shake(client, "a.test"), case.required) {
        (Ok(established), Ok(())) => {
            assert_eq!(established.standing.verdict, Verdict::Success, "{}", case.what);
            let path = established.standing.path.unwrap();
            assert!(!path.elements.is_empty());
            assert!(established.standing.authenticated_unix_s >= server.now_unix_s);
        }
        (Err(failure), Err((reason, alert))) => {
            assert_eq!(failure.told(), (reason, Some(alert)), "{}: {:?}", case.what, failure.fatal.detail);
            assert!(!failure.fatal.by_peer);
        }
        (Ok(_), Err(expected)) => panic!("{}: let in, expected {expected:?}", case.what),
        (Err(failure), Ok(())) => panic!("{}: {failure:?}", case.what),
    });
}

#[test]
fn where_certificates_are_requested_a_fault_is_the_verdict_once_the_key_is_proved() {
    let world = world();
    let server = server_of(&world, ClientAuthMode::Request, vec![]);
    for_each_case(&world, |case, _, client| match (server.shake(client, "a.test"), case.requested) {
        (Ok(established), Some(verdict)) => {
            assert_eq!(established.standing.verdict, verdict, "{}", case.what);
            assert_eq!(established.standing.path.is_some(), verdict == Verdict::Success, "{}", case.what);
            // DECISIONS 2: no ticket of a client that failed.
            let failed = matches!(verdict, Verdict::Failed(_));
            assert_eq!(client.tickets(), usize::from(!failed), "{}", case.what);
        }
        (Err(failure), None) => {
            let (reason, alert) = case.required.unwrap_err();
            assert_eq!(failure.told(), (reason, Some(alert)), "{}", case.what);
        }
        (Ok(established), None) => panic!("{}: let in as {}", case.what, established.standing.verdict),
        (Err(failure), Some(_)) => panic!("{}: {failure:?}", case.what),
    });
}

#[test]
fn where_the_failed_key_is_not_proved_no_fault_of_the_chain_hides_it() {
    let world = world();
    let server = server_of(&world, ClientAuthMode::Request, vec![]);
    for versions in VERSIONS {
        // A stranger's chain with another's key: the chain alone would only be a verdict.
        let stranger = Authority::root("Globex").client("bob");
        let unproved = Certified { key: world.acme.client("ann").key, ..stranger };
        let failure = server.shake(&Client::new(versions, Some(&unproved)), "a.test").err().unwrap();
        assert_eq!(failure.told(), (Refusal::BadSignature, Some(AlertDescription::DecryptError)));
    }
}

#[test]
fn a_leaf_that_does_not_parse_fails_in_every_mode() {
    let world = world();
    for mode in [ClientAuthMode::Request, ClientAuthMode::Require] {
        let server = server_of(&world, mode, vec![]);
        for versions in VERSIONS {
            let ann = world.acme.client("ann");
            let broken = Certified { chain: vec![vec![0x30, 3, 1, 2, 3].into()], ..ann };
            let failure = server.shake(&Client::new(versions, Some(&broken)), "a.test").err().unwrap();
            assert_eq!(failure.told(), (Refusal::MalformedCertificate, Some(AlertDescription::BadCertificate)));
            // The same with an extension that is critical and unknown.
            let strange = world.acme.client_with("ann", |params| {
                let mut extension = rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 8], vec![5, 0]);
                extension.set_criticality(true);
                params.custom_extensions.push(extension);
            });
            let failure = server.shake(&Client::new(versions, Some(&strange)), "a.test").err().unwrap();
            assert_eq!(failure.told(), (Refusal::MalformedCertificate, Some(AlertDescription::BadCertificate)));
        }
    }
}

#[test]
fn where_nobody_is_asked_nobody_is_known() {
    let server = Server::new(tenant(&record(1, "a.test", |_| {})));
    let ann = Authority::root("Acme").client("ann");
    for versions in VERSIONS {
        let established = server.shake(&Client::new(versions, Some(&ann)), "a.test").ok().unwrap();
        assert_eq!(established.standing.verdict, Verdict::None);
        assert!(established.standing.path.is_none());
    }
}

#[test]
fn rules_of_the_whole_hostname_speak_by_alert() {
    let world = world();
    let only_ann = RuleSpec {
        allow: AllowSpec { common_name: vec!["ann".into()], ..AllowSpec::default() },
        ..RuleSpec::default()
    };
    let server = server_of(&world, ClientAuthMode::Require, vec![only_ann]);
    for versions in VERSIONS {
        let ann = Client::new(versions, Some(&world.acme.client("ann")));
        assert_eq!(server.shake(&ann, "a.test").ok().unwrap().standing.verdict, Verdict::Success);
        let bob = Client::new(versions, Some(&world.acme.client("bob")));
        let failure = server.shake(&bob, "a.test").err().unwrap();
        assert_eq!(failure.told(), (Refusal::RuleDenied, Some(AlertDescription::AccessDenied)));
        assert_eq!(bob.tickets(), 0);
        // A key that is not proved hears that, and not what the rules would have said of its certificate.
        let thief = Certified { key: world.acme.client("eve").key, ..world.acme.client("bob") };
        let failure = server.shake(&Client::new(versions, Some(&thief)), "a.test").err().unwrap();
        assert_eq!(failure.told(), (Refusal::BadSignature, Some(AlertDescription::DecryptError)));
    }
    let no_failed = RuleSpec { verify: Some(VerifySelector::Failed), deny: true, ..RuleSpec::default() };
    let server = server_of(&world, ClientAuthMode::Request, vec![no_failed, RuleSpec::default()]);
    for versions in VERSIONS {
        let stranger = Client::new(versions, Some(&Certified::self_signed("ann")));
        let failure = server.shake(&stranger, "a.test").err().unwrap();
        assert_eq!(failure.told(), (Refusal::RuleDenied, Some(AlertDescription::AccessDenied)));
    }
}

#[test]
fn an_expired_ca_counts_where_the_record_says_so() {
    let world = world();
    let record = record(1, "a.test", |record| {
        record.client_auth = client_auth(ClientAuthMode::Require, &[world.expired_ca.der()]);
        record.client_auth.allow_expired_ca = true;
    });
    let server = Server::new(tenant(&record));
    for versions in VERSIONS {
        let ann = Client::new(versions, Some(&world.expired_ca.client("ann")));
        assert_eq!(server.shake(&ann, "a.test").ok().unwrap().standing.verdict, Verdict::Success);
        // And the session resumes: its CA still counts.
        assert!(server.shake(&ann, "a.test").ok().unwrap().resumed);
    }
}

#[test]
fn ca_names_are_sent_only_where_the_record_says_so() {
    let world = world();
    for send in [false, true] {
        let record = record(1, "a.test", |record| {
            record.client_auth = client_auth(ClientAuthMode::Require, &[world.acme.der()]);
            record.client_auth.send_ca_names = send;
        });
        let tenant = tenant(&record);
        let hints =
            rustls::server::danger::ClientCertVerifier::root_hint_subjects(&**tenant.base.verifier.as_ref().unwrap());
        assert_eq!(hints.len(), usize::from(send));
    }
}

/// Signs by a scheme that no server of today offers, whatever it is offered.
#[derive(Debug)]
struct SignsBySha1;

impl SigningKey for SignsBySha1 {
    fn choose_scheme(&self, _: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for SignsBySha1 {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![0x30, 6, 2, 1, 1, 2, 1, 1])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_SHA1_Legacy
    }
}

#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[test]
fn a_signature_by_a_scheme_that_was_not_offered_is_told_as_what_it_is() {
    let world = world();
    let server = server_of(&world, ClientAuthMode::Require, vec![]);
    for versions in VERSIONS {
        let mut client = Client::new(versions, Some(&world.acme.client("ann")));
        let mut config = rustls::ClientConfig::clone(&client.config);
        config.client_auth_cert_resolver = Arc::new(Always(Arc::new(CertifiedKey::new(
            world.acme.client("ann").chain.clone(),
            Arc::new(SignsBySha1),
        ))));
        client.config = config.into();
        let failure = server.shake(&client, "a.test").err().unwrap();
        // RFC 8446 section 4.4.3, RFC 5246 section 7.4.8.
        assert_eq!(failure.told(), (Refusal::BadSignature, Some(AlertDescription::IllegalParameter)));
        assert_eq!(failure.fatal.detail.as_deref(), Some("the client signed with a scheme it was not offered"));
    }
}
