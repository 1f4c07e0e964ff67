//! The fields that tell an origin who the client is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::escape::{push_distinguished_name, push_hex, push_name};
use super::session::SessionFacts;
use crate::policy::{Identity, Verdict};
use crate::registry::ClientAuthMode;

/// The longest value that is sent; a field with a longer one is left out, never cut: half a name is another client's.
///
/// A chain has at most 16 KiB, in base64 22 KiB; a certificate of that size full of names that have to be escaped would
/// come to three times that in each set. Origins take heads of 8 to 64 KiB.
const VALUE_BYTES_MAX: usize = 24 * 1024;

/// Appends every identity field of the session (DECISIONS 22): `X-Client-Cert-Verify` wherever clients are asked, the
/// sets only for a certificate that was accepted.
pub(super) fn push_fields(out: &mut String, facts: &SessionFacts<'_>) {
    if facts.mode == ClientAuthMode::Off {
        return;
    }
    push_field(out, "X-Client-Cert-Verify", |value| value.push_str(&facts.verdict.to_string()));
    if facts.verdict != Verdict::Success {
        return;
    }
    if let [leaf, issuers @ ..] = facts.chain {
        if facts.sets.client_cert {
            push_field(out, "Client-Cert", |value| push_byte_sequence(value, leaf));
            if !issuers.is_empty() {
                push_field(out, "Client-Cert-Chain", |value| push_chain(value, issuers));
            }
        }
        if facts.sets.cf {
            push_field(out, "Cf-Client-Cert-Der-Base64", |value| STANDARD.encode_string(leaf, value));
        }
    }
    if let Some(identity) = facts.identity {
        if facts.sets.x_client_cert {
            push_x_client_cert(out, identity);
        }
        if facts.sets.xfcc {
            push_field(out, "X-Forwarded-Client-Cert", |value| push_xfcc(value, identity));
        }
        if facts.sets.cf {
            push_field(out, "Cf-Client-Cert-Sha256", |value| push_hex(value, &identity.fingerprint_sha256));
        }
    }
}

/// Appends a field unless its value is empty or too long.
fn push_field(out: &mut String, name: &str, push_value: impl FnOnce(&mut String)) {
    let before = out.len();
    out.push_str(name);
    out.push_str(": ");
    let start = out.len();
    push_value(out);
    if out.len() == start || out.len() - start > VALUE_BYTES_MAX {
        out.truncate(before);
    } else {
        out.push_str("\r\n");
    }
}

/// A byte sequence (RFC 8941 section 3.3.5), as RFC 9440 section 2.1 wants a certificate.
fn push_byte_sequence(out: &mut String, bytes: &[u8]) {
    out.push(':');
    STANDARD.encode_string(bytes, out);
    out.push(':');
}

/// The rest of the chain in the order of the handshake (RFC 9440 section 2.3).
fn push_chain(out: &mut String, issuers: &[CertificateDer<'_>]) {
    for (index, issuer) in issuers.iter().enumerate() {
        if index > 0 {
            out.push_str(", ");
        }
        push_byte_sequence(out, issuer);
    }
}

fn push_x_client_cert(out: &mut String, identity: &Identity) {
    push_field(out, "X-Client-Cert-Subject", |value| push_distinguished_name(value, &identity.subject));
    push_field(out, "X-Client-Cert-Issuer", |value| push_distinguished_name(value, &identity.issuer));
    push_field(out, "X-Client-Cert-Serial", |value| value.push_str(&identity.serial));
    push_field(out, "X-Client-Cert-Fingerprint", |value| push_hex(value, &identity.fingerprint_sha256));
    push_field(out, "X-Client-Cert-San", |value| push_alternative_names(value, identity));
    push_field(out, "X-Client-Cert-Not-After", |value| {
        let time = OffsetDateTime::from_unix_timestamp(identity.not_after_unix_s).ok();
        // A year past 9999 has no form in RFC 3339; the field is left out.
        value.push_str(&time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default());
    });
}

/// `DNS:...,URI:...,email:...,IP:...`, each with the name of its type as OpenSSL prints it.
fn push_alternative_names(out: &mut String, identity: &Identity) {
    let addresses: Vec<String> = identity.san_ip.iter().map(ToString::to_string).collect();
    let lists = [
        ("DNS:", &identity.san_dns),
        ("URI:", &identity.san_uri),
        ("email:", &identity.san_email),
        ("IP:", &addresses),
    ];
    let names = lists.into_iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, name)));
    for (index, (kind, name)) in names.enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(kind);
        push_name(out, name);
    }
}

/// One element as Envoy writes it, of those keys that tell who the client is.
///
/// Envoy quotes a value with `,` `;` or `=` in it and escapes a quote with a backslash, which readers undo differently; no
/// value of ours has a quote or a backslash in it (see `escape`).
fn push_xfcc(out: &mut String, identity: &Identity) {
    out.push_str("Hash=");
    push_hex(out, &identity.fingerprint_sha256);
    out.push_str(";Subject=\"");
    push_distinguished_name(out, &identity.subject);
    out.push('"');
    for (key, names) in [(";URI=", &identity.san_uri), (";DNS=", &identity.san_dns)] {
        for name in names {
            let quote = if name.contains('=') { "\"" } else { "" };
            out.push_str(key);
            out.push_str(quote);
            push_name(out, name);
            out.push_str(quote);
        }
    }
}
