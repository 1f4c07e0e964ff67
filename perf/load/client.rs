//! The client side of a connection: rustls configurations per hostname, and how a connection is opened.
//!
//! The client's own cryptography is kept cheap, because load and origin share one core: it compares the server's leaf
//! byte by byte with the one the PKI holds (which also proves that the SNI reached the right hostname) and skips the
//! signatures, whose checking would tell nothing about the server's cost.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Failure, host_name, pem_path, read_identity};
use crate::options::{Options, Version};

/// Client addresses 127.0.0.2 to 127.0.0.250 take turns, so that neither 60 s of `TIME_WAIT` nor many open connections
/// use up the ephemeral ports of one address.
const SOURCES: std::ops::RangeInclusive<u8> = 2..=250;

/// Room of a ticket store that serves one hostname. rustls counts in server names, rounded up to one.
const TICKET_STORE: usize = 8;

/// One hostname as one task sees it; a task's tickets are its own, so that no other task uses them up.
pub struct Target {
    pub name: ServerName<'static>,
    pub host: String,
    connector: TlsConnector,
}

/// Opens connections for all tasks.
pub struct Dialer {
    server: SocketAddr,
    source: Cell<u8>,
    bases: Vec<ClientConfig>,
    resume: bool,
}

impl Dialer {
    /// Reads the certificates and builds one configuration per hostname.
    ///
    /// # Errors
    /// A PEM file that is missing or does not parse.
    pub fn new(options: &Options, resume: bool) -> Result<Rc<Self>, Failure> {
        let bases = (0..options.hosts).map(|host| base(options, host)).collect::<Result<_, _>>()?;
        Ok(Rc::new(Self { server: options.connect, source: Cell::new(*SOURCES.start()), bases, resume }))
    }

    /// The hostnames for one more task, beginning with number `first` modulo their count.
    ///
    /// # Errors
    /// Never for the names the PKI has.
    pub fn targets(&self, first: usize) -> Result<Vec<Target>, Failure> {
        let count = self.bases.len();
        (0..count).map(|i| (first + i) % count).map(|host| self.target(host)).collect()
    }

    fn target(&self, host: usize) -> Result<Target, Failure> {
        let mut config = self.bases.get(host).ok_or("no such hostname")?.clone();
        config.resumption =
            if self.resume { Resumption::in_memory_sessions(TICKET_STORE) } else { Resumption::disabled() };
        let host = host_name(host);
        Ok(Target { name: ServerName::try_from(host.clone())?, host, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// TCP connection and handshake.
    ///
    /// # Errors
    /// Whatever the kernel or the handshake refuses.
    pub async fn dial(&self, target: &Target) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(IpAddr::V4(self.next_source()), 0))?;
        let stream = socket.connect(self.server).await?;
        stream.set_nodelay(true)?;
        target.connector.connect(target.name.clone(), stream).await
    }

    fn next_source(&self) -> Ipv4Addr {
        let last = self.source.get();
        self.source.set(if last >= *SOURCES.end() { *SOURCES.start() } else { last + 1 });
        Ipv4Addr::new(127, 0, 0, last)
    }
}

/// One hostname's client configuration, still without a ticket store.
fn base(options: &Options, host: usize) -> Result<ClientConfig, Failure> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    if options.tls == Version::Tls12 {
        // Up to TLS 1.2 the groups also say which curves a certificate may have (RFC 8422 section 5.1), and OpenSSL
        // insists; X25519 stays first and is what gets used.
        provider.kx_groups.push(aws_lc_rs::kx_group::SECP256R1);
    }
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    let provider = Arc::new(provider);
    let version = match options.tls {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    let (chain, _) = read_identity(&pem_path(&options.pki, host, &format!("{}.pem", options.key)))?;
    let leaf = chain.into_iter().next().ok_or("the PKI holds an empty certificate chain")?;
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { leaf, provider }));
    if options.mutual {
        let (chain, key) = read_identity(&pem_path(&options.pki, host, "client.pem"))?;
        Ok(builder.with_client_auth_cert(chain, key)?)
    } else {
        Ok(builder.with_no_client_auth())
    }
}

/// Accepts exactly one server certificate, unsigned: fit for load on loopback, and for nothing else.
#[derive(Debug)]
struct Pinned {
    leaf: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.leaf {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
