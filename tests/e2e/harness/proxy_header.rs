//! The PROXY protocol version 2 header as an origin reads it (HAProxy's proxy-protocol.txt, section 2.2).

use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_UNIQUE_ID: u8 = 0x05;
const TLV_SSL: u8 = 0x20;
const SUB_TLV_VERSION: u8 = 0x21;
const SUB_TLV_COMMON_NAME: u8 = 0x22;

/// The client connected over TLS.
const CLIENT_SSL: u8 = 0x01;
/// It sent a certificate over this connection.
const CLIENT_CERT_CONN: u8 = 0x02;
/// It sent one at least once over the TLS session this connection belongs to.
const CLIENT_CERT_SESS: u8 = 0x04;

/// A header.
#[derive(Clone, Debug)]
pub struct ProxyHeader {
    /// Source and destination; `None` for LOCAL or an address family other than IP.
    pub addresses: Option<(SocketAddr, SocketAddr)>,
    tlvs: Vec<(u8, Vec<u8>)>,
}

impl ProxyHeader {
    /// Reads a header, and not a byte more.
    pub fn read(input: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; 16];
        input.read_exact(&mut fixed)?;
        if fixed[..12] != *SIGNATURE || fixed[12] >> 4 != 2 {
            return Err(io::Error::other(format!("not a PROXY v2 header: {fixed:02x?}")));
        }
        let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
        input.read_exact(&mut rest)?;
        let (addresses, tlvs) = match (fixed[12] & 15, fixed[13]) {
            (1, 0x11) => (Some(ipv4(take(&rest, 0, 12)?)), take(&rest, 12, rest.len() - 12)?),
            (1, 0x21) => (Some(ipv6(take(&rest, 0, 36)?)), take(&rest, 36, rest.len() - 36)?),
            _ => (None, &[][..]),
        };
        Ok(Self { addresses, tlvs: parse_tlvs(tlvs)? })
    }

    fn tlv(&self, kind: u8) -> Option<&[u8]> {
        self.tlvs.iter().find(|(other, _)| *other == kind).map(|(_, value)| &value[..])
    }

    /// The protocol negotiated by ALPN.
    pub fn alpn(&self) -> Option<String> {
        self.tlv(TLV_ALPN).map(text)
    }

    /// The server name the client asked for.
    pub fn authority(&self) -> Option<String> {
        self.tlv(TLV_AUTHORITY).map(text)
    }

    /// The id a balancer gave the connection.
    pub fn unique_id(&self) -> Option<String> {
        self.tlv(TLV_UNIQUE_ID).map(text)
    }

    /// What is said about TLS.
    pub fn ssl(&self) -> Option<Ssl> {
        let value = self.tlv(TLV_SSL)?;
        let (flags, rest) = value.split_first()?;
        let (verify, rest) = rest.split_first_chunk::<4>()?;
        let parts = parse_tlvs(rest).ok()?;
        let find = |kind| parts.iter().find(|(other, _)| *other == kind).map(|(_, value)| text(value));
        Some(Ssl {
            tls: flags & CLIENT_SSL != 0,
            certificate_on_connection: flags & CLIENT_CERT_CONN != 0,
            certificate_in_session: flags & CLIENT_CERT_SESS != 0,
            verify: u32::from_be_bytes(*verify),
            version: find(SUB_TLV_VERSION),
            common_name: find(SUB_TLV_COMMON_NAME),
        })
    }
}

/// The SSL TLV.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ssl {
    pub tls: bool,
    pub certificate_on_connection: bool,
    pub certificate_in_session: bool,
    /// Zero if a certificate was presented and verified, anything else otherwise.
    pub verify: u32,
    pub version: Option<String>,
    pub common_name: Option<String>,
}

fn take(bytes: &[u8], from: usize, length: usize) -> io::Result<&[u8]> {
    bytes.get(from..from + length).ok_or_else(|| io::Error::other("a PROXY header that is too short"))
}

fn ipv4(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).expect("four bytes"));
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    ((address(0), port(8)).into(), (address(4), port(10)).into())
}

fn ipv6(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let address = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).expect("sixteen bytes"));
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    ((address(0), port(32)).into(), (address(16), port(34)).into())
}

fn parse_tlvs(mut bytes: &[u8]) -> io::Result<Vec<(u8, Vec<u8>)>> {
    let mut tlvs = Vec::new();
    while !bytes.is_empty() {
        let head = take(bytes, 0, 3)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        tlvs.push((head[0], take(bytes, 3, length)?.to_vec()));
        bytes = &bytes[3 + length..];
    }
    Ok(tlvs)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
