//! What verification said about the client's certificate.

use super::Refusal;

/// The verdict on a client certificate, as rules and the origin see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The client sent no certificate.
    None,
    /// The certificate chains to the hostname's own CAs and its key signed this handshake.
    Success,
    /// The key signed this handshake, and the certificate is not acceptable for the reason given.
    Failed(Refusal),
}

impl std::fmt::Display for Verdict {
    /// The form of `X-Client-Cert-Verify`: `NONE`, `SUCCESS` or `FAILED:<reason>`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("NONE"),
            Self::Success => f.write_str("SUCCESS"),
            Self::Failed(reason) => write!(f, "FAILED:{reason}"),
        }
    }
}
