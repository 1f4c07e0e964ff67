//! A connection to an origin: an idle one, or a new one to the addresses in turn, those that failed lately last.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use socket2::SockAddr;

use crate::registry::origins::{OriginTable, ResolvedAddress};
use crate::registry::{HostnameRecord, Origin, RecordId};
use crate::ring::{self, Socket};
use crate::telemetry::counters::{Counter, Gauge, OriginConnect, Shard, Timeout};
use crate::tls::Tenant;

use super::balance::Balance;
use super::pool::Pool;

/// Most addresses tried for one client connection. Each may take the connect timeout, and a client that waits longer than
/// a few of them has gone.
const ATTEMPTS_MAX: usize = 3;

/// One origin as a worker sees it: its addresses, which of them failed, and idle connections to them.
pub struct Upstream {
    balance: RefCell<Balance<ResolvedAddress>>,
    pool: Pool,
}

/// No address of the origin could be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// What became of the last attempt.
    pub last: OriginConnect,
}

/// A connection to an origin, for one exchange or one tunnel.
pub struct Lease {
    pub socket: Socket,
    /// It has carried an exchange before.
    pub reused: bool,
    address: ResolvedAddress,
    upstream: Rc<Upstream>,
}

impl Lease {
    /// Where it leads.
    pub fn address(&self) -> &ResolvedAddress {
        &self.address
    }
}

/// A worker's origins.
pub struct Origins {
    started: Instant,
    upstreams: RefCell<HashMap<String, Rc<Upstream>, foldhash::fast::RandomState>>,
    watch: Watch,
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

impl Default for Origins {
    fn default() -> Self {
        Self { started: Instant::now(), upstreams: RefCell::default(), watch: Watch::default() }
    }
}

impl Origins {
    /// Takes newly resolved addresses. Those that stay keep their marks; origins that are gone are forgotten.
    pub fn update(&self, table: &OriginTable, shard: &Shard) {
        let mut upstreams = self.upstreams.borrow_mut();
        upstreams.retain(|name, upstream| {
            let stays = table.contains_key(name);
            if !stays {
                count_idle(shard, upstream.pool.len(), 0);
            }
            stays
        });
        for (name, addresses) in table {
            match upstreams.get(name) {
                Some(upstream) => {
                    upstream.balance.borrow_mut().replace(addresses.iter().cloned());
                    let before = upstream.pool.len();
                    upstream.pool.keep_addresses(addresses, shard);
                    count_idle(shard, before, upstream.pool.len());
                }
                None => {
                    let balance = RefCell::new(Balance::new(addresses.iter().cloned()));
                    upstreams.insert(name.clone(), Rc::new(Upstream { balance, pool: Pool::default() }));
                }
            }
        }
    }

    /// Closes idle connections of hostnames whose record is not as it was.
    pub fn keep_owners(&self, unchanged: impl Fn(&Arc<HostnameRecord>) -> bool, shard: &Shard) {
        for upstream in self.upstreams.borrow().values() {
            let before = upstream.pool.len();
            upstream.pool.keep_owners(&unchanged, shard);
            count_idle(shard, before, upstream.pool.len());
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
                    let due = upstream.pool.discard(now, shard);
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

    /// An idle connection to an origin that this record may use, if there is one.
    pub fn pooled(&self, origin: &Origin, record: RecordId, shard: &Shard) -> Option<Lease> {
        let upstream = self.upstreams.borrow().get(&origin.name).cloned()?;
        let before = upstream.pool.len();
        let taken = upstream.pool.take((!origin.share).then_some(record), ring::now(), shard);
        count_idle(shard, before, upstream.pool.len());
        let (socket, address) = taken?;
        Some(Lease { socket, reused: true, address, upstream })
    }

    /// Takes back a connection whose exchange ended exactly framed.
    pub fn keep(&self, lease: Lease, tenant: &Rc<Tenant>, shard: &Shard) {
        let origin = &tenant.record.origin;
        let Lease { socket, address, upstream, .. } = lease;
        let waker = self.watch.waker.borrow();
        let Some(waker) = waker.as_ref() else { return };
        let mut watch = Context::from_waker(waker);
        let owner = (!origin.share).then(|| Rc::clone(tenant));
        let before = upstream.pool.len();
        upstream.pool.put(socket, address, owner, origin.idle_connections_max, &mut watch, shard);
        count_idle(shard, before, upstream.pool.len());
        if !self.watch.has_timer.get() {
            waker.wake_by_ref();
        }
    }

    /// Connects to an origin.
    ///
    /// # Errors
    ///
    /// [`Unreachable`] when the name has no address, or none of those tried could be reached in time.
    pub async fn connect(&self, origin: &Origin, shard: &Shard) -> Result<Lease, Unreachable> {
        let count = |result| shard.count(Counter::OriginConnect(result));
        let upstream = self.upstreams.borrow().get(&origin.name).cloned();
        let Some(upstream) = upstream else {
            count(OriginConnect::Unresolved);
            return Err(Unreachable { last: OriginConnect::Unresolved });
        };
        let mut last = OriginConnect::Unresolved;
        let attempts = upstream.balance.borrow().len().min(ATTEMPTS_MAX);
        for _ in 0..attempts {
            let next = upstream.balance.borrow_mut().next(self.now_ms()).cloned();
            let Some(address) = next else { break };
            match attempt(&address, origin.connect_timeout).await {
                Ok(socket) => {
                    upstream.balance.borrow_mut().succeeded(&address);
                    count(OriginConnect::Ok);
                    return Ok(Lease { socket, reused: false, address, upstream });
                }
                Err(result) => {
                    upstream.balance.borrow_mut().failed(&address, self.now_ms());
                    count(result);
                    last = result;
                    if result == OriginConnect::TimedOut {
                        shard.count(Counter::Timeout(Timeout::Connect));
                    }
                }
            }
        }
        count(if attempts == 0 { OriginConnect::Unresolved } else { OriginConnect::Exhausted });
        Err(Unreachable { last })
    }

    fn now_ms(&self) -> u64 {
        ring::now().saturating_duration_since(self.started).as_millis() as u64
    }
}

/// Keeps the gauge of idle connections true between two looks of the watch, which counts them all.
fn count_idle(shard: &Shard, before: usize, after: usize) {
    let idle = shard.gauge(Gauge::IdleOrigins) + after as u64;
    shard.set(Gauge::IdleOrigins, idle.saturating_sub(before as u64));
}

async fn attempt(address: &ResolvedAddress, limit: Duration) -> Result<Socket, OriginConnect> {
    let address = match address {
        ResolvedAddress::Tcp(address) => SockAddr::from(*address),
        ResolvedAddress::Unix(path) => SockAddr::unix(path).map_err(|_| OriginConnect::Failed)?,
    };
    match ring::timeout(limit, Socket::connect(address)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(_)) => Err(OriginConnect::Failed),
        Err(ring::Elapsed) => Err(OriginConnect::TimedOut),
    }
}
