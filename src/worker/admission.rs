//! Who may run a handshake now: a bounded number at once, and of those at most half for one hostname.
//!
//! A slot is held while its client thinks, so clients that stall could take them all. Two things keep that from harming other
//! tenants (I8): a hostname never holds more than its share, and those who wait are served hostname by hostname in turn.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::registry::RecordId;

/// A worker's handshake slots.
pub struct Admission {
    inner: RefCell<Inner>,
    /// Most slots one hostname holds.
    share: usize,
}

struct Inner {
    free: usize,
    /// Slots in use, by hostname; only hostnames that hold one.
    held: HashMap<RecordId, usize>,
    /// Those who wait, in order of arrival; one who gave up leaves its number behind, which is skipped.
    queues: HashMap<RecordId, VecDeque<u64>>,
    /// Hostnames with somebody in their queue, in the order of their turns.
    turns: VecDeque<RecordId>,
    waiting: HashMap<u64, Waiting>,
    next_number: u64,
}

struct Waiting {
    waker: Option<Waker>,
    granted: bool,
}

/// The right to run one handshake. Given back when dropped.
pub struct Slot {
    admission: Rc<Admission>,
    record: RecordId,
}

impl Admission {
    /// `slots` handshakes at once.
    pub fn new(slots: usize) -> Rc<Self> {
        let inner = Inner {
            free: slots.max(1),
            held: HashMap::new(),
            queues: HashMap::new(),
            turns: VecDeque::new(),
            waiting: HashMap::new(),
            next_number: 0,
        };
        Rc::new(Self { inner: RefCell::new(inner), share: slots.div_ceil(2).max(1) })
    }

    /// Whether somebody waits.
    pub fn pressed(&self) -> bool {
        !self.inner.borrow().waiting.is_empty()
    }

    /// A slot now, if one is free and the hostname has not its share yet. Those who wait then wait for their own share.
    pub fn try_enter(self: &Rc<Self>, record: RecordId) -> Option<Slot> {
        let mut inner = self.inner.borrow_mut();
        if inner.queues.contains_key(&record) || !inner.take(record, self.share) {
            return None;
        }
        Some(Slot { admission: Rc::clone(self), record })
    }

    /// Waits for a slot.
    pub async fn enter(self: &Rc<Self>, record: RecordId) -> Slot {
        if let Some(slot) = self.try_enter(record) {
            return slot;
        }
        let number = self.inner.borrow_mut().queue(record);
        let waiter = Waiter { admission: self, record, number };
        std::future::poll_fn(|cx| waiter.poll(cx.waker())).await
    }

    fn give_back(&self, record: RecordId) {
        let mut inner = self.inner.borrow_mut();
        inner.free += 1;
        if let Some(held) = inner.held.get_mut(&record) {
            *held -= 1;
            if *held == 0 {
                inner.held.remove(&record);
            }
        }
        inner.grant(self.share);
    }
}

impl Inner {
    fn take(&mut self, record: RecordId, share: usize) -> bool {
        let held = self.held.get(&record).copied().unwrap_or(0);
        if self.free == 0 || held >= share {
            return false;
        }
        self.free -= 1;
        self.held.insert(record, held + 1);
        true
    }

    fn queue(&mut self, record: RecordId) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.waiting.insert(number, Waiting { waker: None, granted: false });
        let queue = self.queues.entry(record).or_default();
        if queue.is_empty() {
            self.turns.push_back(record);
        }
        queue.push_back(number);
        number
    }

    /// Hands free slots to those who wait, one hostname after the other.
    fn grant(&mut self, share: usize) {
        let mut passed_over = 0;
        while self.free > 0 && passed_over < self.turns.len() {
            let Some(record) = self.turns.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&record) else { continue };
            while queue.front().is_some_and(|number| !self.waiting.contains_key(number)) {
                queue.pop_front();
            }
            let Some(&number) = queue.front() else {
                self.queues.remove(&record);
                continue;
            };
            if self.held.get(&record).copied().unwrap_or(0) >= share {
                self.turns.push_back(record);
                passed_over += 1;
                continue;
            }
            queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&record);
            } else {
                self.turns.push_back(record);
            }
            passed_over = 0;
            self.take(record, share);
            if let Some(waiting) = self.waiting.get_mut(&number) {
                waiting.granted = true;
                if let Some(waker) = waiting.waker.take() {
                    waker.wake();
                }
            }
        }
    }
}

struct Waiter<'a> {
    admission: &'a Rc<Admission>,
    record: RecordId,
    number: u64,
}

impl Waiter<'_> {
    fn poll(&self, waker: &Waker) -> Poll<Slot> {
        let mut inner = self.admission.inner.borrow_mut();
        match inner.waiting.get_mut(&self.number) {
            Some(waiting) if !waiting.granted => {
                waiting.waker = Some(waker.clone());
                Poll::Pending
            }
            _ => {
                inner.waiting.remove(&self.number);
                Poll::Ready(Slot { admission: Rc::clone(self.admission), record: self.record })
            }
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let left = self.admission.inner.borrow_mut().waiting.remove(&self.number);
        if left.is_some_and(|waiting| waiting.granted) {
            // Its turn came just as it gave up.
            self.admission.give_back(self.record);
        }
    }
}

impl Slot {
    /// The hostname it counts for.
    pub fn record(&self) -> RecordId {
        self.record
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.give_back(self.record);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    const A: RecordId = RecordId([1; 16]);
    const B: RecordId = RecordId([2; 16]);

    #[test]
    fn one_hostname_never_takes_the_share_of_the_others() {
        let admission = Admission::new(4);
        let mut held: Vec<_> = (0..2).map(|_| admission.try_enter(A).unwrap()).collect();
        assert!(admission.try_enter(A).is_none(), "half of four");
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits = Box::pin(admission.enter(A));
        assert!(waits.as_mut().poll(&mut cx).is_pending());
        assert!(admission.pressed());
        assert!(admission.try_enter(B).is_some(), "free slots are for the others");
        held.pop();
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert!(!admission.pressed());
    }

    #[test]
    fn hostnames_take_turns_and_one_who_gives_up_blocks_nobody() {
        let admission = Admission::new(2);
        let first = (admission.try_enter(A).unwrap(), admission.try_enter(B).unwrap());
        let mut cx = Context::from_waker(Waker::noop());
        let mut waits: Vec<_> = [A, A, A, B].map(|record| Box::pin(admission.enter(record))).into();
        for wait in &mut waits {
            assert!(wait.as_mut().poll(&mut cx).is_pending());
        }
        drop(waits.remove(0));
        drop(first);
        // The slots are kept until all have been asked.
        let polled: Vec<_> = waits.iter_mut().map(|wait| wait.as_mut().poll(&mut cx)).collect();
        let ready: Vec<bool> = polled.iter().map(Poll::is_ready).collect();
        assert_eq!(ready, [true, false, true], "one of A, then B, although two of A came before it");
    }

    #[test]
    fn a_turn_that_comes_as_its_owner_gives_up_goes_to_the_next() {
        let admission = Admission::new(1);
        let slot = admission.try_enter(A).unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut second = Box::pin(admission.enter(A));
        let mut third = Box::pin(admission.enter(B));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        assert!(third.as_mut().poll(&mut cx).is_pending());
        drop(slot);
        drop(second);
        assert!(third.as_mut().poll(&mut cx).is_ready());
        assert!(admission.try_enter(A).is_some());
    }
}
