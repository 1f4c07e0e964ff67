//! A connection to an origin: the addresses in turn, those that failed lately last.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::SockAddr;

use crate::registry::Origin;
use crate::registry::origins::{OriginTable, ResolvedAddress};
use crate::ring::{self, Socket};
use crate::telemetry::counters::{Counter, OriginConnect, Shard, Timeout};

use super::balance::Balance;

/// Most addresses tried for one client connection. Each may take the connect timeout, and a client that waits longer than
/// a few of them has gone.
const ATTEMPTS_MAX: usize = 3;

/// One origin as a worker sees it: its addresses, and which of them failed.
pub struct Upstream {
    balance: RefCell<Balance<ResolvedAddress>>,
}

/// No address of the origin could be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable;

/// A worker's origins.
pub struct Origins {
    started: Instant,
    upstreams: RefCell<HashMap<String, Rc<Upstream>>>,
}

impl Default for Origins {
    fn default() -> Self {
        Self { started: Instant::now(), upstreams: RefCell::default() }
    }
}

impl Origins {
    /// Takes newly resolved addresses. Those that stay keep their marks; origins that are gone are forgotten.
    pub fn update(&self, table: &OriginTable) {
        let mut upstreams = self.upstreams.borrow_mut();
        upstreams.retain(|name, _| table.contains_key(name));
        for (name, addresses) in table {
            match upstreams.get(name) {
                Some(upstream) => upstream.balance.borrow_mut().replace(addresses.iter().cloned()),
                None => {
                    let balance = RefCell::new(Balance::new(addresses.iter().cloned()));
                    upstreams.insert(name.clone(), Rc::new(Upstream { balance }));
                }
            }
        }
    }

    /// Connects to an origin.
    ///
    /// # Errors
    ///
    /// [`Unreachable`] when the name has no address, or none of those tried could be reached in time.
    pub async fn connect(&self, origin: &Origin, shard: &Shard) -> Result<Socket, Unreachable> {
        let count = |result| shard.count(Counter::OriginConnect(result));
        let upstream = self.upstreams.borrow().get(&origin.name).cloned();
        let Some(upstream) = upstream else {
            count(OriginConnect::Unresolved);
            return Err(Unreachable);
        };
        let attempts = upstream.balance.borrow().len().min(ATTEMPTS_MAX);
        for _ in 0..attempts {
            let next = upstream.balance.borrow_mut().next(self.now_ms()).cloned();
            let Some(address) = next else { break };
            match attempt(&address, origin.connect_timeout).await {
                Ok(socket) => {
                    upstream.balance.borrow_mut().succeeded(&address);
                    count(OriginConnect::Ok);
                    return Ok(socket);
                }
                Err(result) => {
                    upstream.balance.borrow_mut().failed(&address, self.now_ms());
                    count(result);
                    if result == OriginConnect::TimedOut {
                        shard.count(Counter::Timeout(Timeout::Connect));
                    }
                }
            }
        }
        count(if attempts == 0 { OriginConnect::Unresolved } else { OriginConnect::Exhausted });
        Err(Unreachable)
    }

    fn now_ms(&self) -> u64 {
        ring::now().saturating_duration_since(self.started).as_millis() as u64
    }
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
