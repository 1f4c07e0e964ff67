//! A value set once by one task of a runtime and awaited by others.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Set at most once; the first value stays.
pub struct Signal<T: Copy> {
    value: Cell<Option<T>>,
    /// Who waits: mostly one task, which is remembered without memory of its own.
    first: RefCell<Option<Waker>>,
    others: RefCell<Vec<Waker>>,
}

impl<T: Copy> Default for Signal<T> {
    fn default() -> Self {
        Self { value: Cell::new(None), first: RefCell::default(), others: RefCell::default() }
    }
}

impl<T: Copy> Signal<T> {
    /// Sets the value, unless one is set, and wakes who waits.
    pub fn set(&self, value: T) {
        if self.value.get().is_none() {
            self.value.set(Some(value));
            let first = self.first.borrow_mut().take();
            for waker in first.into_iter().chain(self.others.borrow_mut().drain(..)) {
                waker.wake();
            }
        }
    }

    /// The value, if it is set.
    pub fn get(&self) -> Option<T> {
        self.value.get()
    }

    /// Ready with the value once it is set; until then each task that polls is remembered, once.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.value.get() {
            return Poll::Ready(value);
        }
        let mut first = self.first.borrow_mut();
        match &*first {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            None => *first = Some(cx.waker().clone()),
            Some(_) => {
                let mut others = self.others.borrow_mut();
                if !others.iter().any(|waker| waker.will_wake(cx.waker())) {
                    others.push(cx.waker().clone());
                }
            }
        }
        Poll::Pending
    }

    /// Waits for the value.
    pub async fn wait(&self) -> T {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }
}
