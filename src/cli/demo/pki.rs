//! The demo's keys and certificates: the provider's CA for server certificates, a CA of each customer for its clients.

use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, Error, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

use super::{ACME, Customer, GLOBEX};

/// How long the demo's certificates are good: long enough to play with, short enough that nobody deploys them.
const VALIDITY: Duration = Duration::days(30);

/// Clocks of two machines may differ by this much.
const BACKDATED: Duration = Duration::hours(1);

/// A certificate and its key.
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

impl Leaf {
    /// The private key, for a TLS client.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// What one customer has.
pub struct CustomerPki {
    customer: Customer,
    ca_pem: String,
    server: Leaf,
    pub client: Leaf,
}

/// Everything.
pub struct Pki {
    pub provider_ca: CertificateDer<'static>,
    provider_ca_pem: String,
    pub acme: CustomerPki,
    pub globex: CustomerPki,
}

impl Pki {
    /// Makes fresh keys and certificates, ECDSA P-256.
    pub fn generate() -> Result<Self, Error> {
        let provider = ca("Hostward Demo Provider CA")?;
        Ok(Self {
            provider_ca: provider.der().clone(),
            provider_ca_pem: provider.pem(),
            acme: CustomerPki::generate(ACME, &provider)?,
            globex: CustomerPki::generate(GLOBEX, &provider)?,
        })
    }

    /// Writes all of it as PEM files, keys for their owner only.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        write(&dir.join("provider-ca.pem"), &self.provider_ca_pem)?;
        for pki in [&self.acme, &self.globex] {
            let prefix = pki.customer.prefix;
            write(&dir.join(format!("{prefix}-ca.pem")), &pki.ca_pem)?;
            for (role, leaf) in [("server", &pki.server), ("client", &pki.client)] {
                write(&dir.join(format!("{prefix}-{role}.pem")), &leaf.certificate_pem)?;
                write(&dir.join(format!("{prefix}-{role}.key")), &leaf.key.serialize_pem())?;
            }
        }
        Ok(())
    }
}

impl CustomerPki {
    fn generate(customer: Customer, provider: &CertifiedIssuer<'_, KeyPair>) -> Result<Self, Error> {
        let own = ca(&format!("{} Client CA", customer.name))?;
        let server = params(customer.hostname, &[customer.hostname], ExtendedKeyUsagePurpose::ServerAuth)?;
        let client = params(&customer.client_name(), &[], ExtendedKeyUsagePurpose::ClientAuth)?;
        Ok(Self { customer, ca_pem: own.pem(), server: leaf(server, provider)?, client: leaf(client, &own)? })
    }
}

fn ca(name: &str) -> Result<CertifiedIssuer<'static, KeyPair>, Error> {
    let mut params = dated(name, &[])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn params(name: &str, dns: &[&str], usage: ExtendedKeyUsagePurpose) -> Result<CertificateParams, Error> {
    let mut params = dated(name, dns)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    Ok(params)
}

fn dated(name: &str, dns: &[&str]) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(dns.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - BACKDATED;
    params.not_after = OffsetDateTime::now_utc() + VALIDITY;
    Ok(params)
}

fn leaf(params: CertificateParams, issuer: &CertifiedIssuer<'_, KeyPair>) -> Result<Leaf, Error> {
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Leaf { certificate_pem: certificate.pem(), certificate: certificate.into(), key })
}

/// Writes a file for its owner only, replacing what an earlier demo left.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}
