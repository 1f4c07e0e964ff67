//! The baseline's hostnames: one rustls `ServerConfig` each, chosen by the SNI.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::common::{Failure, HOSTS, host_name, pem_path, read_identity};

/// Which of a hostname's server certificates is presented.
#[derive(Clone, Copy, ValueEnum)]
pub enum KeyKind {
    /// ECDSA on P-256.
    P256,
    /// RSA of 2048 bits.
    Rsa,
}

/// All hostnames; the first also serves clients that name none or another.
pub struct Hosts {
    by_name: HashMap<String, Arc<ServerConfig>>,
    default: Arc<ServerConfig>,
}

impl Hosts {
    /// Reads every hostname's files.
    ///
    /// # Errors
    /// A file that is missing or does not parse, or a key that does not fit its certificate.
    pub fn load(pki: &Path, key: KeyKind, mutual: bool) -> Result<Self, Failure> {
        let mut by_name = HashMap::new();
        for host in 0..HOSTS {
            by_name.insert(host_name(host), Arc::new(server_config(pki, host, key, mutual)?));
        }
        let default = by_name.get(&host_name(0)).ok_or("no hostnames")?.clone();
        Ok(Self { by_name, default })
    }

    /// The configuration for what the `ClientHello` names.
    pub fn choose(&self, sni: Option<&str>) -> Arc<ServerConfig> {
        sni.and_then(|name| self.by_name.get(name)).unwrap_or(&self.default).clone()
    }
}

/// Builds one hostname's configuration the way rustls' own examples do.
fn server_config(pki: &Path, host: usize, key: KeyKind, mutual: bool) -> Result<ServerConfig, Failure> {
    let file = match key {
        KeyKind::P256 => "p256.pem",
        KeyKind::Rsa => "rsa.pem",
    };
    let (chain, key) = read_identity(&pem_path(pki, host, file))?;
    // X25519 alone, as every server of the comparison; the clients decide for AES-128-GCM, and this list for wrk,
    // whose OpenSSL would put AES-256 first.
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    ];
    let provider = Arc::new(provider);
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if mutual {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pem_path(pki, host, "client-ca.pem"))?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    // One ticket a handshake: rustls sends two by default, and Hostward sends one.
    config.send_tls13_tickets = 1;
    Ok(config)
}
