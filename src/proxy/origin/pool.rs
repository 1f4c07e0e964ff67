//! Idle connections to one origin, kept by one worker for the next request (DECISIONS 24).
//!
//! A connection belongs to the hostname record whose requests it carried, unless the origin is shared: what one tenant
//! planted in it (bytes beyond a response, a request that an origin counts differently) must not meet another's request.
//! The newest is used first, so that those too many grow old and go.
//!
//! Nothing here waits: the worker's [`Origins`](super::Origins) watch idle connections and call [`Pool::discard`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Address;
use crate::registry::origins::ResolvedAddress;
use crate::registry::{HostnameRecord, RecordId};
use crate::ring::Socket;
use crate::telemetry::counters::{Counter, Pool as Result, Shard};
use crate::tls::Tenant;

/// How long a connection is kept idle.
///
/// Less than the 5 s after which node, Apache and uvicorn close theirs, so that a request rarely meets a connection that is
/// about to go (nginx keeps them for 75 s). What it costs: one connect, within a data centre, after 4 s without a request.
pub const IDLE_MAX: Duration = Duration::from_secs(4);

struct Idle {
    socket: Socket,
    address: Rc<Address>,
    /// Whose it is; `None`: everybody's, the origin is shared.
    owner: Option<Rc<Tenant>>,
    since: Instant,
}

/// The idle connections, oldest first.
#[derive(Default)]
pub struct Pool {
    idle: RefCell<VecDeque<Idle>>,
}

impl Pool {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.idle.borrow().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest connection of this owner to this address that is still good; `None`: of those that everybody may use.
    pub fn take(&self, owner: Option<RecordId>, address: &Rc<Address>, now: Instant, shard: &Shard) -> Option<Socket> {
        let mut idle = self.idle.borrow_mut();
        let fits = |idle: &Idle| Rc::ptr_eq(&idle.address, address) && idle.owner() == owner;
        while let Some(index) = idle.iter().rposition(fits) {
            let found = idle.remove(index)?;
            match found.fault(now) {
                None => return Some(found.socket),
                Some(fault) => shard.count(Counter::Pool(fault)),
            }
        }
        None
    }

    /// Keeps a connection; its receive is armed with `watch`, which is woken when anything comes. Beyond `max` the oldest
    /// goes.
    pub fn put(
        &self,
        socket: Socket,
        address: Rc<Address>,
        owner: Option<Rc<Tenant>>,
        max: usize,
        watch: &mut Context<'_>,
        shard: &Shard,
    ) {
        // Whatever is here already belongs to no request.
        match socket.poll_receive(watch, |_| ()) {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(()))) => return shard.count(Counter::Pool(Result::Unsolicited)),
            Poll::Ready(Ok(None) | Err(_)) => return shard.count(Counter::Pool(Result::Closed)),
        }
        if max == 0 {
            return shard.count(Counter::Pool(Result::Full));
        }
        let mut idle = self.idle.borrow_mut();
        while idle.len() >= max {
            idle.pop_front();
            shard.count(Counter::Pool(Result::Full));
        }
        shard.count(Counter::Pool(Result::Kept));
        idle.push_back(Idle { socket, address, owner, since: crate::ring::now() });
    }

    /// Closes what has ended, spoken or grown old; says when the next one will be too old.
    pub fn discard(&self, now: Instant, shard: &Shard) -> Option<Instant> {
        self.retain(shard, |idle| idle.fault(now));
        self.idle.borrow().front().map(|oldest| oldest.since + IDLE_MAX)
    }

    /// Closes the connections to addresses the origin no longer has.
    pub fn keep_addresses(&self, addresses: &[ResolvedAddress], shard: &Shard) {
        self.retain(shard, |idle| (!addresses.contains(idle.address.key())).then_some(Result::Changed));
    }

    /// Closes the connections of hostnames whose record is not as it was.
    pub fn keep_owners(&self, unchanged: impl Fn(&Arc<HostnameRecord>) -> bool, shard: &Shard) {
        self.retain(shard, |idle| {
            idle.owner.as_ref().is_some_and(|owner| !unchanged(&owner.record)).then_some(Result::Changed)
        });
    }

    fn retain(&self, shard: &Shard, fault: impl Fn(&Idle) -> Option<Result>) {
        self.idle.borrow_mut().retain(|idle| match fault(idle) {
            None => true,
            Some(fault) => {
                shard.count(Counter::Pool(fault));
                false
            }
        });
    }
}

impl Idle {
    fn owner(&self) -> Option<RecordId> {
        self.owner.as_ref().map(|owner| owner.record.id)
    }

    /// Why it cannot carry a request any more.
    fn fault(&self, now: Instant) -> Option<Result> {
        match self.socket.arrived(|_| ()) {
            Some(Ok(Some(()))) => Some(Result::Unsolicited),
            Some(Ok(None) | Err(_)) => Some(Result::Closed),
            None if now.saturating_duration_since(self.since) >= IDLE_MAX => Some(Result::Aged),
            None => None,
        }
    }
}
