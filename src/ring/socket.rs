//! Stream sockets on the ring.
//!
//! Receiving is pull-free: bytes arrive in provided buffers and are handed to a closure that must take all of them before
//! it returns, so no provided buffer can be held across an await. Sending takes ownership of its buffer and gives it back.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::task::{Context, Poll};

use io_uring::{opcode, squeue, types};
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

use super::buffers::Group;
use super::driver::Driver;
use super::executor::{try_with_driver, with_driver};
use super::op::{End, Filled, Keep, OneShot, OpKey, Vectored};

/// How a socket's bytes are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Receive {
    /// One completion for each request: while a handshake runs, and the reader decides before each read.
    Single,
    /// Whatever suits what flows: one multishot receive into small buffers while messages are small, so that an idle
    /// connection holds no memory and costs no submission; single-shot receives into large buffers while bulk flows, so
    /// that a slow reader holds the sender back without a cancellation.
    Stream,
}

/// So many small buffers filled to the brim in a row mean bulk. One may be chance (a large request head).
const FULL_CHUNKS_FOR_BULK: u8 = 2;

/// So many receives in a row that would have fitted a small buffer end it. More than one, because a bulk sender's window
/// also produces short tails.
const SHORT_CHUNKS_FOR_SMALL: u8 = 4;

/// A connected stream socket. Dropped, it cancels what is in flight and closes.
pub struct Socket {
    fd: Option<OwnedFd>,
    receive: Cell<Option<OpKey>>,
    mode: Cell<Receive>,
    bulk: Cell<bool>,
    run: Cell<u8>,
    /// How often everything was cancelled: what began before and would wait on ends instead.
    cancelled: Cell<u32>,
}

impl From<OwnedFd> for Socket {
    /// Takes a connected, non-blocking stream socket.
    fn from(fd: OwnedFd) -> Self {
        Self {
            fd: Some(fd),
            receive: Cell::new(None),
            mode: Cell::new(Receive::Single),
            bulk: Cell::new(false),
            run: Cell::new(0),
            cancelled: Cell::new(0),
        }
    }
}

impl Socket {
    /// Connects to an address: TCP (with `TCP_NODELAY`) or Unix-domain.
    ///
    /// # Errors
    ///
    /// What connect(2) says. Put a [`timeout`](super::timeout) around it; dropped, the attempt is abandoned. A Unix-domain
    /// listener whose queue is full answers `WouldBlock` at once.
    pub async fn connect(address: SockAddr) -> io::Result<Self> {
        let (domain, protocol) = match address.domain() {
            Domain::UNIX => (Domain::UNIX, None),
            domain => (domain, Some(Protocol::TCP)),
        };
        let socket = socket2::Socket::new(domain, Type::STREAM.nonblocking().cloexec(), protocol)?;
        if protocol.is_some() {
            socket.set_tcp_nodelay(true)?;
        }
        let socket = Self::from(OwnedFd::from(socket));
        if protocol.is_none() {
            // A Unix-domain connect never waits on a non-blocking socket. Through the ring, a full queue would be polled in
            // vain and then waited for by a kernel thread, which all other operations of that kind queue behind.
            SockRef::from(&socket).connect(&address)?;
            return Ok(socket);
        }
        let fd = types::Fd(socket.raw_fd());
        let connect = socket.start(Keep::Address(Box::new(address)), |keep| {
            let Keep::Address(address) = keep else { unreachable!("as started") };
            opcode::Connect::new(fd, address.as_ptr().cast(), address.len()).build()
        });
        let (result, _) = connect.await;
        into_result(result)?;
        Ok(socket)
    }

    /// How the next receives are asked for.
    pub fn set_receive(&self, mode: Receive) {
        self.mode.set(mode);
    }

    /// Hands the next bytes to `take`, which must take all of them. `None`: the peer has shut its side down.
    ///
    /// Dropping the future loses nothing: bytes that come later wait for the next call.
    ///
    /// # Errors
    ///
    /// What recv(2) says, once all bytes before it were taken.
    pub async fn receive<R>(&self, take: impl FnOnce(&mut [u8]) -> R) -> io::Result<Option<R>> {
        let mut take = Some(take);
        let cancelled = self.cancelled.get();
        std::future::poll_fn(|cx| match self.poll_receive(cx, |bytes| take.take().map(|take| take(bytes))) {
            Poll::Pending if self.cancelled.get() != cancelled => Poll::Ready(Err(cancellation())),
            outcome => outcome,
        })
        .await
        .map(Option::flatten)
    }

    /// As [`Socket::receive`], for hand-written futures.
    ///
    /// # Errors
    ///
    /// As [`Socket::receive`].
    pub fn poll_receive<R>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut [u8]) -> R,
    ) -> Poll<io::Result<Option<R>>> {
        Self::deliver(self.next_bytes(cx), take)
    }

    fn deliver<R>(next: Next, take: impl FnOnce(&mut [u8]) -> R) -> Poll<io::Result<Option<R>>> {
        match next {
            Next::Backlog(mut bytes) => Poll::Ready(Ok(Some(take(&mut bytes)))),
            Next::Buffer(buffer) => {
                // Given back when `take` returns or unwinds.
                let buffer = Borrowed(buffer);
                let pointer = with_driver(|driver| driver.filled_pointer(buffer.0));
                // SAFETY: the kernel filled `len` bytes of this buffer and no longer touches it; it left the socket's
                // queue, so this is the only reference until it is recycled when `buffer` is dropped.
                let bytes = unsafe { std::slice::from_raw_parts_mut(pointer.as_ptr(), buffer.0.len as usize) };
                Poll::Ready(Ok(Some(take(bytes))))
            }
            Next::End(End::Eof) => Poll::Ready(Ok(None)),
            Next::End(End::Error(errno)) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
            Next::Pending => Poll::Pending,
        }
    }

    /// As [`Socket::poll_receive`], but only for what is here already: nothing is asked of the kernel and nobody is woken
    /// later. `None`: nothing is here.
    pub fn arrived<R>(&self, take: impl FnOnce(&mut [u8]) -> R) -> Option<io::Result<Option<R>>> {
        let next = with_driver(|driver| self.receive.get().map_or(Next::Pending, |key| self.take(driver, key)));
        match Self::deliver(next, take) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }

    /// Asks the kernel to stop an armed multishot receive, so that an idle reader collects nothing more than what is on
    /// its way. The next receive arms again.
    pub fn stop_receiving(&self) {
        if let Some(key) = self.receive.get() {
            with_driver(|driver| driver.stop_receive(key));
        }
    }

    /// Sends all of `bytes` and gives the buffer back.
    ///
    /// Dropped, the send is cancelled and an unknown part of the bytes has been sent: close the socket then.
    pub async fn send(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        let filled = bytes.len();
        self.send_prefix(bytes, filled).await
    }

    /// Sends the first `filled` bytes of a buffer and gives it back as it was, so that its memory stays initialised.
    ///
    /// Dropped, the send is cancelled and an unknown part of the bytes has been sent: close the socket then.
    pub async fn send_prefix(&self, bytes: Vec<u8>, filled: usize) -> (io::Result<()>, Vec<u8>) {
        let mut bytes = bytes;
        let mut sent = 0;
        let cancelled = self.cancelled.get();
        loop {
            let fd = types::Fd(self.raw_fd());
            let send = self.start(Keep::Bytes(bytes), |keep| {
                let Keep::Bytes(bytes) = keep else { unreachable!("as started") };
                let rest = &bytes[sent..filled];
                opcode::Send::new(fd, rest.as_ptr(), rest.len().min(SEND_BYTES_MAX) as u32).flags(SEND_FLAGS).build()
            });
            let (result, keep) = send.await;
            let Keep::Bytes(kept) = keep else { unreachable!("as started") };
            bytes = kept;
            match into_result(result) {
                Ok(count) => sent += count,
                Err(error) => return (Err(error), bytes),
            }
            if sent >= filled {
                return (Ok(()), bytes);
            }
            if self.cancelled.get() != cancelled {
                return (Err(cancellation()), bytes);
            }
        }
    }

    /// Sends all buffers, in order, with one operation where the kernel takes them at once.
    ///
    /// Dropped, the send is cancelled and an unknown part has been sent: close the socket then.
    pub async fn send_vectored(&self, buffers: Vec<Vec<u8>>) -> (io::Result<()>, Vec<Vec<u8>>) {
        let total: usize = buffers.iter().map(Vec::len).sum();
        let mut buffers = buffers;
        let mut sent = 0;
        let cancelled = self.cancelled.get();
        while sent < total {
            let fd = types::Fd(self.raw_fd());
            let vectored = Vectored::new(buffers, sent);
            let send = self.start(Keep::Vectored(Box::new(vectored)), |keep| {
                let Keep::Vectored(vectored) = keep else { unreachable!("as started") };
                vectored.header.msg_iov = vectored.parts.as_mut_ptr();
                opcode::SendMsg::new(fd, &raw const vectored.header).flags(SEND_FLAGS as u32).build()
            });
            let (result, keep) = send.await;
            let Keep::Vectored(vectored) = keep else { unreachable!("as started") };
            buffers = vectored.buffers;
            match into_result(result) {
                Ok(count) => sent += count,
                Err(error) => return (Err(error), buffers),
            }
            if sent < total && self.cancelled.get() != cancelled {
                return (Err(cancellation()), buffers);
            }
        }
        (Ok(()), buffers)
    }

    /// Waits until poll(2) would report one of `events`; returns what it reports.
    ///
    /// # Errors
    ///
    /// What poll(2) says.
    pub async fn ready(&self, events: i16) -> io::Result<i16> {
        let entry = opcode::PollAdd::new(types::Fd(self.raw_fd()), events as u32).build();
        let (result, _) = self.start(Keep::Nothing, |_| entry).await;
        into_result(result).map(|events| events as i16)
    }

    /// Shuts the sending side down (FIN after what was sent). shutdown(2) directly: the ring would use a kernel thread.
    ///
    /// # Errors
    ///
    /// What shutdown(2) says; `ENOTCONN` when the peer has reset.
    pub fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(std::net::Shutdown::Write)
    }

    /// Whether the peer is known to have ended its side, or the connection to be broken. Says nothing of bytes that came
    /// before and wait to be read.
    pub fn peer_ended(&self) -> bool {
        self.receive.get().is_some_and(|key| with_driver(|driver| driver.receive(key).end.is_some()))
    }

    /// Makes the coming close a reset, so that the peer cannot take a broken stream for a finished one.
    pub fn reset_on_close(&self) {
        // Fails only on sockets that are no longer connected, which have nothing to reset.
        let _ = SockRef::from(self).set_linger(Some(std::time::Duration::ZERO));
    }

    /// Cancels every operation in flight on this socket; each ends with what it got until then, or `ECANCELED`. A send that
    /// had sent a part ends with `ECANCELED` too: close the socket then. Bytes received stay for the next receive.
    pub fn cancel_all(&self) {
        self.cancelled.set(self.cancelled.get().wrapping_add(1));
        with_driver(|driver| driver.cancel_fd(self.raw_fd()));
    }

    /// The peer's address; `None` for Unix-domain sockets and peers that are gone.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).peer_addr().ok()?.as_socket()
    }

    /// The local address; `None` for Unix-domain sockets.
    pub fn local_address(&self) -> Option<SocketAddr> {
        SockRef::from(self).local_addr().ok()?.as_socket()
    }

    fn raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }

    fn start(&self, keep: Keep, build: impl FnOnce(&mut Keep) -> squeue::Entry) -> OneShot {
        OneShot::new(with_driver(|driver| driver.start(keep, build)))
    }

    /// Takes what has arrived, or arms a receive and remembers who waits.
    fn next_bytes(&self, cx: &mut Context<'_>) -> Next {
        with_driver(|driver| {
            let key = self.receive.get().unwrap_or_else(|| {
                let key = driver.new_receive();
                self.receive.set(Some(key));
                key
            });
            let next = self.take(driver, key);
            if !matches!(next, Next::Pending) {
                return next;
            }
            let receive = driver.receive(key);
            receive.waker = Some(cx.waker().clone());
            if !receive.armed {
                let stream = self.mode.get() == Receive::Stream;
                let group = if stream && self.bulk.get() { Group::Large } else { Group::Small };
                driver.arm_receive(key, self.raw_fd(), stream && group == Group::Small, group);
            }
            Next::Pending
        })
    }

    /// The oldest of what has arrived.
    fn take(&self, driver: &mut Driver, key: OpKey) -> Next {
        let receive = driver.receive(key);
        if !receive.backlog.is_empty() {
            return Next::Backlog(std::mem::take(&mut receive.backlog));
        }
        if let Some(filled) = receive.filled.pop_front() {
            self.learn(driver, key, filled);
            return Next::Buffer(filled);
        }
        receive.end.map_or(Next::Pending, Next::End)
    }

    /// Follows what flows: bulk or small messages.
    fn learn(&self, driver: &mut Driver, key: OpKey, filled: Filled) {
        if self.mode.get() != Receive::Stream {
            return;
        }
        let small = driver.small_bytes();
        let (evidence, needed) = if self.bulk.get() {
            (filled.len as usize <= small, SHORT_CHUNKS_FOR_SMALL)
        } else {
            (filled.len as usize == small, FULL_CHUNKS_FOR_BULK)
        };
        let run = if evidence { self.run.get() + 1 } else { 0 };
        if run < needed {
            self.run.set(run);
            return;
        }
        self.run.set(0);
        self.bulk.set(!self.bulk.get());
        driver.stop_receive(key);
    }
}

/// A full send is one completion: the kernel waits for room itself. A peer that is gone is an error, not a signal.
const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;

/// Most bytes of one send operation: what fits its length field and the kernel's own limit (`MAX_RW_COUNT`).
const SEND_BYTES_MAX: usize = 1 << 30;

enum Next {
    Backlog(Vec<u8>),
    Buffer(Filled),
    End(End),
    Pending,
}

/// A provided buffer in the reader's hands.
struct Borrowed(Filled);

impl Drop for Borrowed {
    fn drop(&mut self) {
        try_with_driver(|driver| driver.recycle(self.0));
    }
}

impl Vectored {
    /// The buffers without the first `skip` bytes, as the kernel wants them.
    fn new(buffers: Vec<Vec<u8>>, skip: usize) -> Self {
        let mut skip = skip;
        let mut parts = Vec::with_capacity(buffers.len());
        for buffer in &buffers {
            let cut = skip.min(buffer.len());
            skip -= cut;
            let rest = &buffer[cut..];
            if !rest.is_empty() {
                parts.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
            }
        }
        // The kernel takes at most UIO_MAXIOV parts; the rest follows with the next operation.
        parts.truncate(libc::UIO_MAXIOV as usize);
        // SAFETY: a msghdr of zeros is a valid one: no name, no parts, no control data.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iovlen = parts.len();
        Self { buffers, parts, header }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("present until dropped").as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The close is queued behind the cancellation, so that nothing in flight keeps the connection open. Without a
        // runtime the descriptor closes by itself.
        try_with_driver(|driver| {
            if let Some(key) = self.receive.get() {
                driver.close_receive(key);
            }
            if let Some(fd) = self.fd.take() {
                driver.close(fd);
            }
        });
    }
}

/// What an operation that was cancelled ends with.
fn cancellation() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

/// A completion's result as the number of bytes, or the error it stands for.
fn into_result(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
