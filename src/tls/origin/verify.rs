//! Whether an origin's certificate is good: issued by a CA that is trusted for this origin, or trusted itself; within its
//! dates; for the name that is asked for.
//!
//! A certificate that is trusted itself need not be a CA's, and may be: what `openssl req -x509` makes by default is both
//! server and CA, which no chain would let pass (RFC 5280 section 4.2.1.9).

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};

use crate::registry::{Ca, CaSet};

/// Verifies the certificates of one origin.
pub struct Verifier {
    roots: RootCertStore,
    /// When each of the roots is valid, in their order: webpki does not look (DECISIONS 8).
    dates: Vec<Dates>,
    pinned: Vec<(Vec<u8>, Dates)>,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Clone, Copy)]
struct Dates {
    not_before_unix_s: i64,
    not_after_unix_s: i64,
}

impl Dates {
    fn of(ca: &Ca) -> Self {
        Self { not_before_unix_s: ca.not_before_unix_s, not_after_unix_s: ca.not_after_unix_s }
    }

    fn check(self, now_unix_s: i64) -> Result<(), CertificateError> {
        if now_unix_s < self.not_before_unix_s {
            return Err(CertificateError::NotValidYet);
        }
        if now_unix_s > self.not_after_unix_s {
            return Err(CertificateError::Expired);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("roots", &self.roots.len())
            .field("pinned", &self.pinned.len())
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// A verifier for these CAs and certificates. What webpki cannot use as an anchor is none: the check of the
    /// configuration has told of those that a file names, and a system's store may hold anything.
    pub fn new(cas: &CaSet, pinned: &[Ca], provider: &CryptoProvider) -> Self {
        let mut roots = RootCertStore::empty();
        let mut dates = Vec::with_capacity(cas.cas.len());
        for ca in &cas.cas {
            if let Ok(anchor) = webpki::anchor_from_trusted_cert(&CertificateDer::from(ca.der.as_slice())) {
                roots.roots.push(anchor.to_owned());
                dates.push(Dates::of(ca));
            }
        }
        let pinned = pinned.iter().map(|ca| (ca.der.clone(), Dates::of(ca))).collect();
        Self { roots, dates, pinned, algorithms: provider.signature_verification_algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let now_unix_s = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if let Some((_, dates)) = self.pinned.iter().find(|(der, _)| der.as_slice() == end_entity.as_ref()) {
            dates.check(now_unix_s)?;
        } else {
            let build = |roots: &RootCertStore| {
                verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, self.algorithms.all)
            };
            if self.dates.iter().all(|dates| dates.check(now_unix_s).is_ok()) {
                build(&self.roots)?;
            } else {
                let standing = std::iter::zip(&self.roots.roots, &self.dates)
                    .filter(|(_, dates)| dates.check(now_unix_s).is_ok())
                    .map(|(anchor, _)| -> TrustAnchor<'static> { anchor.clone() });
                build(&RootCertStore { roots: standing.collect() })?;
            }
        }
        verify_server_name(&certificate, server_name)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, server_name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
