//! Certificates, CA sets and records for tests.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::policy::{IdentitySets, RuleSpec, Rules};
use crate::registry::record::{
    Ca as RecordCa, CaSet, ClientAuth, Origin, OriginAddress, PrivateKey, ServerCertificate,
};
use crate::registry::{ClientAuthMode, HostnameRecord, Mode, Name, RecordId, Scheme, TlsVersion};
use crate::tls::{Factory, Options, Provider, Tenant, identity};

pub const DAY_S: i64 = 86_400;

/// How long tickets of the tests' factories and trusts live, seconds.
pub const TICKET_LIFETIME_S: u32 = 3600;

/// Seconds since the Unix epoch.
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Sets the dates of a certificate, in days from now.
pub fn dates(params: &mut CertificateParams, from_days: i64, to_days: i64) {
    let at = |days: i64| OffsetDateTime::from_unix_timestamp(now_s() as i64 + days * DAY_S).unwrap();
    (params.not_before, params.not_after) = (at(from_days), at(to_days));
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    dates(&mut params, -30, 30);
    params
}

/// A CA, root or intermediate, and what a client below it sends besides its leaf.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// This CA and those above it, up to the root, which is left out.
    above: Vec<CertificateDer<'static>>,
}

impl Authority {
    /// A root.
    pub fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    /// A root of other parameters.
    pub fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        Self::renewed_with(name, KeyPair::generate().unwrap(), change)
    }

    /// A root of this key.
    pub fn renewed_with(name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        change(&mut params);
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap(), above: Vec::new() }
    }

    /// A CA below this one.
    pub fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = Self::params(name);
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let mut above = vec![issuer.der().clone()];
        above.extend_from_slice(&self.above);
        Self { issuer, above }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    pub fn der(&self) -> &[u8] {
        self.issuer.der()
    }

    /// A copy of its key.
    pub fn key(&self) -> KeyPair {
        KeyPair::try_from(self.issuer.key().serialized_der()).unwrap()
    }

    /// A client's certificate.
    pub fn client(&self, name: &str) -> Certified {
        self.client_with(name, |_| {})
    }

    /// A client's certificate of other parameters.
    pub fn client_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let mut params = params(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        self.sign(&params, KeyPair::generate().unwrap())
    }

    fn sign(&self, params: &CertificateParams, key: KeyPair) -> Certified {
        let mut chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        chain.extend_from_slice(&self.above);
        Certified { chain, key: key.serialize_der() }
    }
}

/// A chain and the key of its leaf.
#[derive(Clone)]
pub struct Certified {
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Vec<u8>,
}

impl Certified {
    /// A certificate that signed itself.
    pub fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        Self { chain: vec![params.self_signed(&key).unwrap().der().clone()], key: key.serialize_der() }
    }

    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// As a hostname's certificate.
    pub fn for_record(&self) -> ServerCertificate {
        ServerCertificate {
            chain: self.chain.iter().map(|der| der.to_vec()).collect(),
            key: PrivateKey::Pkcs8(Zeroizing::new(self.key.clone())),
            not_after_unix_s: i64::MAX,
        }
    }
}

/// What clients of the tests trust: the CA of all server certificates, its ECDSA and its RSA certificate.
pub struct Servers {
    pub root: CertificateDer<'static>,
    pub ecdsa: Certified,
    pub rsa: Certified,
}

/// The names server certificates are valid for.
pub const SERVER_NAMES: [&str; 3] = ["a.test", "b.test", "*.w.test"];

/// Made once: an RSA key takes its time.
pub fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let root = Authority::root("Servers");
        let mut params = CertificateParams::new(SERVER_NAMES.map(String::from)).unwrap();
        dates(&mut params, -30, 30);
        let ecdsa = root.sign(&params, KeyPair::generate().unwrap());
        let rsa = root.sign(&params, KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap());
        Servers { root: root.issuer.der().clone(), ecdsa, rsa }
    })
}

/// A CA set of these certificates.
pub fn ca_set(cas: &[&[u8]]) -> Arc<CaSet> {
    let mut cas: Vec<(Vec<u8>, RecordCa)> = cas
        .iter()
        .map(|der| {
            let (not_before_unix_s, not_after_unix_s) = identity::validity(der).unwrap();
            (
                digest(&SHA256, der).as_ref().to_vec(),
                RecordCa { der: der.to_vec(), not_before_unix_s, not_after_unix_s },
            )
        })
        .collect();
    cas.sort_by(|(one, _), (other, _)| one.cmp(other));
    let all: Vec<u8> = cas.iter().flat_map(|(digest, _)| digest.clone()).collect();
    let digest = digest(&SHA256, &all).as_ref().try_into().unwrap();
    Arc::new(CaSet { digest, cas: cas.into_iter().map(|(_, ca)| ca).collect() })
}

/// Asks for client certificates of these CAs.
pub fn client_auth(mode: ClientAuthMode, cas: &[&[u8]]) -> ClientAuth {
    ClientAuth {
        mode,
        ca_set: Some(ca_set(cas)),
        allow_expired_ca: false,
        verify_depth: None,
        send_ca_names: false,
        headers: IdentitySets::default(),
    }
}

/// A record: `id` is repeated to its identity; no client certificates, no rules, TLS 1.2, one ECDSA certificate.
pub fn record(id: u8, name: &str, change: impl FnOnce(&mut HostnameRecord)) -> Arc<HostnameRecord> {
    let mut record = HostnameRecord {
        id: RecordId([id; 16]),
        name: Name::parse_record(name).unwrap(),
        is_default: false,
        mode: Mode::Tcp,
        certificates: vec![servers().ecdsa.for_record()],
        client_auth: ClientAuth {
            mode: ClientAuthMode::Off,
            ca_set: None,
            allow_expired_ca: false,
            verify_depth: None,
            send_ca_names: false,
            headers: IdentitySets::default(),
        },
        rules: Rules::default(),
        origin: Arc::new(Origin::new(
            "origin".into(),
            vec![OriginAddress::Tcp { host: "127.0.0.1".into(), port: 9 }],
            Scheme::Tcp,
        )),
        min_version: TlsVersion::V1_2,
        cipher_suites: Vec::new(),
        alpn: Vec::new(),
        keep_unusual_headers: false,
        rewrites: None,
        digest: [0; 32],
    };
    change(&mut record);
    Arc::new(record)
}

/// Compiled rules.
pub fn rules(specs: Vec<RuleSpec>) -> Rules {
    Rules::compile(specs).unwrap()
}

/// Options as the tests' factories have them.
pub fn options() -> Options {
    Options {
        provider: Provider::AwsLcRs,
        groups: Vec::new(),
        cipher_suites: Vec::new(),
        tickets: true,
        ticket_lifetime_s: TICKET_LIFETIME_S,
    }
}

/// Assembles a record by a factory of its own.
pub fn tenant(record: &Arc<HostnameRecord>) -> Rc<Tenant> {
    tenant_by(options(), record)
}

/// Assembles a record by a factory of these options.
pub fn tenant_by(options: Options, record: &Arc<HostnameRecord>) -> Rc<Tenant> {
    Rc::new(Factory::new(options).unwrap().assemble(record).unwrap())
}
