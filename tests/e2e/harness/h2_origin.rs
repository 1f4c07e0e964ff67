//! An origin that speaks HTTP/2, on the `h2` crate and tokio: it does what the path says, and notes what it sees.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::payload::{Hash, Payload};
use super::{SOON, wait};

/// How long anything of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub uri: String,
    pub headers: HeaderMap,
}

struct Shared {
    connections: AtomicU64,
    open: AtomicU64,
    /// Streams at once, and the most there were, of all connections.
    streams: AtomicU32,
    streams_most: AtomicU32,
    /// How many requests are still to be refused before they are looked at.
    refusals: AtomicU32,
    seen: Mutex<Vec<Seen>>,
    resets: Mutex<Vec<Reason>>,
    trailers: Mutex<Vec<HeaderMap>>,
    release: watch::Sender<()>,
    go_away: Notify,
}

/// A listening origin. Its thread ends with the test's process.
pub struct H2Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl H2Origin {
    /// With at most so many streams on a connection.
    pub fn start(streams_max: Option<u32>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        listener.set_nonblocking(true).expect("a flag");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            streams: AtomicU32::new(0),
            streams_most: AtomicU32::new(0),
            refusals: AtomicU32::new(0),
            seen: Mutex::default(),
            resets: Mutex::default(),
            trailers: Mutex::default(),
            release: watch::Sender::new(()),
            go_away: Notify::new(),
        });
        let own = Arc::clone(&shared);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let shared = Arc::clone(&own);
                    tokio::spawn(async move {
                        shared.connections.fetch_add(1, Ordering::Relaxed);
                        shared.open.fetch_add(1, Ordering::Relaxed);
                        serve(stream, streams_max, &shared).await;
                        shared.open.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            });
        });
        Self { address, shared }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("h2c://{}", self.address)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    pub fn streams(&self) -> u32 {
        self.shared.streams.load(Ordering::Relaxed)
    }

    pub fn streams_most(&self) -> u32 {
        self.shared.streams_most.load(Ordering::Relaxed)
    }

    /// The next requests are answered with REFUSED_STREAM.
    pub fn refuse(&self, count: u32) {
        self.shared.refusals.store(count, Ordering::Relaxed);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no test panics while holding this").clone()
    }

    /// The trailers of requests, in the order of their ends.
    pub fn trailers(&self) -> Vec<HeaderMap> {
        self.shared.trailers.lock().expect("no test panics while holding this").clone()
    }

    /// Waits for a stream of `/hang` to be reset.
    #[track_caller]
    pub fn reset(&self) -> Reason {
        let last = || self.shared.resets.lock().expect("no test panics while holding this").last().copied();
        wait::for_some("the stream is reset", SOON, last)
    }

    /// Lets those go on that wait.
    pub fn release(&self) {
        self.shared.release.send_replace(());
    }

    /// Tells all connections to go away; what is under way may finish.
    pub fn go_away(&self) {
        self.shared.go_away.notify_waiters();
    }
}

async fn serve(stream: TcpStream, streams_max: Option<u32>, shared: &Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new();
    if let Some(max) = streams_max {
        builder.max_concurrent_streams(max);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = shared.go_away.notified() => {
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, mut respond))) = accepted else { return };
        let left = shared.refusals.load(Ordering::Relaxed);
        if left > 0 {
            shared.refusals.store(left - 1, Ordering::Relaxed);
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        let (head, body) = request.into_parts();
        shared.seen.lock().expect("no test panics while holding this").push(Seen {
            method: head.method.to_string(),
            uri: head.uri.to_string(),
            headers: head.headers.clone(),
        });
        let shared = Arc::clone(shared);
        // From here on a release is not missed.
        let mut released = shared.release.subscribe();
        tokio::spawn(async move {
            let streams = shared.streams.fetch_add(1, Ordering::Relaxed) + 1;
            shared.streams_most.fetch_max(streams, Ordering::Relaxed);
            let request = Request::from_parts(head, body);
            let _ = tokio::time::timeout(PATIENCE, answer(request, &mut respond, &shared, &mut released)).await;
            shared.streams.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn answer(
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    shared: &Shared,
    released: &mut watch::Receiver<()>,
) -> Result<(), h2::Error> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut body = request.into_body();
    let ok = || Response::builder().status(200);
    match path.as_str() {
        // Sends back each piece as it comes.
        "/converse" => {
            let mut send = respond.send_response(ok().body(()).expect("a head"), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                let _ = body.flow_control().release_capacity(data.len());
                push(&mut send, data).await?;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            return send.send_trailers(trailers);
        }
        "/hang" => {
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
            shared.resets.lock().expect("no test panics while holding this").push(reason);
            return Ok(());
        }
        "/reset" => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        "/cut" => {
            let mut send = respond.send_response(ok().body(()).expect("a head"), false)?;
            push(&mut send, Bytes::from_static(b"half of")).await?;
            // A reset would overtake what is not on its way yet.
            let _ = released.changed().await;
            send.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        "/only" => {
            let head = ok().header("grpc-status", "5").body(()).expect("a head");
            return respond.send_response(head, true).map(drop);
        }
        "/hints" => {
            let hints = Response::builder().status(103).header("link", "</a.css>").body(()).expect("a head");
            respond.send_informational(hints)?;
        }
        "/wait" => drop(released.changed().await),
        _ => {}
    }
    let mut hash = Hash::new();
    while let Some(data) = body.data().await {
        let data = data?;
        hash.update(&data);
        let _ = body.flow_control().release_capacity(data.len());
    }
    if let Some(trailers) = body.trailers().await? {
        shared.trailers.lock().expect("no test panics while holding this").push(trailers);
    }
    let bytes: u64 = path.trim_start_matches('/').parse().unwrap_or(0);
    let mut head = ok().header("x-received", hash.digest());
    if query != "unsized" {
        head = head.header("content-length", bytes);
    }
    let mut send = respond.send_response(head.body(()).expect("a head"), false)?;
    let mut payload = Payload::new(bytes, 2);
    while let Some(block) = payload.next_block() {
        push(&mut send, Bytes::copy_from_slice(block)).await?;
    }
    if query == "unsized" {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "abc".parse().expect("a value"));
        return send.send_trailers(trailers);
    }
    send.send_data(Bytes::new(), true)
}

/// Sends as the window allows.
async fn push(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let Some(room) = std::future::poll_fn(|cx| send.poll_capacity(cx)).await else { return Ok(()) };
        let piece = data.split_to(room?.min(data.len()));
        send.send_data(piece, false)?;
    }
    Ok(())
}
