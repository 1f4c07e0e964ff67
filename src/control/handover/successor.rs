//! The old process's side: starts the new one and talks to it, on a thread of its own, so that nothing it does or leaves
//! undone holds up the control loop.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::channel::{Channel, DESCRIPTORS_MAX};
use super::message::{self, Message};
use super::{Program, Sockets, VARIABLE};
use crate::registry::Snapshot;
use crate::tls::ticket::Keyring;

/// How long the new process may take until it serves. It reads every certificate and resolves names, for 5 s at most; a
/// million hostnames take some 20 s.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a process that is ready may take to accept, however long it took to be ready.
const GO_LIMIT: Duration = Duration::from_secs(5);

/// How long a process that gave up may take to end by itself, so that its exit status can be told.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// How often that is looked at.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// What is handed over.
pub struct Estate {
    pub sockets: Arc<Sockets>,
    pub snapshot: Arc<Snapshot>,
    pub keyring: Arc<Keyring>,
}

/// What the new process did; `attempt` tells hand-overs apart.
#[derive(Debug)]
pub struct Report {
    pub attempt: u64,
    pub news: News,
}

/// See [`Report`].
#[derive(Debug)]
pub enum News {
    /// It accepts. These were not taken over, beside the rest.
    Serving { refused: Vec<SocketAddr>, admin_address: bool, admin_socket: bool },
    /// It does not, and never accepted anything.
    Failed(String),
    /// It has read the configuration anew.
    Reloaded,
    /// It served, and is gone; in order, if it exited with 0.
    Gone { orderly: bool, why: String },
}

/// A new process.
#[derive(Debug)]
pub struct Successor {
    pub pid: u32,
    shared: Arc<Shared>,
}

/// What the control loop and the conversation share.
#[derive(Debug)]
struct Shared {
    channel: Channel,
    /// Names the process whatever becomes of its number.
    process: OwnedFd,
    standing: Mutex<Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    /// This process ends: the other one shall not take over.
    given_up: bool,
    /// The other one may have accepted connections.
    told_to_go: bool,
}

impl Shared {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the process: by a drain if it may have clients, at once if it cannot.
    fn end(&self, standing: &Standing) {
        let signal = if standing.told_to_go { Signal::TERM } else { Signal::KILL };
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, signal);
        self.channel.end();
    }
}

impl Successor {
    /// Starts the program and hands everything to it; what comes of it is told to `report`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn start(
        program: &Program,
        estate: Estate,
        attempt: u64,
        report: impl Fn(Report) + Send + 'static,
    ) -> Result<Self, String> {
        let (channel, theirs) = Channel::pair().map_err(|error| format!("cannot make a channel: {error}"))?;
        let mut child =
            spawn(program, &theirs).map_err(|error| format!("cannot start {}: {error}", program.path.display()))?;
        drop(theirs);
        let pid = child.id();
        let process = match watch(pid) {
            Ok(process) => process,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("cannot watch process {pid}: {error}"));
            }
        };
        let shared = Arc::new(Shared { channel, process, standing: Mutex::default() });
        let mut conversation = Conversation { child, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new().name("hostward-heir".into()).spawn(move || {
            let news = conversation.hold(estate, |news| report(Report { attempt, news }));
            report(Report { attempt, news });
        });
        match thread {
            Ok(_) => Ok(Self { pid, shared }),
            Err(error) => {
                shared.end(&Standing::default());
                Err(format!("cannot start a thread: {error}"))
            }
        }
    }

    /// Tells it that this process has stopped accepting.
    pub fn over(&self, reload: bool) {
        // Gone: its end is reported.
        let _ = self.shared.channel.send(&Message::Over { reload });
    }

    /// Ends the attempt, and the process.
    pub fn give_up(&self) {
        let mut standing = self.shared.standing();
        standing.given_up = true;
        self.shared.end(&standing);
    }
}

fn watch(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Starts the program with everything this process was started with, and one more descriptor.
fn spawn(program: &Program, theirs: &Channel) -> io::Result<Child> {
    // Inheritable for the length of this call only. Nothing else in this process starts programs.
    let inherited = theirs.inheritable()?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&inherited);
    Command::new(&program.path)
        .args(&program.arguments)
        .env(VARIABLE, format!("{number}:{}", std::process::id()))
        .stdin(Stdio::null())
        .spawn()
}

struct Conversation {
    child: Child,
    shared: Arc<Shared>,
}

impl Conversation {
    /// From the first word to the last, which is returned.
    fn hold(&mut self, estate: Estate, report: impl Fn(News)) -> News {
        let deadline = Instant::now() + LIMIT;
        // A process that gives up early leaves its reason to be read.
        let _ = self.give(estate);
        let ready = match self.wait_for_ready(deadline) {
            Ok(ready) => ready,
            Err(why) => return News::Failed(self.end(&why)),
        };
        let go = {
            let mut standing = self.shared.standing();
            standing.told_to_go = !standing.given_up;
            standing.told_to_go && self.shared.channel.send(&Message::Go).is_ok()
        };
        if !go {
            return News::Failed(self.end("it was ready, and gone"));
        }
        match self.shared.channel.receive(Some(deadline.max(Instant::now() + GO_LIMIT))) {
            Ok(Some((Message::Serving, _))) => {}
            Ok(_) => return News::Failed(self.end("it ended as it began to accept")),
            Err(error) => return News::Failed(self.end(&format!("it did not begin to accept: {error}"))),
        }
        report(ready);
        loop {
            match self.shared.channel.receive(None) {
                Ok(Some((Message::Reload, _))) => report(News::Reloaded),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let why = self.end("it is gone");
                    // Known by now: the status is kept once the process has been waited for.
                    let orderly =
                        self.child.try_wait().is_ok_and(|status| status.is_some_and(|status| status.success()));
                    return News::Gone { orderly, why };
                }
            }
        }
    }

    /// Sends everything.
    fn give(&self, estate: Estate) -> io::Result<()> {
        let Estate { sockets, snapshot, keyring } = estate;
        let channel = &self.shared.channel;
        channel.send(&Message::Hello { protocol: message::PROTOCOL })?;
        for group in &sockets.groups {
            let message = Message::Listeners { configured: group.configured, bound: group.bound };
            let descriptors: Vec<BorrowedFd<'_>> = group.sockets.iter().map(AsFd::as_fd).collect();
            for chunk in descriptors.chunks(DESCRIPTORS_MAX) {
                channel.send_with(&message, chunk)?;
            }
        }
        if let Some(admin) = &sockets.admin {
            let message = Message::AdminAddress { configured: admin.configured, bound: admin.bound };
            channel.send_with(&message, &[admin.listener.as_fd()])?;
        }
        if let Some(socket) = &sockets.socket {
            channel.send_with(&Message::AdminSocket { path: socket.path.clone() }, &[socket.listener.as_fd()])?;
        }
        // Held no longer than this: whoever closes these sockets must be the last to have them.
        drop(sockets);
        channel.send(&Message::State { version: message::STATE, generation: snapshot.generation })?;
        channel.send(&Message::Keys(keyring.export()))?;
        for message in message::records(snapshot.records().map(|record| (record.name.as_str(), record.id))) {
            channel.send(&message)?;
        }
        channel.send(&Message::Complete)
    }

    fn wait_for_ready(&self, deadline: Instant) -> Result<News, String> {
        match self.shared.channel.receive(Some(deadline)) {
            Ok(Some((Message::Ready { refused, admin_address, admin_socket }, _))) => {
                Ok(News::Serving { refused, admin_address, admin_socket })
            }
            Ok(Some((Message::Failed(why), _))) => Err(why),
            Ok(Some(_)) => Err("it said something else than that it is ready".into()),
            Ok(None) => Err("it ended before it was ready; its own last lines may say why".into()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(format!("it was not ready within {LIMIT:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sees to it that the process ends, and tells how it did.
    fn end(&mut self, why: &str) -> String {
        // Whoever waits for a word learns that none will come. A process that takes that for its end has a moment to say so.
        self.shared.channel.end();
        let deadline = Instant::now() + EXIT_LIMIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("{why} ({status})"),
                Ok(None) => std::thread::sleep(EXIT_POLL),
                Err(_) => return why.to_owned(),
            }
        }
        let standing = self.shared.standing();
        self.shared.end(&standing);
        if !standing.told_to_go {
            let _ = self.child.wait();
        }
        why.to_owned()
    }
}

impl Drop for Conversation {
    /// No zombie is left of a process that has ended.
    fn drop(&mut self) {
        let _ = self.child.try_wait();
    }
}
