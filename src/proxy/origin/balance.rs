//! Which address of an origin the next connection goes to: round robin that remembers failures.
//!
//! For one worker and one origin. Nothing is probed: an address is down from a failed connection until its back-off is
//! over, then one connection tries it, and the others keep away until that one tells how it went. Addresses are keys of
//! any kind, so that a list that was resolved anew keeps what is known of the addresses that stay.
//!
//! Pure: time comes in as milliseconds of any monotonic clock.

/// How long an address is left alone after its first failure.
///
/// An origin that restarts listens again within about a second, and until then a refused connection costs each client a
/// round trip: long enough to spare them, short enough that nobody notices the address coming back late.
const BACK_OFF_MIN_MS: u64 = 1_000;

/// The longest back-off; each failed trial doubles it up to here.
///
/// A trial of a dead host makes one client wait for up to `connect_timeout` (2 s by default): once in 30 s per worker is
/// rare enough, and an address that comes back is in use again within half a minute.
const BACK_OFF_MAX_MS: u64 = 30_000;

/// What is known of an address that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Down {
    /// When the last failure was reported.
    failed_ms: u64,
    /// The current back-off.
    back_off_ms: u64,
    /// From when on one connection may try it.
    trial_ms: u64,
    /// Such a connection is on its way.
    on_trial: bool,
}

impl Down {
    fn new(now_ms: u64, back_off_ms: u64) -> Self {
        Self { failed_ms: now_ms, back_off_ms, trial_ms: now_ms.saturating_add(back_off_ms), on_trial: false }
    }
}

/// Round robin over the addresses of an origin, with passive failure marks.
#[derive(Clone, Debug)]
pub struct Balance<K> {
    addresses: Vec<(K, Option<Down>)>,
    /// Where the search for the next address begins.
    cursor: usize,
}

impl<K: Eq> Balance<K> {
    /// Starts with every address up. The list may be empty, for an origin whose names do not resolve.
    pub fn new(addresses: impl IntoIterator<Item = K>) -> Self {
        Self { addresses: addresses.into_iter().map(|key| (key, None)).collect(), cursor: 0 }
    }

    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The address for a new connection; `None` only if there are none.
    ///
    /// The next in turn that is up or due for a trial. If there is none, the one whose failure is longest ago: refusing
    /// without a try would turn a short fault of every address into an outage of a whole back-off.
    ///
    /// Report what became of it by [`failed`](Self::failed) or [`succeeded`](Self::succeeded). A trial that is never
    /// reported (the client went away meanwhile) is given up after one more back-off.
    pub fn next(&mut self, now_ms: u64) -> Option<&K> {
        let len = self.addresses.len();
        let in_turn = (0..len).map(|step| (self.cursor + step) % len).find(|&index| {
            let (_, down) = &self.addresses[index];
            down.is_none_or(|down| now_ms >= down.trial_ms)
        });
        let index = match in_turn {
            Some(index) => {
                self.cursor = (index + 1) % len;
                index
            }
            None => (0..len).min_by_key(|&index| self.addresses[index].1.map(|down| down.failed_ms))?,
        };
        let (key, down) = &mut self.addresses[index];
        if let Some(down) = down
            && in_turn.is_some()
        {
            down.on_trial = true;
            down.trial_ms = now_ms.saturating_add(down.back_off_ms);
        }
        Some(key)
    }

    /// A connection to `address` could not be made. An address that is no longer in the list is passed over.
    pub fn failed(&mut self, address: &K, now_ms: u64) {
        let Some((_, mark)) = self.addresses.iter_mut().find(|(key, _)| key == address) else { return };
        match mark {
            None => *mark = Some(Down::new(now_ms, BACK_OFF_MIN_MS)),
            Some(down) if down.on_trial => *down = Down::new(now_ms, (down.back_off_ms * 2).min(BACK_OFF_MAX_MS)),
            // Of many connections that were on their way when the address died, only the first counts.
            Some(down) => down.failed_ms = now_ms,
        }
    }

    /// A connection to `address` was made: it is up, whatever was before.
    pub fn succeeded(&mut self, address: &K) {
        if let Some((_, down)) = self.addresses.iter_mut().find(|(key, _)| key == address) {
            *down = None;
        }
    }

    /// Takes over a new list; an address that stays keeps its mark, and the turn goes on where it was.
    pub fn replace(&mut self, addresses: impl IntoIterator<Item = K>) {
        let mut before = std::mem::take(&mut self.addresses);
        let mut cursor = None;
        for key in addresses {
            let known = before.iter().position(|(old, _)| *old == key);
            if known == Some(self.cursor) {
                cursor = Some(self.addresses.len());
            }
            let down = known.and_then(|index| before[index].1.take());
            self.addresses.push((key, down));
        }
        self.cursor = cursor.unwrap_or(0);
    }

    /// How many addresses are marked as failed.
    pub fn down(&self) -> usize {
        self.addresses.iter().filter(|(_, down)| down.is_some()).count()
    }
}

#[cfg(test)]
mod tests;
