//! The closed list of reasons for which a client is refused: one name everywhere.
//!
//! The label of a reason is a counter label, a log field, a field of the admin API and a word in `hostward explain`;
//! people alert on it, so it never changes.

/// Why a client was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum Refusal {
    /// The ClientHello carries no server name and no record is the default.
    NoSni,
    /// No record has the name, its wildcard has none, and no record is the default.
    UnknownHostname,
    /// The hostname requires a client certificate and none was sent.
    NoCertificate,
    /// No path leads to a CA of this hostname, by key.
    UnknownCa,
    /// The client does not hold the key of the certificate it sent, or a signature in the chain is of no known kind.
    BadSignature,
    /// A certificate of the path is past its notAfter.
    Expired,
    /// A certificate of the path is before its notBefore.
    NotYetValid,
    /// A certificate of the path is on a CRL.
    Revoked,
    /// A certificate of the path is on the provider's deny list.
    Denied,
    /// The CRL that would answer is past its nextUpdate.
    CrlExpired,
    /// The only CA the path leads to is outside its own dates.
    CaExpired,
    /// The hostname's record exists and cannot be used.
    RecordUnreadable,
    /// More certificates, or more bytes of them, than a chain may have.
    ChainTooLong,
    /// The certificate is not for client authentication (RFC 5280 section 4.2.1.12), or an issuer is not a CA.
    WrongUsage,
    /// The certificate does not parse, or has a critical extension that is not understood.
    MalformedCertificate,
    /// The request names another authority than the connection's hostname.
    AuthorityMismatch,
    /// The hostname's rules deny this client or this request.
    RuleDenied,
    /// The connection was open when its trust was withdrawn.
    TrustChanged,
    /// The request is malformed.
    MalformedRequest,
    /// The handshake did not finish in time.
    HandshakeTimeout,
    /// What the peer sent is not TLS, or not TLS as the RFCs allow it.
    ProtocolError,
    /// A limit of this worker is reached.
    Overloaded,
    /// A rate limit is reached.
    RateLimited,
    /// Client and hostname share no protocol version, cipher suite, group or signature scheme.
    NoCommonVersion,
    /// The request's path is not among those the hostname has.
    NotFound,
}

impl Refusal {
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; 25] = [
        Self::NoSni,
        Self::UnknownHostname,
        Self::NoCertificate,
        Self::UnknownCa,
        Self::BadSignature,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::Denied,
        Self::CrlExpired,
        Self::CaExpired,
        Self::RecordUnreadable,
        Self::ChainTooLong,
        Self::WrongUsage,
        Self::MalformedCertificate,
        Self::AuthorityMismatch,
        Self::RuleDenied,
        Self::TrustChanged,
        Self::MalformedRequest,
        Self::HandshakeTimeout,
        Self::ProtocolError,
        Self::Overloaded,
        Self::RateLimited,
        Self::NoCommonVersion,
        Self::NotFound,
    ];

    /// The label in metrics and logs; stable, because people alert on it.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoSni => "no_sni",
            Self::UnknownHostname => "unknown_hostname",
            Self::NoCertificate => "no_certificate",
            Self::UnknownCa => "unknown_ca",
            Self::BadSignature => "bad_signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Denied => "denied",
            Self::CrlExpired => "crl_expired",
            Self::CaExpired => "ca_expired",
            Self::RecordUnreadable => "record_unreadable",
            Self::ChainTooLong => "chain_too_long",
            Self::WrongUsage => "wrong_usage",
            Self::MalformedCertificate => "malformed_certificate",
            Self::AuthorityMismatch => "authority_mismatch",
            Self::RuleDenied => "rule_denied",
            Self::TrustChanged => "trust_changed",
            Self::MalformedRequest => "malformed_request",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::ProtocolError => "protocol_error",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::NoCommonVersion => "no_common_version",
            Self::NotFound => "not_found",
        }
    }

    /// The reason with this discriminant, as a sealed ticket stores it.
    pub fn from_u8(value: u8) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

#[cfg(test)]
mod tests {
    use super::Refusal;

    #[test]
    fn discriminants_index_the_list_and_labels_are_distinct() {
        let mut labels = std::collections::HashSet::new();
        for (index, reason) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason}");
            assert_eq!(Refusal::from_u8(index as u8), Some(reason));
            assert!(labels.insert(reason.label()), "{reason} stands twice");
        }
        assert_eq!(Refusal::from_u8(Refusal::ALL.len() as u8), None);
    }
}
