//! The verdict cache: chains this worker has already verified (DECISIONS 11).
//!
//! Verifying a client's chain costs a P-256 verification for each certificate (about 55 us); most clients come back. A path
//! is remembered under the digest of every byte it depends on: the presented chain, certificate by certificate, and the CA
//! set with its options. What is never remembered: a refusal, and the client's own signature over the handshake, which is
//! checked each time. Dates, anchors and rules are judged each time too.
//!
//! A path enters only after the client has proved its key, so that nobody fills the cache with other people's
//! certificates.

use std::cell::RefCell;
use std::num::NonZeroUsize;

use lru::LruCache;
use rustls_pki_types::CertificateDer;

use super::scope::Path;

/// Most chains remembered by a worker: about 4 MB with paths of two certificates. A core that verifies more different
/// clients than this between two visits of one gains nothing from remembering it.
const VERDICTS_MAX: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");

/// Names a chain under a CA set.
pub type ChainDigest = [u8; 32];

struct Remembered {
    path: Path,
    /// Dates begin to hold at some time before this; if the clock is set back behind it, the chain is verified anew.
    verified_unix_s: i64,
}

/// The chains one worker has verified.
pub struct Verdicts {
    paths: RefCell<LruCache<ChainDigest, Remembered, foldhash::fast::RandomState>>,
}

impl Default for Verdicts {
    fn default() -> Self {
        // The table grows with use: a worker without client certificates pays nothing.
        let mut paths = LruCache::unbounded_with_hasher(foldhash::fast::RandomState::default());
        paths.resize(VERDICTS_MAX);
        Self { paths: RefCell::new(paths) }
    }
}

impl Verdicts {
    /// The path of a chain verified before, unless the clock now stands before that.
    pub fn get(&self, chain: &ChainDigest, now_unix_s: i64) -> Option<Path> {
        let mut paths = self.paths.borrow_mut();
        let remembered = paths.get(chain)?;
        (remembered.verified_unix_s <= now_unix_s).then(|| remembered.path.clone())
    }

    /// Remembers the path of a chain whose client has proved its key.
    pub fn put(&self, chain: ChainDigest, path: Path, verified_unix_s: i64) {
        self.paths.borrow_mut().put(chain, Remembered { path, verified_unix_s });
    }

    /// Forgets a chain that no longer stands.
    pub fn forget(&self, chain: &ChainDigest) {
        self.paths.borrow_mut().pop(chain);
    }
}

/// Digests a chain under a CA set. Each certificate is framed by its length, so that no two chains share their bytes.
pub fn digest(ca_set: &[u8; 32], leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> ChainDigest {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(ca_set);
    for certificate in std::iter::once(leaf).chain(rest) {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificates(parts: &[&[u8]]) -> Vec<CertificateDer<'static>> {
        parts.iter().map(|part| CertificateDer::from(part.to_vec())).collect()
    }

    #[test]
    fn another_cut_of_the_same_bytes_is_another_chain() {
        let digest_of = |ca_set: u8, parts: &[&[u8]]| {
            let chain = certificates(parts);
            digest(&[ca_set; 32], &chain[0], &chain[1..])
        };
        let whole = digest_of(1, &[b"ab", b"cd"]);
        assert_eq!(whole, digest_of(1, &[b"ab", b"cd"]));
        assert_ne!(whole, digest_of(1, &[b"abc", b"d"]));
        assert_ne!(whole, digest_of(1, &[b"abcd"]));
        assert_ne!(whole, digest_of(2, &[b"ab", b"cd"]), "another CA set");
    }

    #[test]
    fn a_clock_that_was_set_back_finds_nothing() {
        let verdicts = Verdicts::default();
        verdicts.put([7; 32], Path::default(), 1000);
        assert_eq!(verdicts.get(&[7; 32], 1000), Some(Path::default()));
        assert_eq!(verdicts.get(&[7; 32], 999), None);
        verdicts.forget(&[7; 32]);
        assert_eq!(verdicts.get(&[7; 32], 1000), None);
    }

    #[test]
    fn it_is_bounded() {
        let verdicts = Verdicts::default();
        for i in 0..VERDICTS_MAX.get() as u64 + 10 {
            let mut chain = [0; 32];
            chain[..8].copy_from_slice(&i.to_be_bytes());
            verdicts.put(chain, Path::default(), 0);
        }
        assert_eq!(verdicts.paths.borrow().len(), VERDICTS_MAX.get());
        assert_eq!(verdicts.get(&[0; 32], 0), None, "the one used longest ago went first");
    }
}
