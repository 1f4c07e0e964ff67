//! Accepting connections: one multishot accept for each listener.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll};

use rustix::net::SocketFlags;

use super::executor::{try_with_driver, with_driver};
use super::op::OpKey;

/// A listening socket on the ring. Dropped, it stops accepting; connections accepted and not taken are closed.
pub struct Listener {
    /// Present until dropped.
    socket: Option<OwnedFd>,
    fd: RawFd,
    key: OpKey,
    one_by_one: Cell<bool>,
}

impl Listener {
    /// Takes a bound, listening socket.
    pub fn new(socket: std::net::TcpListener) -> Self {
        let fd = socket.as_raw_fd();
        Self {
            socket: Some(socket.into()),
            fd,
            key: with_driver(super::driver::Driver::new_accept),
            one_by_one: Cell::new(false),
        }
    }

    /// The next connection, non-blocking and close-on-exec.
    ///
    /// # Errors
    ///
    /// What accept(2) says: `EMFILE`, `ENFILE` and `ENOMEM` pass with time; wait before asking again.
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`Listener::accept`], for hand-written futures.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`].
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<OwnedFd>> {
        with_driver(|driver| {
            let accept = driver.accept(self.key);
            if let Some(fd) = accept.accepted.pop_front() {
                return Poll::Ready(Ok(fd));
            }
            if let Some(errno) = accept.error.take() {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            accept.waker = Some(cx.waker().clone());
            if !accept.armed {
                driver.arm_accept(self.key, self.fd, !self.one_by_one.get());
            }
            Poll::Pending
        })
    }

    /// Accepts one connection for each call from now on, or again whatever the backlog holds. A multishot accept takes up to
    /// the whole backlog at once, which is more than there may be room for.
    pub fn set_one_by_one(&self, one_by_one: bool) {
        if one_by_one && !self.one_by_one.get() {
            self.pause();
        }
        self.one_by_one.set(one_by_one);
    }

    /// Stops accepting until the next [`Listener::accept`]: the backlog holds further connections. Those accepted
    /// meanwhile are still handed out.
    pub fn pause(&self) {
        with_driver(|driver| driver.stop_accept(self.key));
    }

    /// Stops asking the kernel and hands out what it accepted until then: `None` when that was the last. Call it until then
    /// before dropping, and no connection that was taken from the backlog is lost.
    pub async fn last(&self) -> Option<OwnedFd> {
        std::future::poll_fn(|cx| {
            with_driver(|driver| {
                driver.stop_accept(self.key);
                let accept = driver.accept(self.key);
                // What went wrong with one connection concerns nobody any more.
                accept.error = None;
                match accept.accepted.pop_front() {
                    Some(fd) => Poll::Ready(Some(fd)),
                    None if !accept.armed => Poll::Ready(None),
                    None => {
                        accept.waker = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    /// Takes one connection from the backlog at once, without the ring; `None` when it is empty. Only after
    /// [`Listener::last`] has returned `None`.
    ///
    /// # Errors
    ///
    /// As [`Listener::accept`].
    pub fn accept_now(&self) -> io::Result<Option<OwnedFd>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        match rustix::net::accept_with(socket, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok(fd) => Ok(Some(fd)),
            Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Closed through the ring, behind an accept that may stand in the submission queue: closed at once, its number could
        // name another socket by the time the kernel reads it. Without a runtime the descriptor closes by itself.
        try_with_driver(|driver| {
            driver.close_accept(self.key);
            if let Some(socket) = self.socket.take() {
                driver.close(socket);
            }
        });
    }
}
