//! The established connections of a worker, and their judgement when trust changes (I6).

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use slab::Slab;

use crate::policy::{Facts, Identity, Refusal, Verdict};
use crate::registry::{ClientAuthMode, Snapshot};
use crate::ring::{self, Signal};
use crate::telemetry::counters::TunnelEnd;
use crate::tls::scope::{Path, Standing};
use crate::tls::{Connection, Tenant, identity};

use super::cache::Lookup;
use super::core::{Core, now_unix_s};
use super::remote::Remote;

/// One established connection: what it rests on, and how to end it.
pub struct Session {
    /// As the client named it, normalised.
    pub server_name: Option<Box<str>>,
    pub tenant: RefCell<Rc<Tenant>>,
    pub standing: Standing,
    /// The handshake resumed an earlier session.
    pub resumed: bool,
    pub remote: Remote,
    pub tls: RefCell<Connection>,
    /// Set to end the connection from outside.
    pub end: Signal<TunnelEnd>,
    /// Set when the worker drains: a connection that goes on waiting for its next request ends.
    pub draining: Signal<()>,
    /// The generation this session was judged by last.
    pub generation: Cell<u64>,
    /// The request that is under way, on a connection that has one at a time.
    pub request: RefCell<Requested>,
    /// Those of an HTTP/2 connection.
    pub streams: RefCell<Slab<Rc<Underway>>>,
    /// What the client's leaf certificate says, once a rule has asked; `None` without one.
    pub identity: OnceCell<Option<Box<Identity>>>,
    /// What there is to say, beyond the reason, about why it was not let in or is ended; for the log.
    pub why: RefCell<Option<Box<str>>>,
}

/// What rules can know of a request that is under way (DECISIONS 12).
#[derive(Default)]
pub enum Requested {
    /// There is none.
    #[default]
    Nothing,
    /// There is one, whose path an origin could read in more than one way: no rule can judge it.
    Unseen,
    Seen {
        method: Box<str>,
        path: Box<str>,
    },
}

/// A request that is under way on a stream of its own.
#[derive(Default)]
pub struct Underway {
    pub requested: Requested,
    /// Set when the rules of today deny it: its stream ends, and no other.
    pub denied: Signal<Refusal>,
}

/// All sessions of a worker.
#[derive(Default)]
pub struct Sessions {
    open: RefCell<Slab<Rc<Session>>>,
}

/// A session's place; leaving it when dropped.
pub struct Registered {
    core: Rc<Core>,
    key: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // The session itself is dropped outside the borrow.
        let session = self.core.sessions.open.borrow_mut().try_remove(self.key);
        drop(session);
    }
}

impl Sessions {
    /// Enters a session.
    pub fn register(core: &Rc<Core>, session: Rc<Session>) -> Registered {
        if core.draining.get().is_some() {
            session.draining.set(());
        }
        let key = core.sessions.open.borrow_mut().insert(session);
        Registered { core: Rc::clone(core), key }
    }

    /// Tells every session that no further request is wanted.
    pub fn drain_all(&self) {
        for (_, session) in self.open.borrow().iter() {
            session.draining.set(());
        }
    }

    /// Ends every session.
    pub fn end_all(&self, end: TunnelEnd) {
        for (_, session) in self.open.borrow().iter() {
            session.end.set(end);
        }
    }

    fn get(&self, key: usize) -> Option<Rc<Session>> {
        self.open.borrow().get(key).cloned()
    }

    fn keys(&self) -> Vec<usize> {
        self.open.borrow().iter().map(|(key, _)| key).collect()
    }
}

/// How long a sweep judges sessions before other work of the core goes on, about a millisecond, in microseconds.
///
/// A session whose record has not changed is a comparison of pointers; one whose anchor is gone may take a few signatures of
/// about 55 us. With a third of the core a sweep judges some 5,000 sessions anew in a second, whatever handshakes wait: it
/// does not stand in their queue, since withdrawn trust must act within a second (I6) under a flood too.
const SWEEP_STEP_US: u128 = 300;

/// Judges every open session by the snapshot served now, a few at a time between the core's other work. Sessions that
/// begin meanwhile compare generations themselves.
pub async fn sweep(core: Rc<Core>) {
    let generation = core.published().snapshot.generation;
    let mut step = Instant::now();
    for key in core.sessions.keys() {
        if step.elapsed().as_micros() >= SWEEP_STEP_US {
            ring::sleep_until(ring::now()).await;
            step = Instant::now();
        }
        let published = core.published();
        if published.snapshot.generation != generation {
            // A newer sweep is under way.
            return;
        }
        if let Some(session) = core.sessions.get(key)
            && let Err(reason) = rejudge(&core, &published.snapshot, &session)
        {
            session.why.borrow_mut().get_or_insert_with(|| format!("it would be refused now: {reason}").into());
            session.end.set(TunnelEnd::TrustChanged);
        }
    }
}

/// Whether the session would be let in by this snapshot. If so it rests on the new tenant from now on.
pub fn rejudge(core: &Core, snapshot: &Snapshot, session: &Session) -> Result<(), Refusal> {
    let resolution = match &session.server_name {
        Some(name) => snapshot.resolve(name),
        None => snapshot.resolve_default(),
    };
    let record = resolution.record().ok_or(Refusal::TrustChanged)?;
    let old = Rc::clone(&session.tenant.borrow());
    if Arc::ptr_eq(record, &old.record) {
        return Ok(());
    }
    // DECISIONS 16: a name that now belongs to another record takes its connections along to nobody.
    if record.id != old.record.id {
        return Err(Refusal::TrustChanged);
    }
    // What is forwarded in another way now is judged in another way, too: the client connects anew.
    if record.mode != old.record.mode {
        return Err(Refusal::TrustChanged);
    }
    let Lookup::Found(tenant) = core.cache.tenant(record) else { return Err(Refusal::RecordUnreadable) };
    check_verdict(&old, &tenant, session, now_unix_s())?;
    judge_rules(&tenant, session)?;
    *session.tenant.borrow_mut() = tenant;
    Ok(())
}

/// Whether this connection may go on with its verdict. Its origin was told the one it began with, so where a new connection
/// would get another today, this one ends and the next one tells.
fn check_verdict(old: &Tenant, tenant: &Tenant, session: &Session, now_unix_s: u64) -> Result<(), Refusal> {
    let mode = tenant.record.client_auth.mode;
    let verdict = session.standing.verdict;
    // The path's end was taken without the dates of its CA, and those count now.
    let ca_dates_count = old.record.client_auth.allow_expired_ca && !tenant.record.client_auth.allow_expired_ca;
    match verdict {
        // Nobody is asked any more: what was proved before harms nobody.
        _ if mode == ClientAuthMode::Off => Ok(()),
        Verdict::Success if ca_dates_count || !tenant.still_stands(&session.standing, now_unix_s) => {
            // The anchor is gone: another one of the new set may carry the chain (a CA renewed under its old key).
            let path = verify_again(tenant, session, now_unix_s)?;
            // The connection's end is set for the old path: one that ends earlier must be made anew.
            if session.standing.path.as_ref().is_none_or(|old| path.not_after_unix_s < old.not_after_unix_s) {
                return Err(Refusal::TrustChanged);
            }
            Ok(())
        }
        Verdict::None if mode == ClientAuthMode::Require => Err(Refusal::NoCertificate),
        Verdict::Failed(reason) if mode == ClientAuthMode::Require => Err(reason),
        // Trust that changed may have made the certificate acceptable.
        Verdict::Failed(_)
            if old.binding.trust_digest != tenant.binding.trust_digest
                && verify_again(tenant, session, now_unix_s).is_ok() =>
        {
            Err(Refusal::TrustChanged)
        }
        Verdict::Success | Verdict::None | Verdict::Failed(_) => Ok(()),
    }
}

/// Verifies the chain the client sent by the CAs of this tenant.
fn verify_again(tenant: &Tenant, session: &Session, now_unix_s: u64) -> Result<Path, Refusal> {
    let verifier = tenant.base.verifier.as_ref().ok_or(Refusal::TrustChanged)?;
    let tls = session.tls.borrow();
    let (leaf, rest) = tls.peer_certificates().and_then(|chain| chain.split_first()).ok_or(Refusal::TrustChanged)?;
    verifier.verify(leaf, rest, now_unix_s as i64)
}

/// Judges a session whose handshake has just been completed, under the tenant it began with.
pub fn judge(tenant: &Tenant, session: &Session, now_unix_s: u64) -> Result<(), Refusal> {
    // A client may take the whole time of a handshake for it, and its certificate or ticket was looked at when it began.
    if session.standing.path.as_ref().is_some_and(|path| now_unix_s as i64 > path.not_after_unix_s) {
        return Err(Refusal::Expired);
    }
    judge_rules(tenant, session)
}

/// Judges the hostname's rules for an established session, and for the request that is under way. Rules that look at a
/// request are judged with it: without one, the next request meets them (DECISIONS 15).
pub fn judge_rules(tenant: &Tenant, session: &Session) -> Result<(), Refusal> {
    if !tenant.record.rules.needs_request() {
        return judge_request(tenant, session, None);
    }
    for (_, underway) in session.streams.borrow().iter() {
        if let Err(reason) = judge_requested(tenant, session, &underway.requested) {
            underway.denied.set(reason);
        }
    }
    judge_requested(tenant, session, &session.request.borrow())
}

fn judge_requested(tenant: &Tenant, session: &Session, requested: &Requested) -> Result<(), Refusal> {
    match requested {
        Requested::Nothing => Ok(()),
        // Undecidable, and so denied.
        Requested::Unseen => judge_request(tenant, session, None),
        Requested::Seen { method, path } => judge_request(tenant, session, Some((method, path))),
    }
}

/// Judges the hostname's rules for a request of a session, by its method and path.
pub fn judge_request(tenant: &Tenant, session: &Session, request: Option<(&str, &str)>) -> Result<(), Refusal> {
    let rules = &tenant.record.rules;
    if rules.is_empty() {
        return Ok(());
    }
    let identity = if rules.needs_identity() { session.identity()? } else { None };
    // Where nobody is asked any more, what was proved before counts for nothing: a new client has no verdict either.
    let asked = tenant.record.client_auth.mode != ClientAuthMode::Off;
    let facts = Facts {
        verdict: if asked { session.standing.verdict } else { Verdict::None },
        identity,
        source: session.remote.source(),
        method: request.map(|(method, _)| method),
        path: request.map(|(_, path)| path),
    };
    rules.judge(&facts).inspect_err(|_| *session.why.borrow_mut() = rules.explain(&facts).map(String::into_boxed_str))
}

impl Session {
    /// What the client's leaf certificate says; `None` without one.
    ///
    /// # Errors
    ///
    /// [`Refusal::MalformedCertificate`].
    pub fn identity(&self) -> Result<Option<&Identity>, Refusal> {
        if let Some(known) = self.identity.get() {
            return Ok(known.as_deref());
        }
        let identity = {
            let tls = self.tls.borrow();
            match tls.peer_certificates().and_then(|chain| chain.first()) {
                Some(leaf) => Some(Box::new(identity::parse(leaf).map_err(|_| Refusal::MalformedCertificate)?)),
                None => None,
            }
        };
        Ok(self.identity.get_or_init(|| identity).as_deref())
    }
}
