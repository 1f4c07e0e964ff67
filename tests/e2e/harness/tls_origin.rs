//! TLS in front of an origin that speaks without: a server of another kind than ours, which notes what it is shown.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::pki::{Authority, Identity};

/// TLS 1.2 alone, and TLS 1.3 alone.
pub static V1_2: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];
pub static V1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// What a connection showed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    pub resumed: bool,
    pub server_name: Option<String>,
    pub alpn: Option<String>,
    /// The client's leaf certificate, DER.
    pub certificate: Option<Vec<u8>>,
}

/// How a front serves.
#[derive(Clone)]
pub struct Front {
    identity: Identity,
    clients: Option<(Vec<u8>, bool)>,
    versions: &'static [&'static SupportedProtocolVersion],
    alpn: Vec<Vec<u8>>,
    impolite: bool,
}

impl Front {
    pub fn new(identity: Identity) -> Self {
        Self { identity, clients: None, versions: rustls::ALL_VERSIONS, alpn: vec![], impolite: false }
    }

    /// Requires a certificate of this authority.
    pub fn require(mut self, clients: &Authority) -> Self {
        self.clients = Some((clients.der().to_vec(), true));
        self
    }

    /// Asks for one, and takes none as well.
    pub fn request(mut self, clients: &Authority) -> Self {
        self.clients = Some((clients.der().to_vec(), false));
        self
    }

    pub fn versions(mut self, versions: &'static [&'static SupportedProtocolVersion]) -> Self {
        self.versions = versions;
        self
    }

    pub fn alpn(mut self, names: &[&str]) -> Self {
        self.alpn = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        self
    }

    /// Never says close_notify.
    pub fn impolite(mut self) -> Self {
        self.impolite = true;
        self
    }

    fn config(&self) -> ServerConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(self.versions)
            .expect("versions of the provider");
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some((der, required)) => {
                let mut roots = RootCertStore::empty();
                roots.add(der.clone().into()).expect("a CA");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = if *required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let key = self.identity.certified_key();
        let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::clone(&key),
        )));
        config.alpn_protocols.clone_from(&self.alpn);
        config
    }

    /// Serves what stands behind `backend` on a port the kernel chooses, from a thread of its own.
    pub fn serve(self, backend: SocketAddr) -> TlsFront {
        let shown = Arc::new(Mutex::new(Vec::new()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("a flag");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel::<()>();
        let notes = Arc::clone(&shown);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let acceptor = TlsAcceptor::from(Arc::new(self.config()));
                let serve = async {
                    while let Ok((stream, _)) = listener.accept().await {
                        let (acceptor, notes) = (acceptor.clone(), Arc::clone(&notes));
                        let impolite = self.impolite;
                        // What fails is seen by the edge, which the cases look at.
                        tokio::spawn(async move { drop(pass(stream, &acceptor, backend, impolite, &notes).await) });
                    }
                };
                tokio::select! { () = serve => {}, _ = stopped => {} }
            });
        });
        TlsFront { address, shown, _stop: stop }
    }
}

async fn pass(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    backend: SocketAddr,
    impolite: bool,
    notes: &Mutex<Vec<Shown>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut tls = acceptor.accept(stream).await?;
    {
        let (_, connection) = tls.get_ref();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        notes.lock().expect("no test panics while holding this").push(Shown {
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            server_name: connection.server_name().map(str::to_owned),
            alpn: connection.alpn_protocol().map(text),
            certificate: connection.peer_certificates().map(|chain| chain[0].to_vec()),
        });
    }
    let mut behind = TcpStream::connect(backend).await?;
    behind.set_nodelay(true)?;
    if !impolite {
        return tokio::io::copy_bidirectional(&mut tls, &mut behind).await.map(drop);
    }
    let (mut from_edge, mut to_edge) = tokio::io::split(tls);
    let (mut from_behind, mut to_behind) = behind.split();
    let upward = async {
        let _ = copy(&mut from_edge, &mut to_behind).await;
        let _ = to_behind.shutdown().await;
        std::future::pending::<()>().await;
    };
    let downward = async {
        let mut block = vec![0; 16 * 1024];
        loop {
            match from_behind.read(&mut block).await {
                Ok(0) | Err(_) => return,
                Ok(count) if to_edge.write_all(&block[..count]).await.is_err() => return,
                Ok(_) => drop(to_edge.flush().await),
            }
        }
    };
    // What was written is with the kernel; the socket is dropped without a goodbye.
    tokio::select! { () = upward => {}, () = downward => {} }
    Ok(())
}

/// A running front; it ends when dropped.
pub struct TlsFront {
    address: SocketAddr,
    shown: Arc<Mutex<Vec<Shown>>>,
    _stop: oneshot::Sender<()>,
}

impl TlsFront {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, by its address.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What its connections showed so far.
    pub fn shown(&self) -> Vec<Shown> {
        self.shown.lock().expect("no test panics while holding this").clone()
    }
}
