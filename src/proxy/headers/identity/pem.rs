//! A certificate as PEM, percent-encoded: how Envoy and nginx put one into a header.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Characters of base64 in one line (RFC 7468 section 2).
const LINE_CHARS: usize = 64;

/// Appends a certificate as PEM (RFC 7468 section 5) in which every byte that is not unreserved (RFC 3986 section 2.3) is
/// percent-encoded, line ends too. The same bytes as nginx' `$ssl_client_escaped_cert` and the `Cert` of Envoy.
pub(super) fn push_encoded(out: &mut String, der: &[u8]) {
    out.push_str("-----BEGIN%20CERTIFICATE-----%0A");
    for (at, character) in STANDARD.encode(der).chars().enumerate() {
        if at > 0 && at % LINE_CHARS == 0 {
            out.push_str("%0A");
        }
        match character {
            '+' => out.push_str("%2B"),
            '/' => out.push_str("%2F"),
            '=' => out.push_str("%3D"),
            character => out.push(character),
        }
    }
    out.push_str("%0A-----END%20CERTIFICATE-----%0A");
}
