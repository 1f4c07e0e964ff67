//! What old and new process say to each other, as bytes. Pure.
//!
//! Each message is one datagram of at most [`BYTES_MAX`]: a byte for its kind, then its fields; texts and lists of bytes carry
//! their length in front. Two binaries may be years apart, so the first message names [`PROTOCOL`], and whoever does not know
//! it says so and changes nothing. What passes as state has a version of its own: a new binary that does not know it serves
//! with fresh keys and identities, which costs its clients a full handshake each.

use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::registry::RecordId;

/// The version of what passes over the channel, sockets included.
pub const PROTOCOL: u32 = 1;

/// The version of state: keys, identities, and what tickets are bound to.
pub const STATE: u32 = 1;

/// The largest message. Below every default of net.core.wmem_max, beyond which the kernel refuses a datagram.
pub const BYTES_MAX: usize = 32 * 1024;

/// How much of a failure's text is told.
const FAILURE_BYTES_MAX: usize = 8 * 1024;

/// Something said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// To the new one, first of all.
    Hello { protocol: u32 },
    /// Listening sockets of one address, as ancillary data. Several of the same address belong together.
    Listeners { configured: SocketAddr, bound: SocketAddr },
    /// The listener of `admin.listen`.
    AdminAddress { configured: SocketAddr, bound: SocketAddr },
    /// The listener of `admin.socket`.
    AdminSocket { path: PathBuf },
    /// The version of the state that follows, and the generation served.
    State { version: u32, generation: u64 },
    /// The ticket keys.
    Keys(Zeroizing<Vec<u8>>),
    /// Identities of records, see [`records`].
    Records(Vec<u8>),
    /// To the new one: that was all.
    Complete,
    /// To the old one: cannot serve, and why.
    Failed(String),
    /// To the old one: everything is prepared. The sockets of these addresses were not taken, and neither was what is false.
    Ready { refused: Vec<SocketAddr>, admin_address: bool, admin_socket: bool },
    /// To the new one: accept.
    Go,
    /// To the old one: accepting.
    Serving,
    /// To the new one: the old one has stopped accepting. With `reload`, the configuration may have changed since the new
    /// one read it.
    Over { reload: bool },
    /// To the old one: the configuration was read anew.
    Reload,
}

/// Bytes that are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl Message {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Zeroizing<Vec<u8>>) {
        match self {
            Self::Hello { protocol } => {
                out.push(1);
                out.extend_from_slice(&protocol.to_be_bytes());
            }
            Self::Listeners { configured, bound } => {
                out.push(2);
                text(&configured.to_string(), out);
                text(&bound.to_string(), out);
            }
            Self::AdminAddress { configured, bound } => {
                out.push(3);
                text(&configured.to_string(), out);
                text(&bound.to_string(), out);
            }
            Self::AdminSocket { path } => {
                out.push(4);
                bytes(path.as_os_str().as_bytes(), out);
            }
            Self::State { version, generation } => {
                out.push(5);
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&generation.to_be_bytes());
            }
            Self::Keys(keys) => {
                out.push(6);
                bytes(keys, out);
            }
            Self::Records(records) => {
                out.push(7);
                bytes(records, out);
            }
            Self::Complete => out.push(8),
            Self::Failed(why) => {
                out.push(9);
                text(&why[..boundary(why, FAILURE_BYTES_MAX)], out);
            }
            Self::Ready { refused, admin_address, admin_socket } => {
                out.push(10);
                let list = refused.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(" ");
                text(&list, out);
                out.extend_from_slice(&[u8::from(*admin_address), u8::from(*admin_socket)]);
            }
            Self::Go => out.push(11),
            Self::Serving => out.push(12),
            Self::Over { reload } => out.extend_from_slice(&[13, u8::from(*reload)]),
            Self::Reload => out.push(14),
        }
    }

    /// Reads one message, all of its bytes.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn decode(message: &[u8]) -> Result<Self, Malformed> {
        let (&kind, rest) = message.split_first().ok_or(Malformed)?;
        let mut rest = Reader(rest);
        let read = match kind {
            1 => Self::Hello { protocol: rest.number()? },
            2 => Self::Listeners { configured: rest.address()?, bound: rest.address()? },
            3 => Self::AdminAddress { configured: rest.address()?, bound: rest.address()? },
            4 => Self::AdminSocket { path: std::ffi::OsString::from_vec(rest.bytes()?.to_vec()).into() },
            5 => Self::State { version: rest.number()?, generation: u64::from_be_bytes(*rest.array()?) },
            6 => Self::Keys(Zeroizing::new(rest.bytes()?.to_vec())),
            7 => Self::Records(rest.bytes()?.to_vec()),
            8 => Self::Complete,
            9 => Self::Failed(rest.text()?.to_owned()),
            10 => {
                let refused = rest.text()?.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>();
                Self::Ready {
                    refused: refused.map_err(|_| Malformed)?,
                    admin_address: rest.flag()?,
                    admin_socket: rest.flag()?,
                }
            }
            11 => Self::Go,
            12 => Self::Serving,
            13 => Self::Over { reload: rest.flag()? },
            14 => Self::Reload,
            _ => return Err(Malformed),
        };
        if rest.0.is_empty() { Ok(read) } else { Err(Malformed) }
    }
}

/// Splits the identities of records into messages.
pub fn records<'a>(ids: impl Iterator<Item = (&'a str, RecordId)>) -> impl Iterator<Item = Message> {
    let mut ids = ids.peekable();
    std::iter::from_fn(move || {
        ids.peek()?;
        let mut list = Vec::new();
        // A name has at most 253 bytes; room is left for one more and for what frames the message.
        while list.len() < BYTES_MAX - 512 {
            let Some((name, id)) = ids.next() else { break };
            bytes(name.as_bytes(), &mut list);
            list.extend_from_slice(&id.0);
        }
        Some(Message::Records(list))
    })
}

/// Reads what [`records`] wrote.
///
/// # Errors
/// [`Malformed`].
pub fn read_records(list: &[u8], mut each: impl FnMut(&str, RecordId)) -> Result<(), Malformed> {
    let mut rest = Reader(list);
    while !rest.0.is_empty() {
        let name = rest.text()?;
        each(name, RecordId(*rest.array()?));
    }
    Ok(())
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    // Nothing longer than a message is ever said; a length that does not fit would be found by the reader.
    out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn text(text: &str, out: &mut Vec<u8>) {
    bytes(text.as_bytes(), out);
}

/// Where a text may be cut: at most here, and never inside a character.
fn boundary(text: &str, index: usize) -> usize {
    (0..=index.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(array)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(*self.array()?))
    }

    fn flag(&mut self) -> Result<bool, Malformed> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err(Malformed),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }

    fn address(&mut self) -> Result<SocketAddr, Malformed> {
        self.text()?.parse().map_err(|_| Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(message: &Message) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::new());
        message.encode(&mut out);
        out
    }

    fn every() -> Vec<Message> {
        let (v4, v6) = ("127.0.0.1:443".parse().unwrap(), "[::]:443".parse().unwrap());
        vec![
            Message::Hello { protocol: PROTOCOL },
            Message::Listeners { configured: v4, bound: v6 },
            Message::AdminAddress { configured: v6, bound: v4 },
            Message::AdminSocket { path: "/run/hostward/admin.sock".into() },
            Message::State { version: STATE, generation: u64::MAX },
            Message::Keys(Zeroizing::new(vec![7; 96])),
            Message::Records(vec![1, 2, 3]),
            Message::Complete,
            Message::Failed("no".into()),
            Message::Ready { refused: vec![], admin_address: true, admin_socket: false },
            Message::Ready { refused: vec![v4, v6], admin_address: false, admin_socket: true },
            Message::Go,
            Message::Serving,
            Message::Over { reload: true },
            Message::Reload,
        ]
    }

    #[test]
    fn every_message_reads_back_and_no_part_of_one_does() {
        for message in every() {
            let bytes = encoded(&message);
            assert_eq!(Message::decode(&bytes), Ok(message.clone()));
            for end in 0..bytes.len() {
                assert_eq!(Message::decode(&bytes[..end]), Err(Malformed), "{message:?} cut at {end}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Message::decode(&longer), Err(Malformed), "{message:?} with a byte more");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let Ok(Message::Failed(text)) = Message::decode(&encoded(&Message::Failed("é".repeat(BYTES_MAX)))) else {
            panic!("not read back")
        };
        assert_eq!(text.len(), FAILURE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::decode(&bytes);
            let _ = read_records(&bytes, |_, _| {});
        }

        #[test]
        fn identities_read_back_in_messages_that_fit(
            ids in prop::collection::vec(("[a-z.]{1,253}", any::<[u8; 16]>()), 0..400),
        ) {
            let given = ids.iter().map(|(name, id)| (name.as_str(), RecordId(*id)));
            let mut read = Vec::new();
            for message in records(given) {
                prop_assert!(encoded(&message).len() <= BYTES_MAX);
                let Message::Records(list) = message else { panic!("another message") };
                read_records(&list, |name, id| read.push((name.to_owned(), id.0))).unwrap();
            }
            prop_assert_eq!(read, ids);
        }
    }
}
