//! The ring against real sockets, threads and clocks.
//!
//! Each test has a runtime of its own on a thread of its own, and a deadline: a lost wake-up shows as a failed test, not
//! as a test run that hangs. Every socket is on loopback.

mod cancel;
mod connect;
mod executor;
mod io;
mod mailbox;
mod pressure;
mod shutdown;
mod threads;
mod timers;

use std::future::Future;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Receive, RingConfig, Runtime, Socket, Turn, now, sleep_until};

/// How long a test may take at all. Far more than any needs, also on a machine that is busy with other builds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs a test's body on a thread of its own, and fails when it does not end in time.
fn bounded<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new().name("ring test".to_owned()).spawn(move || {
        let _ = sender.send(body());
    });
    let thread = thread.expect("a thread");
    match receiver.recv_timeout(DEADLINE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("did not end within {DEADLINE:?}: a wake-up was lost"),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("it sends before it ends"),
        },
    }
}

/// Runs `main` in a runtime with the default sizes.
fn run<T: Send + 'static, F: Future<Output = T>>(main: impl FnOnce() -> F + Send + 'static) -> T {
    run_with(RingConfig::default(), |_| {}, main)
}

/// Runs `main` in a runtime of the given sizes, and shows each turn to `on_turn`.
fn run_with<T: Send + 'static, F: Future<Output = T>>(
    config: RingConfig,
    on_turn: impl FnMut(Turn) + Send + 'static,
    main: impl FnOnce() -> F + Send + 'static,
) -> T {
    bounded(move || runtime(&config).run(async move { main().await }, on_turn))
}

fn runtime(config: &RingConfig) -> Runtime {
    Runtime::new(config).expect("this machine has io_uring")
}

/// Sizes with which limits are reached quickly.
fn small_config() -> RingConfig {
    RingConfig { small_buffers: 64, large_buffers: 8, ..RingConfig::default() }
}

async fn sleep(time: Duration) {
    sleep_until(now() + time).await;
}

async fn sleep_ms(ms: u64) {
    sleep(Duration::from_millis(ms)).await;
}

/// Waits, in small steps, until `holds` or for five seconds at most.
async fn eventually(mut holds: impl FnMut() -> bool) -> bool {
    let give_up = Instant::now() + Duration::from_secs(5);
    while !holds() {
        if Instant::now() > give_up {
            return false;
        }
        sleep_ms(2).await;
    }
    true
}

/// Joins a thread without blocking the runtime.
async fn wait_for<T>(thread: std::thread::JoinHandle<T>) -> T {
    while !thread.is_finished() {
        sleep_ms(2).await;
    }
    thread.join().expect("the peer's thread")
}

fn listen() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a loopback port")
}

/// A connection: the ring's end and a blocking peer whose reads and writes end after ten seconds.
fn pair() -> (Socket, TcpStream) {
    let listener = listen();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    for stream in [&peer, &ours] {
        stream.set_nodelay(true).unwrap();
    }
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    peer.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    (ring_socket(ours), peer)
}

/// A connection with both ends on the ring.
fn ring_pair() -> (Socket, Socket) {
    let (ours, peer) = pair();
    (ours, ring_socket(peer))
}

fn ring_socket(stream: TcpStream) -> Socket {
    stream.set_nonblocking(true).unwrap();
    Socket::from(OwnedFd::from(stream))
}

/// Reads exactly `count` bytes that must be the stream `seed` from `offset` on.
async fn expect_stream(socket: &Socket, seed: u64, offset: u64, count: u64) {
    let mut at = offset;
    while at < offset + count {
        let len = socket.receive(|bytes| check(seed, at, bytes)).await.unwrap().expect("not at its end yet");
        at += len;
    }
    assert_eq!(at, offset + count, "more bytes than were sent");
}

/// A stream of bytes in which each byte follows from the seed and its offset, so that a lost, doubled or swapped byte
/// shows where it happens.
fn pattern(seed: u64, offset: u64) -> u8 {
    let word = mix(seed.wrapping_add(offset / 8));
    (word >> (offset % 8 * 8)) as u8
}

fn stream_bytes(seed: u64, offset: u64, count: usize) -> Vec<u8> {
    (offset..offset + count as u64).map(|at| pattern(seed, at)).collect()
}

/// Compares received bytes with the stream; returns how many they were.
fn check(seed: u64, offset: u64, bytes: &[u8]) -> u64 {
    for (at, byte) in (offset..).zip(bytes) {
        assert_eq!(*byte, pattern(seed, at), "byte {at} of stream {seed}");
    }
    bytes.len() as u64
}

/// Writes part of a stream in pieces of `piece` bytes from a blocking peer.
fn write_stream(peer: &mut TcpStream, seed: u64, count: u64, piece: usize) -> std::io::Result<()> {
    let mut at = 0;
    while at < count {
        let bytes = stream_bytes(seed, at, piece.min((count - at) as usize));
        peer.write_all(&bytes)?;
        at += bytes.len() as u64;
    }
    Ok(())
}

const fn mix(seed: u64) -> u64 {
    // SplitMix64's output function: every bit of the input reaches every bit of the output.
    let mut z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Reproducible chance.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % limit
    }
}

/// Set in the process of a test that runs alone.
const ALONE: &str = "HOSTWARD_TEST_ALONE";

/// Runs a test's body in a process of its own: descriptors and runtimes are counted by process, and other tests of this
/// one come and go meanwhile. The closure stands directly in the test, whose name is that of its type.
fn alone<F: FnOnce()>(body: F) {
    alone_as::<F>(body);
}

/// [`alone`] for a test that `Named` stands in.
fn alone_as<Named>(body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let closure = std::any::type_name::<Named>();
    let (_, path) = closure.split_once("::").expect("a path");
    let name = path.split("::{{closure}}").next().expect("a name");
    let test = std::env::current_exe().expect("the test's own path");
    let output = std::process::Command::new(test).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output();
    let output = output.expect("the test's own process");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {}\n{text}", output.status);
}

/// [`alone`], in a runtime.
fn run_alone<T: Send + 'static, F: Future<Output = T>, B: FnOnce() -> F + Send + 'static>(main: B) {
    alone_as::<B>(|| drop(run(main)));
}

/// [`alone`], on a thread of its own.
fn bounded_alone<B: FnOnce() + Send + 'static>(body: B) {
    alone_as::<B>(|| bounded(body));
}

/// The descriptors this process has open.
fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Threads the kernel made for this thread's ring because an operation had to block.
fn kernel_workers() -> usize {
    let wanted = format!("iou-wrk-{}", rustix::thread::gettid().as_raw_nonzero());
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.trim() == wanted)
        .count()
}
