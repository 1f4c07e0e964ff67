//! The identity a client certificate carries, as plain text and numbers.

use std::net::IpAddr;

/// What a client certificate says about its subject. Filled by `tls::identity`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// Subject distinguished name, RFC 4514 text (most specific first).
    pub subject: String,
    /// Issuer distinguished name, RFC 4514 text.
    pub issuer: String,
    /// The subject's commonName values, in the order of the certificate.
    pub common_names: Vec<String>,
    /// The subject's organizationName values.
    pub organizations: Vec<String>,
    /// The subject's organizationalUnitName values.
    pub organizational_units: Vec<String>,
    /// The issuer's commonName values.
    pub issuer_common_names: Vec<String>,
    /// Serial number: lower-case hexadecimal, two digits a byte, without the sign byte.
    pub serial: String,
    /// SHA-256 over the certificate's DER.
    pub fingerprint_sha256: [u8; 32],
    /// subjectAltName dNSName values.
    pub san_dns: Vec<String>,
    /// subjectAltName uniformResourceIdentifier values (SPIFFE IDs among them).
    pub san_uri: Vec<String>,
    /// subjectAltName rfc822Name values.
    pub san_email: Vec<String>,
    /// subjectAltName iPAddress values.
    pub san_ip: Vec<IpAddr>,
    /// keyUsage bits by their RFC 5280 names (`digitalSignature`, ...); empty when the extension is absent.
    pub key_usage: Vec<&'static str>,
    /// extendedKeyUsage by name (`clientAuth`, ...) or dotted OID; empty when the extension is absent.
    pub extended_key_usage: Vec<String>,
    /// notBefore, seconds since the Unix epoch.
    pub not_before_unix_s: i64,
    /// notAfter, seconds since the Unix epoch.
    pub not_after_unix_s: i64,
}
