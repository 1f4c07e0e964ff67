//! Every set at once, of ordinary and hostile certificates.

use proptest::prelude::*;
use rustls_pki_types::CertificateDer;

use super::*;
use crate::policy::{Identity, IdentitySets, Refusal};

const ALL: IdentitySets = IdentitySets { client_cert: true, x_client_cert: true, xfcc: true, cf: true, ingress: true };

fn ann() -> Identity {
    Identity {
        subject: "CN=ann\\,CN=root,O=B\u{fc}ro".into(),
        issuer: "CN=Acme CA".into(),
        serial: "0af7".into(),
        fingerprint_sha256: [0xab; 32],
        san_dns: vec!["ann.acme.test".into()],
        san_uri: vec!["spiffe://acme/ann".into(), "https://a/?b=c,d;\"".into()],
        san_email: vec!["ann@acme.test".into()],
        san_ip: vec!["2001:db8::1".parse().expect("an address")],
        not_before_unix_s: 1_000_000_000,
        not_after_unix_s: 1_800_000_000,
        ..Identity::default()
    }
}

/// The fields of an accepted client, as lines.
fn fields(identity: &Identity, chain: &[CertificateDer<'_>], sets: IdentitySets) -> String {
    of(Verdict::Success, identity, chain, sets)
}

fn of(verdict: Verdict, identity: &Identity, chain: &[CertificateDer<'_>], sets: IdentitySets) -> String {
    let mut out = String::new();
    push_fields(
        &mut out,
        &SessionFacts {
            mode: ClientAuthMode::Request,
            verdict,
            sets,
            identity: Some(identity),
            chain,
            client: [192, 0, 2, 7].into(),
            trusted_peer: false,
            keep_unusual_names: false,
            rewrites: None,
        },
    );
    out
}

/// The value of the one field of this name.
#[track_caller]
fn value<'a>(fields: &'a str, name: &str) -> Option<&'a str> {
    let mut values = fields.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let value = values.next();
    assert_eq!(values.next(), None, "{name} stands once");
    value
}

#[test]
fn an_accepted_client_is_told_of_in_every_set() {
    let chain = [vec![1, 2, 3].into(), vec![4].into(), vec![5, 6].into()];
    let hex = "ab".repeat(32);
    let dn = "CN=ann\\2CCN\\3Droot,O=B\\C3\\BCro";
    let pem = |base64| format!("-----BEGIN%20CERTIFICATE-----%0A{base64}%0A-----END%20CERTIFICATE-----%0A");
    let (one, two, three) = (pem("AQID"), pem("BA%3D%3D"), pem("BQY%3D"));
    let expected = format!(
        "X-Client-Cert-Verify: SUCCESS\r\n\
         Cf-Cert-Presented: true\r\n\
         Cf-Cert-Verified: true\r\n\
         Cf-Cert-Revoked: false\r\n\
         ssl-client-verify: SUCCESS\r\n\
         Client-Cert: :AQID:\r\n\
         Client-Cert-Chain: :BA==:, :BQY=:\r\n\
         X-Client-Cert-Subject: {dn}\r\n\
         X-Client-Cert-Issuer: CN=Acme CA\r\n\
         X-Client-Cert-Serial: 0af7\r\n\
         X-Client-Cert-Fingerprint: {hex}\r\n\
         X-Client-Cert-San: DNS:ann.acme.test,URI:spiffe://acme/ann,URI:https://a/?b=c%2Cd%3B%22,\
         email:ann@acme.test,IP:2001:db8::1\r\n\
         X-Client-Cert-Not-After: 2027-01-15T08:00:00Z\r\n\
         X-Forwarded-Client-Cert: Hash={hex};Cert=\"{one}\";Chain=\"{one}{two}{three}\";Subject=\"{dn}\";\
         URI=spiffe://acme/ann;URI=\"https://a/?b=c%2Cd%3B%22\";DNS=ann.acme.test\r\n\
         Cf-Client-Cert-Der-Base64: AQID\r\n\
         Cf-Client-Cert-Sha256: {hex}\r\n\
         Cf-Cert-Fingerprint-Sha256: {hex}\r\n\
         Cf-Cert-Subject-Dn: {dn}\r\n\
         Cf-Cert-Subject-Dn-Rfc2253: {dn}\r\n\
         Cf-Cert-Issuer-Dn: CN=Acme CA\r\n\
         Cf-Cert-Issuer-Dn-Rfc2253: CN=Acme CA\r\n\
         Cf-Cert-Serial: 0AF7\r\n\
         Cf-Cert-Not-Before: Sep  9 01:46:40 2001 GMT\r\n\
         Cf-Cert-Not-After: Jan 15 08:00:00 2027 GMT\r\n\
         ssl-client-subject-dn: {dn}\r\n\
         ssl-client-issuer-dn: CN=Acme CA\r\n\
         ssl-client-cert: {one}\r\n"
    );
    assert_eq!(fields(&ann(), &chain, ALL), expected);
    assert_eq!(fields(&ann(), &chain, IdentitySets::default()), "X-Client-Cert-Verify: SUCCESS\r\n");
    // Without more of a chain there is no `Chain`.
    let alone = fields(&ann(), &chain[..1], ALL);
    assert!(!alone.contains("Chain"), "{alone}");
}

#[test]
fn short_of_success_the_verdict_is_told_alone() {
    let chain = [vec![1, 2, 3].into()];
    for (verdict, text, presented, revoked) in [
        (Verdict::None, "NONE", "false", "false"),
        (Verdict::Failed(Refusal::Expired), "FAILED:expired", "true", "false"),
        (Verdict::Failed(Refusal::Revoked), "FAILED:revoked", "true", "true"),
    ] {
        let expected = format!(
            "X-Client-Cert-Verify: {text}\r\nCf-Cert-Presented: {presented}\r\nCf-Cert-Verified: false\r\n\
             Cf-Cert-Revoked: {revoked}\r\nssl-client-verify: {text}\r\n"
        );
        assert_eq!(of(verdict, &ann(), &chain, ALL), expected);
        let plain = IdentitySets { cf: false, ingress: false, ..ALL };
        assert_eq!(of(verdict, &ann(), &chain, plain), format!("X-Client-Cert-Verify: {text}\r\n"));
    }
}

/// A certificate one byte beyond a cap is not sent, not even in part, and its fingerprint is.
#[test]
fn a_certificate_over_the_cap_is_replaced_by_its_fingerprint() {
    // 7,677 bytes are 10,236 characters of base64, and two colons; three bytes more are beyond 10,240.
    let sizes = [(7_677, true), (7_680, false)];
    for (bytes, fits) in sizes {
        let leaf = CertificateDer::from(vec![7; bytes]);
        let text = fields(&ann(), std::slice::from_ref(&leaf), ALL);
        assert_eq!(value(&text, "Client-Cert").is_some(), fits, "{bytes}");
        let mut expected = String::new();
        push_byte_sequence(&mut expected, digest(&SHA256, &leaf).as_ref());
        assert_eq!(value(&text, "Client-Cert-Too-Large"), (!fits).then_some(expected.as_str()));
    }
    // Base64 alone: 7,680 bytes are exactly 10,240 characters.
    for (bytes, fits) in [(7_680, true), (7_681, false)] {
        let leaf = CertificateDer::from(vec![7; bytes]);
        let text = fields(&ann(), std::slice::from_ref(&leaf), ALL);
        assert_eq!(value(&text, "Cf-Client-Cert-Der-Base64").is_some(), fits, "{bytes}");
        assert_eq!(value(&text, "Cf-Client-Cert-Too-Large"), (!fits).then_some("Cf-Client-Cert-Der-Base64"));
        assert!(value(&text, "Cf-Client-Cert-Sha256").is_some());
    }
    // What is percent-encoded is counted as it is sent.
    let hex = "ab".repeat(32);
    for (bytes, fits) in [(4_000, true), (9_000, false)] {
        let leaf = CertificateDer::from(vec![7; bytes]);
        let text = fields(&ann(), std::slice::from_ref(&leaf), ALL);
        assert_eq!(value(&text, "ssl-client-cert").is_some(), fits);
        assert_eq!(value(&text, "ssl-client-cert-too-large"), (!fits).then_some(hex.as_str()));
        let xfcc = value(&text, "X-Forwarded-Client-Cert").expect("always there");
        assert_eq!(xfcc.contains(";Cert=\"-----BEGIN"), fits);
        assert!(xfcc.starts_with(&format!("Hash={hex};")) && xfcc.contains(";Subject=\"CN=ann"), "{xfcc}");
        assert_eq!(value(&text, "X-Forwarded-Client-Cert-Too-Large"), (!fits).then_some("Cert"));
    }
    // The rest of the chain has a cap of its own.
    for (bytes, fits) in [(6_000, true), (6_300, false)] {
        let chain = [vec![1; 10].into(), vec![2; bytes].into(), vec![3; bytes].into()];
        let text = fields(&ann(), &chain, ALL);
        assert!(value(&text, "Client-Cert").is_some());
        assert_eq!(value(&text, "Client-Cert-Chain").is_some(), fits, "{bytes}");
        let marker = value(&text, "Client-Cert-Chain-Too-Large");
        assert_eq!(marker.map(|marker| marker.split(", ").count()), (!fits).then_some(2));
    }
}

#[test]
fn other_values_that_are_too_long_are_left_out_whole_and_named() {
    let long =
        Identity { san_dns: vec!["a".repeat(11 * 1024)], subject: format!("CN={}", "b".repeat(11 * 1024)), ..ann() };
    let text = fields(&long, &[vec![1].into()], ALL);
    assert!(!text.contains("aaaa") && !text.contains("bbbb"));
    let expected = "X-Client-Cert-Subject, X-Client-Cert-San";
    assert_eq!(value(&text, "X-Client-Cert-Too-Large"), Some(expected));
    assert_eq!(value(&text, "X-Forwarded-Client-Cert-Too-Large"), Some("Subject, DNS"));
    assert_eq!(value(&text, "Cf-Client-Cert-Too-Large"), Some("Cf-Cert-Subject-Dn, Cf-Cert-Subject-Dn-Rfc2253"));
    assert_eq!(value(&text, "ssl-client-subject-dn-too-large"), Some("ab".repeat(32).as_str()));
    assert!(value(&text, "X-Client-Cert-Not-After").is_some() && value(&text, "ssl-client-cert").is_some());
}

#[test]
fn pem_is_what_other_readers_decode() {
    let der: Vec<u8> = (0..=255).cycle().take(1000).collect();
    let mut encoded = String::new();
    pem::push_encoded(&mut encoded, &der);
    assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'%')));
    let mut decoded = encoded;
    for (code, character) in [("%20", " "), ("%0A", "\n"), ("%2B", "+"), ("%2F", "/"), ("%3D", "=")] {
        decoded = decoded.replace(code, character);
    }
    use rustls_pki_types::pem::PemObject;
    let read = CertificateDer::from_pem_slice(decoded.as_bytes()).expect("PEM");
    assert_eq!(read.as_ref(), der);
    assert!(decoded.lines().all(|line| line.len() <= 64));
}

/// Reads `X-Forwarded-Client-Cert` as Envoy's documentation says: elements end at commas and pairs at semicolons, neither
/// of them in quotes; in quotes `\"` is a quote.
fn read_xfcc(text: &str) -> Vec<Vec<(String, String)>> {
    let mut elements = vec![vec![String::new()]];
    let mut is_quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let pairs = elements.last_mut().expect("never empty");
        match character {
            '"' => is_quoted = !is_quoted,
            '\\' if characters.peek() == Some(&'"') => {
                pairs.last_mut().expect("never empty").push('"');
                characters.next();
            }
            ',' if !is_quoted => elements.push(vec![String::new()]),
            ';' if !is_quoted => pairs.push(String::new()),
            other => pairs.last_mut().expect("never empty").push(other),
        }
    }
    assert!(!is_quoted, "{text}");
    let pair = |pair: String| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    elements.into_iter().map(|pairs| pairs.into_iter().map(|text| pair(text).expect("a pair")).collect()).collect()
}

#[test]
fn envoys_readers_find_what_is_meant() {
    let chain = [vec![1, 2, 3].into(), vec![4].into()];
    let text = fields(&ann(), &chain, ALL);
    let elements = read_xfcc(value(&text, "X-Forwarded-Client-Cert").expect("is sent"));
    let [element] = elements.as_slice() else { panic!("one element: {elements:?}") };
    let keys: Vec<_> = element.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["Hash", "Cert", "Chain", "Subject", "URI", "URI", "DNS"]);
    assert_eq!(element[3].1, "CN=ann\\2CCN\\3Droot,O=B\\C3\\BCro");
    assert_eq!(element[4].1, "spiffe://acme/ann");
}

proptest! {
    /// Whatever names a certificate has, every set of it in one head: it is read as so many fields as an ordinary one's,
    /// each with the name it has there, and no list or quoted string has a member more.
    #[test]
    fn no_certificate_adds_a_field_a_member_or_a_line(
        values in prop::collection::vec("(\\PC|[\r\n\0,;:\"\\\\=+<>#% ]){1,24}", 2),
        names in prop::collection::vec("[ -~]{1,24}", 3),
        serial in "[0-9a-f]{2,40}",
    ) {
        // As tls::identity writes a name: with RFC 4514's escapes.
        let escape = |text: &str| text.chars().map(|c| if c.is_alphanumeric() { c.to_string() } else if c.is_control() {
            c.to_string().bytes().map(|byte| format!("\\{byte:02X}")).collect()
        } else { format!("\\{c}") }).collect::<String>();
        let hostile = Identity {
            subject: format!("CN={},O={}", escape(&values[0]), escape(&values[1])),
            issuer: format!("CN={}", escape(&values[1])),
            serial,
            san_dns: vec![names[0].clone()],
            san_uri: vec![names[1].clone(), names[2].clone()],
            ..ann()
        };
        let plain = Identity {
            subject: "CN=a,O=b".into(),
            issuer: "CN=c".into(),
            san_dns: vec!["d".into()],
            san_uri: vec!["e".into(), "f".into()],
            ..ann()
        };
        let chain = [vec![1, 2, 3].into(), vec![4].into()];
        let read = |text: &str| -> Vec<(String, String)> {
            let head = format!("GET / HTTP/1.1\r\n{text}\r\n");
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut headers);
            let end = request.parse(head.as_bytes()).expect("a head");
            assert_eq!(end, httparse::Status::Complete(head.len()), "{head}");
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
            request.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect()
        };
        let (ours, theirs) = (read(&fields(&plain, &chain, ALL)), read(&fields(&hostile, &chain, ALL)));
        prop_assert_eq!(ours.len(), theirs.len());
        for ((name, plain), (of, hostile)) in ours.iter().zip(&theirs) {
            prop_assert_eq!(name, of);
            prop_assert!(hostile.is_ascii());
            if name.ends_with("-Subject") || name.contains("subject") || name.contains("Subject") {
                // Two attributes, to a reader who undoes no escape.
                prop_assert_eq!(hostile.split([',', '+']).count(), 2, "{}", hostile);
                prop_assert_eq!(hostile.matches('=').count(), 2, "{}", hostile);
            } else if name == "X-Client-Cert-San" {
                prop_assert_eq!(hostile.split(',').count(), plain.split(',').count());
            } else if name == "X-Forwarded-Client-Cert" {
                let keys = |text| read_xfcc(text).into_iter().map(|pairs| {
                    pairs.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
                }).collect::<Vec<_>>();
                prop_assert_eq!(keys(hostile), keys(plain));
                // Nor for one who knows no quotes.
                prop_assert_eq!(hostile.split(';').count(), plain.split(';').count());
            }
        }
    }
}
