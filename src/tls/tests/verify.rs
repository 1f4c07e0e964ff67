//! The verifier against rustls' own over generated chains, and where it decides by itself.

use std::sync::Arc;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, NameConstraints,
    SanType, SerialNumber,
};
use ring::digest::{SHA256, digest};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::pki::{Authority, Certified, ca_set, dates, now_s};
use crate::policy::Refusal;
use crate::registry::ClientAuthMode;
use crate::tls::identity::{subject_public_key_info, validity};
use crate::tls::scope::Path;
use crate::tls::verify::{CHAIN_CERTIFICATES_MAX, Verifier, VerifierOptions};

fn verifier_with(cas: &[&[u8]], allow_expired_ca: bool) -> Verifier {
    let provider = aws_lc_rs::default_provider();
    let options = VerifierOptions { allow_expired_ca, ..VerifierOptions::default() };
    Verifier::new(ClientAuthMode::Require, &ca_set(cas), options, &provider).unwrap()
}

fn verify_at(cas: &[&[u8]], certified: &Certified, at_unix_s: i64) -> Result<Path, Refusal> {
    verifier_with(cas, false).verify(certified.leaf(), &certified.chain[1..], at_unix_s)
}

fn verify(cas: &[&[u8]], certified: &Certified) -> Result<Path, Refusal> {
    verify_at(cas, certified, now_s() as i64)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    digest(&SHA256, bytes).as_ref().try_into().unwrap()
}

fn spki_sha256(der: &[u8]) -> [u8; 32] {
    sha256(subject_public_key_info(der).unwrap())
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug)]
enum When {
    Now,
    Past,
    Future,
}

#[derive(Clone, Debug)]
struct IssuerSpec {
    when: When,
    is_ca: bool,
    path_len: Option<u8>,
    /// Permitted DNS names; the leaf is `ann.ok.test`.
    permitted: Option<&'static str>,
    purposes: Vec<ExtendedKeyUsagePurpose>,
    /// Left out of what the client sends.
    missing: bool,
}

#[derive(Clone, Debug)]
struct ChainSpec {
    leaf_when: When,
    leaf_purposes: Vec<ExtendedKeyUsagePurpose>,
    leaf_is_ca: bool,
    intermediates: Vec<IssuerSpec>,
    root_permitted: Option<&'static str>,
    /// Which anchors the set has: the root, one of its subject, another.
    anchors: [bool; 3],
    /// Certificates of no use that are sent as well.
    strangers: usize,
    reversed: bool,
}

fn mostly<T: Clone + std::fmt::Debug + 'static>(usual: T, others: Vec<T>) -> impl Strategy<Value = T> {
    prop_oneof![6 => Just(usual), 1 => prop::sample::select(others)]
}

fn purposes() -> impl Strategy<Value = Vec<ExtendedKeyUsagePurpose>> {
    use ExtendedKeyUsagePurpose as P;
    mostly(vec![P::ClientAuth], vec![vec![], vec![P::ServerAuth], vec![P::ServerAuth, P::ClientAuth], vec![P::Any]])
}

fn permitted() -> impl Strategy<Value = Option<&'static str>> {
    mostly(None, vec![Some("ok.test"), Some("elsewhere.test")])
}

fn when() -> impl Strategy<Value = When> {
    mostly(When::Now, vec![When::Past, When::Future])
}

fn chain_spec() -> impl Strategy<Value = ChainSpec> {
    let intermediate = (
        when(),
        mostly(true, vec![false]),
        mostly(None, vec![Some(0), Some(1)]),
        permitted(),
        mostly(vec![], vec![vec![ExtendedKeyUsagePurpose::ClientAuth], vec![ExtendedKeyUsagePurpose::ServerAuth]]),
        mostly(false, vec![true]),
    )
        .prop_map(|(when, is_ca, path_len, permitted, purposes, missing)| IssuerSpec {
            when,
            is_ca,
            path_len,
            permitted,
            purposes,
            missing,
        });
    (
        (when(), purposes(), mostly(false, vec![true])),
        proptest::collection::vec(intermediate, 0..3),
        permitted(),
        (mostly(true, vec![false]), any::<bool>(), any::<bool>()),
        0..2usize,
        any::<bool>(),
    )
        .prop_map(
            |((leaf_when, leaf_purposes, leaf_is_ca), intermediates, root_permitted, anchors, strangers, reversed)| {
                ChainSpec {
                    leaf_when,
                    leaf_purposes,
                    leaf_is_ca,
                    intermediates,
                    root_permitted,
                    anchors: anchors.into(),
                    strangers,
                    reversed,
                }
            },
        )
}

fn set_dates(params: &mut CertificateParams, when: When) {
    match when {
        When::Now => dates(params, -3, 3),
        When::Past => dates(params, -3, -1),
        When::Future => dates(params, 1, 3),
    }
}

fn constrain(params: &mut CertificateParams, permitted: Option<&str>) {
    params.name_constraints = permitted.map(|name| NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(name.into())],
        excluded_subtrees: vec![],
    });
}

/// The anchors and the chain a client sends.
fn build(spec: &ChainSpec) -> (Vec<Vec<u8>>, Vec<CertificateDer<'static>>) {
    let root = Authority::root_with("Root", |params| constrain(params, spec.root_permitted));
    let same_subject = Authority::root("Root");
    let other = Authority::root("Other");
    let anchors = std::iter::zip(spec.anchors, [&root, &same_subject, &other])
        .filter(|(present, _)| *present)
        .map(|(_, authority)| authority.der().to_vec())
        .collect();
    let mut above = root;
    let mut sent = Vec::new();
    for (depth, issuer) in spec.intermediates.iter().enumerate() {
        above = above.intermediate_with(&format!("Below {depth}"), |params| {
            set_dates(params, issuer.when);
            params.is_ca = match (issuer.is_ca, issuer.path_len) {
                (false, _) => IsCa::ExplicitNoCa,
                (true, None) => IsCa::Ca(BasicConstraints::Unconstrained),
                (true, Some(most)) => IsCa::Ca(BasicConstraints::Constrained(most)),
            };
            params.extended_key_usages.clone_from(&issuer.purposes);
            constrain(params, issuer.permitted);
        });
        if !issuer.missing {
            sent.insert(0, above.der().to_vec().into());
        }
    }
    let leaf = above.client_with("ann", |params| {
        set_dates(params, spec.leaf_when);
        params.extended_key_usages.clone_from(&spec.leaf_purposes);
        params.subject_alt_names = vec![SanType::DnsName("ann.ok.test".try_into().unwrap())];
        if spec.leaf_is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
    });
    sent.extend((0..spec.strangers).map(|_| other.client("stranger").leaf().clone()));
    if spec.reversed {
        sent.reverse();
    }
    sent.insert(0, leaf.leaf().clone());
    (anchors, sent)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn it_accepts_what_rustls_own_verifier_accepts(spec in chain_spec()) {
        let (anchors, chain) = build(&spec);
        let anchors: Vec<&[u8]> = anchors.iter().map(Vec::as_slice).collect();
        let now = now_s();
        let ours = verifier_with(&anchors, false).verify(&chain[0], &chain[1..], now as i64);
        let mut roots = RootCertStore::empty();
        for anchor in &anchors {
            roots.add(anchor.to_vec().into()).unwrap();
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
        let theirs = match WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build() {
            Ok(verifier) => verifier.verify_client_cert(&chain[0], &chain[1..], at).map(|_| ()).map_err(Some),
            // It takes no empty set; nobody would pass it.
            Err(_) => Err(None),
        };
        prop_assert_eq!(ours.is_ok(), theirs.is_ok(), "{:?} and {:?}", ours, theirs);
        if let Ok(path) = ours {
            prop_assert_eq!(path.elements.len(), 1 + spec.intermediates.len());
            prop_assert!(path.not_after_unix_s >= now as i64);
        }
    }
}

#[test]
fn a_path_names_each_issuers_key_each_serial_and_the_first_end() {
    let serial = |bytes: &'static [u8]| {
        move |params: &mut CertificateParams| {
            params.serial_number = Some(SerialNumber::from_slice(bytes));
        }
    };
    for first_to_end in 0..4 {
        let end = |place: usize| if place == first_to_end { 5 } else { 20 };
        let root = Authority::root_with("Root", |params| dates(params, -30, end(3)));
        let upper = root.intermediate_with("Upper", |params| {
            dates(params, -30, end(2));
            serial(&[3, 0, 1])(params);
        });
        let lower = upper.intermediate_with("Lower", |params| {
            dates(params, -30, end(1));
            serial(&[2])(params);
        });
        let ann = lower.client_with("ann", |params| {
            dates(params, -30, end(0));
            serial(&[0x7f; 20])(params);
        });
        let path = verify(&[root.der(), Authority::root("Other").der()], &ann).unwrap();
        let issuers: Vec<_> = path.elements.iter().map(|element| element.issuer_spki_sha256).collect();
        assert_eq!(issuers, [lower.der(), upper.der(), root.der()].map(spki_sha256));
        let serials: Vec<_> = path.elements.iter().map(|element| element.serial.as_slice()).collect();
        assert_eq!(serials, [&[0x7f; 20][..], &[2], &[3, 0, 1]]);
        let certificates = [ann.leaf(), lower.der(), upper.der(), root.der()];
        let ends = certificates.map(|der| validity(der).unwrap().1);
        assert_eq!(path.not_after_unix_s, ends[first_to_end]);
        assert_eq!(ends.iter().min(), Some(&path.not_after_unix_s));
    }
}

#[test]
fn two_cas_of_one_subject_both_count_and_a_third_does_not() {
    let [one, two, three] = [(); 3].map(|()| Authority::root("Acme"));
    let cas = [one.der(), two.der()];
    let paths = [&one, &two].map(|ca| verify(&cas, &ca.client("ann")).unwrap());
    assert_ne!(paths[0].anchor, paths[1].anchor);
    assert_eq!(verify(&cas, &three.client("ann")), Err(Refusal::UnknownCa));
    let below = three.intermediate_with("Below", |_| {});
    assert_eq!(verify(&cas, &below.client("ann")), Err(Refusal::UnknownCa));
}

#[test]
fn an_expired_ca_is_told_apart_from_an_unknown_one_and_from_an_expired_client() {
    let old = Authority::root_with("Acme", |params| dates(params, -30, -1));
    let coming = Authority::root_with("Acme", |params| dates(params, 1, 30));
    let current = Authority::root("Acme");
    let foreign = Authority::root("Acme");
    let all = [old.der(), coming.der(), current.der()];
    assert!(verify(&all, &current.client("ann")).is_ok());
    assert_eq!(verify(&all, &old.client("ann")), Err(Refusal::CaExpired));
    assert_eq!(verify(&[old.der()], &old.client("ann")), Err(Refusal::CaExpired));
    assert_eq!(verify(&all, &coming.client("ann")), Err(Refusal::CaExpired));
    assert_eq!(verify(&all, &foreign.client("ann")), Err(Refusal::UnknownCa));
    assert_eq!(verify(&[old.der()], &foreign.client("ann")), Err(Refusal::UnknownCa));
    let ended = |authority: &Authority| authority.client_with("ann", |params| dates(params, -30, -2));
    assert_eq!(verify(&all, &ended(&old)), Err(Refusal::Expired));
    assert_eq!(verify(&all, &ended(&current)), Err(Refusal::Expired));
    assert_eq!(verify(&all, &ended(&foreign)), Err(Refusal::Expired));
    let below = old.intermediate_with("Below", |_| {});
    assert_eq!(verify(&all, &below.client("ann")), Err(Refusal::CaExpired));
    let allowing = verifier_with(&all, true);
    let now = now_s() as i64;
    let ann = old.client("ann");
    let path = allowing.verify(ann.leaf(), &[], now).unwrap();
    assert_eq!(path.not_after_unix_s, validity(ann.leaf()).unwrap().1, "the CA's end does not count");
    assert!(allowing.still_stands(&path, now));
    assert!(!verifier_with(&all, false).still_stands(&path, now));
}

#[test]
fn dates_are_inclusive_to_the_second() {
    let root = Authority::root("Acme");
    let ann = root.client_with("ann", |params| dates(params, -2, 2));
    let (from, to) = validity(ann.leaf()).unwrap();
    assert_eq!(verify_at(&[root.der()], &ann, from - 1), Err(Refusal::NotYetValid));
    assert!(verify_at(&[root.der()], &ann, from).is_ok());
    assert!(verify_at(&[root.der()], &ann, to).is_ok());
    assert_eq!(verify_at(&[root.der()], &ann, to + 1), Err(Refusal::Expired));
    // The same for the CA.
    let root = Authority::root_with("Acme", |params| dates(params, -2, 2));
    let ann = root.client("ann");
    let (from, to) = validity(root.der()).unwrap();
    for (at, stands) in [(from - 1, false), (from, true), (to, true), (to + 1, false)] {
        assert_eq!(verify_at(&[root.der()], &ann, at).is_ok(), stands);
    }
}

#[test]
fn a_ca_renewed_under_its_key_counts_by_the_dates_of_the_renewal() {
    let renewed = Authority::root_with("Acme", |params| dates(params, -5, 60));
    let end = validity(renewed.der()).unwrap().1;
    let ann = renewed.client_with("ann", |params| dates(params, -5, 90));
    let now = now_s() as i64;
    // Sets are sorted by digest: several, so that the older stands before and behind.
    for old_end in [-4, -3, -2, -1, 1, 2, 3, 4, 5, 6] {
        let old = Authority::renewed_with("Acme", renewed.key(), |params| dates(params, -30, old_end));
        for allow_expired_ca in [false, true] {
            let verifier = verifier_with(&[old.der(), renewed.der()], allow_expired_ca);
            let path = verifier.verify(ann.leaf(), &[], now).unwrap();
            if !allow_expired_ca {
                assert_eq!(path.not_after_unix_s, end);
            }
            assert!(verifier.still_stands(&path, now));
            // The older one alone carries what was verified below both, as long as it stands itself.
            assert_eq!(verifier_with(&[old.der()], false).still_stands(&path, now), old_end > 0);
        }
    }
}

#[test]
fn a_path_stands_while_its_anchor_does_and_no_certificate_has_ended() {
    let root = Authority::root("Acme");
    let same_subject = Authority::root("Acme");
    let other = Authority::root("Other");
    let now = now_s() as i64;
    let path = verify(&[root.der(), other.der()], &root.client("ann")).unwrap();
    let stands = |cas: &[&[u8]], at| verifier_with(cas, false).still_stands(&path, at);
    assert!(stands(&[root.der()], now));
    assert!(stands(&[same_subject.der(), root.der()], now));
    assert!(!stands(&[same_subject.der(), other.der()], now));
    assert!(stands(&[root.der()], path.not_after_unix_s));
    assert!(!stands(&[root.der()], path.not_after_unix_s + 1));
    // The same key and subject, now held to other names: what was verified before may not be any more.
    let narrowed = Authority::renewed_with("Acme", root.key(), |params| constrain(params, Some("ok.test")));
    assert!(!stands(&[narrowed.der()], now));
    // And a renewal proper carries it on.
    let renewed = Authority::renewed_with("Acme", root.key(), |params| dates(params, -1, 60));
    assert!(stands(&[renewed.der()], now));
}

#[test]
fn limits_are_told_before_anything_is_verified() {
    let root = Authority::root("Acme");
    let ann = root.client("ann");
    let with = |count: usize| Certified { chain: vec![ann.leaf().clone(); count], ..ann.clone() };
    assert!(verify(&[root.der()], &with(CHAIN_CERTIFICATES_MAX)).is_ok());
    assert_eq!(verify(&[root.der()], &with(CHAIN_CERTIFICATES_MAX + 1)), Err(Refusal::ChainTooLong));
    let heavy = Certified { chain: vec![ann.leaf().clone(), vec![0; 16 * 1024].into()], ..ann.clone() };
    assert_eq!(verify(&[root.der()], &heavy), Err(Refusal::ChainTooLong));
}

#[test]
fn names_and_path_lengths_are_kept_to() {
    let root = Authority::root_with("Acme", |params| constrain(params, Some("ok.test")));
    let named = |name: &str| {
        root.client_with("ann", |params| {
            params.subject_alt_names = vec![SanType::DnsName(name.try_into().unwrap())];
        })
    };
    assert!(verify(&[root.der()], &named("ann.ok.test")).is_ok());
    assert_eq!(verify(&[root.der()], &named("ann.elsewhere.test")), Err(Refusal::WrongUsage));
    let root = Authority::root("Acme");
    let last = root.intermediate_with("Last", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    assert!(verify(&[root.der()], &last.client("ann")).is_ok());
    let beyond =
        last.intermediate_with("Beyond", |params| params.distinguished_name.push(DnType::OrganizationName, "X"));
    assert_eq!(verify(&[root.der()], &beyond.client("ann")), Err(Refusal::WrongUsage));
}

/// A bound on the depth counts what stands between; a shorter way is taken where there is one.
#[test]
fn a_path_is_no_deeper_than_allowed() {
    let root = Authority::root("Acme");
    let first = root.intermediate_with("First", |_| ());
    let second = first.intermediate_with("Second", |_| ());
    let now = now_s() as i64;
    let verifier = |depth, cas: &[&[u8]]| {
        let options = VerifierOptions { verify_depth: depth, ..VerifierOptions::default() };
        Verifier::new(ClientAuthMode::Require, &ca_set(cas), options, &aws_lc_rs::default_provider()).unwrap()
    };
    let judged = |verifier: &Verifier, client: &Certified| verifier.verify(&client.chain[0], &client.chain[1..], now);
    for (client, between) in [(root.client("a"), 0_u8), (first.client("b"), 1), (second.client("c"), 2)] {
        let path = judged(&verifier(None, &[root.der()]), &client).unwrap();
        assert_eq!(path.elements.len(), usize::from(between) + 1);
        for depth in 0..=4_u8 {
            let bounded = verifier(Some(depth), &[root.der()]);
            let verdict = judged(&bounded, &client);
            let expected = if between <= depth { None } else { Some(Refusal::ChainTooLong) };
            assert_eq!(verdict.err(), expected, "{between} between, {depth} allowed");
            // What was found under another bound is judged alike: tickets, remembered chains and open connections.
            assert_eq!(bounded.still_stands(&path, now), between <= depth);
        }
        // The intermediates are CAs of the hostname themselves: the way ends at the nearest.
        assert!(judged(&verifier(Some(0), &[root.der(), first.der(), second.der()]), &client).is_ok());
    }
    // A stranger is one however deep it comes.
    let other = Authority::root("Other").intermediate_with("X", |_| ()).client("d");
    assert_eq!(judged(&verifier(Some(0), &[root.der()]), &other).err(), Some(Refusal::UnknownCa));
}

#[test]
fn a_ca_that_is_none_makes_no_verifier() {
    let root = Authority::root("Acme");
    let mut set = Arc::into_inner(ca_set(&[root.der()])).unwrap();
    set.cas[0].der.truncate(100);
    let provider = aws_lc_rs::default_provider();
    assert!(Verifier::new(ClientAuthMode::Require, &set, VerifierOptions::default(), &provider).is_err());
}
