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

/// The alert a client was sent, by its RFC 8446 name (section 6): as it stands in `sent`, where it is not encrypted; else
/// what rustls sends for this error. `None`: none was sent, or it is not known which.
pub fn alert_sent(sent: &[u8], error: &Error, reason: Refusal) -> Option<&'static str> {
    if sent.is_empty() {
        return None;
    }
    alert_in(sent).or(match error {
        // What rustls says where a client's certificate or signature is at fault is for us to choose (`alert_of`).
        Error::InvalidCertificate(_) => certificate_alert(reason),
        Error::NoCertificatesPresented => Some("certificate_required"),
        Error::NoApplicationProtocol => Some("no_application_protocol"),
        Error::PeerIncompatible(_) => Some("handshake_failure"),
        Error::PeerMisbehaved(_) => Some("illegal_parameter"),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => Some("unexpected_message"),
        Error::InvalidMessage(_) => Some("decode_error"),
        Error::DecryptError => Some("bad_record_mac"),
        _ => None,
    })
}

/// The alert that stands in these records, by its name; `None` if there is none in the clear.
pub fn alert_in(records: &[u8]) -> Option<&'static str> {
    let mut rest = records;
    while let [kind, _, _, high, low, after @ ..] = rest {
        let (body, next) = after.split_at_checked(usize::from(u16::from_be_bytes([*high, *low])))?;
        // An encrypted alert of TLS 1.2 is longer than its two bytes.
        if let (21, [_, description]) = (kind, body) {
            return alert_name(*description);
        }
        rest = next;
    }
    None
}

fn alert_name(description: u8) -> Option<&'static str> {
    Some(match description {
        10 => "unexpected_message",
        20 => "bad_record_mac",
        22 => "record_overflow",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        109 => "missing_extension",
        110 => "unsupported_extension",
        112 => "unrecognized_name",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    })
}

/// The alert a client is sent for a reason that is known before its handshake runs, by its name.
pub fn alert_expected(reason: Refusal) -> Option<&'static str> {
    match reason {
        Refusal::NoSni | Refusal::UnknownHostname => Some("unrecognized_name"),
        Refusal::RecordUnreadable => Some("internal_error"),
        Refusal::NoCertificate => Some("certificate_required"),
        _ => certificate_alert(reason),
    }
}

/// The alert of [`alert_of`], by its name.
fn certificate_alert(reason: Refusal) -> Option<&'static str> {
    Some(match reason {
        Refusal::UnknownCa | Refusal::CrlExpired => "unknown_ca",
        Refusal::BadSignature => "decrypt_error",
        Refusal::Expired | Refusal::NotYetValid | Refusal::CaExpired => "certificate_expired",
        Refusal::Revoked => "certificate_revoked",
        Refusal::WrongUsage => "unsupported_certificate",
        Refusal::ChainTooLong | Refusal::MalformedCertificate => "bad_certificate",
        Refusal::Denied | Refusal::RuleDenied => "access_denied",
        _ => return None,
    })
}

/// What there is to say about an error beyond its reason, in words for people who have not read rustls.
pub fn detail_of(error: &Error) -> Option<String> {
    use rustls::PeerIncompatible as P;
    Some(match error {
        Error::NoCertificatesPresented | Error::InvalidCertificate(_) => return None,
        Error::NoApplicationProtocol => "the client offers none of the hostname's alpn protocols".to_owned(),
        Error::PeerIncompatible(incompatible) => match incompatible {
            P::Tls12NotOffered | P::Tls12NotOfferedOrEnabled | P::Tls13RequiredForQuic => {
                "the client offers no TLS version of min_version or above"
            }
            P::SupportedVersionsExtensionRequired => "the client offers no TLS version of min_version or above",
            P::NoCipherSuitesInCommon => "the client offers none of the cipher suites served here",
            P::NoKxGroupsInCommon | P::NamedGroupsExtensionRequired | P::NoEcPointFormatsInCommon => {
                "the client offers none of the groups served here"
            }
            P::NoSignatureSchemesInCommon
            | P::NoCertificateRequestSignatureSchemesInCommon
            | P::SignatureAlgorithmsExtensionRequired => {
                "the client offers no signature scheme that a certificate of this hostname can sign with"
            }
            P::ExtendedMasterSecretExtensionRequired => {
                "the client speaks TLS 1.2 without extended_master_secret, which client certificates need (RFC 7627)"
            }
            other => return Some(format!("{other:?}")),
        }
        .to_owned(),
        other => other.to_string(),
    })
}
