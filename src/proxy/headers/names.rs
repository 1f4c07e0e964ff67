//! What the name of a field means here, whatever its spelling.
//!
//! An origin may read `Client_Cert`, `client.cert` and `Client-Cert` as one field: CGI and WSGI turn every separator into
//! an underscore, others drop or fold case. So a name is compared after mapping each byte outside `[A-Za-z0-9]` to `-` and
//! lower-casing (DECISIONS 21), and a name that means something here in any but its plain spelling is a forgery.

/// What a field is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Meaning {
    /// Nothing: passed on.
    Ordinary,
    /// Nothing, under a name outside `[A-Za-z0-9-]`.
    Unusual,
    /// An identity, which nobody but us may tell an origin (I5).
    Identity,
    /// A name of this list in a spelling that is not its own, such as `Content_Length`.
    Disguised,
    /// Meant for the next hop only (RFC 9110 section 7.6.1), and of no use to us.
    Hop,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    Expect,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPort,
    /// Any other `X-Forwarded-*`.
    ForwardedOther,
    RequestId,
    /// W3C Trace Context.
    Traceparent,
    Tracestate,
    /// Named by a `Connection` field, and so not passed on.
    Named,
}

/// Bit of [`BYTES`]: the byte is in `[A-Za-z0-9-]`.
const USUAL: u8 = 0x80;

/// For each byte what it is mapped to (all of them ASCII), and [`USUAL`].
const BYTES: [u8; 256] = {
    let mut bytes = [b'-'; 256];
    let mut byte: u8 = 0;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() {
            bytes[byte as usize] = byte.to_ascii_lowercase() | USUAL;
        }
        byte += 1;
    }
    bytes[b'-' as usize] = b'-' | USUAL;
    bytes
};

/// What the field of this name means.
///
/// Called for every field of every message. Most names are told apart by their first letter and length alone; the one
/// look at each byte is for names outside `[A-Za-z0-9-]`.
pub fn meaning(name: &[u8]) -> Meaning {
    let known = known(name);
    let usual = name.iter().fold(USUAL, |usual, &byte| usual & BYTES[usize::from(byte)]) != 0;
    match known {
        known if usual => known,
        Meaning::Ordinary => Meaning::Unusual,
        Meaning::Identity => Meaning::Identity,
        _ => Meaning::Disguised,
    }
}

/// The meaning of a name without regard to its spelling.
fn known(name: &[u8]) -> Meaning {
    let Some(first) = name.first() else { return Meaning::Ordinary };
    let is = |other: &[u8]| name.len() == other.len() && starts(name, other);
    // Setting this bit makes capital letters small and nothing else a letter.
    match first | 0x20 {
        b'c' => match name.len() {
            10 if is(b"connection") => Meaning::Connection,
            14 if is(b"content-length") => Meaning::ContentLength,
            _ if is_identity_c(name) => Meaning::Identity,
            _ => Meaning::Ordinary,
        },
        b'x' => known_x(name),
        b'h' if is(b"host") => Meaning::Host,
        // Belongs to `Upgrade: h2c` (RFC 7540 section 3.2.1), which is not passed on.
        b'h' if is(b"http2-settings") => Meaning::Hop,
        b't' if is(b"transfer-encoding") => Meaning::TransferEncoding,
        b't' if is(b"te") => Meaning::Hop,
        b't' if is(b"traceparent") => Meaning::Traceparent,
        b't' if is(b"tracestate") => Meaning::Tracestate,
        b'u' if is(b"upgrade") => Meaning::Upgrade,
        b'e' if is(b"expect") => Meaning::Expect,
        b'f' if is(b"forwarded") => Meaning::Forwarded,
        b'k' if is(b"keep-alive") => Meaning::Hop,
        b'p' if is(b"proxy-connection") => Meaning::Hop,
        // As the ingress controllers of nginx name them.
        b's' if starts(name, b"ssl-client") => Meaning::Identity,
        _ => Meaning::Ordinary,
    }
}

/// Identities that begin with `c`: RFC 9440 and what extends it, and Cloudflare's.
fn is_identity_c(name: &[u8]) -> bool {
    starts(name, b"client-cert") || starts(name, b"cf-client-cert") || starts(name, b"cf-cert-")
}

/// What identities that begin with `x-` go on with.
const IDENTITIES_X: [&[u8]; 8] = [
    b"client-cert",
    b"client-dn",
    b"client-s-dn",
    b"client-verify",
    b"amzn-mtls-",
    b"ssl-c",
    b"arr-clientcert",
    b"tls-client-cert",
];

/// Names that begin with `x`.
fn known_x(name: &[u8]) -> Meaning {
    let Some(rest) = name.get(2..) else { return Meaning::Ordinary };
    if !starts(name, b"x-") {
        return Meaning::Ordinary;
    }
    let is = |other: &[u8]| rest.len() == other.len() && starts(rest, other);
    if let Some(what) = rest.get(10..).filter(|_| starts(rest, b"forwarded-")) {
        let is = |other: &[u8]| what.len() == other.len() && starts(what, other);
        // Envoy's and Traefik's.
        if starts(what, b"client-cert") || starts(what, b"tls-client-cert") {
            Meaning::Identity
        } else if is(b"for") {
            Meaning::ForwardedFor
        } else if is(b"proto") {
            Meaning::ForwardedProto
        } else if is(b"host") {
            Meaning::ForwardedHost
        } else if is(b"port") {
            Meaning::ForwardedPort
        } else {
            Meaning::ForwardedOther
        }
    } else if is(b"request-id") {
        Meaning::RequestId
    // Our own; those of AWS; those HAProxy's manual has in its examples; IIS's; and what people write by hand.
    } else if IDENTITIES_X.iter().any(|prefix| starts(rest, prefix)) {
        Meaning::Identity
    } else {
        Meaning::Ordinary
    }
}

/// Whether a name is another in any spelling; that one is in mapped form.
pub fn is_spelling_of(name: &[u8], plain: &str) -> bool {
    name.len() == plain.len() && starts(name, plain.as_bytes())
}

/// Whether the mapped name starts with `prefix`, which is in mapped form.
fn starts(name: &[u8], prefix: &[u8]) -> bool {
    name.len() >= prefix.len()
        && name.iter().zip(prefix).all(|(&byte, &other)| BYTES[usize::from(byte)] & !USUAL == other)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every identity set there is, by names of it that are in use.
    pub(crate) const IDENTITIES: &[&str] = &[
        "Client-Cert",
        "Client-Cert-Chain",
        "Client-Cert-Too-Large",
        "Client-Cert-Chain-Too-Large",
        "Client-Cert-Present",
        "X-Client-Cert",
        "X-Client-Cert-Verify",
        "X-Client-Cert-Subject",
        "X-Client-Cert-Issuer",
        "X-Client-Cert-Serial",
        "X-Client-Cert-Fingerprint",
        "X-Client-Cert-San",
        "X-Client-Cert-Not-After",
        "X-Client-Cert-Too-Large",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-Client-Cert-Too-Large",
        "X-Forwarded-Tls-Client-Cert",
        "X-Forwarded-Tls-Client-Cert-Info",
        "X-Amzn-Mtls-Clientcert",
        "X-Amzn-Mtls-Clientcert-Leaf",
        "X-Amzn-Mtls-Clientcert-Subject",
        "X-Amzn-Mtls-Clientcert-Serial-Number",
        "Ssl-Client-Cert",
        "Ssl-Client-Verify",
        "Ssl-Client-Subject-Dn",
        "Ssl-Client-Issuer-Dn",
        "Ssl-Client-Cert-Too-Large",
        "Ssl-Client-Subject-Dn-Too-Large",
        "X-Ssl-Client-Cn",
        "Cf-Client-Cert-Der-Base64",
        "Cf-Client-Cert-Sha256",
        "Cf-Cert-Verified",
        "Cf-Cert-Subject-Dn",
        "Cf-Cert-Presented",
        "Cf-Client-Cert-Too-Large",
    ];

    #[test]
    fn names_mean_what_they_say() {
        for (name, expected) in [
            ("Accept", Meaning::Ordinary),
            ("Cookie", Meaning::Ordinary),
            ("Content-Type", Meaning::Ordinary),
            ("Content-Lengths", Meaning::Ordinary),
            ("X", Meaning::Ordinary),
            ("X-", Meaning::Ordinary),
            ("X-Client", Meaning::Ordinary),
            ("Client-Ip", Meaning::Ordinary),
            ("Clientcert", Meaning::Ordinary),
            ("Ssl", Meaning::Ordinary),
            ("", Meaning::Ordinary),
            ("My_Field", Meaning::Unusual),
            ("X.Y", Meaning::Unusual),
            ("connection", Meaning::Connection),
            ("HOST", Meaning::Host),
            ("Content-Length", Meaning::ContentLength),
            ("Content_Length", Meaning::Disguised),
            ("Transfer-Encoding", Meaning::TransferEncoding),
            ("Transfer.Encoding", Meaning::Disguised),
            ("TE", Meaning::Hop),
            ("Keep-Alive", Meaning::Hop),
            ("Proxy-Connection", Meaning::Hop),
            ("HTTP2-Settings", Meaning::Hop),
            ("Upgrade", Meaning::Upgrade),
            ("Expect", Meaning::Expect),
            ("Forwarded", Meaning::Forwarded),
            ("X-Forwarded-For", Meaning::ForwardedFor),
            ("X_Forwarded-For", Meaning::Disguised),
            ("X-Forwarded-Proto", Meaning::ForwardedProto),
            ("X-Forwarded-Host", Meaning::ForwardedHost),
            ("X-Forwarded-Port", Meaning::ForwardedPort),
            ("X_Forwarded_Port", Meaning::Disguised),
            ("X-Forwarded-Server", Meaning::ForwardedOther),
            ("X-Request-ID", Meaning::RequestId),
            ("X_Request_ID", Meaning::Disguised),
            ("TraceParent", Meaning::Traceparent),
            ("tracestate", Meaning::Tracestate),
            ("tracestates", Meaning::Ordinary),
        ] {
            assert_eq!(meaning(name.as_bytes()), expected, "{name}");
        }
    }

    proptest! {
        /// An identity stays one in any case, with any bytes where its hyphens are, and with anything after it.
        #[test]
        fn no_spelling_hides_an_identity(
            name in prop::sample::select(IDENTITIES),
            cases in prop::collection::vec(any::<bool>(), 48),
            separators in prop::collection::vec("[-_.!#$%&'*+^`|~ \0\u{ff}]", 8),
        ) {
            let mut separators = separators.iter();
            let spelled: Vec<u8> = name
                .bytes()
                .zip(cases)
                .flat_map(|(byte, upper)| match byte {
                    // One byte takes the place of a hyphen.
                    b'-' => vec![separators.next().and_then(|text| text.bytes().next_back()).unwrap_or(b'_')],
                    byte if upper => vec![byte.to_ascii_uppercase()],
                    byte => vec![byte.to_ascii_lowercase()],
                })
                .collect();
            prop_assert_eq!(meaning(&spelled), Meaning::Identity, "{}", spelled.escape_ascii());
        }

        /// The quick ways agree with the definition: map the whole name, then compare.
        #[test]
        fn meaning_is_that_of_the_mapped_name(name in "([cxhtuefkps][a-z_-]{0,20})|([Xx][-_.][Ff]orwarded[-_.][a-z]{0,6})") {
            let mapped: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
            let usual = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            let of_mapped = meaning(mapped.as_bytes());
            let expected = match of_mapped {
                same if usual => same,
                Meaning::Ordinary => Meaning::Unusual,
                Meaning::Identity => Meaning::Identity,
                _ => Meaning::Disguised,
            };
            prop_assert_eq!(meaning(name.as_bytes()), expected);
        }

        #[test]
        fn any_bytes_are_survived(name in prop::collection::vec(any::<u8>(), 0..64)) {
            meaning(&name);
        }
    }
}
