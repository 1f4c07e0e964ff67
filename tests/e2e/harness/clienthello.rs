//! ClientHellos made by hand, and raw TCP to send them over: what no TLS library would send.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::session::{End, connect_from};

/// Record content types (RFC 8446 section 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;

/// The handshake message type of a ServerHello (RFC 8446 section 4).
const SERVER_HELLO: u8 = 2;

/// A ClientHello in parts.
#[derive(Clone)]
pub struct Hello {
    /// The version of the record layer.
    pub record_version: u16,
    /// `legacy_version`: the highest version offered by clients before TLS 1.3.
    pub version: u16,
    pub cipher_suites: Vec<u16>,
    pub compressions: Vec<u8>,
    /// In order; RFC 8446 section 4.2.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// Bytes of the message after its last extension, which nothing explains.
    pub trailing: Vec<u8>,
}

impl Hello {
    /// What a TLS 1.3 client sends that also speaks 1.2.
    pub fn modern(name: &str) -> Self {
        let mut hello = Self::tls12(name);
        hello.cipher_suites.splice(0..0, [0x1301, 0x1302, 0x1303]);
        // supported_versions: 1.3, 1.2
        hello.extensions.push((43, vec![4, 3, 4, 3, 3]));
        // key_share: one X25519 share. Any 32 bytes are a public key; these are the base point's neighbour.
        let mut share = vec![0, 36, 0, 29, 0, 32, 9];
        share.extend([7; 31]);
        hello.extensions.push((51, share));
        // psk_key_exchange_modes: psk_dhe_ke
        hello.extensions.push((45, vec![1, 1]));
        hello
    }

    /// What a TLS 1.2 client sends.
    pub fn tls12(name: &str) -> Self {
        let mut extensions = Vec::new();
        if !name.is_empty() {
            extensions.push(server_name(name.as_bytes()));
        }
        // supported_groups: x25519, secp256r1; signature_algorithms: ECDSA and RSA-PSS with SHA-256, PKCS#1 with SHA-256
        extensions.push((10, vec![0, 4, 0, 29, 0, 23]));
        extensions.push((11, vec![1, 0]));
        extensions.push((13, vec![0, 6, 4, 3, 8, 4, 4, 1]));
        // extended_master_secret
        extensions.push((23, Vec::new()));
        Self {
            record_version: 0x0301,
            version: 0x0303,
            cipher_suites: vec![0xc02b, 0xc02f, 0xc02c, 0xc030],
            compressions: vec![0],
            extensions,
            trailing: Vec::new(),
        }
    }

    /// What a client of the given older version sends (0x0300 SSLv3, 0x0301 TLS 1.0, 0x0302 TLS 1.1).
    pub fn antique(version: u16, name: &str) -> Self {
        let mut hello = Self::tls12(name);
        hello.record_version = version;
        hello.version = version;
        // What those versions had: CBC suites with SHA-1.
        hello.cipher_suites = vec![0xc009, 0xc013, 0x002f];
        hello
    }

    /// Replaces an extension, or adds it.
    pub fn extension(mut self, kind: u16, body: Vec<u8>) -> Self {
        self.extensions.retain(|(other, _)| *other != kind);
        // RFC 8446 section 4.2.11: pre_shared_key would have to be last; nothing here sends one.
        self.extensions.push((kind, body));
        self
    }

    /// The handshake message, with its header.
    pub fn message(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.version.to_be_bytes());
        body.extend([0x5a; 32]);
        // A session id of 32 bytes, as clients send for the sake of middleboxes.
        body.push(32);
        body.extend([0xa5; 32]);
        body.extend(length16(self.cipher_suites.len() * 2));
        body.extend(self.cipher_suites.iter().flat_map(|suite| suite.to_be_bytes()));
        body.push(u8::try_from(self.compressions.len()).expect("few compressions"));
        body.extend(&self.compressions);
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, body)| [&kind.to_be_bytes(), &length16(body.len())[..], body].concat())
            .collect();
        body.extend(length16(extensions.len()));
        body.extend(extensions);
        body.extend(&self.trailing);
        let length = u32::try_from(body.len()).expect("below 4 GiB").to_be_bytes();
        [&[1, length[1], length[2], length[3]], &body[..]].concat()
    }

    /// The message in records of at most `fragment` bytes.
    pub fn records(&self, fragment: usize) -> Vec<u8> {
        fragment_message(self.record_version, &self.message(), fragment)
    }

    /// The message in as few records as it fits.
    pub fn bytes(&self) -> Vec<u8> {
        // RFC 8446 section 5.1: at most 2^14 bytes a record.
        self.records(1 << 14)
    }
}

/// The extension server_name with one host_name of these very bytes (RFC 6066 section 3).
pub fn server_name(name: &[u8]) -> (u16, Vec<u8>) {
    let entry = [&[0], &length16(name.len())[..], name].concat();
    (0, [&length16(entry.len())[..], &entry].concat())
}

/// A record of a content type, whatever its fragment.
pub fn record(kind: u8, version: u16, fragment: &[u8]) -> Vec<u8> {
    [&[kind], &version.to_be_bytes()[..], &length16(fragment.len()), fragment].concat()
}

/// A handshake message cut into records of at most `fragment` bytes.
pub fn fragment_message(version: u16, message: &[u8], fragment: usize) -> Vec<u8> {
    message.chunks(fragment).flat_map(|part| record(HANDSHAKE, version, part)).collect()
}

fn length16(length: usize) -> [u8; 2] {
    u16::try_from(length).expect("fits 16 bits").to_be_bytes()
}

/// A TCP connection that speaks no TLS of its own.
pub struct Raw {
    socket: TcpStream,
}

impl Raw {
    pub fn connect(server: SocketAddr) -> Self {
        Self { socket: connect_from(None, server).expect("a connection") }
    }

    /// Connects, sends, and returns what came back.
    pub fn ask(server: SocketAddr, bytes: &[u8]) -> Reply {
        let mut raw = Self::connect(server);
        // The server may close before all of it was sent; its reply is what counts.
        let _ = raw.send(bytes);
        raw.reply(Duration::from_secs(20))
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(bytes)
    }

    pub fn finish_sending(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Reads until the server closes, has sent a whole first record that is no alert, or `bound` has passed.
    pub fn reply(&mut self, bound: Duration) -> Reply {
        let deadline = Instant::now() + bound;
        let mut reply = Reply { bytes: Vec::new(), end: None };
        let mut buffer = [0; 4096];
        while !reply.has_first_record() || reply.alert().is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return reply;
            }
            self.socket.set_read_timeout(Some(left)).expect("a time limit");
            match self.socket.read(&mut buffer) {
                Ok(0) => {
                    reply.end = Some(End::Truncated);
                    return reply;
                }
                Ok(count) => reply.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return reply,
                Err(error) => {
                    reply.end = Some(error.into());
                    return reply;
                }
            }
        }
        reply
    }
}

/// What a server answered to raw bytes.
#[derive(Debug)]
pub struct Reply {
    pub bytes: Vec<u8>,
    /// How the connection ended; `None`: it is still open.
    pub end: Option<End>,
}

impl Reply {
    fn has_first_record(&self) -> bool {
        match self.bytes.first_chunk::<5>() {
            Some([_, _, _, high, low]) => self.bytes.len() >= 5 + usize::from(u16::from_be_bytes([*high, *low])),
            None => false,
        }
    }

    /// The alert that was sent in the clear, if the first record is one.
    pub fn alert(&self) -> Option<u8> {
        match self.bytes.get(..7)? {
            [ALERT, _, _, 0, 2, _level, description] => Some(*description),
            _ => None,
        }
    }

    /// Whether the server accepted the hello and answered with its own.
    pub fn is_server_hello(&self) -> bool {
        self.bytes.first() == Some(&HANDSHAKE) && self.bytes.get(5) == Some(&SERVER_HELLO)
    }

    /// Whether the server sent nothing but perhaps one alert, and closed: no bytes of a broken state.
    pub fn is_clean_refusal(&self) -> bool {
        self.end.is_some() && (self.bytes.is_empty() || (self.alert().is_some() && self.bytes.len() == 7))
    }
}
