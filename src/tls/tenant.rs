//! A hostname's record, assembled for one worker: what rustls needs to serve it.
//!
//! The expensive part of a `ServerConfig` (verifier, versions, suites) is built once for each combination of CA set and
//! options and cloned for each hostname, which costs about a microsecond and a kilobyte.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use rustls::compress::CompressionCache;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::policy::Verdict;
use crate::registry::record::PrivateKey;
use crate::registry::{Ca, ClientAuth, ClientAuthMode, HostnameRecord, RecordId, TlsVersion};

use super::provider::Provider;
use super::scope::Standing;
use super::ticket::ScopedTicketer;
use super::verify::{Verifier, VerifierOptions};

/// What a ticket is bound to (I3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    pub record_id: RecordId,
    /// SHA-256 over record id, CA set, client-auth mode and verifier options (DECISIONS 3).
    pub trust_digest: [u8; 32],
}

/// One hostname on one worker. Immutable.
pub struct Tenant {
    pub record: Arc<HostnameRecord>,
    pub binding: Binding,
    pub config: Arc<ServerConfig>,
    /// What it shares with other hostnames.
    pub base: Rc<Base>,
    /// What it takes in the worker's cache beside its base, estimated, in bytes.
    pub cost_bytes: usize,
}

impl Tenant {
    /// Whether a client of this standing passes today's dates and anchors (rules are judged apart).
    pub fn still_stands(&self, standing: &Standing, now_unix_s: u64) -> bool {
        match (standing.verdict, &standing.path, &self.base.verifier) {
            (Verdict::Success, Some(path), Some(verifier)) => verifier.still_stands(path, now_unix_s as i64),
            (Verdict::None, None, _) => self.record.client_auth.mode != ClientAuthMode::Require,
            _ => false,
        }
    }
}

/// Why a record cannot be served.
#[derive(Debug)]
pub struct Unreadable(pub String);

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unreadable {}

/// What makes two base configurations one.
#[derive(PartialEq, Eq, Hash)]
struct BaseKey {
    ca_set: Option<[u8; 32]>,
    mode: ClientAuthMode,
    options: VerifierOptions,
    min_version: TlsVersion,
    cipher_suites: Vec<String>,
}

/// What hostnames with the same CA set and options share: made once, and gone with the last tenant that uses it.
pub struct Base {
    config: ServerConfig,
    /// `None` exactly when the mode is `off`.
    pub verifier: Option<Arc<Verifier>>,
    /// What it takes, estimated, in bytes. The worker's cache counts it once for all tenants that share it.
    pub cost_bytes: usize,
}

/// How a worker serves TLS, whatever the hostname.
#[derive(Clone, Debug)]
pub struct Options {
    pub provider: Provider,
    /// In order of preference; empty: the provider's.
    pub groups: Vec<String>,
    /// In order of preference; empty: the provider's, AES-128-GCM first.
    pub cipher_suites: Vec<String>,
    pub tickets: bool,
    /// Seconds.
    pub ticket_lifetime_s: u32,
}

/// Assembles tenants, one for each worker.
pub struct Factory {
    options: Options,
    ticketer: Arc<dyn ProducesTickets>,
    no_sessions: Arc<NoServerSessionStorage>,
    no_compression: Arc<CompressionCache>,
    provider: Arc<CryptoProvider>,
    /// The bases in use. They belong to their tenants, so that the bound of the tenants' cache bounds them too.
    bases: RefCell<HashMap<BaseKey, Weak<Base>>>,
}

impl Factory {
    /// A factory for these options.
    ///
    /// # Errors
    ///
    /// A group or suite the provider does not have.
    pub fn new(options: Options) -> Result<Self, String> {
        let provider = Arc::new(options.provider.build(&options.groups, &options.cipher_suites)?);
        let ticketer = Arc::new(ScopedTicketer { lifetime_s: options.ticket_lifetime_s });
        Ok(Self {
            options,
            ticketer,
            no_sessions: Arc::new(NoServerSessionStorage {}),
            no_compression: Arc::new(CompressionCache::Disabled),
            provider,
            bases: RefCell::default(),
        })
    }

    /// Assembles a record.
    ///
    /// # Errors
    ///
    /// [`Unreadable`]: a certificate, key, CA or suite that cannot be used. The hostname is refused (I7).
    pub fn assemble(&self, record: &Arc<HostnameRecord>) -> Result<Tenant, Unreadable> {
        let base = self.base(record)?;
        let keys = record
            .certificates
            .iter()
            .map(|certificate| self.certified_key(&certificate.chain, &certificate.key))
            .collect::<Result<Vec<_>, _>>()?;
        if keys.is_empty() {
            return Err(Unreadable("the record has no certificate".into()));
        }
        let mut config = base.config.clone();
        config.cert_resolver = Arc::new(Certificates { keys });
        config.alpn_protocols.clone_from(&record.alpn);
        let certificate_bytes: usize =
            record.certificates.iter().flat_map(|certificate| certificate.chain.iter().map(Vec::len)).sum();
        Ok(Tenant {
            binding: Binding { record_id: record.id, trust_digest: trust_digest(record) },
            config: Arc::new(config),
            base,
            record: Arc::clone(record),
            cost_bytes: TENANT_BYTES + 2 * certificate_bytes,
        })
    }

    fn base(&self, record: &HostnameRecord) -> Result<Rc<Base>, Unreadable> {
        let client_auth = &record.client_auth;
        let key = BaseKey {
            ca_set: client_auth.ca_set.as_ref().map(|set| set.digest),
            mode: client_auth.mode,
            options: verifier_options(client_auth),
            min_version: record.min_version,
            cipher_suites: record.cipher_suites.clone(),
        };
        if let Some(base) = self.bases.borrow().get(&key).and_then(Weak::upgrade) {
            return Ok(base);
        }
        let base = Rc::new(self.build_base(record)?);
        let mut bases = self.bases.borrow_mut();
        // Before the table grows, the places of bases that are gone are freed: it is never larger than twice what is used.
        if bases.len() == bases.capacity() {
            bases.retain(|_, base| base.strong_count() > 0);
        }
        bases.insert(key, Rc::downgrade(&base));
        Ok(base)
    }

    fn build_base(&self, record: &HostnameRecord) -> Result<Base, Unreadable> {
        let provider = if record.cipher_suites.is_empty() {
            Arc::clone(&self.provider)
        } else {
            let built = self.options.provider.build(&self.options.groups, &record.cipher_suites);
            Arc::new(built.map_err(Unreadable)?)
        };
        let client_auth = &record.client_auth;
        let verifier = match (client_auth.mode, &client_auth.ca_set) {
            (ClientAuthMode::Off, _) => None,
            (mode, Some(set)) => {
                let verifier = Verifier::new(mode, set, verifier_options(client_auth), &provider);
                Some(Arc::new(verifier.map_err(|error| Unreadable(format!("a client CA cannot be used: {error}")))?))
            }
            (_, None) => return Err(Unreadable("client authentication without a CA set".into())),
        };
        let versions: &[_] = match record.min_version {
            TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| Unreadable(format!("no usable TLS version: {error}")))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::<Verifier>::clone(verifier)),
            None => builder.with_client_cert_verifier(WebPkiClientVerifier::no_client_auth()),
        };
        let mut config = builder.with_cert_resolver(Arc::new(Certificates { keys: Vec::new() }));
        // The builder's default keeps sessions in a cache that clones share, past our tickets (DECISIONS 4).
        config.session_storage = Arc::<NoServerSessionStorage>::clone(&self.no_sessions);
        config.cert_compression_cache = Arc::clone(&self.no_compression);
        config.cert_compressors = Vec::new();
        config.cert_decompressors = Vec::new();
        // One ticket a handshake: each carries the client's chain, and clients use the newest.
        config.send_tls13_tickets = usize::from(self.options.tickets);
        config.max_tls13_tickets = 0;
        // No early data: a client certificate must never vouch for bytes that anyone can replay.
        config.max_early_data_size = 0;
        // Without the extended master secret a TLS 1.2 session can be spliced onto another's client authentication
        // (RFC 7627 section 1).
        config.require_ems = verifier.is_some();
        // The configured order of suites is the provider's decision, not the client's.
        config.ignore_client_order = true;
        if self.options.tickets {
            config.ticketer = Arc::clone(&self.ticketer);
        }
        let anchors_bytes: usize = client_auth.ca_set.iter().flat_map(|set| &set.cas).map(anchor_bytes).sum();
        Ok(Base { config, verifier, cost_bytes: BASE_BYTES + anchors_bytes })
    }

    fn certified_key(&self, chain: &[Vec<u8>], key: &PrivateKey) -> Result<Arc<CertifiedKey>, Unreadable> {
        let der = match key {
            PrivateKey::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.as_slice().into()),
            PrivateKey::Sec1(der) => PrivateKeyDer::Sec1(der.as_slice().into()),
            PrivateKey::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.as_slice().into()),
        };
        let key = self
            .provider
            .key_provider
            .load_private_key(der.clone_key())
            .map_err(|_| Unreadable("the private key is of a kind this provider cannot use".into()))?;
        let chain = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        Ok(Arc::new(CertifiedKey::new(chain, key)))
    }
}

/// A tenant's own part of the cache, beside its certificates: `ServerConfig`, resolver, key, map entries. An estimate from the
/// sizes of these types, on the safe side.
const TENANT_BYTES: usize = 4 * 1024;

/// A base without its anchors: `ServerConfig`, a provider with suites of its own, the verifier. Estimated likewise.
const BASE_BYTES: usize = 2 * 1024;

/// What an anchor takes beside the parts of its certificate: its two structs (some 250 bytes) and their allocations.
const ANCHOR_BYTES: usize = 384;

/// What a verifier keeps of one CA: subject, key and constraints are copied, the subject once more for CertificateRequest;
/// together less than the certificate they come from.
fn anchor_bytes(ca: &Ca) -> usize {
    ANCHOR_BYTES + ca.der.len()
}

fn verifier_options(client_auth: &ClientAuth) -> VerifierOptions {
    VerifierOptions {
        allow_expired_ca: client_auth.allow_expired_ca,
        verify_depth: client_auth.verify_depth,
        send_ca_names: client_auth.send_ca_names,
    }
}

/// What tickets are bound to besides the record: all that decides whether a client would be verified alike.
fn trust_digest(record: &HostnameRecord) -> [u8; 32] {
    let client_auth = &record.client_auth;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    context.update(&record.id.0);
    match &client_auth.ca_set {
        None => context.update(&[0]),
        Some(set) => {
            context.update(&[1]);
            context.update(&set.digest);
        }
    }
    context.update(&[client_auth.mode as u8, u8::from(client_auth.allow_expired_ca)]);
    // The default written down is the default: it kills no tickets.
    context.update(&verifier_options(client_auth).depth_max().to_be_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Chooses among a hostname's certificates by the signature schemes the client offers, in the order of the record.
#[derive(Debug)]
struct Certificates {
    keys: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let fits = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(schemes).is_some();
        // Where none fits, the first: rustls then answers with the right alert.
        self.keys.iter().find(fits).or(self.keys.first()).cloned()
    }
}
