//! The inside of a rule's `allow`: what a certificate must say.
//!
//! For `rules`, which tells when it counts. Every selector that is present must hold; a selector holds if one of its
//! entries matches one of the certificate's values.

use super::pattern::{Kind, Patterns};
use super::rules::Facts;
use super::{Identity, Verdict};

/// The most entries one list may have.
///
/// Entries without a star are found by binary search, so the bound is there for memory: 4096 fingerprints are 128 KiB on
/// the heap of the registry, once per hostname.
pub(super) const ENTRIES_MAX: usize = 4096;

/// The most entries with a star one list may have.
///
/// Each is tried against each value of the certificate. Together with `VALUES_MAX` of `pattern` this bounds the judgement
/// a tenant can construct at its neighbours' cost on the core; `benches/pure.rs` measures that worst case.
const WILDCARDS_MAX: usize = 64;

/// What a certificate must say to be let in. Lists that are empty are selectors that are absent; if all are, the rule
/// lets in whomever it chooses.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct AllowSpec {
    /// Against the commonName values of the subject.
    pub common_name: Vec<String>,
    /// Against the organizationName values of the subject.
    pub organization: Vec<String>,
    /// Against the organizationalUnitName values of the subject.
    pub organizational_unit: Vec<String>,
    /// Against the dNSName values of subjectAltName.
    pub san_dns: Vec<String>,
    /// Against the uniformResourceIdentifier values of subjectAltName.
    pub san_uri: Vec<String>,
    /// Against the rfc822Name values of subjectAltName.
    pub san_email: Vec<String>,
    /// Against the commonName values of the issuer.
    pub issuer_common_name: Vec<String>,
    /// Against the serial number, hexadecimal. Serials are unique per CA only: with several CAs, name the issuer too.
    pub serial: Vec<String>,
    /// Against the SHA-256 of the certificate, hexadecimal.
    pub fingerprint_sha256: Vec<String>,
}

/// The compiled inside of `allow`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Allow {
    /// Only those that are present.
    texts: Box<[(Text, Patterns)]>,
    /// Sorted; hexadecimal as [`significant_digits`] leaves it.
    serial: Box<[Box<str>]>,
    /// Sorted.
    fingerprint_sha256: Box<[[u8; 32]]>,
}

/// The selectors that compare text by pattern.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Text {
    CommonName,
    Organization,
    OrganizationalUnit,
    SanDns,
    SanUri,
    SanEmail,
    IssuerCommonName,
}

impl Text {
    fn name(self) -> &'static str {
        match self {
            Self::CommonName => "common_name",
            Self::Organization => "organization",
            Self::OrganizationalUnit => "organizational_unit",
            Self::SanDns => "san_dns",
            Self::SanUri => "san_uri",
            Self::SanEmail => "san_email",
            Self::IssuerCommonName => "issuer_common_name",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::CommonName | Self::Organization | Self::OrganizationalUnit | Self::IssuerCommonName => Kind::Text,
            Self::SanDns => Kind::Dns,
            Self::SanUri => Kind::Uri,
            Self::SanEmail => Kind::Email,
        }
    }

    fn values(self, identity: &Identity) -> &[String] {
        match self {
            Self::CommonName => &identity.common_names,
            Self::Organization => &identity.organizations,
            Self::OrganizationalUnit => &identity.organizational_units,
            Self::SanDns => &identity.san_dns,
            Self::SanUri => &identity.san_uri,
            Self::SanEmail => &identity.san_email,
            Self::IssuerCommonName => &identity.issuer_common_names,
        }
    }
}

impl Allow {
    /// Compiles the selectors of one rule.
    ///
    /// # Errors
    ///
    /// An entry is not of its selector's kind, or a bound is exceeded; the text names the selector.
    pub(super) fn compile(spec: &AllowSpec) -> Result<Self, String> {
        let written = [
            (Text::CommonName, &spec.common_name),
            (Text::Organization, &spec.organization),
            (Text::OrganizationalUnit, &spec.organizational_unit),
            (Text::SanDns, &spec.san_dns),
            (Text::SanUri, &spec.san_uri),
            (Text::SanEmail, &spec.san_email),
            (Text::IssuerCommonName, &spec.issuer_common_name),
        ];
        let mut texts = Vec::new();
        for (selector, entries) in written {
            let name = selector.name();
            bounded(name, entries.len())?;
            let patterns = Patterns::compile(selector.kind(), entries, WILDCARDS_MAX)
                .map_err(|why| format!("allow.{name}: {why}"))?;
            if !patterns.is_empty() {
                texts.push((selector, patterns));
            }
        }

        bounded("serial", spec.serial.len())?;
        let mut serial = Vec::with_capacity(spec.serial.len());
        for text in &spec.serial {
            let digits = hexadecimal(text).filter(|digits| !digits.is_empty()).ok_or_else(|| {
                format!("allow.serial: \"{text}\" is no serial number; write it in hexadecimal, without \"*\"")
            })?;
            serial.push(significant_digits(&digits).into());
        }
        serial.sort_unstable();

        bounded("fingerprint_sha256", spec.fingerprint_sha256.len())?;
        let mut fingerprint_sha256 = Vec::with_capacity(spec.fingerprint_sha256.len());
        for text in &spec.fingerprint_sha256 {
            fingerprint_sha256.push(hexadecimal(text).as_deref().and_then(parse_digest).ok_or_else(|| {
                format!("allow.fingerprint_sha256: \"{text}\" is no SHA-256; write its 64 hexadecimal digits")
            })?);
        }
        fingerprint_sha256.sort_unstable();

        Ok(Self { texts: texts.into(), serial: serial.into(), fingerprint_sha256: fingerprint_sha256.into() })
    }

    /// Whether no selector is present.
    pub(super) fn is_empty(&self) -> bool {
        self.texts.is_empty() && self.serial.is_empty() && self.fingerprint_sha256.is_empty()
    }

    /// The first selector that does not hold; `None` if all do.
    pub(super) fn failing(&self, facts: &Facts<'_>) -> Option<&'static str> {
        // What an unverified certificate says proves nothing, so no selector holds.
        let identity = facts.identity.filter(|_| facts.verdict == Verdict::Success);
        let holds = |test: &dyn Fn(&Identity) -> bool| identity.is_some_and(test);
        if !self.fingerprint_sha256.is_empty()
            && !holds(&|id| self.fingerprint_sha256.binary_search(&id.fingerprint_sha256).is_ok())
        {
            return Some("fingerprint_sha256");
        }
        if !self.serial.is_empty()
            && !holds(&|id| {
                let serial = significant_digits(&id.serial);
                self.serial.binary_search_by(|entry| (**entry).cmp(serial)).is_ok()
            })
        {
            return Some("serial");
        }
        self.texts
            .iter()
            .find(|(selector, patterns)| !holds(&|id| patterns.match_any(selector.values(id))))
            .map(|(selector, _)| selector.name())
    }
}

/// Refuses a list with more than [`ENTRIES_MAX`] entries.
pub(super) fn bounded(name: &str, entries: usize) -> Result<(), String> {
    if entries > ENTRIES_MAX {
        return Err(format!("{name}: {entries} entries; at most {ENTRIES_MAX} are allowed"));
    }
    Ok(())
}

/// The digits of a hexadecimal text in lower case, without the colons; `None` if anything else is in it.
fn hexadecimal(text: &str) -> Option<String> {
    text.chars().filter(|&c| c != ':').map(|c| c.is_ascii_hexdigit().then(|| c.to_ascii_lowercase())).collect()
}

/// The digits without leading zeros: `0a` and `a` are one serial number.
fn significant_digits(digits: &str) -> &str {
    digits.trim_start_matches('0')
}

fn parse_digest(digits: &str) -> Option<[u8; 32]> {
    if digits.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}
