//! The client's end: a rustls client that can be made to misbehave where its store and its certificate let it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, NamedGroup, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::pki::{Certified, servers};

/// A store that gives what it has to whoever asks, by whatever name: a client that offers any ticket anywhere.
#[derive(Debug, Default)]
pub struct AnyName {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Vec<Tls13ClientSessionValue>>,
}

impl ClientSessionStore for AnyName {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        *self.tls12.lock().unwrap() = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().unwrap().clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.tls13.lock().unwrap().push(value);
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().unwrap().pop()
    }
}

/// Presents a certificate, without looking whether the key is its own, until told not to.
pub struct Presents {
    key: Option<Arc<CertifiedKey>>,
    present: AtomicBool,
}

impl fmt::Debug for Presents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Presents")
    }
}

impl ResolvesClientCert for Presents {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let key = self.key.as_ref().filter(|_| self.present.load(Ordering::Relaxed))?;
        key.key.choose_scheme(schemes).map(|_| Arc::clone(key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A client: its configuration, its tickets and its certificate.
pub struct Client {
    pub config: Arc<ClientConfig>,
    pub store: Arc<AnyName>,
    presents: Arc<Presents>,
}

pub const TLS12: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
pub const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [TLS12, TLS13];

impl Client {
    /// A client of one version, with a certificate or without.
    pub fn new(versions: &[&'static SupportedProtocolVersion], certified: Option<&Certified>) -> Self {
        Self::with_provider(aws_lc_rs::default_provider(), versions, certified)
    }

    /// A client of other groups or suites.
    pub fn with_provider(
        provider: CryptoProvider,
        versions: &[&'static SupportedProtocolVersion],
        certified: Option<&Certified>,
    ) -> Self {
        let key = certified.map(|certified| {
            let key = PrivateKeyDer::Pkcs8(certified.key.clone().into());
            let key = provider.key_provider.load_private_key(key).unwrap();
            Arc::new(CertifiedKey::new(certified.chain.clone(), key))
        });
        let presents = Arc::new(Presents { key, present: AtomicBool::new(true) });
        let store = Arc::new(AnyName::default());
        let mut roots = RootCertStore::empty();
        roots.add(servers().root.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::<Presents>::clone(&presents));
        config.resumption = Resumption::store(Arc::<AnyName>::clone(&store));
        Self { config: Arc::new(config), store, presents }
    }

    /// From now on no certificate is presented; rustls takes it for the same client still, and offers its tickets.
    pub fn withhold_certificate(&self) {
        self.presents.present.store(false, Ordering::Relaxed);
    }

    /// How many tickets of TLS 1.3 it holds, or whether it has a session of TLS 1.2.
    pub fn tickets(&self) -> usize {
        self.store.tls13.lock().unwrap().len() + usize::from(self.store.tls12.lock().unwrap().is_some())
    }

    /// Forgets all tickets.
    pub fn forget_tickets(&self) {
        self.store.tls13.lock().unwrap().clear();
        *self.store.tls12.lock().unwrap() = None;
    }
}
