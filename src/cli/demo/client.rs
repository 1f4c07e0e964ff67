//! The demo's own TLS client: rustls, with a ticket store that does what no honest client does.
//!
//! rustls offers a ticket only to the name it came from and only with the same credentials. The attack of the demo needs
//! neither rule, so the store hands its one ticket to whoever asks, and the credentials are switched underneath.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::client::{
    ClientSessionStore, ResolvesClientCert, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, SignatureScheme, version,
};
use rustls_pki_types::{CertificateDer, ServerName};

use super::pki::Leaf;
use super::{ACME, GLOBEX, origin};

/// How long one exchange may take; it takes milliseconds.
const EXCHANGE_LIMIT: Duration = Duration::from_secs(10);

/// What became of one exchange.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// An HTTP response came: from this customer's origin (otherwise from the edge), which was told this subject.
    Answered { status: u16, from: Option<&'static str>, subject: Option<String>, resumed: bool },
    /// The edge refused with this TLS alert.
    Alert(String),
    /// Anything else.
    Failed(String),
}

/// One client, for one TLS version.
pub struct Client {
    config: Arc<ClientConfig>,
    tickets: Arc<Tickets>,
    credentials: Arc<Credentials>,
}

/// The ticket that came last, given to whoever asks once it is offered.
#[derive(Debug, Default)]
struct Tickets {
    /// Of TLS 1.3, good for one use.
    v13: Mutex<Option<Tls13ClientSessionValue>>,
    v12: Mutex<Option<Tls12ClientSessionValue>>,
    /// Whether the ticket is offered, and new ones dropped; otherwise new ones replace it.
    offered: AtomicBool,
}

/// What the client shows when asked for a certificate.
#[derive(Debug, Default)]
struct Credentials(Mutex<Option<Arc<CertifiedKey>>>);

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client that trusts the provider's CA and speaks only this version.
    pub fn new(provider_ca: &CertificateDer<'static>, protocol: ProtocolVersion) -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(provider_ca.clone())?;
        let version = if protocol == ProtocolVersion::TLSv1_2 { &version::TLS12 } else { &version::TLS13 };
        let (tickets, credentials) = (Arc::<Tickets>::default(), Arc::<Credentials>::default());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version])?;
        let mut config = builder
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::clone(&credentials) as Arc<dyn ResolvesClientCert>);
        config.resumption = Resumption::store(Arc::clone(&tickets) as Arc<dyn ClientSessionStore>);
        Ok(Self { config: Arc::new(config), tickets, credentials })
    }

    /// Shows this certificate from now on, or none.
    pub fn show(&self, leaf: Option<&Leaf>) -> Result<(), rustls::Error> {
        let key = match leaf {
            Some(leaf) => {
                let key = aws_lc_rs::sign::any_supported_type(&leaf.key())?;
                Some(Arc::new(CertifiedKey::new(vec![leaf.certificate.clone()], key)))
            }
            None => None,
        };
        *lock(&self.credentials.0) = key;
        Ok(())
    }

    /// Gets a ticket from this hostname and offers it in the next exchange, wherever that goes.
    ///
    /// # Errors
    /// What came instead of an answer and a ticket.
    pub fn take_ticket(&self, address: SocketAddr, hostname: &'static str) -> Result<(), Seen> {
        self.drop_ticket();
        match self.get(address, hostname) {
            Seen::Answered { .. } if lock(&self.tickets.v13).is_some() || lock(&self.tickets.v12).is_some() => {
                self.tickets.offered.store(true, Ordering::Relaxed);
                Ok(())
            }
            Seen::Answered { .. } => Err(Seen::Failed("no session ticket came".into())),
            other => Err(other),
        }
    }

    /// Forgets the ticket it has.
    pub fn drop_ticket(&self) {
        self.tickets.offered.store(false, Ordering::Relaxed);
        *lock(&self.tickets.v13) = None;
        *lock(&self.tickets.v12) = None;
    }

    /// Asks for `/` at a hostname, and tells what came of it.
    pub fn get(&self, address: SocketAddr, hostname: &'static str) -> Seen {
        self.ask(address, hostname, hostname, "")
    }

    /// As [`Client::get`], naming `host` inside the connection and sending more header lines, each ended by CRLF.
    pub fn ask(&self, address: SocketAddr, hostname: &'static str, host: &str, lines: &str) -> Seen {
        self.exchange(address, hostname, host, lines).unwrap_or_else(|error| {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            match tls {
                Some(rustls::Error::AlertReceived(alert)) => Seen::Alert(alert_name(*alert)),
                _ => Seen::Failed(error.to_string()),
            }
        })
    }

    fn exchange(&self, address: SocketAddr, hostname: &'static str, host: &str, lines: &str) -> io::Result<Seen> {
        let name = ServerName::try_from(hostname).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)?;
        let socket = TcpStream::connect_timeout(&address, EXCHANGE_LIMIT)?;
        socket.set_read_timeout(Some(EXCHANGE_LIMIT))?;
        socket.set_write_timeout(Some(EXCHANGE_LIMIT))?;
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        stream.flush()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let page = answer.split_once("\r\n\r\n").map_or("", |(_, page)| page);
        let Some(status) = status else {
            return Ok(Seen::Failed(format!("no HTTP response, {} bytes", answer.len())));
        };
        let from = [ACME, GLOBEX].iter().find(|customer| page.starts_with(&origin::page(customer.name)));
        // Two subjects would be a forged one beside the true one: shown as they are, so that no case matches.
        let subjects = origin::told_on(page, origin::SUBJECT).join(" and ");
        Ok(Seen::Answered {
            status,
            from: from.map(|customer| customer.name),
            subject: (!subjects.is_empty()).then_some(subjects),
            resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
        })
    }
}

/// The alert's name as RFC 8446 section 6 writes it.
fn alert_name(alert: rustls::AlertDescription) -> String {
    let camel = format!("{alert:?}");
    let mut name = String::new();
    for (index, c) in camel.chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 && !name.ends_with("_c") {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    // rustls writes the CA of unknown_ca as one word.
    name.replace("unknown_c_a", "unknown_ca")
}

impl Tickets {
    fn is_offered(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }
}

impl ResolvesClientCert for Credentials {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        lock(&self.0).clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        if !self.is_offered() {
            *lock(&self.v12) = Some(value);
        }
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        lock(&self.v12).clone().filter(|_| self.is_offered())
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        if !self.is_offered() {
            *lock(&self.v13) = Some(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.is_offered() { lock(&self.v13).take() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::alert_name;
    use rustls::AlertDescription;

    #[test]
    fn alerts_have_their_names_of_the_rfc() {
        for (alert, name) in [
            (AlertDescription::UnknownCA, "unknown_ca"),
            (AlertDescription::CertificateRequired, "certificate_required"),
            (AlertDescription::UnrecognisedName, "unrecognised_name"),
            (AlertDescription::BadCertificate, "bad_certificate"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
