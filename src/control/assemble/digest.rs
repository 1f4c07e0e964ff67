//! Digests that tell whether two records, or two CA sets, are the same.
//!
//! Digests are compared within one process and never stored, so their form may change from version to version.

use std::hash::{Hash, Hasher};

use aws_lc_rs::digest::{Context, SHA256, digest};

use crate::policy::rules::RuleSpec;
use crate::registry::record::ClientAuth;
use crate::registry::{HostnameRecord, OriginTls};

/// SHA-256 of bytes.
pub fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    fixed(digest(&SHA256, bytes).as_ref())
}

/// The digest of a CA set: over the digests of its CAs' DER, which come sorted and without duplicates.
pub fn of_cas<'a>(sorted: impl Iterator<Item = &'a [u8; 32]>) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for digest in sorted {
        context.update(digest);
    }
    fixed(context.finish().as_ref())
}

/// The digest of a record: over everything but its id and the digest itself.
///
/// Rules count as they are written. The private key is left out: it belongs to the leaf's public key, which has been
/// checked, so another encoding of it serves alike, and no digest of a secret is kept where `Debug` shows it.
pub fn of_record<'a>(record: &HostnameRecord, rules: impl Iterator<Item = &'a RuleSpec>) -> [u8; 32] {
    // Taken apart in full, so that a field that is added later is not forgotten here.
    let HostnameRecord {
        id: _,
        name,
        is_default,
        mode,
        certificates,
        client_auth: ClientAuth { mode: client_auth, ca_set, allow_expired_ca, verify_depth, send_ca_names, headers },
        rules: _,
        origin,
        min_version,
        cipher_suites,
        alpn,
        keep_unusual_headers,
        rewrites,
        digest: _,
    } = record;
    let mut sha256 = Sha256(Context::new(&SHA256));
    (name, is_default, mode, client_auth, allow_expired_ca, send_ca_names).hash(&mut sha256);
    (headers, keep_unusual_headers, verify_depth, rewrites).hash(&mut sha256);
    certificates.iter().map(|certificate| &certificate.chain).collect::<Vec<_>>().hash(&mut sha256);
    ca_set.as_ref().map(|set| set.digest).hash(&mut sha256);
    rules.collect::<Vec<_>>().hash(&mut sha256);
    (origin, min_version, cipher_suites, alpn).hash(&mut sha256);
    fixed(sha256.0.finish().as_ref())
}

/// The TLS identity of an origin: over everything but the digest itself. Of our certificate the key is left out, as it is of
/// a record's.
pub fn of_origin_tls(tls: &OriginTls) -> [u8; 32] {
    let OriginTls { cas, pinned, server_name, certificate, min_version, http2, digest: _ } = tls;
    let mut sha256 = Sha256(Context::new(&SHA256));
    cas.digest.hash(&mut sha256);
    pinned.iter().map(|certificate| &certificate.der).collect::<Vec<_>>().hash(&mut sha256);
    certificate.as_ref().map(|certificate| &certificate.chain).hash(&mut sha256);
    (server_name, min_version, http2).hash(&mut sha256);
    fixed(sha256.0.finish().as_ref())
}

/// What `#[derive(Hash)]` feeds, digested by SHA-256. The derived order is free of ambiguity: lists come with their length,
/// texts with a byte no text has, enums with their variant.
struct Sha256(Context);

impl Hasher for Sha256 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Not what is asked for here: 64 bits would not tell records apart.
    fn finish(&self) -> u64 {
        let digest = fixed(self.0.clone().finish().as_ref());
        digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
    }
}

/// A SHA-256 as an array.
fn fixed(digest: &[u8]) -> [u8; 32] {
    let mut fixed = [0; 32];
    fixed.copy_from_slice(digest);
    fixed
}
