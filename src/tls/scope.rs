//! What one connection's handshake knows and learns, while rustls works on it.
//!
//! rustls calls the verifier and the ticketer without saying for which connection. Workers are single threads, so each
//! call into rustls runs inside a scope: the connection's [`Trust`] stands in a thread-local for its length. Outside a
//! scope no ticket is minted or opened and no certificate accepted.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::policy::{Refusal, Verdict};
use crate::telemetry::counters::{Ticket, Verified};

use super::tenant::Tenant;
use super::ticket::{Keyring, Sealed};
use super::verdicts::{ChainDigest, Verdicts};

/// The verified path of a client certificate, as far as later checks need it (DECISIONS 12).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Path {
    /// Names the anchor: SHA-256 over its subject, SubjectPublicKeyInfo and name constraints.
    pub anchor: [u8; 32],
    /// Leaf first: SHA-256 of the issuer's SubjectPublicKeyInfo, and the serial number.
    pub elements: Vec<PathElement>,
    /// The earliest notAfter of the path, anchor included, seconds since the Unix epoch.
    pub not_after_unix_s: i64,
}

/// One certificate of a path, as a CRL or a deny list names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PathElement {
    pub issuer_spki_sha256: [u8; 32],
    pub serial: Vec<u8>,
}

/// What is known about the client at the end of a handshake, or sealed in its ticket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    pub verdict: Verdict,
    /// Present exactly when the verdict is `Success`.
    pub path: Option<Path>,
    /// When the client's certificate was verified by a full handshake, seconds since the Unix epoch.
    pub authenticated_unix_s: u64,
}

/// A connection's side of its handshake.
pub struct Trust {
    pub tenant: Rc<Tenant>,
    pub keyring: Arc<Keyring>,
    pub ticket_lifetime_s: u64,
    /// The client's address, when the tenant's rules look at it.
    pub source: Option<IpAddr>,
    /// When the handshake began, seconds since the Unix epoch: what tickets are judged and dated by, so that a slow client
    /// gains no age. Whether a resumed path has ended meanwhile is looked at once more when the handshake is complete.
    pub now_unix_s: u64,
    /// The leaf certificate the client sent in this handshake, DER.
    pub leaf: Vec<u8>,
    /// What the verifier said in this handshake.
    pub verified: Option<Standing>,
    /// The last ticket that opened, until rustls says whether it resumed.
    pub candidate: Option<Sealed>,
    /// Chains this worker has verified before; `None`: every chain is verified anew.
    pub verdicts: Option<Rc<Verdicts>>,
    /// The chain verified in this handshake, to be remembered once the client has proved its key.
    pub unproved: Option<ChainDigest>,
    /// What became of looking for the chain among those verified before, to be counted.
    pub verdict_result: Option<Verified>,
    /// The exact reason of a refusal, noted where it was found.
    pub failure: Option<Refusal>,
    /// What there is to say about it beyond the reason.
    pub detail: Option<String>,
    /// How many tickets this handshake has tried to open.
    pub tickets_tried: u8,
    /// What became of tickets, to be counted.
    pub ticket_results: Vec<Ticket>,
}

impl Trust {
    /// What a handshake for `tenant` begins with.
    pub fn new(
        tenant: Rc<Tenant>,
        keyring: Arc<Keyring>,
        ticket_lifetime_s: u64,
        source: Option<IpAddr>,
        now_unix_s: u64,
    ) -> Self {
        Self {
            tenant,
            keyring,
            ticket_lifetime_s,
            source,
            now_unix_s,
            leaf: Vec::new(),
            verified: None,
            candidate: None,
            verdicts: None,
            unproved: None,
            verdict_result: None,
            failure: None,
            detail: None,
            tickets_tried: 0,
            ticket_results: Vec::new(),
        }
    }

    /// What is known about the client once the handshake is complete.
    pub fn standing(&self, resumed: bool) -> Standing {
        match (&self.verified, &self.candidate) {
            (None, Some(sealed)) if resumed => sealed.standing.clone(),
            (Some(verified), _) if !resumed => verified.clone(),
            _ => Standing { verdict: Verdict::None, path: None, authenticated_unix_s: self.now_unix_s },
        }
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Box<Trust>>> = const { RefCell::new(None) };
}

/// Runs `work` with the connection's trust in scope.
pub fn enter<R>(trust: Box<Trust>, work: impl FnOnce() -> R) -> (Box<Trust>, R) {
    CURRENT.with(|current| {
        let outer = current.borrow_mut().replace(trust);
        assert!(outer.is_none(), "scopes do not nest: one connection at a time calls rustls on a worker");
    });
    let result = work();
    let trust = CURRENT.with(|current| current.borrow_mut().take()).expect("put there above");
    (trust, result)
}

/// Runs `f` on the trust in scope; `None` outside a scope.
pub fn with<R>(f: impl FnOnce(&mut Trust) -> R) -> Option<R> {
    CURRENT.with(|current| current.borrow_mut().as_deref_mut().map(f))
}
