//! Identities against OpenSSL, and against certificates that were made to mislead or to break the parser.

use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use rcgen::{
    CertificateParams, CustomExtension, DnType, DnValue, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber,
};

use super::*;

const UTF8: u8 = 12;
const PRINTABLE: u8 = 19;
const TELETEX: u8 = 20;
const IA5: u8 = 22;
const UNIVERSAL: u8 = 28;
const BMP: u8 = 30;

const CN: &[u8] = &[0x55, 4, 3];
const OU: &[u8] = &[0x55, 4, 11];
const DC: &[u8] = &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19];
/// 1.2.840.113549.1.9.1, emailAddress: known to everyone, but not to RFC 4514.
const EMAIL: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01];
/// 1.3.6.1.4.1.99999.7: known to no one.
const UNKNOWN: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x86, 0x8d, 0x1f, 0x07];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        length @ 0..0x80 => out.push(length as u8),
        length @ 0x80..0x100 => out.extend([0x81, length as u8]),
        length => out.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    out.extend_from_slice(content);
    out
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(0x30, &parts.concat())
}

fn attribute(oid: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
    sequence(&[element(6, oid), element(tag, value)])
}

/// A name of RDNs of attributes.
fn name_of(rdns: &[&[Vec<u8>]]) -> Vec<u8> {
    sequence(&rdns.iter().map(|attributes| element(0x31, &attributes.concat())).collect::<Vec<_>>())
}

fn alternative_names(names: &[Vec<u8>]) -> Vec<u8> {
    sequence(&[element(6, SUBJECT_ALT_NAME), element(4, &sequence(names))])
}

/// A certificate by hand, signature and all made up: nothing here checks it.
fn forged(serial: &[u8], subject: &[u8], extensions: &[Vec<u8>]) -> Vec<u8> {
    let real = real();
    let ecdsa_with_sha256 = sequence(&[element(6, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])]);
    let mut parts = vec![
        element(0xa0, &element(2, &[2])),
        element(2, serial),
        ecdsa_with_sha256.clone(),
        name_of(&[&[attribute(CN, UTF8, b"Test CA")]]),
        sequence(&[element(23, b"260101000000Z"), element(24, b"20510101000000Z")]),
        subject.to_vec(),
        subject_public_key_info(&real).unwrap().to_vec(),
    ];
    if !extensions.is_empty() {
        parts.push(element(0xa3, &sequence(extensions)));
    }
    sequence(&[sequence(&parts), ecdsa_with_sha256, element(3, &[0, 1, 2, 3])])
}

fn subject_of(rdns: &[&[Vec<u8>]]) -> Identity {
    parse(&forged(&[1], &name_of(rdns), &[])).unwrap()
}

/// A certificate as a CA would make it, the same for the whole test run.
fn real() -> Vec<u8> {
    static REAL: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    REAL.get_or_init(|| {
        let mut params = CertificateParams::new(vec!["pay.acme.example".to_string()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CountryName, DnValue::PrintableString("DE".try_into().unwrap()));
        params.distinguished_name.push(DnType::OrganizationName, "Acme, Inc.");
        params.distinguished_name.push(DnType::OrganizationalUnitName, "Betrieb Köln");
        params.distinguished_name.push(DnType::CommonName, "ops-ann");
        params.subject_alt_names.extend([
            SanType::URI("spiffe://acme/ops/ann".try_into().unwrap()),
            SanType::Rfc822Name("ann@acme.example".try_into().unwrap()),
            SanType::IpAddress("192.0.2.7".parse().unwrap()),
            SanType::IpAddress("2001:db8::7".parse().unwrap()),
        ]);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 99999, 8])];
        params.serial_number = Some(SerialNumber::from(vec![0x8a, 0x00, 0x1b]));
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 9], vec![5, 0])];
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2051, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    })
    .clone()
}

#[test]
fn a_certificate_says_all_of_this() {
    let der = real();
    let identity = parse(&der).unwrap();
    assert_eq!(identity.subject, "CN=ops-ann,OU=Betrieb Köln,O=Acme\\, Inc.,C=DE");
    assert_eq!(identity.issuer, identity.subject);
    assert_eq!(identity.common_names, ["ops-ann"]);
    assert_eq!(identity.issuer_common_names, ["ops-ann"]);
    assert_eq!(identity.organizations, ["Acme, Inc."]);
    assert_eq!(identity.organizational_units, ["Betrieb Köln"]);
    assert_eq!(identity.serial, "8a001b");
    assert_eq!(identity.san_dns, ["pay.acme.example"]);
    assert_eq!(identity.san_uri, ["spiffe://acme/ops/ann"]);
    assert_eq!(identity.san_email, ["ann@acme.example"]);
    assert_eq!(identity.san_ip, ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(identity.key_usage, ["digitalSignature", "keyAgreement"]);
    assert_eq!(identity.extended_key_usage, ["clientAuth", "1.3.6.1.4.1.99999.8"]);
    assert_eq!((identity.not_before_unix_s, identity.not_after_unix_s), (1_767_225_600, 2_556_144_000));
    assert_eq!(validity(&der), Some((1_767_225_600, 2_556_144_000)));
    let (_, parsed) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(subject_public_key_info(&der), Some(parsed.public_key().raw));
}

/// The examples of RFC 4514 section 4 and the corners of its section 2.4.
#[test]
fn names_are_written_by_rfc_4514() {
    let text = |oid: &[u8], value: &str| subject_of(&[&[attribute(oid, UTF8, value.as_bytes())]]).subject;
    let cases = [
        ("James \"Jim\" Smith, III", "CN=James \\\"Jim\\\" Smith\\, III"),
        ("Before\rAfter", "CN=Before\\0DAfter"),
        ("Lučić", "CN=Lučić"),
        ("#1+2;3<4>5\\6=7", "CN=\\#1\\+2\\;3\\<4\\>5\\\\6=7"),
        (" a ", "CN=\\ a\\ "),
        ("  ", "CN=\\ \\ "),
        (" ", "CN=\\ "),
        ("a #b", "CN=a #b"),
        ("nul\0", "CN=nul\\00"),
        ("", "CN="),
    ];
    for (value, expected) in cases {
        assert_eq!(text(CN, value), expected);
    }
    assert_eq!(text(UNKNOWN, "abc"), "1.3.6.1.4.1.99999.7=#0C03616263");
    assert_eq!(subject_of(&[&[attribute(EMAIL, IA5, b"a@b")]]).subject, "1.2.840.113549.1.9.1=#1603614062");
    let long = text(UNKNOWN, &"a".repeat(300));
    assert!(long.starts_with("1.3.6.1.4.1.99999.7=#0C82012C6161"), "{long}");
    assert_eq!(subject_of(&[]).subject, "");
    let several = subject_of(&[
        &[attribute(DC, IA5, b"net")],
        &[attribute(DC, IA5, b"example")],
        &[attribute(OU, UTF8, b"Sales"), attribute(CN, UTF8, b"J.  Smith")],
    ]);
    assert_eq!(several.subject, "CN=J.  Smith+OU=Sales,DC=example,DC=net");
}

#[test]
fn text_comes_in_every_encoding_and_no_other() {
    let common_name = |tag, value: &[u8]| {
        let identity = subject_of(&[&[attribute(CN, tag, value)]]);
        (identity.common_names.first().cloned(), identity.subject)
    };
    let text = |text: &str| (Some(text.to_string()), format!("CN={text}"));
    assert_eq!(common_name(UTF8, "Müller".as_bytes()), text("Müller"));
    assert_eq!(common_name(PRINTABLE, b"ann"), text("ann"));
    assert_eq!(common_name(TELETEX, b"ann"), text("ann"));
    assert_eq!(common_name(BMP, &[0, b'M', 0, 0xfc, 0x20, 0xac]), text("Mü€"));
    assert_eq!(common_name(UNIVERSAL, &[0, 0, 0, b'M', 0, 1, 0xf6, 0x00]), text("M😀"));
    let hex = |hex: &str| (None, format!("CN=#{hex}"));
    assert_eq!(common_name(UTF8, &[0xff]), hex("0C01FF"));
    assert_eq!(common_name(PRINTABLE, &[0xe4]), hex("1301E4"));
    assert_eq!(common_name(TELETEX, &[0xe4]), hex("1401E4"), "T.61 or Latin-1: nobody knows");
    assert_eq!(common_name(BMP, &[0]), hex("1E0100"), "half a character");
    assert_eq!(common_name(BMP, &[0xd8, 0x3d, 0xde, 0x00]), hex("1E04D83DDE00"), "surrogates are UTF-16, not UCS-2");
    assert_eq!(common_name(UNIVERSAL, &[0, 0x11, 0, 0]), hex("1C0400110000"));
    assert_eq!(common_name(2, &[7]), hex("020107"), "a number is no text");
}

#[test]
fn serial_numbers_are_told_apart() {
    let serial = |raw: &[u8]| parse(&forged(raw, &name_of(&[]), &[])).unwrap().serial;
    assert_eq!(serial(&[0]), "00");
    assert_eq!(serial(&[1]), "01");
    assert_eq!(serial(&[0, 0x80]), "80");
    assert_eq!(serial(&[0x80]), "-80");
    assert_eq!(serial(&[0xff]), "-01");
    assert_eq!(serial(&[0xff, 0x7f]), "-81");
    assert_eq!(serial(&[0x80, 0]), "-8000");
    assert_eq!(serial(&[1, 0]), "0100");
    assert_eq!(serial(&[0x7f; 20]), "7f".repeat(20));
}

#[test]
fn what_two_readers_could_read_differently_is_refused() {
    const DNS: u8 = 0x82;
    const URI: u8 = 0x86;
    const MAIL: u8 = 0x81;
    const IP: u8 = 0x87;
    let with = |extensions: &[Vec<u8>]| parse(&forged(&[1], &name_of(&[]), extensions));
    let names = |list: &[Vec<u8>]| with(&[alternative_names(list)]);
    assert_eq!(
        names(&[element(DNS, b"a.example"), element(DNS, b"b.example")]).unwrap().san_dns,
        ["a.example", "b.example"]
    );
    let refused = |result: Result<Identity, MalformedCertificate>, word: &str| {
        let error = result.expect_err(word);
        assert!(error.to_string().contains(word), "{error}");
    };
    for tag in [DNS, URI, MAIL] {
        refused(names(&[element(tag, b"a.example\0.evil.example")]), "characters");
        refused(names(&[element(tag, b"a\r\nX-Evil: 1")]), "characters");
        assert!(names(&[element(tag, &[b'a', 0xe4])]).is_err());
        assert!(names(&[element(tag, "ä".as_bytes())]).is_err());
    }
    refused(names(&[element(IP, &[1, 2, 3, 4, 5])]), "iPAddress");
    refused(names(&[element(0x8b, b"?")]), "entry");
    let one = alternative_names(&[element(DNS, b"a.example")]);
    refused(with(&[one.clone(), one.clone()]), "twice");
    refused(with(&[sequence(&[element(6, SUBJECT_ALT_NAME), element(4, &[0x30, 5, 1])])]), "subjectAltName");
    let mut longer = forged(&[1], &name_of(&[]), &[]);
    longer.push(0);
    refused(parse(&longer), "after its end");
    let mut other_class = forged(&[1], &name_of(&[]), &[]);
    let subject_at = other_class.windows(2).rposition(|pair| pair == [0x30, 0]).unwrap();
    other_class[subject_at] ^= 0x40;
    refused(parse(&other_class), "tag");
    refused(parse(b""), "DER");
    refused(parse(b"-----BEGIN CERTIFICATE-----"), "DER");
}

#[test]
fn a_version_1_certificate_has_dates_and_a_key_too() {
    let whole = forged(&[5], &name_of(&[]), &[]);
    // Without the five bytes of the version; both lengths around it are rewritten.
    let (_, certificate) = X509Certificate::from_der(&whole).unwrap();
    let tbs = certificate.tbs_certificate.as_ref();
    let header = if tbs[1] == 0x81 { 3 } else { 2 };
    let tail = &whole[whole.len() - (element(3, &[0, 1, 2, 3]).len() + 12)..];
    let version_1 = sequence(&[element(0x30, &tbs[header + 5..]), tail.to_vec()]);
    assert_eq!(parse(&version_1).unwrap().serial, "05");
    assert_eq!(validity(&version_1), validity(&whole));
    assert!(validity(&whole).is_some());
    assert_eq!(subject_public_key_info(&version_1), subject_public_key_info(&whole));
}

/// What `openssl x509` says, by field; `None` where it is not installed, which is said aloud.
fn openssl(der: &[u8]) -> Option<std::collections::HashMap<String, String>> {
    let child = Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-subject", "-issuer", "-serial", "-fingerprint", "-sha256"])
        .args(["-nameopt", "RFC2253,-esc_msb,utf8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("SKIPPED: openssl is not installed, so identities were not compared with its view of them");
        return None;
    };
    child.stdin.take().unwrap().write_all(der).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "openssl does not read the certificate");
    let text = String::from_utf8(output.stdout).unwrap();
    let fields = text.lines().map(|line| line.split_once('=').unwrap());
    Some(fields.map(|(name, value)| (name.to_lowercase(), value.to_string())).collect())
}

fn agrees_with_openssl(der: &[u8]) {
    let Some(fields) = openssl(der) else { return };
    let identity = parse(der).unwrap();
    assert_eq!(identity.subject, fields["subject"]);
    assert_eq!(identity.issuer, fields["issuer"]);
    assert_eq!(identity.serial.to_uppercase(), fields["serial"]);
    let fingerprint: Vec<_> = identity.fingerprint_sha256.iter().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(fingerprint.join(":"), fields["sha256 fingerprint"]);
}

#[test]
fn openssl_agrees() {
    agrees_with_openssl(&real());
    for serial in [&[0][..], &[0x80], &[0xff], &[0xff, 0x7f], &[0, 0x80, 1], &[0x80, 0, 0]] {
        agrees_with_openssl(&forged(serial, &name_of(&[&[attribute(CN, UTF8, b"a")]]), &[]));
    }
    let several = name_of(&[
        &[attribute(DC, IA5, b"net")],
        &[attribute(UNKNOWN, UTF8, b"abc"), attribute(CN, BMP, &[0, 0xfc, 0x20, 0xac])],
        &[attribute(OU, UNIVERSAL, &[0, 1, 0xf6, 0])],
        &[attribute(CN, TELETEX, b" t61, "), attribute(CN, PRINTABLE, b"")],
    ]);
    agrees_with_openssl(&forged(&[1], &several, &[]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Many names a certificate, few certificates: each costs a process.
    #[test]
    fn openssl_writes_names_alike(values in proptest::collection::vec("[ #+,;<>=\"\\\\\0-\x7f\u{a0}-\u{ff}€😀]{0,12}", 1..40)) {
        // OpenSSL leaves a "#" that is the whole value alone; RFC 4514 section 2.4 wants it escaped like any first one.
        let values = values.iter().filter(|value| *value != "#");
        let attributes: Vec<_> = values.map(|value| [attribute(CN, UTF8, value.as_bytes())]).collect();
        let rdns: Vec<&[Vec<u8>]> = attributes.iter().map(|attribute| &attribute[..]).collect();
        agrees_with_openssl(&forged(&[1], &name_of(&rdns), &[]));
    }
}

/// Whatever the bytes, no panic; and the shortcuts agree with the whole parse.
fn survives(der: &[u8]) -> Result<(), TestCaseError> {
    let (dates, key) = (validity(der), subject_public_key_info(der));
    if parse(der).is_ok() {
        let (_, parsed) = X509Certificate::from_der(der).unwrap();
        let expected = parsed.validity();
        prop_assert_eq!(dates, Some((expected.not_before.timestamp(), expected.not_after.timestamp())));
        // x509-parser stops at the end of the key; the element may hold more, which the verifier refuses.
        prop_assert!(key.is_some_and(|key| key.starts_with(parsed.public_key().raw)));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn mutated_certificates_never_panic(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let mut der = real();
        for (at, byte, kind) in edits {
            if der.is_empty() {
                break;
            }
            let at = at.index(der.len());
            match kind {
                0 => der[at] = byte,
                1 => der[at] ^= 1 << (byte % 8),
                2 => der.insert(at, byte),
                _ => drop(der.remove(at)),
            }
        }
        survives(&der)?;
    }

    #[test]
    fn truncated_certificates_never_panic(at in any::<prop::sample::Index>()) {
        let der = real();
        survives(&der[..at.index(der.len())])?;
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        survives(&bytes)?;
    }

    #[test]
    fn names_of_random_attributes_never_panic(
        attributes in proptest::collection::vec((0..=255u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
    ) {
        let attributes: Vec<_> = attributes.iter().map(|(tag, value)| attribute(CN, *tag, value)).collect();
        survives(&forged(&[1], &name_of(&[&attributes]), &[alternative_names(&attributes)]))?;
        survives(&forged(&[1], &name_of(&[&attributes]), &[]))?;
    }
}
