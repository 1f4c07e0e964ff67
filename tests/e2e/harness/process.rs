//! Running programs to their end, and knowing about a running one: all bounded, all by pid.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::wait;

/// The program under test.
pub const HOSTWARD: &str = env!("CARGO_BIN_EXE_hostward");

/// What a program that ended left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Both outputs, for messages.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// Runs a program to its end without input; kills it when `bound` has passed, and fails.
#[track_caller]
pub fn run(command: &mut Command, bound: Duration) -> Finished {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let status = exit_within(&mut child, bound);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let stdout = stdout.join().expect("the reader ends");
    let stderr = stderr.join().expect("the reader ends");
    match status {
        Some(status) => Finished { status, stdout, stderr },
        None => panic!("{command:?} still runs after {bound:?}; it wrote:\n{stdout}{stderr}"),
    }
}

/// Runs `hostward` with these arguments.
#[track_caller]
pub fn hostward(arguments: &[&str]) -> Finished {
    run(Command::new(HOSTWARD).args(arguments), Duration::from_secs(60))
}

/// Waits for the end of a child.
pub fn exit_within(child: &mut Child, bound: Duration) -> Option<ExitStatus> {
    let mut status = None;
    wait::within(bound, || {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    status
}

/// Where a program of this name is, or a loud line that the case is skipped.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = directories.map(|directory| directory.join(name)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("SKIPPED: {name} is not installed; this case did not run");
    }
    found
}

/// What the kernel says about a process.
#[derive(Clone, Copy)]
pub struct Proc {
    pub pid: u32,
}

impl Proc {
    /// Open file descriptors.
    pub fn fds(self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("the process lives").count()
    }

    /// Resident memory, KiB.
    pub fn rss_kib(self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most memory that ever was resident, KiB.
    pub fn peak_kib(self) -> u64 {
        self.status_kib("VmHWM:")
    }

    fn status_kib(self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process lives");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a line of the field");
        line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
    }

    /// The names of all its threads, the kernel's workers for io_uring (`iou-wrk-…`) among them.
    pub fn threads(self) -> Vec<String> {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid)) else { return Vec::new() };
        // A thread may end between the listing and the reading.
        tasks
            .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect()
    }
}

fn reader(input: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    let mut input = input.expect("the pipe was asked for");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks ends the output; what came is what there is.
        let _ = input.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
