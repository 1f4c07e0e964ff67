//! The PROXY protocol: as sent to an origin, who the client is and what TLS found out about it; and as read from a balancer
//! in front of us (`read`).
//!
//! For the tunnel, which writes the header before the first byte of a connection. By the specification "The PROXY
//! protocol, Versions 1 & 2" of HAProxy (doc/proxy-protocol.txt); section numbers below are its. Version 1 has room for
//! addresses only.
//!
//! Of the certificate's names only the common name is sent. The specification has no TLV for subjectAltName, and its range
//! for own use (0xE0 to 0xEF) has no agreed meaning: no origin would read it. Who needs SANs in an origin writes rules, or
//! uses HTTP, where they have a header.
//!
//! The header is bounded by [`HEADER_BYTES_MAX`]. A value that is longer than [`VALUE_BYTES_MAX`] is left out, never
//! cut: half a common name is another client's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crc::{CRC_32_ISCSI, Crc};

use crate::policy::{Refusal, Verdict};

pub mod read;

/// The longest value of a TLV that is sent.
///
/// A protocol name of ALPN has at most 255 bytes (RFC 7301 section 3.1), a host name 253 (RFC 1035), a common name 64
/// characters (RFC 5280 appendix A.1); only a common name that breaks its bound can be longer.
pub const VALUE_BYTES_MAX: usize = 255;

/// The longest unique id (section 2.2.5).
pub const UNIQUE_ID_BYTES_MAX: usize = 128;

/// The longest header: fixed part, IPv6 addresses, checksum, ALPN, authority, unique id, and SSL with its three values.
///
/// Section 2.2 wants it smaller than a segment, so that it arrives at once; the smallest IPv6 MTU of 1280 bytes leaves
/// 1220 for it. Two values are short by nature: the version of TLS and the name of a cipher suite.
pub const HEADER_BYTES_MAX: usize = 16
    + 36
    + (3 + 4)
    + 2 * (3 + VALUE_BYTES_MAX)
    + (3 + UNIQUE_ID_BYTES_MAX)
    + (3 + 5)
    + (3 + VERSION_BYTES_MAX)
    + (3 + CIPHER_BYTES_MAX)
    + (3 + VALUE_BYTES_MAX);

/// "TLSv1.3" and its like.
const VERSION_BYTES_MAX: usize = 16;

/// The longest name of a cipher suite that rustls knows, TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, has 45 bytes.
const CIPHER_BYTES_MAX: usize = 64;

const _: () = assert!(HEADER_BYTES_MAX <= 1220, "the header must fit into one segment");

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

// The 13th byte: version 2 and the command.
const VERSION_2_LOCAL: u8 = 0x20;
const VERSION_2_PROXY: u8 = 0x21;

// The 14th byte: family and transport.
const UNSPEC: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

// Types of TLVs, section 2.2.
const TYPE_ALPN: u8 = 0x01;
const TYPE_AUTHORITY: u8 = 0x02;
const TYPE_CRC32C: u8 = 0x03;
const TYPE_UNIQUE_ID: u8 = 0x05;
const TYPE_SSL: u8 = 0x20;
const SUBTYPE_SSL_VERSION: u8 = 0x21;
const SUBTYPE_SSL_CN: u8 = 0x22;
const SUBTYPE_SSL_CIPHER: u8 = 0x23;

/// The checksum of section 2.2.3, which RFC 4960 appendix B describes (the one of iSCSI).
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

// Bits of the client field, section 2.2.6.
const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const CLIENT_CERT_SESS: u8 = 0x04;

/// What the header tells the origin.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The client's connection; `None` if it has no TCP addresses.
    pub endpoints: Option<Endpoints>,
    /// The protocol ALPN agreed on.
    pub alpn: Option<&'a [u8]>,
    /// The server name the client asked for.
    pub authority: Option<&'a str>,
    /// The id a balancer in front of us gave the connection.
    pub unique_id: Option<&'a [u8]>,
    /// What TLS found out; `None` for a connection without TLS.
    pub ssl: Option<Ssl<'a>>,
}

/// The two ends of the client's connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoints {
    /// The client.
    pub source: SocketAddr,
    /// The address it connected to.
    pub destination: SocketAddr,
}

/// What TLS found out about the client.
#[derive(Clone, Copy, Debug)]
pub struct Ssl<'a> {
    /// As OpenSSL writes it: "TLSv1.2", "TLSv1.3".
    pub version: &'a str,
    /// The name of the cipher suite.
    pub cipher: Option<&'a str>,
    /// Whether and when the client showed a certificate.
    pub client_certificate: ClientCertificate,
    /// 0 if the certificate was verified, else a code as [`verify_code`] gives. Sent as non-zero in any case if there was
    /// no certificate: the specification has 0 for "presented and verified" only.
    pub verify: u32,
    /// The commonName of the client's certificate. Left out unless the certificate was verified: an origin that
    /// overlooks `verify` must not take an unverified name for an identity (I2).
    pub common_name: Option<&'a str>,
}

/// The common name to send: that of a subject with exactly one, without control characters.
///
/// The specification has room for one name and knows no escapes. Of several, one reader would take the first and another
/// the last; and a line break or NUL is how a name forges a line of the origin's log or becomes a shorter one. Such a name
/// is left out, as one that is too long: the origin sees a verified certificate without a name it could trust.
pub fn common_name(mut common_names: Vec<String>) -> Option<String> {
    let name = common_names.pop()?;
    (common_names.is_empty() && !name.contains(char::is_control)).then_some(name)
}

/// Whether and when the client showed a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClientCertificate {
    /// Never.
    None,
    /// In the handshake of this connection (PP2_CLIENT_CERT_CONN, which implies the session).
    Connection,
    /// In an earlier handshake of the TLS session this connection resumed (PP2_CLIENT_CERT_SESS alone).
    Session,
}

/// What `verify` is sent as where no better code exists: X509_V_ERR_UNSPECIFIED.
const VERIFY_UNSPECIFIED: u32 = 1;

/// The value of `verify` for a verdict.
///
/// The specification asks only for zero or not. Receivers know HAProxy, which passes on OpenSSL's verify results, so the
/// reasons that have one (x509_vfy.h) are sent as that number.
pub fn verify_code(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Success => 0,
        Verdict::Failed(Refusal::BadSignature) => 7,
        Verdict::Failed(Refusal::NotYetValid) => 9,
        Verdict::Failed(Refusal::Expired | Refusal::CaExpired) => 10,
        Verdict::Failed(Refusal::CrlExpired) => 12,
        Verdict::Failed(Refusal::UnknownCa) => 20,
        Verdict::Failed(Refusal::ChainTooLong) => 22,
        Verdict::Failed(Refusal::Revoked) => 23,
        Verdict::Failed(Refusal::WrongUsage) => 26,
        Verdict::None | Verdict::Failed(_) => VERIFY_UNSPECIFIED,
    }
}

impl Header<'_> {
    /// Appends the header to `out` in version 1, at most 107 bytes: the addresses alone.
    pub fn encode_v1(&self, out: &mut Vec<u8>) {
        let line = match self.endpoints.map(|endpoints| (endpoints, pair(endpoints))) {
            None => "PROXY UNKNOWN\r\n".to_owned(),
            Some((Endpoints { source, destination }, pair)) => {
                let (source_port, destination_port) = (source.port(), destination.port());
                match pair {
                    Pair::V4(from, to) => format!("PROXY TCP4 {from} {to} {source_port} {destination_port}\r\n"),
                    Pair::V6(from, to) => format!("PROXY TCP6 {from} {to} {source_port} {destination_port}\r\n"),
                }
            }
        };
        out.extend_from_slice(line.as_bytes());
    }

    /// Appends the header to `out` in version 2, at most [`HEADER_BYTES_MAX`] bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.reserve(HEADER_BYTES_MAX);
        out.extend_from_slice(&SIGNATURE);
        out.push(VERSION_2_PROXY);
        match self.endpoints {
            None => out.extend_from_slice(&[UNSPEC, 0, 0]),
            Some(endpoints) => push_endpoints(out, endpoints),
        }
        push_tlv(out, TYPE_CRC32C, Some(&[0; 4]), 4);
        let sum_at = out.len() - 4;
        push_tlv(out, TYPE_ALPN, self.alpn, VALUE_BYTES_MAX);
        push_tlv(out, TYPE_AUTHORITY, self.authority.map(str::as_bytes), VALUE_BYTES_MAX);
        push_tlv(out, TYPE_UNIQUE_ID, self.unique_id, UNIQUE_ID_BYTES_MAX);
        if let Some(ssl) = &self.ssl {
            ssl.encode(out);
        }
        set_length(out, start + 14, start + 16);
        let sum = read::checksum(&out[start..], sum_at - start);
        out[sum_at..sum_at + 4].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Appends the header of a connection that carries no client (section 2.2: LOCAL, for health checks). The origin takes
/// the addresses of the connection itself.
pub fn encode_local(out: &mut Vec<u8>) {
    out.extend_from_slice(&SIGNATURE);
    out.extend_from_slice(&[VERSION_2_LOCAL, UNSPEC, 0, 0]);
}

impl Ssl<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let (client, verify) = match self.client_certificate {
            ClientCertificate::None => (CLIENT_SSL, self.verify.max(VERIFY_UNSPECIFIED)),
            ClientCertificate::Connection => (CLIENT_SSL | CLIENT_CERT_CONN | CLIENT_CERT_SESS, self.verify),
            ClientCertificate::Session => (CLIENT_SSL | CLIENT_CERT_SESS, self.verify),
        };
        out.extend_from_slice(&[TYPE_SSL, 0, 0, client]);
        let value = out.len() - 1;
        out.extend_from_slice(&verify.to_be_bytes());
        push_tlv(out, SUBTYPE_SSL_VERSION, Some(self.version.as_bytes()), VERSION_BYTES_MAX);
        push_tlv(out, SUBTYPE_SSL_CIPHER, self.cipher.map(str::as_bytes), CIPHER_BYTES_MAX);
        let common_name = self.common_name.filter(|_| verify == 0).map(str::as_bytes);
        push_tlv(out, SUBTYPE_SSL_CN, common_name, VALUE_BYTES_MAX);
        set_length(out, value - 2, value);
    }
}

/// The addresses of both ends, of one family.
enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// Two IPv4 addresses (IPv4-mapped ones are such: a dual-stack listener sees IPv4 clients so) make an IPv4 header; mixed
/// ones an IPv6 header, the IPv4 one mapped.
fn pair(endpoints: Endpoints) -> Pair {
    match (endpoints.source.ip().to_canonical(), endpoints.destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Pair::V4(from, to),
        (from, to) => Pair::V6(as_ipv6(from), as_ipv6(to)),
    }
}

/// Family, a place for the length, addresses and ports.
fn push_endpoints(out: &mut Vec<u8>, endpoints: Endpoints) {
    let Endpoints { source, destination } = endpoints;
    match pair(endpoints) {
        Pair::V4(from, to) => {
            out.extend_from_slice(&[TCP_OVER_IPV4, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        Pair::V6(from, to) => {
            out.extend_from_slice(&[TCP_OVER_IPV6, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

fn as_ipv6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Appends a TLV, unless there is no value or it is too long. An empty value says nothing and is left out too.
fn push_tlv(out: &mut Vec<u8>, kind: u8, value: Option<&[u8]>, bytes_max: usize) {
    let Some(value) = value.filter(|value| !value.is_empty() && value.len() <= bytes_max) else { return };
    let length_at = out.len() + 1;
    out.extend_from_slice(&[kind, 0, 0]);
    out.extend_from_slice(value);
    set_length(out, length_at, length_at + 2);
}

/// Writes how many bytes follow from `from` on into the two bytes at `at`. Fits, by [`HEADER_BYTES_MAX`].
fn set_length(out: &mut [u8], at: usize, from: usize) {
    let length = out.len() - from;
    debug_assert!(length <= HEADER_BYTES_MAX);
    let [.., high, low] = length.to_be_bytes();
    out[at] = high;
    out[at + 1] = low;
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod haproxy;
