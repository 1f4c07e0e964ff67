//! Bytes through an established connection, and through its handshake, however they are cut; and how it ends.

use std::io::Write;

use proptest::prelude::*;
use rustls::{AlertDescription, Error};

use super::client::{Client, TLS12, TLS13, VERSIONS};
use super::pair::{Pair, Server};
use super::pki::{Authority, client_auth, record, tenant};
use crate::policy::{Refusal, Verdict};
use crate::registry::ClientAuthMode;
use crate::tls::Outgoing;

fn plain_server() -> Server {
    Server::new(tenant(&record(1, "a.test", |_| {})))
}

/// A server that requires certificates of a CA, and a client of that CA.
fn mutual(versions: &[&'static rustls::SupportedProtocolVersion]) -> (Server, Client) {
    let ca = Authority::root("Acme");
    let record = record(1, "a.test", |record| record.client_auth = client_auth(ClientAuthMode::Require, &[ca.der()]));
    (Server::new(tenant(&record)), Client::new(versions, Some(&ca.client("ann"))))
}

/// Text both ways: the connection works.
fn talk(pair: &mut Pair) {
    pair.received.clear();
    pair.client.writer().write_all(b"question").unwrap();
    pair.upward().unwrap();
    assert_eq!(pair.received, b"question");
    pair.server.send(b"answer", &mut pair.out).unwrap();
    assert_eq!(pair.downward().unwrap(), b"answer");
}

#[test]
fn a_handshake_in_pieces_of_any_size_is_one_handshake() {
    for versions in VERSIONS {
        for piece in [1, 2, 3, 5, 7, 64, 1000, usize::MAX] {
            let (server, client) = mutual(versions);
            let mut pair = Pair::new(&server, &client, "a.test");
            pair.piece = piece;
            let established = pair.shake().unwrap();
            assert_eq!(established.standing.verdict, Verdict::Success);
            assert_eq!(pair.server.waiting_bytes(), 0, "what was consumed is not kept");
            talk(&mut pair);
        }
    }
}

#[test]
fn a_handshake_in_the_smallest_records_is_one_handshake() {
    for versions in VERSIONS {
        let (server, mut client) = mutual(versions);
        let mut config = rustls::ClientConfig::clone(&client.config);
        // The smallest rustls sends.
        config.max_fragment_size = Some(32);
        client.config = config.into();
        for piece in [1, 31, 38, 1000, usize::MAX] {
            let mut pair = Pair::new(&server, &client, "a.test");
            pair.piece = piece;
            pair.shake().unwrap();
            talk(&mut pair);
            client.forget_tickets();
        }
    }
}

#[test]
fn plaintext_right_behind_the_finished_is_received_once_and_whole() {
    let (server, client) = mutual(TLS13);
    for piece in [1, 17, 100, usize::MAX] {
        client.forget_tickets();
        let mut pair = Pair::new(&server, &client, "a.test");
        pair.piece = piece;
        pair.upward().unwrap();
        pair.downward().unwrap();
        assert!(!pair.client.is_handshaking(), "the client has said its Finished");
        let early = vec![7; 40_000];
        pair.client.writer().write_all(&early).unwrap();
        // All of it together: certificate, signature, Finished, and three records.
        pair.upward().unwrap();
        assert!(pair.received == early, "{} bytes of {}", pair.received.len(), early.len());
        assert_eq!(pair.server.establish().unwrap().standing.verdict, Verdict::Success);
        pair.downward().unwrap();
        talk(&mut pair);
    }
}

#[test]
fn plaintext_before_the_certificate_was_judged_never_comes_out() {
    // A stranger's certificate and plaintext in one go: the handshake fails, and not a byte was passed on.
    let (server, _) = mutual(TLS13);
    let client = Client::new(TLS13, Some(&Authority::root("Other").client("eve")));
    let mut pair = Pair::new(&server, &client, "a.test");
    pair.upward().unwrap();
    pair.downward().unwrap();
    pair.client.writer().write_all(b"let me in").unwrap();
    assert_eq!(pair.upward().unwrap_err().reason, Refusal::UnknownCa);
    assert_eq!(pair.received, b"");
    assert!(pair.server.establish().is_none());
}

#[test]
fn records_split_at_every_byte_are_read_alike() {
    for versions in VERSIONS {
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        let mut at = 0;
        loop {
            pair.received.clear();
            for text in [&b"one"[..], b"", b"two", b"three"] {
                pair.client.writer().write_all(text).unwrap();
            }
            let mut bytes = pair.client_bytes();
            if at > bytes.len() {
                break;
            }
            let (first, second) = bytes.split_at_mut(at);
            pair.deliver(first).unwrap();
            pair.deliver(second).unwrap();
            assert_eq!(pair.received, b"onetwothree", "split at {at}");
            assert_eq!(pair.server.waiting_bytes(), 0);
            at += 1;
        }
        assert!(at > 60, "three records have been cut everywhere");
    }
}

#[test]
fn a_partial_record_waits_without_making_plaintext() {
    let mut pair = Pair::established(&plain_server(), &Client::new(TLS13, None), "a.test");
    pair.client.writer().write_all(&[1; 10_000]).unwrap();
    let mut bytes = pair.client_bytes();
    let (last, most) = bytes.split_last_mut().unwrap();
    pair.deliver(most).unwrap();
    assert_eq!(pair.received, b"", "nothing unauthenticated comes out");
    pair.deliver(std::slice::from_mut(last)).unwrap();
    assert_eq!(pair.received, [1; 10_000]);
}

#[test]
fn a_key_update_is_answered_with_what_is_sent_next() {
    let mut pair = Pair::established(&plain_server(), &Client::new(TLS13, None), "a.test");
    for round in 0..5 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.client.writer().write_all(b"after").unwrap();
        pair.upward().unwrap();
        assert_eq!(pair.received, b"after", "round {round}");
        pair.received.clear();
        // Fresh memory each time: there is room for the plaintext's records and nothing more.
        pair.out = Outgoing::default();
        let answer = vec![round; 1 + usize::from(round) * 20_000];
        pair.server.send(&answer, &mut pair.out).unwrap();
        assert!(pair.downward().unwrap() == answer, "round {round}");
    }
    // Several that nothing was sent between; one answer is enough (RFC 8446 section 4.6.3).
    for _ in 0..3 {
        pair.client.refresh_traffic_keys().unwrap();
        pair.upward().unwrap();
    }
    talk(&mut pair);
}

#[test]
fn goodbye_after_a_key_update_is_still_understood() {
    let mut pair = Pair::established(&plain_server(), &Client::new(TLS13, None), "a.test");
    pair.client.refresh_traffic_keys().unwrap();
    pair.upward().unwrap();
    pair.out = Outgoing::default();
    pair.server.close(&mut pair.out);
    let (bytes, filled) = pair.out.take();
    pair.client.read_tls(&mut &bytes[..filled]).unwrap();
    assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
}

#[test]
fn a_key_update_in_pieces_does_not_disturb_what_is_sent_meanwhile() {
    let mut pair = Pair::established(&plain_server(), &Client::new(TLS13, None), "a.test");
    pair.client.refresh_traffic_keys().unwrap();
    let mut bytes = pair.client_bytes();
    for byte in &mut bytes {
        pair.deliver(std::slice::from_mut(byte)).unwrap();
        pair.server.send(b"meanwhile", &mut pair.out).unwrap();
        assert_eq!(pair.downward().unwrap(), b"meanwhile");
    }
    talk(&mut pair);
}

#[test]
fn too_many_key_updates_are_a_protocol_error() {
    let mut pair = Pair::established(&plain_server(), &Client::new(TLS13, None), "a.test");
    let mut refused = None;
    for _ in 0..200 {
        pair.client.refresh_traffic_keys().unwrap();
        refused = pair.upward().err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused.map(|fatal| fatal.reason), Some(Refusal::ProtocolError));
}

#[test]
fn each_side_closes_for_itself() {
    for versions in VERSIONS {
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        pair.client.writer().write_all(b"last").unwrap();
        pair.client.send_close_notify();
        pair.upward().unwrap();
        assert_eq!(pair.received, b"last");
        assert!(pair.server.peer_closed());
        // Our side can still speak, then closes as well.
        pair.server.send(b"still here", &mut pair.out).unwrap();
        assert_eq!(pair.downward().unwrap(), b"still here");
        pair.server.close(&mut pair.out);
        let (bytes, filled) = pair.out.take();
        pair.client.read_tls(&mut &bytes[..filled]).unwrap();
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
        // Said once.
        pair.server.close(&mut pair.out);
        assert!(pair.out.is_empty());
        assert!(pair.server.send(b"too late", &mut pair.out).is_err());

        // And the other way round.
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        pair.server.close(&mut pair.out);
        let (bytes, filled) = pair.out.take();
        pair.client.read_tls(&mut &bytes[..filled]).unwrap();
        assert!(pair.client.process_new_packets().unwrap().peer_has_closed());
        assert!(!pair.server.peer_closed());
        pair.client.writer().write_all(b"one more").unwrap();
        pair.upward().unwrap();
        assert_eq!(pair.received, b"one more");
    }
}

#[test]
fn what_follows_a_close_notify_is_ignored_and_not_kept() {
    for versions in VERSIONS {
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        pair.client.send_close_notify();
        let mut bytes = pair.client_bytes();
        bytes.extend_from_slice(&[0x17; 1000]);
        pair.deliver(&mut bytes).unwrap();
        assert!(pair.server.peer_closed());
        for _ in 0..100 {
            pair.deliver(&mut [0x17; 10_000]).unwrap();
        }
        assert_eq!(pair.server.waiting_bytes(), 0);
        pair.server.send(b"answer", &mut pair.out).unwrap();
        assert_eq!(pair.downward().unwrap(), b"answer");
    }
}

#[test]
fn a_forged_record_is_told_and_ends_the_connection() {
    for versions in VERSIONS {
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        pair.client.writer().write_all(b"whole").unwrap();
        pair.client.writer().write_all(b"broken").unwrap();
        let mut bytes = pair.client_bytes();
        *bytes.last_mut().unwrap() ^= 1;
        let fatal = pair.deliver(&mut bytes).unwrap_err();
        assert_eq!((fatal.reason, fatal.by_peer), (Refusal::ProtocolError, false));
        assert_eq!(pair.received, b"whole", "what came before it is good");
        assert_eq!(pair.downward().unwrap_err(), Error::AlertReceived(AlertDescription::BadRecordMac));
        assert!(pair.server.send(b"more", &mut pair.out).is_err());
    }
}

#[test]
fn an_alert_of_the_peer_is_the_peers() {
    for versions in VERSIONS {
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        // The client is made to find fault with a record.
        pair.server.send(b"answer", &mut pair.out).unwrap();
        let (mut bytes, filled) = pair.out.take();
        bytes[filled - 1] ^= 1;
        pair.client.read_tls(&mut &bytes[..filled]).unwrap();
        pair.client.process_new_packets().unwrap_err();
        let fatal = pair.upward().unwrap_err();
        assert!(fatal.by_peer, "{fatal:?}");
        assert!(pair.out.is_empty(), "an alert is not answered");
    }
}

#[test]
fn a_client_that_doubts_the_server_is_not_a_refusal_of_ours() {
    for versions in VERSIONS {
        let client = Client::new(versions, None);
        // The certificate has no such name.
        let mut pair = Pair::new(&plain_server(), &client, "elsewhere.test");
        pair.upward().unwrap();
        pair.downward().unwrap_err();
        assert!(pair.upward().unwrap_err().by_peer);
    }
}

#[test]
fn a_handshake_message_in_endless_small_records_is_bounded() {
    let server = plain_server();
    let client = Client::new(TLS12, None);
    let mut pair = Pair::new(&server, &client, "a.test");
    // A hello that claims 64 KiB less one byte, a byte to a record.
    let mut start = vec![22, 3, 1, 0, 4, 1, 0, 0xff, 0xff];
    pair.deliver(&mut start).unwrap();
    let mut fed = 0;
    let refused = loop {
        let mut some: Vec<u8> = [22, 3, 1, 0, 1, 0].repeat(500);
        fed += some.len();
        assert!(fed < 400_000, "never refused");
        if let Err(fatal) = pair.deliver(&mut some) {
            break fatal;
        }
    };
    assert_eq!(refused.reason, Refusal::ProtocolError);
    assert!(fed < 110_000, "{fed} bytes were kept");
}

/// How many bytes a piece has, mostly few, sometimes many.
fn pieces() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![1..40usize, 1..3000usize, 1..70_000usize], 1..12)
}

/// Bytes that differ wherever two of them could be mistaken for each other.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 251) as u8 ^ seed).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn bulk_arrives_as_it_was_sent_both_ways(
        tls12: bool,
        writes in pieces(),
        answers in pieces(),
        cuts in pieces(),
        reused: bool,
    ) {
        let versions = if tls12 { TLS12 } else { TLS13 };
        let mut pair = Pair::established(&plain_server(), &Client::new(versions, None), "a.test");
        pair.client.set_buffer_limit(None);
        let (mut sent, mut wire) = (Vec::new(), Vec::new());
        for (seed, len) in writes.iter().enumerate() {
            let text = pattern(*len, seed as u8);
            pair.client.writer().write_all(&text).unwrap();
            sent.extend_from_slice(&text);
        }
        wire.append(&mut pair.client_bytes());
        let mut rest = wire.as_mut_slice();
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at_mut((*cuts.next().unwrap()).min(rest.len()));
            pair.deliver(piece).unwrap();
            rest = after;
        }
        prop_assert!(pair.received == sent);
        prop_assert_eq!(pair.server.waiting_bytes(), 0);

        if reused {
            pair.out = Outgoing::with_memory(vec![0xaa; 1 << 17]);
        }
        let mut sent = Vec::new();
        for (seed, len) in answers.iter().enumerate() {
            let text = pattern(*len, seed as u8);
            pair.server.send(&text, &mut pair.out).unwrap();
            sent.extend_from_slice(&text);
        }
        prop_assert!(pair.downward().unwrap() == sent);
    }

    /// A byte of the client's changed anywhere, in any flight: never a panic, never plaintext that was not sent, never a
    /// standing that was not earned.
    #[test]
    fn a_changed_byte_anywhere_gains_nothing(tls12: bool, at: prop::sample::Index, value in 1u8.., piece in 1..3000usize) {
        let (server, client) = mutual(if tls12 { TLS12 } else { TLS13 });
        let mut pair = Pair::new(&server, &client, "a.test");
        pair.piece = piece;
        let mut flights = Vec::new();
        let mut whole = Pair::new(&server, &client, "a.test");
        for _ in 0..6 {
            let mut bytes = whole.client_bytes();
            flights.push(bytes.len());
            if whole.deliver(&mut bytes).is_err() || whole.downward().is_err() {
                break;
            }
        }
        client.forget_tickets();
        let mut target = at.index(flights.iter().sum::<usize>());
        for _ in 0..6 {
            let mut bytes = pair.client_bytes();
            match bytes.get_mut(target) {
                Some(byte) => { *byte ^= value; target = usize::MAX; }
                None => target = target.saturating_sub(bytes.len()),
            }
            if pair.deliver(&mut bytes).is_err() || pair.downward().is_err() {
                break;
            }
        }
        prop_assert_eq!(&pair.received, b"");
        if let Some(established) = pair.server.establish() {
            // Bytes that no one authenticates: the version of a record.
            prop_assert_eq!(established.standing.verdict, Verdict::Success);
        }
    }
}
