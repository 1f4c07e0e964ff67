//! From a client's certificate to its [`Identity`]: parsing by x509-parser, strict where a rule could be misled.
//!
//! For the session (once per full handshake), for refusals' log lines and for `hostward explain`. Nothing is verified
//! here: the text comes from whoever wrote the certificate, and may hold any character, line breaks included; who
//! writes it into a header or a line escapes it. Distinguished names come escaped (`name`).
//!
//! Refused as malformed is what two readers could read differently: bytes after the certificate, an extension that
//! stands twice, a subjectAltName entry that is not what its type says.

mod name;
mod walk;

use std::fmt::Write;
use std::net::IpAddr;

use aws_lc_rs::digest::{SHA256, digest};
use x509_parser::certificate::{TbsCertificate, X509Certificate};
use x509_parser::extensions::{ExtendedKeyUsage, GeneralName, KeyUsage};
use x509_parser::oid_registry::{
    OID_X509_COMMON_NAME, OID_X509_EXT_SUBJECT_ALT_NAME, OID_X509_ORGANIZATION_NAME, OID_X509_ORGANIZATIONAL_UNIT, Oid,
};
use x509_parser::prelude::{FromDer, ParsedExtension};
use x509_parser::x509::X509Name;

use crate::policy::Identity;

pub use walk::{subject_public_key_info, validity};

/// The certificate cannot be read, or not in one way only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MalformedCertificate {
    /// What is wrong with it, for the log.
    pub what: &'static str,
}

impl std::fmt::Display for MalformedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "malformed certificate: {}", self.what)
    }
}

impl std::error::Error for MalformedCertificate {}

/// Reads the identity a certificate (DER, RFC 5280 section 4.1) carries. Verifies nothing.
///
/// # Errors
///
/// [`MalformedCertificate`] if the bytes are not exactly one certificate or an extension read here is ambiguous.
pub fn parse(der: &[u8]) -> Result<Identity, MalformedCertificate> {
    let malformed = |what| MalformedCertificate { what };
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| malformed("no X.509 certificate in DER"))?;
    if !rest.is_empty() {
        return Err(malformed("bytes after its end"));
    }
    // x509-parser does not look at the class of every tag; the walk does.
    let (Some((not_before_unix_s, not_after_unix_s)), Some(_)) = (validity(der), subject_public_key_info(der)) else {
        return Err(malformed("a field of it has the tag of another type"));
    };
    let tbs = &certificate.tbs_certificate;
    let key_usage = tbs.key_usage().map_err(|_| malformed("its keyUsage cannot be read or stands twice"))?;
    let extended_key_usage =
        tbs.extended_key_usage().map_err(|_| malformed("its extKeyUsage cannot be read or stands twice"))?;
    let mut identity = Identity {
        subject: name::to_rfc4514(tbs.subject()),
        issuer: name::to_rfc4514(tbs.issuer()),
        common_names: values_of(tbs.subject(), &OID_X509_COMMON_NAME),
        organizations: values_of(tbs.subject(), &OID_X509_ORGANIZATION_NAME),
        organizational_units: values_of(tbs.subject(), &OID_X509_ORGANIZATIONAL_UNIT),
        issuer_common_names: values_of(tbs.issuer(), &OID_X509_COMMON_NAME),
        serial: serial_text(tbs.raw_serial()).ok_or_else(|| malformed("its serial number is empty"))?,
        key_usage: key_usage.map(|extension| key_usage_names(extension.value)).unwrap_or_default(),
        extended_key_usage: extended_key_usage
            .map(|extension| extended_key_usage_names(extension.value))
            .unwrap_or_default(),
        not_before_unix_s,
        not_after_unix_s,
        ..Identity::default()
    };
    identity.fingerprint_sha256.copy_from_slice(digest(&SHA256, der).as_ref());
    read_alternative_names(tbs, &mut identity)?;
    Ok(identity)
}

/// Sorts the entries of subjectAltName (RFC 5280 section 4.2.1.6) into the identity. Types that no rule or header looks
/// at (otherName, directoryName, registeredID, ...) are passed over.
fn read_alternative_names(tbs: &TbsCertificate<'_>, identity: &mut Identity) -> Result<(), MalformedCertificate> {
    let malformed = |what| MalformedCertificate { what };
    let Some(extension) = tbs
        .get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME)
        .map_err(|_| malformed("its subjectAltName stands twice"))?
    else {
        return Ok(());
    };
    let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
        return Err(malformed("its subjectAltName cannot be read"));
    };
    for name in &names.general_names {
        match name {
            GeneralName::DNSName(text) => identity.san_dns.push(ia5_text(text)?),
            GeneralName::URI(text) => identity.san_uri.push(ia5_text(text)?),
            GeneralName::RFC822Name(text) => identity.san_email.push(ia5_text(text)?),
            GeneralName::IPAddress(bytes) => identity.san_ip.push(
                <[u8; 4]>::try_from(*bytes)
                    .map(IpAddr::from)
                    .or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from))
                    .map_err(|_| malformed("an iPAddress of subjectAltName has neither 4 nor 16 bytes"))?,
            ),
            GeneralName::Invalid(..) => return Err(malformed("an entry of its subjectAltName cannot be read")),
            GeneralName::OtherName(..)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    Ok(())
}

/// A name in IA5String. None of DNS names (RFC 1034 section 3.5), URIs (RFC 3986 section 2) and mailboxes (RFC 5321
/// section 4.1.2) has control characters, and a NUL or line break in one is how readers are made to disagree.
fn ia5_text(text: &str) -> Result<String, MalformedCertificate> {
    if !text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(MalformedCertificate { what: "a name of its subjectAltName has characters no name has" });
    }
    Ok(text.into())
}

/// The values of one attribute, in the order of the certificate. A value that is no text in the encoding it claims is
/// left out: no rule can match it.
fn values_of(name: &X509Name<'_>, oid: &Oid<'static>) -> Vec<String> {
    name.iter_attributes()
        .filter(|attribute| attribute.attr_type() == oid)
        .filter_map(|attribute| name::directory_text(attribute.attr_value()))
        .map(Into::into)
        .collect()
}

/// The serial number as [`Identity::serial`] holds it. `None` if it has no bytes.
///
/// A negative one, which RFC 5280 section 4.1.2.2 asks to tolerate, is a minus sign and its magnitude, as OpenSSL
/// writes it: without the sign -128 and 128 would be one certificate to a rule.
fn serial_text(raw: &[u8]) -> Option<String> {
    let negative = raw.first()? & 0x80 != 0;
    let mut magnitude = raw.to_vec();
    if negative {
        // Two's complement: invert, then add one from the right until nothing is carried.
        let mut carry = true;
        for byte in magnitude.iter_mut().rev() {
            (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
        }
    }
    let leading_zeros = magnitude.iter().take_while(|&&byte| byte == 0).count().min(magnitude.len() - 1);
    let mut text = String::with_capacity(1 + 2 * magnitude.len());
    if negative {
        text.push('-');
    }
    for byte in &magnitude[leading_zeros..] {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

/// The bits by their names in RFC 5280 section 4.2.1.3, in its order.
fn key_usage_names(usage: &KeyUsage) -> Vec<&'static str> {
    [
        (usage.digital_signature(), "digitalSignature"),
        (usage.non_repudiation(), "nonRepudiation"),
        (usage.key_encipherment(), "keyEncipherment"),
        (usage.data_encipherment(), "dataEncipherment"),
        (usage.key_agreement(), "keyAgreement"),
        (usage.key_cert_sign(), "keyCertSign"),
        (usage.crl_sign(), "cRLSign"),
        (usage.encipher_only(), "encipherOnly"),
        (usage.decipher_only(), "decipherOnly"),
    ]
    .into_iter()
    .filter_map(|(set, name)| set.then_some(name))
    .collect()
}

/// The purposes by their names in RFC 5280 section 4.2.1.12, others as dotted OID after them.
fn extended_key_usage_names(usage: &ExtendedKeyUsage<'_>) -> Vec<String> {
    [
        (usage.any, "anyExtendedKeyUsage"),
        (usage.server_auth, "serverAuth"),
        (usage.client_auth, "clientAuth"),
        (usage.code_signing, "codeSigning"),
        (usage.email_protection, "emailProtection"),
        (usage.time_stamping, "timeStamping"),
        (usage.ocsp_signing, "OCSPSigning"),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, name)| name.into())
    .chain(usage.other.iter().map(Oid::to_id_string))
    .collect()
}

#[cfg(test)]
mod tests;
