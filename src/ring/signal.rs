//! A value set once by one task of a runtime and awaited by others.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Set at most once; the first value stays.
pub struct Signal<T: Copy> {
    value: Cell<Option<T>>,
    wakers: RefCell<Vec<Waker>>,
}

impl<T: Copy> Default for Signal<T> {
    fn default() -> Self {
        Self { value: Cell::new(None), wakers: RefCell::default() }
    }
}

impl<T: Copy> Signal<T> {
    /// Sets the value, unless one is set, and wakes who waits.
    pub fn set(&self, value: T) {
        if self.value.get().is_none() {
            self.value.set(Some(value));
            for waker in self.wakers.borrow_mut().drain(..) {
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
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits for the value.
    pub async fn wait(&self) -> T {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }
}
