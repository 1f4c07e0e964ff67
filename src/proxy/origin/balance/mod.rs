//! Which address of an origin an exchange goes to, for one worker and one origin.
//!
//! A choice is a function of what is known of the addresses and of what is asked: time and chance are passed in. What is
//! known comes from three sides:
//!
//! | source | an address is left out | until |
//! |---|---|---|
//! | connecting fails | at once | a trial connects: one connection after a back-off that doubles |
//! | exchanges end in an error of ours | after some in a row, as long as half of the addresses are left | a trial is answered |
//! | the control plane's checks | when they say so | they say otherwise |
//!
//! If every address is left out, all of them are chosen as if none were (*panic*): refusing without a try would turn a
//! short fault of every address into an outage of a whole back-off, and a check that is wrong into one without end.
//!
//! An address that comes back, or joins others, begins with a small share that grows over `slow_start`.

pub mod hash;
mod slot;

use std::rc::Rc;

pub use self::slot::{Ejected, Slot, Taken};
use crate::registry::balancing::Policy;

/// What a choice is made by.
#[derive(Debug)]
pub struct Ask<'a, K> {
    pub policy: &'a Policy,
    /// What the request goes by where the policy hashes.
    pub key: u64,
    /// Any number that a client cannot foresee.
    pub random: u64,
    /// Milliseconds of any monotonic clock.
    pub now_ms: u64,
    pub slow_start_ms: u64,
    /// Addresses that have failed this request: another is better, if there is one.
    pub tried: &'a [Rc<Slot<K>>],
}

/// The address that was chosen.
#[derive(Debug)]
pub struct Choice<K> {
    pub slot: Rc<Slot<K>>,
    /// Every address is left out, so that this one had to be taken anyway.
    pub in_panic: bool,
}

/// The addresses of an origin. They are keys of any kind, so that a list that was resolved anew keeps what is known of
/// those that stay.
#[derive(Debug)]
pub struct Balance<K> {
    slots: Vec<Rc<Slot<K>>>,
    /// Where the search for the next address in turn begins.
    cursor: usize,
}

impl<K> Default for Balance<K> {
    fn default() -> Self {
        Self { slots: Vec::new(), cursor: 0 }
    }
}

impl<K: Eq + std::hash::Hash> Balance<K> {
    /// How many addresses there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many addresses are left out because of what happened to exchanges.
    pub fn ejected(&self) -> usize {
        self.slots.iter().filter(|slot| slot.ejected().is_some()).count()
    }

    /// Whether the checks say of every address that it is down.
    pub fn is_down(&self) -> bool {
        !self.is_empty() && self.slots.iter().all(|slot| slot.is_down())
    }

    /// Takes over a new list and what the checks say of it. An address that stays keeps what is known of it, and the turn
    /// goes on where it was.
    pub fn replace(&mut self, addresses: impl IntoIterator<Item = K>, down: impl Fn(&K) -> bool, now_ms: u64) {
        let before = std::mem::take(&mut self.slots);
        let mut cursor = None;
        for key in addresses {
            let known = before.iter().position(|slot| *slot.key() == key);
            if known == Some(self.cursor) {
                cursor = Some(self.slots.len());
            }
            let slot = match known {
                Some(index) => Rc::clone(&before[index]),
                None => Rc::new(Slot::new(key)),
            };
            // One that joins others is as new to its work as one that comes back.
            if known.is_none() && !before.is_empty() {
                slot.begin_slowly(now_ms);
            }
            self.slots.push(slot);
        }
        for slot in before.iter().filter(|slot| !self.slots.iter().any(|stays| Rc::ptr_eq(stays, slot))) {
            slot.forget();
        }
        self.cursor = cursor.unwrap_or(0);
        self.mark_down(down, now_ms);
    }

    /// Takes what the checks say of the addresses.
    pub fn mark_down(&mut self, down: impl Fn(&K) -> bool, now_ms: u64) {
        for slot in &self.slots {
            let is_down = down(slot.key());
            if slot.is_down() && !is_down {
                slot.begin_slowly(now_ms);
            }
            slot.set_down(is_down);
        }
    }

    /// The only address there is, if nothing is wrong with it: then there is no choice to make.
    pub fn sole(&self) -> Option<&Rc<Slot<K>>> {
        match &self.slots[..] {
            [slot] if !slot.is_down() && slot.ejected().is_none() => Some(slot),
            _ => None,
        }
    }

    /// The address for an exchange; `None` only if there are none.
    ///
    /// If it is a trial of one that was left out, no other exchange tries it until this one is reported. A trial that is
    /// never reported (the client went away meanwhile) is given up after one more back-off.
    pub fn choose(&mut self, ask: &Ask<'_, K>) -> Option<Choice<K>> {
        let is_fresh = |slot: &Rc<Slot<K>>| !ask.tried.iter().any(|tried| Rc::ptr_eq(tried, slot));
        let is_usable = |slot: &Rc<Slot<K>>| slot.is_usable(ask.now_ms);
        let mut in_panic = false;
        let index = self
            .among(ask, |slot| is_usable(slot) && is_fresh(slot))
            .or_else(|| self.among(ask, is_usable))
            .or_else(|| {
                in_panic = true;
                self.among(ask, is_fresh).or_else(|| self.among(ask, |_| true))
            })?;
        let slot = Rc::clone(self.slots.get(index)?);
        if !in_panic {
            slot.begin_trial(ask.now_ms);
        }
        Some(Choice { slot, in_panic })
    }

    /// The choice of the policy among the addresses that fit.
    fn among(&mut self, ask: &Ask<'_, K>, fits: impl Fn(&Rc<Slot<K>>) -> bool) -> Option<usize> {
        match ask.policy {
            Policy::RoundRobin => self.in_turn(ask, fits),
            Policy::LeastPending => self.less_pending(ask, fits),
            Policy::HashClientAddress | Policy::HashHeader(_) => self.by_key(ask, fits),
        }
    }

    /// The next in turn. One whose share is small lets turns pass.
    fn in_turn(&mut self, ask: &Ask<'_, K>, fits: impl Fn(&Rc<Slot<K>>) -> bool) -> Option<usize> {
        let len = self.len();
        let (mut first, mut found) = (None, None);
        for index in (0..len).map(|step| (self.cursor + step) % len) {
            let slot = &self.slots[index];
            if !fits(slot) {
                continue;
            }
            first = first.or(Some(index));
            if slot.earns_turn(ask.now_ms, ask.slow_start_ms) {
                found = Some(index);
                break;
            }
        }
        let index = found.or(first)?;
        self.cursor = (index + 1) % len;
        Some(index)
    }

    /// Of two at random, the one with fewer exchanges in progress for its share.
    ///
    /// Two instead of all: workers do not see each other's exchanges, and many that all take what looks best to each of them
    /// would flood one address after the other (M. Mitzenmacher, "The power of two choices in randomized load balancing").
    fn less_pending(&self, ask: &Ask<'_, K>, fits: impl Fn(&Rc<Slot<K>>) -> bool) -> Option<usize> {
        let fitting = || self.slots.iter().enumerate().filter(|(_, slot)| fits(slot)).map(|(index, _)| index);
        let count = fitting().count() as u64;
        if count < 2 {
            return fitting().next();
        }
        let one = ask.random % count;
        let other = (ask.random >> 32) % (count - 1);
        let other = if other >= one { other + 1 } else { other };
        let one = fitting().nth(one as usize)?;
        let other = fitting().nth(other as usize)?;
        let load = |index: usize| self.slots[index].load(ask.now_ms, ask.slow_start_ms);
        Some(if load(other) < load(one) { other } else { one })
    }

    /// The address with the highest rank for this key (rendezvous hashing): without one address, only its keys move. One
    /// whose share is small takes the same part of its keys until the share has grown.
    fn by_key(&self, ask: &Ask<'_, K>, fits: impl Fn(&Rc<Slot<K>>) -> bool) -> Option<usize> {
        let fitting = || self.slots.iter().enumerate().filter(|(_, slot)| fits(slot));
        let rank = |(_, slot): &(usize, &Rc<Slot<K>>)| hash::rank(ask.key, slot.hash());
        let accepts = |(_, slot): &(usize, &Rc<Slot<K>>)| slot.accepts_key(ask.key, ask.now_ms, ask.slow_start_ms);
        let found = fitting().filter(accepts).max_by_key(rank);
        found.or_else(|| fitting().max_by_key(rank)).map(|(index, _)| index)
    }

    /// An exchange at this address ended in an error of ours: no answer in time, none at all, or none that can be read.
    /// Returns the ejection that follows, if one does: after `eject_after` in a row, while at least half of the addresses
    /// are left. Whatever broke all of them is not cured by leaving them out, and those left would carry the rest alone.
    pub fn response_failed(&self, slot: &Slot<K>, now_ms: u64, eject_after: Option<u32>) -> Option<Ejected> {
        let left_out = self.slots.iter().filter(|other| other.is_down() || other.ejected().is_some()).count();
        let may_eject = 2 * (left_out + 1) <= self.len();
        slot.response_failed(now_ms, eject_after.filter(|_| may_eject))
    }
}

#[cfg(test)]
mod tests;
