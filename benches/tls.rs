//! What the TLS room costs: the ClientHello, the lookup, verification, tickets, tenants, and whole handshakes beside rustls
//! alone. (Identity and rules: `pure.rs`.)
//!
//! Handshakes run in memory against a rustls client, and only the server's calls are timed: what is measured is
//! `Connection` with its verifier, its scope and its tickets, against a rustls server with the verifier and ticketer that
//! come with it. Both sides use aws-lc-rs, X25519 and AES-128-GCM.

use std::hint::black_box;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criterion::{Criterion, criterion_group, criterion_main};
use hostward::policy::{IdentitySets, Rules, Verdict};
use hostward::registry::record::{Ca, CaSet, ClientAuth, Origin, PrivateKey, ServerCertificate};
use hostward::registry::{ClientAuthMode, HostnameRecord, Mode, Name, RecordId, Scheme, Snapshot, TlsVersion};
use hostward::tls::hello::HelloReader;
use hostward::tls::identity;
use hostward::tls::scope::{Path, PathElement, Standing, Trust};
use hostward::tls::ticket::{Keyring, Sealed};
use hostward::tls::verify::{Verifier, VerifierOptions};
use hostward::tls::{Connection, Factory, Options, Outgoing, Provider, Tenant};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, PKCS_RSA_SHA256,
    RsaKeySize,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

const NAME: &str = "pay.acme.example";

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// A chain and the PKCS#8 key of its leaf.
struct Certified {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn root(name: &str) -> Issuer {
    CertifiedIssuer::self_signed(authority(name), KeyPair::generate().expect("a key")).expect("a certificate")
}

fn issue(issuer: &Issuer, purpose: ExtendedKeyUsagePurpose, key: KeyPair) -> Certified {
    let mut params = CertificateParams::new(vec![NAME.to_string()]).expect("a name");
    params.extended_key_usages = vec![purpose];
    let leaf = params.signed_by(&key, issuer).expect("a certificate");
    Certified { chain: vec![leaf.der().clone()], key: key.serialize_der() }
}

fn p256() -> KeyPair {
    KeyPair::generate().expect("a key")
}

fn rsa2048() -> KeyPair {
    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a key")
}

fn ca_set(digest: u8, ca: &Issuer) -> Arc<CaSet> {
    let (not_before_unix_s, not_after_unix_s) = identity::validity(ca.der()).expect("a certificate");
    let ca = Ca { der: ca.der().to_vec(), not_before_unix_s, not_after_unix_s };
    Arc::new(CaSet { digest: [digest; 32], cas: vec![ca] })
}

fn record(name: &str, certificates: Vec<ServerCertificate>, ca_set: Option<Arc<CaSet>>) -> Arc<HostnameRecord> {
    let mode = if ca_set.is_some() { ClientAuthMode::Require } else { ClientAuthMode::Off };
    Arc::new(HostnameRecord {
        id: RecordId([7; 16]),
        name: Name::parse_record(name).expect("a name"),
        is_default: false,
        mode: Mode::Tcp,
        certificates,
        client_auth: ClientAuth {
            mode,
            ca_set,
            allow_expired_ca: false,
            verify_depth: None,
            send_ca_names: false,
            headers: IdentitySets::default(),
        },
        rules: Rules::default(),
        origin: Arc::new(Origin::new("origin".into(), Vec::new(), Scheme::Tcp)),
        min_version: TlsVersion::V1_2,
        cipher_suites: Vec::new(),
        alpn: Vec::new(),
        keep_unusual_headers: false,
        rewrites: None,
        digest: [0; 32],
    })
}

fn server_certificate(certified: &Certified) -> ServerCertificate {
    ServerCertificate {
        chain: certified.chain.iter().map(|der| der.to_vec()).collect(),
        key: PrivateKey::Pkcs8(Zeroizing::new(certified.key.clone())),
        not_after_unix_s: i64::MAX,
    }
}

fn factory() -> Factory {
    Factory::new(Options {
        provider: Provider::AwsLcRs,
        groups: vec!["X25519".into()],
        cipher_suites: vec!["TLS_AES_128_GCM_SHA256".into()],
        tickets: true,
        ticket_lifetime_s: 3600,
    })
    .expect("options")
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    provider.cipher_suites = vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(provider)
}

fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn private_key(certified: &Certified) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(certified.key.clone().into())
}

/// A client that trusts `ca`; it keeps tickets if it may.
fn client(ca: &Issuer, certified: Option<&Certified>, tickets: bool) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a CA");
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("a version")
        .with_root_certificates(roots);
    let mut config = match certified {
        Some(certified) => {
            builder.with_client_auth_cert(certified.chain.clone(), private_key(certified)).expect("a key")
        }
        None => builder.with_no_client_auth(),
    };
    if !tickets {
        config.resumption = rustls::client::Resumption::disabled();
    }
    Arc::new(config)
}

fn hello(c: &mut Criterion) {
    let config = client(&root("Server"), None, false);
    let mut bytes = Vec::new();
    let mut client = ClientConnection::new(config, NAME.try_into().expect("a name")).expect("a client");
    client.write_tls(&mut bytes).expect("bytes");
    c.bench_function("hello/peek", |b| b.iter(|| HelloReader::default().feed(black_box(&bytes))));
}

fn resolve(c: &mut Criterion) {
    for (label, count) in [("1", 1), ("1k", 1000), ("100k", 100_000)] {
        let exact = (0..count).map(|n| record(&format!("shop-{n}.acme.example"), Vec::new(), None));
        let wildcards = (0..count).map(|n| record(&format!("*.shop-{n}.globex.example"), Vec::new(), None));
        let snapshot = Snapshot::new(1, exact.chain(wildcards));
        let middle = count / 2;
        let cases = [
            ("exact", format!("shop-{middle}.acme.example")),
            ("wildcard", format!("www.shop-{middle}.globex.example")),
            ("miss", format!("www.shop-{middle}.initech.example")),
        ];
        for (what, name) in &cases {
            c.bench_function(&format!("resolve/{what}/{label}"), |b| {
                b.iter(|| snapshot.resolve(black_box(name)).record().is_some());
            });
        }
    }
}

fn verify(c: &mut Criterion) {
    let ca = root("Acme");
    let below = CertifiedIssuer::signed_by(authority("Acme Europe"), p256(), &ca).expect("a certificate");
    let verifier =
        Verifier::new(ClientAuthMode::Require, &ca_set(1, &ca), VerifierOptions::default(), &provider()).expect("a CA");
    let now = now_unix_s() as i64;
    let direct = issue(&ca, ExtendedKeyUsagePurpose::ClientAuth, p256());
    c.bench_function("verify/leaf", |b| {
        b.iter(|| verifier.verify(black_box(&direct.chain[0]), &[], now).expect("a path"));
    });
    let indirect = issue(&below, ExtendedKeyUsagePurpose::ClientAuth, p256());
    let intermediates = [below.der().clone()];
    c.bench_function("verify/leaf_and_intermediate", |b| {
        b.iter(|| verifier.verify(black_box(&indirect.chain[0]), &intermediates, now).expect("a path"));
    });
    let path = verifier.verify(&indirect.chain[0], &intermediates, now).expect("a path");
    c.bench_function("verify/still_stands", |b| b.iter(|| verifier.still_stands(black_box(&path), now)));
}

fn tickets(c: &mut Criterion) {
    let leaf = issue(&root("Acme"), ExtendedKeyUsagePurpose::ClientAuth, p256()).chain[0].to_vec();
    let element = PathElement { issuer_spki_sha256: [1; 32], serial: vec![2; 20] };
    let path = Path { anchor: [3; 32], elements: vec![element], not_after_unix_s: 4 };
    // As rustls writes it: some hundred bytes and the client's chain.
    let plaintext = [vec![5; 100], leaf.clone(), vec![6; 40]].concat();
    let sealed = Sealed {
        record_id: [7; 16],
        trust_digest: [8; 32],
        standing: Standing { verdict: Verdict::Success, path: Some(path), authenticated_unix_s: 9 },
        leaf,
        plaintext,
    };
    let keyring = Keyring::generate(0).expect("random");
    c.bench_function("ticket/seal", |b| b.iter(|| black_box(&sealed).seal(&keyring).expect("a ticket")));
    let ticket = sealed.seal(&keyring).expect("a ticket");
    c.bench_function("ticket/open", |b| b.iter(|| Sealed::open(black_box(&ticket), &keyring).expect("it opens")));
    let other = Keyring::generate(0).expect("random");
    c.bench_function("ticket/open_unknown", |b| b.iter(|| Sealed::open(black_box(&ticket), &other).is_none()));
}

fn tenants(c: &mut Criterion) {
    let servers = root("Server");
    let ca = root("Acme");
    for (label, key) in [("p256", p256()), ("rsa2048", rsa2048())] {
        let certified = issue(&servers, ExtendedKeyUsagePurpose::ServerAuth, key);
        let record = record(NAME, vec![server_certificate(&certified)], Some(ca_set(1, &ca)));
        c.bench_function(&format!("tenant/cold/{label}"), |b| {
            b.iter_batched(
                factory,
                |factory| factory.assemble(black_box(&record)).expect("a tenant"),
                criterion::BatchSize::SmallInput,
            );
        });
        let factory = factory();
        c.bench_function(&format!("tenant/base_reused/{label}"), |b| {
            b.iter(|| factory.assemble(black_box(&record)).expect("a tenant"));
        });
    }
}

/// One handshake against a server that is fed bytes: `serve` takes what the client said and returns what it answers, and
/// is all that is timed.
fn timed(config: &Arc<ClientConfig>, mut serve: impl FnMut(&mut Vec<u8>) -> Vec<u8>) -> (Duration, HandshakeKind) {
    let name = NAME.try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).expect("a client");
    let mut spent = Duration::ZERO;
    // Hello and answer, Finished and ticket.
    for _ in 0..2 {
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).expect("bytes");
        }
        let began = Instant::now();
        let answer = serve(&mut said);
        spent += began.elapsed();
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("bytes");
            client.process_new_packets().expect("the handshake goes on");
        }
    }
    (spent, client.handshake_kind().expect("the handshake is complete"))
}

fn by_connection(config: &Arc<ClientConfig>, tenant: &Rc<Tenant>, keyring: &Arc<Keyring>) -> (Duration, HandshakeKind) {
    let mut connection = None;
    let mut out = Outgoing::default();
    timed(config, |said| {
        let connection = connection.get_or_insert_with(|| {
            let trust = Trust::new(Rc::clone(tenant), Arc::clone(keyring), 3600, None, now_unix_s());
            Connection::new(Box::new(trust)).expect("a connection")
        });
        connection.receive(said, &mut out, |_| {}).expect("the handshake goes on");
        if !connection.is_handshaking() {
            black_box(connection.establish());
        }
        let (bytes, filled) = out.take();
        bytes[..filled].to_vec()
    })
}

fn by_rustls(config: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (Duration, HandshakeKind) {
    let mut connection = None;
    timed(config, |said| {
        let connection =
            connection.get_or_insert_with(|| ServerConnection::new(Arc::clone(server)).expect("a connection"));
        let mut rest = said.as_slice();
        while !rest.is_empty() {
            connection.read_tls(&mut rest).expect("bytes");
            connection.process_new_packets().expect("the handshake goes on");
        }
        let mut answer = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut answer).expect("bytes");
        }
        answer
    })
}

fn handshakes(c: &mut Criterion) {
    let servers = root("Server");
    let ca = root("Acme");
    let ann = issue(&ca, ExtendedKeyUsagePurpose::ClientAuth, p256());
    let certified = issue(&servers, ExtendedKeyUsagePurpose::ServerAuth, p256());
    let keyring = Arc::new(Keyring::generate(now_unix_s()).expect("random"));
    let factory = factory();
    for (what, mutual, resumed) in [("full", false, false), ("mutual", true, false), ("mutual_resumed", true, true)] {
        let set = mutual.then(|| ca_set(1, &ca));
        let record = record(NAME, vec![server_certificate(&certified)], set);
        let tenant = Rc::new(factory.assemble(&record).expect("a tenant"));
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version");
        let builder = if mutual {
            let mut roots = RootCertStore::empty();
            roots.add(ca.der().clone()).expect("a CA");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build();
            builder.with_client_cert_verifier(verifier.expect("a CA"))
        } else {
            builder.with_no_client_auth()
        };
        let mut server = builder.with_single_cert(certified.chain.clone(), private_key(&certified)).expect("a key");
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = aws_lc_rs::Ticketer::new().expect("random");
        server.send_tls13_tickets = 1;
        let server = Arc::new(server);
        let expected = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };

        let mut bench = |side: &str, run: &dyn Fn(&Arc<ClientConfig>) -> (Duration, HandshakeKind)| {
            let config = client(&servers, mutual.then_some(&ann), resumed);
            if resumed {
                run(&config);
            }
            c.bench_function(&format!("handshake/{what}/{side}"), |b| {
                b.iter_custom(|count| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..count {
                        let (one, kind) = run(&config);
                        assert_eq!(kind, expected);
                        spent += one;
                    }
                    spent
                });
            });
        };
        bench("hostward", &|config| by_connection(config, &tenant, &keyring));
        bench("rustls", &|config| by_rustls(config, &server));
    }
}

criterion_group!(benches, hello, resolve, verify, tickets, tenants, handshakes);
criterion_main!(benches);
