//! HTTP/1.1 at both ends, read by a parser of our own that accepts only what it must: a client over a TLS session, and an
//! origin that answers as a case says and records exactly what it received.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::payload::{Hash, Payload};
use super::session::{End, Session};
use super::{SOON, wait};

/// The bound on any one read or write of an origin.
const PATIENCE: Duration = Duration::from_secs(60);

/// Most bytes recorded of one connection; cases that send more compare hashes.
const RECORDED_BYTES: usize = 1 << 20;

/// The head of a message: its first line and its fields, in order, as they came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub line: String,
    pub fields: Vec<(String, String)>,
}

/// How a body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// A body that was read to its end.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Body {
    /// Of the content: length and SHA-256.
    pub digest: String,
    /// The content's beginning, at most 64 KiB.
    pub start: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl Body {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.start).into_owned()
    }
}

impl Head {
    fn parse(text: &str) -> Self {
        let mut lines = text.trim_end_matches("\r\n").split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(|line| line.split_once(':').unwrap_or_else(|| panic!("no field: {line:?}")));
        Self { line, fields: fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect() }
    }

    /// The values of a field, whatever its case.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let fields = self.fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that may stand once.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} stands {} times in {self:?}", all.len());
        all.first().copied()
    }

    /// The status of a response.
    #[track_caller]
    pub fn status(&self) -> u16 {
        let code = self.line.split(' ').nth(1).and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no status line: {:?}", self.line))
    }

    pub fn method(&self) -> &str {
        self.line.split(' ').next().unwrap_or_default()
    }

    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    #[track_caller]
    fn framing(&self, default: Framing) -> Framing {
        match (self.get("transfer-encoding"), self.get("content-length")) {
            (None, None) => default,
            (Some(coding), None) => {
                assert_eq!(coding, "chunked");
                Framing::Chunked
            }
            (None, Some(length)) => Framing::Length(length.parse().expect("a length")),
            (Some(_), Some(_)) => panic!("ambiguous: {self:?}"),
        }
    }
}

/// A source of bytes and what was read too much of it.
pub struct Reader<R> {
    pub inner: R,
    pub buffer: Vec<u8>,
}

/// What a reader reads from.
pub trait Source {
    type Error;
    /// At least one byte; 0: the end.
    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, Self::Error>;
    fn ended() -> Self::Error;
}

impl<R: Source> Reader<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, buffer: Vec::new() }
    }

    fn fill(&mut self) -> Result<(), R::Error> {
        let mut block = vec![0; 64 * 1024];
        match self.inner.read_some(&mut block)? {
            0 => Err(R::ended()),
            count => {
                self.buffer.extend_from_slice(&block[..count]);
                Ok(())
            }
        }
    }

    /// Everything up to and with the mark.
    fn up_to(&mut self, mark: &[u8]) -> Result<String, R::Error> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                let rest = self.buffer.split_off(at + mark.len());
                let bytes = std::mem::replace(&mut self.buffer, rest);
                return Ok(String::from_utf8_lossy(&bytes).into_owned());
            }
            self.fill()?;
        }
    }

    pub fn head(&mut self) -> Result<Head, R::Error> {
        self.up_to(b"\r\n\r\n").map(|text| Head::parse(&text))
    }

    fn take(&mut self, mut left: u64, sink: &mut dyn FnMut(&[u8])) -> Result<(), R::Error> {
        while left > 0 {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            sink(&self.buffer[..count]);
            self.buffer.drain(..count);
            left -= count as u64;
        }
        Ok(())
    }

    pub fn body(&mut self, framing: Framing) -> Result<Body, R::Error> {
        let mut hash = Hash::new();
        let mut start = Vec::new();
        let mut trailers = Vec::new();
        let mut sink = |bytes: &[u8]| {
            hash.update(bytes);
            let room = (64 * 1024usize).saturating_sub(start.len()).min(bytes.len());
            start.extend_from_slice(&bytes[..room]);
        };
        match framing {
            Framing::Length(length) => self.take(length, &mut sink)?,
            Framing::Chunked => loop {
                let line = self.up_to(b"\r\n")?;
                let size = u64::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("no size: {line:?}"));
                if size == 0 {
                    loop {
                        let line = self.up_to(b"\r\n")?;
                        let Some((name, value)) = line.trim_end().split_once(':') else { break };
                        trailers.push((name.to_owned(), value.trim().to_owned()));
                    }
                    break;
                }
                self.take(size, &mut sink)?;
                let end = self.up_to(b"\r\n")?;
                assert_eq!(end, "\r\n", "a chunk is longer than it says");
            },
            Framing::UntilClose => loop {
                let bytes = std::mem::take(&mut self.buffer);
                sink(&bytes);
                let mut block = vec![0; 64 * 1024];
                match self.inner.read_some(&mut block)? {
                    0 => break,
                    count => self.buffer.extend_from_slice(&block[..count]),
                }
            },
        }
        Ok(Body { digest: hash.digest(), start, trailers })
    }
}

/// A response, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// Those before the final one.
    pub interim: Vec<Head>,
    pub head: Head,
    pub body: Body,
}

impl Response {
    pub fn status(&self) -> u16 {
        self.head.status()
    }
}

impl Source for Session {
    type Error = End;

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize, End> {
        match self.receive_some(buffer) {
            Err(End::CloseNotify) => Ok(0),
            result => result,
        }
    }

    fn ended() -> End {
        End::CloseNotify
    }
}

/// An HTTP client on one connection.
pub struct Http {
    pub reader: Reader<Session>,
}

impl Http {
    pub fn new(session: Session) -> Self {
        Self { reader: Reader::new(session) }
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.reader.inner
    }

    /// Sends text as it is.
    pub fn send(&mut self, text: &str) -> Result<(), End> {
        self.session().send(text.as_bytes())
    }

    /// Reads one response; `to_head`: it has no body.
    pub fn response_to(&mut self, to_head: bool) -> Result<Response, End> {
        let mut interim = Vec::new();
        loop {
            let head = self.reader.head()?;
            let status = head.status();
            if (100..200).contains(&status) && status != 101 {
                interim.push(head);
                continue;
            }
            let bodiless = to_head || matches!(status, 101 | 204 | 304);
            let framing = if bodiless { Framing::Length(0) } else { head.framing(Framing::UntilClose) };
            let body = self.reader.body(framing)?;
            return Ok(Response { interim, head, body });
        }
    }

    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to(false).unwrap_or_else(|end| panic!("no response: {end:?}, {:?}", self.reader.buffer))
    }

    /// A request of this text, and its response.
    #[track_caller]
    pub fn ask(&mut self, text: &str) -> Response {
        self.send(text).unwrap_or_else(|end| panic!("not sent: {end:?}"));
        self.response()
    }

    /// GET of a path.
    #[track_caller]
    pub fn get(&mut self, host: &str, path: &str) -> Response {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }

    /// Reads to the end of the connection.
    pub fn end(&mut self) -> End {
        let (_, end) = self.session().drain();
        end
    }
}

/// Writes a payload as a body, with a head before it; returns its digest.
pub fn send_body(
    head: &str,
    framing: Framing,
    mut payload: Payload,
    trailers: &str,
    mut send: impl FnMut(&[u8]) -> bool,
) -> String {
    let mut open = send(head.as_bytes());
    while let Some(block) = payload.next_block() {
        if framing == Framing::Chunked {
            open = open && send(format!("{:x}\r\n", block.len()).as_bytes());
        }
        open = open && send(block);
        if framing == Framing::Chunked {
            open = open && send(b"\r\n");
        }
    }
    if framing == Framing::Chunked && open {
        send(format!("0\r\n{trailers}\r\n").as_bytes());
    }
    payload.digest()
}

/// One connection of an origin, in the hands of its script.
pub struct Conversation {
    pub reader: Reader<Recorded>,
    /// Counted from 0, on this connection.
    pub request: usize,
    shared: Arc<Shared>,
}

/// A stream whose bytes are recorded as they are read.
pub struct Recorded {
    stream: TcpStream,
    connection: usize,
    shared: Arc<Shared>,
}

impl Source for Recorded {
    type Error = io::Error;

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.stream.read(buffer) {
            Ok(count) => count,
            Err(error) => {
                self.shared.resets.fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        let mut raw = self.shared.raw.lock().expect("no test panics while holding this");
        let room = RECORDED_BYTES.saturating_sub(raw[self.connection].len()).min(count);
        raw[self.connection].extend_from_slice(&buffer[..room]);
        Ok(count)
    }

    fn ended() -> io::Error {
        io::ErrorKind::UnexpectedEof.into()
    }
}

impl Conversation {
    /// Reads the body of a request.
    pub fn body(&mut self, head: &Head) -> io::Result<Body> {
        self.reader.body(head.framing(Framing::Length(0)))
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.inner.stream.write_all(bytes.as_ref())
    }

    /// A response of this status, with a body of known length.
    pub fn answer(&mut self, status: &str, body: &str) -> io::Result<()> {
        self.send(format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    }

    /// Waits for [`HttpOrigin::release`].
    pub fn wait_for_release(&self) {
        let released = self.shared.released.lock().expect("no test panics while holding this");
        let _ = self.shared.release.wait_timeout_while(released, PATIENCE, |released| !*released);
    }

    /// Ends the sending side.
    pub fn finish(&self) {
        let _ = self.reader.inner.stream.shutdown(Shutdown::Write);
    }

    /// Makes the coming close a reset.
    pub fn reset(&self) {
        let _ = socket2::SockRef::from(&self.reader.inner.stream).set_linger(Some(Duration::ZERO));
    }

    /// The connection, for what is no HTTP.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.reader.inner.stream
    }
}

struct Shared {
    accepted: AtomicU64,
    open: AtomicU64,
    resets: AtomicU64,
    closed: AtomicBool,
    /// The heads of all requests, in the order in which they were read, with their connection.
    heads: Mutex<Vec<(usize, Head)>>,
    /// Every byte read, for each connection.
    raw: Mutex<Vec<Vec<u8>>>,
    released: Mutex<bool>,
    release: Condvar,
}

/// What an origin does with a request; an error ends the connection.
pub type Script = dyn Fn(&Head, &mut Conversation) -> io::Result<()> + Send + Sync;

/// An origin that speaks HTTP/1.1 by a script, a thread for each connection.
pub struct HttpOrigin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl HttpOrigin {
    pub fn start(script: impl Fn(&Head, &mut Conversation) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::start_at(TcpListener::bind("127.0.0.1:0").expect("a listener"), script)
    }

    /// The same at a listener that is there already.
    pub fn start_at(
        listener: TcpListener,
        script: impl Fn(&Head, &mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            accepted: AtomicU64::new(0),
            open: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            heads: Mutex::default(),
            raw: Mutex::default(),
            released: Mutex::default(),
            release: Condvar::new(),
        });
        let script: Arc<Script> = Arc::new(script);
        let origin = Self { address, shared: Arc::clone(&shared) };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.closed.load(Ordering::Acquire) {
                    return;
                }
                let (shared, script) = (Arc::clone(&shared), Arc::clone(&script));
                let connection = usize::try_from(shared.accepted.fetch_add(1, Ordering::Relaxed)).expect("a count");
                shared.open.fetch_add(1, Ordering::Relaxed);
                shared.raw.lock().expect("no test panics while holding this").push(Vec::new());
                std::thread::spawn(move || {
                    let _ = converse(stream, connection, &shared, &*script);
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        origin
    }

    /// Answers every request with 200 and a name.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |head, talk| {
            talk.body(head)?;
            talk.answer("200 OK", name)
        })
    }

    /// Answers every request with 200 and its own head as text.
    pub fn mirror() -> Self {
        Self::start(|head, talk| {
            talk.body(head)?;
            let mut text = format!("{}\n", head.line);
            for (name, value) in &head.fields {
                text += &format!("{name}: {value}\n");
            }
            talk.answer("200 OK", &text)
        })
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    pub fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Connections that were reset.
    pub fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Relaxed)
    }

    /// The heads of all requests so far, with the connection each came over.
    pub fn heads(&self) -> Vec<(usize, Head)> {
        self.shared.heads.lock().expect("no test panics while holding this").clone()
    }

    /// Waits for a request and returns its head; counted from 0.
    #[track_caller]
    pub fn head(&self, index: usize) -> Head {
        wait::for_some("the origin has the request", SOON, || self.heads().get(index).map(|(_, head)| head.clone()))
    }

    /// Every byte that came over a connection.
    pub fn raw(&self, connection: usize) -> Vec<u8> {
        self.shared.raw.lock().expect("no test panics while holding this")[connection].clone()
    }

    /// Lets those go on that wait.
    pub fn release(&self) {
        *self.shared.released.lock().expect("no test panics while holding this") = true;
        self.shared.release.notify_all();
    }
}

/// An address that refuses connections until somebody listens there.
pub struct Vacant {
    socket: socket2::Socket,
    pub address: SocketAddr,
}

impl Vacant {
    pub fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("an address");
        Self { socket, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it accepts.
    pub fn listen(self) -> TcpListener {
        self.socket.listen(64).expect("a listener");
        self.socket.into()
    }
}

fn converse(stream: TcpStream, connection: usize, shared: &Arc<Shared>, script: &Script) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let recorded = Recorded { stream, connection, shared: Arc::clone(shared) };
    let mut talk = Conversation { reader: Reader::new(recorded), request: 0, shared: Arc::clone(shared) };
    loop {
        let head = talk.reader.head()?;
        shared.heads.lock().expect("no test panics while holding this").push((connection, head.clone()));
        script(&head, &mut talk)?;
        talk.request += 1;
    }
}
