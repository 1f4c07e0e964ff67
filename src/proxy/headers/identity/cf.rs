//! The set `cf`: what Cloudflare sends with "client certificate forwarding" and with its managed transform "TLS client auth
//! headers".
//!
//! Left out, each for a reason: the `-Legacy` names (`/C=DE/O=Acme/CN=ann` cannot be told from a name with a slash in it),
//! SHA-1, and what is said of the issuer's certificate (`-Ski`, `-Issuer-Serial`), which a client need not send.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use time::format_description::FormatItem;
use time::macros::format_description;

use super::{VALUE_BYTES_MAX, push_field};
use crate::policy::{Identity, Refusal, Verdict};
use crate::proxy::headers::escape::{push_distinguished_name, push_hex};

/// As OpenSSL prints a time: `Mar 21 13:35:00 2022 GMT`, the day filled up with a space.
const TIME: &[FormatItem<'_>] =
    format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year] GMT");

/// Appends what is known of any client. Unlike with Cloudflare a revoked certificate is not a verified one.
pub(super) fn push_verdict(out: &mut String, verdict: Verdict) {
    for (name, holds) in [
        ("Cf-Cert-Presented", verdict != Verdict::None),
        ("Cf-Cert-Verified", verdict == Verdict::Success),
        ("Cf-Cert-Revoked", verdict == Verdict::Failed(Refusal::Revoked)),
    ] {
        push_field(out, name, VALUE_BYTES_MAX, |value| value.push_str(if holds { "true" } else { "false" }));
    }
}

/// Appends what an accepted certificate says. In the place of one that is too long stands a marker; its fingerprint is sent
/// anyway.
pub(super) fn push(out: &mut String, identity: &Identity, leaf: Option<&CertificateDer<'_>>) {
    let mut too_large: Vec<&str> = Vec::new();
    let mut push = |out: &mut String, name: &'static str, push_value: &dyn Fn(&mut String)| {
        if push_field(out, name, VALUE_BYTES_MAX, push_value) {
            too_large.push(name);
        }
    };
    if let Some(leaf) = leaf {
        push(out, "Cf-Client-Cert-Der-Base64", &|value| STANDARD.encode_string(leaf, value));
    }
    for name in ["Cf-Client-Cert-Sha256", "Cf-Cert-Fingerprint-Sha256"] {
        push(out, name, &|value| push_hex(value, &identity.fingerprint_sha256));
    }
    for (names, distinguished_name) in [
        (["Cf-Cert-Subject-Dn", "Cf-Cert-Subject-Dn-Rfc2253"], &identity.subject),
        (["Cf-Cert-Issuer-Dn", "Cf-Cert-Issuer-Dn-Rfc2253"], &identity.issuer),
    ] {
        for name in names {
            push(out, name, &|value| push_distinguished_name(value, distinguished_name));
        }
    }
    push(out, "Cf-Cert-Serial", &|value| value.push_str(&identity.serial.to_ascii_uppercase()));
    for (name, unix_s) in
        [("Cf-Cert-Not-Before", identity.not_before_unix_s), ("Cf-Cert-Not-After", identity.not_after_unix_s)]
    {
        let time = OffsetDateTime::from_unix_timestamp(unix_s).ok().and_then(|time| time.format(TIME).ok());
        push(out, name, &|value| value.push_str(time.as_deref().unwrap_or_default()));
    }
    push_field(out, "Cf-Client-Cert-Too-Large", VALUE_BYTES_MAX, |value| value.push_str(&too_large.join(", ")));
}
