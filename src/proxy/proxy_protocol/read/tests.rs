//! Headers as balancers write them, and everything that is none; read a second time by the `ppp` crate.

use std::net::SocketAddrV4;

use ppp::{v1, v2};
use proptest::prelude::*;

use super::*;

/// Version 2 with a length that fits.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([command, family]);
    bytes.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
    bytes.extend(block);
    bytes
}

const ADDRESSES: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xc7, 0x38, 1, 0xbb];

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    bytes.extend(value);
    bytes
}

fn with_tlvs(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(VERSION_2_PROXY, TCP_OVER_IPV4, &[ADDRESSES.to_vec(), tlvs.concat()].concat())
}

fn v4() -> Told {
    let (source, destination) = ("192.0.2.7:51000".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
    Told::Client(Endpoints { source, destination })
}

/// What is told by bytes that are a header to their end, whatever follows them.
#[track_caller]
fn told(bytes: &[u8]) -> Told {
    let (announced, length) = read(bytes).unwrap_or_else(|unread| panic!("{unread:?}: {bytes:02x?}"));
    assert_eq!(length, bytes.len());
    let followed = [bytes, b"\x16\x03\x01 and so on"].concat();
    assert_eq!(read(&followed), Ok((announced.clone(), length)), "what follows is not looked at");
    announced.told
}

#[test]
fn what_balancers_write_is_read() {
    assert_eq!(told(b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n"), v4());
    assert_eq!(told(&with_tlvs(&[])), v4());
    let (source, destination) = ("[2001:db8::7]:0".parse().unwrap(), "[2001:db8::1]:65535".parse().unwrap());
    let v6 = Told::Client(Endpoints { source, destination });
    assert_eq!(told(b"PROXY TCP6 2001:db8::7 2001:0DB8:0:0::1 0 65535\r\n"), v6);
    let address = |last| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let block = [&address(7)[..], &address(1), &[0, 0, 0xff, 0xff]].concat();
    assert_eq!(told(&binary(VERSION_2_PROXY, TCP_OVER_IPV6, &block)), v6);

    assert_eq!(told(b"PROXY UNKNOWN\r\n"), Told::Unknown);
    let worst = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
    assert_eq!(worst.len(), LINE_BYTES_MAX);
    assert_eq!(told(worst.as_bytes()), Told::Unknown);
    assert_eq!(told(&binary(VERSION_2_PROXY, UNSPEC, &[])), Told::Unknown);
    assert_eq!(told(&binary(VERSION_2_PROXY, UNSPEC, &[1; 50])), Told::Unknown);
    assert_eq!(told(&binary(VERSION_2_PROXY, UNIX_STREAM, &[b'/'; 216])), Told::Unknown);
    assert_eq!(told(&binary(VERSION_2_LOCAL, UNSPEC, &[])), Told::Local);
    // Whatever a balancer says of its own connection.
    assert_eq!(told(&binary(VERSION_2_LOCAL, 0xee, &[7; 99])), Told::Local);
    assert_eq!(told(&binary(VERSION_2_LOCAL, TCP_OVER_IPV6, &[7; 5])), Told::Local);
}

#[test]
fn nothing_is_decided_before_the_end_and_everything_at_it() {
    let headers = [
        b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        with_tlvs(&[tlv(TYPE_UNIQUE_ID, b"id"), tlv(0x04, &[0; 40])]),
        binary(VERSION_2_LOCAL, UNSPEC, &[]),
    ];
    for header in headers {
        for end in 0..header.len() {
            assert_eq!(read(&header[..end]), Err(Unread::Incomplete), "{end} bytes of {header:02x?}");
            assert_eq!(is_header(&header[..end]), end >= PREFIX_BYTES_SURE);
        }
        assert!(read(&header).is_ok());
    }
}

#[test]
fn another_protocol_is_known_by_its_first_byte_that_differs() {
    let hello = [0x16, 3, 1, 2, 0];
    for bytes in [&hello[..1], &hello, b"G", b"GET /", b"PROXX", b"\r\n\r\n\0\r\nQUIT\r", b"\n"] {
        assert_eq!(read(bytes), Err(Unread::Missing), "{bytes:02x?}");
        assert!(!is_header(bytes));
    }
}

#[track_caller]
fn malformed(bytes: &[u8], part: &str) {
    match read(bytes) {
        Err(Unread::Malformed(what)) if what.contains(part) => {}
        other => panic!("{other:?} and not {part:?}: {}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn a_line_has_one_form() {
    for fields in [
        "",
        "TCP4",
        "TCP5 192.0.2.7 198.51.100.1 1 2",
        "tcp4 192.0.2.7 198.51.100.1 1 2",
        "TCP4 192.0.2.7 198.51.100.1 1",
        "TCP4 192.0.2.7 198.51.100.1 1 2 ",
        "TCP4 192.0.2.7 198.51.100.1 1 2 3",
        "TCP4  192.0.2.7 198.51.100.1 1 2",
        " TCP4 192.0.2.7 198.51.100.1 1 2",
        "TCP4 192.0.2.7 198.51.100.1 01 2",
        "TCP4 192.0.2.7 198.51.100.1 +1 2",
        "TCP4 192.0.2.7 198.51.100.1 1 65536",
        "TCP4 192.0.2.7 198.51.100.1 -1 2",
        "TCP4 192.0.2.7 198.51.100.1 1 00",
        "TCP4 192.0.2.07 198.51.100.1 1 2",
        "TCP4 192.0.2 198.51.100.1 1 2",
        "TCP4 192.0.2.256 198.51.100.1 1 2",
        "TCP4 2001:db8::7 2001:db8::1 1 2",
        "TCP6 192.0.2.7 198.51.100.1 1 2",
        "TCP6 [2001:db8::7] 2001:db8::1 1 2",
        "TCP6 fe80::7%eth0 2001:db8::1 1 2",
        "UNKNOWNS",
    ] {
        malformed(format!("PROXY {fields}\r\n").as_bytes(), "of another form");
    }
    for line in
        ["PROXY UNKNOWN\n", "PROXY UNKNOWN\rX", "PROXY UNKNOWN\r\r\n", "PROXY \0", "PROXY TCP4\t", "PROXY \u{e9}"]
    {
        malformed(line.as_bytes(), "end with CR and LF");
    }
    let long = |bytes: usize| format!("PROXY UNKNOWN {}", "x".repeat(bytes - 14));
    assert_eq!(read(long(106).as_bytes()), Err(Unread::Incomplete));
    malformed(long(107).as_bytes(), "more than 107");
    malformed(format!("{}\r\n", long(106)).as_bytes(), "more than 107");
    malformed(long(5000).as_bytes(), "more than 107");
}

#[test]
fn a_fixed_part_is_judged_as_far_as_it_goes() {
    let fixed = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
    for version in [0x00, 0x10, 0x11, 0x31, 0xf1] {
        malformed(&fixed(&[version]), "version");
    }
    for command in [0x22, 0x2f] {
        malformed(&fixed(&[command]), "command");
    }
    for family in [0x12, 0x22, 0x32] {
        malformed(&fixed(&[VERSION_2_PROXY, family]), "datagram");
    }
    for family in [0x01, 0x02, 0x10, 0x20, 0x30, 0x13, 0x1f, 0x41, 0xf1] {
        malformed(&fixed(&[VERSION_2_PROXY, family]), "do not exist");
    }
    for (family, bytes) in [(TCP_OVER_IPV4, 12), (TCP_OVER_IPV6, 36), (UNIX_STREAM, 216)] {
        malformed(&fixed(&[VERSION_2_PROXY, family, 0, bytes - 1]), "too small");
        assert_eq!(read(&fixed(&[VERSION_2_PROXY, family, 0, bytes])), Err(Unread::Incomplete));
    }
    for command in [VERSION_2_LOCAL, VERSION_2_PROXY] {
        malformed(&fixed(&[command, UNSPEC, 0xff, 0xff]), "4096");
        malformed(&fixed(&[command, UNSPEC, 0x0f, 0xf1]), "4096");
        assert_eq!(read(&fixed(&[command, UNSPEC, 0x0f, 0xf0])), Err(Unread::Incomplete), "the most there may be");
    }
}

#[test]
fn tlvs_are_read_to_the_last() {
    let unique = |tlvs: &[Vec<u8>]| read(&with_tlvs(tlvs)).map(|(announced, _)| announced.unique_id);
    let id = tlv(TYPE_UNIQUE_ID, b"4711-abc");
    assert_eq!(unique(&[]), Ok(None));
    assert_eq!(unique(std::slice::from_ref(&id)), Ok(Some(b"4711-abc".as_slice().into())));
    let others =
        [tlv(0x01, b"h2"), tlv(0x02, b"api.globex.test"), tlv(0x20, &[1; 80]), tlv(0xea, b"vpce-1"), tlv(0x04, b"")];
    assert_eq!(unique(&[others.concat(), id.clone()]), Ok(Some(b"4711-abc".as_slice().into())));
    assert_eq!(unique(&[tlv(TYPE_UNIQUE_ID, &[b'x'; 128])]).map(|id| id.map(|id| id.len())), Ok(Some(128)));
    assert_eq!(unique(&[tlv(TYPE_UNIQUE_ID, b"")]), Ok(None));

    malformed(&with_tlvs(&[tlv(TYPE_UNIQUE_ID, &[b'x'; 129])]), "unique id");
    malformed(&with_tlvs(&[id.clone(), id.clone()]), "unique id");
    malformed(&with_tlvs(&[vec![0x01]]), "cut off");
    malformed(&with_tlvs(&[id.clone(), vec![0x01, 0]]), "cut off");
    malformed(&with_tlvs(&[vec![0x01, 0, 1]]), "longer than the header");
    malformed(&with_tlvs(&[vec![0x01, 0xff, 0xff, 0]]), "longer than the header");
}

#[test]
fn a_checksum_counts_where_there_is_one() {
    // The check value of CRC-32/ISCSI, as RFC 7143 appendix B.4 has others.
    assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
    let unsummed = |rest: &[Vec<u8>]| with_tlvs(&[tlv(TYPE_CRC32C, &[0; 4]), rest.concat()]);
    let summed = |rest: &[Vec<u8>]| {
        let mut bytes = unsummed(rest);
        let at = FIXED_BYTES + ADDRESSES.len() + 3;
        let sum = CRC32C.checksum(&bytes).to_be_bytes();
        bytes[at..at + 4].copy_from_slice(&sum);
        bytes
    };
    let bytes = summed(&[tlv(0x02, b"pay.acme.test")]);
    assert_eq!(told(&bytes), v4());
    malformed(&unsummed(&[]), "wrong checksum");
    for at in FIXED_BYTES..bytes.len() {
        for bit in 0..8 {
            let mut broken = bytes.clone();
            broken[at] ^= 1 << bit;
            // Where the bit is part of a type, that the sum stands there may be what is lost.
            let of_type = at == FIXED_BYTES + ADDRESSES.len();
            assert!(read(&broken).is_err() || of_type, "bit {bit} of byte {at}");
        }
    }
    malformed(&with_tlvs(&[tlv(TYPE_CRC32C, &[0; 3])]), "checksum that is not one");
    let twice = [&summed(&[])[FIXED_BYTES + ADDRESSES.len()..], &tlv(TYPE_CRC32C, &[0; 4])].concat();
    assert!(read(&with_tlvs(&[twice])).is_err());
}

/// What `ppp` reads of a header, in our words.
fn as_ppp(bytes: &[u8]) -> Option<(Told, usize)> {
    let client = |source: SocketAddr, destination| Told::Client(Endpoints { source, destination });
    if let Ok(header) = v2::Header::try_from(bytes) {
        let told = match (header.command, header.addresses) {
            (v2::Command::Local, _) => Told::Local,
            (_, v2::Addresses::IPv4(v4)) => {
                client((v4.source_address, v4.source_port).into(), (v4.destination_address, v4.destination_port).into())
            }
            (_, v2::Addresses::IPv6(v6)) => {
                client((v6.source_address, v6.source_port).into(), (v6.destination_address, v6.destination_port).into())
            }
            _ => Told::Unknown,
        };
        return Some((told, header.len()));
    }
    let header = v1::Header::try_from(bytes).ok()?;
    let told = match header.addresses {
        v1::Addresses::Tcp4(v4) => {
            client((v4.source_address, v4.source_port).into(), (v4.destination_address, v4.destination_port).into())
        }
        v1::Addresses::Tcp6(v6) => {
            client((v6.source_address, v6.source_port).into(), (v6.destination_address, v6.destination_port).into())
        }
        v1::Addresses::Unknown => Told::Unknown,
    };
    Some((told, header.header.len()))
}

/// Headers, most of them broken in a place or two.
fn nearly_headers() -> impl Strategy<Value = Vec<u8>> {
    let line = (
        prop_oneof!["TCP4", "TCP6", "UNKNOWN", "TCP4|TCP6|UNKNOWN|UDP4"],
        prop_oneof![
            any::<SocketAddrV4>().prop_map(|v4| v4.ip().to_string()),
            any::<Ipv6Addr>().prop_map(|v6| v6.to_string())
        ],
        prop_oneof![
            any::<SocketAddrV4>().prop_map(|v4| v4.ip().to_string()),
            any::<Ipv6Addr>().prop_map(|v6| v6.to_string())
        ],
        "[+]?[0-9]{1,5}",
        any::<u16>(),
        prop_oneof!["\r\n", "\n", "\r", " \r\n", ""],
    )
        .prop_map(|(protocol, from, to, source, destination, end)| {
            format!("PROXY {protocol} {from} {to} {source} {destination}{end}").into_bytes()
        });
    let (command, family) = (
        prop_oneof![Just(VERSION_2_LOCAL), Just(VERSION_2_PROXY), Just(VERSION_2_PROXY), any::<u8>()],
        prop_oneof![Just(TCP_OVER_IPV4), Just(TCP_OVER_IPV6), Just(UNSPEC), Just(UNIX_STREAM), any::<u8>()],
    );
    let tlvs = proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..4);
    let block = (proptest::collection::vec(any::<u8>(), 0..40), tlvs);
    let binary = (command, family, block, 0..3usize).prop_map(|(command, family, (mut block, tlvs), extra)| {
        block.resize(if extra == 0 { block.len() } else { [0, 12, 36][extra] }, 7);
        block.extend(tlvs.into_iter().flat_map(|(kind, value)| tlv(kind, &value)));
        binary(command, family, &block)
    });
    let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..2);
    let tail = proptest::collection::vec(any::<u8>(), 0..20);
    (prop_oneof![line, binary], changes, tail).prop_map(|(mut bytes, changes, tail)| {
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.extend(tail);
        bytes
    })
}

proptest! {
    /// Any bytes are answered, and alike however they are cut: what is decided is decided for good.
    #[test]
    fn a_verdict_stands_whatever_follows(bytes in prop_oneof![nearly_headers(), proptest::collection::vec(any::<u8>(), 0..64)]) {
        let whole = read(&bytes);
        for end in 0..bytes.len() {
            match read(&bytes[..end]) {
                Err(Unread::Incomplete) => {}
                decided => prop_assert_eq!(&decided, &whole, "after {} bytes", end),
            }
        }
        if let Ok((_, length)) = whole {
            prop_assert!(length <= bytes.len().min(READ_BYTES_MAX));
        }
    }

    /// What we take, `ppp` takes too and reads alike; where it takes more, we are the stricter.
    #[test]
    fn another_reader_agrees(bytes in nearly_headers()) {
        if let Ok((announced, length)) = read(&bytes) {
            match as_ppp(&bytes) {
                Some(theirs) => prop_assert_eq!((announced.told, length), theirs),
                // It judges the family of LOCAL and the block's length by it, and counts the fields behind UNKNOWN; the
                // specification has both passed over.
                None => prop_assert!(matches!(announced.told, Told::Local | Told::Unknown), "{:?}", announced),
            }
        }
    }

    /// Every sound header is taken: ours is not stricter than the specification.
    #[test]
    fn every_sound_header_is_taken(source: SocketAddr, destination: SocketAddr, tlvs in proptest::collection::vec((6..=0xffu8, proptest::collection::vec(any::<u8>(), 0..300)), 0..6)) {
        let ends = Endpoints { source, destination };
        let header = crate::proxy::proxy_protocol::Header { endpoints: Some(ends), alpn: None, authority: None, unique_id: None, ssl: None };
        let mut line = Vec::new();
        header.encode_v1(&mut line);
        let written = as_ppp(&line).unwrap();
        prop_assert_eq!((read(&line).unwrap().0.told, line.len()), written);
        let addresses = super::super::pair(ends);
        let (family, block) = match addresses {
            super::super::Pair::V4(from, to) => (TCP_OVER_IPV4, [&from.octets()[..], &to.octets()].concat()),
            super::super::Pair::V6(from, to) => (TCP_OVER_IPV6, [&from.octets()[..], &to.octets()].concat()),
        };
        let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
        let tlvs: Vec<u8> = tlvs.iter().flat_map(|(kind, value)| tlv(*kind, value)).collect();
        let bytes = binary(VERSION_2_PROXY, family, &[block, ports, tlvs].concat());
        prop_assert_eq!(read(&bytes).map(|(announced, length)| (announced.told, length)), Ok((written.0, bytes.len())));
    }
}
