//! Our side of TLS with an origin against a rustls server, joined by byte vectors.

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{Client, Connection, Failed, Fault};
use crate::registry::record::PrivateKey;
use crate::registry::{Ca, CaSet, OriginTls, ServerCertificate, TlsVersion};
use crate::tls::tests::pki::{Authority, ca_set, dates};
use crate::tls::{Outgoing, Provider};

const HOST: &str = "origin.test";

/// A certificate and its key.
#[derive(Clone)]
struct Certified {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn issue(authority: &Authority, change: impl FnOnce(&mut CertificateParams)) -> Certified {
    let certified = authority.client_with("server", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::DnsName(HOST.try_into().unwrap())];
        change(params);
    });
    let record = certified.for_record();
    let PrivateKey::Pkcs8(key) = &record.key else { panic!("a key in PKCS#8") };
    Certified { chain: record.chain.into_iter().map(CertificateDer::from).collect(), key: key.to_vec() }
}

fn self_signed(is_ca: IsCa) -> Certified {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![HOST.to_owned()]).unwrap();
    dates(&mut params, -1, 30);
    params.is_ca = is_ca;
    let certificate = params.self_signed(&key).unwrap();
    Certified { chain: vec![certificate.into()], key: key.serialize_der() }
}

fn serve(certified: &Certified, clients: Option<&Authority>) -> Arc<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(Arc::new(Provider::AwsLcRs.full()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der().to_vec().into()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::new(Provider::AwsLcRs.full()))
                    .build()
                    .unwrap(),
            )
        }
    };
    let key = PrivatePkcs8KeyDer::from(certified.key.clone()).into();
    Arc::new(builder.with_single_cert(certified.chain.clone(), key).unwrap())
}

fn tls(cas: Arc<CaSet>) -> OriginTls {
    OriginTls {
        cas,
        pinned: Vec::new(),
        server_name: None,
        certificate: None,
        min_version: TlsVersion::V1_2,
        http2: false,
        digest: [0; 32],
    }
}

fn pinned(certified: &Certified) -> OriginTls {
    let der = certified.chain[0].to_vec();
    let pinned = vec![Ca { der, not_before_unix_s: 0, not_after_unix_s: i64::MAX }];
    OriginTls { pinned, ..tls(ca_set(&[])) }
}

fn client(tls: &OriginTls) -> Client {
    Client::new(tls, &Arc::new(Provider::AwsLcRs.full())).unwrap()
}

/// Runs a handshake and sends both ways; what our side says of it, and the server.
fn shake(client: &Client, host: &str, server: &Arc<ServerConfig>) -> Result<(Connection, ServerConnection), Failed> {
    let mut ours = client.connection(host, false)?;
    let mut theirs = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut out = Outgoing::default();
    ours.begin(&mut out)?;
    let mut plain = Vec::new();
    let mut said = false;
    for _ in 0..10 {
        let (bytes, filled) = out.take();
        let mut rest = &bytes[..filled];
        while !rest.is_empty() {
            theirs.read_tls(&mut rest).unwrap();
            // What it thinks of it stands in what it sends.
            let _ = theirs.process_new_packets();
        }
        if !theirs.is_handshaking() && !said {
            said = true;
            std::io::Write::write_all(&mut theirs.writer(), b"hello").unwrap();
        }
        let mut records = Vec::new();
        while theirs.wants_write() {
            theirs.write_tls(&mut records).unwrap();
        }
        ours.receive(&mut records, &mut out, |bytes| plain.extend_from_slice(bytes))?;
        if plain == b"hello" {
            return Ok((ours, theirs));
        }
        if !ours.is_handshaking() && out.is_empty() {
            ours.send(b"request", &mut out)?;
        }
    }
    panic!("the handshake does not end");
}

fn fault(client: &Client, host: &str, server: &Certified) -> (Fault, String) {
    match shake(client, host, &serve(server, None)) {
        Ok(_) => panic!("let in"),
        Err(Failed { fault, detail }) => (fault, detail),
    }
}

#[test]
fn a_good_certificate_passes_by_name_by_address_and_under_another_name() {
    let authority = Authority::root("Origins");
    let server = issue(&authority, |params| {
        params.subject_alt_names.push(SanType::IpAddress("10.1.2.3".parse().unwrap()));
    });
    let mut tls = tls(ca_set(&[authority.der()]));
    for host in [HOST, "10.1.2.3"] {
        let (ours, theirs) = shake(&client(&tls), host, &serve(&server, None)).unwrap();
        assert!(!ours.resumed());
        assert_eq!(theirs.server_name(), (host == HOST).then_some(HOST), "addresses are never sent (RFC 6066)");
        assert_eq!(ours.alpn(), None, "a server without ALPN");
    }
    assert!(shake(&client(&tls), "10.9.9.9", &serve(&server, None)).is_err());
    tls.server_name = Some(HOST.to_owned());
    let (_, theirs) = shake(&client(&tls), "10.9.9.9", &serve(&server, None)).unwrap();
    assert_eq!(theirs.server_name(), Some(HOST));
}

#[test]
fn every_fault_of_a_certificate_is_told() {
    let (authority, other) = (Authority::root("Origins"), Authority::root("Origins"));
    let client = client(&tls(ca_set(&[authority.der()])));
    let cases = [
        (issue(&authority, |params| dates(params, -10, -1)), "has expired"),
        (issue(&authority, |params| dates(params, 1, 10)), "not valid yet"),
        (issue(&other, |_| {}), "cannot be verified"),
        (issue(&Authority::root("Others"), |_| {}), "name the CA in tls.ca"),
        (
            issue(&authority, |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]),
            "not for a server",
        ),
        (self_signed(IsCa::NoCa), "name the CA in tls.ca"),
    ];
    for (server, expected) in cases {
        let (fault, detail) = fault(&client, HOST, &server);
        assert!(fault == Fault::Certificate && detail.contains(expected), "{expected}: {detail}");
    }
    let (kind, detail) = fault(&client, "else.test", &issue(&authority, |_| {}));
    assert_eq!(kind, Fault::Certificate);
    assert!(detail.contains("not for else.test") && detail.contains(HOST) && detail.contains("tls.sni"), "{detail}");
}

#[test]
fn a_certificate_may_be_trusted_itself_whatever_it_is() {
    for is_ca in [IsCa::NoCa, IsCa::Ca(rcgen::BasicConstraints::Unconstrained)] {
        let (server, other) = (self_signed(is_ca), self_signed(is_ca));
        shake(&client(&pinned(&server)), HOST, &serve(&server, None)).unwrap();
        assert_eq!(fault(&client(&pinned(&server)), HOST, &other).0, Fault::Certificate);
        assert!(fault(&client(&pinned(&server)), "else.test", &server).1.contains("not for else.test"));
        let mut expired = pinned(&server);
        expired.pinned[0].not_after_unix_s = 1;
        assert!(fault(&client(&expired), HOST, &server).1.contains("has expired"));
    }
}

#[test]
fn a_ca_outside_its_dates_vouches_for_nobody() {
    let authority = Authority::root_with("Old", |params| dates(params, -10, -1));
    let good = Authority::root("Good");
    let mut set = CaSet { digest: [0; 32], cas: Vec::new() };
    for (der, not_after_unix_s) in [(authority.der(), 1), (good.der(), i64::MAX)] {
        set.cas.push(Ca { der: der.to_vec(), not_before_unix_s: 0, not_after_unix_s });
    }
    let client = client(&tls(Arc::new(set)));
    assert!(fault(&client, HOST, &issue(&authority, |_| {})).1.contains("name the CA"));
    shake(&client, HOST, &serve(&issue(&good, |_| {}), None)).unwrap();
}

#[test]
fn sessions_resume_with_the_same_client_only() {
    let authority = Authority::root("Origins");
    let server = serve(&issue(&authority, |_| {}), None);
    let tls = tls(ca_set(&[authority.der()]));
    let (first, second) = (client(&tls), client(&tls));
    assert!(!shake(&first, HOST, &server).unwrap().0.resumed());
    assert!(shake(&first, HOST, &server).unwrap().0.resumed());
    assert!(!shake(&second, HOST, &server).unwrap().0.resumed(), "another has none of its sessions");
}

#[test]
fn our_certificate_is_shown_to_those_who_ask() {
    let (authority, clients) = (Authority::root("Origins"), Authority::root("Edges"));
    let server = serve(&issue(&authority, |_| {}), Some(&clients));
    let mut tls = tls(ca_set(&[authority.der()]));
    let failed = match shake(&client(&tls), HOST, &server) {
        Err(failed) => failed,
        Ok(_) => panic!("let in without a certificate"),
    };
    assert_eq!(failed.fault, Fault::Alert);
    assert!(failed.detail.ends_with("certificate_required"), "{}", failed.detail);
    let ServerCertificate { chain, key, not_after_unix_s } = clients.client("edge").for_record();
    tls.certificate = Some(ServerCertificate { chain: chain.clone(), key, not_after_unix_s });
    let (_, theirs) = shake(&client(&tls), HOST, &server).unwrap();
    assert_eq!(theirs.peer_certificates().unwrap()[0].as_ref(), chain[0].as_slice());
}

#[test]
fn a_server_that_speaks_no_tls_is_told_apart() {
    let authority = Authority::root("Origins");
    let mut ours = client(&tls(ca_set(&[authority.der()]))).connection(HOST, false).unwrap();
    let mut out = Outgoing::default();
    ours.begin(&mut out).unwrap();
    let failed = ours.receive(&mut b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), &mut out, |_| {}).unwrap_err();
    assert!(failed.fault == Fault::Protocol && failed.detail.contains("does not speak TLS"), "{}", failed.detail);
}
