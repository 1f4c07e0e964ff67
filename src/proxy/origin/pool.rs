//! Idle connections to one origin, kept by one worker for the next request (DECISIONS 24).
//!
//! A connection belongs to the hostname record whose requests it carried, unless the origin is shared: what one tenant
//! planted in it (bytes beyond a response, a request that an origin counts differently) must not meet another's request.
//! And it belongs to the TLS identity it was made under: whom the origin was verified as, and what it knows us by. The newest is used first, so that those too many grow old and go.
//!
//! Nothing here waits: the worker's [`Origins`](super::Origins) watch idle connections and call [`Pool::discard`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::Address;
use crate::registry::origins::ResolvedAddress;
use crate::registry::{HostnameRecord, RecordId};
use crate::telemetry::counters::{Counter, Pool as Result, Shard};
use crate::tls::Tenant;

use super::wire::Wire;

/// How long a connection is kept idle.
///
/// Less than the 5 s after which node, Apache and uvicorn close theirs, so that a request rarely meets a connection that is
/// about to go (nginx keeps them for 75 s). What it costs: one connect, within a data centre, after 4 s without a request.
pub const IDLE_MAX: Duration = Duration::from_secs(4);

/// Who may use a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Whose {
    /// The hostname; `None`: everybody's, the origin is shared.
    pub record: Option<RecordId>,
    /// The digest of the TLS identity; `None`: it has none.
    pub tls: Option<[u8; 32]>,
}

struct Idle {
    wire: Wire,
    address: Rc<Address>,
    /// Whose it is; `None`: everybody's, the origin is shared.
    owner: Option<Rc<Tenant>>,
    /// The digest of the TLS identity it was made under.
    tls: Option<[u8; 32]>,
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

    /// The newest connection of exactly these to this address that is still good.
    pub fn take(&self, whose: Whose, address: &Rc<Address>, now: Instant, shard: &Shard) -> Option<Wire> {
        let mut idle = self.idle.borrow_mut();
        let fits = |idle: &Idle| Rc::ptr_eq(&idle.address, address) && idle.whose() == whose;
        while let Some(index) = idle.iter().rposition(fits) {
            let found = idle.remove(index)?;
            match found.fault(now, None) {
                None => return Some(found.wire),
                Some(fault) => shard.count(Counter::Pool(fault)),
            }
        }
        None
    }

    /// Keeps a connection; its receive is armed with `watch`, which is woken when anything comes. Beyond `max` the oldest
    /// goes.
    #[allow(clippy::too_many_arguments, reason = "all that an idle connection is")]
    pub fn put(
        &self,
        wire: Wire,
        address: Rc<Address>,
        owner: Option<Rc<Tenant>>,
        tls: Option<[u8; 32]>,
        max: usize,
        watch: &mut Context<'_>,
        shard: &Shard,
    ) {
        // Whatever is here already belongs to no request.
        match wire.poll_receive(watch, ignore) {
            Poll::Pending => {}
            Poll::Ready(Ok(Some(_))) => return shard.count(Counter::Pool(Result::Unsolicited)),
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
        idle.push_back(Idle { wire, address, owner, tls, since: crate::ring::now() });
    }

    /// Closes what has ended, spoken or grown old; says when the next one will be too old.
    pub fn discard(&self, now: Instant, watch: &mut Context<'_>, shard: &Shard) -> Option<Instant> {
        self.retain(shard, |idle| idle.fault(now, Some(watch)));
        self.idle.borrow().front().map(|oldest| oldest.since + IDLE_MAX)
    }

    /// Closes the connections to addresses the origin no longer has, or of another TLS identity than it has now.
    pub fn keep_addresses(&self, addresses: &[ResolvedAddress], tls: Option<[u8; 32]>, shard: &Shard) {
        self.retain(shard, |idle| {
            (idle.tls != tls || !addresses.contains(idle.address.key())).then_some(Result::Changed)
        });
    }

    /// Closes the connections of hostnames whose record is not as it was.
    pub fn keep_owners(&self, unchanged: impl Fn(&Arc<HostnameRecord>) -> bool, shard: &Shard) {
        self.retain(shard, |idle| {
            idle.owner.as_ref().is_some_and(|owner| !unchanged(&owner.record)).then_some(Result::Changed)
        });
    }

    fn retain(&self, shard: &Shard, mut fault: impl FnMut(&Idle) -> Option<Result>) {
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
    fn whose(&self) -> Whose {
        Whose { record: self.owner.as_ref().map(|owner| owner.record.id), tls: self.tls }
    }

    /// Why it cannot carry a request any more. With a `watch` its receive is armed again if it is not: over TLS some bytes
    /// that come mean nothing (a ticket).
    fn fault(&self, now: Instant, watch: Option<&mut Context<'_>>) -> Option<Result> {
        let arrived = match watch {
            None => self.wire.arrived(ignore),
            Some(watch) => match self.wire.poll_receive(watch, ignore) {
                Poll::Ready(arrived) => Some(arrived),
                Poll::Pending => None,
            },
        };
        match arrived {
            Some(Ok(Some(_))) => Some(Result::Unsolicited),
            Some(Ok(None) | Err(_)) => Some(Result::Closed),
            None if now.saturating_duration_since(self.since) >= IDLE_MAX => Some(Result::Aged),
            None => None,
        }
    }
}

/// Takes bytes that belong to no request.
fn ignore(_: &[u8]) -> std::result::Result<(), Infallible> {
    Ok(())
}
