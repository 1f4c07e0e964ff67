//! The queue of the heavy lane: who may do the next step of expensive computation. Pure; the executor gives the time.

use std::collections::VecDeque;
use std::task::Waker;

/// Who waits for leave to do a heavy step, first come first served.
#[derive(Default)]
pub(super) struct HeavyLane {
    /// Tickets granted so far: all up to this number.
    granted: u64,
    /// The wakers of tickets `granted + 1` and on; `None` where the waiter has gone.
    queue: VecDeque<Option<Waker>>,
    /// How many of the queue are still there.
    waiting: usize,
}

impl HeavyLane {
    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Joins the end of the queue; returns the ticket.
    pub(super) fn enter(&mut self, waker: Waker) -> u64 {
        self.queue.push_back(Some(waker));
        self.waiting += 1;
        self.granted + self.queue.len() as u64
    }

    /// Where the waker of a ticket that has not been granted yet is kept.
    pub(super) fn place(&mut self, ticket: u64) -> Option<&mut Option<Waker>> {
        let ahead = ticket.checked_sub(self.granted + 1)?;
        self.queue.get_mut(ahead as usize)
    }

    /// The ticket's owner gives up; nothing happens if it was granted.
    pub(super) fn leave(&mut self, ticket: u64) {
        if self.place(ticket).and_then(Option::take).is_some() {
            self.waiting -= 1;
        }
    }

    /// Grants the first ticket whose owner still waits. Those who left take no step: in a flood, handshakes that timed
    /// out in the queue must not use up the one step a busy turn has.
    pub(super) fn grant(&mut self) -> Option<Waker> {
        while let Some(place) = self.queue.pop_front() {
            self.granted += 1;
            if let Some(waker) = place {
                self.waiting -= 1;
                return Some(waker);
            }
        }
        None
    }
}
