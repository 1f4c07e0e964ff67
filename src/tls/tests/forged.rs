//! ClientHellos of TLS 1.3 that no library sends: several tickets at once, and key exchange modes of choice.
//!
//! The tests hold the ticket keys, so they can read a session's secret out of its ticket and compute a binder (RFC 8446
//! section 4.2.11.2) for whatever hello they make.

use ring::digest::{SHA256, digest};
use ring::hmac;

use super::client::{Client, TLS13};
use super::pair::{Pair, Server};
use super::pki::{Authority, client_auth, record, tenant};
use crate::policy::Refusal;
use crate::registry::ClientAuthMode;
use crate::telemetry::counters::Ticket;
use crate::tls::ticket::Sealed;
use crate::tls::{Connection, Fatal, Outgoing};

const PRE_SHARED_KEY: u16 = 41;
const PSK_KEY_EXCHANGE_MODES: u16 = 45;
const PSK_KE: u8 = 0;
const PSK_DHE_KE: u8 = 1;

/// A ticket and the secret of its session; no secret: the binder is made up.
#[derive(Clone)]
struct Offer {
    ticket: Vec<u8>,
    secret: Vec<u8>,
}

fn garbage(n: u8) -> Offer {
    Offer { ticket: vec![n; 200], secret: vec![n; 32] }
}

fn number(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |all, byte| all << 8 | usize::from(*byte))
}

/// Splits what follows a length of `width` bytes off.
fn vector(bytes: &[u8], width: usize) -> (&[u8], &[u8]) {
    let (len, rest) = bytes.split_at(width);
    rest.split_at(number(len))
}

fn put_vector(out: &mut Vec<u8>, width: usize, content: &[u8]) {
    out.extend_from_slice(&content.len().to_be_bytes()[size_of::<usize>() - width..]);
    out.extend_from_slice(content);
}

/// The extensions of a ClientHello or ServerHello message, and what stands before them.
fn split_hello(message: &[u8]) -> (&[u8], Vec<(u16, &[u8])>) {
    let body = vector(&message[1..], 3).0;
    let (_, rest) = vector(&body[34..], 1);
    let rest = match message[0] {
        1 => vector(vector(rest, 2).1, 1).1,
        _ => &rest[3..],
    };
    let (mut list, _) = vector(rest, 2);
    let mut extensions = Vec::new();
    while !list.is_empty() {
        let kind = number(&list[..2]) as u16;
        let (content, after) = vector(&list[2..], 2);
        extensions.push((kind, content));
        list = after;
    }
    (&body[..body.len() - rest.len()], extensions)
}

fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    parts.iter().for_each(|part| context.update(part));
    context.sign().as_ref().to_vec()
}

/// HKDF-Expand-Label (RFC 8446 section 7.1) to 32 bytes.
fn expand_label(secret: &[u8], label: &str, context: &[u8]) -> Vec<u8> {
    let mut info = vec![0, 32];
    put_vector(&mut info, 1, format!("tls13 {label}").as_bytes());
    put_vector(&mut info, 1, context);
    hmac_sha256(secret, &[&info, &[1]])
}

fn binder(secret: &[u8], truncated_hello: &[u8]) -> Vec<u8> {
    let early = hmac_sha256(&[0; 32], &[secret]);
    let binder_key = expand_label(&early, "res binder", digest(&SHA256, b"").as_ref());
    let finished_key = expand_label(&binder_key, "finished", b"");
    hmac_sha256(&finished_key, &[digest(&SHA256, truncated_hello).as_ref()])
}

/// Makes a hello over with these offers and modes, as a record.
fn forge(hello: &[u8], modes: &[u8], offers: &[Offer]) -> Vec<u8> {
    let (start, extensions) = split_hello(&hello[5..]);
    let mut list = Vec::new();
    for (kind, content) in extensions.into_iter().filter(|(kind, _)| *kind != PRE_SHARED_KEY) {
        list.extend_from_slice(&kind.to_be_bytes());
        if kind == PSK_KEY_EXCHANGE_MODES {
            put_vector(&mut list, 2, &[&[modes.len() as u8], modes].concat());
        } else {
            put_vector(&mut list, 2, content);
        }
    }
    let mut identities = Vec::new();
    for offer in offers {
        put_vector(&mut identities, 2, &offer.ticket);
        identities.extend_from_slice(&[0; 4]);
    }
    let mut shared = Vec::new();
    put_vector(&mut shared, 2, &identities);
    let binders_bytes = 2 + 33 * offers.len();
    list.extend_from_slice(&PRE_SHARED_KEY.to_be_bytes());
    list.extend_from_slice(&((shared.len() + binders_bytes) as u16).to_be_bytes());
    list.extend_from_slice(&shared);

    // The message with all lengths final, up to the binders.
    let mut message = vec![1];
    let body_bytes = start.len() + 2 + list.len() + binders_bytes;
    message.extend_from_slice(&(body_bytes as u32).to_be_bytes()[1..]);
    message.extend_from_slice(start);
    message.extend_from_slice(&((list.len() + binders_bytes) as u16).to_be_bytes());
    message.extend_from_slice(&list);
    let binders: Vec<u8> =
        offers.iter().flat_map(|offer| [vec![32], binder(&offer.secret, &message)].concat()).collect();
    put_vector(&mut message, 2, &binders);
    let mut record = vec![22, 3, 1];
    put_vector(&mut record, 2, &message);
    record
}

/// A server in `request` mode of a wildcard, its CA, and hellos to make over.
struct World {
    acme: Authority,
    server: Server,
}

impl World {
    fn new() -> Self {
        let acme = Authority::root("Acme");
        let record = record(1, "*.w.test", |record| {
            record.client_auth = client_auth(ClientAuthMode::Request, &[acme.der()]);
        });
        Self { server: Server::new(tenant(&record)), acme }
    }

    /// Logs in by a name, and gives the ticket and its secret.
    fn ticket(&self, server: &Server, client: &str, name: &str) -> Offer {
        let certified = self.acme.client(client);
        let client = Client::new(TLS13, Some(&certified));
        server.shake(&client, name).unwrap();
        let hello = Pair::new(server, &client, name).client_bytes();
        let (_, extensions) = split_hello(&hello[5..]);
        let (last, content) = *extensions.last().unwrap();
        assert_eq!(last, PRE_SHARED_KEY);
        let (identities, _) = vector(content, 2);
        let ticket = vector(identities, 2).0.to_vec();
        // rustls' session: name, version, suite, and the secret.
        let state = Sealed::open(&ticket, &server.keyring).unwrap().plaintext;
        assert_eq!(state[0], 1);
        let (_, rest) = vector(&state[1..], 1);
        let secret = vector(&rest[4..], 1).0.to_vec();
        assert_eq!(secret.len(), 32, "a suite of SHA-256");
        Offer { ticket, secret }
    }

    /// Sends a hello with these offers; our side after it, and whether it said that it resumes.
    fn offer(&self, name: &str, modes: &[u8], offers: &[Offer]) -> Result<(Connection, bool), Fatal> {
        let hello = Pair::new(&self.server, &Client::new(TLS13, None), name).client_bytes();
        let mut connection = Connection::new(self.server.trust()).unwrap();
        let mut out = Outgoing::default();
        connection.receive(&mut forge(&hello, modes, offers), &mut out, |_| panic!("no plaintext"))?;
        assert!(connection.is_handshaking());
        let answer = out.as_slice();
        assert_eq!(answer[..2], [22, 3]);
        let (_, extensions) = split_hello(&answer[5..]);
        let resumes = extensions.iter().any(|(kind, _)| *kind == PRE_SHARED_KEY);
        Ok((connection, resumes))
    }
}

fn results(connection: &Connection) -> &[Ticket] {
    &connection.trust().unwrap().ticket_results
}

fn candidate(connection: &Connection) -> Option<&Sealed> {
    connection.trust().unwrap().candidate.as_ref()
}

#[test]
fn one_ticket_with_its_binder_resumes() {
    let world = World::new();
    let ticket = world.ticket(&world.server, "ann", "x.w.test");
    let (connection, resumes) = world.offer("x.w.test", &[PSK_DHE_KE], &[ticket]).unwrap();
    assert!(resumes, "or the forged hellos of the other tests prove nothing");
    assert!(candidate(&connection).is_some());
    assert_eq!(results(&connection), []);
}

#[test]
fn a_ticket_without_its_secret_ends_the_handshake() {
    let world = World::new();
    let mut stolen = world.ticket(&world.server, "ann", "x.w.test");
    stolen.secret = vec![0; 32];
    let fatal = world.offer("x.w.test", &[PSK_DHE_KE], &[stolen]).err().unwrap();
    assert_eq!(fatal.reason, Refusal::ProtocolError);
}

#[test]
fn a_mode_that_is_not_resumed_in_leaves_nothing_of_the_ticket() {
    let world = World::new();
    let ticket = world.ticket(&world.server, "ann", "x.w.test");
    for modes in [&[PSK_KE][..], &[PSK_KE, 7]] {
        let (connection, resumes) = world.offer("x.w.test", modes, std::slice::from_ref(&ticket)).unwrap();
        assert!(!resumes);
        assert!(candidate(&connection).is_none(), "the ticket opened, and must be forgotten");
        let trust = connection.trust().unwrap();
        assert_eq!(trust.standing(false).verdict, crate::policy::Verdict::None);
    }
    let (_, resumes) = world.offer("x.w.test", &[PSK_KE, PSK_DHE_KE], &[ticket]).unwrap();
    assert!(resumes);
}

#[test]
fn the_ticket_that_is_resumed_with_is_the_one_that_speaks() {
    let world = World::new();
    let elsewhere = world.ticket(&world.server, "ann", "x.w.test");
    let here = world.ticket(&world.server, "bob", "y.w.test");
    let bob = Sealed::open(&here.ticket, &world.server.keyring).unwrap();
    // Opens, but is of another name: rustls goes on to the next.
    let offers = [elsewhere.clone(), here.clone()];
    let (connection, resumes) = world.offer("y.w.test", &[PSK_DHE_KE], &offers).unwrap();
    assert!(resumes);
    assert_eq!(candidate(&connection), Some(&bob));
    // The first that can be resumed with ends the search.
    let offers = [here, elsewhere.clone(), garbage(1)];
    let (connection, resumes) = world.offer("y.w.test", &[PSK_DHE_KE], &offers).unwrap();
    assert!(resumes);
    assert_eq!(candidate(&connection), Some(&bob));
    assert_eq!(results(&connection), []);
    // One that opens and is of no use, and one that does not open: neither speaks.
    for offers in [[elsewhere.clone(), garbage(1)], [garbage(1), elsewhere]] {
        let (connection, resumes) = world.offer("y.w.test", &[PSK_DHE_KE], &offers).unwrap();
        assert!(!resumes);
        assert!(candidate(&connection).is_none());
        assert_eq!(results(&connection), [Ticket::DeclinedUnknown]);
    }
}

#[test]
fn a_ticket_of_another_record_beside_does_not_get_in_the_way() {
    let world = World::new();
    let other = record(2, "*.w.test", |record| {
        record.client_auth = client_auth(ClientAuthMode::Request, &[world.acme.der()]);
    });
    let other = world.server.beside(tenant(&other));
    let foreign = world.ticket(&other, "ann", "x.w.test");
    let own = world.ticket(&world.server, "bob", "x.w.test");
    let (connection, resumes) = world.offer("x.w.test", &[PSK_DHE_KE], &[foreign.clone(), own]).unwrap();
    assert!(resumes);
    assert_eq!(results(&connection), [Ticket::DeclinedRecord]);
    assert_eq!(candidate(&connection).unwrap().record_id, [1; 16]);
    let (connection, resumes) = world.offer("x.w.test", &[PSK_DHE_KE], &[foreign]).unwrap();
    assert!(!resumes);
    assert!(candidate(&connection).is_none());
}

#[test]
fn only_so_many_tickets_of_a_hello_are_tried() {
    let world = World::new();
    let own = world.ticket(&world.server, "ann", "x.w.test");
    let after = |count: u8| [(1..=count).map(garbage).collect(), vec![own.clone()]].concat();
    let (connection, resumes) = world.offer("x.w.test", &[PSK_DHE_KE], &after(3)).unwrap();
    assert!(resumes);
    assert_eq!(results(&connection), [Ticket::DeclinedUnknown; 3]);
    for (count, excess) in [(4, 1), (60, 57)] {
        let (connection, resumes) = world.offer("x.w.test", &[PSK_DHE_KE], &after(count)).unwrap();
        assert!(!resumes);
        assert!(candidate(&connection).is_none());
        let expected = [[Ticket::DeclinedUnknown; 4].to_vec(), vec![Ticket::DeclinedExcess; excess]].concat();
        assert_eq!(results(&connection), expected);
    }
}
