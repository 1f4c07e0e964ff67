//! Origins that behave or misbehave on demand: a thread for each connection, every one bounded in time.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::payload::{Hash, Payload};
use super::proxy_header::ProxyHeader;
use super::{SOON, wait};

/// The bound on any one read or write of an origin: a test that takes longer has failed elsewhere already.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection's thread reads and writes, no more: a thousand of them must be cheap.
const STACK_BYTES: usize = 256 * 1024;

/// What an origin does with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// Sends back what comes, until the end.
    Echo,
    /// Reads a PROXY v2 header first, then echoes.
    ProxyEcho,
    /// Reads to the end, answers with length and SHA-256, closes.
    Hash,
    /// Reads nothing until [`Origin::release`], then like `Hash`.
    HashOnRelease,
    /// Sends this many bytes of the stream of seed 1, says that this was all, then reads to the end.
    Source(u64),
    /// Reads this many bytes and resets the connection.
    ResetAfter(u64),
    /// Reads one byte and closes without having read the rest.
    CloseAfterOne,
    /// Accepts, and does nothing until [`Origin::release`].
    Stall,
    /// Says which origin this is, and closes.
    Name(&'static str),
}

/// How the bytes from the edge ended, as the origin saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Last {
    /// An orderly end, after bytes of this digest.
    End(String),
    /// A reset: the origin knows that something is missing.
    Reset,
}

/// A listening origin. The threads of its connections end with the test's process.
pub struct Origin {
    url: String,
    address: Option<SocketAddr>,
    shared: Arc<Shared>,
}

struct Shared {
    manner: Manner,
    accepted: AtomicU64,
    open: AtomicU64,
    /// Bytes read from the edge, and bytes written to it.
    read: AtomicU64,
    written: AtomicU64,
    headers: Mutex<Vec<ProxyHeader>>,
    lasts: Mutex<Vec<Last>>,
    released: Mutex<bool>,
    release: Condvar,
    closed: AtomicBool,
}

impl Origin {
    /// Listens on a port the kernel chooses.
    pub fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let origin = Self { url: format!("tcp://{address}"), address: Some(address), shared: Shared::new(manner) };
        let shared = Arc::clone(&origin.shared);
        spawn(move || {
            for socket in listener.incoming() {
                if shared.closed.load(Ordering::Acquire) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let _ = socket.set_nodelay(true);
                Shared::serve(&shared, socket);
            }
        });
        origin
    }

    /// Listens on a Unix-domain socket in the directory.
    pub fn start_unix(manner: Manner, directory: &Path) -> Self {
        let path = directory.join("origin.sock");
        let listener = UnixListener::bind(&path).expect("a listener");
        let origin = Self { url: format!("unix:{}", path.display()), address: None, shared: Shared::new(manner) };
        let shared = Arc::clone(&origin.shared);
        spawn(move || listener.incoming().flatten().for_each(|socket| Shared::serve(&shared, socket)));
        origin
    }

    pub fn echo() -> Self {
        Self::start(Manner::Echo)
    }

    /// The origin's URL in the configuration.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Connections that are open now.
    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Bytes read so far, all connections together.
    pub fn read(&self) -> u64 {
        self.shared.read.load(Ordering::Relaxed)
    }

    /// Bytes written so far, all connections together.
    pub fn written(&self) -> u64 {
        self.shared.written.load(Ordering::Relaxed)
    }

    /// Lets those go on that wait.
    pub fn release(&self) {
        *self.shared.released.lock().expect("no test panics while holding this") = true;
        self.shared.release.notify_all();
    }

    /// The PROXY header read last; the connection it came over must have been used already.
    #[track_caller]
    pub fn last_header(&self) -> ProxyHeader {
        let headers = self.shared.headers.lock().expect("no test panics while holding this");
        headers.last().expect("a PROXY header").clone()
    }

    /// How the connection that ended at this place ended, counted from 0.
    #[track_caller]
    pub fn last(&self, index: usize) -> Last {
        wait::for_some("the origin has seen the end of a connection", SOON, || {
            self.shared.lasts.lock().expect("no test panics while holding this").get(index).cloned()
        })
    }

    /// Stops listening: later connections are refused.
    pub fn stop_listening(&self) {
        self.shared.closed.store(true, Ordering::Release);
        let address = self.address.expect("a TCP origin");
        wait::until("the origin's port is closed", SOON, || {
            TcpStream::connect_timeout(&address, SOON).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
        });
    }
}

/// An address on which nobody listens.
pub fn dead_url() -> String {
    // Bound and never listening: connecting is refused, and nobody else gets the port while the value lives.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
    std::mem::forget(socket);
    format!("tcp://{address}")
}

/// An address that neither accepts nor refuses: a listener whose queue is full drops what knocks.
pub struct BlackHole {
    url: String,
    _held: Vec<socket2::Socket>,
}

impl BlackHole {
    pub fn start() -> Self {
        let new = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let listener = new();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        listener.listen(0).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let url = format!("tcp://{}", address.as_socket().expect("an IP address"));
        let mut held = vec![listener];
        // A queue of length 0 still takes one or two (the kernel counts generously): fill it until one gets no answer.
        for _ in 0..16 {
            let socket = new();
            let answer = socket.connect_timeout(&address, Duration::from_millis(200));
            held.push(socket);
            if answer.is_err() {
                return Self { url, _held: held };
            }
        }
        panic!("the listener's queue never filled");
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}

/// What origins need of a stream, TCP or Unix.
trait Stream: Read + Write + Send + 'static {
    fn finish(&self);
    fn reset(&self);
    fn bound(&self);
}

impl Stream for TcpStream {
    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
    fn reset(&self) {
        let _ = socket2::SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
    fn bound(&self) {
        let _ = self.set_read_timeout(Some(PATIENCE));
        let _ = self.set_write_timeout(Some(PATIENCE));
    }
}

impl Stream for UnixStream {
    fn finish(&self) {
        let _ = self.shutdown(Shutdown::Write);
    }
    fn reset(&self) {}
    fn bound(&self) {
        let _ = self.set_read_timeout(Some(PATIENCE));
        let _ = self.set_write_timeout(Some(PATIENCE));
    }
}

impl Shared {
    fn new(manner: Manner) -> Arc<Self> {
        Arc::new(Self {
            manner,
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            headers: Mutex::default(),
            lasts: Mutex::default(),
            released: Mutex::default(),
            release: Condvar::new(),
            closed: AtomicBool::new(false),
        })
    }

    fn serve(shared: &Arc<Self>, socket: impl Stream) {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        shared.open.fetch_add(1, Ordering::Relaxed);
        socket.bound();
        let shared = Arc::clone(shared);
        spawn(move || {
            let last = shared.converse(socket);
            if let Some(last) = last {
                shared.lasts.lock().expect("no test panics while holding this").push(last);
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// One connection to its end; how the edge's bytes ended, where that was read.
    fn converse(&self, mut socket: impl Stream) -> Option<Last> {
        match self.manner {
            Manner::Echo => Some(self.read_to_end(&mut socket, true)),
            Manner::ProxyEcho => {
                let header = ProxyHeader::read(&mut socket).ok()?;
                self.headers.lock().expect("no test panics while holding this").push(header);
                Some(self.read_to_end(&mut socket, true))
            }
            Manner::Hash => Some(self.hash(&mut socket)),
            Manner::HashOnRelease => {
                self.wait_for_release();
                Some(self.hash(&mut socket))
            }
            Manner::Source(bytes) => {
                let mut payload = Payload::new(bytes, 1);
                while let Some(block) = payload.next_block() {
                    self.write(&mut socket, block).ok()?;
                }
                socket.finish();
                Some(self.read_to_end(&mut socket, false))
            }
            Manner::ResetAfter(bytes) => {
                let _ = io::copy(&mut Read::by_ref(&mut socket).take(bytes), &mut io::sink());
                socket.reset();
                None
            }
            Manner::CloseAfterOne => {
                let _ = socket.read(&mut [0]);
                None
            }
            Manner::Stall => {
                self.wait_for_release();
                None
            }
            Manner::Name(name) => {
                let _ = self.write(&mut socket, name.as_bytes());
                socket.finish();
                Some(self.read_to_end(&mut socket, false))
            }
        }
    }

    fn hash(&self, socket: &mut impl Stream) -> Last {
        let last = self.read_to_end(socket, false);
        if let Last::End(digest) = &last {
            let _ = self.write(socket, digest.as_bytes());
        }
        last
    }

    fn read_to_end(&self, socket: &mut impl Stream, echo: bool) -> Last {
        let mut hash = Hash::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => {
                    if echo {
                        socket.finish();
                    }
                    return Last::End(hash.digest());
                }
                Ok(count) => {
                    hash.update(&buffer[..count]);
                    self.read.fetch_add(count as u64, Ordering::Relaxed);
                    if echo && self.write(socket, &buffer[..count]).is_err() {
                        return Last::Reset;
                    }
                }
                Err(_) => return Last::Reset,
            }
        }
    }

    /// Writes in small steps, so that [`Origin::written`] moves as the edge reads.
    fn write(&self, socket: &mut impl Stream, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = socket.write(bytes)?;
            self.written.fetch_add(count as u64, Ordering::Relaxed);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    fn wait_for_release(&self) {
        let released = self.released.lock().expect("no test panics while holding this");
        let _ = self.release.wait_timeout_while(released, PATIENCE, |released| !*released);
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(STACK_BYTES).spawn(body).expect("a thread");
}
