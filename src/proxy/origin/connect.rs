//! A connection to an origin: the address the balance chooses, an idle connection to it or a new one, and the next address
//! where connecting fails.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustls::crypto::CryptoProvider;
use socket2::SockAddr;

use crate::proxy::buffers::Buffers;
use crate::proxy::http1::ProxyError;
use crate::registry::origins::{DownTable, OriginTable, ResolvedAddress};
use crate::registry::{HostnameRecord, Origin, OriginTls, Scheme};
use crate::ring::{self, Signal, Socket};
use crate::telemetry::counters::{Counter, Ejection, Gauge, OriginConnect, OriginHandshake, Retry, Shard, Timeout};
use crate::tls::Tenant;
use crate::tls::origin::{Client, Failed, Fault};

use super::Address;
use super::balance::{Ask, Balance, Choice, Taken, hash};
use super::budget::Budget;
use super::http2::Stream;
use super::http2::connection::{Connection, NotHttp2};
use super::pool::{Pool, Whose};
use super::tell::Tell;
use super::tls::{NotShaken, Tls};
use super::wire::Wire;

/// Most addresses tried for one client connection. Each may take the connect timeout, and a client that waits longer than
/// a few of them has gone.
const ATTEMPTS_MAX: usize = 3;

/// One origin as a worker sees it: its addresses, what is known of them, and idle connections to them.
#[derive(Default)]
pub struct Upstream {
    balance: RefCell<Balance<ResolvedAddress>>,
    budget: RefCell<Budget>,
    pool: Pool,
    /// How TLS is spoken with it, once it has been.
    tls: RefCell<Option<Rc<Client>>>,
    /// Connections of HTTP/2, idle or not.
    http2: RefCell<Vec<Rc<Connection>>>,
    /// Connections of HTTP/2 that are being made, for those who want one more of the kind.
    dialling: RefCell<Vec<Dialling>>,
}

/// A connection that is being made.
struct Dialling {
    address: Rc<Address>,
    whose: Whose,
    signal: Rc<Signal<Dialled>>,
}

/// What came of making a connection that others wait for.
#[derive(Clone, Copy)]
enum Dialled {
    Http2,
    /// The origin chose HTTP/1.1.
    Http1,
    Failed(OriginConnect),
    /// Whoever made it has gone.
    Abandoned,
}

/// Makes sure that those who wait for a connection are told.
struct Dial<'a> {
    upstream: &'a Upstream,
    signal: Rc<Signal<Dialled>>,
}

impl Drop for Dial<'_> {
    fn drop(&mut self) {
        self.signal.set(Dialled::Abandoned);
        self.upstream.dialling.borrow_mut().retain(|dialling| !Rc::ptr_eq(&dialling.signal, &self.signal));
    }
}

impl Upstream {
    /// A connection of HTTP/2 with room for one more stream.
    fn http2_with_room(&self, address: &Rc<Address>, whose: Whose) -> Option<Rc<Connection>> {
        let connections = self.http2.borrow();
        let fits = |connection: &&Rc<Connection>| {
            Rc::ptr_eq(&connection.address, address) && connection.whose == whose && connection.has_room()
        };
        connections.iter().find(fits).cloned()
    }

    /// Ends those connections of HTTP/2 that are not to be used any more; their streams go on.
    fn end_http2(&self, unfit: impl Fn(&Connection) -> bool) {
        self.http2.borrow_mut().retain(|connection| {
            if unfit(connection) {
                connection.end();
            }
            !connection.has_ended()
        });
    }
}

/// What of an exchange matters for where it goes, and how.
#[derive(Clone, Copy, Default, Debug)]
pub struct Manner {
    /// What it goes by where the addresses of its origin are chosen by a hash.
    pub key: u64,
    /// The method is HEAD.
    pub to_head: bool,
    /// The client takes trailers.
    pub takes_trailers: bool,
    /// It means to go on as a WebSocket, which needs a connection of its own.
    pub upgrade: bool,
}

/// Whether an exchange is to go over HTTP/2.
fn wants_http2(origin: &Origin, manner: Manner) -> bool {
    origin.may_speak_http2() && (origin.scheme == Scheme::H2c || !manner.upgrade)
}

/// Whose connections a tenant may use.
fn whose(tenant: &Tenant) -> Whose {
    let origin = &tenant.record.origin;
    let tls = origin.tls.as_deref().map(|tls| tls.digest);
    Whose { record: (!origin.share).then_some(tenant.record.id), tls }
}

/// No address of the origin could be reached.
#[derive(Clone, Debug)]
pub struct Unreachable {
    /// What became of the last attempt.
    pub last: OriginConnect,
    /// Where that went; `None`: no address is known.
    pub address: Option<Rc<Address>>,
    /// The checks had said that every address is down.
    pub all_down: bool,
    /// The request as a whole took too long.
    pub out_of_time: bool,
    /// What there is to say about the last attempt, for the log.
    pub detail: Option<String>,
}

impl Unreachable {
    fn new(last: OriginConnect, address: Option<Rc<Address>>, all_down: bool) -> Self {
        Self { last, address, all_down, out_of_time: false, detail: None }
    }

    /// No connection was made while the request had time.
    pub fn out_of_time(address: Rc<Address>) -> Self {
        Self { out_of_time: true, ..Self::new(OriginConnect::TimedOut, Some(address), false) }
    }

    /// What the client is told.
    pub fn error(&self) -> ProxyError {
        match self.last {
            // RFC 9209 section 2.3.3: a health check says that it is down. Names are resolved in the background: what has no
            // address now is no better.
            OriginConnect::Unresolved => ProxyError::DestinationUnavailable,
            OriginConnect::NoResources => ProxyError::ConnectionLimitReached,
            OriginConnect::TlsCertificate => ProxyError::TlsCertificateError,
            OriginConnect::TlsAlert => ProxyError::TlsAlertReceived,
            OriginConnect::TlsProtocol => ProxyError::TlsProtocolError,
            OriginConnect::NotHttp2 => ProxyError::HttpProtocolError,
            _ if self.all_down => ProxyError::DestinationUnavailable,
            OriginConnect::TimedOut => ProxyError::ConnectionTimeout,
            OriginConnect::Unroutable => ProxyError::DestinationIpUnroutable,
            _ => ProxyError::ConnectionRefused,
        }
    }
}

/// Where an exchange is to go. It counts there from now on.
pub struct Place {
    upstream: Rc<Upstream>,
    taken: Taken<ResolvedAddress>,
}

impl Place {
    /// Where it is.
    pub fn address(&self) -> &Rc<Address> {
        self.taken.slot()
    }
}

/// A connection to an origin, for one exchange or one tunnel.
pub struct Lease {
    pub wire: Wire,
    /// It has carried an exchange before.
    pub reused: bool,
    /// The TLS identity it was made under.
    tls: Option<[u8; 32]>,
    taken: Taken<ResolvedAddress>,
    upstream: Rc<Upstream>,
}

impl Lease {
    /// Where it leads.
    pub fn address(&self) -> &Rc<Address> {
        self.taken.slot()
    }
}

/// A worker's origins.
pub struct Origins {
    started: Instant,
    upstreams: RefCell<HashMap<String, Rc<Upstream>, foldhash::fast::RandomState>>,
    watch: Watch,
    /// The numbers that balancing draws.
    random: Cell<u64>,
    tell: Tell,
    provider: Arc<CryptoProvider>,
    /// Memory of connections of HTTP/2, which are driven by tasks of their own.
    buffers: Rc<Buffers>,
    /// The largest head of a response, bytes.
    header_bytes_max: usize,
}

/// Who looks after idle connections: one task of the worker.
#[derive(Default)]
struct Watch {
    waker: RefCell<Option<Waker>>,
    /// It sleeps until a connection may be too old; otherwise it must be woken when one is kept.
    has_timer: Cell<bool>,
}

/// How often idle connections are looked at for their age, at most: a fraction of [`IDLE_MAX`](super::pool::IDLE_MAX).
const WATCH_PAUSE: Duration = Duration::from_millis(250);

impl Origins {
    /// Without any origin. What happens to addresses is told through `tell`; `provider` does the cryptography of TLS.
    pub fn new(tell: Tell, provider: Arc<CryptoProvider>, header_bytes_max: usize) -> Self {
        Self {
            started: Instant::now(),
            upstreams: RefCell::default(),
            watch: Watch::default(),
            // Keys of the standard library's maps are random.
            random: Cell::new(std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)),
            tell,
            provider,
            buffers: Rc::default(),
            header_bytes_max,
        }
    }

    /// Takes newly resolved addresses, and what the checks say of them. What is known of addresses that stay is kept;
    /// origins that are gone are forgotten.
    pub fn update(&self, table: &OriginTable, down: &DownTable, now: Instant, shard: &Shard) {
        let now_ms = now.saturating_duration_since(self.started).as_millis() as u64;
        let mut upstreams = self.upstreams.borrow_mut();
        upstreams.retain(|name, upstream| {
            let stays = table.contains_key(name);
            if !stays {
                upstream.end_http2(|_| true);
                upstream.balance.borrow_mut().replace([], |_| false, now_ms);
                count_idle(shard, upstream.pool.len(), 0);
            }
            stays
        });
        for (name, whereabouts) in table {
            let addresses = &whereabouts.addresses;
            // Kept by name: another string for each publication would be another allocation for each origin.
            if !upstreams.contains_key(name) {
                upstreams.insert(name.clone(), Rc::default());
            }
            let Some(upstream) = upstreams.get(name) else { continue };
            let is_down = |address: &ResolvedAddress| down.get(name).is_some_and(|down| down.contains(address));
            upstream.balance.borrow_mut().replace(addresses.iter().cloned(), is_down, now_ms);
            let before = upstream.pool.len();
            upstream.pool.keep_addresses(addresses, whereabouts.tls.as_deref().map(|tls| tls.digest), shard);
            count_idle(shard, before, upstream.pool.len());
            let tls = whereabouts.tls.as_deref().map(|tls| tls.digest);
            upstream
                .end_http2(|connection| connection.whose.tls != tls || !addresses.contains(connection.address.key()));
        }
        let ejected = upstreams.values().map(|upstream| upstream.balance.borrow().ejected()).sum::<usize>();
        shard.set(Gauge::EjectedOrigins, ejected as u64);
    }

    /// Takes what the checks say of addresses that are as they were.
    pub fn update_down(&self, before: &DownTable, down: &DownTable) {
        let upstreams = self.upstreams.borrow();
        let now_ms = self.now_ms();
        for name in before.keys().chain(down.keys()) {
            if let Some(upstream) = upstreams.get(name) {
                let is_down = |address: &ResolvedAddress| down.get(name).is_some_and(|down| down.contains(address));
                upstream.balance.borrow_mut().mark_down(is_down, now_ms);
            }
        }
    }

    /// Closes idle connections of hostnames whose record is not as it was.
    pub fn keep_owners(&self, unchanged: impl Fn(&Arc<HostnameRecord>) -> bool, shard: &Shard) {
        for upstream in self.upstreams.borrow().values() {
            let before = upstream.pool.len();
            upstream.pool.keep_owners(&unchanged, shard);
            count_idle(shard, before, upstream.pool.len());
            upstream.end_http2(|connection| connection.owner.as_ref().is_some_and(|owner| !unchanged(&owner.record)));
        }
    }

    /// Looks after idle connections for as long as the worker lives: closes those that ended, spoke or grew old.
    pub async fn watch(&self, shard: &Shard) {
        let mut sleep = None;
        poll_fn(|cx| {
            if self.watch.waker.borrow().as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                *self.watch.waker.borrow_mut() = Some(cx.waker().clone());
            }
            loop {
                let now = ring::now();
                let mut next = None;
                let mut open = 0;
                for upstream in self.upstreams.borrow().values() {
                    let due = upstream.pool.discard(now, cx, shard);
                    open += upstream.pool.len();
                    next = [next, due].into_iter().flatten().min();
                }
                shard.set(Gauge::IdleOrigins, open as u64);
                self.watch.has_timer.set(next.is_some());
                let Some(next) = next else {
                    sleep = None;
                    return Poll::<()>::Pending;
                };
                let at = next.max(now + WATCH_PAUSE);
                let sleep = sleep.get_or_insert_with(|| ring::sleep_until(at));
                sleep.reset(at);
                if Pin::new(sleep).poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Chooses where an exchange goes. `key` is what it goes by where the origin hashes; `tried` are the addresses that have
    /// failed it before.
    ///
    /// # Errors
    ///
    /// [`Unreachable`] when no address of the origin is known.
    pub fn choose(
        &self,
        origin: &Origin,
        key: u64,
        tried: &[Rc<Address>],
        shard: &Shard,
    ) -> Result<Place, Unreachable> {
        let upstream = self.upstreams.borrow().get(&origin.name).cloned();
        let sole = upstream.as_ref().and_then(|upstream| upstream.balance.borrow().sole().cloned());
        let choice = upstream.and_then(|upstream| {
            if let Some(slot) = sole {
                return Some((upstream, Choice { slot, in_panic: false }));
            }
            let ask = Ask {
                policy: &origin.balancing.policy,
                key,
                random: self.random(),
                now_ms: self.now_ms(),
                slow_start_ms: origin.balancing.slow_start.as_millis() as u64,
                tried,
            };
            let choice = upstream.balance.borrow_mut().choose(&ask)?;
            Some((upstream, choice))
        });
        let Some((upstream, choice)) = choice else {
            shard.count(Counter::OriginConnect(OriginConnect::Unresolved));
            return Err(Unreachable::new(OriginConnect::Unresolved, None, false));
        };
        if choice.in_panic {
            shard.count(Counter::OriginPanic);
        }
        Ok(Place { upstream, taken: Taken::new(choice.slot) })
    }

    /// An idle connection to this place that the record may use; the place, if there is none.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn pooled(&self, place: Place, tenant: &Tenant, manner: Manner, shard: &Shard) -> Result<Lease, Place> {
        let whose = whose(tenant);
        let tls = whose.tls;
        if wants_http2(&tenant.record.origin, manner)
            && let Some(connection) = place.upstream.http2_with_room(place.taken.slot(), whose)
        {
            let wire = http2(connection, manner);
            return Ok(Lease { wire, reused: true, tls, taken: place.taken, upstream: place.upstream });
        }
        let pool = &place.upstream.pool;
        let before = pool.len();
        let found = pool.take(whose, place.taken.slot(), ring::now(), shard);
        count_idle(shard, before, pool.len());
        match found {
            Some(wire) => Ok(Lease { wire, reused: true, tls, taken: place.taken, upstream: place.upstream }),
            None => Err(place),
        }
    }

    /// Takes back a connection whose exchange ended exactly framed.
    pub fn keep(&self, lease: Lease, tenant: &Rc<Tenant>, shard: &Shard) {
        let origin = &tenant.record.origin;
        let Lease { wire, tls, taken, upstream, .. } = lease;
        if wire.is_http2() {
            drop(wire);
            let idle = upstream.http2.borrow().iter().filter(|connection| connection.is_idle()).count();
            if idle > origin.idle_connections_max {
                let oldest = upstream.http2.borrow().iter().find(|connection| connection.is_idle()).cloned();
                oldest.inspect(|connection| connection.end());
                shard.count(Counter::Pool(crate::telemetry::counters::Pool::Full));
            }
            upstream.end_http2(|_| false);
            return;
        }
        let waker = self.watch.waker.borrow();
        let Some(waker) = waker.as_ref() else { return };
        let mut watch = Context::from_waker(waker);
        let owner = (!origin.share).then(|| Rc::clone(tenant));
        let before = upstream.pool.len();
        let address = Rc::clone(taken.slot());
        upstream.pool.put(wire, address, owner, tls, origin.idle_connections_max, &mut watch, shard);
        count_idle(shard, before, upstream.pool.len());
        if !self.watch.has_timer.get() {
            waker.wake_by_ref();
        }
    }

    /// Connects to a place, and where that fails to others that the balance chooses; all that failed are then in `tried`.
    ///
    /// # Errors
    ///
    /// [`Unreachable`] when none of those tried could be reached in time.
    pub async fn connect(
        &self,
        mut place: Place,
        tenant: &Rc<Tenant>,
        manner: Manner,
        tried: &mut Vec<Rc<Address>>,
        shard: &Shard,
    ) -> Result<Lease, Unreachable> {
        let origin = &tenant.record.origin;
        let count = |result| shard.count(Counter::OriginConnect(result));
        let attempts = place.upstream.balance.borrow().len().min(ATTEMPTS_MAX);
        let all_down = place.upstream.balance.borrow().is_down();
        let mut attempt_number = 1;
        loop {
            let address = Rc::clone(place.taken.slot());
            let attempt = self.attempt(&place.upstream, &address, tenant, manner, shard);
            let attempted = ring::timeout(origin.connect_timeout, attempt).await;
            let (last, detail) = match attempted.unwrap_or_else(|_| Err(OriginConnect::TimedOut.into())) {
                Ok(wire) => {
                    if address.connected(self.now_ms()) {
                        self.came_back(origin, &address, shard);
                    }
                    count(OriginConnect::Ok);
                    let Place { upstream, taken } = place;
                    let tls = whose(tenant).tls;
                    return Ok(Lease { wire, reused: false, tls, taken, upstream });
                }
                Err(Missed { result, detail }) => (result, detail),
            };
            count(last);
            if last == OriginConnect::TimedOut {
                shard.count(Counter::Timeout(Timeout::Connect));
            }
            // What this machine lacks is no fault of the address, and another would not cure it.
            if last != OriginConnect::NoResources {
                let was_ejected = address.ejected().is_some();
                if address.connect_failed(self.now_ms()).is_some() {
                    self.was_ejected(origin, &address, !was_ejected, last.label(), shard);
                }
                tried.push(Rc::clone(&address));
                if attempt_number < attempts {
                    attempt_number += 1;
                    place = self.choose(origin, manner.key, tried, shard)?;
                    continue;
                }
            }
            count(OriginConnect::Exhausted);
            return Err(Unreachable { detail, ..Unreachable::new(last, Some(address), all_down) });
        }
    }

    /// A request that may be sent again begins: it adds to what may be.
    pub fn earn_retry(&self, lease: &Lease) {
        lease.upstream.budget.borrow_mut().earn();
    }

    /// Whether a request may be sent again now, which is counted.
    pub fn may_retry(&self, lease: &Lease, shard: &Shard) -> bool {
        let may = lease.upstream.budget.borrow_mut().spend(self.now_ms());
        shard.count(Counter::Retry(if may { Retry::Sent } else { Retry::BudgetExhausted }));
        may
    }

    /// One attempt, TLS included. The caller bounds its time.
    async fn attempt(
        &self,
        upstream: &Upstream,
        address: &Rc<Address>,
        tenant: &Rc<Tenant>,
        manner: Manner,
        shard: &Shard,
    ) -> Result<Wire, Missed> {
        let origin = &tenant.record.origin;
        // Boxed, so that exchanges without HTTP/2 do not carry it along.
        if wants_http2(origin, manner) {
            return Box::pin(self.attempt_http2(upstream, address, tenant, manner, shard)).await;
        }
        self.socket(upstream, address.key(), origin.tls.as_deref(), false, shard).await
    }

    /// A connection without regard to HTTP/2, but that it is offered over TLS or not.
    async fn socket(
        &self,
        upstream: &Upstream,
        address: &ResolvedAddress,
        tls: Option<&OriginTls>,
        http2: bool,
        shard: &Shard,
    ) -> Result<Wire, Missed> {
        let (target, host) = match address {
            ResolvedAddress::Tcp(address) => (SockAddr::from(*address), None),
            ResolvedAddress::Tls(address, host) => (SockAddr::from(*address), Some(host)),
            ResolvedAddress::Unix(path) => (SockAddr::unix(path).map_err(|_| OriginConnect::Failed)?, None),
        };
        let socket = Socket::connect(target).await.map_err(|error| fault(&error))?;
        let Some(host) = host else { return Ok(Wire::Plain(socket)) };
        // An address of TLS without its identity is one of another generation: nothing is sent in the clear.
        let tls = tls.ok_or(OriginConnect::TlsProtocol)?;
        // Boxed, so that exchanges without TLS do not carry it along.
        let shaken = Box::pin(async {
            let client = self.client(upstream, tls).await?;
            Tls::connect(socket, client.connection(host, http2).map_err(NotShaken::Failed)?).await
        });
        let tls = shaken.await?;
        shard.count(Counter::OriginHandshake(match tls.resumed() {
            true => OriginHandshake::Resumed,
            false => OriginHandshake::Full,
        }));
        Ok(Wire::Tls(Box::new(tls)))
    }

    /// A stream of a connection of HTTP/2: of one that others are making, or of a new one. Many requests at once make one
    /// after the other, each for as many as it has room for.
    async fn attempt_http2(
        &self,
        upstream: &Upstream,
        address: &Rc<Address>,
        tenant: &Rc<Tenant>,
        manner: Manner,
        shard: &Shard,
    ) -> Result<Wire, Missed> {
        let origin = &tenant.record.origin;
        let whose = whose(tenant);
        loop {
            let is_alike = |other: &&Dialling| Rc::ptr_eq(&other.address, address) && other.whose == whose;
            let under_way = upstream.dialling.borrow().iter().find(is_alike).map(|other| Rc::clone(&other.signal));
            let Some(signal) = under_way else { break };
            match signal.wait().await {
                Dialled::Http2 => {
                    if let Some(connection) = upstream.http2_with_room(address, whose) {
                        return Ok(http2(connection, manner));
                    }
                }
                Dialled::Http1 => {
                    return self.socket(upstream, address.key(), origin.tls.as_deref(), false, shard).await;
                }
                Dialled::Failed(result) => return Err(result.into()),
                Dialled::Abandoned => {}
            }
        }
        let dial = Dial { upstream, signal: Rc::default() };
        let (to, signal) = (Rc::clone(address), Rc::clone(&dial.signal));
        upstream.dialling.borrow_mut().push(Dialling { address: to, whose, signal });
        let opened = self.open_http2(upstream, address, tenant, whose, shard).await;
        match opened {
            Ok(Ok(connection)) => {
                upstream.end_http2(|_| false);
                upstream.http2.borrow_mut().push(Rc::clone(&connection));
                // Its own stream first, whoever else is waiting.
                let wire = http2(connection, manner);
                dial.signal.set(Dialled::Http2);
                Ok(wire)
            }
            Ok(Err(wire)) => {
                dial.signal.set(Dialled::Http1);
                Ok(wire)
            }
            Err(missed) => {
                dial.signal.set(Dialled::Failed(missed.result));
                Err(missed)
            }
        }
    }

    /// A new connection of HTTP/2, or what it is where the origin chose HTTP/1.1.
    async fn open_http2(
        &self,
        upstream: &Upstream,
        address: &Rc<Address>,
        tenant: &Rc<Tenant>,
        whose: Whose,
        shard: &Shard,
    ) -> Result<Result<Rc<Connection>, Wire>, Missed> {
        let origin = &tenant.record.origin;
        let wire = self.socket(upstream, address.key(), origin.tls.as_deref(), true, shard).await?;
        if matches!(&wire, Wire::Tls(tls) if !tls.is_http2()) {
            return Ok(Err(wire));
        }
        let owner = (!origin.share).then(|| Rc::clone(tenant));
        let header_bytes = u32::try_from(self.header_bytes_max).unwrap_or(u32::MAX);
        let opened = Connection::open(wire, &self.buffers, header_bytes, address, whose, owner).await;
        opened.map(Ok).map_err(|NotHttp2(detail)| Missed { result: OriginConnect::NotHttp2, detail: Some(detail) })
    }

    /// How TLS is spoken with an origin; put together when it is needed first.
    async fn client(&self, upstream: &Upstream, tls: &OriginTls) -> Result<Rc<Client>, NotShaken> {
        let known = || upstream.tls.borrow().as_ref().filter(|client| client.digest == tls.digest).cloned();
        if let Some(client) = known() {
            return Ok(client);
        }
        // Hundreds of CAs are parsed.
        ring::heavy().await;
        if let Some(client) = known() {
            return Ok(client);
        }
        let client = Client::new(tls, &self.provider);
        let client = client.map_err(|detail| NotShaken::Failed(Failed { fault: Fault::Protocol, detail }))?;
        let client = Rc::new(client);
        *upstream.tls.borrow_mut() = Some(Rc::clone(&client));
        Ok(client)
    }

    /// An exchange at this address was answered.
    pub fn answered(&self, lease: &Lease, origin: &Origin, shard: &Shard) {
        let address = lease.address();
        if !address.is_well() && address.answered(self.now_ms()) {
            self.came_back(origin, address, shard);
        }
    }

    /// An exchange at this address ended in an error of ours.
    pub fn response_failed(&self, lease: &Lease, origin: &Origin, error: ProxyError, shard: &Shard) {
        let address = lease.address();
        let was_ejected = address.ejected().is_some();
        let eject_after = origin.balancing.eject_after;
        let ejected = lease.upstream.balance.borrow().response_failed(address, self.now_ms(), eject_after);
        if ejected.is_some() {
            self.was_ejected(origin, address, !was_ejected, error.label(), shard);
        }
    }

    /// Counts an ejection and, unless a trial went on with it, tells of it.
    fn was_ejected(&self, origin: &Origin, address: &Address, anew: bool, cause: &'static str, shard: &Shard) {
        let Some(ejected) = address.ejected() else { return };
        shard.count(Counter::Ejection(if ejected.by_connect { Ejection::Connect } else { Ejection::Response }));
        if anew {
            shard.set(Gauge::EjectedOrigins, shard.gauge(Gauge::EjectedOrigins) + 1);
            self.tell.ejected(&origin.name, address.key(), cause, self.now_us(), shard);
        }
    }

    fn came_back(&self, origin: &Origin, address: &Address, shard: &Shard) {
        shard.set(Gauge::EjectedOrigins, shard.gauge(Gauge::EjectedOrigins).saturating_sub(1));
        self.tell.came_back(&origin.name, address.key(), self.now_us(), shard);
    }

    fn random(&self) -> u64 {
        // Weyl's sequence through a finaliser: SplitMix64 by another constant.
        self.random.set(self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        hash::mix(self.random.get())
    }

    fn now_us(&self) -> u64 {
        ring::now().saturating_duration_since(self.started).as_micros() as u64
    }

    fn now_ms(&self) -> u64 {
        self.now_us() / 1_000
    }
}

/// Keeps the gauge of idle connections true between two looks of the watch, which counts them all.
fn count_idle(shard: &Shard, before: usize, after: usize) {
    let idle = shard.gauge(Gauge::IdleOrigins) + after as u64;
    shard.set(Gauge::IdleOrigins, idle.saturating_sub(before as u64));
}

/// A stream for one exchange.
fn http2(connection: Rc<Connection>, manner: Manner) -> Wire {
    Wire::Http2(Box::new(Stream::new(connection, manner.to_head, manner.takes_trailers)))
}

/// An attempt that failed.
struct Missed {
    result: OriginConnect,
    /// What there is to say about it, for the log.
    detail: Option<String>,
}

impl From<OriginConnect> for Missed {
    fn from(result: OriginConnect) -> Self {
        Self { result, detail: None }
    }
}

impl From<NotShaken> for Missed {
    fn from(error: NotShaken) -> Self {
        let (result, detail) = match error {
            NotShaken::Broken => {
                (OriginConnect::TlsProtocol, "the origin closed the connection during the TLS handshake".to_owned())
            }
            NotShaken::Failed(Failed { fault, detail }) => match fault {
                Fault::Certificate => (OriginConnect::TlsCertificate, detail),
                Fault::Alert => (OriginConnect::TlsAlert, detail),
                Fault::Protocol => (OriginConnect::TlsProtocol, detail),
            },
        };
        Self { result, detail: Some(detail) }
    }
}

/// What a failed connect means.
fn fault(error: &io::Error) -> OriginConnect {
    match error.raw_os_error() {
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN) => OriginConnect::Unroutable,
        Some(libc::ETIMEDOUT) => OriginConnect::TimedOut,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EADDRNOTAVAIL) => {
            OriginConnect::NoResources
        }
        _ => OriginConnect::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client is told when connecting fails, by the error of the last attempt.
    #[test]
    fn a_failed_connect_is_told_by_its_cause() {
        for (errno, status, label) in [
            (libc::ECONNREFUSED, 502, "connection_refused"),
            (libc::ENOENT, 502, "connection_refused"),
            (libc::EHOSTUNREACH, 502, "destination_ip_unroutable"),
            (libc::ENETUNREACH, 502, "destination_ip_unroutable"),
            (libc::ETIMEDOUT, 504, "connection_timeout"),
            (libc::EMFILE, 503, "connection_limit_reached"),
            (libc::EADDRNOTAVAIL, 503, "connection_limit_reached"),
        ] {
            let last = fault(&io::Error::from_raw_os_error(errno));
            let told = |all_down| Unreachable::new(last, None, all_down).error();
            assert_eq!((told(false).status(), told(false).label()), (status, label), "{errno}");
            // What the checks had said comes first, unless the fault is this machine's.
            let label = if last == OriginConnect::NoResources { label } else { "destination_unavailable" };
            assert_eq!((told(true).status(), told(true).label()), (503, label), "{errno}");
        }
        let unresolved = Unreachable::new(OriginConnect::Unresolved, None, false).error();
        assert_eq!((unresolved.status(), unresolved.label()), (503, "destination_unavailable"));
    }
}
