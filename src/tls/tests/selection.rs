//! Which certificate, version and protocol a client gets, and what it hears if there is none for it.

use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, CipherSuite, ProtocolVersion};

use super::client::{Client, TLS12, TLS13, VERSIONS};
use super::pair::{Pair, Server};
use super::pki::{options, record, servers, tenant, tenant_by};
use crate::policy::Refusal;
use crate::registry::TlsVersion;

/// A client that verifies only one kind of signature.
fn client_of_only(versions: &[&'static rustls::SupportedProtocolVersion], kind: &str) -> Client {
    let mut provider = aws_lc_rs::default_provider();
    let mapping: Vec<_> = provider
        .signature_verification_algorithms
        .mapping
        .iter()
        .filter(|(scheme, _)| format!("{scheme:?}").starts_with(kind))
        .copied()
        .collect();
    assert!(!mapping.is_empty());
    // Leaked, as the provider wants it for good; a handful of bytes of one test.
    provider.signature_verification_algorithms.mapping = Box::leak(mapping.into_boxed_slice());
    Client::with_provider(provider, versions, None)
}

#[test]
fn the_first_certificate_of_the_record_that_fits_the_client_is_chosen() {
    let both = || vec![servers().ecdsa.for_record(), servers().rsa.for_record()];
    let server = Server::new(tenant(&record(1, "a.test", |record| record.certificates = both())));
    let reversed = record(1, "a.test", |record| {
        record.certificates = both();
        record.certificates.reverse();
    });
    let reversed = Server::new(tenant(&reversed));
    for versions in VERSIONS {
        let cases = [
            (&server, Client::new(versions, None), &servers().ecdsa),
            (&reversed, Client::new(versions, None), &servers().rsa),
            (&server, client_of_only(versions, "ECDSA"), &servers().ecdsa),
            (&reversed, client_of_only(versions, "ECDSA"), &servers().ecdsa),
            (&server, client_of_only(versions, "RSA"), &servers().rsa),
            (&reversed, client_of_only(versions, "RSA"), &servers().rsa),
        ];
        for (server, client, expected) in &cases {
            let pair = Pair::established(server, client, "a.test");
            assert_eq!(pair.client.peer_certificates().unwrap()[0], *expected.leaf());
        }
    }
}

#[test]
fn suites_of_rsa_only_in_tls12_choose_the_rsa_certificate() {
    let certificates = vec![servers().ecdsa.for_record(), servers().rsa.for_record()];
    let server = Server::new(tenant(&record(1, "a.test", |record| record.certificates = certificates)));
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|s| s.suite() == CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256);
    let pair = Pair::established(&server, &Client::with_provider(provider, TLS12, None), "a.test");
    assert_eq!(pair.client.peer_certificates().unwrap()[0], *servers().rsa.leaf());
    assert_eq!(pair.server.names(), ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256".into()));
}

#[test]
fn no_certificate_that_fits_is_handshake_failure() {
    let server = Server::new(tenant(&record(1, "a.test", |_| {})));
    for versions in VERSIONS {
        let failure = server.shake(&client_of_only(versions, "RSA"), "a.test").err().unwrap();
        let expected = (Refusal::NoCommonVersion, Some(AlertDescription::HandshakeFailure));
        assert_eq!(failure.told(), expected, "{:?}", failure.fatal.detail);
    }
}

#[test]
fn below_the_minimum_version_is_protocol_version() {
    let server = Server::new(tenant(&record(1, "a.test", |record| record.min_version = TlsVersion::V1_3)));
    let failure = server.shake(&Client::new(TLS12, None), "a.test").err().unwrap();
    assert_eq!(failure.told(), (Refusal::NoCommonVersion, Some(AlertDescription::ProtocolVersion)));
    let established = server.shake(&Client::new(TLS13, None), "a.test").ok().unwrap();
    assert_eq!(established.version, ProtocolVersion::TLSv1_3);
}

#[test]
fn protocols_are_negotiated_by_the_record_and_none_in_common_is_told() {
    let server =
        Server::new(tenant(&record(1, "a.test", |record| record.alpn = vec![b"one".to_vec(), b"two".to_vec()])));
    for versions in VERSIONS {
        let mut client = Client::new(versions, None);
        let mut offer = |protocols: &[&[u8]]| {
            let mut config = rustls::ClientConfig::clone(&client.config);
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            client.config = config.into();
            let mut pair = Pair::new(&server, &client, "a.test");
            pair.shake().map(|_| pair.server.alpn().map(<[u8]>::to_vec)).map_err(|failure| failure.told())
        };
        assert_eq!(offer(&[]), Ok(None));
        assert_eq!(offer(&[b"two", b"one"]), Ok(Some(b"one".to_vec())), "the record's order counts");
        let expected = (Refusal::NoCommonVersion, Some(AlertDescription::NoApplicationProtocol));
        assert_eq!(offer(&[b"three"]), Err(expected));
    }
}

#[test]
fn the_configured_suite_and_group_are_used_and_a_missing_share_is_asked_for() {
    let mut chosen = options();
    chosen.groups = vec!["secp384r1".into()];
    chosen.cipher_suites = vec!["TLS_CHACHA20_POLY1305_SHA256".into()];
    let server = Server::new(tenant_by(chosen, &record(1, "a.test", |_| {})));
    let pair = Pair::established(&server, &Client::new(TLS13, None), "a.test");
    assert_eq!(pair.server.names(), ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256".into()));
    assert_eq!(pair.client.handshake_kind(), Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
}
