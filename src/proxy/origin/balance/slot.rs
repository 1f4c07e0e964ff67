//! What is known of one address: exchanges in progress, failures, whether it is left out, and how large its share is.

use std::cell::Cell;
use std::hash::Hash;
use std::rc::Rc;

use super::hash;

/// How long an address is left alone after its first failure.
///
/// An origin that restarts listens again within about a second, and until then a refused connection costs each client a
/// round trip: long enough to spare them, short enough that nobody notices the address coming back late.
pub const BACK_OFF_MIN_MS: u64 = 1_000;

/// The longest back-off; each failed trial doubles it up to here.
///
/// A trial of a dead host makes one client wait for up to `connect_timeout` (2 s by default): once in 30 s per worker is
/// rare enough, and an address that comes back is in use again within half a minute.
pub const BACK_OFF_MAX_MS: u64 = 30_000;

/// A whole share, in thousandths.
const WHOLE: u64 = 1_000;

/// The share an address begins with: enough to warm up by, little enough for one that is cold.
const SHARE_MIN: u64 = 100;

/// An address that is left out because of what happened to exchanges.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ejected {
    /// Connecting failed; otherwise exchanges did.
    pub by_connect: bool,
    pub back_off_ms: u64,
    /// From when on one exchange may try it.
    trial_ms: u64,
    /// Such an exchange is under way.
    on_trial: bool,
}

/// How long it was left out when it came back last.
#[derive(Clone, Copy, Debug)]
struct Returned {
    at_ms: u64,
    back_off_ms: u64,
}

/// One address.
#[derive(Debug)]
pub struct Slot<K> {
    key: K,
    hash: u64,
    pending: Cell<u32>,
    /// Exchanges that failed since the last answer.
    failures: Cell<u32>,
    ejected: Cell<Option<Ejected>>,
    returned: Cell<Option<Returned>>,
    /// The checks of the control plane say that it is down.
    down: Cell<bool>,
    /// The origin does not have it any more: reports of exchanges that are still under way mean nothing.
    gone: Cell<bool>,
    /// Since when its share grows; `None`: it is whole.
    slow_since_ms: Cell<Option<u64>>,
    /// Thousandths of a turn earned while the share is small.
    credit: Cell<u64>,
}

/// An exchange or a tunnel under way at an address, counted while this lives.
#[derive(Debug)]
pub struct Taken<K>(Rc<Slot<K>>);

impl<K> Taken<K> {
    /// Counts one more.
    pub fn new(slot: Rc<Slot<K>>) -> Self {
        slot.pending.set(slot.pending.get().saturating_add(1));
        Self(slot)
    }

    /// Where it is.
    pub fn slot(&self) -> &Rc<Slot<K>> {
        &self.0
    }
}

impl<K> Drop for Taken<K> {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get().saturating_sub(1));
    }
}

impl<K: Hash> Slot<K> {
    pub fn new(key: K) -> Self {
        Self {
            hash: hash::of(&key),
            key,
            pending: Cell::default(),
            failures: Cell::default(),
            ejected: Cell::default(),
            returned: Cell::default(),
            down: Cell::default(),
            gone: Cell::default(),
            slow_since_ms: Cell::default(),
            credit: Cell::default(),
        }
    }
}

impl<K> Slot<K> {
    pub fn key(&self) -> &K {
        &self.key
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    /// Exchanges in progress.
    pub fn pending(&self) -> u32 {
        self.pending.get()
    }

    /// How it is left out, if it is.
    pub fn ejected(&self) -> Option<Ejected> {
        self.ejected.get()
    }

    /// Whether the checks say that it is down.
    pub fn is_down(&self) -> bool {
        self.down.get()
    }

    pub(super) fn set_down(&self, down: bool) {
        self.down.set(down);
    }

    pub(super) fn forget(&self) {
        self.gone.set(true);
        self.ejected.set(None);
    }

    /// Whether an exchange may go there: it is up, or due for a trial.
    pub(super) fn is_usable(&self, now_ms: u64) -> bool {
        !self.down.get() && self.ejected.get().is_none_or(|ejected| now_ms >= ejected.trial_ms)
    }

    pub(super) fn begin_trial(&self, now_ms: u64) {
        if let Some(ejected) = self.ejected.get() {
            let trial_ms = now_ms.saturating_add(ejected.back_off_ms);
            self.ejected.set(Some(Ejected { on_trial: true, trial_ms, ..ejected }));
        }
    }

    pub(super) fn begin_slowly(&self, now_ms: u64) {
        self.slow_since_ms.set(Some(now_ms));
        self.credit.set(0);
    }

    /// Its share, in thousandths of a whole one.
    fn share(&self, now_ms: u64, slow_start_ms: u64) -> u64 {
        let Some(since_ms) = self.slow_since_ms.get() else { return WHOLE };
        let elapsed_ms = now_ms.saturating_sub(since_ms);
        if elapsed_ms >= slow_start_ms {
            self.slow_since_ms.set(None);
            return WHOLE;
        }
        (elapsed_ms * WHOLE / slow_start_ms).max(SHARE_MIN)
    }

    /// Whether it takes this turn: always with a whole share, one in ten with a tenth.
    pub(super) fn earns_turn(&self, now_ms: u64, slow_start_ms: u64) -> bool {
        let share = self.share(now_ms, slow_start_ms);
        let credit = if share == WHOLE { WHOLE } else { self.credit.get() + share };
        self.credit.set(if credit >= WHOLE { credit - WHOLE } else { credit });
        credit >= WHOLE
    }

    /// What it would have in progress with one exchange more, for a whole share; in thousandths.
    pub(super) fn load(&self, now_ms: u64, slow_start_ms: u64) -> u64 {
        (u64::from(self.pending.get()) + 1) * WHOLE * WHOLE / self.share(now_ms, slow_start_ms)
    }

    /// Whether the key is in the part of its keys that its share covers; a larger share covers those of a smaller one.
    pub(super) fn accepts_key(&self, key: u64, now_ms: u64, slow_start_ms: u64) -> bool {
        let share = self.share(now_ms, slow_start_ms);
        share == WHOLE || hash::mix(key.rotate_left(32) ^ self.hash) % WHOLE < share
    }

    /// A connection to it could not be made. Returns the ejection that follows, if one begins or goes on.
    pub fn connect_failed(&self, now_ms: u64) -> Option<Ejected> {
        match self.ejected.get() {
            _ if self.gone.get() => None,
            Some(ejected) => self.trial_failed(ejected, true, now_ms),
            None => Some(self.eject(true, now_ms)),
        }
    }

    pub(super) fn response_failed(&self, now_ms: u64, eject_after: Option<u32>) -> Option<Ejected> {
        self.failures.set(self.failures.get().saturating_add(1));
        match self.ejected.get() {
            _ if self.gone.get() => None,
            Some(ejected) => self.trial_failed(ejected, false, now_ms),
            None if eject_after.is_some_and(|after| self.failures.get() >= after) => Some(self.eject(false, now_ms)),
            None => None,
        }
    }

    /// Of many exchanges that were under way when the address died, only the first counts, and then each trial.
    fn trial_failed(&self, ejected: Ejected, by_connect: bool, now_ms: u64) -> Option<Ejected> {
        ejected.on_trial.then(|| self.leave_out(by_connect, ejected.back_off_ms.saturating_mul(2), now_ms))
    }

    fn eject(&self, by_connect: bool, now_ms: u64) -> Ejected {
        // Whoever fails again sooner than it had been away has not come back.
        let again = self.returned.get().filter(|returned| now_ms < returned.at_ms.saturating_add(returned.back_off_ms));
        let back_off_ms = again.map_or(BACK_OFF_MIN_MS, |returned| returned.back_off_ms.saturating_mul(2));
        self.leave_out(by_connect, back_off_ms, now_ms)
    }

    fn leave_out(&self, by_connect: bool, back_off_ms: u64, now_ms: u64) -> Ejected {
        let back_off_ms = back_off_ms.min(BACK_OFF_MAX_MS);
        let trial_ms = now_ms.saturating_add(back_off_ms);
        let ejected = Ejected { by_connect, back_off_ms, trial_ms, on_trial: false };
        self.ejected.set(Some(ejected));
        ejected
    }

    /// A connection to it was made. Whether it has come back by that: one whose exchanges failed must answer.
    pub fn connected(&self, now_ms: u64) -> bool {
        self.ejected.get().is_some_and(|ejected| ejected.by_connect) && self.come_back(now_ms)
    }

    /// Whether an answer is no news: nothing has failed since the last one.
    pub fn is_well(&self) -> bool {
        self.failures.get() == 0 && self.ejected.get().is_none()
    }

    /// An exchange was answered. Whether it has come back by that.
    pub fn answered(&self, now_ms: u64) -> bool {
        self.failures.set(0);
        self.ejected.get().is_some() && self.come_back(now_ms)
    }

    fn come_back(&self, now_ms: u64) -> bool {
        let Some(ejected) = self.ejected.take() else { return false };
        self.failures.set(0);
        self.returned.set(Some(Returned { at_ms: now_ms, back_off_ms: ejected.back_off_ms }));
        self.begin_slowly(now_ms);
        true
    }
}
