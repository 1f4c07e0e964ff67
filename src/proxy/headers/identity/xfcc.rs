//! The set `xfcc`: `X-Forwarded-Client-Cert`, one element as Envoy writes it.
//!
//! Keys in Envoy's order: `Hash`, `Cert`, `Chain` (where the client sent more than its own certificate), `Subject`, each
//! `URI`, each `DNS`. `By` is left out: it would name a URI in our own server certificate, and those have none.
//!
//! Envoy puts a value that has `,` `;` or `=` into quotes and a backslash before a quote in it, which readers undo in
//! different ways. Here no value has a quote in it, and a backslash stands only before two hexadecimal digits (RFC 4514, as
//! BoringSSL writes what is beyond ASCII), so that a reader that undoes nothing and one that undoes too much find the same
//! ends of it.

use rustls_pki_types::CertificateDer;

use super::{CHAIN_VALUE_BYTES_MAX, VALUE_BYTES_MAX, pem, push_field};
use crate::policy::Identity;
use crate::proxy::headers::escape::{push_distinguished_name, push_hex, push_name};

/// Appends the field. Keys whose values are too long are named in another one: readers of this one may not know more keys
/// than Envoy's. `Hash` is the fingerprint, and always there.
pub(super) fn push(out: &mut String, identity: &Identity, chain: &[CertificateDer<'_>]) {
    let mut too_large: Vec<&str> = Vec::new();
    let mut element = String::from("Hash=");
    push_hex(&mut element, &identity.fingerprint_sha256);
    let mut push = |key: &'static str, most: usize, push_value: &dyn Fn(&mut String)| {
        let before = element.len();
        push_value(&mut element);
        if element.len() - before > most {
            element.truncate(before);
            too_large.push(key);
        }
    };
    if let Some(leaf) = chain.first() {
        push("Cert", VALUE_BYTES_MAX, &|value| push_certificates(value, "Cert", std::slice::from_ref(leaf)));
    }
    if chain.len() > 1 {
        push("Chain", CHAIN_VALUE_BYTES_MAX, &|value| push_certificates(value, "Chain", chain));
    }
    push("Subject", VALUE_BYTES_MAX, &|value| {
        value.push_str(";Subject=\"");
        push_distinguished_name(value, &identity.subject);
        value.push('"');
    });
    for (key, names) in [("URI", &identity.san_uri), ("DNS", &identity.san_dns)] {
        push(key, VALUE_BYTES_MAX, &|value| {
            for name in names {
                let quote = if name.contains('=') { "\"" } else { "" };
                value.extend([";", key, "=", quote]);
                push_name(value, name);
                value.push_str(quote);
            }
        });
    }
    push_field(out, "X-Forwarded-Client-Cert", usize::MAX, |value| value.push_str(&element));
    push_field(out, "X-Forwarded-Client-Cert-Too-Large", VALUE_BYTES_MAX, |value| {
        value.push_str(&too_large.join(", "));
    });
}

fn push_certificates(out: &mut String, key: &str, chain: &[CertificateDer<'_>]) {
    out.extend([";", key, "=\""]);
    for certificate in chain {
        pem::push_encoded(out, certificate);
    }
    out.push('"');
}
