//! `[[hostname.rule]]`: read here, judged by `policy::rules`, which also knows what patterns mean.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::config::reader::{Table, Value, quote};
use crate::config::types::Rule;
use crate::policy::Rules;
use crate::policy::rules::{AllowSpec, RuleSpec, VerifySelector};
use crate::registry::{ClientAuthMode, Mode};

pub const RULE_KEYS: &[&str] = &["path", "method", "source", "verify", "allow", "deny"];
pub const ALLOW_KEYS: &[&str] = &[
    "common_name",
    "organization",
    "organizational_unit",
    "san_dns",
    "san_uri",
    "san_email",
    "issuer_common_name",
    "serial",
    "fingerprint_sha256",
];

/// As in the header that tells the origin about the verdict.
const VERDICTS: [(&str, VerifySelector); 3] =
    [("SUCCESS", VerifySelector::Success), ("NONE", VerifySelector::None), ("FAILED", VerifySelector::Failed)];

/// Reads the rules of one hostname and checks that they compile. A mode of `None` is not known, because of a fault that has
/// been told: nothing that follows from it is told too.
pub fn rules(tables: Vec<Table<'_>>, mode: Option<Mode>, auth: Option<ClientAuthMode>) -> Vec<Rule> {
    let mut sound = true;
    let mut rules = Vec::with_capacity(tables.len());
    for table in &tables {
        let spec = rule(table, mode, auth);
        // Each rule is compiled by itself first, so that every faulty one is named; what only shows among all of them,
        // such as one that can never be reached, shows below.
        if let Err(error) = Rules::compile(vec![spec.clone()]) {
            table.error(error.message);
            sound = false;
        }
        rules.push(Rule { place: table.place(), spec });
    }
    if sound
        && let Err(error) = Rules::compile(rules.iter().map(|rule| rule.spec.clone()).collect())
        && let Some(table) = tables.get(error.rule_index).or(tables.last())
    {
        table.error(error.message);
    }
    rules
}

/// Reads one rule.
fn rule(table: &Table<'_>, mode: Option<Mode>, auth: Option<ClientAuthMode>) -> RuleSpec {
    if mode == Some(Mode::Tcp) {
        for value in ["path", "method"].into_iter().filter_map(|key| table.get(key)) {
            value.error(
                "cannot choose a rule with mode = \"tcp\": there is no request to look at, bytes pass as they come; \
                 use source, verify and allow",
            );
        }
    }
    let mut spec = RuleSpec::default();
    if mode != Some(Mode::Tcp) {
        // One pattern, not a list; and never one that could not be printed.
        spec.path = table.get("path").and_then(|value| value.string().and_then(|_| value.strings().pop()));
        spec.method = table.get("method").map(|value| value.strings()).unwrap_or_default();
    }
    if let Some(value) = table.get("source") {
        spec.source = value.one_or_more().into_iter().filter_map(network).collect();
    }
    if let Some(value) = table.get("verify") {
        spec.verify = value.choice(&VERDICTS);
        if auth == Some(ClientAuthMode::Off)
            && matches!(spec.verify, Some(VerifySelector::Success | VerifySelector::Failed))
        {
            value.warning("can never match: client_auth is off, so no client shows a certificate");
        }
    }
    let allow = table.get("allow");
    if let Some(table) = allow.and_then(|value| value.table("allow", ALLOW_KEYS)) {
        spec.allow = allow_spec(&table);
    }
    if let Some(value) = allow
        && auth == Some(ClientAuthMode::Off)
        && spec.allow != AllowSpec::default()
    {
        value.warning("can never hold: client_auth is off, so no client shows a certificate, and this rule denies all");
    }
    let deny = table.get("deny");
    if let Some(value) = deny {
        spec.deny = value.boolean() == Some(true);
        if value.boolean() == Some(false) {
            value.error("must be true, or be left out: a rule that does not deny says whom it allows");
        } else if allow.is_some() {
            value.error("and allow cannot stand in one rule: it either denies whom it chooses, or says who may pass");
        }
    }
    if allow.is_none() && deny.is_none() {
        table.error(format!(
            "{} needs \"allow\" or \"deny = true\"; allow = {{}} lets in everyone the rule chooses",
            table.title
        ));
    }
    spec
}

fn allow_spec(table: &Table<'_>) -> AllowSpec {
    let strings = |key| table.get(key).map(|value: Value<'_>| value.strings()).unwrap_or_default();
    AllowSpec {
        common_name: strings("common_name"),
        organization: strings("organization"),
        organizational_unit: strings("organizational_unit"),
        san_dns: strings("san_dns"),
        san_uri: strings("san_uri"),
        san_email: strings("san_email"),
        issuer_common_name: strings("issuer_common_name"),
        serial: strings("serial"),
        fingerprint_sha256: strings("fingerprint_sha256"),
    }
}

/// A network in CIDR form, or one address.
pub fn network(value: Value<'_>) -> Option<IpNet> {
    let text = value.string()?;
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match network {
        // Bits beyond the prefix are ignored when matching, so they show that something else was meant.
        Ok(network) if network != network.trunc() => {
            let (whole, one) = (network.trunc(), network.addr());
            value.error(format!("is {}: bits are set beyond the prefix; write \"{whole}\" or \"{one}\"", quote(text)));
            None
        }
        Ok(network) => Some(network),
        Err(_) => {
            value.error(format!("must be an address or a network, as in \"10.0.0.0/8\", not {}", quote(text)));
            None
        }
    }
}
