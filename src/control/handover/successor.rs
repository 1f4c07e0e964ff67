//! The old process's side: starts the new one and talks to it, on a thread of its own, so that nothing it does or leaves
//! undone holds up the control loop.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

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
    /// It served, and is gone.
    Gone(String),
}

/// A new process.
#[derive(Debug)]
pub struct Successor {
    pub pid: u32,
    channel: Arc<Channel>,
    given_up: Arc<AtomicBool>,
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
        let (ours, theirs) = Channel::pair().map_err(|error| format!("cannot make a channel: {error}"))?;
        let child = spawn(program, &theirs).map_err(|error| format!("cannot start {}: {error}", program.path.display()))?;
        drop(theirs);
        let (pid, channel, given_up) = (child.id(), Arc::new(ours), Arc::new(AtomicBool::new(false)));
        let mut conversation =
            Conversation { child, channel: Arc::clone(&channel), given_up: Arc::clone(&given_up), told_to_go: false };
        let thread = std::thread::Builder::new().name("hostward-heir".into()).spawn(move || {
            let news = conversation.hold(estate, |news| report(Report { attempt, news }));
            report(Report { attempt, news });
        });
        // Without the thread the child has been dropped with its conversation: it sees the end of the channel, and ends.
        thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        Ok(Self { pid, channel, given_up })
    }

    /// Tells it that this process has stopped accepting.
    pub fn over(&self, reload: bool) {
        // Gone: its end is reported.
        let _ = self.channel.send(&Message::Over { reload });
    }

    /// Ends the attempt. It may end it too late: a process that accepts already is told to drain.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        self.channel.end();
    }
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
    channel: Arc<Channel>,
    given_up: Arc<AtomicBool>,
    /// It may have accepted connections.
    told_to_go: bool,
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
        if let Err(error) = self.channel.send(&Message::Go) {
            return News::Failed(self.end(&format!("it was ready, and gone: {error}")));
        }
        self.told_to_go = true;
        match self.channel.receive(Some(deadline.max(Instant::now() + GO_LIMIT))) {
            Ok(Some((Message::Serving, _))) => {}
            Ok(_) => return News::Failed(self.end("it ended as it began to accept")),
            Err(error) => return News::Failed(self.end(&format!("it did not begin to accept: {error}"))),
        }
        report(ready);
        loop {
            match self.channel.receive(None) {
                Ok(Some((Message::Reload, _))) => report(News::Reloaded),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return News::Gone(self.end("it is gone")),
            }
        }
    }

    /// Sends everything.
    fn give(&self, estate: Estate) -> io::Result<()> {
        let Estate { sockets, snapshot, keyring } = estate;
        let channel = &self.channel;
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
        match self.channel.receive(Some(deadline)) {
            Ok(Some((Message::Ready { refused, admin_address, admin_socket }, _))) => {
                Ok(News::Serving { refused, admin_address, admin_socket })
            }
            Ok(Some((Message::Failed(why), _))) => Err(why),
            Ok(Some(_)) => Err("it said something else than that it is ready".into()),
            Ok(None) if self.given_up.load(Ordering::Acquire) => Err("given up, as this process is to end".into()),
            Ok(None) => Err("it ended before it was ready; its own last lines may say why".into()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(format!("it was not ready within {LIMIT:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sees to it that the process ends, and tells how it did.
    fn end(&mut self, why: &str) -> String {
        // Whoever waits for a word learns that none will come.
        self.channel.end();
        if self.told_to_go {
            // It may have clients, and drains.
            let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            if let (Ok(None), Some(pid)) = (self.child.try_wait(), pid) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + EXIT_LIMIT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) => return format!("{why} ({status})"),
                Ok(None) => std::thread::sleep(EXIT_POLL),
                Err(_) => return why.to_owned(),
            }
        }
        if !self.told_to_go {
            let _ = self.child.kill();
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
