//! The cache's bounds, its memory of misses and faults, and what a new snapshot leaves of it.

use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::registry::ClientAuthMode;
use crate::registry::record::PrivateKey;
use crate::tls::tests::pki::{Authority, client_auth, options, record};

fn cache(bytes_max: usize, misses_max: usize) -> Cache {
    Cache::new(Factory::new(options()).unwrap(), Arc::default(), bytes_max, misses_max)
}

fn counted(cache: &Cache, result: TenantCache) -> u64 {
    cache.shard.get(Counter::TenantCache(result))
}

fn found(lookup: &Lookup) -> &Rc<Tenant> {
    match lookup {
        Lookup::Found(tenant) => tenant,
        Lookup::Unreadable => panic!("unreadable"),
    }
}

fn same(one: &Lookup, other: &Lookup) -> bool {
    Rc::ptr_eq(found(one), found(other))
}

fn name_of(lookup: &Lookup) -> &str {
    found(lookup).record.name.as_str()
}

/// What one tenant of the tests takes.
fn cost() -> usize {
    found(&cache(usize::MAX, 1).tenant(&record(1, "a.test", |_| {}))).cost_bytes
}

/// What they all share.
fn shared_cost() -> usize {
    found(&cache(usize::MAX, 1).tenant(&record(1, "a.test", |_| {}))).base.cost_bytes
}

fn unreadable(id: u8, name: &str) -> Arc<HostnameRecord> {
    record(id, name, |record| record.certificates[0].key = PrivateKey::Pkcs8(Zeroizing::new(vec![1, 2, 3])))
}

/// Records `h1.test` and so on.
fn numbered(ids: std::ops::RangeInclusive<u8>) -> Vec<Arc<HostnameRecord>> {
    ids.map(|id| record(id, &format!("h{id}.test"), |_| {})).collect()
}

impl Cache {
    /// What a name leads to.
    fn find(&self, snapshot: &Snapshot, name: Option<&str>) -> Option<Lookup> {
        self.resolve(snapshot, name).map(|record| self.tenant(record))
    }

    /// The same for a name that somebody has.
    fn lookup(&self, snapshot: &Snapshot, name: Option<&str>) -> Lookup {
        self.find(snapshot, name).expect("somebody has the name")
    }

    /// Whether what is counted is what is there.
    fn assert_consistent(&self) {
        let inner = self.inner.borrow();
        let bases: HashMap<_, _> = inner
            .tenants
            .iter()
            .filter_map(|(_, entry)| entry.base().map(|base| (Rc::as_ptr(base), base.cost_bytes)))
            .collect();
        let shared: usize = bases.values().sum();
        assert_eq!(inner.bytes, shared + inner.tenants.iter().map(|(_, entry)| entry.cost_bytes()).sum::<usize>());
        assert_eq!(inner.bases.len(), bases.len());
        assert!(inner.bytes <= self.bytes_max || inner.tenants.len() <= 1, "{} bytes", inner.bytes);
        assert!(inner.misses.len() <= inner.misses.cap().get());
        assert_eq!(self.shard.gauge(Gauge::Tenants), inner.tenants.len() as u64);
    }
}

#[test]
fn the_exact_name_goes_before_the_wildcard_and_that_before_the_default() {
    let cache = cache(usize::MAX, 8);
    let exact = record(1, "x.w.test", |_| {});
    let wildcard = record(2, "*.w.test", |_| {});
    let default = record(3, "d.test", |record| record.is_default = true);
    let snapshot = Snapshot::new(1, [exact, wildcard, default]);
    for (name, expected) in [
        (Some("x.w.test"), "x.w.test"),
        (Some("y.w.test"), "*.w.test"),
        (Some("w.test"), "d.test"),
        (Some("y.x.w.test"), "d.test"),
        (Some("elsewhere.test"), "d.test"),
        (Some("d.test"), "d.test"),
        (None, "d.test"),
    ] {
        assert_eq!(name_of(&cache.lookup(&snapshot, name)), expected, "{name:?}");
    }
    // All names below a wildcard share one tenant.
    assert!(same(&cache.lookup(&snapshot, Some("y.w.test")), &cache.lookup(&snapshot, Some("z.w.test"))));
    let without_default = Snapshot::new(2, [record(2, "*.w.test", |_| {})]);
    for name in [Some("w.test"), Some("y.x.w.test"), Some("elsewhere.test"), None] {
        assert!(cache.find(&without_default, name).is_none(), "{name:?}");
    }
}

#[test]
fn a_record_that_cannot_be_used_is_refused_and_nothing_else_takes_its_place() {
    let cache = cache(usize::MAX, 8);
    let default = record(3, "d.test", |record| record.is_default = true);
    let snapshot = Snapshot::new(1, [unreadable(1, "x.w.test"), record(2, "*.w.test", |_| {}), default]);
    for _ in 0..3 {
        assert!(matches!(cache.lookup(&snapshot, Some("x.w.test")), Lookup::Unreadable));
    }
    // It was tried once, and is no miss.
    assert_eq!((counted(&cache, TenantCache::Miss), counted(&cache, TenantCache::Hit)), (1, 2));
    assert_eq!(counted(&cache, TenantCache::Negative), 0);
    assert_eq!(cache.inner.borrow().misses.len(), 0);
    let wildcard =
        Snapshot::new(2, [unreadable(2, "*.w.test"), record(3, "d.test", |record| record.is_default = true)]);
    assert!(matches!(cache.lookup(&wildcard, Some("y.w.test")), Lookup::Unreadable));
    // Mended, it is served at once.
    let mended = Snapshot::new(3, [record(1, "x.w.test", |_| {})]);
    cache.publish(&mended);
    assert_eq!(name_of(&cache.lookup(&mended, Some("x.w.test"))), "x.w.test");
    cache.assert_consistent();
}

#[test]
fn tenants_are_bounded_by_bytes_and_the_least_used_go_first() {
    let cache = cache(shared_cost() + 3 * cost(), 8);
    let records = numbered(1..=5);
    let snapshot = Snapshot::new(1, records);
    let get = |id: u8| cache.lookup(&snapshot, Some(&format!("h{id}.test")));
    let first = get(1);
    get(2);
    get(3);
    assert!(same(&get(1), &first));
    get(4);
    get(5);
    cache.assert_consistent();
    assert_eq!(cache.inner.borrow().tenants.len(), 3);
    assert_eq!(counted(&cache, TenantCache::Evicted), 2);
    assert_eq!(cache.shard.get(Counter::Limit(Limit::Tenants)), 2);
    assert!(same(&get(1), &first), "used again, so it stayed");
    let misses = counted(&cache, TenantCache::Miss);
    get(2);
    assert_eq!(counted(&cache, TenantCache::Miss), misses + 1, "evicted, so assembled again");
}

#[test]
fn what_tenants_share_is_counted_once_and_goes_with_the_last_of_them() {
    // Two hostnames with one CA set, one with another, which does not fit beside the first two.
    let cas = [Authority::root("One"), Authority::root("Other")];
    let trusting = |id: u8, ca: &Authority| {
        let auth = client_auth(ClientAuthMode::Require, &[ca.der()]);
        record(id, &format!("h{id}.test"), |record| record.client_auth = auth)
    };
    let records = [trusting(1, &cas[0]), trusting(2, &cas[0]), trusting(3, &cas[1])];
    let tenants =
        |cache: &Cache| records.iter().map(|record| found(&cache.tenant(record)).cost_bytes).collect::<Vec<_>>();
    let all = cache(usize::MAX, 1);
    let costs = tenants(&all);
    let bases = [0, 2].map(|index| found(&all.tenant(&records[index])).base.cost_bytes);
    assert!(bases[0] > records[0].client_auth.ca_set.as_ref().unwrap().cas[0].der.len(), "the CA counts");
    assert_eq!(all.inner.borrow().bytes, costs.iter().sum::<usize>() + bases[0] + bases[1]);
    all.assert_consistent();
    let tight = cache(costs[1] + costs[2] + bases[0] + bases[1] - 1, 1);
    tenants(&tight);
    tight.assert_consistent();
    assert_eq!(
        tight.inner.borrow().tenants.len(),
        1,
        "the first alone did not make room, its CAs stayed with the second"
    );
}

#[test]
fn a_tenant_larger_than_the_cache_is_served_all_the_same() {
    let cache = cache(1, 8);
    let snapshot = Snapshot::new(1, numbered(1..=2));
    let one = cache.lookup(&snapshot, Some("h1.test"));
    assert!(same(&cache.lookup(&snapshot, Some("h1.test")), &one));
    cache.lookup(&snapshot, Some("h2.test"));
    assert_eq!(cache.inner.borrow().tenants.len(), 1);
    cache.assert_consistent();
}

#[test]
fn a_flood_of_unknown_names_evicts_no_tenant_and_stays_in_its_bound() {
    let cache = cache(shared_cost() + 4 * cost(), 16);
    let snapshot = Snapshot::new(1, numbered(1..=4));
    let tenants: Vec<_> = (1..=4).map(|id| cache.lookup(&snapshot, Some(&format!("h{id}.test")))).collect();
    for n in 0..5000 {
        assert!(cache.find(&snapshot, Some(&format!("flood{n}.test"))).is_none());
    }
    cache.assert_consistent();
    assert_eq!(cache.inner.borrow().misses.len(), 16);
    assert_eq!(counted(&cache, TenantCache::Evicted), 0);
    assert_eq!(cache.shard.get(Counter::Limit(Limit::Misses)), 5000 - 16);
    for (id, tenant) in (1..=4).zip(&tenants) {
        assert!(same(&cache.lookup(&snapshot, Some(&format!("h{id}.test"))), tenant));
    }
    assert_eq!(counted(&cache, TenantCache::Negative), 0);
    assert!(cache.find(&snapshot, Some("flood4999.test")).is_none());
    assert_eq!(counted(&cache, TenantCache::Negative), 1);
}

#[test]
fn a_new_snapshot_keeps_what_it_did_not_change_and_forgets_the_rest() {
    let cache = cache(usize::MAX, 8);
    let [kept, changed, removed, made_again] = numbered(1..=4).try_into().unwrap();
    let before = Snapshot::new(1, [&kept, &changed, &removed, &made_again].map(Arc::clone));
    let all = ["h1.test", "h2.test", "h3.test", "h4.test"];
    let old = all.map(|name| cache.lookup(&before, Some(name)));
    assert!(cache.find(&before, Some("h5.test")).is_none());

    // The second is changed under its id, the third gone, the fourth another record of that name, the fifth new.
    let after = Snapshot::new(
        2,
        [
            Arc::clone(&kept),
            record(2, "h2.test", |record| record.alpn = vec![b"h2".to_vec()]),
            record(44, "h4.test", |_| {}),
            record(5, "h5.test", |_| {}),
        ],
    );
    cache.publish(&after);
    cache.assert_consistent();
    assert_eq!(cache.inner.borrow().tenants.len(), 1, "three are forgotten");
    assert_eq!(cache.inner.borrow().misses.len(), 0);
    let [one, two, three, four] = all.map(|name| cache.find(&after, Some(name)));
    let [one, two, four] = [one, two, four].map(Option::unwrap);
    assert!(same(&one, &old[0]), "what did not change is the same tenant");
    assert_eq!(found(&two).config.alpn_protocols, [b"h2".to_vec()]);
    assert!(three.is_none());
    assert_ne!(found(&four).binding, found(&old[3]).binding);
    assert_eq!(name_of(&cache.lookup(&after, Some("h5.test"))), "h5.test", "a miss is not remembered past it");
}

#[test]
fn a_lookup_by_a_newer_snapshot_never_gets_an_older_tenant() {
    let cache = cache(usize::MAX, 8);
    let before = Snapshot::new(1, [record(1, "a.test", |_| {})]);
    let after = Snapshot::new(2, [record(1, "a.test", |_| {})]);
    let old = cache.lookup(&before, Some("a.test"));
    let new = cache.lookup(&after, Some("a.test"));
    assert!(!same(&old, &new), "not even before the cache has heard of the change");
    assert!(Arc::ptr_eq(&found(&new).record, after.get("a.test").unwrap()));
    // And one that is late is not served the newer one either: each gets what its snapshot says.
    let late = cache.lookup(&before, Some("a.test"));
    assert!(Arc::ptr_eq(&found(&late).record, before.get("a.test").unwrap()));
    cache.assert_consistent();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any order of lookups and changes: the bound holds, the sums are right, and every answer is the snapshot's.
    #[test]
    fn answers_are_the_snapshots_and_bounds_hold(
        room in 1..5usize,
        steps in proptest::collection::vec((0..12u8, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let cache = cache(shared_cost() + room * cost() + cost() / 2, 3);
        // Hosts 1 to 6 exist, 4 cannot be read; the others do not exist.
        let make = |id: u8| match id {
            4 => unreadable(4, "h4.test"),
            id => record(id, &format!("h{id}.test"), |_| {}),
        };
        let mut records: Vec<_> = (1..=6).map(make).collect();
        let mut snapshot = Snapshot::new(1, records.clone());
        for (id, change, told) in steps {
            if change && (1..=6).contains(&id) {
                records[usize::from(id) - 1] = make(id);
                snapshot = Snapshot::new(snapshot.generation + 1, records.clone());
                // Or not yet: the lookup may come first.
                if told {
                    cache.publish(&snapshot);
                }
            }
            let lookup = cache.find(&snapshot, Some(&format!("h{id}.test")));
            match (id, &lookup) {
                (4, Some(Lookup::Unreadable)) | (0 | 7.., None) => {}
                (1..=6, Some(Lookup::Found(tenant))) => {
                    prop_assert!(Arc::ptr_eq(&tenant.record, &records[usize::from(id) - 1]));
                }
                _ => prop_assert!(false, "h{id}.test"),
            }
            cache.assert_consistent();
        }
    }
}
