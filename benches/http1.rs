//! What HTTP/1.1 costs a request beyond its bytes: parsing, judging and rewriting heads, checking bodies.
//!
//! A keep-alive request of 1 KiB costs some 10 us in all, most of it the kernel's TCP; the heads of both directions should
//! stay below one tenth of that.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hostward::policy::{IdentitySets, Verdict};
use hostward::proxy::headers::{SessionFacts, SessionFields};
use hostward::proxy::http1::{
    Added, Body, ClientSide, Framing, HeadLimits, Parsed, Request, Response, ResponseFraming, Slots,
};
use hostward::registry::ClientAuthMode;

const LIMITS: HeadLimits = HeadLimits { bytes_max: 64 * 1024, fields_max: 128 };

/// As wrk sends it.
const SMALL: &[u8] = b"GET /1k HTTP/1.1\r\nHost: pay.acme.test\r\n\r\n";

/// As a browser sends it.
const BROWSER: &[u8] = b"GET /shop/cart/items/17?view=full HTTP/1.1\r\n\
    Host: pay.acme.test\r\n\
    Connection: keep-alive\r\n\
    Cache-Control: max-age=0\r\n\
    sec-ch-ua: \"Chromium\";v=\"142\", \"Not=A?Brand\";v=\"24\"\r\n\
    sec-ch-ua-mobile: ?0\r\n\
    sec-ch-ua-platform: \"Linux\"\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Dest: document\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-US,en;q=0.9\r\n\
    Cookie: session=0af7651916cd43dd8448eb211c80319c; theme=dark\r\n\r\n";

/// As nginx sends it.
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Mon, 23 Nov 2026 12:00:00 GMT\r\n\
    Content-Type: application/octet-stream\r\n\
    Content-Length: 1024\r\n\
    Last-Modified: Mon, 23 Nov 2026 10:00:00 GMT\r\n\
    Connection: keep-alive\r\n\
    ETag: \"6922d3a0-400\"\r\n\
    Accept-Ranges: bytes\r\n\r\n";

fn heads(c: &mut Criterion) {
    let facts = SessionFacts {
        mode: ClientAuthMode::Off,
        verdict: Verdict::None,
        sets: IdentitySets::default(),
        identity: None,
        chain: &[],
        client: [192, 0, 2, 7].into(),
        trusted_peer: false,
        keep_unusual_names: false,
        rewrites: None,
    };
    let session = SessionFields::new(&facts);
    let added = Added { session: &session, request_id: "0af7651916cd43dd8448eb211c80319c", begun: None };
    let mut out = Vec::with_capacity(64 * 1024);
    let mut slots = Slots::default();
    for (name, head) in [("small", SMALL), ("browser", BROWSER)] {
        c.bench_function(&format!("http1/request/{name}/parse"), |b| {
            b.iter(|| Request::parse(black_box(head), &LIMITS, &mut slots).is_ok());
        });
        c.bench_function(&format!("http1/request/{name}/parse_and_write"), |b| {
            b.iter(|| {
                out.clear();
                if let Ok(Parsed::Complete(request)) = Request::parse(black_box(head), &LIMITS, &mut slots) {
                    let _ = request.write(&added, &mut out);
                }
                out.len()
            });
        });
    }
    let client = ClientSide { keep_alive: true, is_http_1_0: false };
    c.bench_function("http1/response/parse_and_write", |b| {
        b.iter(|| {
            out.clear();
            if let Ok(Parsed::Complete(response)) = Response::parse(black_box(RESPONSE), &LIMITS, &mut slots, false) {
                response.write(&client, &mut out);
            }
            out.len()
        });
    });
}

fn bodies(c: &mut Criterion) {
    const PIECE_BYTES: usize = 64 * 1024;
    let mut group = c.benchmark_group("http1/body");
    for chunk_bytes in [32, 1024, 16 * 1024] {
        let chunk = [format!("{chunk_bytes:x}\r\n").into_bytes(), vec![b'x'; chunk_bytes], b"\r\n".to_vec()].concat();
        let piece = chunk.repeat(PIECE_BYTES / chunk.len());
        group.throughput(Throughput::Bytes(piece.len() as u64));
        group.bench_function(format!("chunks_of_{chunk_bytes}"), |b| {
            let mut body = Body::request(Framing::Chunked, None, false);
            b.iter(|| body.pass(black_box(&piece), &mut |bytes| _ = black_box(bytes.len())));
        });
    }
    let piece = vec![b'x'; PIECE_BYTES];
    group.throughput(Throughput::Bytes(piece.len() as u64));
    group.bench_function("length", |b| {
        let mut body = Body::response(ResponseFraming::Length(u64::MAX), false);
        b.iter(|| body.pass(black_box(&piece), &mut |bytes| _ = black_box(bytes.len())));
    });
    group.finish();
}

criterion_group!(benches, heads, bodies);
criterion_main!(benches);
