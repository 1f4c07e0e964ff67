//! A client's connection: bytes in and out, and exactly how it ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{AlertDescription, ClientConnection, HandshakeKind};

use super::payload::{Hash, Payload};

/// The bound on one wait for the other side. Long: a gigabyte flows past other tests on the same two cores.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a connection ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The server sent this alert.
    Alert(AlertDescription),
    /// The server said that it has nothing more to say.
    CloseNotify,
    /// The TCP connection ended and nothing was said: an attacker may have cut it.
    Truncated,
    /// The TCP connection was reset.
    Reset,
    /// Nothing came in time.
    TimedOut,
    /// TCP would not connect.
    Refused,
    /// The server broke the protocol, in rustls' words.
    Broken(String),
}

impl End {
    /// Whether this is how a client ends that rules deny: by the alert `access_denied`, or, where the handshake is over
    /// before they can be judged (no certificate to verify), by a close without a word.
    pub fn is_denial(&self) -> bool {
        matches!(self, Self::Alert(AlertDescription::AccessDenied) | Self::Truncated | Self::Reset)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<rustls::Error> for End {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::AlertReceived(alert) => Self::Alert(alert),
            other => Self::Broken(other.to_string()),
        }
    }
}

/// Connects with bounds on every later wait.
pub fn connect_from(source: Option<IpAddr>, server: SocketAddr) -> Result<TcpStream, End> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(server), socket2::Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let socket = TcpStream::from(socket);
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One connection.
pub struct Session {
    connection: ClientConnection,
    socket: TcpStream,
    pings: u64,
}

impl Session {
    pub fn new(connection: ClientConnection, socket: TcpStream) -> Self {
        Self { connection, socket, pings: 0 }
    }

    /// Runs the handshake to its end.
    pub fn shake(&mut self) -> Result<(), End> {
        while self.connection.is_handshaking() {
            self.flush()?;
            if self.connection.is_handshaking() {
                self.fill()?;
            }
        }
        self.flush()
    }

    /// Takes what rustls wants to send, instead of sending it: for cases that mangle it.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut bytes).expect("writing to a vector");
        }
        bytes
    }

    /// Sends bytes below TLS.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), End> {
        Ok(self.socket.write_all(bytes)?)
    }

    /// Reads what the server sent until the handshake wants to answer, or is over.
    pub fn receive_flight(&mut self) -> Result<(), End> {
        while self.connection.is_handshaking() && !self.connection.wants_write() {
            self.fill()?;
        }
        Ok(())
    }

    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the handshake resumed an earlier session.
    pub fn resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    pub fn server_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates().and_then(<[_]>::first)
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Sends plaintext, all of it.
    pub fn send(&mut self, mut plaintext: &[u8]) -> Result<(), End> {
        while !plaintext.is_empty() {
            let taken = self.connection.writer().write(plaintext)?;
            plaintext = &plaintext[taken..];
            self.flush()?;
        }
        self.flush()
    }

    /// Sends a payload and returns its digest.
    pub fn send_payload(&mut self, mut payload: Payload) -> Result<String, End> {
        while let Some(block) = payload.next_block() {
            self.send(block)?;
        }
        Ok(payload.digest())
    }

    /// Reads some plaintext: at least one byte, or the end.
    pub fn receive_some(&mut self, buffer: &mut [u8]) -> Result<usize, End> {
        loop {
            match self.connection.reader().read(buffer) {
                Ok(0) => return Err(End::CloseNotify),
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            self.fill()?;
        }
    }

    /// Reads this much plaintext.
    pub fn receive(&mut self, length: usize) -> Result<Vec<u8>, End> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            filled += self.receive_some(&mut bytes[filled..])?;
        }
        Ok(bytes)
    }

    /// Reads to the end; returns the digest of what came, and how it ended.
    pub fn drain(&mut self) -> (String, End) {
        let mut hash = Hash::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.receive_some(&mut buffer) {
                Ok(count) => hash.update(&buffer[..count]),
                Err(end) => return (hash.digest(), end),
            }
        }
    }

    /// Reads to the end a text of at most 64 KiB, and how it ended.
    pub fn read_text(&mut self) -> (String, End) {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.receive_some(&mut buffer) {
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(end) => return (String::from_utf8_lossy(&text).into_owned(), end),
            }
            assert!(text.len() <= 64 * 1024, "more text than a case expects");
        }
    }

    /// Has a word echoed that was not said before on this connection.
    pub fn ping(&mut self) -> Result<(), End> {
        self.pings += 1;
        let word = format!("ping {:8}", self.pings);
        // A server that refused a TLS 1.3 client may be gone before the client speaks: what counts is what it said.
        let sent = self.send(word.as_bytes());
        let echo = self.receive(word.len())?;
        sent?;
        if echo == word.as_bytes() { Ok(()) } else { Err(End::Broken(format!("{word:?} came back as {echo:?}"))) }
    }

    /// Waits until the connection ends, for at most `bound`; `None` if it does not. What still comes is dropped.
    pub fn end_within(&mut self, bound: Duration) -> Option<End> {
        let deadline = Instant::now() + bound;
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).expect("a time limit");
            let read = self.receive_some(&mut buffer);
            self.socket.set_read_timeout(Some(PATIENCE)).expect("a time limit");
            match read {
                Ok(_) if Instant::now() < deadline => {}
                Ok(_) | Err(End::TimedOut) => return None,
                Err(end) => return Some(end),
            }
        }
    }

    /// How the server has ended the connection, if it has; without waiting. What it sent otherwise is kept.
    pub fn ended(&mut self) -> Option<End> {
        self.socket.set_nonblocking(true).expect("an option");
        let end = loop {
            match self.fill() {
                Ok(0) => break Some(End::CloseNotify),
                Ok(_) => {}
                // Nothing more is here. Its goodbye may be, before the end of the TCP connection.
                Err(End::TimedOut) => {
                    let closed = self.connection.process_new_packets().is_ok_and(|state| state.peer_has_closed());
                    break closed.then_some(End::CloseNotify);
                }
                Err(end) => break Some(end),
            }
        };
        self.socket.set_nonblocking(false).expect("an option");
        end
    }

    /// Says that nothing more will be sent (close_notify), and goes on reading.
    pub fn finish_sending(&mut self) -> Result<(), End> {
        self.connection.send_close_notify();
        self.flush()
    }

    /// Says goodbye and reads to the end.
    pub fn finish(mut self) -> End {
        if let Err(end) = self.finish_sending() {
            return end;
        }
        self.drain().1
    }

    /// Ends the TCP connection without a word: FIN, no close_notify.
    pub fn vanish(self) {
        // What was not read would turn the FIN into a RST: take it first.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Resets the TCP connection.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).expect("linger");
    }

    /// Sends what rustls has to send. If the server has gone meanwhile, its last word is looked for.
    fn flush(&mut self) -> Result<(), End> {
        while self.connection.wants_write() {
            if let Err(error) = self.connection.write_tls(&mut self.socket) {
                let end = End::from(error);
                if end == End::Reset {
                    while self.fill().map_err(|last| if last == End::Truncated { End::Reset } else { last })? > 0 {}
                }
                return Err(end);
            }
        }
        Ok(())
    }

    /// Reads once from the socket and lets rustls look at it.
    fn fill(&mut self) -> Result<usize, End> {
        let count = self.connection.read_tls(&mut self.socket)?;
        match self.connection.process_new_packets() {
            Ok(state) if count == 0 && !state.peer_has_closed() => Err(End::Truncated),
            Ok(state) if state.peer_has_closed() && self.connection.is_handshaking() => Err(End::CloseNotify),
            Ok(_) => {
                // Key updates and the like; the server may be gone already, and then reading will tell.
                while self.connection.wants_write() && self.connection.write_tls(&mut self.socket).is_ok() {}
                Ok(count)
            }
            Err(error) => {
                let _ = self.connection.write_tls(&mut self.socket);
                Err(error.into())
            }
        }
    }
}
