//! The set `ingress`: what the ingress controller of nginx (ingress-nginx) tells its backends.
//!
//! The verdict is `SUCCESS`, `NONE` or `FAILED:` and a reason, as nginx' `$ssl_client_verify`; the reason is one of ours
//! instead of a sentence of OpenSSL's. Distinguished names are text by RFC 4514, the successor of RFC 2253 which nginx
//! names; what nginx escapes by a backslash is two hexadecimal digits here, which both standards read alike. Unlike with
//! nginx a certificate that was not accepted has no names: they would be hearsay.

use rustls_pki_types::CertificateDer;

use super::{VALUE_BYTES_MAX, pem, push_field};
use crate::policy::{Identity, Verdict};
use crate::proxy::headers::escape::{push_distinguished_name, push_hex};

/// Appends what is known of any client.
pub(super) fn push_verdict(out: &mut String, verdict: Verdict) {
    push_field(out, "ssl-client-verify", VALUE_BYTES_MAX, |value| value.push_str(&verdict.to_string()));
}

/// Appends what an accepted certificate says. In the place of a field that is too long stands one with the certificate's
/// fingerprint.
pub(super) fn push(out: &mut String, identity: &Identity, leaf: Option<&CertificateDer<'_>>) {
    for (names, distinguished_name) in [
        (["ssl-client-subject-dn", "ssl-client-subject-dn-too-large"], &identity.subject),
        (["ssl-client-issuer-dn", "ssl-client-issuer-dn-too-large"], &identity.issuer),
    ] {
        push_or_fingerprint(out, names, identity, |value| push_distinguished_name(value, distinguished_name));
    }
    if let Some(leaf) = leaf {
        let names = ["ssl-client-cert", "ssl-client-cert-too-large"];
        push_or_fingerprint(out, names, identity, |value| pem::push_encoded(value, leaf));
    }
}

fn push_or_fingerprint(out: &mut String, names: [&str; 2], identity: &Identity, push_value: impl FnOnce(&mut String)) {
    let [name, marker] = names;
    if push_field(out, name, VALUE_BYTES_MAX, push_value) {
        push_field(out, marker, VALUE_BYTES_MAX, |value| push_hex(value, &identity.fingerprint_sha256));
    }
}
