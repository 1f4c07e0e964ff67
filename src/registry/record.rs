//! One hostname's record and what it shares with others.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::balancing::{Balancing, Check, Retries};
use super::{Name, Rewrites};
use crate::policy::{IdentitySets, Rules};

/// A record's random 128-bit identity; a record that is deleted and made again has another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RecordId(pub [u8; 16]);

/// How a hostname's bytes are forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// HTTP: each request is judged, rewritten and sent to the origin by itself.
    Http,
    /// Decrypted bytes, as they come.
    Tcp,
}

/// Whether a client certificate is asked for, and what happens without a good one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ClientAuthMode {
    /// Never asked for.
    Off,
    /// Asked for; the verdict goes to rules and origin, the handshake succeeds as long as the key is proved.
    Request,
    /// Asked for; the handshake fails without a certificate this hostname trusts.
    Require,
}

/// A TLS protocol version that can be served.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// A server certificate chain and its private key. Cloned where one hostname entry has several names.
#[derive(Clone)]
pub struct ServerCertificate {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The private key in its DER form, with its encoding.
    pub key: PrivateKey,
    /// The earliest notAfter of the chain, seconds since the Unix epoch.
    pub not_after_unix_s: i64,
}

/// A private key in DER, by encoding; wiped when dropped.
#[derive(Clone)]
pub enum PrivateKey {
    Pkcs8(Zeroizing<Vec<u8>>),
    Sec1(Zeroizing<Vec<u8>>),
    Pkcs1(Zeroizing<Vec<u8>>),
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate").field("chain_len", &self.chain.len()).finish_non_exhaustive()
    }
}

/// One CA certificate of a CA set.
#[derive(Clone, Debug)]
pub struct Ca {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// Its notBefore, seconds since the Unix epoch.
    pub not_before_unix_s: i64,
    /// Its notAfter, seconds since the Unix epoch.
    pub not_after_unix_s: i64,
}

/// The CAs one or many hostnames trust; shared by digest.
#[derive(Debug)]
pub struct CaSet {
    /// SHA-256 over the sorted SHA-256 digests of the CAs' DER.
    pub digest: [u8; 32],
    /// Sorted by digest of the DER, without duplicates.
    pub cas: Vec<Ca>,
}

/// What a hostname asks of its clients.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    pub mode: ClientAuthMode,
    /// `None` exactly when the mode is `Off`.
    pub ca_set: Option<Arc<CaSet>>,
    /// Anchors outside their own dates still count (default: they do not).
    pub allow_expired_ca: bool,
    /// Most certificates between the client's and the CA; `None`: as many as a chain may have.
    pub verify_depth: Option<u8>,
    /// CA names are sent in CertificateRequest (default: they are not; long lists break clients).
    pub send_ca_names: bool,
    /// The headers in which an origin over HTTP is told who the client is.
    pub headers: IdentitySets,
}

/// Where one address of an origin is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum OriginAddress {
    /// A host (IP literal or name) and port.
    Tcp { host: String, port: u16 },
    /// A Unix-domain stream socket.
    Unix(PathBuf),
}

/// What the URLs of an origin say it speaks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scheme {
    /// All of them are Unix-domain sockets, which say nothing.
    Any,
    Http,
    /// HTTP over TLS.
    Https,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 section 3.3).
    H2c,
    Tcp,
}

/// How an origin is told of the client in front of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProxyProtocol {
    /// Not at all.
    Off,
    /// By a line with its address.
    V1,
    /// By a header with its address, the hostname, and what TLS found out.
    V2,
}

impl Scheme {
    /// Whether it is HTTP, in any form.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https | Self::H2c)
    }

    /// As URLs have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Any => "unix",
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
            Self::Tcp => "tcp",
        }
    }
}

/// How TLS is spoken with an origin.
#[derive(Clone, Debug)]
pub struct OriginTls {
    /// The CAs that may have issued the origin's certificate.
    pub cas: Arc<CaSet>,
    /// Certificates that are trusted themselves, whoever issued them.
    pub pinned: Vec<Ca>,
    /// The name the origin's certificate must be for; `None`: the host of the URL.
    pub server_name: Option<String>,
    /// Our own certificate, for origins that ask for one.
    pub certificate: Option<ServerCertificate>,
    pub min_version: TlsVersion,
    /// HTTP/2 is offered to it (ALPN).
    pub http2: bool,
    /// SHA-256 over everything above: its TLS identity. Connections of one digest are alike, those of two are never mixed.
    pub digest: [u8; 32],
}

impl PartialEq for OriginTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for OriginTls {}

impl Hash for OriginTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.digest.hash(state);
    }
}

/// Where a hostname's bytes go.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    /// The name of the `[origin.NAME]` table, or the URL of an unnamed one. The key under which workers keep its state.
    pub name: String,
    /// At least one.
    pub addresses: Vec<OriginAddress>,
    pub scheme: Scheme,
    /// Present exactly when the scheme is `Https` and the files it rests on have been read.
    pub tls: Option<Arc<OriginTls>>,
    /// Bound on one attempt to connect, TLS included.
    pub connect_timeout: Duration,
    /// What each connection opens with.
    pub proxy_protocol: ProxyProtocol,
    /// Most idle connections a worker keeps, all hostnames together.
    pub idle_connections_max: usize,
    /// Hostnames may use each other's idle connections (DECISIONS 24).
    pub share: bool,
    /// From the request sent to the first byte of the response.
    pub response_timeout: Duration,
    /// From the head of a request to the end of its response; `None`: as long as it takes.
    pub request_timeout: Option<Duration>,
    /// What is sent again.
    pub retries: Retries,
    /// How its addresses share the work.
    pub balancing: Balancing,
    /// How its addresses are checked; `None`: they are not.
    pub check: Option<Check>,
}

impl Origin {
    /// The bound on one attempt to connect, unless told otherwise.
    pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);

    /// As many idle connections as keep a busy worker from connecting anew: requests in progress at once rarely differ by
    /// more from one moment to the next. An idle connection costs a descriptor at both ends.
    pub const IDLE_CONNECTIONS_DEFAULT: usize = 64;

    /// What nginx and HAProxy users are used to (`proxy_read_timeout`).
    pub const RESPONSE_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);

    /// Whether exchanges with it may go over HTTP/2.
    pub fn may_speak_http2(&self) -> bool {
        self.scheme == Scheme::H2c || self.tls.as_deref().is_some_and(|tls| tls.http2)
    }

    /// An origin with every default.
    pub fn new(name: String, addresses: Vec<OriginAddress>, scheme: Scheme) -> Self {
        Self {
            name,
            addresses,
            scheme,
            tls: None,
            connect_timeout: Self::CONNECT_TIMEOUT_DEFAULT,
            proxy_protocol: ProxyProtocol::Off,
            idle_connections_max: Self::IDLE_CONNECTIONS_DEFAULT,
            share: false,
            response_timeout: Self::RESPONSE_TIMEOUT_DEFAULT,
            request_timeout: None,
            retries: Retries::default(),
            balancing: Balancing::default(),
            check: None,
        }
    }
}

/// One hostname: everything a worker needs to serve it.
#[derive(Debug)]
pub struct HostnameRecord {
    pub id: RecordId,
    pub name: Name,
    /// Serves names no record has.
    pub is_default: bool,
    pub mode: Mode,
    pub certificates: Vec<ServerCertificate>,
    pub client_auth: ClientAuth,
    pub rules: Rules,
    pub origin: Arc<Origin>,
    pub min_version: TlsVersion,
    /// IANA names in order of preference; empty: the provider's.
    pub cipher_suites: Vec<String>,
    /// ALPN protocol names in order of preference; empty: none is negotiated.
    pub alpn: Vec<Vec<u8>>,
    /// Header names outside letters, digits and hyphens reach the origin (default: they do not, DECISIONS 21).
    pub keep_unusual_headers: bool,
    /// What is changed in requests and responses; `None`: nothing.
    pub rewrites: Option<Arc<Rewrites>>,
    /// SHA-256 over everything above but the id: equal digests serve alike.
    pub digest: [u8; 32],
}
