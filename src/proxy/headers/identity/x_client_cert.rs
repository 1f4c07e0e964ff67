//! The set `x-client-cert`: each thing a certificate says in a field of its own.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{VALUE_BYTES_MAX, push_field};
use crate::policy::Identity;
use crate::proxy::headers::escape::{push_distinguished_name, push_hex, push_name};

/// Appends the set. Fields that are too long are named in one more.
pub(super) fn push(out: &mut String, identity: &Identity) {
    let mut too_large: Vec<&str> = Vec::new();
    let mut push = |out: &mut String, name: &'static str, push_value: &dyn Fn(&mut String)| {
        if push_field(out, name, VALUE_BYTES_MAX, push_value) {
            too_large.push(name);
        }
    };
    push(out, "X-Client-Cert-Subject", &|value| push_distinguished_name(value, &identity.subject));
    push(out, "X-Client-Cert-Issuer", &|value| push_distinguished_name(value, &identity.issuer));
    push(out, "X-Client-Cert-Serial", &|value| value.push_str(&identity.serial));
    push(out, "X-Client-Cert-Fingerprint", &|value| push_hex(value, &identity.fingerprint_sha256));
    push(out, "X-Client-Cert-San", &|value| push_alternative_names(value, identity));
    push(out, "X-Client-Cert-Not-After", &|value| {
        let time = OffsetDateTime::from_unix_timestamp(identity.not_after_unix_s).ok();
        // A year past 9999 has no form in RFC 3339; the field is left out.
        value.push_str(&time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default());
    });
    push_field(out, "X-Client-Cert-Too-Large", VALUE_BYTES_MAX, |value| value.push_str(&too_large.join(", ")));
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
