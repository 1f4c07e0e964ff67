//! HTTP/2 by the frame: what a client of bad will sends, and exactly what comes back. Relies on no HTTP/2 library.
//!
//! Field blocks are written as literals without indexing (RFC 7541 section 6.2.2). Of those that come only the status is
//! read; the server is told to keep no dynamic table, so that each block can be read by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::client::Client;
use super::session::{End, Session};
use super::{SOON, wait};

/// The types of frames (RFC 9113 section 6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 section 7).
pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// The bytes a connection begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The number at a place of the payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }

    /// The status in a field block.
    pub fn status(&self) -> u16 {
        assert_eq!(self.kind, HEADERS);
        status(&self.payload).unwrap_or_else(|| panic!("no status: {:02x?}", self.payload))
    }
}

/// A frame as bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).expect("a length").to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field block of literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let string = |text: &str, bytes: &mut Vec<u8>| {
        // An integer with a prefix of 7 bits (RFC 7541 section 5.1).
        let mut length = text.len();
        if length < 127 {
            bytes.push(length as u8);
        } else {
            bytes.push(127);
            length -= 127;
            while length >= 128 {
                bytes.push((length % 128) as u8 | 128);
                length /= 128;
            }
            bytes.push(length as u8);
        }
        bytes.extend(text.as_bytes());
    };
    for (name, value) in fields {
        bytes.push(0);
        string(name, &mut bytes);
        string(value, &mut bytes);
    }
    bytes
}

/// The pseudo-header fields of a request.
pub fn request<'a>(method: &'a str, authority: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
}

/// The first field of a response, which is its status.
fn status(block: &[u8]) -> Option<u16> {
    // Updates of the table's size come first.
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20)?;
    let block = &block[at..];
    match block {
        [first, ..] if first & 0x80 != 0 => {
            let known = [(8, 200), (9, 204), (10, 206), (11, 304), (12, 400), (13, 404), (14, 500)];
            known.iter().find(|(index, _)| *index == first & 0x7f).map(|(_, status)| *status)
        }
        // Literals whose name is that of an entry for :status.
        [first, length, value @ ..] if (8..=14).contains(&(first & 0x0f)) => {
            let value = &value[..usize::from(length & 0x7f)];
            if length & 0x80 == 0 { std::str::from_utf8(value).ok()?.parse().ok() } else { digits(value) }
        }
        _ => None,
    }
}

/// Three digits of the Huffman code (RFC 7541 appendix B): 0 to 2 have 5 bits and stand for themselves, the others have 6.
fn digits(bytes: &[u8]) -> Option<u16> {
    let bit = |at: usize| bytes.get(at / 8).map(|byte| u16::from(byte >> (7 - at % 8) & 1));
    let mut at = 0;
    let mut number = 0;
    for _ in 0..3 {
        let mut code = 0;
        for _ in 0..5 {
            code = code << 1 | bit(at)?;
            at += 1;
        }
        if code > 2 {
            code = (code << 1 | bit(at)?).checked_sub(0x19)? + 3;
            at += 1;
        }
        number = number * 10 + code;
    }
    Some(number)
}

/// A connection.
pub struct Raw {
    pub session: Session,
    buffer: Vec<u8>,
    /// Frames that were passed over.
    passed: Vec<Frame>,
}

impl Raw {
    /// A connection that has chosen HTTP/2 and said nothing yet.
    #[track_caller]
    pub fn silent(client: &Client, server: SocketAddr, name: &str) -> Self {
        let session = client.clone().alpn(&["h2"]).open(server, name).expect("a connection");
        assert_eq!(session.alpn(), Some(&b"h2"[..]));
        Self { session, buffer: Vec::new(), passed: Vec::new() }
    }

    /// One that has said its preface and its settings: what is not of a case's interest is large enough.
    #[track_caller]
    pub fn open(client: &Client, server: SocketAddr, name: &str) -> Self {
        Self::open_with(client, server, name, &[(4, (1 << 31) - 1)])
    }

    /// The same with settings of the case's; HEADER_TABLE_SIZE is 0.
    #[track_caller]
    pub fn open_with(client: &Client, server: SocketAddr, name: &str, settings: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(client, server, name);
        let mut payload = vec![0, 1, 0, 0, 0, 0];
        for (key, value) in settings {
            payload.extend(key.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send_bytes(&[PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()).expect("sent");
        let own = raw.next_where("settings", |frame| (frame.kind == SETTINGS).then(|| frame.clone()));
        assert_eq!(own.flags & ACK, 0, "the server's settings come first");
        raw.send(SETTINGS, ACK, 0, &[]);
        raw
    }

    /// The connection's own window becomes as large as can be.
    #[track_caller]
    pub fn open_wide(&mut self) {
        self.send(WINDOW_UPDATE, 0, 0, &((1_u32 << 31) - 1 - 65_535).to_be_bytes());
    }

    #[track_caller]
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.send_bytes(&frame(kind, flags, stream, payload)).unwrap_or_else(|end| panic!("not sent: {end:?}"));
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<(), End> {
        self.session.send(bytes)
    }

    /// Sends a head; `ends`: the request has no body.
    #[track_caller]
    pub fn head(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.send(HEADERS, flags, stream, &block(fields));
    }

    /// GET of a path.
    #[track_caller]
    pub fn get(&mut self, stream: u32, authority: &str, path: &str) {
        self.head(stream, &request("GET", authority, path), true);
    }

    /// The next frame.
    pub fn next(&mut self) -> Result<Frame, End> {
        let mut block = vec![0; 64 * 1024];
        loop {
            if let [high, middle, low, kind, flags, a, b, c, d, ..] = self.buffer[..] {
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                if self.buffer.len() >= 9 + length {
                    let rest = self.buffer.split_off(9 + length);
                    let bytes = std::mem::replace(&mut self.buffer, rest);
                    let stream = u32::from_be_bytes([a, b, c, d]);
                    return Ok(Frame { kind, flags, stream, payload: bytes[9..].to_vec() });
                }
            }
            let count = self.session.receive_some(&mut block)?;
            self.buffer.extend_from_slice(&block[..count]);
        }
    }

    /// The first frame that is looked for, of those that came already or come; the others are kept for later.
    #[track_caller]
    pub fn next_where<T>(&mut self, what: &str, look: impl Fn(&Frame) -> Option<T>) -> T {
        if let Some((at, found)) = self.passed.iter().enumerate().find_map(|(at, frame)| Some((at, look(frame)?))) {
            self.passed.remove(at);
            return found;
        }
        let deadline = Instant::now() + 2 * SOON;
        while Instant::now() < deadline {
            match self.next() {
                Ok(frame) => match look(&frame) {
                    Some(found) => return found,
                    None => self.passed.push(frame),
                },
                Err(end) => panic!("no {what}, but {end:?}; there were {:?}", self.seen()),
            }
        }
        panic!("no {what} in time; there were {:?}", self.seen());
    }

    fn seen(&self) -> Vec<(u8, u8, u32, usize)> {
        self.passed.iter().map(|frame| (frame.kind, frame.flags, frame.stream, frame.payload.len())).collect()
    }

    /// The code of the GOAWAY that comes, and the last stream it names.
    #[track_caller]
    pub fn goaway(&mut self) -> (u32, u32) {
        self.next_where("GOAWAY", |frame| (frame.kind == GOAWAY).then(|| (frame.number(4), frame.number(0))))
    }

    /// The code by which a stream is reset.
    #[track_caller]
    pub fn reset(&mut self, stream: u32) -> u32 {
        self.next_where("RST_STREAM", |frame| {
            (frame.kind == RST_STREAM && frame.stream == stream).then(|| frame.number(0))
        })
    }

    /// Whether a stream was reset, by what has come so far.
    pub fn was_reset(&self, stream: u32) -> bool {
        self.passed.iter().any(|frame| frame.kind == RST_STREAM && frame.stream == stream)
    }

    /// How a request is refused: by a status, or by its stream's or the connection's error, which is 0.
    #[track_caller]
    pub fn refusal(&mut self, stream: u32) -> u16 {
        self.next_where("an answer", |frame| match frame.kind {
            HEADERS if frame.stream == stream => Some(frame.status()),
            RST_STREAM if frame.stream == stream && frame.number(0) == PROTOCOL_ERROR => Some(0),
            GOAWAY if frame.number(4) == PROTOCOL_ERROR => Some(0),
            _ => None,
        })
    }

    /// The status of the next head on a stream.
    #[track_caller]
    pub fn status(&mut self, stream: u32) -> u16 {
        self.next_where("HEADERS", |frame| (frame.kind == HEADERS && frame.stream == stream).then(|| frame.status()))
    }

    /// Reads until a stream has ended in order; returns how many bytes of content were left of it.
    #[track_caller]
    pub fn end_of(&mut self, stream: u32) -> usize {
        let mut bytes = 0;
        loop {
            let (count, ends) = self.next_where("the end of a stream", |frame| {
                (frame.stream == stream && matches!(frame.kind, DATA | HEADERS))
                    .then(|| (if frame.kind == DATA { frame.payload.len() } else { 0 }, frame.ends_stream()))
            });
            bytes += count;
            if ends {
                return bytes;
            }
        }
    }

    /// The status of a whole response.
    #[track_caller]
    pub fn answer(&mut self, stream: u32) -> u16 {
        let (status, ends) = self.next_where("HEADERS", |frame| {
            (frame.kind == HEADERS && frame.stream == stream).then(|| (frame.status(), frame.ends_stream()))
        });
        if !ends {
            self.end_of(stream);
        }
        status
    }

    /// Has a PING answered: everything before it has been dealt with.
    #[track_caller]
    pub fn ping(&mut self, mark: u64) {
        self.send(PING, 0, 0, &mark.to_be_bytes());
        self.next_where("the answer to a PING", |frame| {
            (frame.kind == PING && frame.flags & ACK != 0 && frame.payload == mark.to_be_bytes()).then_some(())
        });
    }

    /// Waits for the end of the connection, at most so long.
    pub fn end_within(&mut self, bound: Duration) -> Option<End> {
        self.session.end_within(bound)
    }

    /// Takes what has come, without waiting; what it says when it has ended.
    pub fn pump(&mut self) -> Option<End> {
        self.session.socket().set_nonblocking(true).expect("an option");
        let mut block = vec![0; 64 * 1024];
        let end = loop {
            match self.session.receive_some(&mut block) {
                Ok(count) => self.buffer.extend_from_slice(&block[..count]),
                Err(End::TimedOut) => break None,
                Err(end) => break Some(end),
            }
        };
        self.session.socket().set_nonblocking(false).expect("an option");
        end
    }

    /// Sends bytes made by the case again and again until the server has had enough, at most so often; returns how often.
    /// What it answers is taken meanwhile, so that it has no reason but the flood itself to stop.
    pub fn flood(&mut self, most: usize, mut make: impl FnMut(usize) -> Vec<u8>) -> usize {
        let mut sent = 0;
        for count in 0..most {
            let bytes = make(count);
            sent += bytes.len();
            let failed = self.send_bytes(&bytes).is_err();
            // Not for each small frame: what lies in the kernel's buffers is as good as sent.
            if failed || sent >= PUMPED_BYTES && self.pump().is_some() {
                return count;
            }
            sent %= PUMPED_BYTES;
        }
        most
    }
}

/// How much of a flood is sent between two looks at what the server says to it.
const PUMPED_BYTES: usize = 512;

/// Waits until a metric is at least so much.
#[track_caller]
pub fn expect_at_least(edge: &super::Edge, query: &str, least: f64) {
    wait::until(&format!("{query} is at least {least}"), SOON, || edge.metric(query) >= least);
}
