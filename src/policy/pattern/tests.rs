//! Patterns against a naive matcher that tries everything, and the meaning of `*` selector by selector.

use proptest::prelude::*;

use super::{DNS_BYTES_MAX, Kind, PATTERN_BYTES_MAX, Patterns, VALUES_MAX};

fn compile(kind: Kind, texts: &[&str]) -> Result<Patterns, String> {
    Patterns::compile(kind, &texts.iter().map(ToString::to_string).collect::<Vec<_>>(), 8)
}

fn matches(kind: Kind, pattern: &str, value: &str) -> bool {
    compile(kind, &[pattern]).unwrap().matches(value)
}

/// The characters a star of this kind must not cross.
fn separators(kind: Kind) -> &'static [u8] {
    match kind {
        Kind::Text | Kind::Path => b"",
        Kind::Dns => b".",
        Kind::Uri => b"/?#",
        Kind::Email => b"@",
    }
}

/// Matching by trying every length for every star, from left to right.
fn naive(kind: Kind, pattern: &str, value: &str) -> bool {
    fn from(kind: Kind, pattern: &[u8], at: usize, value: &[u8]) -> bool {
        let separators = separators(kind);
        let Some(&byte) = pattern.get(at) else { return value.is_empty() };
        if byte != b'*' {
            return value.first() == Some(&byte) && from(kind, pattern, at + 1, &value[1..]);
        }
        let opens = at == 0 || separators.contains(&pattern[at - 1]);
        let closes = pattern.get(at + 1).is_none_or(|next| separators.contains(next));
        let shortest = usize::from(opens && closes && !separators.is_empty());
        let longest = value.iter().take_while(|byte| !separators.contains(byte)).count();
        (shortest..=longest).any(|length| from(kind, pattern, at + 1, &value[length..]))
    }
    let (pattern, value) = match kind {
        Kind::Dns => (pattern.to_ascii_lowercase(), value.to_ascii_lowercase()),
        _ => (pattern.to_string(), value.to_string()),
    };
    if !pattern.contains('*') {
        return pattern == value;
    }
    if kind == Kind::Uri && value.split(['/', '?', '#']).any(|segment| segment == "." || segment == "..") {
        return false;
    }
    if kind == Kind::Uri
        && let Some(head) = pattern.strip_suffix("/**")
    {
        return (0..value.len()).filter(|&at| value.as_bytes()[at] == b'/').any(|at| {
            let (before, below) = (&value[..at], &value[at + 1..]);
            !below.contains(['?', '#'])
                && below.split('/').all(|segment| !segment.is_empty())
                && from(kind, head.as_bytes(), 0, before.as_bytes())
        });
    }
    from(kind, pattern.as_bytes(), 0, value.as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn text_agrees_with_the_naive_matcher(pattern in "[ab*]{1,9}", value in "[ab]{0,12}") {
        if let Ok(patterns) = compile(Kind::Text, &[&pattern]) {
            prop_assert_eq!(patterns.matches(&value), naive(Kind::Text, &pattern, &value));
        }
    }

    #[test]
    fn paths_agree_with_the_naive_matcher(pattern in "/[a/*]{0,7}", value in "/[ab/]{0,10}") {
        if let Ok(patterns) = compile(Kind::Path, &[&pattern]) {
            prop_assert_eq!(patterns.matches(&value), naive(Kind::Path, &pattern, &value));
        }
    }

    #[test]
    fn dns_agrees_with_the_naive_matcher(pattern in "[aB.*]{1,8}", value in "[aAb.]{0,9}") {
        if let Ok(patterns) = compile(Kind::Dns, &[&pattern]) {
            prop_assert_eq!(patterns.matches(&value), naive(Kind::Dns, &pattern, &value));
        }
    }

    #[test]
    fn mail_agrees_with_the_naive_matcher(pattern in "[a.*]{0,4}@[a.*]{0,4}", value in "[a.]{0,4}@?[a.@]{0,4}") {
        if let Ok(patterns) = compile(Kind::Email, &[&pattern]) {
            prop_assert_eq!(patterns.matches(&value), naive(Kind::Email, &pattern, &value));
        }
    }

    #[test]
    fn uris_agree_with_the_naive_matcher(
        pattern in "s://[a*]{1,2}(/[a.*]{0,2}){0,3}(/\\*\\*)?",
        value in "s://[a]{0,2}(/[a.]{0,2}){0,4}([?#/][a/]{0,2})?",
    ) {
        if let Ok(patterns) = compile(Kind::Uri, &[&pattern]) {
            prop_assert_eq!(patterns.matches(&value), naive(Kind::Uri, &pattern, &value));
        }
    }

    #[test]
    fn a_list_matches_as_its_patterns_do_one_by_one(
        list in proptest::collection::vec("[ab*]{1,4}", 0..8),
        value in "[ab]{0,5}",
    ) {
        let list: Vec<_> = list.iter().filter(|text| !text.contains("**")).map(String::as_str).collect();
        let whole = compile(Kind::Text, &list).unwrap().matches(&value);
        prop_assert_eq!(whole, list.iter().any(|pattern| naive(Kind::Text, pattern, &value)));
    }

    #[test]
    fn nothing_panics(text in "\\PC{0,20}", value in "\\PC{0,40}") {
        for kind in [Kind::Text, Kind::Path, Kind::Dns, Kind::Uri, Kind::Email] {
            if let Ok(patterns) = compile(kind, &[&text]) {
                patterns.matches(&value);
            }
        }
    }
}

#[test]
fn a_star_stays_where_it_was_put() {
    let cases = [
        (Kind::Text, "ops-*", "ops-", true),
        (Kind::Text, "ops-*", "ops-berlin 7", true),
        (Kind::Text, "ops-*", "Ops-berlin", false),
        (Kind::Text, "ops-*", "no ops-berlin", false),
        (Kind::Text, "ops-*", "ops-\0", true),
        (Kind::Text, "*", "", true),
        (Kind::Text, "a*a", "a", false),
        (Kind::Path, "/admin/*", "/admin/a/b", true),
        (Kind::Path, "/admin/*", "/admin", false),
        (Kind::Dns, "*.acme.example", "pay.ACME.example", true),
        (Kind::Dns, "*.acme.example", "acme.example", false),
        (Kind::Dns, "*.acme.example", ".acme.example", false),
        (Kind::Dns, "*.acme.example", "a.b.acme.example", false),
        (Kind::Dns, "*.acme.example", "pay.acme.example.", false),
        (Kind::Dns, "pay.acme.example", "*.acme.example", false),
        (Kind::Uri, "spiffe://acme/ops/*", "spiffe://acme/ops/a", true),
        (Kind::Uri, "spiffe://acme/ops/*", "spiffe://acme/ops/a/b", false),
        (Kind::Uri, "spiffe://acme/ops/*", "spiffe://acme/ops/", false),
        (Kind::Uri, "spiffe://acme/ops/*", "spiffe://acme/ops/a?b", false),
        (Kind::Uri, "spiffe://acme/ops/*", "spiffe://acme/ops/..", false),
        (Kind::Uri, "spiffe://*/ops", "spiffe://evil/x/ops", false),
        (Kind::Uri, "spiffe://acme/**", "spiffe://acme/ops/a", true),
        (Kind::Uri, "spiffe://acme/**", "spiffe://acme", false),
        (Kind::Uri, "spiffe://acme/**", "spiffe://acme/", false),
        (Kind::Uri, "spiffe://acme/**", "spiffe://acme.evil/ops", false),
        (Kind::Uri, "spiffe://acme/ops/**", "spiffe://acme/ops/%2E./admin", false),
        (Kind::Uri, "spiffe://acme/ops/**", "spiffe://acme/ops/a#b", false),
        (Kind::Email, "*@acme.example", "ann@acme.example", true),
        (Kind::Email, "*@acme.example", "\"eve@evil\"@acme.example", false),
        (Kind::Email, "*@acme.example", "@acme.example", false),
        (Kind::Email, "*@*.acme.example", "ann@a.b.acme.example", true),
    ];
    for (kind, pattern, value, expected) in cases {
        assert_eq!(matches(kind, pattern, value), expected, "{kind:?} {pattern} {value}");
    }
}

#[test]
fn a_pattern_that_could_never_match_is_refused() {
    let cases = [
        (Kind::Text, "", "empty"),
        (Kind::Text, "a**", "means nothing"),
        (Kind::Path, "admin/*", "start with"),
        (Kind::Dns, "acme.example.", "dot"),
        (Kind::Dns, "a..b", "empty label"),
        (Kind::Dns, "bücher.example", "xn--"),
        (Kind::Uri, "acme/ops", "scheme"),
        (Kind::Uri, "*://acme/ops", "scheme"),
        (Kind::Uri, "spiffe://acme/**/ops", "last segment"),
        (Kind::Uri, "spiffe:/**", "authority"),
        (Kind::Uri, "spiffe:///**", "authority"),
        (Kind::Email, "acme.example", "mail"),
        (Kind::Email, "a@b@c", "mail"),
    ];
    for (kind, pattern, word) in cases {
        let why = compile(kind, &[pattern]).expect_err(pattern);
        assert!(why.contains(word), "{pattern}: {why}");
    }
    assert!(compile(Kind::Text, &[&"a".repeat(PATTERN_BYTES_MAX)]).is_ok());
    assert!(compile(Kind::Text, &[&"a".repeat(PATTERN_BYTES_MAX + 1)]).is_err());
    assert!(compile(Kind::Text, &["*"; 8]).is_ok());
    assert!(compile(Kind::Text, &["*"; 9]).is_err());
}

#[test]
fn a_name_longer_than_dns_allows_matches_nothing() {
    let longest = format!("{}.example", "a".repeat(DNS_BYTES_MAX - 8));
    assert!(matches(Kind::Dns, "*.example", &longest));
    assert!(!matches(Kind::Dns, "*.example", &format!("a{longest}")));
}

#[test]
fn a_certificate_with_a_crowd_of_names_matches_nothing() {
    let patterns = compile(Kind::Dns, &["*.example", "b.example"]).unwrap();
    let mut names = vec!["b.example".to_string(); VALUES_MAX];
    assert!(patterns.match_any(&names));
    names.push("b.example".into());
    assert!(!patterns.match_any(&names));
}

/// The classic that takes a backtracking matcher longer than the universe has: finishes, and so is linear enough.
#[test]
fn a_hostile_value_costs_its_length() {
    let pattern = "*a".repeat(PATTERN_BYTES_MAX / 2 - 1) + "*b";
    let value = "a".repeat(60_000);
    assert!(!matches(Kind::Text, &pattern, &value));
    assert!(matches(Kind::Text, &pattern, &(value + "b")));
}
