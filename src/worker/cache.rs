//! A worker's tenants: assembled on demand, kept in bounded space, and right at every generation.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use lru::LruCache;

use crate::registry::{HostnameRecord, RecordId, Snapshot};
use crate::telemetry::counters::{Counter, Gauge, Limit, Shard, TenantCache};
use crate::tls::{Base, Factory, Tenant};

/// What a record came to.
#[derive(Clone)]
pub enum Lookup {
    /// A tenant that can be served.
    Found(Rc<Tenant>),
    /// The record exists and cannot be used: refused, never replaced by a wildcard or the default (DECISIONS 17).
    Unreadable,
}

/// What a record that cannot be used takes in the cache: its key and the fact.
const UNREADABLE_BYTES: usize = 128;

/// The cache. Positive entries are bounded by bytes, what several of them share counted once; remembered
/// misses by number, apart, so that a flood of made-up names evicts no tenant.
pub struct Cache {
    factory: Factory,
    shard: Arc<Shard>,
    bytes_max: usize,
    inner: RefCell<Inner>,
}

struct Inner {
    tenants: LruCache<RecordId, Entry, foldhash::fast::RandomState>,
    /// How many entries share each base.
    bases: HashMap<*const Base, usize, foldhash::fast::RandomState>,
    /// The costs of all entries, and once of each base they share.
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
            Lookup::Unreadable => UNREADABLE_BYTES,
        }
    }

    fn base(&self) -> Option<&Rc<Base>> {
        match &self.lookup {
            Lookup::Found(tenant) => Some(&tenant.base),
            Lookup::Unreadable => None,
        }
    }
}

impl Inner {
    /// Enters a tenant; one of the same record makes room for it.
    fn put(&mut self, id: RecordId, entry: Entry) {
        self.bytes += entry.cost_bytes();
        if let Some(base) = entry.base() {
            let sharing = self.bases.entry(Rc::as_ptr(base)).or_insert(0);
            if *sharing == 0 {
                self.bytes += base.cost_bytes;
            }
            *sharing += 1;
        }
        if let Some(replaced) = self.tenants.put(id, entry) {
            self.forget(&replaced);
        }
    }

    /// Takes the cost of an entry off that has left, and that of its base with the last one that shares it.
    fn forget(&mut self, gone: &Entry) {
        self.bytes -= gone.cost_bytes();
        let Some(base) = gone.base() else { return };
        let Some(sharing) = self.bases.get_mut(&Rc::as_ptr(base)) else { return };
        *sharing -= 1;
        if *sharing == 0 {
            self.bases.remove(&Rc::as_ptr(base));
            self.bytes -= base.cost_bytes;
        }
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(factory: Factory, shard: Arc<Shard>, bytes_max: usize, misses_max: usize) -> Self {
        let misses_max = NonZeroUsize::new(misses_max).unwrap_or(NonZeroUsize::MIN);
        let inner = Inner {
            tenants: LruCache::unbounded_with_hasher(foldhash::fast::RandomState::default()),
            bases: HashMap::default(),
            bytes: 0,
            misses: LruCache::with_hasher(misses_max, foldhash::fast::RandomState::default()),
        };
        Self { factory, shard, bytes_max, inner: RefCell::new(inner) }
    }

    /// The record a server name leads to in this snapshot (I1): exact, wildcard, default. A name nobody has is counted.
    pub fn resolve<'a>(&self, snapshot: &'a Snapshot, name: Option<&str>) -> Option<&'a Arc<HostnameRecord>> {
        let resolution = match name {
            Some(name) => snapshot.resolve(name),
            None => snapshot.resolve_default(),
        };
        let record = resolution.record();
        if record.is_none() {
            self.count_miss(name);
        }
        record
    }

    /// The tenant of a record, if it has been assembled.
    pub fn cached(&self, record: &Arc<HostnameRecord>) -> Option<Lookup> {
        let mut inner = self.inner.borrow_mut();
        let entry = inner.tenants.get(&record.id).filter(|entry| Arc::ptr_eq(&entry.record, record))?;
        self.count(TenantCache::Hit);
        Some(entry.lookup.clone())
    }

    /// The tenant of a record, assembled now if it has not been yet.
    ///
    /// To assemble is heavy: a private key is loaded, which takes about 20 us for P-256 and 150 us for RSA, and the first
    /// hostname of a CA set makes its verifier.
    pub fn tenant(&self, record: &Arc<HostnameRecord>) -> Lookup {
        if let Some(lookup) = self.cached(record) {
            return lookup;
        }
        self.count(TenantCache::Miss);
        let lookup = match self.factory.assemble(record) {
            Ok(tenant) => Lookup::Found(Rc::new(tenant)),
            Err(_) => Lookup::Unreadable,
        };
        let mut inner = self.inner.borrow_mut();
        inner.put(record.id, Entry { record: Arc::clone(record), lookup: lookup.clone() });
        // The newest always stays, however large.
        while inner.bytes > self.bytes_max && inner.tenants.len() > 1 {
            if let Some((_, evicted)) = inner.tenants.pop_lru() {
                inner.forget(&evicted);
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
                inner.forget(&entry);
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
