//! Certificates with every fault a client may bring, made in a few microseconds each (ECDSA P-256).
//!
//! An [`Authority`] signs [`Leaf`]s; an [`Identity`] is a chain and a key that may or may not belong together.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_RSA_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

/// When a certificate is valid.
#[derive(Clone, Copy)]
pub struct Validity {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl Validity {
    /// From yesterday for a month.
    pub fn usual() -> Self {
        Self::between(-Duration::days(1), Duration::days(30))
    }

    /// Ended an hour ago.
    pub fn expired() -> Self {
        Self::between(-Duration::days(2), -Duration::hours(1))
    }

    /// Begins in an hour.
    pub fn future() -> Self {
        Self::between(Duration::hours(1), Duration::days(2))
    }

    /// Ends in this many seconds. X.509 counts in whole seconds: it may be up to one second less.
    pub fn ending_in(seconds: i64) -> Self {
        Self::between(-Duration::days(1), Duration::seconds(seconds))
    }

    fn between(from_now: Duration, until_now: Duration) -> Self {
        let now = OffsetDateTime::now_utc();
        Self { not_before: now + from_now, not_after: now + until_now }
    }
}

/// A certification authority, or an intermediate one.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    /// The certificates a client sends above its leaf: intermediates, nearest first, without the root.
    path: Vec<CertificateDer<'static>>,
    /// The same as PEM.
    path_pem: String,
}

impl Authority {
    /// A root of this common name. Two of one name differ by their keys alone.
    pub fn new(common_name: &str) -> Self {
        Self::with_validity(common_name, Validity::usual())
    }

    pub fn with_validity(common_name: &str, validity: Validity) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let params = authority_params(common_name, validity);
        let certificate = params.self_signed(&key).expect("a root");
        Self {
            pem: certificate.pem(),
            certificate: certificate.into(),
            issuer: Issuer::new(params, key),
            path: Vec::new(),
            path_pem: String::new(),
        }
    }

    /// An intermediate authority below this one.
    pub fn intermediate(&self, common_name: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let params = authority_params(common_name, Validity::usual());
        let certificate = params.signed_by(&key, &self.issuer).expect("an intermediate");
        let pem = certificate.pem();
        let certificate = CertificateDer::from(certificate);
        let path = std::iter::once(certificate.clone()).chain(self.path.iter().cloned()).collect();
        let path_pem = format!("{pem}{}", self.path_pem);
        Self { issuer: Issuer::new(params, key), certificate, pem, path, path_pem }
    }

    /// An authority `depth` intermediates below this one.
    pub fn descend(&self, depth: usize) -> Self {
        assert!(depth > 0, "a root cannot be copied");
        let mut authority = self.intermediate("Intermediate 1");
        for level in 2..=depth {
            authority = authority.intermediate(&format!("Intermediate {level}"));
        }
        authority
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A client certificate to be issued, without fault unless told otherwise.
    pub fn leaf(&self, common_name: &str) -> Leaf<'_> {
        Leaf {
            authority: self,
            params: leaf_params(common_name, Validity::usual(), &[ExtendedKeyUsagePurpose::ClientAuth]),
            rsa: false,
        }
    }

    /// A server certificate to be issued for these DNS names (a wildcard may be among them).
    pub fn server(&self, names: &[&str]) -> Leaf<'_> {
        let mut leaf = self.leaf(names[0]).purposes(&[ExtendedKeyUsagePurpose::ServerAuth]);
        for name in names {
            leaf = leaf.san_dns(name);
        }
        leaf
    }
}

/// A certificate before it is signed.
pub struct Leaf<'a> {
    authority: &'a Authority,
    params: CertificateParams,
    rsa: bool,
}

impl Leaf<'_> {
    pub fn valid(mut self, validity: Validity) -> Self {
        self.params.not_before = validity.not_before;
        self.params.not_after = validity.not_after;
        self
    }

    /// Replaces the extended key usage; none at all when empty.
    pub fn purposes(mut self, purposes: &[ExtendedKeyUsagePurpose]) -> Self {
        self.params.extended_key_usages = purposes.to_vec();
        self
    }

    pub fn organization(mut self, name: &str) -> Self {
        self.params.distinguished_name.push(DnType::OrganizationName, name);
        self
    }

    pub fn serial(mut self, serial: u64) -> Self {
        self.params.serial_number = Some(SerialNumber::from(serial));
        self
    }

    pub fn san_dns(self, name: &str) -> Self {
        self.san(SanType::DnsName(name.try_into().expect("an IA5 name")))
    }

    pub fn san_ip(self, address: std::net::IpAddr) -> Self {
        self.san(SanType::IpAddress(address))
    }

    pub fn san_uri(self, uri: &str) -> Self {
        self.san(SanType::URI(uri.try_into().expect("an IA5 URI")))
    }

    pub fn san_email(self, address: &str) -> Self {
        self.san(SanType::Rfc822Name(address.try_into().expect("an IA5 address")))
    }

    fn san(mut self, name: SanType) -> Self {
        self.params.subject_alt_names.push(name);
        self
    }

    /// An RSA-2048 key instead of P-256. Making one takes a tenth of a second or more.
    pub fn rsa(mut self) -> Self {
        self.rsa = true;
        self
    }

    pub fn issue(self) -> Identity {
        let key = if self.rsa { KeyPair::generate_for(&PKCS_RSA_SHA256) } else { KeyPair::generate() }.expect("a key");
        let leaf = self.params.signed_by(&key, &self.authority.issuer).expect("a leaf");
        let chain_pem = format!("{}{}", leaf.pem(), self.authority.path_pem);
        let mut chain = vec![CertificateDer::from(leaf)];
        chain.extend(self.authority.path.iter().cloned());
        Identity { chain, chain_pem, key_pem: key.serialize_pem(), key: key.serialize_der() }
    }
}

/// A chain and a private key, as a client or server presents them.
#[derive(Clone)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: String,
    key: Vec<u8>,
    pub key_pem: String,
}

impl Identity {
    /// A certificate that signed itself, fit for a client in every other respect.
    pub fn self_signed(common_name: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let params = leaf_params(common_name, Validity::usual(), &[ExtendedKeyUsagePurpose::ClientAuth]);
        let certificate = params.self_signed(&key).expect("a certificate");
        let chain_pem = certificate.pem();
        Self { chain: vec![certificate.into()], chain_pem, key_pem: key.serialize_pem(), key: key.serialize_der() }
    }

    /// A server's that signed itself and calls itself a CA, as `openssl req -x509` makes it.
    pub fn self_signed_server(names: &[&str]) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = authority_params(names[0], Validity::usual());
        params.key_usages = vec![];
        params.subject_alt_names =
            names.iter().map(|name| SanType::DnsName((*name).try_into().expect("an IA5 name"))).collect();
        let certificate = params.self_signed(&key).expect("a certificate");
        let chain_pem = certificate.pem();
        Self { chain: vec![certificate.into()], chain_pem, key_pem: key.serialize_pem(), key: key.serialize_der() }
    }

    /// This chain with a key that does not belong to it: a stolen certificate.
    pub fn with_key_of(mut self, other: &Self) -> Self {
        self.key.clone_from(&other.key);
        self.key_pem.clone_from(&other.key_pem);
        self
    }

    /// What rustls signs with; whether key and chain belong together is not asked.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        let key = PrivatePkcs8KeyDer::from(self.key.clone()).into();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key of a supported type");
        Arc::new(CertifiedKey::new(self.chain.clone(), key))
    }
}

fn authority_params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf_params(common_name: &str, validity: Validity, purposes: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before;
    params.not_after = validity.not_after;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.extended_key_usages = purposes.to_vec();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}
