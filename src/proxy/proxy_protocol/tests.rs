//! Headers as they are written, read back by an independent decoder (the `ppp` crate) and by our own reader.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use ppp::v2;
use proptest::prelude::*;

use super::read::{Announced, Told, Version};
use super::*;

fn endpoints(source: &str, destination: &str) -> Option<Endpoints> {
    Some(Endpoints { source: source.parse().unwrap(), destination: destination.parse().unwrap() })
}

fn full() -> Header<'static> {
    Header {
        endpoints: endpoints("192.0.2.7:51000", "198.51.100.1:443"),
        alpn: Some(b"h2"),
        authority: Some("pay.acme.example"),
        unique_id: None,
        ssl: Some(Ssl {
            version: "TLSv1.3",
            cipher: Some("TLS13_AES_128_GCM_SHA256"),
            client_certificate: ClientCertificate::Connection,
            verify: 0,
            common_name: Some("Ann Müller"),
        }),
    }
}

fn encode(header: &Header<'_>) -> Vec<u8> {
    let mut out = vec![];
    header.encode(&mut out);
    assert!(out.len() <= HEADER_BYTES_MAX);
    out
}

/// TLVs by type, each at most once. The decoder does not know SSL's inner ones: `skip` cuts its fixed part off.
fn tlvs(bytes: &[u8], skip: usize) -> HashMap<u8, Vec<u8>> {
    let mut found = HashMap::new();
    let list = v2::TypeLengthValues::from(&bytes[skip..]);
    for tlv in list {
        let v2::TypeLengthValue { kind, value } = tlv.expect("a whole TLV");
        assert!(found.insert(kind, Cow::into_owned(value)).is_none(), "type {kind} stands twice");
    }
    found
}

fn decode(bytes: &[u8]) -> (v2::Header<'_>, HashMap<u8, Vec<u8>>) {
    let header = v2::Header::try_from(bytes).expect("a header");
    assert_eq!(header.len(), bytes.len(), "the length covers all of it");
    let list = tlvs(header.tlv_bytes(), 0);
    (header, list)
}

#[test]
fn everything_arrives() {
    let bytes = encode(&full());
    let (header, list) = decode(&bytes);
    assert_eq!(header.command, v2::Command::Proxy);
    assert_eq!(header.protocol, v2::Protocol::Stream);
    assert_eq!(header.addresses, v2::IPv4::new([192, 0, 2, 7], [198, 51, 100, 1], 51000, 443).into());
    assert_eq!(list[&TYPE_ALPN], b"h2");
    assert_eq!(list[&TYPE_AUTHORITY], b"pay.acme.example");
    let ssl = &list[&TYPE_SSL];
    assert_eq!(ssl[..5], [0x07, 0, 0, 0, 0]);
    let inner = tlvs(ssl, 5);
    assert_eq!(inner[&SUBTYPE_SSL_VERSION], b"TLSv1.3");
    assert_eq!(inner[&SUBTYPE_SSL_CIPHER], b"TLS13_AES_128_GCM_SHA256");
    assert_eq!(inner[&SUBTYPE_SSL_CN], "Ann Müller".as_bytes());
    assert_eq!(list[&TYPE_CRC32C].len(), 4);
    assert_eq!((list.len(), inner.len()), (4, 3));
}

#[test]
fn version_1_has_the_addresses_alone() {
    let line = |endpoints| {
        let mut out = b"before".to_vec();
        Header { endpoints, ..full() }.encode_v1(&mut out);
        String::from_utf8(out.split_off(6)).unwrap()
    };
    for (source, destination, expected) in [
        ("192.0.2.7:51000", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n"),
        ("[::ffff:192.0.2.7]:1", "198.51.100.1:2", "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n"),
        ("[2001:db8::7]:1", "[2001:db8::1]:2", "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n"),
        ("192.0.2.7:1", "[2001:db8::1]:2", "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n"),
    ] {
        assert_eq!(line(endpoints(source, destination)), expected);
    }
    assert_eq!(line(None), "PROXY UNKNOWN\r\n");
}

#[test]
fn the_header_is_appended() {
    let mut out = b"before".to_vec();
    full().encode(&mut out);
    assert_eq!(out[..6], *b"before");
    assert_eq!(out[6..], encode(&full()));
}

#[test]
fn families() {
    let with = |source, destination| {
        let bytes = encode(&Header {
            endpoints: endpoints(source, destination),
            alpn: None,
            authority: None,
            unique_id: None,
            ssl: None,
        });
        decode(&bytes).0.addresses
    };
    let v6 = |text: &str| text.parse::<Ipv6Addr>().unwrap();
    assert_eq!(
        with("[2001:db8::7]:1", "[2001:db8::1]:2"),
        v2::IPv6::new(v6("2001:db8::7"), v6("2001:db8::1"), 1, 2).into()
    );
    assert_eq!(
        with("[::ffff:192.0.2.7]:1", "198.51.100.1:2"),
        v2::IPv4::new([192, 0, 2, 7], [198, 51, 100, 1], 1, 2).into()
    );
    assert_eq!(
        with("192.0.2.7:1", "[2001:db8::1]:2"),
        v2::IPv6::new(v6("::ffff:192.0.2.7"), v6("2001:db8::1"), 1, 2).into()
    );
    let unknown = encode(&Header { endpoints: None, ..full() });
    let (header, _) = decode(&unknown);
    assert_eq!((header.addresses, header.command), (v2::Addresses::Unspecified, v2::Command::Proxy));
    // The decoder takes all of an unspecified block for addresses; without any, the TLVs follow the fixed part.
    assert_eq!(tlvs(&unknown, 16)[&TYPE_AUTHORITY], b"pay.acme.example");
    let mut local = vec![];
    encode_local(&mut local);
    let (header, list) = decode(&local);
    assert_eq!((header.command, header.protocol, list.len()), (v2::Command::Local, v2::Protocol::Unspecified, 0));
}

/// The client field, `verify`, and whether the common name was sent.
fn ssl_of(client_certificate: ClientCertificate, verify: u32) -> (u8, u32, bool) {
    let mut header = full();
    header.ssl = header.ssl.map(|ssl| Ssl { client_certificate, verify, ..ssl });
    let bytes = encode(&header);
    let (_, list) = decode(&bytes);
    let ssl = &list[&TYPE_SSL];
    let verify = u32::from_be_bytes(ssl[1..5].try_into().unwrap());
    (ssl[0], verify, tlvs(ssl, 5).contains_key(&SUBTYPE_SSL_CN))
}

#[test]
fn nobody_is_verified_who_was_not() {
    assert_eq!(ssl_of(ClientCertificate::Connection, 0), (0x07, 0, true));
    assert_eq!(ssl_of(ClientCertificate::Session, 0), (0x05, 0, true));
    assert_eq!(ssl_of(ClientCertificate::Connection, 10), (0x07, 10, false));
    assert_eq!(ssl_of(ClientCertificate::None, 0), (0x01, 1, false));
    assert_eq!(ssl_of(ClientCertificate::None, 20), (0x01, 20, false));
}

#[test]
fn only_success_is_zero() {
    assert_eq!(verify_code(Verdict::Success), 0);
    assert_ne!(verify_code(Verdict::None), 0);
    for reason in Refusal::ALL {
        assert_ne!(verify_code(Verdict::Failed(reason)), 0, "{reason}");
    }
}

#[test]
fn a_value_over_its_bound_is_left_out_whole() {
    let long = "n".repeat(VALUE_BYTES_MAX + 1);
    let header = |text: &'static str| {
        let mut header = full();
        header.endpoints = endpoints("[2001:db8::7]:1", "[2001:db8::1]:2");
        header.alpn = Some(text.as_bytes());
        header.authority = Some(text);
        header.unique_id = Some(&text.as_bytes()[..text.len().min(UNIQUE_ID_BYTES_MAX)]);
        header.ssl = header.ssl.map(|ssl| Ssl {
            common_name: Some(text),
            version: &text[..text.len().min(VERSION_BYTES_MAX)],
            cipher: Some(&text[..text.len().min(CIPHER_BYTES_MAX)]),
            ..ssl
        });
        header
    };
    let long: &'static str = long.leak();
    let bytes = encode(&header(long));
    let (_, list) = decode(&bytes);
    assert_eq!(list.keys().collect::<BTreeSet<_>>(), BTreeSet::from([&TYPE_CRC32C, &TYPE_UNIQUE_ID, &TYPE_SSL]));
    assert!(!tlvs(&list[&TYPE_SSL], 5).contains_key(&SUBTYPE_SSL_CN));
    let bytes = encode(&header(&long[1..]));
    assert_eq!(bytes.len(), HEADER_BYTES_MAX, "the bound is exact");
    let (_, list) = decode(&bytes);
    assert_eq!(list[&TYPE_AUTHORITY].len(), VALUE_BYTES_MAX);
    let empty = encode(&Header { alpn: Some(b""), authority: Some(""), ..full() });
    assert_eq!(decode(&empty).1.len(), 2);
}

proptest! {
    #[test]
    fn every_header_decodes_to_what_it_was_made_of(
        source: SocketAddr,
        destination: SocketAddr,
        alpn in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..300)),
        authority in proptest::option::of("\\PC{0,300}"),
        unique_id in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200)),
        common_name in proptest::option::of("\\PC{0,300}"),
        cipher in proptest::option::of("[A-Z0-9_]{0,80}"),
        verify in 0..2u32,
    ) {
        let fits = |value: &[u8], most| !value.is_empty() && value.len() <= most;
        let ssl = Ssl {
            version: "TLSv1.2",
            cipher: cipher.as_deref(),
            client_certificate: ClientCertificate::Connection,
            verify,
            common_name: common_name.as_deref(),
        };
        let header = Header {
            endpoints: Some(Endpoints { source, destination }),
            alpn: alpn.as_deref(),
            authority: authority.as_deref(),
            unique_id: unique_id.as_deref(),
            ssl: Some(ssl),
        };
        let bytes = encode(&header);
        let mut line = vec![];
        header.encode_v1(&mut line);
        let (decoded, list) = decode(&bytes);
        let (from, to) = match decoded.addresses {
            v2::Addresses::IPv4(v4) => (
                SocketAddr::from((v4.source_address, v4.source_port)),
                SocketAddr::from((v4.destination_address, v4.destination_port)),
            ),
            v2::Addresses::IPv6(v6) => (
                SocketAddr::from((v6.source_address, v6.source_port)),
                SocketAddr::from((v6.destination_address, v6.destination_port)),
            ),
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        };
        let canonical = |address: SocketAddr| (address.ip().to_canonical(), address.port());
        prop_assert_eq!(canonical(from), canonical(source));
        prop_assert_eq!(canonical(to), canonical(destination));
        prop_assert_eq!(list.get(&TYPE_ALPN), alpn.as_ref().filter(|value| fits(value, VALUE_BYTES_MAX)));
        let authority = authority.map(String::into_bytes).filter(|value| fits(value, VALUE_BYTES_MAX));
        prop_assert_eq!(list.get(&TYPE_AUTHORITY), authority.as_ref());
        let unique_id = unique_id.filter(|value| fits(value, UNIQUE_ID_BYTES_MAX));
        prop_assert_eq!(list.get(&TYPE_UNIQUE_ID), unique_id.as_ref());
        // Our own reader takes what we write, whole, and finds the checksum right.
        let (announced, length) = read::read(&bytes).unwrap();
        prop_assert_eq!(length, bytes.len());
        let Told::Client(ends) = announced.told else { return Err(TestCaseError::fail("no client")) };
        prop_assert_eq!((canonical(ends.source), canonical(ends.destination)), (canonical(source), canonical(destination)));
        prop_assert_eq!(announced.unique_id.as_deref(), unique_id.as_deref());
        prop_assert_eq!(read::read(&line).unwrap(), (Announced { version: Version::V1, told: announced.told, unique_id: None }, line.len()));
        prop_assert!(ppp::v1::Header::try_from(line.as_slice()).is_ok());
        let inner = tlvs(&list[&TYPE_SSL], 5);
        let name = common_name.map(String::into_bytes).filter(|value| verify == 0 && fits(value, VALUE_BYTES_MAX));
        prop_assert_eq!(inner.get(&SUBTYPE_SSL_CN), name.as_ref());
        let cipher = cipher.map(String::into_bytes).filter(|value| fits(value, CIPHER_BYTES_MAX));
        prop_assert_eq!(inner.get(&SUBTYPE_SSL_CIPHER), cipher.as_ref());
    }
}

#[test]
fn a_common_name_is_sent_that_has_one_reading_only() {
    let sent = |names: &[&str]| common_name(names.iter().map(ToString::to_string).collect());
    assert_eq!(sent(&["alice"]).as_deref(), Some("alice"));
    assert_eq!(sent(&["Åsa, \"ops\""]).as_deref(), Some("Åsa, \"ops\""));
    for names in
        [&[][..], &["alice", "root"], &["alice", "alice"], &["root\0.acme"], &["a\nb"], &["a\u{85}b"], &["\u{7f}"]]
    {
        assert_eq!(sent(names), None, "{names:?}");
    }
}
