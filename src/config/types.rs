//! The typed configuration: what a checked file says, with every default filled in.
//!
//! Only what this version builds is here; the key of a feature to come is an unknown key. Ranges are checked while reading
//! (`schema`), so that the rooms that use these values need not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::report::{Place, Problem};
use crate::policy::IdentitySets;
use crate::policy::rules::RuleSpec;
use crate::registry::{ClientAuthMode, Mode, Name, Origin, Rewrites, TlsVersion};
use crate::tls::Provider;

/// A configuration without errors.
#[derive(Clone, Debug)]
pub struct Config {
    /// The files that were read, the main one first.
    pub files: Vec<Arc<Path>>,
    pub server: Server,
    pub admin: Admin,
    pub tls: Tls,
    pub limits: Limits,
    pub cache: Cache,
    pub log: Log,
    /// The `[origin.NAME]` tables, in the order in which they are written; used or not.
    pub origins: Vec<Arc<Origin>>,
    /// The `[[hostname]]` tables, in the order in which they are written.
    pub hostnames: Vec<Hostname>,
    /// What is worth knowing and does not stop the configuration from being used.
    pub warnings: Vec<Problem>,
}

/// `[server]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// Where every worker listens. At least one, all different.
    pub listen: Vec<SocketAddr>,
    pub workers: Workers,
    /// The CPUs workers are pinned to, ascending; `None`: those of the process's own affinity.
    pub cpus: Option<Vec<usize>>,
    /// Where state that survives a restart is kept.
    pub state_dir: PathBuf,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are kept.
    pub trusted_proxies: Vec<IpNet>,
    /// Peers whose connections begin with a PROXY header, in `listen` and `redirect` alike.
    pub proxy_protocol_from: Vec<IpNet>,
    /// The share of requests without a trace that begin one which is to be recorded, in millionths; `None`: none is begun.
    pub trace_sampling: Option<u32>,
    /// Where plain HTTP is answered with a redirect to https, and with nothing else. All different, none in `listen`;
    /// empty: nowhere.
    pub redirect: Vec<SocketAddr>,
    /// The port redirects lead to; `None`: that of the first address of `listen`.
    pub redirect_port: Option<u16>,
}

/// How many workers there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workers {
    /// One per usable CPU.
    Auto,
    /// This many, at least 1.
    Count(usize),
}

/// `[admin]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// The Unix-domain socket of `status`, `reload` and `drain`.
    pub socket: PathBuf,
    /// Where metrics and health are served over HTTP; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[tls]`: what holds for every hostname, or for those that do not say otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tls {
    pub provider: Provider,
    /// The default of `hostname.min_version`; already applied to each [`Hostname`].
    pub min_version: TlsVersion,
    /// In order of preference; at least one, and all known to the provider.
    pub groups: Vec<Group>,
    /// IANA names in order of preference, empty for the provider's own; already applied to each [`Hostname`].
    pub cipher_suites: Vec<String>,
    /// Whether sessions may be resumed.
    pub tickets: bool,
    /// How long after its full handshake a session may be resumed.
    pub ticket_lifetime: Duration,
}

/// A key-exchange group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    X25519MlKem768,
    X25519,
    Secp256r1,
    Secp384r1,
}

impl Group {
    /// Every group there is, in the default order of preference: post-quantum first, then the cheapest.
    pub const ALL: [Self; 4] = [Self::X25519MlKem768, Self::X25519, Self::Secp256r1, Self::Secp384r1];

    /// The IANA name, as it is written in the file.
    pub fn name(self) -> &'static str {
        match self {
            Self::X25519MlKem768 => "X25519MLKEM768",
            Self::X25519 => "X25519",
            Self::Secp256r1 => "secp256r1",
            Self::Secp384r1 => "secp384r1",
        }
    }

    /// Whether the provider has it: rustls' ring provider has no ML-KEM.
    pub fn is_in(self, provider: Provider) -> bool {
        provider == Provider::AwsLcRs || self != Self::X25519MlKem768
    }
}

/// `[limits]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Above it, accepting pauses.
    pub connections_per_worker: usize,
    /// Handshakes in progress at once; above it, connections wait.
    pub handshakes_per_worker: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    /// How long open connections may last once draining began.
    pub drain_timeout: Duration,
    /// How long a tunnel may be idle.
    pub tunnel_timeout: Duration,
    /// From the first byte of a request head to its last.
    pub header_timeout: Duration,
    /// How long a connection may wait for its next request.
    pub idle_timeout: Duration,
    /// The largest head of a request or response, bytes.
    pub header_bytes: usize,
    /// The most fields of such a head.
    pub headers: usize,
    /// The largest body of a request, bytes; `None`: any.
    pub body_bytes: Option<u64>,
    /// The slowest a peer may send or take a body, bytes a second; `None`: as slow as it likes.
    pub min_body_rate: Option<u64>,
    /// Most streams of one HTTP/2 connection at once.
    pub http2_streams: u32,
    /// What an HTTP/2 client may send ahead of its origins, bytes a connection.
    pub http2_window: u32,
}

/// `[cache]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cache {
    /// Memory for assembled tenants, bytes a worker.
    pub tenants_per_worker: u64,
    /// Remembered names that nobody has, entries a worker.
    pub misses_per_worker: usize,
}

/// `[log]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    pub level: LogLevel,
    pub access: Access,
}

/// Where the access log goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    Off,
    /// Standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}

/// The least severe event that is logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// One `[[hostname]]`: one record for each of its names.
#[derive(Clone, Debug)]
pub struct Hostname {
    /// Where the table begins.
    pub place: Place,
    /// At least one, each with where it is written. If the table is the default, the first one's record is.
    pub names: Vec<(Name, Place)>,
    /// At least one.
    pub certificates: Vec<CertificateFiles>,
    pub origin: Arc<Origin>,
    /// The files TLS with the origin rests on; present exactly when its scheme is https.
    pub origin_tls: Option<Arc<OriginTlsFiles>>,
    pub mode: Mode,
    /// Serves names no record has; true for at most one hostname.
    pub is_default: bool,
    pub min_version: TlsVersion,
    /// IANA names in order of preference; empty: the provider's.
    pub cipher_suites: Vec<String>,
    /// In order of preference; empty: none is negotiated.
    pub alpn: Vec<Vec<u8>>,
    pub keep_unusual_headers: bool,
    /// What is changed in requests and responses; `None`: nothing.
    pub rewrites: Option<Arc<Rewrites>>,
    pub client_auth: ClientAuthFiles,
    /// In the order in which they are tried.
    pub rules: Vec<Rule>,
}

/// A certificate and its key, as files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateFiles {
    /// Where the certificate is named.
    pub place: Place,
    /// PEM; the chain, leaf first.
    pub certificate: PathBuf,
    /// PEM; may be the same file as the certificate, and is when the file says nothing.
    pub private_key: PathBuf,
    /// Where the key is named; where the certificate is, if it is not named itself.
    pub key_place: Place,
}

/// How TLS is spoken with an origin, as files: `[origin.NAME]` and its `tls`.
#[derive(Clone, Debug)]
pub struct OriginTlsFiles {
    /// Where the origin is named.
    pub place: Place,
    /// PEM files of CAs, or of certificates that are trusted themselves, each with where it is named. Empty: the CAs of the
    /// system.
    pub ca: Vec<(PathBuf, Place)>,
    /// The name the origin's certificate must be for; `None`: the host of the URL.
    pub server_name: Option<String>,
    /// Our own certificate.
    pub certificate: Option<CertificateFiles>,
    pub min_version: TlsVersion,
    /// HTTP/2 is offered.
    pub http2: bool,
}

/// `[hostname.client_auth]`
#[derive(Clone, Debug)]
pub struct ClientAuthFiles {
    pub mode: ClientAuthMode,
    /// PEM files of one or more CAs, each with where it is named. Empty exactly when the mode is `Off`.
    pub ca: Vec<(PathBuf, Place)>,
    /// Anchors outside their own dates still count.
    pub allow_expired_ca: bool,
    /// Most certificates between the client's and the CA.
    pub verify_depth: Option<u8>,
    /// CA names are sent in CertificateRequest.
    pub send_ca_names: bool,
    /// What the origin is told about the client over HTTP.
    pub headers: IdentitySets,
}

/// `[[hostname.rule]]`
#[derive(Clone, Debug)]
pub struct Rule {
    /// Where the table begins.
    pub place: Place,
    pub spec: RuleSpec,
}
