//! From an accepted socket to an established session, or to a refusal.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use rustls::ProtocolVersion;

use crate::policy::{Refusal, Verdict};
use crate::registry::ClientAuthMode;
use crate::ring::{self, Signal, Socket};
use crate::telemetry::counters::{Counter, Limit, Ticket, Version};
use crate::tls::hello::{Hello, HelloReader, INTERNAL_ERROR, Read, UNRECOGNIZED_NAME};
use crate::tls::scope::Trust;
use crate::tls::{Connection, Outgoing, Tenant, failure};

use super::Published;
use super::admission::Slot;
use super::cache::Lookup;
use super::core::{Core, Shaking, now_unix_s};
use super::hellos::{READER_BYTES, Waiting};
use super::remote::{self, Remote, Unannounced};
use super::sessions::{self, Session};

/// Why no session came of a connection.
pub enum Failed {
    /// The client went away; nothing is refused.
    Gone,
    /// The client is refused.
    Refused(Box<Denied>),
}

/// A refusal, with all there is to say about it.
pub struct Denied {
    pub reason: Refusal,
    /// What is still to be sent: an alert, as a record.
    pub alert: Outgoing,
    /// The alert by its RFC 8446 name; `None`: none is sent, or it is not known which.
    pub told: Option<&'static str>,
    /// The client's leaf certificate, DER; empty without one.
    pub leaf: Vec<u8>,
    pub detail: Option<String>,
}

/// What is known of a handshake while it runs, for whoever must tell how it ended.
pub struct Progress {
    /// Whom the socket names, until a PROXY header names another.
    pub remote: RefCell<Remote>,
    /// The name the client asked for, once known.
    pub server_name: RefCell<Option<Box<str>>>,
}

/// An established session and what came with it.
pub struct Started {
    pub session: Rc<Session>,
    /// Plaintext that came with the client's last handshake message.
    pub early: Vec<u8>,
    /// Records that wait to be sent: the ticket.
    pub out: Outgoing,
}

impl Progress {
    /// Of a connection that has just been accepted.
    pub fn new(remote: Remote) -> Self {
        Self { remote: RefCell::new(remote), server_name: RefCell::default() }
    }
}

impl From<Unannounced> for Failed {
    fn from(unannounced: Unannounced) -> Self {
        match unannounced {
            Unannounced::Gone => Self::Gone,
            Unannounced::Refused(detail) => Self::refused(Refusal::ProtocolError, &[]).because(Some(detail)),
        }
    }
}

impl Failed {
    fn refused(reason: Refusal, alert: &[u8]) -> Self {
        let mut out = Outgoing::default();
        out.extend(alert);
        let told = failure::alert_in(alert);
        Self::Refused(Box::new(Denied { reason, alert: out, told, leaf: Vec::new(), detail: None }))
    }

    /// With what there is to say beyond the reason.
    fn because(mut self, what: Option<String>) -> Self {
        if let Self::Refused(denied) = &mut self {
            denied.detail = what;
        }
        self
    }

    fn unnamed(name: Option<&str>) -> Self {
        let reason = if name.is_some() { Refusal::UnknownHostname } else { Refusal::NoSni };
        Self::refused(reason, &UNRECOGNIZED_NAME)
    }
}

/// How long a client may keep its handshake waiting, all in all, while others wait for a slot. A round trip around the
/// world takes 0.3 s; one lost packet adds a second. Bytes that complete no message count for nothing: who sends one a
/// second holds a slot as well as who sends none.
const STALL: Duration = Duration::from_millis(1500);

/// How often a client that has used its time up is looked at again: somebody may have come to wait meanwhile.
const STALL_LOOK: Duration = Duration::from_millis(100);

/// A connection that may shake hands now.
struct Admitted {
    hello: Hello,
    /// The hello as it came.
    bytes: Vec<u8>,
    /// What the tenant was found in.
    published: Arc<Published>,
    tenant: Rc<Tenant>,
    slot: Slot,
    leave: Leave,
}

/// Whether leave to do a heavy step is at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Granted in this turn, and not used up.
    Given,
    /// To be waited for.
    Needed,
}

/// Runs a handshake to its end. The caller bounds its time.
pub async fn run(core: &Core, socket: &Socket, progress: &Progress) -> Result<Started, Failed> {
    let Admitted { hello, bytes, published, tenant, slot, leave } = admitted(core, socket, progress).await?;
    let shaking = Shaking::new(core);
    // Kept with the session: rules that are published later may look at it.
    let remote = progress.remote.borrow().clone();
    let mut trust = Box::new(Trust::new(
        tenant,
        Arc::clone(&published.ticket_keys),
        core.config.ticket_lifetime.as_secs(),
        remote.source(),
        now_unix_s(),
    ));
    trust.verdicts = Some(Rc::clone(&core.verdicts));
    let mut tls = Connection::new(trust).map_err(|_| Failed::refused(Refusal::RecordUnreadable, &INTERNAL_ERROR))?;
    let mut early = Vec::new();
    let out = exchange(core, socket, &mut tls, bytes, leave, &mut early).await?;
    drop((shaking, slot));
    establish(core, published.snapshot.generation, hello, remote, tls, early, out)
}

/// Reads the hello and waits for a slot, unless the memory of those who do becomes too much.
async fn admitted(core: &Core, socket: &Socket, progress: &Progress) -> Result<Admitted, Failed> {
    let waiting = core.hellos.waiting();
    let mut admitted = pin!(async {
        let by = progress.remote.borrow().must_announce(&core.config);
        let first = match by? {
            Some(by) => announced(core, socket, &waiting, progress, by).await?,
            None => Vec::new(),
        };
        let (hello, bytes) = read_hello(core, socket, &waiting, progress, first).await?;
        progress.server_name.borrow_mut().clone_from(&hello.server_name);
        admit(core, hello, bytes, &waiting).await
    });
    poll_fn(|cx| match admitted.as_mut().poll(cx) {
        Poll::Pending => waiting.poll_ended(cx).map(|()| Err(Failed::refused(Refusal::Overloaded, &[]))),
        ready => ready,
    })
    .await
}

/// Reads the PROXY header, and remembers whom it names. Returns what came behind it.
async fn announced(
    core: &Core,
    socket: &Socket,
    waiting: &Waiting,
    progress: &Progress,
    by: SocketAddr,
) -> Result<Vec<u8>, Failed> {
    let header = remote::read_header(socket, by, &core.shard, |bytes| charge(core, waiting, bytes));
    let (remote, first) = Box::pin(header).await?;
    *progress.remote.borrow_mut() = remote;
    Ok(first)
}

/// Reads the hello, of which `first` has come already.
async fn read_hello(
    core: &Core,
    socket: &Socket,
    waiting: &Waiting,
    progress: &Progress,
    mut first: Vec<u8>,
) -> Result<(Hello, Vec<u8>), Failed> {
    let mut reader = HelloReader::default();
    loop {
        let fed = if first.is_empty() {
            socket.receive(|chunk| reader.feed(chunk)).await
        } else {
            Ok(Some(reader.feed(&std::mem::take(&mut first))))
        };
        match fed {
            // rustls' reader holds the bytes once more.
            Ok(Some(Read::Incomplete)) => charge(core, waiting, READER_BYTES + 2 * reader.bytes.len()),
            Ok(Some(Read::Complete(hello))) => return Ok((hello, reader.bytes)),
            Ok(Some(Read::Refused { reason, alert })) => {
                let detail = remote::misplaced_header(&progress.remote.borrow(), &reader.bytes, &core.shard);
                return Err(Failed::refused(reason, &alert).because(detail));
            }
            Ok(None) | Err(_) => return Err(Failed::Gone),
        }
    }
}

fn charge(core: &Core, waiting: &Waiting, bytes: usize) {
    let ended = waiting.set_bytes(bytes);
    core.shard.add(Counter::Limit(Limit::Hellos), ended);
}

/// Resolves the name, waits for a slot of its record, and then has the tenant assembled if this core has not got it.
///
/// Assembling is heavy, so that it needs a slot and leave as every other heavy step does: cold hostnames in a flood wait in
/// the queues that keep floods from others. Of many who ask for one hostname at once the first assembles it.
async fn admit(core: &Core, hello: Hello, bytes: Vec<u8>, waiting: &Waiting) -> Result<Admitted, Failed> {
    let name = hello.server_name.as_deref();
    let mut held: Option<Slot> = None;
    let mut leave = Leave::Needed;
    loop {
        // What was published while it waited counts (DECISIONS 14).
        let published = core.published();
        let Some(record) = core.cache.resolve(&published.snapshot, name) else {
            return Err(Failed::unnamed(name));
        };
        let slot = match held.take().filter(|slot| slot.record() == record.id) {
            Some(slot) => slot,
            None => match core.admission.try_enter(record.id) {
                Some(slot) => slot,
                None => {
                    core.shard.count(Counter::Limit(Limit::Handshakes));
                    charge(core, waiting, bytes.capacity());
                    held = Some(core.admission.enter(record.id).await);
                    leave = Leave::Needed;
                    continue;
                }
            },
        };
        let lookup = match (core.cache.cached(record), leave) {
            (Some(lookup), _) => lookup,
            (None, Leave::Given) => {
                leave = Leave::Needed;
                core.cache.tenant(record)
            }
            (None, Leave::Needed) => {
                ring::heavy().await;
                (held, leave) = (Some(slot), Leave::Given);
                continue;
            }
        };
        return match lookup {
            Lookup::Found(tenant) => Ok(Admitted { hello, bytes, published, tenant, slot, leave }),
            Lookup::Unreadable => Err(Failed::refused(Refusal::RecordUnreadable, &INTERNAL_ERROR)),
        };
    }
}

/// Feeds rustls until the handshake is complete. Returns records that may wait for the first answer.
async fn exchange(
    core: &Core,
    socket: &Socket,
    tls: &mut Connection,
    hello: Vec<u8>,
    mut leave: Leave,
    early: &mut Vec<u8>,
) -> Result<Outgoing, Failed> {
    let mut received = hello;
    let mut out = Outgoing::with_memory(core.buffers.records());
    let mut waited = Duration::ZERO;
    loop {
        // Public-key cryptography is heavy: I/O of other connections goes first.
        if std::mem::replace(&mut leave, Leave::Needed) == Leave::Needed {
            ring::heavy().await;
        }
        if let Err(fatal) = tls.receive(&mut received, &mut out, |plain| early.extend_from_slice(plain)) {
            count_tickets(core, tls);
            if fatal.by_peer {
                return Err(Failed::Gone);
            }
            let leaf = tls.trust().map_or_else(Vec::new, |trust| trust.leaf.clone());
            return Err(Failed::Refused(Box::new(Denied {
                reason: fatal.reason,
                alert: out,
                told: fatal.alert,
                leaf,
                detail: fatal.detail,
            })));
        }
        if !tls.is_handshaking() {
            // TLS 1.2 ends with the server's Finished, which the client waits for; what TLS 1.3 leaves here is a ticket,
            // which travels with the first answer.
            if tls.version() == Some(ProtocolVersion::TLSv1_2) && !out.is_empty() {
                let (bytes, filled) = out.take();
                let (result, memory) = socket.send_prefix(bytes, filled).await;
                core.buffers.keep_records(memory);
                result.map_err(|_| Failed::Gone)?;
            }
            return Ok(out);
        }
        received.clear();
        let (bytes, filled) = out.take();
        let memory = {
            let mut flight = pin!(send_and_receive(socket, bytes, filled, &mut received));
            loop {
                let since = ring::now();
                let left = STALL.saturating_sub(waited).max(STALL_LOOK);
                let arrived = ring::timeout(left, flight.as_mut()).await;
                waited += ring::now().saturating_duration_since(since);
                // Somebody waits for this slot, and this client has let it lie idle: the one who waits is served.
                if waited >= STALL && core.admission.pressed() {
                    return Err(Failed::refused(Refusal::Overloaded, &[]));
                }
                if let Ok(result) = arrived {
                    break result?;
                }
            }
        };
        out = Outgoing::with_memory(memory);
    }
}

/// Sends (unless there is nothing to send) and receives the answer. Both are asked of the kernel at once, which saves a
/// turn of the loop for each flight.
async fn send_and_receive(
    socket: &Socket,
    bytes: Vec<u8>,
    filled: usize,
    received: &mut Vec<u8>,
) -> Result<Vec<u8>, Failed> {
    let mut memory = None;
    let mut send = pin!(async {
        if filled == 0 {
            return (Ok(()), bytes);
        }
        socket.send_prefix(bytes, filled).await
    });
    poll_fn(|cx| {
        if memory.is_none()
            && let Poll::Ready((result, buffer)) = send.as_mut().poll(cx)
        {
            if result.is_err() {
                return Poll::Ready(Err(Failed::Gone));
            }
            memory = Some(buffer);
        }
        if received.is_empty() {
            match socket.poll_receive(cx, |chunk| received.extend_from_slice(chunk)) {
                Poll::Ready(Ok(Some(()))) => {}
                Poll::Ready(Ok(None) | Err(_)) => return Poll::Ready(Err(Failed::Gone)),
                Poll::Pending => return Poll::Pending,
            }
        }
        match memory.take() {
            Some(buffer) => Poll::Ready(Ok(buffer)),
            None => Poll::Pending,
        }
    })
    .await
}

/// The handshake is complete: count it, judge it, and make a session of it.
fn establish(
    core: &Core,
    generation: u64,
    hello: Hello,
    remote: Remote,
    mut tls: Connection,
    early: Vec<u8>,
    out: Outgoing,
) -> Result<Started, Failed> {
    let Some(established) = tls.establish() else { return Err(Failed::Gone) };
    for result in &established.ticket_results {
        core.shard.count(Counter::Ticket(*result));
    }
    if let Some(result) = established.verdict_result {
        core.shard.count(Counter::Verified(result));
    }
    let resumed = established.resumed;
    if resumed {
        core.shard.count(Counter::Ticket(Ticket::Resumed));
    }
    let tenant = established.tenant;
    count_client(core, &tenant, established.standing.verdict);
    let version = match established.version {
        ProtocolVersion::TLSv1_2 => Version::V1_2,
        _ => Version::V1_3,
    };
    let session = Rc::new(Session {
        server_name: hello.server_name,
        tenant: RefCell::new(Rc::clone(&tenant)),
        standing: established.standing,
        resumed,
        remote,
        tls: RefCell::new(tls),
        end: Signal::default(),
        draining: Signal::default(),
        generation: Cell::new(generation),
        request: RefCell::default(),
        streams: RefCell::default(),
        identity: OnceCell::new(),
        why: RefCell::default(),
    });
    let mut judged = sessions::judge(&tenant, &session, now_unix_s());
    // DECISIONS 14: what was published while the handshake ran counts.
    let published = core.published();
    if judged.is_ok() && published.snapshot.generation != generation {
        judged = sessions::rejudge(core, &published.snapshot, &session);
        session.generation.set(published.snapshot.generation);
    }
    match judged {
        Ok(()) => {
            core.shard.count(Counter::HandshakeOk { version, resumed });
            Ok(Started { session, early, out })
        }
        Err(reason) => {
            let tls = session.tls.borrow();
            let leaf =
                tls.peer_certificates().and_then(|chain| chain.first()).map_or_else(Vec::new, |leaf| leaf.to_vec());
            // The handshake is complete, and rustls sends no alert of our choosing any more: the connection just ends. The
            // ticket that waits is not given to a client that is not let in.
            let alert = Outgoing::default();
            let detail = session.why.take().map(String::from);
            Err(Failed::Refused(Box::new(Denied { reason, alert, told: None, leaf, detail })))
        }
    }
}

fn count_client(core: &Core, tenant: &Tenant, verdict: Verdict) {
    if tenant.record.client_auth.mode == ClientAuthMode::Off {
        return;
    }
    core.shard.count(match verdict {
        Verdict::Success => Counter::ClientAccepted,
        Verdict::None => Counter::ClientNone,
        Verdict::Failed(reason) => Counter::ClientRefused(reason),
    });
}

fn count_tickets(core: &Core, tls: &Connection) {
    if let Some(trust) = tls.trust() {
        for result in &trust.ticket_results {
            core.shard.count(Counter::Ticket(*result));
        }
    }
}

/// How long a handshake took, into the histogram.
pub fn record_duration(core: &Core, accepted: Instant) {
    let elapsed_us = Instant::now().saturating_duration_since(accepted).as_micros() as u64;
    core.histograms.borrow_mut().handshake.record_us(elapsed_us);
}
