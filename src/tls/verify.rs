//! Verification of client certificates against one CA set (I2).
//!
//! One verifier serves every hostname of a worker with the same CA set and mode. It knows its anchors only; what it finds
//! goes to the connection in scope. A chain this worker has verified before is not verified again (`verdicts`).

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerMisbehaved, SignatureScheme};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::policy::{Facts, Refusal, Verdict};
use crate::registry::{CaSet, ClientAuthMode};
use crate::telemetry::counters::Verified;

use super::failure::{alert_of, refusal_of_path};
use super::identity;
use super::scope::{self, Path, PathElement, Standing, Trust};
use super::verdicts::{self, ChainDigest};

/// Most certificates a client may send, its own included. Real chains have two or three; each more is a signature.
pub const CHAIN_CERTIFICATES_MAX: usize = 5;

/// Most bytes of certificates a client may send. The largest common post-classical-size chains (RSA-4096 throughout)
/// stay under 8 KiB.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// A CA as webpki wants it, with the dates webpki ignores.
#[derive(Debug)]
struct Anchor {
    /// SHA-256 over subject, SubjectPublicKeyInfo and name constraints: names the anchor in a path.
    name: [u8; 32],
    spki_sha256: [u8; 32],
    not_before_unix_s: i64,
    not_after_unix_s: i64,
}

/// What a hostname says of verification besides its CAs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct VerifierOptions {
    /// Anchors outside their own dates still count.
    pub allow_expired_ca: bool,
    /// Most certificates between the client's and the anchor; `None`: as many as a chain may have.
    pub verify_depth: Option<u8>,
    /// The anchors' names are sent in CertificateRequest.
    pub send_ca_names: bool,
}

impl VerifierOptions {
    /// Most certificates between the client's and the anchor.
    pub fn depth_max(self) -> usize {
        self.verify_depth.map_or(CHAIN_CERTIFICATES_MAX - 1, usize::from)
    }
}

/// Verifies chains against one CA set, in one mode.
pub struct Verifier {
    mode: ClientAuthMode,
    /// Same order as `anchors`.
    trusted: Vec<TrustAnchor<'static>>,
    anchors: Vec<Anchor>,
    allow_expired_ca: bool,
    /// Most certificates between the client's and the anchor.
    depth_max: usize,
    /// Names what a path depends on besides the chain: the CA set and the options of its verification.
    name: [u8; 32],
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier")
            .field("mode", &self.mode)
            .field("anchors", &self.anchors.len())
            .finish_non_exhaustive()
    }
}

impl Verifier {
    /// Builds a verifier.
    ///
    /// # Errors
    ///
    /// A CA that webpki cannot use as an anchor: the record that names it is unreadable (I7).
    pub fn new(
        mode: ClientAuthMode,
        ca_set: &CaSet,
        options: VerifierOptions,
        provider: &CryptoProvider,
    ) -> Result<Self, webpki::Error> {
        let VerifierOptions { allow_expired_ca, send_ca_names, .. } = options;
        let mut trusted = Vec::with_capacity(ca_set.cas.len());
        let mut anchors = Vec::with_capacity(ca_set.cas.len());
        for ca in &ca_set.cas {
            let der = CertificateDer::from(ca.der.as_slice());
            let anchor = webpki::anchor_from_trusted_cert(&der)?.to_owned();
            // webpki keeps a key without the outer SEQUENCE; hashed as the certificate has it, so that it equals the
            // issuer key of a certificate below an intermediate of the same key.
            let spki = identity::subject_public_key_info(&ca.der).ok_or(webpki::Error::BadDer)?;
            // Both parts before the constraints are DER and end where they say, so that the three cannot be mistaken.
            let constraints = anchor.name_constraints.as_deref().unwrap_or_default();
            let name = sha256(&[anchor.subject.as_ref(), spki, constraints]);
            anchors.push(Anchor {
                name,
                spki_sha256: sha256(&[spki]),
                not_before_unix_s: ca.not_before_unix_s,
                not_after_unix_s: ca.not_after_unix_s,
            });
            trusted.push(anchor);
        }
        let hints = if send_ca_names {
            trusted.iter().map(|anchor| DistinguishedName::in_sequence(anchor.subject.as_ref())).collect()
        } else {
            Vec::new()
        };
        let algorithms = provider.signature_verification_algorithms;
        let depth_max = options.depth_max();
        let name = sha256(&[&ca_set.digest, &[u8::from(allow_expired_ca)], &depth_max.to_be_bytes()]);
        Ok(Self { mode, trusted, anchors, allow_expired_ca, depth_max, name, hints, algorithms })
    }

    /// Verifies a chain now: the path it takes, or the reason it takes none.
    ///
    /// # Errors
    ///
    /// The reason, as [`refusal_of_path`] maps it, `chain_too_long` or `ca_expired`.
    pub fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now_unix_s: i64,
    ) -> Result<Path, Refusal> {
        if too_long(end_entity, intermediates) {
            return Err(Refusal::ChainTooLong);
        }
        let leaf = EndEntityCert::try_from(end_entity).map_err(|error| refusal_of_path(&error))?;
        let found = self.verify_leaf(&leaf, intermediates, self.depth_max, now_unix_s);
        // Would there be a path without the bound on its depth? Then that is the reason.
        match found {
            Err(Refusal::UnknownCa) if self.depth_max < intermediates.len() => {
                let deeper = self.verify_leaf(&leaf, intermediates, usize::MAX, now_unix_s);
                Err(if deeper.is_ok() { Refusal::ChainTooLong } else { Refusal::UnknownCa })
            }
            found => found,
        }
    }

    /// Looks for a path of at most `depth_max` certificates between the leaf and the anchor.
    fn verify_leaf(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        depth_max: usize,
        now_unix_s: i64,
    ) -> Result<Path, Refusal> {
        let usable = |anchor: &Anchor| self.allow_expired_ca || anchor.stands_at(now_unix_s);
        if self.anchors.iter().all(usable) {
            return self
                .build(leaf, &self.trusted, intermediates, depth_max, now_unix_s)
                .map_err(|error| refusal_of_path(&error));
        }
        // DECISIONS 8: an anchor outside its own dates is none; webpki would not look.
        let standing: Vec<TrustAnchor<'static>> = std::iter::zip(&self.trusted, &self.anchors)
            .filter(|(_, anchor)| usable(anchor))
            .map(|(trusted, _)| trusted.clone())
            .collect();
        self.build(leaf, &standing, intermediates, depth_max, now_unix_s).map_err(|error| {
            let reason = refusal_of_path(&error);
            // Had the expired anchors counted, would there be a path? Then their dates are the reason.
            let with_expired = || self.build(leaf, &self.trusted, intermediates, depth_max, now_unix_s).is_ok();
            if reason == Refusal::UnknownCa && with_expired() { Refusal::CaExpired } else { reason }
        })
    }

    /// As [`Verifier::verify`], but looks first among the chains verified before. Returns their name for a chain that was
    /// not among them: it may be remembered once its client has proved its key.
    fn verify_or_remember(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now_unix_s: i64,
    ) -> (Result<Path, Refusal>, Option<ChainDigest>) {
        let Some(verdicts) = scope::with(|trust| trust.verdicts.clone()).flatten() else {
            return (self.verify(end_entity, intermediates, now_unix_s), None);
        };
        if too_long(end_entity, intermediates) {
            return (Err(Refusal::ChainTooLong), None);
        }
        let chain = verdicts::digest(&self.name, end_entity, intermediates);
        if let Some(path) = verdicts.get(&chain, now_unix_s) {
            if self.still_stands(&path, now_unix_s) {
                scope::with(|trust| trust.verdict_result = Some(Verified::Remembered));
                return (Ok(path), None);
            }
            verdicts.forget(&chain);
        }
        scope::with(|trust| trust.verdict_result = Some(Verified::Anew));
        (self.verify(end_entity, intermediates, now_unix_s), Some(chain))
    }

    /// Which CA of the set a path leads to: the one that stands longest, if several have that name and key.
    pub fn anchor_index(&self, path: &Path) -> Option<usize> {
        let named = self.anchors.iter().enumerate().filter(|(_, anchor)| anchor.name == path.anchor);
        named.max_by_key(|(_, anchor)| anchor.not_after_unix_s).map(|(index, _)| index)
    }

    /// The algorithms a signature in a chain may have.
    pub fn signature_algorithms(&self) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
        self.algorithms.all
    }

    /// Whether a path found earlier, perhaps by a verifier of another generation, still leads to an anchor of this set
    /// and is within its dates. Signatures need no second look: the bytes are the same.
    pub fn still_stands(&self, path: &Path, now_unix_s: i64) -> bool {
        let anchored = self
            .anchors
            .iter()
            .any(|anchor| anchor.name == path.anchor && (self.allow_expired_ca || anchor.stands_at(now_unix_s)));
        anchored && !self.is_too_deep(path.elements.len()) && now_unix_s <= path.not_after_unix_s
    }

    fn build(
        &self,
        leaf: &EndEntityCert<'_>,
        trusted: &[TrustAnchor<'static>],
        intermediates: &[CertificateDer<'_>],
        depth_max: usize,
        now_unix_s: i64,
    ) -> Result<Path, webpki::Error> {
        // A path that is too deep is passed over: another one may be shorter.
        let not_too_deep = |path: &VerifiedPath<'_>| match path.intermediate_certificates().count() > depth_max {
            true => Err(webpki::Error::MaximumPathDepthExceeded),
            false => Ok(()),
        };
        let is_bounded = depth_max < intermediates.len();
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now_unix_s.max(0) as u64));
        let path = leaf.verify_for_usage(
            self.algorithms.all,
            trusted,
            intermediates,
            time,
            KeyUsage::client_auth(),
            None,
            is_bounded.then_some(&not_too_deep as &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>),
        )?;
        self.describe(&path, now_unix_s).ok_or(webpki::Error::BadDer)
    }

    /// Whether a path of so many certificates, the client's included, is deeper than this hostname allows.
    fn is_too_deep(&self, certificates: usize) -> bool {
        certificates > self.depth_max + 1
    }

    /// Most certificates between the client's and the anchor.
    pub fn depth_max(&self) -> usize {
        self.depth_max
    }

    /// Reduces a verified path to what later checks need.
    fn describe(&self, path: &VerifiedPath<'_>, now_unix_s: i64) -> Option<Path> {
        let found = path.anchor();
        // A CA renewed under its old key is two anchors that differ in their dates only, and webpki cannot tell them
        // apart: the one that stands longest is meant, or a client would be closed at the end of the CA that was renewed.
        let (_, anchor) = std::iter::zip(&self.trusted, &self.anchors)
            .filter(|(trusted, _)| *trusted == found)
            .max_by_key(|(_, anchor)| (anchor.stands_at(now_unix_s), anchor.not_after_unix_s))?;
        let mut not_after_unix_s = if self.allow_expired_ca { i64::MAX } else { anchor.not_after_unix_s };
        let mut elements = Vec::with_capacity(CHAIN_CERTIFICATES_MAX);
        let leaf: &webpki::Cert<'_> = path.end_entity();
        let mut certificates = std::iter::once(leaf).chain(path.intermediate_certificates()).peekable();
        while let Some(certificate) = certificates.next() {
            let (_, not_after) = identity::validity(&certificate.der())?;
            not_after_unix_s = not_after_unix_s.min(not_after);
            let issuer_spki_sha256 = match certificates.peek() {
                Some(issuer) => sha256(&[identity::subject_public_key_info(&issuer.der())?]),
                None => anchor.spki_sha256,
            };
            elements.push(PathElement { issuer_spki_sha256, serial: certificate.serial().to_vec() });
        }
        Some(Path { anchor: anchor.name, elements, not_after_unix_s })
    }
}

impl Anchor {
    fn stands_at(&self, now_unix_s: i64) -> bool {
        (self.not_before_unix_s..=self.not_after_unix_s).contains(&now_unix_s)
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.mode != ClientAuthMode::Off
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mode == ClientAuthMode::Require
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let now_unix_s = now.as_secs();
        let (outcome, chain) = self.verify_or_remember(end_entity, intermediates, now_unix_s as i64);
        let accepted = scope::with(|trust| {
            trust.leaf = end_entity.to_vec();
            let (verdict, path) = match outcome {
                Ok(path) => {
                    trust.unproved = chain;
                    (Verdict::Success, Some(path))
                }
                // DECISIONS 6: where certificates are only requested, a fault of the chain becomes the verdict. A leaf that
                // does not parse proves nothing and fails.
                Err(reason) if self.mode == ClientAuthMode::Request && EndEntityCert::try_from(end_entity).is_ok() => {
                    (Verdict::Failed(reason), None)
                }
                Err(reason) => {
                    trust.failure = Some(reason);
                    return Err(alert_of(reason));
                }
            };
            // The time the handshake began, which is the clock its tickets are judged by.
            trust.verified = Some(Standing { verdict, path, authenticated_unix_s: trust.now_unix_s });
            Ok(())
        });
        match accepted {
            Some(result) => result.map(|()| ClientCertVerified::assertion()),
            // No connection is in scope: nobody could hold the verdict, so nobody is let in.
            None => Err(Error::General("client certificate outside a connection".into())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        conclude(verify_tls12_signature(message, certificate, signature, &self.algorithms))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        conclude(verify_tls13_signature(message, certificate, signature, &self.algorithms))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The client's signature over the handshake has been checked. If it does not hold, notes why the handshake fails; if it
/// does, the key is proved, and the hostname's rules may speak while an alert can still carry their answer.
fn conclude(result: Result<HandshakeSignatureValid, Error>) -> Result<HandshakeSignatureValid, Error> {
    if let Err(error) = &result {
        let detail = match error {
            // RFC 8446 section 4.4.3: the scheme must be one of those we offered.
            Error::PeerMisbehaved(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme) => {
                Some("the client signed with a scheme it was not offered".to_owned())
            }
            _ => None,
        };
        scope::with(|trust| (trust.failure, trust.detail) = (Some(Refusal::BadSignature), detail));
        return result;
    }
    let denied = scope::with(|trust| {
        remember(trust);
        let (reason, detail) = judge(trust).err()?;
        trust.failure = Some(reason);
        trust.detail = detail;
        Some(reason)
    });
    match denied.flatten() {
        Some(reason) => Err(alert_of(reason)),
        None => result,
    }
}

/// Remembers the path verified in this handshake: its client has just proved its key.
fn remember(trust: &mut Trust) {
    let path = trust.verified.as_ref().and_then(|verified| verified.path.clone());
    if let (Some(chain), Some(path), Some(verdicts)) = (trust.unproved.take(), path, &trust.verdicts) {
        verdicts.put(chain, path, trust.now_unix_s as i64);
    }
}

/// Whether a chain is over the limits that hold before any signature is looked at.
pub(super) fn too_long(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> bool {
    let bytes = intermediates.iter().map(|certificate| certificate.len()).sum::<usize>() + end_entity.len();
    intermediates.len() + 1 > CHAIN_CERTIFICATES_MAX || bytes > CHAIN_BYTES_MAX
}

/// Judges the rules of the whole hostname; those that look at a request are judged with it.
fn judge(trust: &Trust) -> Result<(), (Refusal, Option<String>)> {
    let rules = &trust.tenant.record.rules;
    let Some(verified) = &trust.verified else { return Ok(()) };
    if rules.is_empty() || rules.needs_request() {
        return Ok(());
    }
    let identity = match rules.needs_identity() {
        true => Some(
            identity::parse(&trust.leaf)
                .map_err(|error| (Refusal::MalformedCertificate, Some(error.what.to_owned())))?,
        ),
        false => None,
    };
    let facts = Facts {
        verdict: verified.verdict,
        identity: identity.as_ref(),
        source: trust.source,
        method: None,
        path: None,
    };
    rules.judge(&facts).map_err(|reason| (reason, rules.explain(&facts)))
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}
