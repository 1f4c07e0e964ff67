//! What this kernel's io_uring can do, and one line that says what to do when it cannot be used.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};

/// What was found at start.
#[derive(Clone, Debug)]
pub struct Features {
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// `IORING_SETUP_DEFER_TASKRUN` (Linux 6.1): completions run only when the worker asks for them.
    pub defer_taskrun: bool,
    /// `IORING_SETUP_NO_SQARRAY` (Linux 6.6): one indirection less for each submission.
    pub no_sqarray: bool,
    /// The ring's own descriptor can be registered (Linux 5.18): no descriptor look-up for each system call.
    pub registered_ring: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |found: bool| if found { "yes" } else { "no" };
        write!(
            f,
            "io_uring on Linux {}: defer_taskrun {}, no_sqarray {}, registered ring {}",
            self.kernel,
            yes(self.defer_taskrun),
            yes(self.no_sqarray),
            yes(self.registered_ring)
        )
    }
}

/// Why io_uring cannot be used here: the cause and the cure, on one line.
#[derive(Debug)]
pub struct Unavailable {
    message: String,
}

impl Unavailable {
    /// Names the likely cause of an error that setting up a ring returned.
    pub(super) fn from_setup(error: &io::Error) -> Self {
        Self { message: explain(error.raw_os_error(), read_disabled(), &error.to_string()) }
    }

    fn missing(what: &str) -> Self {
        Self {
            message: format!(
                "this kernel ({}) lacks io_uring's {what}; Hostward needs Linux 6.1 or newer",
                kernel_release()
            ),
        }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Unavailable {}

/// Finds out whether io_uring can be used, by setting up a small ring and looking at what it supports.
///
/// # Errors
///
/// [`Unavailable`], whose text names cause and cure.
pub fn probe() -> Result<Features, Unavailable> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun();
    let built: io::Result<IoUring> = builder.build(8);
    let (ring, defer_taskrun) = match built {
        Ok(ring) => (ring, true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            (IoUring::new(8).map_err(|e| Unavailable::from_setup(&e))?, false)
        }
        Err(error) => return Err(Unavailable::from_setup(&error)),
    };
    if !defer_taskrun {
        return Err(Unavailable::missing("DEFER_TASKRUN"));
    }
    let mut operations = Probe::new();
    ring.submitter().register_probe(&mut operations).map_err(|e| Unavailable::from_setup(&e))?;
    for (code, name) in [
        (opcode::AcceptMulti::CODE, "ACCEPT"),
        (opcode::RecvMulti::CODE, "RECV"),
        (opcode::Send::CODE, "SEND"),
        (opcode::SendMsg::CODE, "SENDMSG"),
        (opcode::Connect::CODE, "CONNECT"),
        (opcode::Close::CODE, "CLOSE"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::AsyncCancel2::CODE, "ASYNC_CANCEL"),
    ] {
        if !operations.is_supported(code) {
            return Err(Unavailable::missing(name));
        }
    }
    if !ring.params().is_feature_ext_arg() {
        return Err(Unavailable::missing("EXT_ARG waits"));
    }
    let registered_ring = ring.submitter().register_ring_fd().is_ok();
    let mut builder = IoUring::builder();
    let without_array: io::Result<IoUring> = builder.setup_no_sqarray().build(8);
    let no_sqarray = without_array.is_ok();
    Ok(Features { kernel: kernel_release(), defer_taskrun, no_sqarray, registered_ring })
}

fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Reads `kernel.io_uring_disabled` (Linux 6.6): 0 allowed, 1 for privileged processes and a group, 2 for nobody.
fn read_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// The line an operator sees. Pure, so that causes this machine cannot show are tested too.
fn explain(errno: Option<i32>, disabled: Option<u8>, text: &str) -> String {
    match (errno, disabled) {
        (Some(libc::EPERM), Some(2)) => {
            "io_uring is disabled on this system (kernel.io_uring_disabled = 2); set it to 0, or to 1 and run Hostward \
             with CAP_SYS_ADMIN or in the group kernel.io_uring_group"
                .to_owned()
        }
        (Some(libc::EPERM), Some(1)) => {
            "io_uring is reserved for privileged processes (kernel.io_uring_disabled = 1); set it to 0, run with \
             CAP_SYS_ADMIN, or put Hostward's group into kernel.io_uring_group"
                .to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is not permitted here: a seccomp filter or a container runtime blocks io_uring_setup; allow \
             io_uring_setup, io_uring_enter and io_uring_register in its profile"
                .to_owned()
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel has no io_uring, or a sandbox hides it; Hostward needs Linux 6.1 or newer".to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "not enough lockable memory for io_uring; raise the limit (ulimit -l, or LimitMEMLOCK= in the unit) to at \
             least 64 MiB for each worker"
                .to_owned()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => {
            "no file descriptor left for io_uring; raise the limit (ulimit -n, or LimitNOFILE= in the unit)".to_owned()
        }
        _ => format!("io_uring cannot be set up: {text}; Hostward needs Linux 6.1 or newer"),
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn each_cause_names_its_cure() {
        for (errno, disabled, cause, cure) in [
            (libc::EPERM, Some(2), "kernel.io_uring_disabled = 2", "set it to 0"),
            (libc::EPERM, Some(1), "kernel.io_uring_disabled = 1", "kernel.io_uring_group"),
            (libc::EPERM, Some(0), "seccomp", "io_uring_enter"),
            (libc::EPERM, None, "seccomp", "io_uring_enter"),
            (libc::ENOSYS, None, "no io_uring", "6.1"),
            (libc::ENOMEM, Some(0), "lockable memory", "LimitMEMLOCK"),
            (libc::EMFILE, Some(0), "file descriptor", "LimitNOFILE"),
            (libc::EIO, Some(0), "text of the error", "6.1"),
        ] {
            let line = explain(Some(errno), disabled, "text of the error");
            assert!(line.contains(cause), "{errno}: {line}");
            assert!(line.contains(cure), "{errno}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
