//! A worker's tenants: assembled on demand, kept in bounded space, and right at every generation.

use std::cell::RefCell;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use lru::LruCache;

use crate::registry::{HostnameRecord, RecordId, Snapshot};
use crate::telemetry::counters::{Counter, Gauge, Limit, Shard, TenantCache};
use crate::tls::{Factory, Tenant};

/// What a name leads to.
#[derive(Clone)]
pub enum Lookup {
    /// A tenant that can be served.
    Found(Rc<Tenant>),
    /// No record has the name and there is no default.
    Unknown,
    /// The record exists and cannot be used: refused, never replaced by a wildcard or the default (DECISIONS 17).
    Unreadable,
}

/// What a record that cannot be used takes in the cache: its key and the fact.
const UNREADABLE_BYTES: usize = 128;

/// The cache. Positive entries are bounded by bytes, remembered misses by number, apart, so that a flood of made-up names
/// evicts no tenant.
pub struct Cache {
    factory: Factory,
    shard: Arc<Shard>,
    bytes_max: usize,
    inner: RefCell<Inner>,
}

struct Inner {
    tenants: LruCache<RecordId, Entry, foldhash::fast::RandomState>,
    bytes: usize,
    misses: LruCache<Box<str>, (), foldhash::fast::RandomState>,
}

struct Entry {
    record: Arc<HostnameRecord>,
    lookup: Lookup,
}

impl Entry {
    fn cost_bytes(&self) -> usize {
        match &self.lookup {
            Lookup::Found(tenant) => tenant.cost_bytes,
            _ => UNREADABLE_BYTES,
        }
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(factory: Factory, shard: Arc<Shard>, bytes_max: usize, misses_max: usize) -> Self {
        let misses_max = NonZeroUsize::new(misses_max).unwrap_or(NonZeroUsize::MIN);
        let inner = Inner {
            tenants: LruCache::unbounded_with_hasher(foldhash::fast::RandomState::default()),
            bytes: 0,
            misses: LruCache::with_hasher(misses_max, foldhash::fast::RandomState::default()),
        };
        Self { factory, shard, bytes_max, inner: RefCell::new(inner) }
    }

    /// What a server name leads to in this snapshot (I1): exact, wildcard, default.
    pub fn lookup(&self, snapshot: &Snapshot, name: Option<&str>) -> Lookup {
        let resolution = match name {
            Some(name) => snapshot.resolve(name),
            None => snapshot.resolve_default(),
        };
        match resolution.record() {
            Some(record) => self.tenant(record),
            None => {
                self.count_miss(name);
                Lookup::Unknown
            }
        }
    }

    /// The tenant of a record.
    pub fn tenant(&self, record: &Arc<HostnameRecord>) -> Lookup {
        let mut inner = self.inner.borrow_mut();
        if let Some(entry) = inner.tenants.get(&record.id)
            && Arc::ptr_eq(&entry.record, record)
        {
            self.count(TenantCache::Hit);
            return entry.lookup.clone();
        }
        self.count(TenantCache::Miss);
        let lookup = match self.factory.assemble(record) {
            Ok(tenant) => Lookup::Found(Rc::new(tenant)),
            Err(_) => Lookup::Unreadable,
        };
        let entry = Entry { record: Arc::clone(record), lookup: lookup.clone() };
        inner.bytes += entry.cost_bytes();
        if let Some(replaced) = inner.tenants.put(record.id, entry) {
            inner.bytes -= replaced.cost_bytes();
        }
        // The newest always stays, however large.
        while inner.bytes > self.bytes_max && inner.tenants.len() > 1 {
            if let Some((_, evicted)) = inner.tenants.pop_lru() {
                inner.bytes -= evicted.cost_bytes();
                self.count(TenantCache::Evicted);
                self.shard.count(Counter::Limit(Limit::Tenants));
            }
        }
        self.shard.set(Gauge::Tenants, inner.tenants.len() as u64);
        lookup
    }

    /// A new snapshot is served: forgets what it changed.
    pub fn publish(&self, snapshot: &Snapshot) {
        let mut inner = self.inner.borrow_mut();
        inner.misses.clear();
        let stale: Vec<RecordId> = inner
            .tenants
            .iter()
            .filter(|(_, entry)| {
                let now = snapshot.get(entry.record.name.as_str());
                !now.is_some_and(|record| Arc::ptr_eq(record, &entry.record))
            })
            .map(|(id, _)| *id)
            .collect();
        for id in stale {
            if let Some(entry) = inner.tenants.pop(&id) {
                inner.bytes -= entry.cost_bytes();
            }
        }
        self.shard.set(Gauge::Tenants, inner.tenants.len() as u64);
    }

    fn count_miss(&self, name: Option<&str>) {
        let Some(name) = name else { return };
        let mut inner = self.inner.borrow_mut();
        if inner.misses.get(name).is_some() {
            self.count(TenantCache::Negative);
            return;
        }
        self.count(TenantCache::Miss);
        if inner.misses.len() == inner.misses.cap().get() {
            self.shard.count(Counter::Limit(Limit::Misses));
        }
        inner.misses.put(name.into(), ());
    }

    fn count(&self, result: TenantCache) {
        self.shard.count(Counter::TenantCache(result));
    }
}

#[cfg(test)]
mod tests;
