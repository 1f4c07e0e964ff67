//! Provided buffer rings: memory the kernel fills only when bytes have come.
//!
//! A group is a ring of equal buffers shared with the kernel (`IORING_REGISTER_PBUF_RING`, Linux 5.19). An idle
//! connection holds none of them. A filled buffer is seen by the socket it came for within the same turn and goes back
//! to the tail at once, so a group needs to be as large as one turn's completions, not as the number of connections.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Which group a receive draws its buffers from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Group {
    /// Many small buffers, for multishot receives of requests and handshakes.
    Small,
    /// Few large ones, for single-shot receives of bulk.
    Large,
}

impl Group {
    pub(super) const fn id(self) -> u16 {
        match self {
            Self::Small => 0,
            Self::Large => 1,
        }
    }
}

/// Anonymous memory, given back when dropped.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn new(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh private anonymous mapping at an address the kernel chooses aliases nothing.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this address and length and is unmapped only here. The owner keeps
        // it until the kernel no longer uses it: the driver drops its ring, and with it the registration, first.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One group of provided buffers.
pub(super) struct BufferGroup {
    entries: Mapping,
    data: Mapping,
    count: u16,
    buffer_bytes: usize,
    tail: u16,
}

impl BufferGroup {
    /// Makes `count` buffers (a power of two, at most 32768) of `buffer_bytes` each and registers them.
    pub(super) fn register(
        submitter: &Submitter<'_>,
        group: Group,
        count: u16,
        buffer_bytes: usize,
    ) -> io::Result<Self> {
        assert!(count.is_power_of_two(), "the kernel indexes a buffer ring with a mask");
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let data = Mapping::new(usize::from(count) * buffer_bytes)?;
        // SAFETY: `entries` is page-aligned, large enough for `count` entries, and outlives the registration (see
        // `Mapping::drop`).
        unsafe {
            submitter.register_buf_ring_with_flags(entries.base.as_ptr() as u64, count, group.id(), 0)?;
        }
        let mut this = Self { entries, data, count, buffer_bytes, tail: 0 };
        for buffer in 0..count {
            this.recycle(buffer);
        }
        Ok(this)
    }

    /// How many bytes one buffer holds.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Where a buffer's bytes are.
    pub(super) fn pointer(&self, buffer: u16) -> NonNull<u8> {
        assert!(buffer < self.count, "the kernel named a buffer that does not exist");
        // SAFETY: `buffer < count`, so the offset stays inside the mapping.
        unsafe { self.data.base.add(usize::from(buffer) * self.buffer_bytes) }
    }

    /// Gives a buffer back to the kernel. The caller no longer reads or writes it.
    pub(super) fn recycle(&mut self, buffer: u16) {
        let address = self.pointer(buffer).as_ptr() as u64;
        let base: *mut BufRingEntry = self.entries.base.as_ptr().cast();
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is masked into the mapping; the kernel does not read entries at or past the tail, so this one
        // is ours until the store below.
        let entry = unsafe { &mut *base.add(index) };
        entry.set_addr(address);
        entry.set_len(self.buffer_bytes as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lives inside the first entry's reserved field, aligned for u16, shared with the kernel only,
        // which reads it with acquire semantics: the release store publishes the entry written above.
        unsafe { AtomicU16::from_ptr(BufRingEntry::tail(base).cast_mut()).store(self.tail, Ordering::Release) };
    }
}
