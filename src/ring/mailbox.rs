//! How other threads reach a worker: a lock-free queue and a wake-up through the ring.
//!
//! A message is pushed to a queue; the receiving task is woken by writing to an eventfd that the worker's ring polls. A
//! worker that is busy is written to once, however many messages come.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Poll, Waker};

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use super::executor::{TaskRef, current_remote};

/// The outside of a runtime: tasks to wake, and the eventfd that says so.
pub(super) struct Remote {
    woken: SegQueue<TaskRef>,
    /// The eventfd has been written to and not yet been read.
    signalled: AtomicBool,
    eventfd: OwnedFd,
}

impl Remote {
    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_fd().as_raw_fd()
    }

    fn wake(&self, task: TaskRef) {
        self.woken.push(task);
        if !self.signalled.swap(true, Ordering::AcqRel) {
            // Cannot fail: the counter is far from its maximum, since only the first of many signals is written.
            let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
        }
    }

    /// Takes every task to wake. Called by the runtime when its eventfd became readable.
    pub(super) fn drain(&self, mut wake: impl FnMut(TaskRef)) {
        let mut counter = [0; 8];
        let _ = rustix::io::read(&self.eventfd, &mut counter);
        // Cleared before the queue is read: whoever pushes from now on signals again. An exchange and not a store, so that
        // it reads from the last thread that found the flag set and left the signal to us: what that one pushed is seen
        // below. A store could still be on its way while the queue is looked at and found empty.
        self.signalled.swap(false, Ordering::AcqRel);
        while let Some(task) = self.woken.pop() {
            wake(task);
        }
    }
}

/// The runtimes of this process, by the number their wakers carry. Read only when a waker is used on another thread.
static REMOTES: RwLock<Vec<Option<Arc<Remote>>>> = RwLock::new(Vec::new());

/// Enters a new runtime and names it.
pub(super) fn register() -> io::Result<(u16, Arc<Remote>)> {
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let remote = Arc::new(Remote { woken: SegQueue::new(), signalled: AtomicBool::new(false), eventfd });
    let mut remotes = REMOTES.write().unwrap_or_else(PoisonError::into_inner);
    let free = remotes.iter().position(Option::is_none);
    let index = match free {
        Some(index) => {
            remotes[index] = Some(Arc::clone(&remote));
            index
        }
        None => {
            remotes.push(Some(Arc::clone(&remote)));
            remotes.len() - 1
        }
    };
    let id = u16::try_from(index).map_err(|_| io::Error::other("more than 65,536 runtimes in one process"))?;
    Ok((id, remote))
}

pub(super) fn unregister(id: u16) {
    REMOTES.write().unwrap_or_else(PoisonError::into_inner)[usize::from(id)] = None;
}

/// How many runtimes this process has.
#[cfg(test)]
pub(super) fn runtimes() -> usize {
    REMOTES.read().unwrap_or_else(PoisonError::into_inner).iter().flatten().count()
}

/// Wakes a task of another thread's runtime; nothing happens if that is gone.
pub(super) fn wake_remote(id: u16, task: TaskRef) {
    let remotes = REMOTES.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(Some(remote)) = remotes.get(usize::from(id)) {
        remote.wake(task);
    }
}

struct Shared<T> {
    queue: SegQueue<T>,
    /// The receiving task. Locked by the receiver when it goes to sleep and by a sender that finds it asleep.
    waker: Mutex<Option<Waker>>,
}

/// The sending end; any thread, any number.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Sender<T> {
    /// Posts a message. Never waits for the receiver and never drops a message.
    pub fn send(&self, message: T) {
        self.shared.queue.push(message);
        let waker = self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The receiving end; stays with the runtime it is used in.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    not_send: PhantomData<*const ()>,
}

impl<T> Receiver<T> {
    /// The next message, in the order of posting.
    pub async fn receive(&mut self) -> T {
        std::future::poll_fn(|cx| {
            if let Some(message) = self.shared.queue.pop() {
                return Poll::Ready(message);
            }
            *self.shared.waker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
            // Looked at again after the waker stands: a message posted in between would wake nobody.
            self.shared.queue.pop().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// What becomes a [`Receiver`] on the thread that will read it.
pub struct Unclaimed<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Unclaimed<T> {
    /// Takes the receiving end. Called on the runtime's own thread.
    pub fn claim(self) -> Receiver<T> {
        // Asserts that a runtime is here: its eventfd is what senders wake.
        let _ = current_remote();
        Receiver { shared: self.shared, not_send: PhantomData }
    }
}

/// A mailbox: the sender may be used and cloned anywhere, the receiver is claimed by one runtime.
pub fn mailbox<T: Send>() -> (Sender<T>, Unclaimed<T>) {
    let shared = Arc::new(Shared { queue: SegQueue::new(), waker: Mutex::new(None) });
    (Sender { shared: Arc::clone(&shared) }, Unclaimed { shared })
}
