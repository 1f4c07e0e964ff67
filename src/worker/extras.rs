//! Streams of HTTP/2 beyond the first of their connection: each may need an origin connection of its own.
//!
//! A client connection has two descriptors in the budget, its own and one to an origin. A hundred streams on it would need a
//! hundred, so that one hostname with a silent origin could take every descriptor of the process from the others (I8). What
//! goes beyond the first stream therefore has a budget for the worker, of which one hostname may hold half.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use crate::registry::RecordId;

/// What is under way beyond first streams, on one worker.
pub struct Extras {
    max: usize,
    total: Cell<usize>,
    by_record: RefCell<HashMap<RecordId, usize, foldhash::fast::RandomState>>,
}

/// One stream that counts, for as long as it lives.
pub struct Extra {
    extras: Rc<Extras>,
    record: RecordId,
}

impl Extras {
    /// For a worker that may have so many.
    pub fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { max, total: Cell::new(0), by_record: RefCell::default() })
    }

    /// Counts one more of this hostname. `None`: its share, or the worker's, is used up.
    pub fn enter(self: &Rc<Self>, record: RecordId) -> Option<Extra> {
        let mut by_record = self.by_record.borrow_mut();
        let held = by_record.get(&record).copied().unwrap_or(0);
        if self.total.get() >= self.max || held >= self.max.div_ceil(2) {
            return None;
        }
        by_record.insert(record, held + 1);
        self.total.set(self.total.get() + 1);
        Some(Extra { extras: Rc::clone(self), record })
    }
}

impl Drop for Extra {
    fn drop(&mut self) {
        self.extras.total.set(self.extras.total.get() - 1);
        let mut by_record = self.extras.by_record.borrow_mut();
        if let Some(held) = by_record.get_mut(&self.record) {
            *held -= 1;
            if *held == 0 {
                by_record.remove(&self.record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hostname_holds_half() {
        let extras = Extras::new(8);
        let (one, other) = (RecordId([1; 16]), RecordId([2; 16]));
        let ones: Vec<_> = (0..8).map_while(|_| extras.enter(one)).collect();
        assert_eq!(ones.len(), 4);
        let others: Vec<_> = (0..8).map_while(|_| extras.enter(other)).collect();
        assert_eq!(others.len(), 4);
        assert!(extras.enter(RecordId([3; 16])).is_none());
        drop(ones);
        assert!(extras.enter(other).is_none(), "its share is used up");
        assert!(extras.enter(RecordId([3; 16])).is_some());
        drop(others);
        assert_eq!(extras.total.get(), 0);
        assert!(extras.by_record.borrow().is_empty());
    }
}
