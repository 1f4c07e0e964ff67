//! Why a chain leads to an anchor, or at which depth it does not: for people who ask, not for the data plane.
//!
//! The verdict is the verifier's own. What is found here beside it only says where to look: the certificates are followed
//! from the leaf by name and signature, and the reason is looked for along that way.

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::policy::{Identity, Refusal};
use crate::registry::CaSet;

use super::identity;
use super::scope::Path;
use super::verify::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX, Verifier, too_long};

/// What the purpose of a client's certificate is called (RFC 5280 section 4.2.1.12).
const CLIENT_AUTH: &str = "clientAuth";

/// A chain that was followed.
#[derive(Debug)]
pub struct Trace {
    /// The certificates on the way, leaf first, as far as they can be read.
    pub links: Vec<Identity>,
    pub outcome: Result<Found, Fault>,
}

/// Where the chain ends.
#[derive(Debug)]
pub struct Found {
    pub path: Path,
    /// The CA it leads to.
    pub anchor: Identity,
}

/// Why it does not.
#[derive(Debug)]
pub struct Fault {
    pub reason: Refusal,
    /// Which certificate is at fault, counted from the leaf, which is 0; `None` where that cannot be said of one.
    pub depth: Option<usize>,
    /// What is wrong, in a sentence without its end.
    pub what: String,
}

/// Verifies a chain as the data plane does, and says what became of it. `chain` is what the client sends, leaf first.
pub fn trace(verifier: &Verifier, cas: &CaSet, chain: &[CertificateDer<'_>], now_unix_s: i64) -> Trace {
    let Some((leaf, rest)) = chain.split_first() else {
        let what = "no certificate was given".to_owned();
        return Trace { links: Vec::new(), outcome: Err(Fault { reason: Refusal::NoCertificate, depth: None, what }) };
    };
    let verified = verifier.verify(leaf, rest, now_unix_s);
    // A chain that is too long is not followed either.
    let followed = if too_long(leaf, rest) { &chain[..1] } else { chain };
    let way = Way::follow(verifier, cas, followed);
    let links = way.steps.iter().map_while(|index| identity::parse(&chain[*index]).ok()).collect::<Vec<_>>();
    let outcome = match verified {
        Ok(path) => match verifier.anchor_index(&path).and_then(|index| identity::parse(&cas.cas[index].der).ok()) {
            Some(anchor) => Ok(Found { path, anchor }),
            None => Ok(Found { path, anchor: Identity::default() }),
        },
        Err(reason) => {
            let (depth, what) = way.fault(reason, &links, chain, verifier.depth_max(), cas, now_unix_s);
            Err(Fault { reason, depth, what })
        }
    };
    Trace { links, outcome }
}

/// The way from the leaf towards the anchors.
struct Way {
    /// Places in the chain.
    steps: Vec<usize>,
    end: End,
}

enum End {
    /// This CA of the hostname issued the last certificate.
    Anchor(usize),
    /// A certificate or CA has the issuer's name, and its key did not sign.
    OtherKey,
    /// Nobody has the issuer's name.
    Nobody,
    /// The last certificate cannot be read.
    Unreadable,
}

impl Way {
    fn follow(verifier: &Verifier, cas: &CaSet, chain: &[CertificateDer<'_>]) -> Self {
        let mut steps = vec![0];
        let mut current = 0;
        loop {
            let Ok((_, certificate)) = X509Certificate::from_der(&chain[current]) else {
                return Self { steps, end: End::Unreadable };
            };
            let issuer = certificate.issuer().as_raw();
            let (mut named, mut next) = (false, None);
            for (index, ca) in cas.cas.iter().enumerate() {
                match issued(verifier, &ca.der, issuer, &certificate) {
                    Some(true) => return Self { steps, end: End::Anchor(index) },
                    Some(false) => named = true,
                    None => {}
                }
            }
            for (index, sent) in chain.iter().enumerate().filter(|(index, _)| !steps.contains(index)) {
                match issued(verifier, sent, issuer, &certificate) {
                    Some(true) => next = next.or(Some(index)),
                    Some(false) => named = true,
                    None => {}
                }
            }
            match next {
                Some(index) => {
                    steps.push(index);
                    current = index;
                }
                None => return Self { steps, end: if named { End::OtherKey } else { End::Nobody } },
            }
        }
    }

    /// At which depth `reason` is found, and what to say about it.
    fn fault(
        &self,
        reason: Refusal,
        links: &[Identity],
        chain: &[CertificateDer<'_>],
        depth_max: usize,
        cas: &CaSet,
        now_unix_s: i64,
    ) -> (Option<usize>, String) {
        match reason {
            Refusal::ChainTooLong if chain.split_first().is_some_and(|(leaf, rest)| !too_long(leaf, rest)) => {
                let between = self.steps.len() - 1;
                let what = format!(
                    "{between} certificates stand between the client's and the CA; verify_depth allows {depth_max}"
                );
                (Some(between), what)
            }
            Refusal::ChainTooLong => {
                let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
                let what = format!(
                    "{} certificates of {bytes} bytes were sent; {CHAIN_CERTIFICATES_MAX} of {CHAIN_BYTES_MAX} bytes are \
                     the most",
                    chain.len()
                );
                (None, what)
            }
            Refusal::Expired | Refusal::NotYetValid => match outside(links, now_unix_s) {
                Some((depth, what)) => (Some(depth), what),
                None => (None, "a certificate of the chain is outside its dates".into()),
            },
            Refusal::CaExpired => {
                let ca = match self.end {
                    End::Anchor(index) => identity::parse(&cas.cas[index].der).ok(),
                    _ => None,
                };
                let what = ca.and_then(|ca| Some(format!("the CA {} {}", ca.subject, dates(&ca, now_unix_s)?)));
                (Some(self.steps.len()), what.unwrap_or_else(|| "the CA is outside its own dates".into()))
            }
            Refusal::UnknownCa => {
                let depth = self.steps.len() - 1;
                let issuer = links.get(depth).map_or("", |last| last.issuer.as_str());
                let what = match self.end {
                    End::Nobody => format!(
                        "its issuer {issuer} is no CA of this hostname, and no certificate of that name was sent"
                    ),
                    End::OtherKey => format!(
                        "it was not signed by the key of {issuer}: a certificate of that name is known, and has another key"
                    ),
                    _ => {
                        "the way to the CA could not be followed: an algorithm that is not supported, or too long a way"
                            .into()
                    }
                };
                (Some(depth), what)
            }
            Refusal::WrongUsage => self.usage(links, chain),
            _ => {
                let broken =
                    chain.iter().position(|der| identity::parse(der).is_err() || EndEntityCert::try_from(der).is_err());
                let what = broken.and_then(|index| identity::parse(&chain[index]).err());
                let what = what.map_or_else(
                    || "a certificate cannot be read, or has a critical extension that is not understood".to_owned(),
                    |malformed| malformed.to_string(),
                );
                (broken, what)
            }
        }
    }

    /// Which certificate is used for what it is not meant for.
    fn usage(&self, links: &[Identity], chain: &[CertificateDer<'_>]) -> (Option<usize>, String) {
        for (depth, (link, index)) in links.iter().zip(&self.steps).enumerate() {
            let purposes = &link.extended_key_usage;
            if !purposes.is_empty() && !purposes.iter().any(|purpose| purpose == CLIENT_AUTH) {
                return (Some(depth), format!("its extended key usage is {}, not {CLIENT_AUTH}", purposes.join(", ")));
            }
            let Ok((_, certificate)) = X509Certificate::from_der(&chain[*index]) else { continue };
            let constraints = certificate.basic_constraints().ok().flatten().map(|extension| extension.value);
            let is_ca = constraints.is_some_and(|constraints| constraints.ca);
            match (depth, is_ca) {
                (0, true) => return (Some(0), "it is the certificate of a CA, not of a client".into()),
                (1.., false) => return (Some(depth), "it issued the one below and is no CA".into()),
                _ => {}
            }
            // RFC 5280 section 4.2.1.9: how many intermediates may follow below; the leaf does not count.
            let most = constraints.and_then(|constraints| constraints.path_len_constraint);
            if let Some(most) = most.filter(|most| depth > 0 && depth - 1 > *most as usize) {
                return (Some(depth), format!("it allows {most} CAs below it, and there are {}", depth - 1));
            }
        }
        (None, "a name constraint or path length of one of its issuers does not allow it".into())
    }
}

/// Whether `by` issued `certificate`, whose issuer is called `issuer`: `None` if it has another name, else whether its key
/// signed.
fn issued(verifier: &Verifier, by: &[u8], issuer: &[u8], certificate: &X509Certificate<'_>) -> Option<bool> {
    let (_, parsed) = X509Certificate::from_der(by).ok()?;
    if parsed.subject().as_raw() != issuer {
        return None;
    }
    let by = CertificateDer::from(by);
    let Ok(key) = EndEntityCert::try_from(&by) else { return Some(false) };
    let (message, signature) = (certificate.tbs_certificate.as_ref(), &certificate.signature_value.data);
    Some(
        verifier
            .signature_algorithms()
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok()),
    )
}

/// The first certificate that is outside its dates.
fn outside(links: &[Identity], now_unix_s: i64) -> Option<(usize, String)> {
    links.iter().enumerate().find_map(|(depth, link)| Some((depth, format!("it {}", dates(link, now_unix_s)?))))
}

/// How a certificate stands to its dates; `None`: within them.
fn dates(identity: &Identity, now_unix_s: i64) -> Option<String> {
    if now_unix_s > identity.not_after_unix_s {
        return Some(format!("expired at {}", date(identity.not_after_unix_s)));
    }
    (now_unix_s < identity.not_before_unix_s)
        .then(|| format!("is not valid before {}", date(identity.not_before_unix_s)))
}

/// A time in RFC 3339, or what it is if it has no such form.
pub fn date(unix_s: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_s).ok();
    let text = time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_else(|| format!("{unix_s} s since 1970"))
}
