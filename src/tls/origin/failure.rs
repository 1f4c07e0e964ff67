//! Why TLS with an origin failed: the kind that clients and counters are told, and words for the log.

use rustls::{CertificateError, Error, PeerIncompatible};
use rustls_pki_types::ServerName;

use crate::tls::records::Broken;

/// What kind of failure it is (RFC 9209 sections 2.3.13 to 2.3.15).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The origin's certificate is not one we trust for it.
    Certificate,
    /// The origin gave up, with an alert.
    Alert,
    /// Anything else.
    Protocol,
}

/// TLS with an origin failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failed {
    pub fault: Fault,
    /// What there is to say about it, for the log.
    pub detail: String,
}

impl Failed {
    pub(super) fn of(broken: Broken, asked: &ServerName<'_>) -> Self {
        match broken {
            Broken::Tls(error) => Self::of_tls(&error, asked),
            Broken::Silent(detail) => Self { fault: Fault::Protocol, detail: detail.to_owned() },
        }
    }

    pub(super) fn of_tls(error: &Error, asked: &ServerName<'_>) -> Self {
        let (fault, detail) = match error {
            Error::InvalidCertificate(error) => (Fault::Certificate, certificate_detail(error, asked)),
            Error::NoCertificatesPresented => (Fault::Certificate, "the origin shows no certificate".to_owned()),
            Error::AlertReceived(alert) => (Fault::Alert, format!("the origin sent the alert {}", alert_name(*alert))),
            Error::PeerIncompatible(incompatible) => (Fault::Protocol, incompatible_detail(incompatible)),
            Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => (
                Fault::Protocol,
                "the origin does not speak TLS; is the URL's scheme http, or the port another?".to_owned(),
            ),
            error => (Fault::Protocol, error.to_string()),
        };
        Self { fault, detail }
    }
}

fn certificate_detail(error: &CertificateError, asked: &ServerName<'_>) -> String {
    use CertificateError as E;
    let name = asked.to_str();
    match error {
        E::Expired | E::ExpiredContext { .. } => {
            "the origin's certificate, or one of its chain, has expired".to_owned()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "the origin's certificate, or one of its chain, is not valid yet".to_owned()
        }
        E::UnknownIssuer => {
            "no CA that this origin trusts has issued the origin's certificate; name the CA in tls.ca".to_owned()
        }
        E::NotValidForName => format!("the origin's certificate is not for {name}; set tls.sni to the name it is for"),
        E::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().map(|name| bare(name)).collect();
            let presented = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
            format!(
                "the origin's certificate is not for {name} but for {presented}; tls.sni sets the name that is asked for"
            )
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "the origin's certificate is not for a server (its extended key usage)".to_owned()
        }
        E::BadEncoding => "the origin's certificate is malformed".to_owned(),
        E::Other(other) if matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) => {
            "the origin's certificate is a CA's own; put this very certificate into tls.ca to trust it".to_owned()
        }
        other => format!("the origin's certificate cannot be verified: {other}"),
    }
}

fn incompatible_detail(incompatible: &PeerIncompatible) -> String {
    use PeerIncompatible as P;
    match incompatible {
        P::ServerDoesNotSupportTls12Or13 | P::ServerTlsVersionIsDisabledByOurConfig => {
            "the origin speaks no TLS version of tls.min_version or above".to_owned()
        }
        other => format!("the origin and we have no common ground in TLS: {other:?}"),
    }
}

/// As RFC 8446 section 6 spells it.
fn alert_name(alert: rustls::AlertDescription) -> String {
    let camel = alert.as_str().map_or_else(|| format!("{alert:?}"), str::to_owned);
    let mut name = String::with_capacity(camel.len() + 4);
    let mut before_was_capital = true;
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() {
            if !before_was_capital {
                name.push('_');
            }
            name.push(letter.to_ascii_lowercase());
        } else {
            name.push(letter);
        }
        before_was_capital = letter.is_ascii_uppercase();
    }
    name
}

/// A name as people write it: webpki tells it as `DnsName("a.test")` or `IpAddress(192.0.2.1)`.
fn bare(name: &str) -> &str {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::alert_name;
    use rustls::AlertDescription as A;

    #[test]
    fn alerts_are_named_as_the_standard_does() {
        for (alert, name) in [
            (A::UnknownCA, "unknown_ca"),
            (A::CertificateRequired, "certificate_required"),
            (A::HandshakeFailure, "handshake_failure"),
            (A::BadCertificate, "bad_certificate"),
        ] {
            assert_eq!(alert_name(alert), name);
        }
    }
}
