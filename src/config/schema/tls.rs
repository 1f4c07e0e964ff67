//! `[tls]`, and the TLS keys a hostname may set for itself.
//!
//! Cipher suites have their IANA names, the ones of RFC 8446 and RFC 5289: `TLS_AES_128_GCM_SHA256`, not rustls'
//! `TLS13_AES_128_GCM_SHA256` nor OpenSSL's `ECDHE-ECDSA-AES128-GCM-SHA256`.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::reader::{Table, Value, quote, with_suggestion};
use crate::config::types::{Group, Tls};
use crate::registry::TlsVersion;
use crate::tls::Provider;

pub const TLS_KEYS: &[&str] = &["provider", "min_version", "groups", "cipher_suites", "tickets", "ticket_lifetime"];

/// The suites of TLS 1.3 both providers have.
const SUITES_1_3: &[&str] = &["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// The suites of TLS 1.2 both providers have: forward secret, authenticated encryption.
const SUITES_1_2: &[&str] = &[
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];

/// RFC 8446 section 4.6.1: servers must not use a ticket lifetime above seven days.
const TICKET_LIFETIME: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

const PROVIDERS: [(&str, Provider); 2] = [("aws-lc-rs", Provider::AwsLcRs), ("ring", Provider::Ring)];

impl Default for Tls {
    fn default() -> Self {
        Self {
            provider: Provider::AwsLcRs,
            min_version: TlsVersion::V1_2,
            groups: default_groups(Provider::AwsLcRs),
            cipher_suites: Vec::new(),
            tickets: true,
            ticket_lifetime: Duration::from_secs(12 * 3600),
        }
    }
}

/// All groups the provider has.
fn default_groups(provider: Provider) -> Vec<Group> {
    Group::ALL.into_iter().filter(|group| group.is_in(provider)).collect()
}

/// `[tls]`
pub fn tls(table: &Table<'_>) -> Tls {
    let mut tls = Tls::default();
    if let Some(provider) = table.get("provider").and_then(|value| value.choice(&PROVIDERS)) {
        tls.provider = provider;
    }
    tls.groups = match table.get("groups") {
        Some(value) => groups(value, tls.provider),
        None => default_groups(tls.provider),
    };
    if let Some(version) = table.get("min_version").and_then(min_version) {
        tls.min_version = version;
    }
    if let Some(value) = table.get("cipher_suites") {
        tls.cipher_suites = cipher_suites(value);
        if !suites_can_serve(&tls.cipher_suites, tls.min_version) {
            value.error(SUITES_CANNOT_SERVE);
        }
    }
    if let Some(tickets) = table.get("tickets").and_then(|value| value.boolean()) {
        tls.tickets = tickets;
    }
    if let Some(lifetime) = table.get("ticket_lifetime").and_then(|value| value.duration(&TICKET_LIFETIME)) {
        tls.ticket_lifetime = lifetime;
    }
    tls
}

fn groups(value: Value<'_>, provider: Provider) -> Vec<Group> {
    let choices = Group::ALL.map(|group| (group.name(), group));
    let mut groups = Vec::new();
    for element in value.one_or_more() {
        let Some(group) = element.choice(&choices) else { continue };
        if groups.contains(&group) {
            element.error(format!("names {} twice", group.name()));
        } else if !group.is_in(provider) {
            let remedy = "remove it, or set provider = \"aws-lc-rs\"";
            element.error(format!(
                "names {}, which provider \"{}\" does not have; {remedy}",
                group.name(),
                provider.name()
            ));
        }
        groups.push(group);
    }
    groups
}

/// `min_version`, in `[tls]` or `[[hostname]]`.
pub fn min_version(value: Value<'_>) -> Option<TlsVersion> {
    value.choice(&[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)])
}

/// What is wrong with suites that [`suites_can_serve`] says no to.
pub const SUITES_CANNOT_SERVE: &str =
    "has no suite of TLS 1.3, and min_version is \"1.3\": no client could connect; add \"TLS_AES_128_GCM_SHA256\"";

/// Whether a client could agree on one of the suites. Empty: the provider's own. One that is not known has been told, and
/// may be meant to be one of TLS 1.3.
pub fn suites_can_serve(suites: &[String], min_version: TlsVersion) -> bool {
    suites.is_empty()
        || min_version < TlsVersion::V1_3
        || suites.iter().any(|suite| !SUITES_1_2.contains(&suite.as_str()))
}

/// `cipher_suites`, in `[tls]` or `[[hostname]]`: IANA names in order of preference.
pub fn cipher_suites(value: Value<'_>) -> Vec<String> {
    let known: Vec<&str> = SUITES_1_3.iter().chain(SUITES_1_2).copied().collect();
    let mut suites: Vec<String> = Vec::new();
    for element in value.list().unwrap_or_default() {
        let Some(name) = element.string() else { continue };
        if !known.contains(&name) {
            let text =
                format!("has the unknown suite {}; the IANA names of {} suites are known", quote(name), known.len());
            element.error(suggest_suite(text, name, &known));
        } else if suites.iter().any(|suite| suite == name) {
            element.error(format!("names {name} twice"));
        }
        suites.push(name.to_owned());
    }
    suites
}

/// Suggests the IANA name for one of rustls or OpenSSL, else the nearest.
fn suggest_suite(text: String, written: &str, known: &[&str]) -> String {
    // rustls says TLS13_ for TLS_; OpenSSL leaves out TLS_ and WITH and the underscore before the key size.
    let bare = |name: &str| {
        let upper = name.to_ascii_uppercase().replace("TLS13_", "TLS_").replace(['-', '_'], "");
        upper.trim_start_matches("TLS").replace("WITH", "").replace("POLY1305SHA256", "POLY1305")
    };
    match known.iter().find(|name| bare(name) == bare(written)) {
        Some(name) => format!("{text}; did you mean \"{name}\"?"),
        None => with_suggestion(text, written, known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_libraries_lead_to_the_iana_name() {
        let known: Vec<&str> = SUITES_1_3.iter().chain(SUITES_1_2).copied().collect();
        for (written, expected) in [
            ("TLS13_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"),
            ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
            ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
            ("TLS_AES_128_GCM_SHA265", "TLS_AES_128_GCM_SHA256"),
        ] {
            assert_eq!(suggest_suite(String::new(), written, &known), format!("; did you mean \"{expected}\"?"));
        }
        assert_eq!(suggest_suite(String::new(), "RC4", &known), "");
    }

    #[test]
    fn the_suites_are_those_of_both_providers() {
        for provider in [rustls::crypto::aws_lc_rs::default_provider(), rustls::crypto::ring::default_provider()] {
            let mut theirs: Vec<String> = provider
                .cipher_suites
                .iter()
                .filter_map(|suite| suite.suite().as_str().map(|name| name.replace("TLS13_", "TLS_")))
                .collect();
            theirs.sort();
            let mut ours: Vec<&str> = SUITES_1_3.iter().chain(SUITES_1_2).copied().collect();
            ours.sort_unstable();
            assert_eq!(theirs, ours);
        }
    }

    #[test]
    fn the_groups_are_those_of_the_provider() {
        for (ours, theirs) in [
            (Provider::AwsLcRs, rustls::crypto::aws_lc_rs::ALL_KX_GROUPS),
            (Provider::Ring, rustls::crypto::ring::ALL_KX_GROUPS),
        ] {
            for group in Group::ALL {
                let found = theirs
                    .iter()
                    .any(|kx| kx.name().as_str().is_some_and(|name| name.eq_ignore_ascii_case(group.name())));
                assert_eq!(found, group.is_in(ours), "{} in {}", group.name(), ours.name());
            }
        }
    }
}
