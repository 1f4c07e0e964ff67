//! From what rustls and webpki report to the one list of reasons, and from a reason back to the alert.

use rustls::{CertificateError, Error};

use crate::policy::Refusal;

/// The reason behind a handshake error, where nothing more exact was noted by the verifier.
pub fn refusal_of(error: &Error) -> Refusal {
    match error {
        Error::NoCertificatesPresented => Refusal::NoCertificate,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Refusal::NoCommonVersion,
        Error::InvalidCertificate(error) => match error {
            CertificateError::BadSignature => Refusal::BadSignature,
            _ => Refusal::MalformedCertificate,
        },
        _ => Refusal::ProtocolError,
    }
}

/// What verification of a chain found, as a reason.
///
/// | webpki | reason | alert |
/// |---|---|---|
/// | `UnknownIssuer`, a signature or algorithm of the chain that does not fit its issuer, budget exceeded | `unknown_ca` | unknown_ca |
/// | `CertExpired`, `InvalidCertValidity` | `expired` | certificate_expired |
/// | `CertNotValidYet` | `not_yet_valid` | certificate_expired (RFC 8446 section 6.2: "not currently valid") |
/// | `RequiredEkuNotFound*`, `EmptyEkuExtension`, CA used as leaf or leaf as CA, path length, name constraints | `wrong_usage` | unsupported_certificate |
/// | everything else: DER, extensions, versions | `malformed_certificate` | bad_certificate |
///
/// A CA of the same subject and another key makes webpki report a bad signature; for us there is no path to an anchor, so
/// that is `unknown_ca`. `bad_signature` is what CertificateVerify fails with, and is not found here.
pub fn refusal_of_path(error: &webpki::Error) -> Refusal {
    use webpki::Error as E;
    #[allow(deprecated, reason = "webpki still returns both generations of its signature errors")]
    match error {
        E::UnknownIssuer
        | E::InvalidSignatureForPublicKey
        | E::SignatureAlgorithmMismatch
        | E::UnsupportedSignatureAlgorithm
        | E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKey
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded
        | E::CertDistrusted => Refusal::UnknownCa,
        E::CertExpired { .. } | E::InvalidCertValidity => Refusal::Expired,
        E::CertNotValidYet { .. } => Refusal::NotYetValid,
        E::RequiredEkuNotFound
        | E::RequiredEkuNotFoundContext(_)
        | E::EmptyEkuExtension
        | E::CaUsedAsEndEntity
        | E::EndEntityUsedAsCa
        | E::PathLenConstraintViolated
        | E::NameConstraintViolation => Refusal::WrongUsage,
        E::CertRevoked => Refusal::Revoked,
        E::CrlExpired { .. } => Refusal::CrlExpired,
        _ => Refusal::MalformedCertificate,
    }
}

/// The error that makes rustls send the alert of a certificate's refusal.
pub fn alert_of(reason: Refusal) -> Error {
    Error::InvalidCertificate(match reason {
        Refusal::Expired | Refusal::NotYetValid | Refusal::CaExpired => CertificateError::Expired,
        Refusal::Revoked => CertificateError::Revoked,
        Refusal::CrlExpired => CertificateError::UnknownRevocationStatus,
        Refusal::WrongUsage => CertificateError::InvalidPurpose,
        Refusal::MalformedCertificate | Refusal::ChainTooLong => CertificateError::BadEncoding,
        Refusal::BadSignature => CertificateError::BadSignature,
        Refusal::Denied | Refusal::RuleDenied => CertificateError::ApplicationVerificationFailure,
        _ => CertificateError::UnknownIssuer,
    })
}

/// The alert a client sees for a reason, by its RFC 8446 name. `None`: it depends on what the peer sent, or the connection
/// is closed without one.
pub fn alert_name(reason: Refusal) -> Option<&'static str> {
    Some(match reason {
        Refusal::NoSni | Refusal::UnknownHostname => "unrecognized_name",
        Refusal::NoCertificate => "certificate_required",
        Refusal::UnknownCa | Refusal::CrlExpired => "unknown_ca",
        Refusal::BadSignature => "decrypt_error",
        Refusal::Expired | Refusal::NotYetValid | Refusal::CaExpired => "certificate_expired",
        Refusal::Revoked => "certificate_revoked",
        Refusal::WrongUsage => "unsupported_certificate",
        Refusal::ChainTooLong | Refusal::MalformedCertificate => "bad_certificate",
        Refusal::RecordUnreadable => "internal_error",
        Refusal::Denied | Refusal::RuleDenied => "access_denied",
        _ => return None,
    })
}
