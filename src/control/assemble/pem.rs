//! Certificates, keys and CAs from PEM files.
//!
//! Everything read here may be or may hold a private key: what has been read is wiped when dropped, and messages name the
//! file and the position in it, never a byte of its content (the errors of the PEM parser do repeat lines, so they are
//! translated, not shown).

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Version;
use zeroize::Zeroizing;

use super::dates::Validity;
use super::digest;
use crate::registry::record::PrivateKey;
use crate::registry::{Ca, Name, ServerCertificate};

/// The largest PEM file, in bytes: some ten thousand CAs.
const PEM_BYTES_MAX: u64 = 16 << 20;

/// The longest server chain. Every handshake sends it, and clients limit it too (OpenSSL to 100 KiB, others to less).
const CHAIN_MAX: usize = 16;

/// A certificate file with its key, and what is worth saying about it.
pub struct CertificateFile {
    pub certificate: ServerCertificate,
    /// Of each certificate, leaf first.
    pub validities: Vec<Validity>,
    /// The dNSName values of the leaf.
    pub names: Vec<String>,
    /// The first certificate, counted from 1, that the next one did not issue.
    pub out_of_order: Option<usize>,
    /// Every user of the machine may read the file of the private key.
    pub key_is_world_readable: bool,
}

/// Why a certificate and its key cannot be used.
pub struct Fault {
    /// It is about the key's file, not the certificate's.
    pub of_key: bool,
    pub text: String,
}

/// The CAs of one file.
#[derive(Debug)]
pub struct CaFile {
    /// At least one.
    pub cas: Vec<CaCertificate>,
    pub holds_private_key: bool,
}

/// One CA.
#[derive(Clone, Debug)]
pub struct CaCertificate {
    pub der: Vec<u8>,
    /// SHA-256 of the DER.
    pub digest: [u8; 32],
    pub validity: Validity,
}

impl CaCertificate {
    /// As records have it.
    pub fn to_ca(&self) -> Ca {
        Ca {
            der: self.der.clone(),
            not_before_unix_s: self.validity.not_before_unix_s,
            not_after_unix_s: self.validity.not_after_unix_s,
        }
    }
}

/// The certificates of one file that an origin is verified by.
pub struct TrustedFile {
    /// At least one, each with whether it is a CA.
    pub certificates: Vec<(CaCertificate, bool)>,
    pub holds_private_key: bool,
}

/// Reads a certificate chain, leaf first, and its private key. `key_path` may be the same file.
///
/// # Errors
///
/// All reasons why the two cannot be used, each naming the file at fault.
pub fn read_certificate(
    path: &Path,
    key_path: &Path,
    provider: &CryptoProvider,
) -> Result<CertificateFile, Vec<Fault>> {
    let fault = |of_key, text| Fault { of_key, text };
    let (shown, key_shown) = (path.display(), key_path.display());
    let sections = match Sections::read(path) {
        Ok(sections) => sections,
        // One file for both is told once.
        Err(reason) if key_path == path => return Err(vec![fault(false, format!("certificate {shown}: {reason}"))]),
        Err(reason) => {
            let mut faults = vec![fault(false, format!("certificate {shown}: {reason}"))];
            let key = Sections::read(key_path).and_then(|sections| key_of(&sections));
            faults.extend(key.err().map(|reason| fault(true, format!("private_key {key_shown}: {reason}"))));
            return Err(faults);
        }
    };
    let own = if key_path == path { None } else { Some(Sections::read(key_path)) };
    if let Some(Ok(keys)) = &own
        && (sections.certificates.is_empty() && !sections.keys.is_empty())
        && (!keys.certificates.is_empty() && keys.keys.is_empty())
    {
        let text =
            format!("certificate {shown} holds a private key and private_key {key_shown} a certificate: swap the two");
        return Err(vec![fault(false, text)]);
    }
    let key_is_world_readable =
        own.as_ref().map_or(sections.world_readable, |keys| keys.as_ref().is_ok_and(|keys| keys.world_readable));
    let key = match &own {
        None => key_of(&sections),
        Some(keys) => keys.as_ref().map_err(Clone::clone).and_then(key_of),
    };
    let mut faults = Vec::new();
    let chain = match sections.certificates.len() {
        0 => Err(sections.nothing_found("certificate")),
        1..=CHAIN_MAX => Ok(sections.certificates),
        more => Err(format!("holds {more} certificates; a chain has at most {CHAIN_MAX}")),
    };
    let chain =
        chain.map_err(|reason| faults.push(fault(false, format!("certificate {shown}: {reason}")))).unwrap_or_default();
    let mut validities = Vec::with_capacity(chain.len());
    let mut parsed = Vec::with_capacity(chain.len());
    for (index, der) in chain.iter().enumerate() {
        match parse(der) {
            Ok(certificate) => {
                validities.push(validity(&certificate));
                parsed.push(certificate);
            }
            Err(reason) => faults.push(fault(false, format!("certificate {shown}: number {} {reason}", index + 1))),
        }
    }
    let key = key.map_err(|reason| faults.push(fault(true, format!("private_key {key_shown}: {reason}")))).ok();
    let (Some(key), true) = (key, faults.is_empty()) else { return Err(faults) };
    let is_v1 = parsed.first().is_some_and(|leaf| leaf.version() != X509Version::V3);
    check_key(&chain, &key, provider).map_err(|found| {
        vec![match found {
            KeyFault::Unusable => fault(true, format!(
                "private_key {key_shown}: the provider cannot use this key; RSA of 2048 to 8192 bits, ECDSA on P-256 or P-384 \
                 and Ed25519 can be used"
            )),
            KeyFault::Certificate if is_v1 => fault(false, format!("certificate {shown}: number 1 {VERSION_1}")),
            KeyFault::Certificate => {
                fault(false, format!("certificate {shown}: number 1 cannot be parsed as a server certificate"))
            }
            KeyFault::Differs => fault(true, format!(
                "private_key {key_shown} does not belong to certificate {shown} (public keys differ)"
            )),
        }]
    })?;
    let out_of_order = parsed.windows(2).position(|pair| pair[0].issuer().as_raw() != pair[1].subject().as_raw());
    let out_of_order = out_of_order.map(|index| index + 1);
    drop(parsed);
    let names = dns_names(&chain);
    let not_after_unix_s = validities.iter().map(|validity| validity.not_after_unix_s).min().unwrap_or(i64::MIN);
    let certificate = ServerCertificate { chain, key, not_after_unix_s };
    Ok(CertificateFile { certificate, validities, names, out_of_order, key_is_world_readable })
}

/// Whether a certificate is for a hostname: a dNSName that equals it, or a wildcard over its first label (RFC 9525
/// section 6.3). The common name is not looked at; no current client does. A wildcard hostname needs the same wildcard.
pub fn covers(certificate: &ServerCertificate, name: &Name) -> bool {
    let Some(leaf) = certificate.chain.first() else { return false };
    let leaf = CertificateDer::from(leaf.as_slice());
    let Ok(leaf) = webpki::EndEntityCert::try_from(&leaf) else { return false };
    if name.is_wildcard() {
        return leaf.valid_dns_names().any(|san| san.eq_ignore_ascii_case(name.as_str()));
    }
    ServerName::try_from(name.as_str()).is_ok_and(|name| leaf.verify_is_valid_for_subject_name(&name).is_ok())
}

/// Reads the CAs of a file.
///
/// # Errors
///
/// All reasons why the file cannot be used; one bad CA spoils it, since leaving it out would change whom one trusts.
pub fn read_cas(path: &Path) -> Result<CaFile, Vec<String>> {
    let sections = Sections::read(path).map_err(|reason| vec![reason])?;
    if sections.certificates.is_empty() {
        return Err(vec![sections.nothing_found("certificate")]);
    }
    let mut reasons = Vec::new();
    let mut cas = Vec::with_capacity(sections.certificates.len());
    for (index, der) in sections.certificates.iter().enumerate() {
        match read_ca(der) {
            Ok(ca) => cas.push(ca),
            Err(reason) => reasons.push(format!("certificate {} {reason}", index + 1)),
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    Ok(CaFile { cas, holds_private_key: !sections.keys.is_empty() })
}

/// Reads the certificates of a file that an origin is verified by: CAs, or the origin's own certificate.
///
/// # Errors
///
/// All reasons why the file cannot be used; one bad certificate spoils it, since leaving it out would change whom one
/// trusts.
pub fn read_trusted(path: &Path) -> Result<TrustedFile, Vec<String>> {
    let sections = Sections::read(path).map_err(|reason| vec![reason])?;
    if sections.certificates.is_empty() {
        return Err(vec![sections.nothing_found("certificate")]);
    }
    let mut reasons = Vec::new();
    let mut certificates = Vec::with_capacity(sections.certificates.len());
    for (index, der) in sections.certificates.iter().enumerate() {
        let read = read_ca(der).map(|ca| (ca, true)).or_else(|_| {
            let certificate = parse(der)?;
            if certificate.version() != X509Version::V3 {
                return Err(VERSION_1.to_owned());
            }
            let (digest, validity) = (digest::of_bytes(der), validity(&certificate));
            Ok((CaCertificate { der: der.clone(), digest, validity }, false))
        });
        match read {
            Ok(certificate) => certificates.push(certificate),
            Err(reason) => reasons.push(format!("certificate {} {reason}", index + 1)),
        }
    }
    if !reasons.is_empty() {
        return Err(reasons);
    }
    Ok(TrustedFile { certificates, holds_private_key: !sections.keys.is_empty() })
}

/// Reads one CA.
///
/// # Errors
///
/// Why it is none.
pub fn read_ca(der: &[u8]) -> Result<CaCertificate, String> {
    let certificate = parse(der)?;
    if certificate.version() != X509Version::V3 {
        return Err(VERSION_1.to_owned());
    }
    // RFC 5280 section 4.2.1.9: without basicConstraints and its cA flag the key must not verify certificates' signatures.
    if !certificate.is_ca() {
        return Err("is not a CA (basicConstraints CA:TRUE is missing); name the CA that issued the clients' \
                    certificates"
            .to_owned());
    }
    // RFC 5280 section 4.2.1.3: if there is a keyUsage, keyCertSign must be among it.
    match certificate.key_usage() {
        Ok(None) => {}
        Ok(Some(usage)) if usage.value.key_cert_sign() => {}
        _ => return Err("is not a CA (its keyUsage does not allow keyCertSign)".to_owned()),
    }
    // What the verifier cannot read would fail at the first handshake.
    webpki::anchor_from_trusted_cert(&CertificateDer::from(der))
        .map_err(|error| format!("cannot be used as a trust anchor: {error}"))?;
    Ok(CaCertificate { der: der.to_vec(), digest: digest::of_bytes(der), validity: validity(&certificate) })
}

/// What is said of certificates that cannot have extensions (RFC 5280 section 4.1.2.1).
const VERSION_1: &str = "is an X.509 certificate of version 1 or 2, which can say neither whose name it is for nor that it is \
                         a CA; have it issued again as version 3";

/// What a PEM file holds.
struct Sections {
    certificates: Vec<Vec<u8>>,
    keys: Vec<PrivateKey>,
    /// There is an encrypted private key.
    encrypted: bool,
    /// Every user of the machine may read the file.
    world_readable: bool,
}

impl Sections {
    fn read(path: &Path) -> Result<Self, String> {
        let (text, world_readable) = read_file(path)?;
        let mut sections = Self { certificates: Vec::new(), keys: Vec::new(), encrypted: false, world_readable };
        let find = |needle: &[u8]| memchr::memmem::find(&text, needle).is_some();
        // PKCS#8 says so in the label, the older forms in a header, which the parser would take for base64.
        sections.encrypted = find(b"BEGIN ENCRYPTED PRIVATE KEY") || find(b"Proc-Type: 4,ENCRYPTED");
        if find(b"Proc-Type: 4,ENCRYPTED") {
            return Err(ENCRYPTED.to_owned());
        }
        for (index, section) in <(SectionKind, Vec<u8>)>::pem_slice_iter(&text).enumerate() {
            let (kind, der) = section.map_err(|error| format!("PEM section {} {}", index + 1, describe(&error)))?;
            match kind {
                SectionKind::Certificate => sections.certificates.push(der),
                SectionKind::PrivateKey => sections.keys.push(PrivateKey::Pkcs8(Zeroizing::new(der))),
                SectionKind::EcPrivateKey => sections.keys.push(PrivateKey::Sec1(Zeroizing::new(der))),
                SectionKind::RsaPrivateKey => sections.keys.push(PrivateKey::Pkcs1(Zeroizing::new(der))),
                _ => {}
            }
        }
        Ok(sections)
    }

    fn nothing_found(&self, what: &str) -> String {
        format!("holds no PEM {what} (-----BEGIN ...); a DER file must be converted first, as with openssl -inform DER")
    }
}

const ENCRYPTED: &str = "the private key is encrypted; decrypt it first, as with openssl pkey -in FILE -out NEW";

/// The one private key of a file.
fn key_of(sections: &Sections) -> Result<PrivateKey, String> {
    match sections.keys.as_slice() {
        [key] => Ok(key.clone()),
        [] if sections.encrypted => Err(ENCRYPTED.to_owned()),
        [] => Err(sections.nothing_found("private key")),
        keys => Err(format!("holds {} private keys; leave the one that belongs to the certificate", keys.len())),
    }
}

enum KeyFault {
    Unusable,
    Certificate,
    Differs,
}

/// Checks that the provider can sign with the key, and that it belongs to the leaf.
fn check_key(chain: &[Vec<u8>], key: &PrivateKey, provider: &CryptoProvider) -> Result<(), KeyFault> {
    let key = match key {
        PrivateKey::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.as_slice().into()),
        PrivateKey::Sec1(der) => PrivateKeyDer::Sec1(der.as_slice().into()),
        PrivateKey::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.as_slice().into()),
    };
    let key = provider.key_provider.load_private_key(key.clone_key()).map_err(|_| KeyFault::Unusable)?;
    let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    match CertifiedKey::new(chain, key).keys_match() {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(KeyFault::Differs),
        Err(_) => Err(KeyFault::Certificate),
    }
}

fn dns_names(chain: &[Vec<u8>]) -> Vec<String> {
    let Some(leaf) = chain.first() else { return Vec::new() };
    let leaf = CertificateDer::from(leaf.as_slice());
    let leaf = webpki::EndEntityCert::try_from(&leaf);
    leaf.map(|leaf| leaf.valid_dns_names().map(str::to_owned).collect()).unwrap_or_default()
}

/// Parses one certificate, to its last byte.
fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err("has bytes after its end".to_owned()),
        Err(_) => Err("is not an X.509 certificate".to_owned()),
    }
}

fn validity(certificate: &X509Certificate<'_>) -> Validity {
    let validity = certificate.validity();
    Validity { not_before_unix_s: validity.not_before.timestamp(), not_after_unix_s: validity.not_after.timestamp() }
}

/// Says what is wrong with a PEM file without repeating any of it.
fn describe(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => {
            "does not end (its END line is missing, or differs from its BEGIN line)"
        }
        pem::Error::IllegalSectionStart { .. } => "has a BEGIN line that is not one (-----BEGIN ...-----)",
        pem::Error::Base64Decode(_) => "is not base64",
        _ => "cannot be read",
    }
}

/// Reads a file of bounded size, wiped when dropped, and whether every user may.
fn read_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, bool), String> {
    let file = File::open(path).map_err(|error| format!("cannot be opened: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    let size = metadata.len();
    // Room for everything at once: growing would leave unwiped copies of a key behind.
    let room = usize::try_from(size.min(PEM_BYTES_MAX)).unwrap_or_default() + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(format!("has more than {} MiB; this is no PEM file", PEM_BYTES_MAX >> 20));
    }
    Ok((bytes, metadata.mode() & 0o004 != 0))
}
