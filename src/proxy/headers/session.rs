//! The fields that are the same for every request of a connection.

use std::net::IpAddr;

use rustls_pki_types::CertificateDer;

use crate::policy::{Identity, IdentitySets, Verdict};
use crate::registry::ClientAuthMode;

/// What is known of a connection once its handshake is over.
#[derive(Clone, Copy, Debug)]
pub struct SessionFacts<'a> {
    pub mode: ClientAuthMode,
    pub verdict: Verdict,
    /// Which sets of identity headers are sent.
    pub sets: IdentitySets,
    /// The leaf's identity; looked at only if the verdict is SUCCESS.
    pub identity: Option<&'a Identity>,
    /// The chain as the client presented it, leaf first; looked at only if the verdict is SUCCESS.
    pub chain: &'a [CertificateDer<'a>],
    /// The client, or the proxy before us.
    pub client: IpAddr,
    /// The peer is one of `trusted_proxies`: its `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are kept and added to.
    pub trusted_peer: bool,
    /// Names outside `[A-Za-z0-9-]` pass, unless they are another spelling of a name that means something here.
    pub keep_unusual_names: bool,
}

/// Prepared once per connection: the bytes of the fields that are the same for each of its requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionFields {}

impl SessionFields {
    pub fn new(_facts: &SessionFacts<'_>) -> Self {
        unimplemented!()
    }
}
