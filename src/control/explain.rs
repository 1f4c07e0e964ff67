//! Would this client get in, and why: the data plane's own decisions, one after the other, without a server.
//!
//! The record is resolved, the tenant assembled, the chain verified and the rules judged by the code workers run. What a
//! worker only says in one word is found out beside it (`tls::trace`).

mod sent;

use std::net::IpAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use self::sent::Sent;
use super::{Failure, assemble};
use crate::config::Config;
use crate::policy::{Decision, Facts, Identity, Refusal, Verdict};
use crate::proxy::{http1, proxy_protocol};
use crate::registry::name::normalise_sni;
use crate::registry::{ClientAuthMode, HostnameRecord, Mode, Name, OriginAddress, ProxyProtocol, Resolution};
use crate::tls::trace::{self, Fault, Found, Trace};
use crate::tls::{Factory, Options, failure};

/// The largest file of a client's certificates. A chain has at most 16 KiB; a key and text around it are allowed for.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// A client, as far as it matters.
#[derive(Debug, Default)]
pub struct Client {
    /// What it sends as server name. An IP address is never sent as one.
    pub host: String,
    /// The certificates it sends, DER, leaf first. That it holds the key is taken for granted.
    pub chain: Vec<CertificateDer<'static>>,
    pub source: Option<IpAddr>,
    pub method: Option<String>,
    /// Without query.
    pub path: Option<String>,
}

/// What became of it, step by step, up to the one that decided.
#[derive(Debug, Default)]
pub struct Answer {
    /// The name as it is looked up; `None`: the client sends none.
    pub name: Option<String>,
    /// The record and how it was found: `exact`, `wildcard`, `default`.
    pub record: Option<(Arc<HostnameRecord>, &'static str)>,
    /// What became of the client's chain, where one is asked for and sent.
    pub trace: Option<Trace>,
    pub verdict: Option<Verdict>,
    pub decision: Option<Decision>,
    /// `None`: let in.
    pub refusal: Option<Refusal>,
    /// What there is to say about the refusal beyond its name.
    pub detail: Option<String>,
    /// What the origin of a client that is let in gets over HTTP.
    pub sent: Option<Sent>,
    /// What a refused client sees.
    pub seen: Option<String>,
}

/// Reads the certificates a client would send from a PEM file; whatever else is in it is passed over.
///
/// # Errors
/// Says what is wrong with the file.
pub fn read_chain(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    use std::io::Read;
    let shown = path.display();
    let mut pem = zeroize::Zeroizing::new(Vec::new());
    let file = std::fs::File::open(path).map_err(|error| format!("{shown}: {error}"))?;
    file.take(PEM_BYTES_MAX).read_to_end(&mut pem).map_err(|error| format!("{shown}: {error}"))?;
    // The parser's own errors repeat lines of what may be a key.
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err(format!("{shown}: holds no PEM certificate")),
        Ok(chain) => Ok(chain),
        Err(_) => Err(format!("{shown}: is not PEM text")),
    }
}

/// Answers for a configuration whose files can all be opened.
///
/// # Errors
/// What keeps the configuration from being served, and a fact that the rules ask for and the question leaves out.
pub fn explain(config: &Config, client: &Client, now_unix_s: i64) -> Result<Answer, Failure> {
    let snapshot = assemble::assemble_at(config, None, super::start::FIRST_GENERATION, now_unix_s)?.snapshot;
    let mut answer = Answer::default();
    let resolution = match server_name(&client.host) {
        None => snapshot.resolve_default(),
        Some(Some(name)) => {
            let resolution = snapshot.resolve(&name);
            answer.name = Some(name);
            resolution
        }
        Some(None) => {
            answer.detail = Some("this is no hostname a client can send".into());
            return Ok(answer.refused(Refusal::UnknownHostname));
        }
    };
    let (record, how) = match resolution {
        Resolution::Exact(record) => (record, "exact"),
        Resolution::Wildcard(record) => (record, "wildcard"),
        Resolution::Default(record) => (record, "default"),
        Resolution::Unknown => {
            let reason = if answer.name.is_some() { Refusal::UnknownHostname } else { Refusal::NoSni };
            return Ok(answer.refused(reason));
        }
    };
    answer.record = Some((Arc::clone(record), how));
    let factory = Factory::new(Options {
        provider: config.tls.provider,
        groups: config.tls.groups.iter().map(|group| group.name().to_owned()).collect(),
        cipher_suites: Vec::new(),
        tickets: false,
        ticket_lifetime_s: 0,
    });
    let tenant = match factory.map_err(|why| Failure::Input(vec![why]))?.assemble(record) {
        Ok(tenant) => tenant,
        Err(unreadable) => {
            answer.detail = Some(unreadable.to_string());
            return Ok(answer.refused(Refusal::RecordUnreadable));
        }
    };
    let verdict = match (&tenant.base.verifier, &record.client_auth.ca_set) {
        (Some(verifier), Some(cas)) if !client.chain.is_empty() => {
            let trace = answer.trace.insert(trace::trace(verifier, cas, &client.chain, now_unix_s));
            // DECISIONS 6, as the verifier does it: a leaf that does not parse proves nothing and fails.
            let leaf_parses = webpki::EndEntityCert::try_from(&client.chain[0]).is_ok();
            match &trace.outcome {
                Ok(_) => Verdict::Success,
                Err(fault) if record.client_auth.mode == ClientAuthMode::Request && leaf_parses => {
                    Verdict::Failed(fault.reason)
                }
                Err(fault) => {
                    let reason = fault.reason;
                    return Ok(answer.refused(reason));
                }
            }
        }
        (Some(_), _) if record.client_auth.mode == ClientAuthMode::Require => {
            return Ok(answer.refused(Refusal::NoCertificate));
        }
        _ => Verdict::None,
    };
    answer.verdict = Some(verdict);
    judge(answer, record, client, verdict)
}

/// The rules' part.
fn judge(mut answer: Answer, record: &HostnameRecord, client: &Client, verdict: Verdict) -> Result<Answer, Failure> {
    let rules = &record.rules;
    let identity = answer.trace.as_ref().and_then(|trace| trace.links.first());
    if rules.needs_identity() && answer.trace.is_some() && identity.is_none() {
        answer.detail = Some("the rules look at its certificate, which cannot be read in one way only".into());
        return Ok(answer.refused(Refusal::MalformedCertificate));
    }
    let mut scratch = String::new();
    let path = match client.path.as_deref().map(|path| http1::judged_path(path, &mut scratch)) {
        Some(Err(rejected)) if rules.needs_request() => {
            answer.detail = Some(rejected.detail.into());
            answer = answer.refused(rejected.reason);
            answer.seen = Some(format!("the status {}", rejected.status));
            return Ok(answer);
        }
        judged => judged.and_then(Result::ok),
    };
    let facts = Facts { verdict, identity, source: client.source, method: client.method.as_deref(), path };
    let decision = rules.decide(&facts);
    if let Decision::Undecidable { rule_index } = decision {
        let mut missing = Vec::new();
        if rules.needs_source() && client.source.is_none() {
            missing.push("the client's address (--source)");
        }
        if rules.needs_request() && client.path.is_none() {
            missing.push("the request (--path, --method)");
        }
        let missing = if missing.is_empty() { "a fact that is not known".into() } else { missing.join(" and ") };
        let problem = format!("{}: rule {} looks at {missing}; give it", record.name, rule_index + 1);
        return Err(Failure::Input(vec![problem]));
    }
    answer.decision = Some(decision);
    if !decision.passes() {
        let asked = answer.trace.is_some();
        answer = answer.refused(Refusal::RuleDenied);
        answer.seen = Some(match (rules.needs_request(), asked) {
            (true, _) => "the status 403".into(),
            (false, true) => "the TLS alert access_denied".into(),
            // The handshake was over before the rules could speak.
            (false, false) => "a closed connection after the handshake, without an alert".into(),
        });
        return Ok(answer);
    }
    if record.mode == Mode::Http {
        let identity = answer.trace.as_ref().and_then(|trace| trace.links.first());
        match Sent::of(record, client, verdict, identity) {
            Ok(sent) => answer.sent = Some(sent),
            Err(rejected) => {
                answer.detail = Some(rejected.detail.into());
                answer = answer.refused(rejected.reason);
                answer.seen = Some(format!("the status {}", rejected.status));
            }
        }
    }
    Ok(answer)
}

/// What a client that is told this host sends: `None`: no name, since it is an address; `Some(None)`: it cannot be sent.
fn server_name(host: &str) -> Option<Option<String>> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() {
        return None;
    }
    // Clients turn what is beyond ASCII into A-labels, and cut the root's dot.
    let name = Name::parse_record(host).ok().filter(|name| !name.is_wildcard());
    Some(name.and_then(|name| normalise_sni(name.as_str().as_bytes(), &mut [0; 255]).map(str::to_owned)))
}

impl Answer {
    fn refused(mut self, reason: Refusal) -> Self {
        self.refusal = Some(reason);
        let alert = failure::alert_expected(reason);
        self.seen = Some(alert.map_or_else(|| "a closed connection".into(), |alert| format!("the TLS alert {alert}")));
        self
    }

    /// The rule that decided, in a sentence without its end.
    fn rule(&self) -> Option<String> {
        Some(match self.decision? {
            Decision::NoRules => "there are none: every accepted client passes".into(),
            Decision::Allowed { rule_index } => format!("rule {} was chosen and lets it in", rule_index + 1),
            Decision::Denied { rule_index } => format!("rule {} was chosen and denies it", rule_index + 1),
            Decision::NotAllowed { rule_index, selector } => {
                format!("rule {} was chosen, and its `allow` does not hold: {selector} does not match", rule_index + 1)
            }
            Decision::Undecidable { rule_index } => format!("rule {} looks at what is not known", rule_index + 1),
            Decision::NoneChosen => "none was chosen: no rule's selectors match".into(),
        })
    }

    /// What the origin learns of a client that is let in.
    fn origin_learns(&self) -> Option<String> {
        let (record, _) = self.record.as_ref()?;
        let verdict = self.verdict?;
        Some(match record.mode {
            Mode::Http if record.client_auth.mode == ClientAuthMode::Off => {
                "its address and hostname in forwarding headers; no client certificate is asked for".into()
            }
            Mode::Http if verdict == Verdict::Success => {
                format!(
                    "its address and hostname in forwarding headers, the configured identity headers, verify {verdict}"
                )
            }
            Mode::Http => format!("its address and hostname in forwarding headers, and verify {verdict}; no identity"),
            Mode::Tcp if record.origin.proxy_protocol == ProxyProtocol::Off => {
                "nothing of the client: proxy_protocol is off, and the bytes are forwarded as they come".into()
            }
            Mode::Tcp if record.origin.proxy_protocol == ProxyProtocol::V1 => {
                "a PROXY v1 header: the client's address".into()
            }
            Mode::Tcp => {
                let name = self.name.as_deref().unwrap_or("none");
                let common_name = self.trace.as_ref().filter(|_| verdict == Verdict::Success);
                let common_name = common_name.and_then(|trace| trace.links.first()?.common_names.first());
                let common_name = common_name.map(|name| format!(", common name {name}")).unwrap_or_default();
                let code = proxy_protocol::verify_code(verdict);
                format!(
                    "a PROXY v2 header: the client's address, authority {name}, verify {code} ({verdict}){common_name}"
                )
            }
        })
    }

    /// The answer for people: lines of a label and a text.
    pub fn lines(&self) -> Vec<(String, String)> {
        let mut lines = Vec::new();
        let mut line = |label: &str, text: String| lines.push((label.to_owned(), text));
        let name = self.name.as_deref().unwrap_or("(no server name)");
        match &self.record {
            Some((record, how)) => line("record", format!("{name} is served by {} ({how})", record.name)),
            None => line("record", format!("{name} is served by no record, and there is no default")),
        }
        if let Some((record, _)) = &self.record {
            let cas = record.client_auth.ca_set.as_ref().map_or(0, |set| set.cas.len());
            line(
                "client_auth",
                match record.client_auth.mode {
                    ClientAuthMode::Off => {
                        "off: no certificate is asked for, and one that is given is not looked at".into()
                    }
                    ClientAuthMode::Request => {
                        format!("request: a certificate of {cas} CAs is asked for, and judged by the rules")
                    }
                    ClientAuthMode::Require => format!("require: a certificate of {cas} CAs is needed"),
                },
            );
        }
        if let Some(trace) = &self.trace {
            for (depth, link) in trace.links.iter().enumerate() {
                line(&format!("depth {depth}"), describe(link));
            }
            match &trace.outcome {
                Ok(Found { anchor, path }) => {
                    line("anchor", describe(anchor));
                    line("valid until", trace::date(path.not_after_unix_s));
                }
                Err(Fault { reason, depth, what }) => {
                    let depth = depth.map_or_else(|| "the chain".to_owned(), |depth| format!("depth {depth}"));
                    line("fails", format!("{depth}: {reason}: {what}"));
                }
            }
        }
        if let Some(verdict) = self.verdict {
            line("verdict", verdict.to_string());
        }
        if let Some(rule) = self.rule() {
            line("rules", rule);
        }
        match self.refusal {
            Some(reason) => {
                line("answer", format!("refused: {reason}"));
                if let Some(detail) = &self.detail {
                    line("because", detail.clone());
                }
                line("it sees", self.seen.clone().unwrap_or_default());
            }
            None => {
                line("answer", "let in".into());
                if let Some((record, _)) = &self.record {
                    line("origin", format!("{} ({})", record.origin.name, addresses(record)));
                }
                if let Some(learns) = self.origin_learns() {
                    line("it learns", learns);
                }
                for (label, text) in self.sent.iter().flat_map(Sent::lines) {
                    line(label, text);
                }
            }
        }
        lines
    }

    /// The answer for programs.
    pub fn json(&self) -> Value {
        let trace = self.trace.as_ref().map(|trace| {
            let (anchor, valid_until, fault) = match &trace.outcome {
                Ok(found) => (Some(certificate(&found.anchor)), Some(trace::date(found.path.not_after_unix_s)), None),
                Err(fault) => (None, None, Some(fault)),
            };
            json!({
                "certificates": trace.links.iter().map(certificate).collect::<Vec<_>>(),
                "anchor": anchor,
                "valid_until": valid_until,
                "failed": fault.map(|fault| json!({
                    "reason": fault.reason.label(), "depth": fault.depth, "what": fault.what,
                })),
            })
        });
        let rule = |index: usize| index + 1;
        let (chosen, selector) = match self.decision {
            Some(Decision::Allowed { rule_index } | Decision::Denied { rule_index }) => (Some(rule(rule_index)), None),
            Some(Decision::NotAllowed { rule_index, selector }) => (Some(rule(rule_index)), Some(selector)),
            _ => (None, None),
        };
        let record = self.record.as_ref();
        let [identity_headers, origin_request, client_response] = match &self.sent {
            Some(sent) => sent.json().map(Some),
            None => [None, None, None],
        };
        json!({
            "let_in": self.refusal.is_none(),
            "refusal": self.refusal.map(Refusal::label),
            "detail": self.detail,
            "client_sees": self.seen,
            "name": self.name,
            "record": record.map(|(record, _)| record.name.as_str()),
            "found_as": record.map(|(_, how)| how),
            "client_auth": record.map(|(record, _)| match record.client_auth.mode {
                ClientAuthMode::Off => "off",
                ClientAuthMode::Request => "request",
                ClientAuthMode::Require => "require",
            }),
            "chain": trace,
            "verdict": self.verdict.map(|verdict| verdict.to_string()),
            "rule": chosen,
            "rule_selector": selector,
            "rules": self.rule(),
            "origin": record.filter(|_| self.refusal.is_none()).map(|(record, _)| record.origin.name.as_str()),
            "origin_learns": if self.refusal.is_none() { self.origin_learns() } else { None },
            "identity_headers": identity_headers,
            "origin_request": origin_request,
            "client_response": client_response,
        })
    }
}

fn addresses(record: &HostnameRecord) -> String {
    let addresses = record.origin.addresses.iter().map(|address| match address {
        OriginAddress::Tcp { host, port } => format!("{host}:{port}"),
        OriginAddress::Unix(path) => path.display().to_string(),
    });
    addresses.collect::<Vec<_>>().join(", ")
}

/// A certificate in one line.
fn describe(identity: &Identity) -> String {
    let until = trace::date(identity.not_after_unix_s);
    format!("{}, serial {}, issued by {}, valid until {until}", identity.subject, identity.serial, identity.issuer)
}

fn certificate(identity: &Identity) -> Value {
    json!({
        "subject": identity.subject,
        "issuer": identity.issuer,
        "serial": identity.serial,
        "not_before": trace::date(identity.not_before_unix_s),
        "not_after": trace::date(identity.not_after_unix_s),
    })
}
