//! The few things asked of the operating system that no other room wraps: CPU affinity, resource limits, signals'
//! dispositions, inherited descriptors, and what /proc says about this process.
//!
//! Everything goes through rustix or std where they have it; what is left are the `unsafe` blocks below.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::telemetry::metrics::Process;

/// The CPUs the kernel lets this process run on, ascending.
///
/// # Errors
/// Those of `sched_getaffinity(2)`; a machine with more than 1024 CPUs is one of them.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Pins the calling thread to one CPU.
///
/// # Errors
/// `EINVAL` when the CPU does not exist or the process may not use it.
pub fn pin_current_thread(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Reads a CPU list as the kernel writes them: `0-3,8`. Ascending, without duplicates.
///
/// # Errors
/// Says which part is not a CPU or a range of them.
pub fn parse_cpu_list(text: &str) -> Result<Vec<usize>, String> {
    let mut cpus = std::collections::BTreeSet::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            // Digits only: `usize::from_str` would also take "+3".
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|&cpu: &usize| plain && cpu < CpuSet::MAX_CPU)
        };
        match (number(first.trim()), number(last.trim())) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(format!("\"{part}\" is neither a CPU nor a range of CPUs such as 0-3")),
        }
    }
    Ok(cpus.into_iter().collect())
}

/// Raises the soft limit on open files to the hard limit and returns it; `None` is unlimited.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_open_files() -> io::Result<Option<u64>> {
    raise(Resource::Nofile)
}

/// Raises the soft limit on locked memory to the hard limit and returns it in bytes; `None` is unlimited. Rings count
/// against it on kernels before 5.12 and registered buffers on all.
///
/// # Errors
/// Those of `setrlimit(2)`.
pub fn raise_locked_memory() -> io::Result<Option<u64>> {
    raise(Resource::Memlock)
}

fn raise(resource: Resource) -> io::Result<Option<u64>> {
    let limit = getrlimit(resource);
    if limit.current != limit.maximum {
        setrlimit(resource, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    Ok(limit.maximum)
}

/// Lets writes that cannot succeed answer an error instead of ending the process: `EPIPE` on a closed socket, which Rust's
/// own start-up arranges for binaries, while splice(2) and the ring need it to hold whoever started the threads; `EFBIG` on a
/// log file that has reached the limit on file sizes.
pub fn ignore_write_signals() {
    // SAFETY: SIG_IGN installs no handler, so that no code of ours runs in signal context; the call has no other
    // precondition, and both are valid, ignorable signals.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Takes a descriptor this process was started with, other than the standard three. To be called at the start, once for each
/// number, while no other thread runs: what is open then was inherited and belongs to nobody yet.
///
/// # Errors
/// No descriptor of this number is open.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the borrow lives for one call that asks the kernel whether the number is an open descriptor; it answers
    // EBADF if not.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: the descriptor is open, and by this function's contract nothing in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// What /proc says about this process. Reads a handful of small files: for the control plane only.
pub fn process() -> Process {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = StatFields::parse(&stat);
    let ticks_per_s = rustix::param::clock_ticks_per_second();
    let boot = std::fs::read_to_string("/proc/stat").ok().and_then(|stat| boot_unix_s(&stat));
    let page_bytes = rustix::param::page_size() as u64;
    Process {
        resident_bytes: fields.map(|fields| fields.resident_pages * page_bytes),
        open_fds: std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
        max_fds: getrlimit(Resource::Nofile).current,
        cpu_us: fields.map(|fields| fields.cpu_ticks * 1_000_000 / ticks_per_s),
        start_unix_s: fields.zip(boot).map(|(fields, boot)| boot + fields.start_ticks / ticks_per_s),
    }
}

/// Seconds since the Unix epoch, now. Before it: 0.
pub fn now_unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The fields of /proc/self/stat that are used (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct StatFields {
    cpu_ticks: u64,
    start_ticks: u64,
    resident_pages: u64,
}

impl StatFields {
    fn parse(stat: &str) -> Option<Self> {
        // The command's name may hold anything, spaces and parentheses too: count from the last one. What follows
        // begins with field 3.
        let (_, rest) = stat.rsplit_once(')')?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<u64>().ok();
        Some(Self { cpu_ticks: field(14)? + field(15)?, start_ticks: field(22)?, resident_pages: field(24)? })
    }
}

fn boot_unix_s(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0-3,8").unwrap(), [0, 1, 2, 3, 8]);
        assert_eq!(parse_cpu_list(" 8, 2 - 3,2").unwrap(), [2, 3, 8]);
        for bad in ["", ",", "1,", "3-1", "a", "-1", "1-", "+1", "1-2-3", "99999999999999999999", "1024", "0x1"] {
            assert!(parse_cpu_list(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_list_of_single_cpus_reads_back(cpus in prop::collection::btree_set(0usize..1024, 1..50)) {
            let text = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            prop_assert_eq!(parse_cpu_list(&text).unwrap(), cpus.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn pinning_narrows_what_is_allowed() {
        std::thread::spawn(|| {
            let allowed = allowed_cpus().unwrap();
            let last = *allowed.last().unwrap();
            pin_current_thread(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
            assert!(pin_current_thread(usize::MAX).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn this_process_is_described() {
        let process = process();
        assert!(process.resident_bytes.unwrap() > 1 << 20);
        assert!(process.open_fds.unwrap() >= 3);
        let start = process.start_unix_s.unwrap();
        assert!(start <= now_unix_s() + 1 && now_unix_s() - start < 24 * 3600, "{start}");
    }

    #[test]
    fn a_hostile_command_name_moves_no_field() {
        let fields = "R 1 1 1 0 -1 0 0 0 0 0 70 30 0 0 20 0 4 0 555 9999 1234 18446744073709551615";
        let expected = StatFields { cpu_ticks: 100, start_ticks: 555, resident_pages: 1234 };
        assert_eq!(StatFields::parse(&format!("12 (a) b (c) {fields}")), Some(expected));
        assert_eq!(StatFields::parse("12 (a) R 1"), None);
    }

    #[test]
    fn only_open_descriptors_are_inherited() {
        for number in [-1, 0, 1, 2, i32::MAX] {
            assert!(inherited(number).is_err(), "{number}");
        }
        let (reader, _writer) = std::io::pipe().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(reader);
        assert_eq!(std::os::fd::AsRawFd::as_raw_fd(&inherited(number).unwrap()), number);
    }

    #[test]
    fn limits_are_raised_to_what_is_allowed() {
        assert_eq!(raise_open_files().unwrap(), getrlimit(Resource::Nofile).current);
        raise_locked_memory().unwrap();
        assert_eq!(getrlimit(Resource::Memlock).current, getrlimit(Resource::Memlock).maximum);
    }
}
