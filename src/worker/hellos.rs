//! What this core keeps of ClientHellos that are not being answered yet, and who has to go when that is too much.
//!
//! One hello is bounded by itself (32 KiB), and so is the number of connections; but 100,000 of them that each send
//! almost a whole hello and then nothing, or wait for a handshake slot with one, would hold gigabytes. So all of them
//! together have a budget. When it is spent the connection that has waited longest is ended: a client in earnest has its
//! hello through in a round trip, one that is slow on purpose grows old, and newcomers are served whatever others hold.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::ring::Signal;

/// Most bytes all waiting hellos of a worker take together.
///
/// 32 times what 1024 handshakes in progress get out of it (2 KiB each is a hello with a post-quantum key share), or some
/// 5,000 hellos of which only the first of two packets has come. A flood has to bring that many within the round trip of
/// an honest client to make it wait.
pub const HELLOS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What rustls' reader takes while a hello is incomplete: its state, and a buffer that grows by 4 KiB beyond what it holds.
pub const READER_BYTES: usize = 8 * 1024;

/// The waiting hellos of a worker.
pub struct Hellos {
    bytes_max: usize,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    bytes: usize,
    /// By number, which is by age.
    waiting: BTreeMap<u64, Entry>,
    next_number: u64,
}

struct Entry {
    bytes: usize,
    ended: Rc<Signal<()>>,
}

/// One waiting hello. What it takes is given back when it is dropped.
pub struct Waiting {
    hellos: Rc<Hellos>,
    /// Its number, and the word that it has to go; once it takes anything.
    entered: OnceCell<(u64, Rc<Signal<()>>)>,
}

impl Hellos {
    /// `bytes_max` for all of them.
    pub fn new(bytes_max: usize) -> Rc<Self> {
        Rc::new(Self { bytes_max, inner: RefCell::default() })
    }

    /// One that takes nothing yet: a connection that is silent, or whose hello is answered at once, costs nothing here.
    pub fn waiting(self: &Rc<Self>) -> Waiting {
        Waiting { hellos: Rc::clone(self), entered: OnceCell::new() }
    }

    fn enter(&self) -> (u64, Rc<Signal<()>>) {
        let mut inner = self.inner.borrow_mut();
        let number = inner.next_number;
        inner.next_number += 1;
        let ended = Rc::new(Signal::default());
        inner.waiting.insert(number, Entry { bytes: 0, ended: Rc::clone(&ended) });
        (number, ended)
    }
}

impl Waiting {
    /// It takes this much now. Ends those who have waited longest until all fit, which may be this one itself; returns how
    /// many.
    pub fn set_bytes(&self, bytes: usize) -> u64 {
        let (number, _) = self.entered.get_or_init(|| self.hellos.enter());
        let mut inner = self.hellos.inner.borrow_mut();
        let Some(entry) = inner.waiting.get_mut(number) else { return 0 };
        let before = std::mem::replace(&mut entry.bytes, bytes);
        inner.bytes = inner.bytes - before + bytes;
        let mut ended = 0;
        while inner.bytes > self.hellos.bytes_max {
            let Some((_, oldest)) = inner.waiting.pop_first() else { break };
            // Its memory is freed as soon as its task runs, in this turn.
            inner.bytes -= oldest.bytes;
            oldest.ended.set(());
            ended += 1;
        }
        ended
    }

    /// Ready when this one has to go. To be polled after whatever calls [`Waiting::set_bytes`].
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.entered.get().map_or(Poll::Pending, |(_, ended)| ended.poll(cx))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((number, _)) = self.entered.get() else { return };
        let mut inner = self.hellos.inner.borrow_mut();
        if let Some(entry) = inner.waiting.remove(number) {
            inner.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_ended(waiting: &Waiting) -> bool {
        waiting.entered.get().is_some_and(|(_, ended)| ended.get().is_some())
    }

    #[test]
    fn the_oldest_makes_room_and_newcomers_stay() {
        let hellos = Hellos::new(100);
        let silent = hellos.waiting();
        let old: Vec<_> = (0..10).map(|_| hellos.waiting()).collect();
        assert_eq!(old.iter().map(|waiting| waiting.set_bytes(10)).sum::<u64>(), 0);
        let new = hellos.waiting();
        assert_eq!(new.set_bytes(15), 2);
        assert!(is_ended(&old[0]) && is_ended(&old[1]) && !is_ended(&old[2]));
        assert!(!is_ended(&new) && !is_ended(&silent));
        // One that has been ended changes nothing any more.
        assert_eq!(old[0].set_bytes(50), 0);
        drop(old);
        assert_eq!(hellos.inner.borrow().bytes, 15);
        assert_eq!(new.set_bytes(101), 1, "more than there is for all");
        assert!(is_ended(&new));
    }

    proptest! {
        /// Whatever comes and goes, the sum is right and within its bound.
        #[test]
        fn the_bound_holds(steps in proptest::collection::vec((any::<bool>(), 0..8usize, 0..60usize), 1..100)) {
            let hellos = Hellos::new(100);
            let mut all: Vec<Waiting> = (0..8).map(|_| hellos.waiting()).collect();
            for (leaves, index, bytes) in steps {
                if leaves {
                    all[index] = hellos.waiting();
                } else {
                    all[index].set_bytes(bytes);
                }
                let inner = hellos.inner.borrow();
                prop_assert_eq!(inner.bytes, inner.waiting.values().map(|entry| entry.bytes).sum::<usize>());
                prop_assert!(inner.bytes <= 100);
                prop_assert!(inner.waiting.len() <= 8);
            }
            drop(all);
            prop_assert!(hellos.inner.borrow().waiting.is_empty());
        }
    }
}
