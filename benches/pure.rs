//! What the pure parts of a session cost: identity, dates, rules, the PROXY header.
//!
//! Each stands beside a mutual P-256 handshake of some 170 us; together they should stay below one tenth of it.

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use hostward::policy::{AllowSpec, Facts, Identity, RuleSpec, Rules, Verdict};
use hostward::proxy::proxy_protocol::{ClientCertificate, Endpoints, Header, Ssl};
use hostward::telemetry::log::Level;
use hostward::telemetry::log::access::{self, Connection, Entry, Origin, Request, Sink, Target};
use hostward::tls::identity;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};

fn certificate() -> Vec<u8> {
    let mut params = CertificateParams::new(vec!["ops-ann.acme.example".to_string()]).expect("a DNS name");
    params.distinguished_name.push(DnType::OrganizationName, "Acme, Inc.");
    params.distinguished_name.push(DnType::CommonName, "ops-ann");
    params.subject_alt_names.push(SanType::URI("spiffe://acme/ops/ann".try_into().expect("ASCII")));
    let key = KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").der().to_vec()
}

fn reading(c: &mut Criterion) {
    let der = certificate();
    c.bench_function("identity/parse", |b| b.iter(|| identity::parse(black_box(&der))));
    c.bench_function("identity/validity", |b| b.iter(|| identity::validity(black_box(&der))));
    c.bench_function("identity/subject_public_key_info", |b| {
        b.iter(|| identity::subject_public_key_info(black_box(&der)).map(<[u8]>::len));
    });
}

fn judging(c: &mut Criterion) {
    let ann = identity::parse(&certificate()).expect("a certificate");
    let facts = |identity| Facts {
        verdict: Verdict::Success,
        identity: Some(identity),
        source: Some([192, 0, 2, 7].into()),
        method: Some("GET"),
        path: Some("/shop/cart/items/17"),
    };
    let allow = AllowSpec {
        common_name: vec!["dev-*".into(), "ops-*".into()],
        san_uri: vec!["spiffe://acme/ops/*".into()],
        ..AllowSpec::default()
    };
    let one = vec![RuleSpec { allow: allow.clone(), ..RuleSpec::default() }];
    let one = Rules::compile(one).expect("a rule");
    c.bench_function("rules/one", |b| b.iter(|| one.judge(black_box(&facts(&ann)))));

    let mut most: Vec<_> =
        (0..255).map(|n| RuleSpec { path: Some(format!("/area-{n}/*")), deny: true, ..RuleSpec::default() }).collect();
    most.push(RuleSpec { allow, ..RuleSpec::default() });
    let most = Rules::compile(most).expect("rules");
    c.bench_function("rules/256_by_path", |b| b.iter(|| most.judge(black_box(&facts(&ann)))));

    // The worst a tenant can make of one judgement: every pattern against every name that is looked at.
    let worst = AllowSpec { san_dns: (0..64).map(|n| format!("*a*b*c{n}")).collect(), ..AllowSpec::default() };
    let worst = Rules::compile(vec![RuleSpec { allow: worst, ..RuleSpec::default() }]).expect("a rule");
    let crowd = Identity { san_dns: vec!["a".into(); 256], ..Identity::default() };
    c.bench_function("rules/64_patterns_256_names", |b| b.iter(|| worst.judge(black_box(&facts(&crowd)))));
    let crowd = Identity { san_dns: vec!["a".repeat(200); 80], ..Identity::default() };
    c.bench_function("rules/64_patterns_80_long_names", |b| b.iter(|| worst.judge(black_box(&facts(&crowd)))));
}

fn writing(c: &mut Criterion) {
    let header = Header {
        endpoints: Some(Endpoints {
            source: SocketAddr::from(([192, 0, 2, 7], 51000)),
            destination: SocketAddr::from(([198, 51, 100, 1], 443)),
        }),
        alpn: Some(b"http/1.1"),
        authority: Some("pay.acme.example"),
        unique_id: None,
        ssl: Some(Ssl {
            version: "TLSv1.3",
            cipher: Some("TLS13_AES_128_GCM_SHA256"),
            client_certificate: ClientCertificate::Connection,
            verify: 0,
            common_name: Some("ops-ann"),
        }),
    };
    let mut out = Vec::new();
    c.bench_function("proxy_protocol/encode", |b| {
        b.iter(|| {
            out.clear();
            black_box(&header).encode(&mut out);
            out.len()
        });
    });
}

/// What a line of the access log costs a worker: building an entry and handing it over, nothing dropped.
fn logging(c: &mut Criterion) {
    /// Half of a worker's queue: that many wake the writing thread, and fit while it writes.
    const LINES: u64 = 4096;
    let directory = tempfile::tempdir().expect("a directory");
    let sink = Sink::open(&Target::File(directory.path().join("access.log"))).expect("a file");
    let events = hostward::telemetry::log::Log::start(Level::Error).expect("a thread");
    let log = access::Log::start(sink, events.handle(), |der| identity::parse(der).ok()).expect("a thread");
    let writer = log.writer();
    let connection = Arc::new(Connection {
        worker: 0,
        hostname: Some("pay.acme.example".into()),
        record: "pay.acme.example".into(),
        tls_version: "TLSv1.3",
        cipher: "TLS_AES_128_GCM_SHA256".into(),
        resumed: false,
        client: Some(SocketAddr::from(([192, 0, 2, 7], 51000))),
        via: None,
        unique_id: None,
        verdict: Verdict::Success,
        leaf: Some(certificate().into()),
        text: OnceLock::new(),
    });
    let entry = || {
        let mut request = Request::new(b"GET", b"/shop/cart/items/17?a=b", b"pay.acme.example", b"0123456789abcdef");
        request.status = 200;
        Entry {
            connection: Arc::clone(&connection),
            protocol: "http/1.1",
            request: Some(request),
            bytes_in: 0,
            bytes_out: 1024,
            duration: Duration::from_micros(700),
            origin: Some(Origin { name: "app".into(), address: None, connect: None, response: None }),
            end: None,
        }
    };
    c.bench_function("access/log", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                let lines = left.min(LINES);
                let begun = Instant::now();
                for _ in 0..lines {
                    writer.log(black_box(entry()));
                }
                spent += begun.elapsed();
                left -= lines;
                // The thread's turn.
                std::thread::sleep(Duration::from_millis(60));
            }
            spent
        });
    });
    assert_eq!(log.counts().dropped, 0, "dropped lines are cheaper");
}

criterion_group!(benches, reading, judging, writing, logging);
criterion_main!(benches);
