//! A client that does exactly what a case says: this version, this name, this certificate with that key, those tickets.

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme, SupportedProtocolVersion,
};

use super::pki::{Authority, Identity};
use super::session::{End, Session, connect_from};
use super::tickets::TicketBook;

const TLS12_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A TLS version to speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    V1_2,
    V1_3,
}

impl Tls {
    /// Both, for cases that must hold in each.
    pub const BOTH: [Self; 2] = [Self::V1_2, Self::V1_3];

    /// The version label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        match self {
            Self::V1_2 => TLS12_ONLY,
            Self::V1_3 => TLS13_ONLY,
        }
    }
}

/// A client. Clones share certificate and tickets: rustls offers a session only under the very objects it was made with.
#[derive(Clone)]
pub struct Client {
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    wallet: Arc<Wallet>,
    tickets: Arc<TicketBook>,
    version: Option<Tls>,
    alpn: Vec<Vec<u8>>,
    source: Option<IpAddr>,
}

impl Client {
    /// A client that trusts servers of this authority, speaks TLS 1.3 and 1.2 and has no certificate.
    pub fn new(servers: &Authority) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(servers.der().clone()).expect("a root");
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .expect("a verifier");
        Self {
            provider,
            verifier,
            wallet: Arc::new(Wallet::default()),
            tickets: Arc::new(TicketBook::default()),
            version: None,
            alpn: Vec::new(),
            source: None,
        }
    }

    /// Presents this identity when asked, and is nobody's clone any more.
    pub fn with_identity(mut self, identity: Identity) -> Self {
        self.wallet = Arc::new(Wallet::default());
        self.tickets = Arc::new(TicketBook::default());
        self.present(Some(&identity));
        self
    }

    /// Changes what is presented from now on; tickets stay.
    pub fn present(&self, identity: Option<&Identity>) {
        *self.wallet.current.lock().expect("no test panics while holding this") = identity.map(Identity::certified_key);
    }

    /// Speaks this version only.
    pub fn tls(mut self, version: Tls) -> Self {
        self.version = Some(version);
        self
    }

    pub fn alpn(mut self, protocols: &[&str]) -> Self {
        self.alpn = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        self
    }

    /// Takes whatever certificate the server shows: for names that are not in it.
    pub fn any_server(mut self) -> Self {
        self.verifier = Arc::new(AnyServer { provider: Arc::clone(&self.provider) });
        self
    }

    /// Connects from this address of the loopback network.
    pub fn sourced_at(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// The tickets this client and its clones hold.
    pub fn tickets(&self) -> &TicketBook {
        &self.tickets
    }

    /// A connection whose handshake has not begun; `name` may be an IP address: then no server name is sent.
    pub fn begin(&self, server: SocketAddr, name: &str) -> Result<Session, End> {
        let socket = connect_from(self.source, server)?;
        Ok(self.begin_on(socket, name))
    }

    /// The same over a socket that is already connected.
    pub fn begin_on(&self, socket: TcpStream, name: &str) -> Session {
        let name = ServerName::try_from(name.to_owned()).expect("a server name");
        let connection = ClientConnection::new(Arc::new(self.config()), name).expect("a client");
        Session::new(connection, socket)
    }

    /// Connects and shakes hands, as far as the client can tell: a TLS 1.3 client learns of its refusal afterwards.
    pub fn open(&self, server: SocketAddr, name: &str) -> Result<Session, End> {
        let mut session = self.begin(server, name)?;
        session.shake()?;
        Ok(session)
    }

    /// Connects to an echo origin and has a word echoed: whoever gets this far was let in.
    pub fn enter(&self, server: SocketAddr, name: &str) -> Result<Session, End> {
        let mut session = self.open(server, name)?;
        session.ping()?;
        Ok(session)
    }

    /// [`Self::enter`], where it must succeed.
    #[track_caller]
    pub fn expect_in(&self, server: SocketAddr, name: &str) -> Session {
        match self.enter(server, name) {
            Ok(session) => session,
            Err(end) => panic!("{name} refused a client it should let in: {end:?}"),
        }
    }

    /// [`Self::enter`], where it must fail with this alert.
    #[track_caller]
    pub fn expect_alert(&self, server: SocketAddr, name: &str, alert: rustls::AlertDescription) {
        let end = self.enter(server, name).err();
        assert_eq!(end, Some(End::Alert(alert)), "at {name}");
    }

    pub(super) fn config(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let versions = self.version.map_or(rustls::DEFAULT_VERSIONS, Tls::versions);
        let mut config = builder
            .with_protocol_versions(versions)
            .expect("versions the provider has")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&self.verifier))
            .with_client_cert_resolver(Arc::clone(&self.wallet) as Arc<dyn ResolvesClientCert>);
        config.resumption = Resumption::store(Arc::clone(&self.tickets) as _);
        config.alpn_protocols.clone_from(&self.alpn);
        config
    }
}

/// What the client presents, changeable under rustls' feet.
#[derive(Default)]
struct Wallet {
    current: Mutex<Option<Arc<CertifiedKey>>>,
}

impl fmt::Debug for Wallet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wallet(..)")
    }
}

impl ResolvesClientCert for Wallet {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.lock().expect("no test panics while holding this").clone()
    }

    fn has_certs(&self) -> bool {
        self.current.lock().expect("no test panics while holding this").is_some()
    }
}

/// Takes any certificate, and still checks that its key signed.
#[derive(Debug)]
struct AnyServer {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
