//! The rules a provider writes over a client's identity and its request, and what they decide.
//!
//! A rule has two halves. The selectors outside `allow` (`path`, `method`, `source`, `verify`) choose it: the first rule
//! whose selectors all match is the only one that counts. Those inside `allow` then judge the client: each selector that
//! is present must hold, and a list holds if one of its entries matches. So a rule that is chosen and does not hold denies,
//! a later rule never rescues the client, and if no rule is chosen the client is denied. A hostname without rules lets in
//! every client the handshake accepted.
//!
//! Rules fail closed:
//!  - Selectors inside `allow` look at a certificate only at verdict SUCCESS: what an unverified one says is hearsay.
//!  - A rule that looks at a fact nobody knows (no source address, no request yet) is undecidable, unless another of its
//!    selectors already rules it out. An undecidable rule denies at once, whether it would allow or deny: skipping a
//!    `deny = true` rule because the source is unknown would let in whom it was written against, and skipping an allow
//!    rule would leave the decision to one that was written for others.
//!
//! What `*` means, and how each selector compares:
//!
//! | selector | `*` stands for | compared |
//! |---|---|---|
//! | `path` | any run of characters, `/` included | exactly, in the one form of [`super::path`], without query |
//! | `method` | (not allowed) | without regard to case, see [`RuleSpec::method`] |
//! | `source` | (not allowed) | address in network; IPv4-mapped IPv6 counts as IPv4 |
//! | `common_name`, `organization`, `organizational_unit`, `issuer_common_name` | any run of characters | exactly |
//! | `san_dns` | a run within one label | without regard to case |
//! | `san_uri` | a run within one segment; a closing `/**`: one or more further path segments | exactly |
//! | `san_email` | a run without `@` | exactly |
//! | `serial`, `fingerprint_sha256` | (not allowed) | hexadecimal: colons, case and (serial) leading zeros ignored |
//!
//! A run may be empty, except that a star that is a whole label, segment or side of the `@` stands for at least one
//! character. Patterns cover the whole value, always. A URI with a dot segment matches no pattern with a star, and a
//! certificate with more than 256 values for one selector matches none of its entries.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

pub use super::allow::AllowSpec;
use super::allow::{Allow, bounded};
use super::pattern::{Kind, Patterns};
use super::{Identity, Refusal, Verdict, path};

/// The most rules a hostname may have.
///
/// Judging looks at the choosing selectors of every rule in turn; 256 of them with a path pattern each cost 5 to
/// 12 us (`benches/pure.rs`, test profile, busy machine), and nobody reads a longer list.
const RULES_MAX: usize = 256;

/// What a rule may look at.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What verification said.
    pub verdict: Verdict,
    /// The certificate's identity; looked at only if the verdict is SUCCESS.
    pub identity: Option<&'a Identity>,
    /// The client's address; `None` if unknown.
    pub source: Option<IpAddr>,
    /// The request's method; `None` where there is no request.
    pub method: Option<&'a str>,
    /// The request's path without query and parameters, in the form that is forwarded; `None` where there is no request.
    pub path: Option<&'a str>,
}

/// One rule as it is written. Lists that are empty are selectors that are absent.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RuleSpec {
    /// Chooses by the path of the request.
    pub path: Option<String>,
    /// Chooses by the method of the request.
    ///
    /// Methods are case-sensitive (RFC 9110 section 9.1), and not every origin knows: compared exactly, `post` would
    /// slip past a rule on `POST` at an origin that treats both alike. At a strict origin `post` is refused anyway.
    pub method: Vec<String>,
    /// Chooses by the client's address.
    pub source: Vec<IpNet>,
    /// Chooses by the verdict on the client's certificate.
    pub verify: Option<VerifySelector>,
    /// Judges the client once the rule is chosen.
    pub allow: AllowSpec,
    /// Denies once the rule is chosen.
    pub deny: bool,
}

/// The verdicts a rule can choose by; a failure is chosen whatever its reason.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum VerifySelector {
    /// A certificate this hostname trusts.
    Success,
    /// No certificate.
    None,
    /// A certificate this hostname does not trust.
    Failed,
}

impl VerifySelector {
    fn matches(self, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Success => self == Self::Success,
            Verdict::None => self == Self::None,
            Verdict::Failed(_) => self == Self::Failed,
        }
    }
}

/// Why a list of rules cannot be compiled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleError {
    /// The rule at fault, counted from 0.
    pub rule_index: usize,
    /// What is wrong and what to write instead, naming the selector.
    pub message: String,
}

impl std::fmt::Display for RuleError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rule {}: {}", self.rule_index + 1, self.message)
    }
}

impl std::error::Error for RuleError {}

/// What the rules say and which of them said it; `judge` is the short form. Indices count from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The hostname has no rules: every accepted client passes.
    NoRules,
    /// This rule was chosen and lets the client in.
    Allowed { rule_index: usize },
    /// This rule was chosen and says `deny = true`.
    Denied { rule_index: usize },
    /// This rule was chosen and the selector of its `allow` named here does not hold.
    NotAllowed { rule_index: usize, selector: &'static str },
    /// This rule looks at a fact that is not known.
    Undecidable { rule_index: usize },
    /// No rule was chosen.
    NoneChosen,
}

impl Decision {
    /// Whether the client passes.
    pub fn passes(self) -> bool {
        matches!(self, Self::NoRules | Self::Allowed { .. })
    }
}

/// The compiled rules of one hostname.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    rules: Box<[Rule]>,
}

impl Rules {
    /// Compiles the rules of one hostname, in the order in which they are tried.
    ///
    /// # Errors
    ///
    /// The first rule that is malformed, contradicts itself, exceeds a bound or can never be reached.
    pub fn compile(specs: Vec<RuleSpec>) -> Result<Self, RuleError> {
        if specs.len() > RULES_MAX {
            let message = format!("the hostname has {} rules; at most {RULES_MAX} are allowed", specs.len());
            return Err(RuleError { rule_index: RULES_MAX, message });
        }
        let mut rules: Vec<Rule> = Vec::with_capacity(specs.len());
        for (rule_index, spec) in specs.into_iter().enumerate() {
            let error = |message| RuleError { rule_index, message };
            // Two rules that differ only inside `allow` look like alternatives, and the second would be dead.
            if let Some(before) = rules.iter().position(Rule::chooses_everything) {
                return Err(error(format!(
                    "can never be reached: rule {} has no selector outside `allow`, so it decides for every client; \
                     write alternatives as one list",
                    before + 1
                )));
            }
            rules.push(Rule::compile(&spec).map_err(error)?);
        }
        Ok(Self { rules: rules.into() })
    }

    /// Whether the client passes.
    ///
    /// # Errors
    ///
    /// [`Refusal::RuleDenied`] if it does not; [`Rules::decide`] tells which rule was at work.
    pub fn judge(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        if self.decide(facts).passes() { Ok(()) } else { Err(Refusal::RuleDenied) }
    }

    /// Decides, and names the rule that did.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision {
        if self.rules.is_empty() {
            return Decision::NoRules;
        }
        for (rule_index, rule) in self.rules.iter().enumerate() {
            match rule.chooses(facts) {
                Some(false) => {}
                None => return Decision::Undecidable { rule_index },
                Some(true) if rule.deny => return Decision::Denied { rule_index },
                Some(true) => {
                    return match rule.allow.failing(facts) {
                        None => Decision::Allowed { rule_index },
                        Some(selector) => Decision::NotAllowed { rule_index, selector },
                    };
                }
            }
        }
        Decision::NoneChosen
    }

    /// Why the rules do not let the client pass, in the words of the configuration file, rules counted from 1; `None` if
    /// they do.
    pub fn explain(&self, facts: &Facts<'_>) -> Option<String> {
        let verify = facts.verdict;
        Some(match self.decide(facts) {
            Decision::NoRules | Decision::Allowed { .. } => return None,
            Decision::Denied { rule_index } => format!("{} says deny = true", self.introduce(rule_index)),
            Decision::NotAllowed { rule_index, selector } => {
                let unverified = match verify {
                    Verdict::Success => String::new(),
                    _ => format!(": only a verified certificate fulfils it, and verify is {verify}"),
                };
                format!("{} has allow.{selector}, which does not hold{unverified}", self.introduce(rule_index))
            }
            Decision::Undecidable { rule_index } => {
                format!("rule {} looks at something that is not known of this client", rule_index + 1)
            }
            Decision::NoneChosen => format!("no rule is for this client (verify is {verify})"),
        })
    }

    /// A rule by its number and the selectors that chose it.
    fn introduce(&self, rule_index: usize) -> String {
        let selectors = self.rules.get(rule_index).map(Rule::selectors).unwrap_or_default();
        let number = rule_index + 1;
        if selectors.is_empty() {
            format!("rule {number}")
        } else {
            format!("rule {number} ({})", selectors.join(", "))
        }
    }

    /// Whether the hostname has no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Whether a rule looks at the certificate's identity.
    pub fn needs_identity(&self) -> bool {
        self.rules.iter().any(|rule| !rule.allow.is_empty())
    }

    /// Whether a rule looks at the client's address.
    pub fn needs_source(&self) -> bool {
        self.rules.iter().any(|rule| !rule.source.is_empty())
    }

    /// Whether a rule looks at the request (`path`, `method`): such rules cannot be judged before there is one.
    pub fn needs_request(&self) -> bool {
        self.rules.iter().any(|rule| rule.path.is_some() || !rule.method.is_empty())
    }
}

/// One compiled rule.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    path: Option<Patterns>,
    method: Box<[Box<str>]>,
    source: Box<[IpNet]>,
    verify: Option<VerifySelector>,
    allow: Allow,
    deny: bool,
}

impl Rule {
    fn compile(spec: &RuleSpec) -> Result<Self, String> {
        bounded("method", spec.method.len())?;
        bounded("source", spec.source.len())?;
        for method in &spec.method {
            // RFC 9110 section 9.1: a method is a token. A star is a token character, and no one means it as one.
            if method.is_empty() || !method.bytes().all(is_token) || method.contains('*') {
                return Err(format!("method: \"{method}\" is no method; write \"GET\", without \"*\""));
            }
        }
        let path = match &spec.path {
            None => None,
            Some(path) => {
                let compiled =
                    path::pattern(path).and_then(|form| Patterns::compile(Kind::Path, &[form.into_owned()], 1));
                Some(compiled.map_err(|why| format!("path: {why}"))?)
            }
        };
        let allow = Allow::compile(&spec.allow)?;
        if spec.deny && !allow.is_empty() {
            return Err("has both `allow` and `deny = true`; a rule does one or the other".into());
        }
        if !allow.is_empty() && matches!(spec.verify, Some(VerifySelector::None | VerifySelector::Failed)) {
            return Err("`allow` holds for verified certificates only, and `verify` chooses clients without one; \
                        write `allow = {}` to let them in, or `deny = true`"
                .into());
        }
        Ok(Self {
            path,
            method: spec.method.iter().map(|method| method.as_str().into()).collect(),
            source: spec.source.iter().copied().map(canonical_net).collect(),
            verify: spec.verify,
            allow,
            deny: spec.deny,
        })
    }

    fn chooses_everything(&self) -> bool {
        self.path.is_none() && self.method.is_empty() && self.source.is_empty() && self.verify.is_none()
    }

    /// The selectors outside `allow`, by name.
    fn selectors(&self) -> Vec<&'static str> {
        let verify = self.verify.map(|selector| match selector {
            VerifySelector::Success => "verify = \"SUCCESS\"",
            VerifySelector::None => "verify = \"NONE\"",
            VerifySelector::Failed => "verify = \"FAILED\"",
        });
        let path = self.path.as_ref().map(|_| "path");
        let method = (!self.method.is_empty()).then_some("method");
        let source = (!self.source.is_empty()).then_some("source");
        [path, method, source, verify].into_iter().flatten().collect()
    }

    /// Whether the selectors outside `allow` all match; `None` if that hangs on a fact that is not known.
    fn chooses(&self, facts: &Facts<'_>) -> Option<bool> {
        let verify = self.verify.is_none_or(|selector| selector.matches(facts.verdict));
        let source = if self.source.is_empty() {
            Some(true)
        } else {
            facts.source.map(|source| {
                let source = source.to_canonical();
                self.source.iter().any(|net| net.contains(&source))
            })
        };
        let method = if self.method.is_empty() {
            Some(true)
        } else {
            facts.method.map(|method| self.method.iter().any(|name| name.eq_ignore_ascii_case(method)))
        };
        let path = match &self.path {
            None => Some(true),
            Some(patterns) => facts.path.map(|path| patterns.matches(path)),
        };
        let selectors = [Some(verify), source, method, path];
        if selectors.contains(&Some(false)) {
            Some(false)
        } else if selectors.contains(&None) {
            None
        } else {
            Some(true)
        }
    }
}

/// A token character (RFC 9110 section 5.6.2).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A network of IPv4-mapped addresses as the IPv4 network it stands for: addresses are compared in that form. Any other
/// IPv6 network, `::/0` among them, is about clients that come over IPv6.
fn canonical_net(net: IpNet) -> IpNet {
    /// The bits before the IPv4 address in `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
    const MAPPED_PREFIX_BITS: u8 = 96;
    if let IpNet::V6(v6) = net
        && let Some(length) = v6.prefix_len().checked_sub(MAPPED_PREFIX_BITS)
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = Ipv4Net::new(address, length)
    {
        return IpNet::V4(v4);
    }
    net
}

#[cfg(test)]
mod tests;
