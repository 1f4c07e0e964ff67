//! Active checks of origins: every address of an origin that has a `[origin.NAME.check]` is asked regularly, and workers
//! leave out those that are down.
//!
//! A task for each address, on the control plane's runtime; the control loop hears only what is news. Workers go on with
//! what was published last, whatever becomes of the checks.

mod judge;
mod probe;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use self::judge::Judge;
use super::serve::Internal;
use crate::registry::Snapshot;
use crate::registry::balancing::Check;
use crate::registry::origins::{DownTable, OriginTable, ResolvedAddress};

/// Checks in progress at once: each holds a descriptor, for as long as `check.timeout` where the address is dead.
pub const CHECKS_AT_ONCE: usize = 64;

/// An address of an origin.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Target {
    pub origin: String,
    pub address: ResolvedAddress,
}

/// What a check found out that was not known.
#[derive(Clone, Debug)]
pub struct News {
    pub target: Target,
    /// The task that found it: one that was stopped meanwhile has no say.
    task: u64,
    /// Why it is down; `None`: it is up.
    pub down: Option<String>,
}

/// All that are checked.
#[derive(Debug)]
pub struct Checks {
    tasks: BTreeMap<Target, Task>,
    tasks_started: u64,
    permits: Arc<Semaphore>,
    internal: mpsc::UnboundedSender<Internal>,
    /// What workers were told is no longer so.
    pub changed: bool,
}

#[derive(Debug)]
struct Task {
    number: u64,
    check: Check,
    handle: AbortHandle,
    down: Option<String>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Checks {
    /// None yet; what they find is sent to the control loop.
    pub fn new(internal: mpsc::UnboundedSender<Internal>) -> Self {
        let permits = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
        Self { tasks: BTreeMap::new(), tasks_started: 0, permits, internal, changed: false }
    }

    /// Checks what is to be checked now, and nothing else. What is known of an address stays if it is checked as before.
    pub fn sync(&mut self, snapshot: &Snapshot, table: &OriginTable) {
        let origins: HashMap<&str, &Check> = snapshot
            .records()
            .filter_map(|record| Some((record.origin.name.as_str(), record.origin.check.as_ref()?)))
            .collect();
        let is_wanted = |target: &Target, task: &Task| {
            origins.get(target.origin.as_str()).is_some_and(|check| **check == task.check)
                && table.get(&target.origin).is_some_and(|found| found.addresses.contains(&target.address))
        };
        let before = self.down_count();
        self.tasks.retain(|target, task| is_wanted(target, task));
        self.changed |= self.down_count() != before;
        for (name, check) in origins {
            for address in table.get(name).into_iter().flat_map(|found| &found.addresses) {
                let target = Target { origin: name.to_owned(), address: address.clone() };
                if self.tasks.contains_key(&target) {
                    continue;
                }
                self.tasks_started += 1;
                let number = self.tasks_started;
                let (permits, internal) = (Arc::clone(&self.permits), self.internal.clone());
                let running = tokio::spawn(run(target.clone(), number, check.clone(), permits, internal));
                let task = Task { number, check: check.clone(), handle: running.abort_handle(), down: None };
                self.tasks.insert(target, task);
            }
        }
    }

    /// Takes news; whether they are of a check that is still wanted.
    pub fn learn(&mut self, news: &News) -> bool {
        let Some(task) = self.tasks.get_mut(&news.target).filter(|task| task.number == news.task) else { return false };
        task.down.clone_from(&news.down);
        self.changed = true;
        true
    }

    /// The addresses that are down.
    pub fn down(&self) -> DownTable {
        let mut table = DownTable::new();
        for (target, _) in self.tasks.iter().filter(|(_, task)| task.down.is_some()) {
            table.entry(target.origin.clone()).or_default().push(target.address.clone());
        }
        table
    }

    /// How many addresses are down.
    pub fn down_count(&self) -> u64 {
        self.tasks.values().filter(|task| task.down.is_some()).count() as u64
    }

    /// How many are checked.
    pub fn count(&self) -> u64 {
        self.tasks.len() as u64
    }

    /// What `hostward status` shows: those that are down, and why.
    pub fn status(&self) -> Value {
        let down = self.tasks.iter().filter_map(|(target, task)| {
            let cause = task.down.as_ref()?;
            Some(json!({ "origin": target.origin, "address": target.address.to_string(), "cause": cause }))
        });
        down.collect()
    }
}

/// Checks one address for ever.
async fn run(
    target: Target,
    task: u64,
    check: Check,
    permits: Arc<Semaphore>,
    internal: mpsc::UnboundedSender<Internal>,
) {
    let mut judge = Judge::default();
    let mut random = fastrand(&target);
    loop {
        let result = {
            // Never closed.
            let _permit = permits.acquire().await;
            probe::probe(&target.address, &check).await
        };
        let news = judge.take(result.is_ok(), check.healthy_after, check.unhealthy_after);
        if news.is_some() {
            let news = News { target: target.clone(), task, down: result.err() };
            if internal.send(Internal::Checked(news)).is_err() {
                return;
            }
        }
        // Up to a tenth less, so that the checks of many edges, and of many addresses, spread by themselves.
        random = crate::proxy::origin::balance::hash::mix(random.wrapping_add(1));
        let less = check.interval / 10 * (random % 1000) as u32 / 1000;
        tokio::time::sleep(check.interval - less).await;
    }
}

/// A number that differs from process to process and from address to address.
fn fastrand(target: &Target) -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(&target.address)
}
