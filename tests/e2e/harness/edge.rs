//! The real binary under a configuration.
//!
//! Relies on log events of `hostward run`: `listening` (with the addresses the kernel chose), `reloaded`, `reload_failed`,
//! `handover_started`, `handed_over` and `handover_failed`. An edge that crashed or printed a panic fails its test when it is dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use serde_json::Value;
use tempfile::TempDir;

use super::config::Settings;
use super::events::Events;
use super::process::{Finished, HOSTWARD, Proc, exit_within, hostward};
use super::{SOON, metrics, wait};

/// A running edge.
pub struct Edge {
    child: Mutex<Child>,
    /// The process that serves: the one started here, or whoever took over.
    pid: AtomicU32,
    ended: Mutex<Option<ExitStatus>>,
    directory: TempDir,
    settings: Mutex<Settings>,
    pub events: Events,
    address: SocketAddr,
    admin: SocketAddr,
}

/// What became of a reload.
#[derive(Debug)]
pub enum Reload {
    Done,
    /// The event that says why not.
    Failed(Value),
}

impl Edge {
    /// Starts and waits until it listens.
    #[track_caller]
    pub fn start(settings: Settings) -> Self {
        Self::start_under(&[], settings)
    }

    /// The same under a program that executes it, such as `prlimit --nofile=80`.
    #[track_caller]
    pub fn start_under(wrapper: &[&str], settings: Settings) -> Self {
        Self::start_program(wrapper, Path::new(HOSTWARD), settings)
    }

    /// The same with a copy of the program under test.
    #[track_caller]
    pub fn start_program(wrapper: &[&str], program: &Path, settings: Settings) -> Self {
        // Successors become children of this process when their parent ends, so that they can be waited for.
        set_child_subreaper(Some(getpid())).expect("a flag of this process");
        let directory = tempfile::Builder::new().prefix("hostward-e2e-").tempdir().expect("a directory");
        let file = settings.write(directory.path());
        let mut words = wrapper.iter().copied().chain([program.to_str().expect("UTF-8")]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).arg("run").arg("-c").arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let events = Events::read(child.stderr.take().expect("the pipe was asked for"));

        let listening = || events.named(&["listening"]).pop();
        let mut found = None;
        let up = wait::within(SOON, || {
            found = listening();
            found.is_some() || child.try_wait().expect("a child of ours").is_some()
        });
        let Some(event) = found.filter(|_| up) else {
            let _ = child.kill();
            let status = child.wait();
            panic!("the edge did not start ({status:?}):\n{}", events.text());
        };
        let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
        Self {
            pid: AtomicU32::new(child.id()),
            child: Mutex::new(child),
            ended: Mutex::new(None),
            directory,
            settings: Mutex::new(settings),
            address: address(&event["listen"][0]).unwrap_or_else(|| panic!("no address in {event}")),
            admin: address(&event["admin"]).unwrap_or_else(|| panic!("no admin address in {event}")),
            events,
        }
    }

    /// Where it accepts TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it redirects plain HTTP.
    #[track_caller]
    pub fn redirect(&self) -> SocketAddr {
        let event = self.events.named(&["listening"]).pop().expect("it listens");
        event["redirect"][0].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("none in {event}"))
    }

    /// Its configuration file.
    pub fn file(&self) -> PathBuf {
        self.directory.path().join("hostward.toml")
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub fn proc(&self) -> Proc {
        Proc { pid: self.pid() }
    }

    /// Has a new process take over; returns the pid of the old one.
    #[track_caller]
    pub fn hand_over(&self) -> u32 {
        self.try_hand_over().unwrap_or_else(|event| panic!("nobody took over: {event}"))
    }

    /// The same, or the event that says why not.
    #[track_caller]
    pub fn try_hand_over(&self) -> Result<u32, Value> {
        let events = || self.events.named(&["handed_over", "handover_failed"]);
        let (before, old) = (events().len(), self.pid());
        self.signal(Signal::USR2);
        let event = wait::for_some("somebody takes over or not", 2 * SOON, || events().into_iter().nth(before));
        if event["event"] != "handed_over" {
            return Err(event);
        }
        self.pid.store(u32::try_from(event["successor"].as_u64().expect("a pid")).expect("a pid"), Ordering::Relaxed);
        Ok(old)
    }

    /// Changes the settings and writes them, and tells nobody.
    pub fn rewrite(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings.lock().expect("no test panics while holding this");
        change(&mut settings);
        settings.write(self.directory.path());
    }

    /// Waits for the end of a process of this edge, old or new, and returns its exit code; `None` if it does not end. A
    /// successor's end is seen once those before it have ended.
    pub fn exit_code_within(&self, pid: u32, bound: Duration) -> Option<i32> {
        if self.child.lock().expect("no test panics while holding this").id() == pid {
            return self.exit_within(bound).and_then(|status| status.code());
        }
        let mut code = None;
        wait::within(bound, || {
            let ended = waitpid(Some(as_pid(pid)), WaitOptions::NOHANG);
            code = ended.ok().flatten().and_then(|(_, status)| status.exit_status());
            code.is_some()
        });
        code
    }

    /// GET from the admin address: status code and body.
    pub fn admin(&self, path: &str) -> (u16, String) {
        metrics::get(self.admin, path)
    }

    /// Reads a metric: `hostward_handshakes_total{result="ok"}`, summed over the labels that are not named.
    pub fn metric(&self, query: &str) -> f64 {
        let (status, text) = self.admin("/metrics");
        assert_eq!(status, 200, "{text}");
        metrics::sum(&text, query)
    }

    /// Waits until a metric has this value: what a client saw may be counted a moment later.
    #[track_caller]
    pub fn expect_metric(&self, query: &str, value: f64) {
        wait::for_value(query, SOON, &value, || self.metric(query));
    }

    /// The counter of refusals for one reason.
    pub fn refusals(&self, reason: &str) -> f64 {
        self.metric(&format!("hostward_handshake_failures_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until this many clients were refused for a reason.
    #[track_caller]
    pub fn expect_refusals(&self, reason: &str, count: f64) {
        self.expect_metric(&format!("hostward_handshake_failures_total{{reason=\"{reason}\"}}"), count);
    }

    /// Changes the settings, writes them, and has the edge read them; it must succeed.
    #[track_caller]
    pub fn reconfigure(&self, change: impl FnOnce(&mut Settings)) {
        match self.try_reconfigure(change) {
            Reload::Done => {}
            Reload::Failed(event) => panic!("the edge refused the new configuration: {event}"),
        }
    }

    /// The same, whatever comes of it.
    #[track_caller]
    pub fn try_reconfigure(&self, change: impl FnOnce(&mut Settings)) -> Reload {
        let mut settings = self.settings.lock().expect("no test panics while holding this");
        change(&mut settings);
        settings.write(self.directory.path());
        drop(settings);
        self.reload()
    }

    /// Has the edge read its file again, and waits until it says what came of it.
    #[track_caller]
    pub fn reload(&self) -> Reload {
        let events = || self.events.named(&["reloaded", "reload_failed"]);
        let before = events().len();
        self.signal(Signal::HUP);
        let event = wait::for_some("the edge says what came of the reload", SOON, || events().into_iter().nth(before));
        if event["event"] == "reloaded" { Reload::Done } else { Reload::Failed(event) }
    }

    pub fn signal(&self, signal: Signal) {
        self.signal_to(self.pid(), signal);
    }

    /// Signals one of its processes.
    pub fn signal_to(&self, pid: u32, signal: Signal) {
        kill_process(as_pid(pid), signal).expect("the process lives");
    }

    /// Runs a subcommand against this edge's configuration: `status`, `reload`, `drain`.
    #[track_caller]
    pub fn cli(&self, subcommand: &str) -> Finished {
        hostward(&[subcommand, "-c", self.file().to_str().expect("UTF-8")])
    }

    /// Waits for the edge to end by itself; `None` if it does not.
    pub fn exit_within(&self, bound: Duration) -> Option<ExitStatus> {
        let mut child = self.child.lock().expect("no test panics while holding this");
        let status = exit_within(&mut child, bound);
        *self.ended.lock().expect("no test panics while holding this") = status;
        status
    }
}

fn as_pid(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a pid")
}

impl Drop for Edge {
    fn drop(&mut self) {
        let handed_over = !self.events.named(&["handed_over"]).is_empty();
        let child = self.child.get_mut().expect("no test panics while holding this");
        let expected = handed_over || self.ended.get_mut().expect("no test panics while holding this").is_some();
        let crashed = if expected { None } else { child.try_wait().ok().flatten() };
        let _ = child.kill();
        let _ = child.wait();
        // In the order of their start: each became a child of this process when the one before it ended.
        for event in self.events.named(&["handover_started"]) {
            let Some(pid) = event["successor"].as_i64().and_then(|pid| Pid::from_raw(pid as i32)) else { continue };
            if let Ok(None) = waitpid(Some(pid), WaitOptions::NOHANG) {
                let _ = kill_process(pid, Signal::KILL);
                let _ = waitpid(Some(pid), WaitOptions::empty());
            }
        }
        let crash = self.events.crash();
        if std::thread::panicking() {
            eprintln!("the edge wrote:\n{}", tail(&self.events.text(), 60));
        } else if let Some(status) = crashed {
            panic!("the edge ended by itself ({status}):\n{}", tail(&self.events.text(), 60));
        } else if let Some(line) = crash {
            panic!("the edge broke: {line}\n{}", tail(&self.events.text(), 60));
        }
    }
}

/// The last lines of a text.
fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
