//! WebSockets (RFC 6455) through an edge: a client's end over whatever carries it, and an origin that does as its path says.
//!
//! The frames are those of the crate `tungstenite`; the handshake is done here, so that a carrier may have another one. Every
//! byte is hashed at both ends: what one sent and the other received is compared by [`Scene::expect_untouched`], which an edge
//! that takes frames apart (and masks them anew, say) does not survive.

use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Ping, Reason, RecvStream, SendStream};
use rustls::pki_types::ServerName;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;
use tungstenite::protocol::Role;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame};
use tungstenite::{Error, Message, WebSocket};

use super::http::{Conversation, Head, Http, HttpOrigin};
use super::payload::Hash;
use super::session::{End, Session};
use super::{ACME, Edge, SOON, Settings, World, wait};

/// One end of a tunnel: bytes both ways, after the handshake.
pub trait Tunnel: Read + Write + Send {
    /// Says that nothing more will be sent, and goes on reading.
    fn finish(&mut self);
    /// Breaks it off, so that the other end must notice that something may be missing.
    fn cut(&mut self);
}

/// Opens a tunnel through an edge to a path of its origin.
pub type Open = fn(&Scene, path: &str) -> Box<dyn Tunnel>;

/// What carries a client's tunnels. Each case runs over all of them.
pub const CARRIERS: [(&str, Open); 2] = [("HTTP/1.1", over_http1), ("HTTP/2", over_http2)];

/// An edge with one hostname, whose origin speaks WebSocket.
pub struct Scene {
    pub world: World,
    pub origin: HttpOrigin,
    pub edge: Edge,
    heard: Heard,
}

/// The hashes of what the origin received and sent, and the error of its socket by which it ended, tunnel by tunnel, in the
/// order in which they ended.
type Heard = Arc<Mutex<Vec<(Hashes, Option<ErrorKind>)>>>;

#[derive(Clone, PartialEq, Eq, Debug)]
struct Hashes {
    received: String,
    sent: String,
}

/// A stream whose bytes are hashed as they pass.
pub struct Tap<S> {
    stream: S,
    received: Hash,
    sent: Hash,
}

/// A client's WebSocket.
pub type Socket = WebSocket<Tap<Box<dyn Tunnel>>>;

impl Scene {
    /// With what `change` makes of the settings.
    pub fn new(change: impl FnOnce(Settings) -> Settings) -> Self {
        let world = World::new();
        let heard = Heard::default();
        let into = Arc::clone(&heard);
        let origin = HttpOrigin::start(move |head, talk| serve(head, talk, &into));
        let edge = Edge::start(change(world.settings().host(world.http_host(ACME, &origin))));
        Self { world, origin, edge, heard }
    }

    /// Connects to a path of the origin.
    pub fn connect(&self, open: Open, path: &str) -> Socket {
        WebSocket::from_raw_socket(Tap::new(open(self, path)), Role::Client, None)
    }

    /// Compares what a client sent and received with what the origin did, to the byte. Its tunnel must be the one that ended
    /// last.
    #[track_caller]
    pub fn expect_untouched(&self, socket: Socket) {
        let Tap { received, sent, stream } = socket.into_inner();
        let ours = Hashes { received: sent.digest(), sent: received.digest() };
        drop(stream);
        wait::for_value("what the origin received and sent", SOON, &Some(ours), || {
            self.heard.lock().expect("no test panics while holding this").last().map(|(hashes, _)| hashes.clone())
        });
    }

    /// How many tunnels have ended at the origin.
    pub fn ended(&self) -> usize {
        self.heard.lock().expect("no test panics while holding this").len()
    }

    /// The error of the origin's socket by which the tunnel of this place ended, counted from 0; `None`: it ended in order.
    #[track_caller]
    pub fn error_of(&self, index: usize) -> Option<ErrorKind> {
        wait::until("the origin has seen the end", SOON, || self.ended() > index);
        self.heard.lock().expect("no test panics while holding this")[index].1
    }
}

impl<S> Tap<S> {
    fn new(stream: S) -> Self {
        Self { stream, received: Hash::new(), sent: Hash::new() }
    }

    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }
}

impl<S: Read> Read for Tap<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.received.update(&buffer[..count]);
        Ok(count)
    }
}

impl<S: Write> Write for Tap<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.sent.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A TLS session that has become a tunnel.
struct Http1 {
    session: Option<Session>,
    /// What came with the answer to the handshake.
    early: Vec<u8>,
}

/// By an upgrade of HTTP/1.1 (RFC 6455 section 4).
fn over_http1(scene: &Scene, path: &str) -> Box<dyn Tunnel> {
    let key = STANDARD.encode(b"sixteen bytes ..");
    let session = scene.world.client().open(scene.edge.address(), ACME).expect("a connection");
    let mut http = Http::new(session);
    let response = http.ask(&format!(
        "GET {path} HTTP/1.1\r\nHost: {ACME}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: {key}\r\n\r\n"
    ));
    assert_eq!(response.status(), 101, "{:?}", response.head);
    assert_eq!(response.head.get("sec-websocket-accept"), Some(accept(&key).as_str()));
    Box::new(Http1 { session: Some(http.reader.inner), early: http.reader.buffer })
}

/// The answer to a handshake's key (RFC 6455 section 4.2.2).
fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

fn as_error(end: End) -> io::Error {
    let kind = match end {
        End::TimedOut => ErrorKind::TimedOut,
        End::Reset => ErrorKind::ConnectionReset,
        End::Truncated => ErrorKind::UnexpectedEof,
        _ => ErrorKind::Other,
    };
    io::Error::new(kind, format!("{end:?}"))
}

impl Http1 {
    fn session(&mut self) -> io::Result<&mut Session> {
        self.session.as_mut().ok_or_else(|| ErrorKind::NotConnected.into())
    }
}

impl Read for Http1 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.early.is_empty() {
            return match self.session()?.receive_some(buffer) {
                Ok(count) => Ok(count),
                Err(End::CloseNotify) => Ok(0),
                Err(end) => Err(as_error(end)),
            };
        }
        let count = self.early.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.early[..count]);
        self.early.drain(..count);
        Ok(count)
    }
}

impl Write for Http1 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.session()?.send(bytes).map(|()| bytes.len()).map_err(as_error)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tunnel for Http1 {
    fn finish(&mut self) {
        self.session.as_mut().expect("open").finish_sending().expect("sent");
    }

    fn cut(&mut self) {
        self.session.take().expect("open").vanish();
    }
}

/// A stream of an HTTP/2 connection of its own, which a thread of its own drives.
struct Http2 {
    runtime: Runtime,
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// What came and is not read yet.
    early: Bytes,
}

/// By an extended CONNECT of HTTP/2 (RFC 8441).
fn over_http2(scene: &Scene, path: &str) -> Box<dyn Tunnel> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let config = Arc::new(scene.world.client().alpn(&["h2"]).config());
    let (send, receive) = runtime.block_on(async {
        let socket = tokio::net::TcpStream::connect(scene.edge.address()).await.expect("a connection");
        socket.set_nodelay(true).expect("an option");
        let name = ServerName::try_from(ACME).expect("a name");
        let tls = TlsConnector::from(config).connect(name, socket).await.expect("a handshake");
        let (requests, mut connection) = h2::client::handshake(tls).await.expect("HTTP/2");
        let mut pings = connection.ping_pong().expect("once");
        tokio::spawn(connection);
        // The edge's settings come before its answer to a ping.
        pings.ping(Ping::opaque()).await.expect("a pong");
        let mut requests = requests.ready().await.expect("a stream");
        assert!(requests.is_extended_connect_protocol_enabled(), "SETTINGS_ENABLE_CONNECT_PROTOCOL");
        let request = http::Request::builder().method(http::Method::CONNECT).uri(format!("https://{ACME}{path}"));
        let request = request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13");
        let (response, send) = requests.send_request(request.body(()).expect("a request"), false).expect("sent");
        let response = response.await.expect("a response");
        assert_eq!(response.status(), 200, "{response:?}");
        (send, response.into_body())
    });
    Box::new(Http2 { runtime, send, receive, early: Bytes::new() })
}

/// The bound on one wait for the edge.
const PATIENCE: Duration = Duration::from_secs(20);

fn reset(error: h2::Error) -> io::Error {
    io::Error::new(ErrorKind::ConnectionReset, error)
}

impl Read for Http2 {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.early.is_empty() {
            let receive = &mut self.receive;
            let next = async { tokio::time::timeout(PATIENCE, poll_fn(|cx| receive.poll_data(cx))).await };
            match self.runtime.block_on(next) {
                Err(_) => return Err(ErrorKind::TimedOut.into()),
                Ok(None) => return Ok(0),
                Ok(Some(data)) => self.early = data.map_err(reset)?,
            }
            self.receive.flow_control().release_capacity(self.early.len()).map_err(reset)?;
        }
        let part = self.early.split_to(self.early.len().min(buffer.len()));
        buffer[..part.len()].copy_from_slice(&part);
        Ok(part.len())
    }
}

impl Write for Http2 {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let send = &mut self.send;
        send.reserve_capacity(bytes.len());
        while send.capacity() == 0 {
            let more = async { tokio::time::timeout(PATIENCE, poll_fn(|cx| send.poll_capacity(cx))).await };
            match self.runtime.block_on(more) {
                Err(_) => return Err(ErrorKind::TimedOut.into()),
                Ok(None) => return Err(ErrorKind::BrokenPipe.into()),
                Ok(Some(capacity)) => drop(capacity.map_err(reset)?),
            }
        }
        let count = send.capacity().min(bytes.len());
        send.send_data(Bytes::copy_from_slice(&bytes[..count]), false).map_err(reset)?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tunnel for Http2 {
    fn finish(&mut self) {
        self.send.send_data(Bytes::new(), true).expect("sent");
    }

    fn cut(&mut self) {
        self.send.send_reset(Reason::CANCEL);
    }
}

/// The origin's side of a tunnel: does what the path says, and remembers what passed.
fn serve(head: &Head, talk: &mut Conversation, heard: &Heard) -> io::Result<()> {
    let key = head.get("sec-websocket-key").ok_or(ErrorKind::InvalidData)?;
    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
        accept(key)
    );
    let early = std::mem::take(&mut talk.reader.buffer);
    let mut tap = Tap::new(talk.stream().try_clone()?);
    tap.received.update(&early);
    // A frame of the origin's that comes in one with the answer.
    if head.target() == "/eager" {
        let mut frame = Vec::new();
        Frame::message("eager", OpCode::Data(Data::Text), true).format(&mut frame).map_err(io::Error::other)?;
        tap.sent.update(&frame);
        talk.send([accepted.as_bytes(), &frame].concat())?;
    } else {
        talk.send(accepted)?;
    }
    let mut socket = WebSocket::from_partially_read(tap, early, Role::Server, None);
    let error = match converse(head.target(), &mut socket, talk) {
        Err(Error::Io(error)) => Some(error.kind()),
        _ => None,
    };
    let Tap { received, sent, .. } = socket.into_inner();
    let hashes = Hashes { received: received.digest(), sent: sent.digest() };
    heard.lock().expect("no test panics while holding this").push((hashes, error));
    Err(ErrorKind::ConnectionAborted.into())
}

/// What is an origin's own, in the middle of a tunnel.
type OriginSocket = WebSocket<Tap<TcpStream>>;

fn converse(target: &str, socket: &mut OriginSocket, talk: &Conversation) -> Result<(), Error> {
    match target.split_once('?').unwrap_or((target, "")) {
        ("/both", count) => send_and_receive(socket, count.parse().expect("a count")),
        ("/fragments", _) => echo(socket, send_in_fragments),
        ("/close", code) => {
            let code: u16 = code.parse().expect("a code");
            socket.close(Some(CloseFrame { code: code.into(), reason: "as you wish".into() }))?;
            loop {
                socket.read()?;
            }
        }
        // Ends in order, in the middle of a frame, or without one.
        ("/gone", _) => {
            socket.read()?;
            talk.finish();
            loop {
                socket.read()?;
            }
        }
        ("/half", _) => {
            socket.read()?;
            socket.get_mut().write_all(&HALF_A_FRAME)?;
            talk.finish();
            loop {
                socket.read()?;
            }
        }
        ("/reset", _) => {
            socket.read()?;
            socket.get_mut().write_all(&HALF_A_FRAME)?;
            talk.reset();
            Ok(())
        }
        // Any bytes, frames or not.
        ("/raw", _) => {
            let tap = socket.get_mut();
            let mut block = vec![0; 16 * 1024];
            loop {
                match tap.read(&mut block)? {
                    0 => {
                        talk.finish();
                        return Ok(());
                    }
                    count => tap.write_all(&block[..count])?,
                }
            }
        }
        _ => echo(socket, WebSocket::send),
    }
}

/// The beginning of a binary frame of 100 bytes.
pub const HALF_A_FRAME: [u8; 12] = [0x82, 100, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9];

/// Sends every message back as it came, until the client closes.
fn echo(
    socket: &mut OriginSocket,
    send: impl Fn(&mut OriginSocket, Message) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        match socket.read()? {
            message @ (Message::Text(_) | Message::Binary(_)) => send(socket, message)?,
            // tungstenite answers pings and closes.
            _ => socket.flush()?,
        }
    }
}

/// A message in fragments of a size that grows from none, with a ping behind each.
fn send_in_fragments(socket: &mut OriginSocket, message: Message) -> Result<(), Error> {
    for frame in fragments(message) {
        socket.write(Message::Frame(frame))?;
        socket.write(Message::Ping("between".into()))?;
    }
    socket.flush()
}

/// A message cut into frames of 0, 1, 2, 4 ... bytes, also in the middle of characters.
pub fn fragments(message: Message) -> Vec<Frame> {
    let kind = if message.is_text() { Data::Text } else { Data::Binary };
    let mut rest = message.into_data();
    let (mut frames, mut size) = (Vec::new(), 0);
    loop {
        let kind = if frames.is_empty() { kind } else { Data::Continue };
        let part = rest.split_to(rest.len().min(size));
        frames.push(Frame::message(part, OpCode::Data(kind), rest.is_empty()));
        if rest.is_empty() {
            return frames;
        }
        size = (size * 2).max(1);
    }
}

/// Sends `count` messages while as many come, in threads of their own, so that neither waits for the other; says how many
/// came.
fn send_and_receive(socket: &mut OriginSocket, count: u32) -> Result<(), Error> {
    let mut writer = socket.get_ref().stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        let mut hash = Hash::new();
        for number in 0..count {
            let mut frame = Vec::new();
            Frame::message(numbered(number), OpCode::Data(Data::Binary), true).format(&mut frame)?;
            hash.update(&frame);
            writer.write_all(&frame)?;
        }
        Ok::<Hash, Error>(hash)
    });
    for number in 0..count {
        if socket.read()?.into_data() != numbered(number) {
            return Err(Error::AttackAttempt);
        }
    }
    socket.get_mut().sent = sender.join().expect("the sender ends")?;
    loop {
        socket.read()?;
    }
}

/// The message of a number: up to 128 KiB that are like no other.
pub fn numbered(number: u32) -> Vec<u8> {
    let length = usize::try_from(number.wrapping_mul(0x9E37_79B1) >> 15).expect("17 bits");
    (0..length).map(|at| (at as u32).wrapping_mul(number | 1).to_le_bytes()[1]).collect()
}
