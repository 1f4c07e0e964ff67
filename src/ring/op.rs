//! Operations in flight, and what they own until their last completion.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::buffers::Group;
use super::executor::with_driver;

/// Where an operation is kept by the driver: index and generation, as they travel in `user_data`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OpKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl OpKey {
    pub(super) const fn user_data(self) -> u64 {
        (self.generation as u64) << 32 | self.index as u64
    }

    pub(super) const fn from_user_data(user_data: u64) -> Self {
        Self { index: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

/// Memory an operation's kernel side points at.
pub(super) enum Keep {
    Nothing,
    Bytes(Vec<u8>),
    Vectored(Box<Vectored>),
    Address(Box<socket2::SockAddr>),
}

/// A vectored send: the buffers, the kernel's view of them, and the header that names both.
pub(super) struct Vectored {
    pub(super) buffers: Vec<Vec<u8>>,
    pub(super) parts: Vec<libc::iovec>,
    pub(super) header: libc::msghdr,
}

/// What the driver knows of one operation.
pub(super) enum Slot {
    /// One completion ends it.
    OneShot { result: Option<i32>, keep: Keep, waker: Option<Waker>, orphan: bool },
    /// The receiving side of a socket; lives as long as the socket.
    Receive(ReceiveSlot),
    /// A multishot accept; lives as long as its listener.
    Accept(AcceptSlot),
    /// The multishot poll of the mailbox's eventfd.
    Wakeup,
}

impl Slot {
    /// Whether the kernel may still write to or read from what the operation owns.
    pub(super) fn is_in_flight(&self) -> bool {
        match self {
            Self::OneShot { result, .. } => result.is_none(),
            Self::Receive(receive) => receive.armed,
            Self::Accept(accept) => accept.armed,
            // Owns nothing: the eventfd is the mailbox's.
            Self::Wakeup => false,
        }
    }
}

/// How a socket's receiving side ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    Eof,
    Error(i32),
}

/// A filled provided buffer that nobody has taken yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    pub(super) group: Group,
    pub(super) buffer: u16,
    pub(super) len: u32,
}

/// The receiving side of a socket.
pub(super) struct ReceiveSlot {
    /// An operation is with the kernel and has not posted its last completion.
    pub(super) armed: bool,
    /// It is a multishot one.
    pub(super) multishot: bool,
    /// It was asked to stop.
    pub(super) cancelling: bool,
    /// The socket is gone; free the slot with the last completion.
    pub(super) orphan: bool,
    /// The buffer ring was empty: arm again.
    pub(super) starved: bool,
    pub(super) group: Group,
    pub(super) end: Option<End>,
    pub(super) filled: VecDeque<Filled>,
    /// Bytes copied out of their buffers because nobody took them in their turn; they come before `filled`.
    pub(super) backlog: Vec<u8>,
    pub(super) waker: Option<Waker>,
}

/// A multishot accept.
pub(super) struct AcceptSlot {
    pub(super) armed: bool,
    pub(super) cancelling: bool,
    pub(super) orphan: bool,
    pub(super) error: Option<i32>,
    pub(super) accepted: VecDeque<OwnedFd>,
    pub(super) waker: Option<Waker>,
}

/// The future of an operation that ends with one completion. Dropped early it cancels the operation; the driver keeps
/// what the kernel still uses.
pub(super) struct OneShot {
    key: Option<OpKey>,
}

impl OneShot {
    pub(super) fn new(key: OpKey) -> Self {
        Self { key: Some(key) }
    }
}

impl Future for OneShot {
    type Output = (i32, Keep);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let key = self.key.expect("an operation is not polled after its end");
        let outcome = with_driver(|driver| driver.poll_oneshot(key, cx));
        if outcome.is_ready() {
            self.key = None;
        }
        outcome
    }
}

impl Drop for OneShot {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            super::executor::try_with_driver(|driver| driver.abandon(key));
        }
    }
}
