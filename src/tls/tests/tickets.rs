//! I3 by attack: tickets where they do not belong, at times when they no longer count, and of clients that changed.

use std::rc::Rc;
use std::sync::Arc;

use rcgen::CertificateParams;
use rustls::{AlertDescription, SupportedProtocolVersion};
use time::{Duration, OffsetDateTime};

use super::client::{Client, TLS12, TLS13, VERSIONS};
use super::pair::{Failure, Pair, Server};
use super::pki::{Authority, TICKET_LIFETIME_S, client_auth, now_s, options, record, rules, tenant, tenant_by};
use crate::policy::{AllowSpec, Refusal, RuleSpec, Verdict, VerifySelector};
use crate::registry::{ClientAuthMode, HostnameRecord};
use crate::telemetry::counters::Ticket;
use crate::tls::scope::{Standing, Trust};
use crate::tls::ticket::Keyring;
use crate::tls::{Established, Tenant};

const LIFETIME_S: u64 = TICKET_LIFETIME_S as u64;

/// A hostname that asks for Acme's certificates.
struct World {
    acme: Authority,
    mode: ClientAuthMode,
}

impl World {
    fn new(mode: ClientAuthMode) -> Self {
        Self { acme: Authority::root("Acme"), mode }
    }

    fn record_with(&self, change: impl FnOnce(&mut HostnameRecord)) -> Arc<HostnameRecord> {
        record(1, "a.test", |record| {
            record.client_auth = client_auth(self.mode, &[self.acme.der()]);
            change(record);
        })
    }

    fn tenant_with(&self, change: impl FnOnce(&mut HostnameRecord)) -> Rc<Tenant> {
        tenant(&self.record_with(change))
    }

    fn server(&self) -> Server {
        Server::new(self.tenant_with(|_| {}))
    }

    fn ann(&self, versions: &[&'static SupportedProtocolVersion]) -> Client {
        Client::new(versions, Some(&self.acme.client("ann")))
    }
}

/// A handshake, and what became of the tickets in it.
fn attempt(server: &Server, client: &Client) -> (Result<Established, Failure>, Vec<Ticket>) {
    let mut pair = Pair::new(server, client, "a.test");
    let result = pair.shake();
    let tickets = match (&result, pair.server.trust()) {
        (Ok(established), _) => established.ticket_results.clone(),
        (Err(_), trust) => trust.unwrap().ticket_results.clone(),
    };
    (result, tickets)
}

/// Logs in and takes a ticket.
fn log_in(server: &Server, client: &Client) -> Established {
    let (result, tickets) = attempt(server, client);
    let established = result.unwrap();
    assert!(!established.resumed);
    assert_eq!(tickets, [Ticket::Minted]);
    assert_eq!(client.tickets(), 1);
    established
}

/// The ticket is declined for this reason, and without it and without a certificate the client is nobody.
fn assert_worthless(what: &str, server: &Server, client: &Client, declined: Ticket) {
    client.withhold_certificate();
    let (result, tickets) = attempt(server, client);
    assert_eq!(tickets[0], declined, "{what}");
    match (server.tenant.record.client_auth.mode, result) {
        (ClientAuthMode::Require, Err(failure)) => {
            let expected = (Refusal::NoCertificate, Some(AlertDescription::CertificateRequired));
            assert_eq!(failure.told(), expected, "{what}");
        }
        (ClientAuthMode::Request, Ok(established)) => {
            assert!(!established.resumed, "{what}");
            assert_nobody(&established, what);
        }
        (_, result) => panic!("{what}: {:?}", result.map(|established| established.standing)),
    }
}

fn assert_nobody(established: &Established, what: &str) {
    let Standing { verdict, path, .. } = &established.standing;
    assert_eq!((*verdict, path), (Verdict::None, &None), "{what}");
}

#[test]
fn a_ticket_brings_back_what_was_found_and_nothing_else() {
    for mode in [ClientAuthMode::Require, ClientAuthMode::Request] {
        for versions in VERSIONS {
            let world = World::new(mode);
            let (mut server, ann) = (world.server(), world.ann(versions));
            let first = log_in(&server, &ann);
            // Not asked for any more: the ticket alone speaks.
            ann.withhold_certificate();
            for round in 1..4 {
                server.now_unix_s = first.standing.authenticated_unix_s + 100 * round;
                let (result, tickets) = attempt(&server, &ann);
                let again = result.unwrap();
                assert!(again.resumed);
                // TLS 1.2 seals again on resumption, and TLS 1.3 at the end of every handshake: the time stays.
                assert_eq!(again.standing, first.standing);
                assert_eq!(tickets, [Ticket::Minted]);
            }
        }
    }
}

#[test]
fn a_client_without_a_certificate_stays_without_one() {
    for versions in VERSIONS {
        let server = World::new(ClientAuthMode::Request).server();
        let nobody = Client::new(versions, None);
        log_in(&server, &nobody);
        let again = server.shake(&nobody, "a.test").unwrap();
        assert!(again.resumed);
        assert_nobody(&again, "resumed");
    }
}

#[test]
fn a_ticket_is_worth_nothing_under_another_record_or_other_trust() {
    let same_subject = Authority::root("Acme");
    let globex = Authority::root("Globex");
    for mode in [ClientAuthMode::Require, ClientAuthMode::Request] {
        let other_mode = match mode {
            ClientAuthMode::Require => ClientAuthMode::Request,
            _ => ClientAuthMode::Require,
        };
        for versions in VERSIONS {
            let world = World::new(mode);
            let acme = world.acme.der();
            type Change<'a> = Box<dyn Fn(&mut HostnameRecord) + 'a>;
            let set = |mode, cas: &[&[u8]]| -> Change<'_> {
                let client_auth = client_auth(mode, cas);
                Box::new(move |record| record.client_auth = client_auth.clone())
            };
            let changes: [(&str, Ticket, Change<'_>); 10] = [
                ("another record", Ticket::DeclinedRecord, Box::new(|record| record.id.0 = [2; 16])),
                ("one bit of its id", Ticket::DeclinedRecord, Box::new(|record| record.id.0[15] ^= 1)),
                ("a CA of the same subject", Ticket::DeclinedTrust, set(mode, &[same_subject.der()])),
                ("another CA", Ticket::DeclinedTrust, set(mode, &[globex.der()])),
                ("a CA more", Ticket::DeclinedTrust, set(mode, &[acme, globex.der()])),
                ("a CA more of the same subject", Ticket::DeclinedTrust, set(mode, &[acme, same_subject.der()])),
                ("another mode", Ticket::DeclinedTrust, set(other_mode, &[acme])),
                (
                    "expired CAs allowed",
                    Ticket::DeclinedTrust,
                    Box::new(|record| record.client_auth.allow_expired_ca = true),
                ),
                ("another depth", Ticket::DeclinedTrust, Box::new(|record| record.client_auth.verify_depth = Some(1))),
                (
                    "another record of another CA",
                    Ticket::DeclinedRecord,
                    Box::new(|record| {
                        record.id.0 = [2; 16];
                        record.client_auth = client_auth(mode, &[globex.der()]);
                    }),
                ),
            ];
            for (what, declined, change) in changes {
                let (server, ann) = (world.server(), world.ann(versions));
                log_in(&server, &ann);
                assert_worthless(what, &server.beside(world.tenant_with(|record| change(record))), &ann, declined);
            }
            // And back: a ticket taken while there was a CA more, or while expired CAs counted.
            for change in [set(mode, &[acme, globex.der()]), set(mode, &[globex.der()])] {
                let wider = Server::new(world.tenant_with(|record| change(record)));
                let bob = Client::new(versions, Some(&globex.client("bob")));
                log_in(&wider, &bob);
                let narrowed = wider.beside(world.tenant_with(|_| {}));
                assert_worthless("a CA fewer", &narrowed, &bob, Ticket::DeclinedTrust);
            }
        }
    }
}

#[test]
fn a_ticket_taken_where_nobody_is_asked_is_worth_nothing_where_somebody_is() {
    for versions in VERSIONS {
        for mode in [ClientAuthMode::Require, ClientAuthMode::Request] {
            let off = Server::new(tenant(&record(1, "a.test", |_| {})));
            let nobody = Client::new(versions, None);
            log_in(&off, &nobody);
            let world = World::new(mode);
            assert_worthless("after off", &off.beside(world.tenant_with(|_| {})), &nobody, Ticket::DeclinedTrust);
        }
    }
}

#[test]
fn a_ticket_outlives_what_does_not_concern_trust() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let (server, ann) = (world.server(), world.ann(versions));
        log_in(&server, &ann);
        let only_ann = RuleSpec {
            allow: AllowSpec { common_name: vec!["ann".into()], ..AllowSpec::default() },
            ..RuleSpec::default()
        };
        let changed = world.tenant_with(|record| {
            record.certificates.insert(0, super::pki::servers().rsa.for_record());
            record.client_auth.send_ca_names = true;
            // The default, written down.
            record.client_auth.verify_depth = Some(4);
            record.rules = rules(vec![only_ann]);
            record.digest = [9; 32];
        });
        let again = server.beside(changed).shake(&ann, "a.test").unwrap();
        // TLS 1.2 binds a session to its suite, and the suite to the kind of the server's key.
        assert_eq!(again.resumed, versions == TLS13);
        assert_eq!(again.standing.verdict, Verdict::Success);
    }
}

#[test]
fn what_an_opened_ticket_said_is_forgotten_when_rustls_does_not_resume_with_it() {
    let suites: [(_, &[&str]); 2] = [
        (TLS13, &["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]),
        (TLS12, &["TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"]),
    ];
    for (versions, suites) in suites {
        for suite in suites {
            let world = World::new(ClientAuthMode::Request);
            let (server, ann) = (world.server(), world.ann(versions));
            log_in(&server, &ann);
            // Suites are no part of trust, so that the ticket opens; but rustls does not resume under another.
            let other = server.beside(world.tenant_with(|record| record.cipher_suites = vec![(*suite).into()]));
            ann.withhold_certificate();
            let (result, tickets) = attempt(&other, &ann);
            let established = result.unwrap();
            assert!(!established.resumed);
            assert_nobody(&established, suite);
            assert_eq!(tickets, [Ticket::Minted], "it was not declined by us");
            // Nor does the new ticket say more than was found now.
            let again = other.shake(&ann, "a.test").unwrap();
            assert!(again.resumed);
            assert_nobody(&again, suite);

            let world = World::new(ClientAuthMode::Require);
            let (server, ann) = (world.server(), world.ann(versions));
            log_in(&server, &ann);
            let other = server.beside(world.tenant_with(|record| record.cipher_suites = vec![(*suite).into()]));
            ann.withhold_certificate();
            let failure = other.shake(&ann, "a.test").err().unwrap();
            assert_eq!(failure.told(), (Refusal::NoCertificate, Some(AlertDescription::CertificateRequired)));
        }
    }
}

#[test]
fn another_name_of_the_same_wildcard_does_not_resume() {
    for versions in VERSIONS {
        let acme = Authority::root("Acme");
        let wildcard = record(1, "*.w.test", |record| {
            record.client_auth = client_auth(ClientAuthMode::Request, &[acme.der()]);
        });
        let server = Server::new(tenant(&wildcard));
        let ann = Client::new(versions, Some(&acme.client("ann")));
        server.shake(&ann, "x.w.test").unwrap();
        ann.withhold_certificate();
        let established = server.shake(&ann, "y.w.test").unwrap();
        assert!(!established.resumed);
        assert_nobody(&established, "y.w.test");
    }
}

#[test]
fn a_hello_retry_request_between_changes_nothing() {
    let world = World::new(ClientAuthMode::Request);
    // A group the client has no share of in its first hello.
    let mut retrying = options();
    retrying.groups = vec!["secp384r1".into()];
    let retried = |record: &Arc<HostnameRecord>| tenant_by(retrying.clone(), record);
    let server = Server::new(retried(&world.record_with(|_| {})));
    let ann = world.ann(TLS13);
    let mut pair = Pair::new(&server, &ann, "a.test");
    let first = pair.shake().unwrap();
    assert_eq!(pair.client.handshake_kind(), Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
    assert_eq!(first.standing.verdict, Verdict::Success);
    ann.withhold_certificate();
    let again = server.shake(&ann, "a.test").unwrap();
    assert!(again.resumed);
    assert_eq!(again.standing, first.standing);
    // Declined, then rustls not willing: both after the retry.
    let other = server.beside(retried(&world.record_with(|record| record.id.0 = [2; 16])));
    let established = other.shake(&ann, "a.test").unwrap();
    assert!(!established.resumed);
    assert_nobody(&established, "another record");

    let ann = world.ann(TLS13);
    log_in(&server, &ann);
    ann.withhold_certificate();
    let suite = vec!["TLS_CHACHA20_POLY1305_SHA256".into()];
    let other = server.beside(retried(&world.record_with(|record| record.cipher_suites = suite)));
    let established = other.shake(&ann, "a.test").unwrap();
    assert!(!established.resumed);
    assert_nobody(&established, "another suite");
}

#[test]
fn a_ticket_ends_with_its_lifetime_however_often_it_is_renewed() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let (mut server, ann) = (world.server(), world.ann(versions));
        let authenticated = log_in(&server, &ann).standing.authenticated_unix_s;
        server.now_unix_s = authenticated + LIFETIME_S - 1;
        let again = server.shake(&ann, "a.test").unwrap();
        assert!(again.resumed);
        // The ticket that was minted a second before counts no longer either.
        server.now_unix_s = authenticated + LIFETIME_S;
        assert_worthless("over its lifetime", &server, &ann, Ticket::DeclinedAge);
    }
}

#[test]
fn a_ticket_from_the_future_is_refused() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let (mut server, ann) = (world.server(), world.ann(versions));
        let authenticated = log_in(&server, &ann).standing.authenticated_unix_s;
        server.now_unix_s = authenticated - 1;
        assert_worthless("from the future", &server, &ann, Ticket::DeclinedAge);
    }
}

#[test]
fn a_ticket_ends_with_the_first_certificate_of_its_path() {
    const LEFT_S: u64 = 600;
    let soon = |params: &mut CertificateParams| {
        params.not_after = OffsetDateTime::from_unix_timestamp(now_s() as i64).unwrap() + Duration::seconds(600);
    };
    let acme = Authority::root("Acme");
    let ending_ca = Authority::root_with("Ending", soon);
    let below = acme.intermediate_with("Below", soon);
    let cases = [
        ("the leaf", acme.client_with("ann", soon)),
        ("the CA", ending_ca.client("ann")),
        ("the intermediate", below.client("ann")),
    ];
    for (what, certified) in &cases {
        for versions in VERSIONS {
            let record = record(1, "a.test", |record| {
                record.client_auth = client_auth(ClientAuthMode::Require, &[acme.der(), ending_ca.der()]);
            });
            let mut server = Server::new(tenant(&record));
            let ann = Client::new(versions, Some(certified));
            let end = log_in(&server, &ann).standing.path.unwrap().not_after_unix_s as u64;
            assert!(end.abs_diff(now_s() + LEFT_S) < 60, "{what}");
            server.now_unix_s = end;
            assert!(server.shake(&ann, "a.test").unwrap().resumed, "{what}: notAfter itself is valid");
            server.now_unix_s = end + 1;
            assert_worthless(what, &server, &ann, Ticket::DeclinedExpired);
        }
    }
}

#[test]
fn a_ticket_opens_only_for_whom_the_rules_let_in_now() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let (server, ann) = (world.server(), world.ann(versions));
        log_in(&server, &ann);
        let only_bob = RuleSpec {
            allow: AllowSpec { common_name: vec!["bob".into()], ..AllowSpec::default() },
            ..RuleSpec::default()
        };
        let tightened = server.beside(world.tenant_with(|record| record.rules = rules(vec![only_bob])));
        let (result, tickets) = attempt(&tightened, &ann);
        assert_eq!(tickets, [Ticket::DeclinedRule]);
        let expected = (Refusal::RuleDenied, Some(AlertDescription::AccessDenied));
        assert_eq!(result.err().unwrap().told(), expected, "the full handshake says why");

        // By where the client is now, not where it was.
        let from_home = RuleSpec { source: vec!["192.0.2.0/24".parse().unwrap()], ..RuleSpec::default() };
        let mut home = Server::new(world.tenant_with(|record| record.rules = rules(vec![from_home])));
        home.source = Some([192, 0, 2, 7].into());
        let ann = world.ann(versions);
        log_in(&home, &ann);
        assert!(home.shake(&ann, "a.test").unwrap().resumed);
        home.source = Some([198, 51, 100, 7].into());
        assert_eq!(attempt(&home, &ann).1, [Ticket::DeclinedRule]);
        home.source = None;
        assert_eq!(attempt(&home, &ann).0.err().unwrap().fatal.reason, Refusal::RuleDenied, "undecidable denies");
    }
}

#[test]
fn rules_about_the_verdict_see_that_of_the_ticket() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Request);
        let no_nobody = RuleSpec { verify: Some(VerifySelector::None), deny: true, ..RuleSpec::default() };
        let specs = vec![no_nobody, RuleSpec::default()];
        let server = Server::new(world.tenant_with(|record| record.rules = rules(specs)));
        let ann = world.ann(versions);
        log_in(&server, &ann);
        ann.withhold_certificate();
        assert!(server.shake(&ann, "a.test").unwrap().resumed);
        let nobody = Client::new(versions, None);
        let open = server.beside(world.tenant_with(|_| {}));
        log_in(&open, &nobody);
        assert_eq!(attempt(&server, &nobody).1[0], Ticket::DeclinedRule);
    }
}

#[test]
fn tickets_outlive_the_rotation_of_keys_and_not_their_loss() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let (mut server, ann) = (world.server(), world.ann(versions));
        log_in(&server, &ann);
        let old = Arc::clone(&server.keyring);
        for _ in 0..2 {
            server.keyring = Arc::new(server.keyring.rotate(server.now_unix_s + 1, LIFETIME_S).unwrap());
        }
        assert!(server.shake(&ann, "a.test").unwrap().resumed);
        // The new ticket is sealed under the new key: a worker that has not heard of it makes a full handshake.
        server.keyring = old;
        assert_eq!(attempt(&server, &ann).1[0], Ticket::DeclinedUnknown);
        server.keyring = Arc::new(Keyring::generate(server.now_unix_s).unwrap());
        assert_worthless("of a lost key", &server, &ann, Ticket::DeclinedUnknown);
    }
}

#[test]
fn without_tickets_none_are_given_and_none_are_taken() {
    for versions in VERSIONS {
        let world = World::new(ClientAuthMode::Require);
        let mut without = options();
        without.tickets = false;
        let server = Server::new(tenant_by(without, &world.record_with(|_| {})));
        let ann = world.ann(versions);
        let established = server.shake(&ann, "a.test").unwrap();
        assert_eq!((established.ticket_results.len(), ann.tickets()), (0, 0));
        assert!(!server.shake(&ann, "a.test").unwrap().resumed, "no session id either");
        let minting = world.server();
        ann.forget_tickets();
        log_in(&minting, &ann);
        let refusing = minting.beside(Rc::clone(&server.tenant));
        assert!(!refusing.shake(&ann, "a.test").unwrap().resumed);
    }
}

#[test]
fn nothing_is_sealed_opened_or_verified_outside_a_connection() {
    let world = World::new(ClientAuthMode::Require);
    let server = world.server();
    let ticketer = &server.tenant.config.ticketer;
    assert!(ticketer.enabled());
    assert_eq!(ticketer.encrypt(b"state"), None);
    assert_eq!(ticketer.decrypt(b"ticket"), None);
    let verifier = server.tenant.base.verifier.as_ref().unwrap();
    let ann = world.acme.client("ann");
    let now = rustls_pki_types::UnixTime::now();
    let verified = rustls::server::danger::ClientCertVerifier::verify_client_cert(&**verifier, ann.leaf(), &[], now);
    assert!(verified.is_err());
}

#[test]
fn a_standing_comes_from_this_handshake_or_from_the_ticket_it_resumed() {
    let server = World::new(ClientAuthMode::Request).server();
    let standing = |verdict, at| Standing { verdict, path: None, authenticated_unix_s: at };
    let sealed = crate::tls::ticket::Sealed {
        record_id: [1; 16],
        trust_digest: [0; 32],
        standing: standing(Verdict::Success, 7),
        leaf: vec![],
        plaintext: vec![],
    };
    let of = |verified: bool, opened: bool, resumed: bool| {
        let mut trust: Box<Trust> = server.trust();
        trust.verified = verified.then(|| standing(Verdict::Failed(Refusal::UnknownCa), 8));
        trust.candidate = opened.then(|| sealed.clone());
        trust.standing(resumed).verdict
    };
    let failed = Verdict::Failed(Refusal::UnknownCa);
    assert_eq!(of(false, false, false), Verdict::None);
    assert_eq!(of(false, false, true), Verdict::None);
    assert_eq!(of(false, true, false), Verdict::None);
    assert_eq!(of(false, true, true), Verdict::Success);
    assert_eq!(of(true, false, false), failed);
    assert_eq!(of(true, true, false), failed);
    // What cannot be: verified and resumed at once. Nobody, then.
    assert_eq!(of(true, false, true), Verdict::None);
    assert_eq!(of(true, true, true), Verdict::None);
}
