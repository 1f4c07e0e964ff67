//! A client and our [`Connection`], joined by byte vectors.

use std::rc::Rc;
use std::sync::Arc;

use rustls::{AlertDescription, ClientConnection, Error};

use super::client::Client;
use super::pki::{TICKET_LIFETIME_S, now_s};
use crate::policy::Refusal;
use crate::tls::failure;
use crate::tls::scope::Trust;
use crate::tls::ticket::Keyring;
use crate::tls::{Connection, Established, Fatal, Outgoing, Tenant};

/// More flights than any handshake has.
const ROUNDS_MAX: usize = 20;

/// How a handshake failed, as each end saw it.
#[derive(Debug)]
pub struct Failure {
    /// What our side says.
    pub fatal: Fatal,
    /// What the client was told.
    pub alert: Option<AlertDescription>,
}

impl Failure {
    /// Our reason and the client's alert.
    pub fn told(&self) -> (Refusal, Option<AlertDescription>) {
        (self.fatal.reason, self.alert)
    }
}

/// The server's surroundings: what a worker gives each connection.
pub struct Server {
    pub tenant: Rc<Tenant>,
    pub keyring: Arc<Keyring>,
    pub now_unix_s: u64,
    pub source: Option<std::net::IpAddr>,
}

impl Server {
    /// Serves a tenant now, under ticket keys of its own.
    pub fn new(tenant: Rc<Tenant>) -> Self {
        let now_unix_s = now_s();
        Self { tenant, keyring: Arc::new(Keyring::generate(now_unix_s).unwrap()), now_unix_s, source: None }
    }

    /// Another tenant of the same worker: the same ticket keys.
    pub fn beside(&self, tenant: Rc<Tenant>) -> Self {
        Self { tenant, keyring: Arc::clone(&self.keyring), now_unix_s: now_s(), source: self.source }
    }

    pub fn trust(&self) -> Box<Trust> {
        let lifetime_s = u64::from(TICKET_LIFETIME_S);
        let tenant = Rc::clone(&self.tenant);
        Box::new(Trust::new(tenant, Arc::clone(&self.keyring), lifetime_s, self.source, self.now_unix_s))
    }

    /// A whole handshake by this name; the client takes its ticket.
    pub fn shake(&self, client: &Client, name: &str) -> Result<Established, Failure> {
        Pair::new(self, client, name).shake()
    }
}

/// Both ends of one connection.
pub struct Pair {
    pub client: ClientConnection,
    pub server: Connection,
    /// Records for the client.
    pub out: Outgoing,
    /// Plaintext our side has received.
    pub received: Vec<u8>,
    /// Bytes of the client come in pieces of this size.
    pub piece: usize,
}

impl Pair {
    pub fn new(server: &Server, client: &Client, name: &str) -> Self {
        let name = name.to_owned().try_into().unwrap();
        Self {
            client: ClientConnection::new(Arc::clone(&client.config), name).unwrap(),
            server: Connection::new(server.trust()).unwrap(),
            out: Outgoing::default(),
            received: Vec::new(),
            piece: usize::MAX,
        }
    }

    /// A pair whose handshake is complete.
    pub fn established(server: &Server, client: &Client, name: &str) -> Self {
        let mut pair = Self::new(server, client, name);
        if let Err(failure) = pair.shake() {
            panic!("{failure:?}");
        }
        pair
    }

    /// What the client wants to send, taken from it.
    pub fn client_bytes(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.client.wants_write() {
            self.client.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// Gives bytes to our side, in pieces.
    pub fn deliver(&mut self, bytes: &mut [u8]) -> Result<(), Fatal> {
        for piece in bytes.chunks_mut(self.piece) {
            self.server.receive(piece, &mut self.out, |plain| self.received.extend_from_slice(plain))?;
        }
        Ok(())
    }

    /// Moves what the client wants to send to our side.
    pub fn upward(&mut self) -> Result<(), Fatal> {
        let mut bytes = self.client_bytes();
        self.deliver(&mut bytes)
    }

    /// Moves what waits on our side to the client. The plaintext it held is returned.
    pub fn downward(&mut self) -> Result<Vec<u8>, Error> {
        let (bytes, filled) = self.out.take();
        let mut rest = &bytes[..filled];
        let mut plain = Vec::new();
        while !rest.is_empty() {
            self.client.read_tls(&mut rest).unwrap();
            let state = self.client.process_new_packets()?;
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            std::io::Read::read_exact(&mut self.client.reader(), &mut plain[start..]).unwrap();
        }
        Ok(plain)
    }

    /// Runs the handshake to its end at both ends, and gives the client what came with it.
    pub fn shake(&mut self) -> Result<Established, Failure> {
        for _ in 0..ROUNDS_MAX {
            if let Err(fatal) = self.upward() {
                let alert = match self.downward() {
                    Err(Error::AlertReceived(alert)) => Some(alert),
                    Ok(_) => None,
                    Err(error) => panic!("the client finds fault with what it was sent: {error}"),
                };
                // What the log says is what was on the wire.
                let named = alert.and_then(|alert| failure::alert_in(&[21, 3, 3, 0, 2, 2, alert.into()]));
                assert_eq!(fatal.alert, named, "{fatal:?}");
                return Err(Failure { fatal, alert });
            }
            if !self.server.is_handshaking() && !self.client.wants_write() {
                let established = self.server.establish().expect("the handshake is complete");
                self.downward().expect("the client takes its ticket");
                return Ok(established);
            }
            self.downward().expect("the client goes along");
        }
        panic!("no end after {ROUNDS_MAX} rounds");
    }
}
