//! What a stream costs before anything is proxied: the `h2` crate on our executor, and the translation of heads beside it.
//!
//! The client is canned: frames that were made beforehand, 32 requests at a time, and a counter of what comes back. So only
//! the server is measured: reading frames, HPACK, a task for each stream, a response of three fields and 1 KiB, writing
//! frames. What is told is CPU time of the thread. No TLS, no sockets, no origin. What is left between this and `make perf`'s `h2-get` is theirs and ours.

use std::cell::RefCell;
use std::hint::black_box;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use h2::server::SendResponse;
use hostward::proxy::http1::{HeadLimits, Parsed, Request, Slots};
use hostward::proxy::http2::head::{Kind, push_request};
use hostward::ring::{RingConfig, Runtime, spawn};
use http::{HeaderValue, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Streams at once, as h2load's `-m32`.
const BATCH: u64 = 32;

const BODY_BYTES: usize = 1024;

/// The client's preface and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The first request's fields: `:method` and `:scheme` from the static table, the rest put into the dynamic one.
const FIRST: &[u8] = b"\x82\x87\x44\x03/1k\x41\x10pay.acme.example\x7a\x0eh2load nghttp2";

/// Every other request's: all from the tables (entries 62 to 64 are those of the first, the last one first).
const REST: &[u8] = b"\x82\x87\xc0\xbf\xbe";

/// The client's side of the connection, in memory.
#[derive(Default)]
struct Canned {
    to_read: Vec<u8>,
    read_at: usize,
    asked: u64,
    ended: u64,
    wanted: u64,
    data_bytes: u32,
    head: Vec<u8>,
    payload_left: usize,
    reader: Option<Waker>,
    done: Option<Waker>,
}

impl Canned {
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
        self.to_read.extend_from_slice(&[a, b, c, kind, flags]);
        self.to_read.extend_from_slice(&stream.to_be_bytes());
        self.to_read.extend_from_slice(payload);
    }

    /// The next batch, when the last one has been answered.
    fn ask(&mut self) {
        if self.read_at < self.to_read.len() || self.ended < self.asked || self.asked >= self.wanted {
            return;
        }
        self.to_read.clear();
        self.read_at = 0;
        if self.asked == 0 {
            self.to_read.extend_from_slice(HELLO);
        }
        if self.data_bytes > 0 {
            let update = std::mem::take(&mut self.data_bytes).to_be_bytes();
            self.frame(8, 0, 0, &update);
        }
        for _ in 0..BATCH.min(self.wanted - self.asked) {
            let fields = if self.asked == 0 { FIRST } else { REST };
            // END_STREAM and END_HEADERS.
            self.frame(1, 5, self.asked as u32 * 2 + 1, fields);
            self.asked += 1;
        }
    }

    /// Counts what the server has written.
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.payload_left.min(bytes.len());
            self.payload_left -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (9 - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if self.head.len() == 9 {
                let length = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
                if self.head[3] == 0 {
                    self.data_bytes += length;
                    self.ended += u64::from(self.head[4] & 1);
                }
                self.payload_left = length as usize;
                self.head.clear();
            }
        }
        if self.ended >= self.asked {
            for waker in [self.reader.take(), self.done.take()].into_iter().flatten() {
                waker.wake();
            }
        }
    }
}

struct Pipe(Rc<RefCell<Canned>>);

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let canned = &mut *self.0.borrow_mut();
        canned.ask();
        let rest = &canned.to_read[canned.read_at..];
        if rest.is_empty() {
            canned.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = rest.len().min(out.remaining());
        out.put_slice(&rest[..count]);
        canned.read_at += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Time for so many streams.
fn serve(streams: u64, handle: fn(&http::request::Parts)) -> Duration {
    let runtime = Runtime::new(&RingConfig::default()).expect("io_uring");
    runtime.run(
        async move {
            let canned = Rc::new(RefCell::new(Canned { wanted: streams, ..Canned::default() }));
            let body = Bytes::from(vec![7; BODY_BYTES]);
            let mut builder = h2::server::Builder::new();
            let builder = builder.max_concurrent_streams(128).initial_connection_window_size(1 << 20);
            let mut connection = builder.handshake(Pipe(Rc::clone(&canned))).await.expect("the preface");
            let began = cpu_time();
            spawn(async move {
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let body = body.clone();
                    spawn(async move {
                        handle(&request.into_parts().0);
                        answer(&mut respond, body);
                    });
                }
            });
            std::future::poll_fn(|cx| {
                let canned = &mut *canned.borrow_mut();
                if canned.ended >= canned.wanted {
                    return Poll::Ready(());
                }
                canned.done = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            cpu_time().saturating_sub(began)
        },
        |_| {},
    )
}

/// What this thread has used so far: other programs on its core count for nothing.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn answer(respond: &mut SendResponse<Bytes>, body: Bytes) {
    let mut head = Response::new(());
    let headers = head.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
    headers.insert("content-length", HeaderValue::from_static("1024"));
    headers.insert("server", HeaderValue::from_static("origin"));
    let sent = respond.send_response(head, false).and_then(|mut stream| stream.send_data(body, true));
    sent.expect("the client listens");
}

/// What we do with a head before it is judged: text of it, and that text parsed.
fn translate(parts: &http::request::Parts) {
    const LIMITS: HeadLimits = HeadLimits { bytes_max: 64 * 1024, fields_max: 128 };
    thread_local! {
        static MEMORY: RefCell<(Vec<u8>, Slots)> = RefCell::default();
    }
    MEMORY.with(|memory| {
        let (text, slots) = &mut *memory.borrow_mut();
        text.clear();
        push_request(parts, Kind::Bodiless, text).expect("well-formed");
        let parsed = Request::parse(text, &LIMITS, slots);
        assert!(matches!(black_box(parsed), Ok(Parsed::Complete(_))));
    });
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("h2");
    group.bench_function("stream", |b| b.iter_custom(|streams| serve(streams, |_| ())));
    group.bench_function("stream-and-head", |b| b.iter_custom(|streams| serve(streams, translate)));
    group.finish();
}

criterion_group!(benches, streams);
criterion_main!(benches);
