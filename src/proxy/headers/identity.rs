//! The fields that tell an origin who the client is.
//!
//! Each set is a function of what is known of the client; `docs/identity-headers.md` describes them for those who read
//! them. A verdict is told wherever clients are asked, an identity only for a certificate that was accepted (DECISIONS 22).
//! A certificate that is too long for its field is left out whole and told of in another one: half of one is nobody's, and
//! an origin that finds none must not take the client for one without.

mod cf;
mod ingress;
mod pem;
#[cfg(test)]
mod tests;
mod x_client_cert;
mod xfcc;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;

use super::session::SessionFacts;
use crate::policy::Verdict;
use crate::registry::ClientAuthMode;

/// The longest value with one certificate in it, and of any other text, as it is sent.
///
/// Cloudflare sends leaves up to this. One of 10 KiB has 7.5 KiB of DER; an RSA-4096 one with a dozen names has 2. Origins
/// take heads of 8 (nginx) to 64 KiB.
const VALUE_BYTES_MAX: usize = 10 * 1024;

/// The longest value with the rest of a chain in it, as Cloudflare has it too. Three intermediates of RSA-4096 have 8 KiB.
const CHAIN_VALUE_BYTES_MAX: usize = 16 * 1024;

/// Appends every identity field of the session.
pub(super) fn push_fields(out: &mut String, facts: &SessionFacts<'_>) {
    if facts.mode == ClientAuthMode::Off {
        return;
    }
    let (sets, verdict) = (facts.sets, facts.verdict);
    push_field(out, "X-Client-Cert-Verify", VALUE_BYTES_MAX, |value| value.push_str(&verdict.to_string()));
    if sets.cf {
        cf::push_verdict(out, verdict);
    }
    if sets.ingress {
        ingress::push_verdict(out, verdict);
    }
    if verdict != Verdict::Success {
        return;
    }
    if sets.client_cert
        && let [leaf, issuers @ ..] = facts.chain
    {
        push_client_cert(out, leaf, issuers);
    }
    let leaf = facts.chain.first();
    let Some(identity) = facts.identity else { return };
    if sets.x_client_cert {
        x_client_cert::push(out, identity);
    }
    if sets.xfcc {
        xfcc::push(out, identity, facts.chain);
    }
    if sets.cf {
        cf::push(out, identity, leaf);
    }
    if sets.ingress {
        ingress::push(out, identity, leaf);
    }
}

/// The identity fields of a session, names and values: for people who ask what an origin would be told.
pub fn identity_fields(facts: &SessionFacts<'_>) -> Vec<(String, String)> {
    let mut lines = String::new();
    push_fields(&mut lines, facts);
    let fields = lines.lines().filter_map(|line| line.split_once(": "));
    fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Appends a field, unless its value is empty or longer than `most`. Whether it was too long.
fn push_field(out: &mut String, name: &str, most: usize, push_value: impl FnOnce(&mut String)) -> bool {
    let before = out.len();
    out.push_str(name);
    out.push_str(": ");
    let start = out.len();
    push_value(out);
    let bytes = out.len() - start;
    if bytes == 0 || bytes > most {
        out.truncate(before);
    } else {
        out.push_str("\r\n");
    }
    bytes > most
}

/// `Client-Cert` and `Client-Cert-Chain` (RFC 9440). In the place of one that is too long stands a field of the same
/// structure, with the SHA-256 of each certificate.
fn push_client_cert(out: &mut String, leaf: &CertificateDer<'_>, issuers: &[CertificateDer<'_>]) {
    let fingerprint = |der: &CertificateDer<'_>| digest(&SHA256, der);
    if push_field(out, "Client-Cert", VALUE_BYTES_MAX, |value| push_byte_sequence(value, leaf)) {
        push_field(out, "Client-Cert-Too-Large", VALUE_BYTES_MAX, |value| {
            push_byte_sequence(value, fingerprint(leaf).as_ref());
        });
    }
    // The rest of the chain in the order of the handshake (RFC 9440 section 2.3).
    let push_list = |value: &mut String, push_one: &dyn Fn(&mut String, &CertificateDer<'_>)| {
        for (index, issuer) in issuers.iter().enumerate() {
            if index > 0 {
                value.push_str(", ");
            }
            push_one(value, issuer);
        }
    };
    if push_field(out, "Client-Cert-Chain", CHAIN_VALUE_BYTES_MAX, |value| {
        push_list(value, &|value, issuer| push_byte_sequence(value, issuer));
    }) {
        push_field(out, "Client-Cert-Chain-Too-Large", CHAIN_VALUE_BYTES_MAX, |value| {
            push_list(value, &|value, issuer| push_byte_sequence(value, fingerprint(issuer).as_ref()));
        });
    }
}

/// A byte sequence (RFC 8941 section 3.3.5), as RFC 9440 section 2.1 wants a certificate.
fn push_byte_sequence(out: &mut String, bytes: &[u8]) {
    out.push(':');
    STANDARD.encode_string(bytes, out);
    out.push(':');
}
