//! A hierarchical timer wheel: pure, with time passed in as ticks.
//!
//! Six levels of 64 slots; a slot of level n spans 64^n ticks. Adding and removing a timer are O(1); advancing touches
//! only slots that hold timers, found by a bitmap for each level. With ticks of a millisecond the wheel spans more than
//! two years; a later deadline waits in the last slot and is placed again.

use slab::Slab;

const LEVELS: usize = 6;
const SLOTS: usize = 64;
const NIL: u32 = u32::MAX;

/// A timer that was added and not yet removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TimerKey {
    index: u32,
    generation: u32,
}

struct Entry<T> {
    deadline: u64,
    generation: u32,
    previous: u32,
    next: u32,
    /// Level and slot of the list this entry is in; `None` once it has fired.
    place: Option<(u8, u8)>,
    value: T,
}

/// Timers by deadline, in ticks.
pub(super) struct Wheel<T> {
    /// Every timer with a deadline up to and including this tick has fired.
    now: u64,
    entries: Slab<Entry<T>>,
    heads: [[u32; SLOTS]; LEVELS],
    occupied: [u64; LEVELS],
    generation: u32,
}

impl<T> Wheel<T> {
    /// An empty wheel at tick `now`.
    pub(super) fn new(now: u64) -> Self {
        Self { now, entries: Slab::new(), heads: [[NIL; SLOTS]; LEVELS], occupied: [0; LEVELS], generation: 0 }
    }

    /// How many timers are in the wheel, those that fired and were not removed included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a timer. One whose deadline has passed fires with the next advance.
    pub(super) fn insert(&mut self, deadline: u64, value: T) -> TimerKey {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.entries.insert(Entry { deadline, generation, previous: NIL, next: NIL, place: None, value });
        let index = u32::try_from(index).expect("fewer than 2^32 timers");
        self.link(index);
        TimerKey { index, generation }
    }

    /// Removes a timer, fired or not. A key that is no longer in the wheel is ignored.
    pub(super) fn remove(&mut self, key: TimerKey) -> Option<T> {
        self.get(key)?;
        self.unlink(key.index);
        Some(self.entries.remove(key.index as usize).value)
    }

    /// Whether the timer has fired; `None` for a key that is no longer in the wheel.
    pub(super) fn fired(&self, key: TimerKey) -> Option<bool> {
        self.get(key).map(|entry| entry.place.is_none())
    }

    /// The timer's value.
    pub(super) fn value_mut(&mut self, key: TimerKey) -> Option<&mut T> {
        match self.entries.get_mut(key.index as usize) {
            Some(entry) if entry.generation == key.generation => Some(&mut entry.value),
            _ => None,
        }
    }

    /// The first tick at which something may have to be done: never later than the earliest deadline, and earlier only
    /// where a slot of a higher level must be spread out first.
    pub(super) fn next_tick(&self) -> Option<u64> {
        (0..LEVELS).filter_map(|level| self.next_in_level(level)).map(|(start, _)| start.max(self.now + 1)).min()
    }

    /// Moves time to `to` and calls `fire` for the value of each timer whose deadline has come, in order of ticks.
    /// Fired timers stay in the wheel until removed, so that their owners can ask.
    pub(super) fn advance(&mut self, to: u64, mut fire: impl FnMut(&mut T)) {
        while self.now < to {
            let Some(next) = self.next_tick().filter(|next| *next <= to) else {
                self.now = to;
                return;
            };
            self.now = next;
            // Higher levels first: what they hold may belong into a lower slot that is due at this very tick.
            for level in (0..LEVELS).rev() {
                let slot = slot_of(self.now, level);
                if self.occupied[level] & (1 << slot) == 0 || !self.now.is_multiple_of(span(level)) {
                    continue;
                }
                let mut index = self.heads[level][slot];
                self.heads[level][slot] = NIL;
                self.occupied[level] &= !(1 << slot);
                while index != NIL {
                    let entry = &mut self.entries[index as usize];
                    let next_index = entry.next;
                    entry.previous = NIL;
                    entry.next = NIL;
                    entry.place = None;
                    if entry.deadline <= self.now {
                        fire(&mut entry.value);
                    } else {
                        self.link(index);
                    }
                    index = next_index;
                }
            }
        }
    }

    fn get(&self, key: TimerKey) -> Option<&Entry<T>> {
        self.entries.get(key.index as usize).filter(|entry| entry.generation == key.generation)
    }

    /// The start of the nearest occupied slot of a level, in ticks, and its number.
    fn next_in_level(&self, level: usize) -> Option<(u64, usize)> {
        let occupied = self.occupied[level];
        if occupied == 0 {
            return None;
        }
        let current = slot_of(self.now, level);
        // The current slot of a level has been dealt with; if occupied it holds timers of the next round.
        let ahead = occupied.rotate_right((current as u32 + 1) % 64);
        let distance = u64::from(ahead.trailing_zeros()) + 1;
        let slot_start = self.now / span(level) * span(level);
        Some((slot_start + distance * span(level), (current + distance as usize) % SLOTS))
    }

    /// Puts an entry into the list its deadline asks for.
    fn link(&mut self, index: u32) {
        let deadline = self.entries[index as usize].deadline.max(self.now + 1);
        // The level at which deadline and now differ first: there the timer's slot lies ahead within one round.
        let distance = (deadline ^ self.now).max(1);
        let level = (63 - distance.leading_zeros() as usize) / 6;
        let (level, slot) = if level < LEVELS {
            (level, slot_of(deadline, level))
        } else {
            // In another round of the top level. Within 63 slots it has a slot of its own there; farther than that it waits
            // in the slot just behind the current one and is placed again when that comes.
            let top = LEVELS - 1;
            let ahead = deadline / span(top) - self.now / span(top);
            (top, (slot_of(self.now, top) + ahead.min(SLOTS as u64 - 1) as usize) % SLOTS)
        };
        let head = self.heads[level][slot];
        self.heads[level][slot] = index;
        self.occupied[level] |= 1 << slot;
        let entry = &mut self.entries[index as usize];
        entry.place = Some((level as u8, slot as u8));
        entry.previous = NIL;
        entry.next = head;
        if head != NIL {
            self.entries[head as usize].previous = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (previous, next, place) = (entry.previous, entry.next, entry.place);
        let Some((level, slot)) = place else { return };
        let (level, slot) = (usize::from(level), usize::from(slot));
        if previous == NIL {
            self.heads[level][slot] = next;
            if next == NIL {
                self.occupied[level] &= !(1 << slot);
            }
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NIL {
            self.entries[next as usize].previous = previous;
        }
    }
}

/// How many ticks one slot of a level spans.
const fn span(level: usize) -> u64 {
    1 << (6 * level)
}

const fn slot_of(tick: u64, level: usize) -> usize {
    ((tick >> (6 * level)) & (SLOTS as u64 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Advance(u64),
        /// Jump to exactly the tick the wheel asks to be woken at.
        AdvanceToNext,
    }

    fn step() -> impl Strategy<Value = Step> {
        let delay = prop_oneof![0..200u64, 0..70_000u64, 0..300_000_000u64, 0..200_000_000_000u64];
        prop_oneof![
            4 => delay.clone().prop_map(Step::Insert),
            2 => any::<usize>().prop_map(Step::Remove),
            2 => delay.prop_map(Step::Advance),
            3 => Just(Step::AdvanceToNext),
        ]
    }

    proptest! {
        /// The wheel fires what a sorted map says is due: all of it, nothing else, and it never asks to sleep too long.
        #[test]
        fn fires_like_a_sorted_map(start in 0..1u64 << 40, steps in proptest::collection::vec(step(), 1..120)) {
            let mut wheel = Wheel::new(start);
            let mut now = start;
            let mut model: BTreeMap<u64, (u64, TimerKey)> = BTreeMap::new();
            let mut next_id = 0u64;
            for step in steps {
                let to = match step {
                    Step::Insert(delay) => {
                        let deadline = now + delay;
                        model.insert(next_id, (deadline, wheel.insert(deadline, next_id)));
                        next_id += 1;
                        continue;
                    }
                    Step::Remove(choice) => {
                        if !model.is_empty() {
                            let id = *model.keys().nth(choice % model.len()).unwrap();
                            let (_, key) = model.remove(&id).unwrap();
                            prop_assert_eq!(wheel.remove(key), Some(id));
                            prop_assert_eq!(wheel.remove(key), None);
                        }
                        continue;
                    }
                    Step::Advance(by) => now + by,
                    Step::AdvanceToNext => wheel.next_tick().unwrap_or(now),
                };
                if let Some(earliest) = model.values().map(|(deadline, _)| *deadline).min() {
                    let asked = wheel.next_tick().unwrap();
                    prop_assert!(asked > now && asked <= earliest.max(now + 1), "{} for {}", asked, earliest);
                }
                let moved = to > now;
                let mut fired = Vec::new();
                wheel.advance(to, |id| fired.push(*id));
                now = now.max(to);
                let is_due = |(_, (deadline, _)): &(&u64, &(u64, TimerKey))| moved && *deadline <= now;
                let due: Vec<u64> = model.iter().filter(is_due).map(|(id, _)| *id).collect();
                let mut sorted = fired.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, due);
                for id in fired {
                    let (_, key) = model.remove(&id).unwrap();
                    prop_assert_eq!(wheel.fired(key), Some(true));
                    prop_assert_eq!(wheel.remove(key), Some(id));
                }
                for (_, key) in model.values() {
                    prop_assert_eq!(wheel.fired(*key), Some(false));
                }
                prop_assert_eq!(wheel.len(), model.len());
            }
        }
    }

    #[test]
    fn a_deadline_beyond_the_wheel_still_fires_on_time() {
        let mut wheel = Wheel::new(5);
        let far = 5 + (1u64 << 40);
        let key = wheel.insert(far, ());
        let mut fired = 0;
        wheel.advance(far - 1, |()| fired += 1);
        assert_eq!(fired, 0);
        wheel.advance(far, |()| fired += 1);
        assert_eq!((fired, wheel.fired(key)), (1, Some(true)));
    }
}
