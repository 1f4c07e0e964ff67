//! 055-059: records a client writes itself once the handshake is done, which no TLS library would send.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets as Secrets;

use crate::harness::origin::Manner;
use crate::harness::{ACME, Edge, Origin, World};

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// The client's sending side of an established TLS 1.3 connection.
struct Forger {
    socket: TcpStream,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    fn open(world: &World, edge: &Edge) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(world.servers.der().clone()).expect("the test's own CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let name = ACME.try_into().expect("a hostname");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut socket = TcpStream::connect(edge.address()).expect("the edge accepts");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket.set_nodelay(true).expect("an option");
        while client.is_handshaking() || client.wants_write() {
            client.complete_io(&mut socket).expect("the edge shakes hands");
        }
        let (sequence, secrets) = client.dangerous_extract_secrets().expect("asked for").tx;
        let (algorithm, key, iv) = match &secrets {
            Secrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Secrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => panic!("the edge prefers AES"),
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).expect("a key of the right length"));
        let iv = iv.as_ref().try_into().expect("12 bytes");
        Self { socket, key, iv, sequence }
    }

    /// A record of RFC 8446 section 5.2 with this inner type and content.
    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut inner = content.to_vec();
        inner.push(kind);
        let [high, low] = u16::try_from(inner.len() + 16).expect("a short record").to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let mut nonce = self.iv;
        for (byte, count) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= count;
        }
        self.sequence += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).expect("sealing");
        [&header[..], &inner].concat()
    }

    /// Reads whatever comes, so that the edge can go on sending.
    fn drain(&self) {
        let mut reader = self.socket.try_clone().expect("a second handle");
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while matches!(reader.read(&mut bytes), Ok(1..)) {}
        });
    }
}

/// 055: half a KeyUpdate and then a record that does not decrypt, while the origin's answer is on its way: the connection
/// ends and nothing else does.
#[test]
fn t055_a_broken_record_behind_half_a_message() {
    let world = World::new();
    let origin = Origin::start(Manner::Echo);
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    for attempt in 0..300_u64 {
        let mut forger = Forger::open(&world, &edge);
        forger.drain();
        for _ in 0..4 {
            let data = forger.record(APPLICATION_DATA, &[b'a'; 3000]);
            let _ = forger.socket.write_all(&data);
        }
        // Another point of the echo's way each time.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_micros(attempt * 7 % 400) {
            std::hint::spin_loop();
        }
        let mut wire = forger.record(HANDSHAKE, &[24, 0]);
        let mut forged = forger.record(APPLICATION_DATA, b"zzz");
        *forged.last_mut().expect("a tag") ^= 1;
        wire.extend(forged);
        // The edge may have closed already.
        let _ = forger.socket.write_all(&wire);
    }
    world.client().expect_in(edge.address(), ACME).ping().expect("the edge serves on");
}

/// 056: random records of random types, whole and cut, forged and true: the edge serves on.
#[test]
fn t056_random_records_harm_nobody_else() {
    let world = World::new();
    let origin = Origin::start(Manner::Echo);
    let edge = Edge::start(world.settings().host(world.host(ACME, &origin)));
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 8) % below
    };
    for _ in 0..300 {
        let mut forger = Forger::open(&world, &edge);
        forger.drain();
        let mut wire = Vec::new();
        for _ in 0..=random(12) {
            let kind = [20, 21, HANDSHAKE, APPLICATION_DATA, 24, 0][random(6) as usize];
            let mut content: Vec<u8> = (0..random(40)).map(|_| random(256) as u8).collect();
            match random(4) {
                0 => content = vec![24, 0, 0, 1, random(2) as u8],
                1 => content = vec![24, 0, 0][..1 + random(3) as usize].to_vec(),
                _ => {}
            }
            let mut record = forger.record(kind, &content);
            if random(8) == 0 {
                let at = random(record.len() as u64) as usize;
                record[at] ^= 1 << random(8);
            }
            wire.extend(record);
        }
        wire.truncate(1 + random(wire.len() as u64) as usize);
        for piece in wire.chunks(1 + random(64) as usize) {
            if forger.socket.write_all(piece).is_err() {
                break;
            }
        }
    }
    world.client().expect_in(edge.address(), ACME).ping().expect("the edge serves on");
}
