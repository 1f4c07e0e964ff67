//! The PROXY protocol, versions 1 and 2, as a balancer in front of us writes it: read strictly, before the first byte of
//! the client's own.
//!
//! Pure: the bytes received so far go in, and it says whether they begin with a header, what it tells and where it ends. Each
//! byte is judged as soon as it is there, so that what is no header is known at once. Section numbers are those of HAProxy's
//! doc/proxy-protocol.txt. Where it leaves a receiver the choice between tolerance and refusal we refuse: a header decides
//! who the client is, and a guess would be somebody else.
//!
//! Why not the crate `ppp`, which the tests read everything a second time with: it cannot tell half a line from a broken
//! one, takes ports like "+80", and neither bounds a header nor checks its checksum.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    CRC32C, Endpoints, SIGNATURE, TCP_OVER_IPV4, TCP_OVER_IPV6, TYPE_CRC32C, TYPE_UNIQUE_ID, UNIQUE_ID_BYTES_MAX,
    UNIX_STREAM, UNSPEC, VERSION_2_LOCAL, VERSION_2_PROXY,
};

/// The most bytes of a header that is read.
///
/// A client's certificate is the largest value there is (section 2.2.6, up to about 2 KiB), everything else together has a
/// few hundred bytes, and nginx reads no more either. The 64 KiB that the length field could say are memory that a peer gets
/// before anybody has proved anything.
pub const READ_BYTES_MAX: usize = 4096;

/// The most bytes of a line of version 1, its end included (section 2.1).
const LINE_BYTES_MAX: usize = 107;

/// How a line of version 1 begins.
const LINE_PREFIX: [u8; 6] = *b"PROXY ";

/// So many bytes of a header are sure to be none of another protocol.
const PREFIX_BYTES_SURE: usize = 5;

/// The fixed part of version 2: signature, version and command, family and transport, length.
const FIXED_BYTES: usize = 16;

/// What a header tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    pub version: Version,
    pub told: Told,
    /// The id the balancer gave the connection.
    pub unique_id: Option<Box<[u8]>>,
}

/// Which form the header has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V1,
    V2,
}

/// Whose connection it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// The balancer's own, as for a health check (LOCAL).
    Local,
    /// A client's, whose address is not told (UNKNOWN, AF_UNSPEC) or is none of a network (AF_UNIX).
    Unknown,
    /// This client's.
    Client(Endpoints),
}

/// Why no header was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unread {
    /// So far it is one: more has to come.
    Incomplete,
    /// It does not begin like one.
    Missing,
    /// It begins like one, and this is wrong with it.
    Malformed(&'static str),
}

/// Reads the header at the beginning of `bytes`, and says how many of them it takes.
///
/// # Errors
///
/// [`Unread`].
pub fn read(bytes: &[u8]) -> Result<(Announced, usize), Unread> {
    if begins(bytes, &LINE_PREFIX) {
        return if bytes.len() < LINE_PREFIX.len() { Err(Unread::Incomplete) } else { read_line(bytes) };
    }
    if begins(bytes, &SIGNATURE) {
        judge_fixed(bytes)?;
        return if bytes.len() < FIXED_BYTES { Err(Unread::Incomplete) } else { read_binary(bytes) };
    }
    Err(Unread::Missing)
}

/// Whether these are the first bytes of a connection that begins with a header, for certain.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.len() >= PREFIX_BYTES_SURE && (begins(bytes, &LINE_PREFIX) || begins(bytes, &SIGNATURE))
}

/// Whether `bytes` and `prefix` agree as far as both go.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    bytes.iter().zip(prefix).all(|(byte, expected)| byte == expected)
}

/// Version 1: `PROXY TCP4 192.0.2.7 198.51.100.1 51000 443`, CR, LF.
fn read_line(bytes: &[u8]) -> Result<(Announced, usize), Unread> {
    let line = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let end = line.iter().position(|byte| !matches!(byte, b' '..=b'~'));
    let Some(end) = end.filter(|end| *end < LINE_BYTES_MAX - 1) else {
        return Err(if line.len() == LINE_BYTES_MAX {
            Unread::Malformed("a line of more than 107 bytes")
        } else {
            Unread::Incomplete
        });
    };
    match (line[end], line.get(end + 1)) {
        (b'\r', None) => return Err(Unread::Incomplete),
        (b'\r', Some(b'\n')) => {}
        _ => return Err(Unread::Malformed("a line that does not end with CR and LF, or has bytes that are no text")),
    }
    let told = told_by_line(&line[LINE_PREFIX.len()..end]).ok_or(Unread::Malformed(
        "a line of another form than PROXY TCP4|TCP6 SOURCE DESTINATION SOURCE-PORT DESTINATION-PORT",
    ))?;
    Ok((Announced { version: Version::V1, told, unique_id: None }, end + 2))
}

/// What stands behind `PROXY `, in fields with one space between them.
fn told_by_line(line: &[u8]) -> Option<Told> {
    let line = std::str::from_utf8(line).ok()?;
    let (protocol, addresses) = line.split_once(' ').unwrap_or((line, ""));
    let fields = || {
        let mut fields = addresses.split(' ');
        let four = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
        fields.next().is_none().then_some(four)
    };
    match protocol {
        // What follows is not looked at, whatever it is.
        "UNKNOWN" => Some(Told::Unknown),
        "TCP4" => client::<Ipv4Addr>(fields()?),
        "TCP6" => client::<Ipv6Addr>(fields()?),
        _ => None,
    }
}

fn client<Ip: std::str::FromStr + Into<IpAddr>>(fields: [&str; 4]) -> Option<Told> {
    let [source, destination, source_port, destination_port] = fields;
    let address = |ip: &str, text| Some(SocketAddr::new(ip.parse::<Ip>().ok()?.into(), port(text)?));
    Some(Told::Client(Endpoints {
        source: address(source, source_port)?,
        destination: address(destination, destination_port)?,
    }))
}

/// A port. Section 2.1: no zeroes in front, which some would read as octal.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// Judges what there is of version 2's fixed part behind the signature.
fn judge_fixed(bytes: &[u8]) -> Result<(), Unread> {
    match bytes.get(12) {
        // Section 2.2: what is said of the balancer's own connection, its family first, is to be passed over.
        Some(&VERSION_2_LOCAL) | None => Ok(()),
        Some(&VERSION_2_PROXY) => bytes.get(13).map_or(Ok(()), |family| address_bytes(*family).map(drop)),
        Some(version) if version >> 4 != 2 => Err(Unread::Malformed("a version other than 2")),
        Some(_) => Err(Unread::Malformed("a command other than LOCAL and PROXY")),
    }
}

/// How many bytes the addresses of a family take, by the byte that names it and its transport.
fn address_bytes(family: u8) -> Result<usize, Unread> {
    match family {
        UNSPEC => Ok(0),
        TCP_OVER_IPV4 => Ok(12),
        TCP_OVER_IPV6 => Ok(36),
        UNIX_STREAM => Ok(216),
        // Section 2.2 lets a receiver refuse what it does not support. TLS over TCP did not come as datagrams, and whom it
        // came from then is not what stands here.
        0x12 | 0x22 | 0x32 => Err(Unread::Malformed("a datagram protocol")),
        _ => Err(Unread::Malformed("an address family and transport that do not exist")),
    }
}

/// Version 2, of which the fixed part is here and has been judged.
fn read_binary(bytes: &[u8]) -> Result<(Announced, usize), Unread> {
    let (local, family) = (bytes[12] == VERSION_2_LOCAL, bytes[13]);
    let end = FIXED_BYTES + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    let addresses = if local { 0 } else { address_bytes(family)? };
    if end > READ_BYTES_MAX {
        return Err(Unread::Malformed("more than 4096 bytes"));
    }
    if end < FIXED_BYTES + addresses {
        return Err(Unread::Malformed("a length too small for its addresses"));
    }
    let header = bytes.get(..end).ok_or(Unread::Incomplete)?;
    let announced = |told, unique_id| Ok((Announced { version: Version::V2, told, unique_id }, end));
    let told = match (local, family) {
        (true, _) => return announced(Told::Local, None),
        // Whether addresses stand in front of the TLVs here is not for us to guess (section 2.2 on AF_UNSPEC).
        (_, UNSPEC) => return announced(Told::Unknown, None),
        (_, TCP_OVER_IPV4) => Told::Client(endpoints::<4>(header)),
        (_, TCP_OVER_IPV6) => Told::Client(endpoints::<16>(header)),
        _ => Told::Unknown,
    };
    announced(told, read_tlvs(header, FIXED_BYTES + addresses)?)
}

/// Two addresses of `N` bytes and two ports behind the fixed part, which has been found long enough.
fn endpoints<const N: usize>(header: &[u8]) -> Endpoints
where
    IpAddr: From<[u8; N]>,
{
    let ip = |at: usize| {
        let mut octets = [0; N];
        octets.copy_from_slice(&header[at..at + N]);
        IpAddr::from(octets)
    };
    let port = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let ports = FIXED_BYTES + 2 * N;
    Endpoints {
        source: SocketAddr::new(ip(FIXED_BYTES), port(ports)),
        destination: SocketAddr::new(ip(FIXED_BYTES + N), port(ports + 2)),
    }
}

/// The TLVs from `at` on: the checksum is checked, the unique id returned, the others (authority, ALPN, SSL among them) passed
/// over. They never say which hostname this is, or who the client is (DECISIONS 26): the ClientHello and the handshake do.
fn read_tlvs(header: &[u8], mut at: usize) -> Result<Option<Box<[u8]>>, Unread> {
    let (mut checked, mut unique_id) = (false, None::<Box<[u8]>>);
    while at < header.len() {
        let [kind, high, low, rest @ ..] = &header[at..] else {
            return Err(Unread::Malformed("a TLV that is cut off"));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let value = rest.get(..length).ok_or(Unread::Malformed("a TLV that is longer than the header"))?;
        let from = at + 3;
        match *kind {
            TYPE_CRC32C => {
                let sum = <[u8; 4]>::try_from(value).ok().filter(|_| !checked);
                let sum = sum.ok_or(Unread::Malformed("a checksum that is not one of four bytes"))?;
                if checksum(header, from) != u32::from_be_bytes(sum) {
                    return Err(Unread::Malformed("a wrong checksum"));
                }
                checked = true;
            }
            TYPE_UNIQUE_ID => {
                if value.len() > UNIQUE_ID_BYTES_MAX || unique_id.is_some() {
                    return Err(Unread::Malformed("a unique id of more than 128 bytes, or a second one"));
                }
                unique_id = Some(Box::from(value));
            }
            _ => {}
        }
        at = from + length;
    }
    Ok(unique_id.filter(|id| !id.is_empty()))
}

/// The CRC32c of a header, with zeroes for the four bytes at `at` where it stands itself (section 2.2.3).
pub(super) fn checksum(header: &[u8], at: usize) -> u32 {
    let mut digest = CRC32C.digest();
    for part in [&header[..at], &[0; 4], &header[at + 4..]] {
        digest.update(part);
    }
    digest.finalize()
}

#[cfg(test)]
mod tests;
