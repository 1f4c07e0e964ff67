//! TLS towards origins, where we are the client.
//!
//! | file | what it holds |
//! |---|---|
//! | `connection` | one connection as a value, as `tls::connection` is for clients |
//! | `verify` | whether an origin's certificate is good |
//! | `failure` | what went wrong, in words for whoever runs the edge |

mod connection;
mod failure;
mod verify;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::registry::record::PrivateKey;
use crate::registry::{OriginTls, TlsVersion};

pub use self::connection::Connection;
pub use self::failure::{Failed, Fault};
use self::verify::Verifier;

/// How many servers' sessions are remembered for one origin on one worker: as many as an origin has addresses. rustls keeps
/// up to eight tickets of each.
const SESSIONS_MAX: usize = 64;

/// What is negotiated by ALPN (RFC 7301) where HTTP/2 is not wanted.
const HTTP_1_1: &[u8] = b"http/1.1";

/// What is offered before it where HTTP/2 is.
const HTTP_2: &[u8] = b"h2";

/// How one worker speaks TLS with one origin: whom it trusts, as whom it asks, and the sessions it can resume.
///
/// Sessions never leave it, so that none is resumed under another trust or another client certificate than it was
/// established under.
pub struct Client {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    /// [`OriginTls::digest`].
    pub digest: [u8; 32],
}

impl Client {
    /// Puts it together.
    ///
    /// # Errors
    ///
    /// What of it cannot be used. The configuration's check has found that before, except in a provider that differs.
    pub fn new(tls: &OriginTls, provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let versions: &[_] = match tls.min_version {
            TlsVersion::V1_2 => &[&version::TLS13, &version::TLS12],
            TlsVersion::V1_3 => &[&version::TLS13],
        };
        let verifier = Verifier::new(&tls.cas, &tls.pinned, provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)
            .map_err(|error| format!("no usable TLS version: {error}"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &tls.certificate {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
                let key = match &certificate.key {
                    PrivateKey::Pkcs8(der) => PrivateKeyDer::Pkcs8(der.as_slice().into()),
                    PrivateKey::Sec1(der) => PrivateKeyDer::Sec1(der.as_slice().into()),
                    PrivateKey::Pkcs1(der) => PrivateKeyDer::Pkcs1(der.as_slice().into()),
                };
                builder
                    .with_client_auth_cert(chain, key.clone_key())
                    .map_err(|error| format!("the client certificate cannot be used: {error}"))?
            }
        };
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(SESSIONS_MAX)));
        let server_name = match &tls.server_name {
            None => None,
            Some(name) => Some(name_of(name)?),
        };
        Ok(Self { config: Arc::new(config), server_name, digest: tls.digest })
    }

    /// A connection that has not said anything yet, to a server at `host`; with HTTP/2 offered, or not.
    ///
    /// # Errors
    ///
    /// A host that cannot be a server's name.
    pub fn connection(&self, host: &str, http2: bool) -> Result<Connection, Failed> {
        let broken = |detail: String| Failed { fault: Fault::Protocol, detail };
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => name_of(host).map_err(broken)?,
        };
        let offered: &[&[u8]] = if http2 { &[HTTP_2, HTTP_1_1] } else { &[HTTP_1_1] };
        let offered = offered.iter().map(|name| name.to_vec()).collect();
        Connection::new(Arc::clone(&self.config), name, offered)
    }
}

fn name_of(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} cannot be the name of a TLS server"))
}
