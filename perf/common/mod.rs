//! What the measuring programs share: the names of the hostnames and where each one's PEM files lie.
//!
//! `perf-pki` writes the files, `perf-baseline` and `perf-load` read them; `perf/harness` builds the peers' configurations
//! over the same layout: `DIR/hostN/{p256,rsa,client}.pem` (chain, then key) and `DIR/hostN/client-ca.pem`.

use std::error::Error;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Any failure of a measuring program; it ends the program with one line.
pub type Failure = Box<dyn Error + Send + Sync>;

/// How many hostnames the PKI holds: ten, each with its own client CA, as the mutual workloads are defined.
pub const HOSTS: usize = 10;

/// The DNS name of hostname number `host`, counted from 0.
pub fn host_name(host: usize) -> String {
    format!("host{host}.perf.test")
}

/// The path of one of hostname `host`'s PEM files under the PKI directory.
pub fn pem_path(pki: &Path, host: usize, file: &str) -> PathBuf {
    pki.join(format!("host{host}")).join(file)
}

/// Reads a certificate chain and its private key from one PEM file.
///
/// # Errors
/// Names the file that cannot be read or parsed.
pub fn read_identity(path: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Failure> {
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| format!("{}: {e}", path.display()))?;
    let key = PrivateKeyDer::from_pem_file(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok((chain, key))
}
