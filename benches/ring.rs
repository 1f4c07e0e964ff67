//! The same TLS echo over three ways to do I/O: tokio on epoll, tokio-uring, and Hostward's own ring.
//!
//! The reason why Hostward has a ring of its own, kept measurable. One server thread on one core, one client thread (tokio
//! and tokio-rustls, the same for all three) on another; rustls and the echo are the same code for all three, only the
//! reading and writing differs. Two loads: messages of 1 KiB over 64 connections, one in flight on each; and full handshakes
//! with one message each, 64 at once. What is printed is CPU time of the server's thread (`getrusage(RUSAGE_THREAD)`, so
//! the kernel's share is in it) for each message or handshake: the median over interleaved rounds, and how it compares
//! with tokio. The loopback's packet processing is in all of them alike and is the larger part of a message.
//!
//! `make bench` runs it, or `cargo bench --bench ring`; on a machine with two cores that has nothing else to do.
//! `ROUNDS=21 cargo bench --bench ring` for narrower medians. Without `--bench` (as a test runner starts it) each load is
//! run once with few operations.

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use hostward::ring::{Listener, Receive, RingConfig, Runtime, Sender as MailboxSender, Socket, mailbox};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;

/// Connections with a message in flight, or handshakes at once.
const CONNECTIONS: usize = 64;
/// Bytes of a message.
const MESSAGE_BYTES: usize = 1024;
/// Messages of one measured round: about half a second of server time.
const MESSAGES: usize = 64_000;
/// Handshakes of one measured round.
const HANDSHAKES: usize = 4_000;
/// Rounds whose median is printed, unless `ROUNDS` says otherwise.
const ROUNDS: usize = 9;
/// What a server without provided buffers reads into: one TLS record and its header.
const READ_BYTES: usize = 16 * 1024 + 512;

/// The first byte of a message that asks the server to note its CPU time.
const MARK: u8 = 1;

#[derive(Clone, Copy, PartialEq)]
enum Server {
    Tokio,
    TokioUring,
    Ring,
}

const SERVERS: [(Server, &str); 3] =
    [(Server::Tokio, "tokio (epoll)"), (Server::TokioUring, "tokio-uring"), (Server::Ring, "hostward::ring")];

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return; // A test runner asks for tests; there are none.
    }
    let measured = arguments.iter().any(|argument| argument == "--bench");
    let (rounds, messages, handshakes) = if measured {
        let rounds = std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
        (rounds, MESSAGES, HANDSHAKES)
    } else {
        (1, 640, 64)
    };
    let tls = Tls::new();
    let cores = cores();
    let mut samples = vec![(Vec::new(), Vec::new()); SERVERS.len()];
    // One round more: the first one warms caches and clocks up and is not counted.
    for round in 0..=rounds {
        for (place, (server, _)) in SERVERS.iter().enumerate() {
            let (echo, handshake) = measure(*server, &tls, cores, messages, handshakes);
            if round > 0 {
                samples[place].0.push(echo);
                samples[place].1.push(handshake);
            }
        }
    }
    println!("CPU of the server's thread, us each; medians of {rounds} interleaved rounds, {CONNECTIONS} connections");
    println!("{:<16} {:>12} {:>10} {:>16} {:>10}", "server", "1 KiB echo", "of tokio", "full handshake", "of tokio");
    let results: Vec<_> = samples.into_iter().map(|(echo, handshake)| (median(echo), median(handshake))).collect();
    for ((_, name), (echo, handshake)) in SERVERS.iter().zip(&results) {
        let (echo_share, handshake_share) = (echo / results[0].0, handshake / results[0].1);
        println!("{name:<16} {echo:>12.2} {echo_share:>10.2} {handshake:>16.1} {handshake_share:>10.2}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One round of one server: microseconds for each message and for each handshake.
fn measure(server: Server, tls: &Tls, cores: [usize; 2], messages: usize, handshakes: usize) -> (f64, f64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    listener.set_nonblocking(true).expect("a socket option");
    let marks = Arc::new(AtomicU64::new(0));
    let (config, noted) = (Arc::clone(&tls.server), Arc::clone(&marks));
    let (ready, stops) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        pin_to(cores[0]);
        match server {
            Server::Tokio => serve_with_tokio(listener, config, noted, &ready),
            Server::TokioUring => serve_with_tokio_uring(listener, config, noted, &ready),
            Server::Ring => serve_with_ring(listener, config, noted, &ready),
        }
    });
    let stop = stops.recv().expect("the server starts");
    let client = Arc::clone(&tls.client);
    let load = std::thread::spawn(move || {
        pin_to(cores[1]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let limit = Duration::from_secs(120);
        runtime.block_on(async {
            tokio::time::timeout(limit, load(address, client, &marks, messages, handshakes)).await.expect("in time")
        })
    });
    let result = load.join().expect("the client");
    stop();
    thread.join().expect("the server");
    result
}

// --- the client -----------------------------------------------------------------------------------------------------

type ClientStream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn load(
    address: SocketAddr,
    config: Arc<ClientConfig>,
    marks: &AtomicU64,
    messages: usize,
    handshakes: usize,
) -> (f64, f64) {
    let mut control = connect(address, &config).await;
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = connect(address, &config).await;
        exchange(&mut stream, 0).await;
        streams.push(stream);
    }
    let each = messages / CONNECTIONS;
    let before = mark(&mut control, marks).await;
    let tasks: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                for _ in 0..each {
                    exchange(&mut stream, 0).await;
                }
                stream
            })
        })
        .collect();
    let mut kept = Vec::new();
    for task in tasks {
        kept.push(task.await.expect("a client task"));
    }
    let echo = (mark(&mut control, marks).await - before) as f64 / 1000.0 / (each * CONNECTIONS) as f64;

    let each = handshakes / CONNECTIONS;
    let before = mark(&mut control, marks).await;
    let tasks: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let config = Arc::clone(&config);
            tokio::spawn(async move {
                for _ in 0..each {
                    let mut stream = connect(address, &config).await;
                    exchange(&mut stream, 0).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client task");
    }
    let handshake = (mark(&mut control, marks).await - before) as f64 / 1000.0 / (each * CONNECTIONS) as f64;
    (echo, handshake)
}

async fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> ClientStream {
    let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
    stream.set_nodelay(true).expect("a socket option");
    let name = ServerName::try_from("bench.test").expect("a name");
    TlsConnector::from(Arc::clone(config)).connect(name, stream).await.expect("a handshake")
}

async fn exchange(stream: &mut ClientStream, first: u8) {
    let mut message = [0; MESSAGE_BYTES];
    message[0] = first;
    stream.write_all(&message).await.expect("sent");
    stream.read_exact(&mut message).await.expect("echoed");
}

/// The CPU time of the server's thread, in nanoseconds, as it notes it before it echoes.
async fn mark(control: &mut ClientStream, marks: &AtomicU64) -> u64 {
    exchange(control, MARK).await;
    marks.load(Ordering::Acquire)
}

// --- the servers ----------------------------------------------------------------------------------------------------

/// Ends a server; called once.
type Stop = Box<dyn FnOnce() + Send>;

/// One connection's TLS, the same for all servers: ciphertext in, ciphertext out.
struct Echo {
    tls: ServerConnection,
    marks: Arc<AtomicU64>,
}

impl Echo {
    fn new(config: &Arc<ServerConfig>, marks: &Arc<AtomicU64>) -> Self {
        let tls = ServerConnection::new(Arc::clone(config)).expect("a server connection");
        Self { tls, marks: Arc::clone(marks) }
    }

    /// Takes what was received and appends what is to be sent. False: the connection is over.
    fn feed(&mut self, received: &[u8], out: &mut Vec<u8>) -> bool {
        let mut rest = received;
        while !rest.is_empty() {
            if self.tls.read_tls(&mut rest).is_err() || self.tls.process_new_packets().is_err() {
                return false;
            }
            let mut plain = [0; 4096];
            while let Ok(count @ 1..) = self.tls.reader().read(&mut plain) {
                if plain[0] == MARK {
                    self.marks.store(thread_cpu_ns(), Ordering::Release);
                }
                std::io::Write::write_all(&mut self.tls.writer(), &plain[..count]).expect("rustls buffers");
            }
        }
        while self.tls.wants_write() {
            self.tls.write_tls(out).expect("a vector takes all");
        }
        true
    }
}

fn serve_with_tokio(listener: TcpListener, config: Arc<ServerConfig>, marks: Arc<AtomicU64>, ready: &Sender<Stop>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let (stop, mut stopped) = oneshot::channel::<()>();
        ready.send(Box::new(move || drop(stop))).expect("the bench waits");
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = &mut stopped => return,
            };
            let (mut stream, _) = accepted.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            let mut echo = Echo::new(&config, &marks);
            tokio::spawn(async move {
                let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    let alive = echo.feed(&buffer[..count], &mut out);
                    if stream.write_all(&out).await.is_err() || !alive {
                        return;
                    }
                    out.clear();
                }
            });
        }
    });
}

fn serve_with_tokio_uring(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    marks: Arc<AtomicU64>,
    ready: &Sender<Stop>,
) {
    // The best set-up it can run with: it cannot wait in the ring, so DEFER_TASKRUN is out of its reach.
    let mut ring = tokio_uring::uring_builder();
    ring.setup_single_issuer().setup_coop_taskrun();
    let mut builder = tokio_uring::builder();
    builder.entries(1024).uring_builder(&ring);
    builder.start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        let (stop, mut stopped) = oneshot::channel::<()>();
        ready.send(Box::new(move || drop(stop))).expect("the bench waits");
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = &mut stopped => return,
            };
            let (stream, _) = accepted.expect("a connection");
            stream.set_nodelay(true).expect("a socket option");
            let mut echo = Echo::new(&config, &marks);
            tokio_uring::spawn(async move {
                let (mut buffer, mut out) = (vec![0; READ_BYTES], Vec::new());
                loop {
                    let (result, filled) = stream.read(buffer).await;
                    let Ok(count @ 1..) = result else { return };
                    let alive = echo.feed(&filled[..count], &mut out);
                    buffer = filled;
                    if !out.is_empty() {
                        let (result, sent) = stream.write_all(out).await;
                        out = sent;
                        if result.is_err() {
                            return;
                        }
                    }
                    if !alive {
                        return;
                    }
                    out.clear();
                }
            });
        }
    });
}

fn serve_with_ring(listener: TcpListener, config: Arc<ServerConfig>, marks: Arc<AtomicU64>, ready: &Sender<Stop>) {
    let runtime = Runtime::new(&RingConfig::default()).expect("io_uring");
    let main = async {
        let (stop, stopped): (MailboxSender<()>, _) = mailbox();
        ready.send(Box::new(move || stop.send(()))).expect("the bench waits");
        hostward::ring::spawn(async move {
            let listener = Listener::new(listener);
            loop {
                let socket = Socket::from(listener.accept().await.expect("a connection"));
                socket2::SockRef::from(&socket).set_tcp_nodelay(true).expect("a socket option");
                let mut echo = Echo::new(&config, &marks);
                hostward::ring::spawn(async move {
                    let mut out = Vec::new();
                    while let Ok(Some(alive)) = socket.receive(|bytes| echo.feed(bytes, &mut out)).await {
                        if !echo.tls.is_handshaking() {
                            socket.set_receive(Receive::Stream);
                        }
                        if !out.is_empty() {
                            let (result, sent) = socket.send(out).await;
                            out = sent;
                            if result.is_err() {
                                return;
                            }
                        }
                        if !alive {
                            return;
                        }
                        out.clear();
                    }
                });
            }
        });
        stopped.claim().receive().await;
    };
    runtime.run(main, |_| {});
}

// --- the machine ----------------------------------------------------------------------------------------------------

/// User and system time of this thread, in nanoseconds.
fn thread_cpu_ns() -> u64 {
    // SAFETY: an rusage of zeros is valid, and getrusage fills it in.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0, "getrusage");
        usage
    };
    let time = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
    (time(usage.ru_utime) + time(usage.ru_stime)) * 1000
}

/// The first and the last core this process may use: the server's and the client's.
fn cores() -> [usize; 2] {
    let allowed = rustix::thread::sched_getaffinity(None).expect("an affinity");
    let usable: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).collect();
    [usable[0], usable[usable.len() - 1]]
}

fn pin_to(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set).expect("a core of our own");
}

// --- TLS ------------------------------------------------------------------------------------------------------------

struct Tls {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Tls {
    /// A P-256 certificate and its trust; every handshake is a full one.
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["bench.test".to_owned()]).expect("a name");
        let certificate: CertificateDer<'static> = params.self_signed(&key).expect("a certificate").into();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
            .expect("a certificate and its key");
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        Self { server: Arc::new(server), client: Arc::new(client) }
    }
}
