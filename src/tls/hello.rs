//! Reads a ClientHello under a size bound, before anything is decided or computed.
//!
//! The parser is rustls' own [`Acceptor`], so that what is resolved here is what the handshake sees later over the same
//! bytes. Time is bounded by the caller.

use rustls::Error;
use rustls::server::Acceptor;

use crate::policy::Refusal;
use crate::registry::name::normalise_sni;

/// Most bytes a ClientHello may take on the wire, record headers included.
///
/// RFC 8446 lets a hello be longer, but none that works needs more: post-quantum key shares add about 1.2 KB each, and a
/// ticket carries a client chain of at most 16 KiB, once.
pub const HELLO_BYTES_MAX: usize = 32 * 1024;

/// What a ClientHello says before it is answered.
#[derive(Debug)]
pub struct Hello {
    /// The server name, normalised; `None` when the extension is absent.
    pub server_name: Option<Box<str>>,
}

/// What the bytes so far amount to.
#[derive(Debug)]
pub enum Read {
    /// Not a whole ClientHello yet.
    Incomplete,
    /// A whole one.
    Complete(Hello),
    /// Not one; the bytes to send before closing (an alert record, or nothing).
    Refused { reason: Refusal, alert: Vec<u8> },
}

/// Collects a ClientHello.
#[derive(Default)]
pub struct HelloReader {
    acceptor: Acceptor,
    /// Everything received: the handshake reads it again.
    pub bytes: Vec<u8>,
}

impl HelloReader {
    /// Takes the next bytes from the client.
    pub fn feed(&mut self, chunk: &[u8]) -> Read {
        self.bytes.extend_from_slice(chunk);
        // Looked at before rustls: what does not start like a TLS handshake record is answered at once, however little
        // of it has come (RFC 8446 section 5.1: type 22, legacy version 3.x).
        if self.bytes[0] != 0x16 || self.bytes.get(1).is_some_and(|major| *major != 3) {
            return refused(Refusal::ProtocolError, foreign_alert(&self.bytes));
        }
        let mut rest = chunk;
        loop {
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return match hello.server_name() {
                        None => Read::Complete(Hello { server_name: None }),
                        Some(name) => match normalise_sni(name.as_bytes(), &mut [0; 255]) {
                            Some(name) => Read::Complete(Hello { server_name: Some(name.into()) }),
                            None => refused(Refusal::UnknownHostname, UNRECOGNIZED_NAME.to_vec()),
                        },
                    };
                }
                Ok(None) => {}
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    // Writing into a Vec does not fail.
                    let _ = alert.write_all(&mut bytes);
                    // The acceptor has no alert of its own for a message that is no ClientHello (RFC 8446 section 6.2).
                    let foreign = matches!(
                        error,
                        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. }
                    );
                    if bytes.is_empty() && foreign {
                        bytes = UNEXPECTED_MESSAGE.to_vec();
                    }
                    return refused(super::failure::refusal_of(&error), bytes);
                }
            }
            if rest.is_empty() {
                break;
            }
            // Reading from a slice does not fail; the acceptor's own buffer limit is the only error.
            if !matches!(self.acceptor.read_tls(&mut rest), Ok(1..)) {
                return refused(Refusal::ProtocolError, DECODE_ERROR.to_vec());
            }
        }
        if self.bytes.len() > HELLO_BYTES_MAX {
            return refused(Refusal::ProtocolError, DECODE_ERROR.to_vec());
        }
        Read::Incomplete
    }
}

fn refused(reason: Refusal, alert: Vec<u8>) -> Read {
    Read::Refused { reason, alert }
}

/// A fatal `unrecognized_name` alert record (RFC 6066 section 3): sent before any state of rustls exists.
pub const UNRECOGNIZED_NAME: [u8; 7] = alert(112);

/// A fatal `internal_error` alert record: the hostname's record cannot be used.
pub const INTERNAL_ERROR: [u8; 7] = alert(80);

/// A fatal `unexpected_message` alert record: the first message is another than a ClientHello.
const UNEXPECTED_MESSAGE: [u8; 7] = alert(10);

/// A fatal `decode_error` alert record: the hello is larger than any that works.
pub const DECODE_ERROR: [u8; 7] = alert(50);

const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// What a peer gets that does not begin with a TLS handshake record: an alert if it may understand one (another record
/// type, an SSLv2 hello), nothing if it speaks another protocol altogether.
fn foreign_alert(bytes: &[u8]) -> Vec<u8> {
    let record_type = (20..=24).contains(&bytes[0]);
    // SSLv2: two length bytes with the high bit set, then the message type client-hello.
    let sslv2 = bytes[0] & 0x80 != 0 && bytes.get(2).is_none_or(|kind| *kind == 1);
    if record_type || sslv2 { alert(if sslv2 { 70 } else { 10 }).to_vec() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn client_hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn name_of(read: Read) -> Option<Box<str>> {
        match read {
            Read::Complete(hello) => hello.server_name,
            other => panic!("{other:?}"),
        }
    }

    fn refusal_of(read: Read) -> (Refusal, Vec<u8>) {
        match read {
            Read::Refused { reason, alert } => (reason, alert),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hello_is_read_whole_or_byte_by_byte() {
        let hello = client_hello("Pay.Acme.Test");
        assert_eq!(name_of(HelloReader::default().feed(&hello)).as_deref(), Some("pay.acme.test"));
        let mut reader = HelloReader::default();
        let (last, first) = hello.split_last().unwrap();
        for byte in first {
            assert!(matches!(reader.feed(&[*byte]), Read::Incomplete));
        }
        assert_eq!(name_of(reader.feed(&[*last])).as_deref(), Some("pay.acme.test"));
        assert_eq!(reader.bytes, hello, "the handshake needs every byte again");
    }

    #[test]
    fn one_record_per_byte_of_the_hello_is_still_a_hello() {
        let hello = client_hello("pay.acme.test");
        let fragmented: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
        assert_eq!(name_of(HelloReader::default().feed(&fragmented)).as_deref(), Some("pay.acme.test"));
    }

    #[test]
    fn an_address_is_no_name() {
        assert_eq!(name_of(HelloReader::default().feed(&client_hello("192.0.2.1"))), None);
    }

    #[test]
    fn other_protocols_are_closed_and_what_may_understand_one_gets_an_alert() {
        let cases: [(&[u8], &[u8]); 5] = [
            (b"GET / HTTP/1.1\r\n\r\n", &[]),
            (b"SSH-2.0-x\r\n", &[]),
            (&[0x80, 0x2e, 1, 0, 2], &[21, 3, 3, 0, 2, 2, 70]),
            (&[23, 3, 3, 0, 1, 0], &[21, 3, 3, 0, 2, 2, 10]),
            (&[22, 2, 0], &[21, 3, 3, 0, 2, 2, 10]),
        ];
        for (bytes, expected) in cases {
            let (reason, alert) = refusal_of(HelloReader::default().feed(bytes));
            assert_eq!((reason, alert.as_slice()), (Refusal::ProtocolError, expected), "{bytes:?}");
        }
    }

    #[test]
    fn another_message_than_a_hello_is_told_so() {
        // HelloRequest, Finished, and a type nobody knows.
        for kind in [0, 20, 99] {
            let mut record = vec![22, 3, 3, 0, 4 + 32, kind, 0, 0, 32];
            record.resize(5 + 4 + 32, 0);
            let (reason, alert) = refusal_of(HelloReader::default().feed(&record));
            assert_eq!(reason, Refusal::ProtocolError, "{kind}");
            assert!(alert == UNEXPECTED_MESSAGE || alert == DECODE_ERROR, "{kind}: {alert:?}");
        }
    }

    #[test]
    fn a_hello_that_never_ends_is_refused_within_its_bound() {
        let mut reader = HelloReader::default();
        // A handshake message that claims 16 MiB less one byte, and comes in full records.
        let mut record = vec![22, 3, 1, 0x40, 0];
        record.extend_from_slice(&[1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        for _ in 0..=HELLO_BYTES_MAX / record.len() {
            match reader.feed(&record) {
                Read::Incomplete => record[5..9].fill(0),
                read => {
                    assert_eq!(refusal_of(read).0, Refusal::ProtocolError);
                    return;
                }
            }
        }
        panic!("not refused after {} bytes", reader.bytes.len());
    }

    #[test]
    fn any_bytes_are_answered_without_panic() {
        use proptest::prelude::*;
        let hello = client_hello("pay.acme.test");
        proptest!(|(at in 0..hello.len(), value: u8, cut in 1..hello.len())| {
            let mut broken = hello.clone();
            broken[at] = value;
            let _ = HelloReader::default().feed(&broken);
            let _ = HelloReader::default().feed(&broken[..cut]);
        });
    }
}
