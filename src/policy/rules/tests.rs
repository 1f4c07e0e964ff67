//! Rules against a model that knows only the definition, and case by case.

use std::net::IpAddr;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::{Identity, Refusal, Verdict};
use super::{AllowSpec, Decision, Facts, RULES_MAX, RuleSpec, Rules, VerifySelector};

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn rules(specs: Vec<RuleSpec>) -> Rules {
    Rules::compile(specs).unwrap()
}

fn allow(spec: AllowSpec) -> RuleSpec {
    RuleSpec { allow: spec, ..RuleSpec::default() }
}

fn common_name(pattern: &str) -> AllowSpec {
    AllowSpec { common_name: strings(&[pattern]), ..AllowSpec::default() }
}

fn ann() -> Identity {
    Identity {
        common_names: strings(&["ops-ann"]),
        organizations: strings(&["Acme"]),
        issuer_common_names: strings(&["Acme CA"]),
        serial: "0a1b".into(),
        fingerprint_sha256: [0xab; 32],
        san_uri: strings(&["spiffe://acme/ops/ann"]),
        ..Identity::default()
    }
}

fn facts<'a>(verdict: Verdict, identity: Option<&'a Identity>) -> Facts<'a> {
    Facts { verdict, identity, source: None, method: None, path: None }
}

#[test]
fn without_rules_every_accepted_client_passes() {
    let none = Rules::default();
    for verdict in [Verdict::None, Verdict::Success, Verdict::Failed(Refusal::UnknownCa)] {
        assert_eq!(none.judge(&facts(verdict, None)), Ok(()));
    }
    assert!(none.is_empty() && !none.needs_identity() && !none.needs_source() && !none.needs_request());
}

#[test]
fn selectors_of_allow_are_anded_and_lists_ored() {
    let ann = ann();
    let both = |common_name: &[&str], uri: &[&str]| {
        rules(vec![allow(AllowSpec {
            common_name: strings(common_name),
            san_uri: strings(uri),
            ..AllowSpec::default()
        })])
        .decide(&facts(Verdict::Success, Some(&ann)))
    };
    assert_eq!(both(&["dev-*", "ops-*"], &["spiffe://acme/ops/*"]), Decision::Allowed { rule_index: 0 });
    let no = |selector| Decision::NotAllowed { rule_index: 0, selector };
    assert_eq!(both(&["dev-*"], &["spiffe://acme/ops/*"]), no("common_name"));
    assert_eq!(both(&["ops-*"], &["spiffe://acme/dev/*"]), no("san_uri"));
}

#[test]
fn a_denial_names_its_rule_and_what_decided() {
    let ann = ann();
    let rules = rules(vec![
        RuleSpec { verify: Some(VerifySelector::None), deny: true, ..RuleSpec::default() },
        RuleSpec {
            verify: Some(VerifySelector::Failed),
            source: vec!["10.0.0.0/8".parse().unwrap()],
            ..RuleSpec::default()
        },
        RuleSpec { verify: Some(VerifySelector::Success), ..allow(common_name("dev-*")) },
    ]);
    let explain = |verdict, source: Option<&str>| {
        let source = source.map(|source| source.parse().unwrap());
        rules.explain(&Facts { source, ..facts(verdict, Some(&ann)) })
    };
    let failed = Verdict::Failed(Refusal::UnknownCa);
    for (verdict, source, expected) in [
        (Verdict::None, None, Some("rule 1 (verify = \"NONE\") says deny = true")),
        (Verdict::Success, None, Some("rule 3 (verify = \"SUCCESS\") has allow.common_name, which does not hold")),
        (failed, None, Some("rule 2 looks at something that is not known of this client")),
        (failed, Some("10.1.1.1"), None),
        (failed, Some("11.1.1.1"), Some("no rule is for this client (verify is FAILED:unknown_ca)")),
    ] {
        assert_eq!(explain(verdict, source).as_deref(), expected, "{verdict}");
    }
    let everyone = super::Rules::compile(vec![allow(common_name("*"))]).unwrap();
    assert_eq!(
        everyone.explain(&facts(Verdict::None, None)).as_deref(),
        Some(
            "rule 1 has allow.common_name, which does not hold: only a verified certificate fulfils it, and verify is NONE"
        )
    );
}

#[test]
fn an_unverified_certificate_says_nothing() {
    let ann = ann();
    let ops = rules(vec![allow(common_name("*"))]);
    assert_eq!(ops.judge(&facts(Verdict::Success, Some(&ann))), Ok(()));
    for verdict in [Verdict::None, Verdict::Failed(Refusal::Expired)] {
        assert_eq!(ops.judge(&facts(verdict, Some(&ann))), Err(Refusal::RuleDenied));
    }
    assert_eq!(ops.judge(&facts(Verdict::Success, None)), Err(Refusal::RuleDenied));
}

#[test]
fn the_first_chosen_rule_decides_alone() {
    let ann = ann();
    let ordered = rules(vec![
        RuleSpec { path: Some("/admin/*".into()), allow: common_name("root"), ..RuleSpec::default() },
        RuleSpec { path: Some("/*".into()), ..RuleSpec::default() },
    ]);
    let at = |path| Facts { path: Some(path), ..facts(Verdict::Success, Some(&ann)) };
    assert_eq!(
        ordered.decide(&at("/admin/x")),
        Decision::NotAllowed { rule_index: 0, selector: "common_name" },
        "a later rule must not rescue"
    );
    assert_eq!(ordered.decide(&at("/shop")), Decision::Allowed { rule_index: 1 });
    assert_eq!(ordered.decide(&at("*")), Decision::NoneChosen);
}

#[test]
fn an_unknown_source_never_slips_past_a_rule_on_sources() {
    let blocked = rules(vec![
        RuleSpec { source: vec!["192.0.2.0/24".parse().unwrap()], deny: true, ..RuleSpec::default() },
        RuleSpec::default(),
    ]);
    let from = |source: Option<&str>| Facts {
        source: source.map(|source| source.parse().unwrap()),
        ..facts(Verdict::None, None)
    };
    assert_eq!(blocked.decide(&from(Some("192.0.2.7"))), Decision::Denied { rule_index: 0 });
    assert_eq!(blocked.decide(&from(Some("::ffff:192.0.2.7"))), Decision::Denied { rule_index: 0 });
    assert_eq!(blocked.decide(&from(Some("198.51.100.1"))), Decision::Allowed { rule_index: 1 });
    assert_eq!(blocked.decide(&from(None)), Decision::Undecidable { rule_index: 0 });
    let mapped = rules(vec![RuleSpec { source: vec!["::ffff:192.0.2.0/120".parse().unwrap()], ..RuleSpec::default() }]);
    assert_eq!(mapped.decide(&from(Some("192.0.2.7"))), Decision::Allowed { rule_index: 0 });
    assert_eq!(mapped.decide(&from(Some("192.0.3.7"))), Decision::NoneChosen);
}

#[test]
fn a_method_is_the_same_in_any_case() {
    let posts =
        rules(vec![RuleSpec { method: strings(&["POST"]), deny: true, ..RuleSpec::default() }, RuleSpec::default()]);
    let with = |method| posts.judge(&Facts { method, ..facts(Verdict::None, None) });
    assert_eq!(with(Some("post")), Err(Refusal::RuleDenied));
    assert_eq!(with(Some("GET")), Ok(()));
    assert_eq!(with(None), Err(Refusal::RuleDenied));
}

#[test]
fn numbers_compare_whatever_their_spelling() {
    let ann = ann();
    let with = |serial: &[&str], fingerprint: &[&str]| {
        let spec =
            AllowSpec { serial: strings(serial), fingerprint_sha256: strings(fingerprint), ..AllowSpec::default() };
        rules(vec![allow(spec)]).judge(&facts(Verdict::Success, Some(&ann))).is_ok()
    };
    for serial in ["0A:1B", "a1b", "0000a1b", "00:0a:1b"] {
        assert!(with(&["77", serial], &[]), "{serial}");
    }
    assert!(!with(&["a1"], &[]) && !with(&["a1b0"], &[]) && !with(&["00"], &[]));
    let colons = vec!["AB"; 32].join(":");
    assert!(with(&[], &[&"00".repeat(32), &colons]));
    assert!(!with(&[], &[&format!("{}ac", "ab".repeat(31))]));

    let zero = Identity { serial: "00".into(), ..Identity::default() };
    let rule = rules(vec![allow(AllowSpec { serial: strings(&["0"]), ..AllowSpec::default() })]);
    assert!(rule.judge(&facts(Verdict::Success, Some(&zero))).is_ok());
    // A negative serial number is never taken for the positive one.
    let negative = Identity { serial: "-80".into(), ..Identity::default() };
    let rule = rules(vec![allow(AllowSpec { serial: strings(&["80"]), ..AllowSpec::default() })]);
    assert!(rule.judge(&facts(Verdict::Success, Some(&negative))).is_err());
}

#[test]
fn a_rule_that_contradicts_itself_is_refused() {
    let spec = RuleSpec::default;
    let refused = |spec: RuleSpec, word: &str| {
        let before = RuleSpec { path: Some("/first".into()), ..RuleSpec::default() };
        let error = Rules::compile(vec![before, spec]).expect_err(word);
        assert_eq!(error.rule_index, 1);
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(RuleSpec { deny: true, ..allow(common_name("a")) }, "deny");
    refused(RuleSpec { verify: Some(VerifySelector::None), ..allow(common_name("a")) }, "verify");
    refused(RuleSpec { path: Some("admin".into()), ..spec() }, "path:");
    refused(RuleSpec { method: strings(&["*"]), ..spec() }, "method:");
    refused(RuleSpec { method: strings(&["GET "]), ..spec() }, "method:");
    refused(allow(AllowSpec { serial: strings(&["12*"]), ..AllowSpec::default() }), "allow.serial");
    refused(allow(AllowSpec { serial: strings(&[":"]), ..AllowSpec::default() }), "allow.serial");
    refused(allow(AllowSpec { fingerprint_sha256: strings(&["ab"]), ..AllowSpec::default() }), "allow.fingerprint");
    refused(allow(AllowSpec { san_dns: strings(&["a..b"]), ..AllowSpec::default() }), "allow.san_dns");
    refused(
        allow(AllowSpec { serial: vec!["1".into(); super::super::allow::ENTRIES_MAX + 1], ..AllowSpec::default() }),
        "at most",
    );

    let error = Rules::compile(vec![allow(common_name("a")), allow(common_name("b"))]).unwrap_err();
    assert!(error.to_string().starts_with("rule 2: can never be reached: rule 1 "), "{error}");
    let many = vec![RuleSpec { path: Some("/a".into()), ..spec() }; RULES_MAX + 1];
    assert!(Rules::compile(many[1..].to_vec()).is_ok());
    assert_eq!(Rules::compile(many).unwrap_err().rule_index, RULES_MAX);
}

#[test]
fn rules_say_what_they_look_at() {
    let needs = |spec| {
        let rules = rules(vec![spec]);
        (rules.needs_identity(), rules.needs_source(), rules.needs_request())
    };
    assert_eq!(needs(RuleSpec { verify: Some(VerifySelector::Success), ..RuleSpec::default() }), (false, false, false));
    assert_eq!(needs(allow(common_name("a"))), (true, false, false));
    assert_eq!(needs(allow(AllowSpec { serial: strings(&["1"]), ..AllowSpec::default() })), (true, false, false));
    assert_eq!(
        needs(RuleSpec { source: vec!["10.0.0.0/8".parse().unwrap()], ..RuleSpec::default() }),
        (false, true, false)
    );
    assert_eq!(needs(RuleSpec { path: Some("/a".into()), ..RuleSpec::default() }), (false, false, true));
    assert_eq!(needs(RuleSpec { method: strings(&["GET"]), ..RuleSpec::default() }), (false, false, true));
}

// The model. Small worlds, so that choices coincide often; no selector of them holds for every value, so that an unknown
// fact always leaves the choice open.

const PATHS: [&str; 3] = ["/a", "/b", "/b/c"];
const METHODS: [&str; 3] = ["GET", "PUT", "HEAD"];
const SOURCES: [&str; 3] = ["10.0.0.1", "192.0.2.1", "2001:db8::1"];
const NAMES: [&str; 3] = ["ann", "bob", "anders"];

fn a_rule() -> impl Strategy<Value = RuleSpec> {
    let list = |of: &'static [&'static str], most| subsequence(of, 0..=most).prop_map(|texts| strings(&texts));
    let verify = select(vec![
        None,
        None,
        Some(VerifySelector::Success),
        Some(VerifySelector::None),
        Some(VerifySelector::Failed),
    ]);
    (
        proptest::option::of(select(vec!["/a", "/b*", "/x"])),
        list(&METHODS, 2),
        subsequence(vec!["10.0.0.0/8", "192.0.2.0/24"], 0..=2),
        verify,
        list(&["an*", "bob", "zoe"], 2),
        list(&["ann", "b*"], 2),
        list(&["1", "02"], 2),
        any::<bool>(),
    )
        .prop_map(|(path, method, source, verify, common_name, organization, serial, deny)| RuleSpec {
            path: path.map(Into::into),
            method,
            source: source.iter().map(|net| net.parse().unwrap()).collect(),
            verify,
            allow: AllowSpec { common_name, organization, serial, ..AllowSpec::default() },
            deny,
        })
}

/// Prefix or equality is all the model's patterns need.
fn like(pattern: &str, value: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == value, |prefix| value.starts_with(prefix))
}

#[derive(Clone, Debug)]
struct Known {
    verdict: Verdict,
    identity: Option<Identity>,
    source: Option<IpAddr>,
    method: Option<&'static str>,
    path: Option<&'static str>,
}

fn known() -> impl Strategy<Value = Known> {
    let names = |of: &'static [&'static str]| subsequence(of, 0..=2).prop_map(|texts| strings(&texts));
    let identity = (names(&NAMES), names(&NAMES), select(vec!["01", "02", "03"])).prop_map(
        |(common_names, organizations, serial)| Identity {
            common_names,
            organizations,
            serial: serial.into(),
            ..Identity::default()
        },
    );
    (
        select(vec![Verdict::Success, Verdict::Success, Verdict::None, Verdict::Failed(Refusal::Expired)]),
        proptest::option::of(identity),
        proptest::option::of(select(&SOURCES[..])),
        proptest::option::of(select(&METHODS[..])),
        proptest::option::of(select(&PATHS[..])),
    )
        .prop_map(|(verdict, identity, source, method, path)| Known {
            verdict,
            identity,
            source: source.map(|source| source.parse().unwrap()),
            method,
            path,
        })
}

/// Whether a rule chooses, when everything is known.
fn model_chooses(spec: &RuleSpec, verdict: Verdict, source: IpAddr, method: &str, path: &str) -> bool {
    let verdict = match verdict {
        Verdict::Success => VerifySelector::Success,
        Verdict::None => VerifySelector::None,
        Verdict::Failed(_) => VerifySelector::Failed,
    };
    spec.path.as_ref().is_none_or(|pattern| like(pattern, path))
        && (spec.method.is_empty() || spec.method.iter().any(|name| name == method))
        && (spec.source.is_empty() || spec.source.iter().any(|net| net.contains(&source)))
        && spec.verify.is_none_or(|selector| selector == verdict)
}

/// The definition: a client passes if the first rule that may choose it chooses it whatever is unknown, and lets it in.
fn model(specs: &[RuleSpec], known: &Known) -> bool {
    fn possible<T: Copy>(fact: Option<T>, all: &[T]) -> Vec<T> {
        fact.map_or_else(|| all.to_vec(), |fact| vec![fact])
    }
    let sources: Vec<IpAddr> = SOURCES.iter().map(|source| source.parse().unwrap()).collect();
    for spec in specs {
        let mut outcomes = std::collections::HashSet::new();
        for &source in &possible(known.source, &sources) {
            for method in possible(known.method, &METHODS) {
                for path in possible(known.path, &PATHS) {
                    outcomes.insert(model_chooses(spec, known.verdict, source, method, path));
                }
            }
        }
        if !outcomes.contains(&true) {
            continue;
        }
        if outcomes.contains(&false) || spec.deny {
            return false;
        }
        let one_of = |patterns: &[String], values: &dyn Fn(&Identity) -> Vec<String>| {
            patterns.is_empty()
                || known.verdict == Verdict::Success
                    && known.identity.as_ref().is_some_and(|identity| {
                        values(identity).iter().any(|value| patterns.iter().any(|pattern| like(pattern, value)))
                    })
        };
        let serials: Vec<String> = spec.allow.serial.iter().map(|serial| format!("{serial:0>2}")).collect();
        return one_of(&spec.allow.common_name, &|identity| identity.common_names.clone())
            && one_of(&spec.allow.organization, &|identity| identity.organizations.clone())
            && one_of(&serials, &|identity| vec![identity.serial.clone()]);
    }
    specs.is_empty()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn rules_agree_with_the_model(specs in proptest::collection::vec(a_rule(), 0..5), known in known()) {
        let Ok(rules) = Rules::compile(specs.clone()) else { return Ok(()) };
        // "/x" is no path of the model's world: such a rule is possible only where the path is unknown.
        prop_assume!(known.path.is_some() || specs.iter().all(|spec| spec.path.as_deref() != Some("/x")));
        let facts = Facts {
            verdict: known.verdict,
            identity: known.identity.as_ref(),
            source: known.source,
            method: known.method,
            path: known.path,
        };
        prop_assert_eq!(rules.judge(&facts).is_ok(), model(&specs, &known));
        prop_assert_eq!(rules.decide(&facts).passes(), rules.judge(&facts).is_ok());
    }

    #[test]
    fn what_rules_do_not_look_at_changes_nothing(specs in proptest::collection::vec(a_rule(), 0..5), known in known()) {
        let Ok(rules) = Rules::compile(specs) else { return Ok(()) };
        let all = Facts {
            verdict: known.verdict,
            identity: known.identity.as_ref(),
            source: known.source,
            method: known.method,
            path: known.path,
        };
        let needed = Facts {
            verdict: known.verdict,
            identity: all.identity.filter(|_| rules.needs_identity()),
            source: all.source.filter(|_| rules.needs_source()),
            method: all.method.filter(|_| rules.needs_request()),
            path: all.path.filter(|_| rules.needs_request()),
        };
        prop_assert_eq!(rules.decide(&all), rules.decide(&needed));
    }
}
