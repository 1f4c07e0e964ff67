//! Answers of our own.

/// What went wrong between us and the origin, by RFC 9209 section 2.3.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProxyError {
    DnsTimeout,
    DnsError,
    DestinationUnavailable,
    DestinationIpUnroutable,
    ConnectionRefused,
    ConnectionTerminated,
    ConnectionTimeout,
    ConnectionReadTimeout,
    ConnectionWriteTimeout,
    ConnectionLimitReached,
    TlsProtocolError,
    TlsCertificateError,
    HttpResponseIncomplete,
    HttpResponseTimeout,
    HttpUpgradeFailed,
    HttpProtocolError,
    ProxyInternalError,
}

impl ProxyError {
    /// The status RFC 9209 recommends for it: 502, 503 or 504 (500 for our own fault).
    pub fn status(self) -> u16 {
        unimplemented!()
    }
}

/// Appends an answer of ours. Returns whether the connection stays open after it, as its head says.
pub fn answer(
    _status: u16,
    _proxy_status: Option<ProxyError>,
    _keep_alive: bool,
    _head_only: bool,
    _out: &mut Vec<u8>,
) -> bool {
    unimplemented!()
}

/// Appends the redirect to HTTPS: 308 to `https://` + `host` + `target`. `host` is an authority without its port.
pub fn redirect(_host: &str, _target: &str, _keep_alive: bool, _head_only: bool, _out: &mut Vec<u8>) -> bool {
    unimplemented!()
}
