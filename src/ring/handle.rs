//! One `io_uring` instance with its own descriptor registered.
//!
//! The registration (Linux 5.18) spares the look-up of the ring's descriptor on every entry, but lives in a `Submitter`
//! that borrows the instance; this type holds the two together.

use std::io;
use std::ptr::NonNull;

use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, types};

pub(super) struct Handle {
    submitter: Submitter<'static>,
    ring: NonNull<IoUring>,
    registered: bool,
}

impl Handle {
    /// Sets the ring up with the best flags this kernel has, giving them up one by one where it refuses.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let ring = NonNull::from(Box::leak(Box::new(build(entries)?)));
        // SAFETY: the box lives until `drop` takes it back, after which the submitter is not used. From here on the ring is
        // only reached through shared references.
        let mut submitter = unsafe { ring.as_ref() }.submitter();
        // Kernels before 5.18 do without.
        let registered = submitter.register_ring_fd().is_ok();
        Ok(Self { submitter, ring, registered })
    }

    /// Whether the kernel took the registration.
    #[cfg(test)]
    pub(super) fn is_registered(&self) -> bool {
        self.registered
    }

    pub(super) fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    pub(super) fn submission(&mut self) -> SubmissionQueue<'_> {
        // SAFETY: `&mut self` makes this the only view of the queue for as long as it lives.
        unsafe { self.ring.as_ref().submission_shared() }
    }

    pub(super) fn completion(&mut self) -> CompletionQueue<'_> {
        // SAFETY: as for `submission`.
        unsafe { self.ring.as_ref().completion_shared() }
    }

    /// Submits, and waits for one completion or the timeout.
    pub(super) fn submit_and_wait(&self, timeout: Option<&types::Timespec>) -> io::Result<usize> {
        match timeout {
            Some(timeout) => self.submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(timeout)),
            None => self.submitter.submit_and_wait(1),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.registered {
            // The registration belongs to the thread and would keep the ring, closed or not, until the thread ends.
            let _ = self.submitter.unregister_ring_fd();
        }
        // SAFETY: made by `Box::leak` in `new`, taken back once; the submitter, which borrows it, has no drop code and is
        // not used again.
        drop(unsafe { Box::from_raw(self.ring.as_ptr()) });
    }
}

fn build(entries: u32) -> io::Result<IoUring> {
    let mut last = None;
    for given_up in 0..3 {
        let mut builder = IoUring::builder();
        builder.setup_submit_all().setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag();
        // A turn may bring several completions for each submission (multishot): four times as many entries.
        builder.setup_cqsize(entries * 4).setup_clamp();
        if given_up < 2 {
            builder.setup_defer_taskrun();
        }
        if given_up < 1 {
            builder.setup_no_sqarray();
        }
        match builder.build(entries) {
            Ok(ring) => return Ok(ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}
