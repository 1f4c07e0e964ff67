//! The ring itself: queues what tasks ask for, enters the kernel once a turn, hands completions out.

use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue, types};
use slab::Slab;

use super::buffers::{BufferGroup, Group};
use super::handle::Handle;
use super::op::{AcceptSlot, End, Filled, Keep, OpKey, ReceiveSlot, Slot};
use super::probe::Unavailable;

/// How large the parts of one worker's ring are.
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Submission queue entries; a power of two. One turn queues a few for each connection that moved, and a full queue
    /// only costs one more system call.
    pub submission_entries: u32,
    /// Buffers of the small group; a power of two.
    pub small_buffers: u16,
    /// Bytes of a small buffer. A request or a handshake flight fits; a full TLS record does not, and moves the
    /// connection to the large group.
    pub small_bytes: usize,
    /// Buffers of the large group; a power of two.
    pub large_buffers: u16,
    /// Bytes of a large buffer: encrypted, they fill one packet as the kernel hands it to the network card and no second.
    ///
    /// A packet for segmentation offload takes 64 KiB with its headers, on Ethernet 44 segments of 1460 bytes: 64,240. Four
    /// records of 22 bytes overhead each leave 64,152. With 65,536 each send made a second packet of some hundred bytes,
    /// with a trip through the stack and a wake-up of its own: downloads cost 8 % more. Twice as much costs more too: it
    /// leaves the core's cache (0.83 CPU seconds a GB against 0.70, eight at once).
    pub large_bytes: usize,
}

impl Default for RingConfig {
    fn default() -> Self {
        Self {
            submission_entries: 1024,
            small_buffers: 1024,
            small_bytes: 4 * 1024,
            large_buffers: 32,
            large_bytes: 64_152,
        }
    }
}

/// A socket that is not being read collects at most about this much before its multishot receive is stopped, so that
/// TCP's own window holds the sender back. Four small buffers: enough that a short stall costs no cancellation.
pub(super) const BACKLOG_BYTES: usize = 16 * 1024;

/// `user_data` of operations whose completion nobody waits for: closes and cancellations. They ask for no completion when
/// they succeed (`IOSQE_CQE_SKIP_SUCCESS`, Linux 5.17), so that they do not end the turn's wait.
const NOBODY: u64 = u64::MAX;

struct Entry {
    generation: u32,
    slot: Slot,
}

/// Counts of what the ring's limits did, for the worker's metrics.
#[derive(Clone, Copy, Default, Debug)]
pub struct Pressure {
    /// Receives that found no free buffer and were armed again a turn later.
    pub starved_receives: u64,
}

pub(super) struct Driver {
    /// Dropped first: closing the ring ends the registrations the buffer groups serve.
    ring: Handle,
    small: BufferGroup,
    large: BufferGroup,
    ops: Slab<Entry>,
    /// Receives that got a buffer this turn; those not taken by its end are copied out.
    filled_this_turn: Vec<OpKey>,
    /// Completions read while the submission queue was full; handed out before newer ones.
    set_aside: Vec<(u64, i32, u32)>,
    generation: u32,
    pub(super) pressure: Pressure,
}

impl Driver {
    /// Sets up a ring with the best flags this kernel has.
    pub(super) fn new(config: &RingConfig) -> Result<Self, Unavailable> {
        let ring = Handle::new(config.submission_entries).map_err(|error| Unavailable::from_setup(&error))?;
        let submitter = ring.submitter();
        // Operations that must block go to kernel worker threads. We submit none of that kind; should one slip in, one
        // thread of each class is enough to keep it correct, and few enough to be noticed.
        let _ = submitter.register_iowq_max_workers(&mut [1, 1]);
        let register = |group, count, bytes| {
            BufferGroup::register(submitter, group, count, bytes).map_err(|error| Unavailable::from_setup(&error))
        };
        let small = register(Group::Small, config.small_buffers, config.small_bytes)?;
        let large = register(Group::Large, config.large_buffers, config.large_bytes)?;
        Ok(Self {
            ring,
            small,
            large,
            ops: Slab::new(),
            filled_this_turn: Vec::new(),
            set_aside: Vec::new(),
            generation: 0,
            pressure: Pressure::default(),
        })
    }

    /// Whether the ring's own descriptor is registered.
    #[cfg(test)]
    pub(super) fn has_registered_ring(&self) -> bool {
        self.ring.is_registered()
    }

    /// Operations the driver keeps, idle receiving sides of sockets included.
    pub(super) fn operations(&self) -> usize {
        self.ops.len()
    }

    /// Starts an operation that ends with one completion. `build` gets the kept memory at its final address.
    pub(super) fn start(&mut self, keep: Keep, build: impl FnOnce(&mut Keep) -> squeue::Entry) -> OpKey {
        let key = self.insert(Slot::OneShot { result: None, keep, waker: None, orphan: false });
        let Slot::OneShot { keep, .. } = &mut self.ops[key.index as usize].slot else { unreachable!("just inserted") };
        let entry = build(keep).user_data(key.user_data());
        self.push(entry);
        key
    }

    pub(super) fn poll_oneshot(&mut self, key: OpKey, cx: &mut Context<'_>) -> Poll<(i32, Keep)> {
        let Some(Slot::OneShot { result, waker, .. }) = self.slot(key) else {
            unreachable!("a one-shot operation lives until its future has its result")
        };
        let Some(value) = *result else {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let Slot::OneShot { keep, .. } = self.ops.remove(key.index as usize).slot else {
            unreachable!("checked above")
        };
        Poll::Ready((value, keep))
    }

    /// Forgets an operation whose future was dropped: frees it if it has ended, else cancels it and keeps what it owns.
    pub(super) fn abandon(&mut self, key: OpKey) {
        match self.slot(key) {
            Some(Slot::OneShot { result: Some(_), .. }) => {
                self.ops.remove(key.index as usize);
            }
            Some(Slot::OneShot { orphan, waker, .. }) => {
                *orphan = true;
                *waker = None;
                self.push_cancel(key);
            }
            _ => {}
        }
    }

    // --- receiving ------------------------------------------------------------------------------------------------

    pub(super) fn new_receive(&mut self) -> OpKey {
        self.insert(Slot::Receive(ReceiveSlot {
            armed: false,
            multishot: false,
            cancelling: false,
            orphan: false,
            starved: false,
            group: Group::Small,
            end: None,
            filled: std::collections::VecDeque::new(),
            backlog: Vec::new(),
            waker: None,
        }))
    }

    pub(super) fn receive(&mut self, key: OpKey) -> &mut ReceiveSlot {
        match self.slot(key) {
            Some(Slot::Receive(receive)) => receive,
            _ => unreachable!("a socket's receiving side lives as long as the socket"),
        }
    }

    /// Hands a receive to the kernel.
    pub(super) fn arm_receive(&mut self, key: OpKey, fd: RawFd, multishot: bool, group: Group) {
        let bytes = self.group(group).buffer_bytes();
        let receive = self.receive(key);
        debug_assert!(!receive.armed, "one receive at a time for each socket, so that bytes stay in order");
        receive.armed = true;
        receive.multishot = multishot;
        receive.cancelling = false;
        receive.starved = false;
        receive.group = group;
        let entry = if multishot {
            opcode::RecvMulti::new(types::Fd(fd), group.id()).build()
        } else {
            opcode::Recv::new(types::Fd(fd), std::ptr::null_mut(), bytes as u32)
                .buf_group(group.id())
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.push(entry.user_data(key.user_data()));
    }

    /// Bytes of a small buffer.
    pub(super) fn small_bytes(&self) -> usize {
        self.small.buffer_bytes()
    }

    /// Asks a receive to stop; bytes that still come are kept.
    pub(super) fn stop_receive(&mut self, key: OpKey) {
        let receive = self.receive(key);
        if receive.armed && !receive.cancelling {
            receive.cancelling = true;
            self.push_cancel(key);
        }
    }

    /// The socket goes away: its unread bytes with it.
    pub(super) fn close_receive(&mut self, key: OpKey) {
        let receive = self.receive(key);
        receive.waker = None;
        receive.backlog = Vec::new();
        let filled = std::mem::take(&mut receive.filled);
        let armed = receive.armed;
        receive.orphan = true;
        for buffer in filled {
            self.recycle(buffer);
        }
        if armed {
            self.stop_receive(key);
        } else {
            self.ops.remove(key.index as usize);
        }
    }

    /// Where a filled buffer's bytes are.
    pub(super) fn filled_pointer(&self, filled: Filled) -> NonNull<u8> {
        self.group(filled.group).pointer(filled.buffer)
    }

    pub(super) fn recycle(&mut self, filled: Filled) {
        match filled.group {
            Group::Small => self.small.recycle(filled.buffer),
            Group::Large => self.large.recycle(filled.buffer),
        }
    }

    fn group(&self, group: Group) -> &BufferGroup {
        match group {
            Group::Small => &self.small,
            Group::Large => &self.large,
        }
    }

    // --- accepting ------------------------------------------------------------------------------------------------

    pub(super) fn new_accept(&mut self) -> OpKey {
        self.insert(Slot::Accept(AcceptSlot {
            armed: false,
            cancelling: false,
            orphan: false,
            error: None,
            accepted: std::collections::VecDeque::new(),
            waker: None,
        }))
    }

    pub(super) fn accept(&mut self, key: OpKey) -> &mut AcceptSlot {
        match self.slot(key) {
            Some(Slot::Accept(accept)) => accept,
            _ => unreachable!("a listener's accept lives as long as the listener"),
        }
    }

    pub(super) fn arm_accept(&mut self, key: OpKey, fd: RawFd, multishot: bool) {
        let accept = self.accept(key);
        debug_assert!(!accept.armed);
        accept.armed = true;
        accept.cancelling = false;
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let entry = if multishot {
            opcode::AcceptMulti::new(types::Fd(fd)).flags(flags).build()
        } else {
            opcode::Accept::new(types::Fd(fd), std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
        };
        self.push(entry.user_data(key.user_data()));
    }

    pub(super) fn stop_accept(&mut self, key: OpKey) {
        let accept = self.accept(key);
        if accept.armed && !accept.cancelling {
            accept.cancelling = true;
            self.push_cancel(key);
        }
    }

    pub(super) fn close_accept(&mut self, key: OpKey) {
        let accept = self.accept(key);
        accept.waker = None;
        accept.accepted.clear();
        accept.orphan = true;
        if accept.armed {
            self.stop_accept(key);
        } else {
            self.ops.remove(key.index as usize);
        }
    }

    // --- the rest -------------------------------------------------------------------------------------------------

    /// Watches the eventfd other threads write to.
    pub(super) fn arm_wakeup(&mut self, fd: RawFd) {
        let key = self.insert(Slot::Wakeup);
        let entry = opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build();
        self.push(entry.user_data(key.user_data()));
    }

    /// Closes a descriptor in the next submission, after whatever was queued before.
    pub(super) fn close(&mut self, fd: OwnedFd) {
        let raw = fd.into_raw_fd();
        self.push(opcode::Close::new(types::Fd(raw)).build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOBODY));
    }

    /// Cancels every operation on a descriptor; their completions come as usual.
    pub(super) fn cancel_fd(&mut self, fd: RawFd) {
        let target = types::CancelBuilder::fd(types::Fd(fd)).all();
        self.push(opcode::AsyncCancel2::new(target).build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOBODY));
    }

    fn push_cancel(&mut self, key: OpKey) {
        let target = types::CancelBuilder::user_data(key.user_data());
        self.push(opcode::AsyncCancel2::new(target).build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOBODY));
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: every entry built in this room points only at memory kept in `ops` until the operation's last
        // completion, at provided buffers, or at nothing.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // The queue is full: hand it over now. Should the kernel refuse (EBUSY: completions overflow), it takes more
            // once completions are read; they are set aside for the turn's own dispatch, so this always ends.
            if let Err(error) = self.ring.submitter().submit() {
                assert!(is_transient(&error), "io_uring_enter: {error}");
                let completions = self.ring.completion();
                self.set_aside.extend(completions.map(|c| (c.user_data(), c.result(), c.flags())));
            }
        }
    }

    fn insert(&mut self, slot: Slot) -> OpKey {
        // Generations start at 1 and skip the value that, with the largest index, would spell NOBODY.
        self.generation = if self.generation >= u32::MAX - 1 { 1 } else { self.generation + 1 };
        let generation = self.generation;
        let index = u32::try_from(self.ops.insert(Entry { generation, slot })).expect("fewer than 2^32 operations");
        OpKey { index, generation }
    }

    fn slot(&mut self, key: OpKey) -> Option<&mut Slot> {
        match self.ops.get_mut(key.index as usize) {
            Some(entry) if entry.generation == key.generation => Some(&mut entry.slot),
            _ => None,
        }
    }

    // --- a turn ---------------------------------------------------------------------------------------------------

    /// Copies out what nobody took this turn, so that no provided buffer outlives it.
    pub(super) fn end_turn(&mut self) {
        let mut keys = std::mem::take(&mut self.filled_this_turn);
        for key in keys.drain(..) {
            let Some(Slot::Receive(receive)) = self.slot(key) else { continue };
            if receive.filled.is_empty() {
                continue;
            }
            let filled = std::mem::take(&mut receive.filled);
            let mut backlog = std::mem::take(&mut receive.backlog);
            for buffer in &filled {
                let pointer = self.filled_pointer(*buffer);
                // SAFETY: the kernel wrote `len` bytes into this buffer and gave it to us; it is not recycled before the
                // copy, and nobody else holds it since it still stood in its socket's queue.
                let bytes = unsafe { std::slice::from_raw_parts(pointer.as_ptr(), buffer.len as usize) };
                backlog.extend_from_slice(bytes);
                self.recycle(*buffer);
            }
            let full = backlog.len() >= BACKLOG_BYTES;
            let receive = self.receive(key);
            receive.backlog = backlog;
            if full && receive.multishot {
                self.stop_receive(key);
            }
        }
        self.filled_this_turn = keys;
    }

    /// Submits what is queued and waits: not at all, until a completion, or until a completion or the timeout.
    pub(super) fn enter(&mut self, wait: Wait) {
        // Completions that were set aside during the turn are not in the kernel's queue: it would wait for others.
        let wait = if self.set_aside.is_empty() { wait } else { Wait::Poll };
        let outcome = match wait {
            Wait::Poll => {
                let submission = self.ring.submission();
                if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
                    return;
                }
                drop(submission);
                self.ring.submitter().submit()
            }
            Wait::Forever => self.ring.submit_and_wait(None),
            Wait::AtMost(duration) => self.ring.submit_and_wait(Some(&types::Timespec::from(duration))),
        };
        if let Err(error) = outcome {
            assert!(is_transient(&error), "io_uring_enter: {error}");
        }
    }

    /// Hands out what has completed. Returns whether the mailbox's eventfd was written to.
    pub(super) fn dispatch(&mut self) -> Dispatched {
        let mut dispatched = Dispatched::default();
        for (user_data, result, flags) in std::mem::take(&mut self.set_aside) {
            dispatched.completions += 1;
            if user_data != NOBODY {
                self.complete(OpKey::from_user_data(user_data), result, flags, &mut dispatched);
            }
        }
        loop {
            // The queue's view is taken anew for each batch, because handing out may push.
            let mut batch: [(u64, i32, u32); 64] = [(0, 0, 0); 64];
            let mut count = 0;
            for completion in self.ring.completion().take(batch.len()) {
                batch[count] = (completion.user_data(), completion.result(), completion.flags());
                count += 1;
            }
            for &(user_data, result, flags) in &batch[..count] {
                if user_data != NOBODY {
                    self.complete(OpKey::from_user_data(user_data), result, flags, &mut dispatched);
                }
            }
            dispatched.completions += count;
            if count < batch.len() {
                return dispatched;
            }
        }
    }

    fn complete(&mut self, key: OpKey, result: i32, flags: u32, dispatched: &mut Dispatched) {
        let more = cqueue::more(flags);
        match self.slot(key) {
            Some(Slot::OneShot { result: stored, waker, orphan, .. }) => {
                if *orphan {
                    self.ops.remove(key.index as usize);
                } else {
                    *stored = Some(result);
                    if let Some(waker) = waker.take() {
                        waker.wake();
                    }
                }
            }
            Some(Slot::Receive(_)) => self.complete_receive(key, result, flags, more),
            Some(Slot::Accept(_)) => self.complete_accept(key, result, more),
            Some(Slot::Wakeup) => {
                dispatched.mailbox = true;
                if !more {
                    self.ops.remove(key.index as usize);
                    dispatched.wakeup_ended = true;
                }
            }
            None => unreachable!("an operation is kept until its last completion"),
        }
    }

    fn complete_receive(&mut self, key: OpKey, result: i32, flags: u32, more: bool) {
        let receive = self.receive(key);
        if !more {
            receive.armed = false;
            receive.cancelling = false;
        }
        let orphan = receive.orphan;
        let group = receive.group;
        if let Some(buffer) = cqueue::buffer_select(flags) {
            let filled = Filled { group, buffer, len: result.max(0) as u32 };
            if orphan || result <= 0 {
                self.recycle(filled);
            } else {
                self.receive(key).filled.push_back(filled);
                self.filled_this_turn.push(key);
            }
        }
        if orphan {
            if !more {
                self.ops.remove(key.index as usize);
            }
            return;
        }
        let receive = self.receive(key);
        match result {
            1.. => {}
            0 => receive.end = Some(End::Eof),
            // Stopped on request, or out of buffers: not an end. The reader arms again.
            _ if -result == libc::ECANCELED => {}
            _ if -result == libc::ENOBUFS => {
                receive.starved = true;
                self.pressure.starved_receives += 1;
            }
            _ => receive.end = Some(End::Error(-result)),
        }
        let receive = self.receive(key);
        if let Some(waker) = receive.waker.take() {
            waker.wake();
        }
    }

    fn complete_accept(&mut self, key: OpKey, result: i32, more: bool) {
        let accept = self.accept(key);
        if !more {
            accept.armed = false;
            accept.cancelling = false;
        }
        if result >= 0 {
            // SAFETY: a successful accept completion transfers a fresh descriptor to us, exactly once. Dropping it (an
            // orphaned listener) closes it.
            let accepted = unsafe { OwnedFd::from_raw_fd(result) };
            if !accept.orphan {
                accept.accepted.push_back(accepted);
            }
        } else if -result != libc::ECANCELED {
            accept.error = Some(-result);
        }
        let orphan = accept.orphan;
        if let Some(waker) = accept.waker.take() {
            waker.wake();
        }
        if orphan && !more {
            self.ops.remove(key.index as usize);
        }
    }

    /// Reaps what is still in flight after every task is gone. Returns how many operations did not end within `limit`.
    ///
    /// Sockets and listeners may outlive the runtime: what they have in flight is cancelled, that they exist counts not.
    pub(super) fn drain(&mut self, limit: Duration) -> usize {
        let deadline = std::time::Instant::now() + limit;
        let in_flight = |driver: &Self| driver.ops.iter().filter(|(_, entry)| entry.slot.is_in_flight()).count();
        let everything = types::CancelBuilder::any().all();
        self.push(opcode::AsyncCancel2::new(everything).build().flags(squeue::Flags::SKIP_SUCCESS).user_data(NOBODY));
        self.enter(Wait::Poll);
        self.dispatch();
        // What is queued counts too: a close that the kernel has not been given yet would leave its descriptor open.
        while (in_flight(self) > 0 || !self.ring.submission().is_empty()) && std::time::Instant::now() < deadline {
            self.enter(Wait::AtMost(Duration::from_millis(10)));
            self.dispatch();
        }
        in_flight(self)
    }
}

/// How long `enter` may wait.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wait {
    Poll,
    AtMost(Duration),
    Forever,
}

/// What a round of completions brought besides woken tasks.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Dispatched {
    pub(super) completions: usize,
    pub(super) mailbox: bool,
    pub(super) wakeup_ended: bool,
}

/// Errors of `io_uring_enter` that the next turn answers: a timeout, a signal, completions that must be read first.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN))
}
