//! The access log: one JSON line for each request, or for each connection where bytes are forwarded as they come.
//!
//! A worker hands over plain data, and only if the log is on: [`Writer::log`] stamps an [`Entry`] and pushes it into that
//! worker's own bounded queue, which takes it 140 ns a line (`make bench`, `access/log`). Two workers never touch the same queue, and nothing is formatted, written or waited for on a
//! worker. A thread of its own looks into the queues a few times a second, or when one fills up; apart from the thread that
//! writes events, so that a disk that hangs here silences nothing there. A full queue drops the line and counts it; the
//! next line of that worker says how many went missing.
//!
//! What a connection's lines have in common is a [`Connection`], made once for each connection and turned into text once.
//! `docs/access-log.md` describes every field.

mod format;
mod sink;
#[cfg(test)]
mod tests;
mod thread;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, SystemTime};

use crossbeam::channel::{Sender, unbounded};
use crossbeam::queue::ArrayQueue;

use super::Handle;
use crate::policy::{Identity, Verdict};

pub use sink::{Sink, Target};

/// Lines of one worker that may wait for the writing thread.
///
/// A core serves some 50,000 small requests a second, and the thread looks every `NAP`: 2,500 lines come together
/// meanwhile. Three times that rides out a disk that stands still for a sixth of a second at full load; at about 300 bytes
/// a line, at most 2 KiB, a full queue holds 2.5 MB, at most 16 MB.
const QUEUE_LINES: usize = 8192;

/// How long the writing thread sleeps when nothing wakes it. A worker wakes it only when its queue is half full: a system
/// call for each line would cost it more than the line. Twenty looks a second cost an idle machine nothing to speak of.
const NAP: Duration = Duration::from_millis(50);

/// The most bytes of a request's path that a line shows. Longer ones are attacks or data; the beginning says which.
const PATH_BYTES_MAX: usize = 1024;

/// The most bytes of a method: the longest registered one (`UPDATEREDIRECTREF`) has 17.
const METHOD_BYTES_MAX: usize = 32;

/// The most bytes of an authority: the longest hostname and a port.
const AUTHORITY_BYTES_MAX: usize = 260;

/// The most bytes of a request's id; one of a trusted peer may be any text.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// What all lines of one connection say.
#[derive(Debug)]
pub struct Connection {
    /// The worker, from 0.
    pub worker: usize,
    /// The name the client asked for; `None`: it named none.
    pub hostname: Option<Box<str>>,
    /// The name of the record that serves it.
    pub record: Box<str>,
    /// `TLSv1.3` or `TLSv1.2`.
    pub tls_version: &'static str,
    /// The cipher suite's IANA name.
    pub cipher: String,
    pub resumed: bool,
    pub client: Option<SocketAddr>,
    /// The balancer whose PROXY header told the client's address.
    pub via: Option<SocketAddr>,
    /// The id that balancer gave the connection: any bytes, at most 128.
    pub unique_id: Option<Box<[u8]>>,
    pub verdict: Verdict,
    /// The client's leaf certificate (DER). Only that of a verified client: whatever else a certificate says is hearsay.
    pub leaf: Option<Box<[u8]>>,
    /// All of this as text, once the writing thread has made it.
    pub text: OnceLock<Box<[u8]>>,
}

/// One line to be written.
#[derive(Debug)]
pub struct Entry {
    pub connection: Arc<Connection>,
    /// `tcp`, `http/1.1`, `h2`.
    pub protocol: &'static str,
    /// `None` where bytes are forwarded as they come.
    pub request: Option<Request>,
    /// Plaintext bytes from the client: of the request's body, or of the whole connection.
    pub bytes_in: u64,
    /// Plaintext bytes to the client: of the response's body, or of the whole connection.
    pub bytes_out: u64,
    /// Of a request: from the first byte of its head to the last byte of the answer. Of a connection: from accept to end.
    pub duration: Duration,
    /// `None` when no origin was asked.
    pub origin: Option<Origin>,
    /// How a tunnel ended, in the words of `hostward_tunnels_ended_total{end}`.
    pub end: Option<&'static str>,
}

/// What a line says of a request.
#[derive(Debug)]
pub struct Request {
    /// Method, path, authority and id, one after the other in one piece of memory.
    text: Box<[u8]>,
    ends: [u16; 3],
    /// The trace it belongs to (W3C Trace Context).
    pub trace_id: Option<[u8; 32]>,
    /// The status the client was answered; 0: none was sent.
    pub status: u16,
    /// A dead pooled connection made a second try necessary.
    pub retried: bool,
    /// Why the answer is ours and not the origin's, in the words of RFC 9209 section 2.3.
    pub proxy_error: Option<&'static str>,
}

/// What a line says of the origin.
#[derive(Debug)]
pub struct Origin {
    /// The name of the `[origin.NAME]` table, or the URL.
    pub name: Box<str>,
    /// `None` for Unix-domain sockets, and where none was reached.
    pub address: Option<SocketAddr>,
    /// How long connecting took; `None` on a connection that was there already.
    pub connect: Option<Duration>,
    /// From the request's last byte handed to the kernel, or its head's where the body goes on, to the first byte of the
    /// response; `None` where bytes are forwarded as they come.
    pub response: Option<Duration>,
}

impl Request {
    /// What a line says of a request with this method, target, authority and id, none of which need be well-formed. Of the
    /// target only the path is kept: queries carry tokens and personal data.
    pub fn new(method: &[u8], target: &[u8], authority: &[u8], id: &[u8]) -> Self {
        let path = target.split(|&byte| byte == b'?' || byte == b'#').next().unwrap_or_default();
        let parts = [
            (method, METHOD_BYTES_MAX),
            (path, PATH_BYTES_MAX),
            (authority, AUTHORITY_BYTES_MAX),
            (id, REQUEST_ID_BYTES_MAX),
        ];
        let parts = parts.map(|(bytes, most)| &bytes[..bytes.len().min(most)]);
        let mut text = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        let mut ends = [0; 4];
        for (part, end) in parts.iter().zip(&mut ends) {
            text.extend_from_slice(part);
            *end = u16::try_from(text.len()).unwrap_or(u16::MAX);
        }
        let [method, path, authority, _] = ends;
        Self {
            text: text.into(),
            ends: [method, path, authority],
            trace_id: None,
            status: 0,
            retried: false,
            proxy_error: None,
        }
    }

    /// Method, path, authority and id.
    fn parts(&self) -> [&[u8]; 4] {
        let [method, path, authority] = self.ends.map(usize::from);
        [&self.text[..method], &self.text[method..path], &self.text[path..authority], &self.text[authority..]]
    }
}

/// An entry and when it was made.
#[derive(Debug)]
struct Stamped {
    at: SystemTime,
    entry: Entry,
}

/// One worker's lines.
#[derive(Debug)]
struct Queue {
    lines: ArrayQueue<Box<Stamped>>,
    /// Lines the full queue would not take. Written by the worker alone.
    dropped: AtomicU64,
}

/// What workers, control plane and writing thread share.
#[derive(Debug, Default)]
struct Shared {
    enabled: AtomicBool,
    closed: AtomicBool,
    queues: Mutex<Vec<Arc<Queue>>>,
    /// Lines that were lost because they could not be written.
    unwritten: AtomicU64,
    write_errors: AtomicU64,
    reopened: AtomicU64,
    reopen_failed: AtomicU64,
}

/// What the control plane asks of the writing thread.
enum Command {
    Set(Sink),
    Reopen,
}

/// What the access log has counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Lines that were dropped: a queue was full, or they could not be written.
    pub dropped: u64,
    /// Writes that failed.
    pub write_errors: u64,
    /// Times the file was opened again, and could not be.
    pub reopened: u64,
    pub reopen_failed: u64,
}

/// A worker's end of the log.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    thread: Thread,
}

impl Writer {
    /// Whether lines are written at all: an entry is built only then.
    pub fn enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// Hands a line over. Never blocks.
    pub fn log(&self, entry: Entry) {
        let line = Box::new(Stamped { at: SystemTime::now(), entry });
        if self.queue.lines.push(line).is_err() {
            let dropped = &self.queue.dropped;
            dropped.store(dropped.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        } else if self.queue.lines.len() * 2 >= self.queue.lines.capacity() {
            // A system call only when the thread sleeps.
            self.thread.unpark();
        }
    }
}

/// The running access log. Dropping it writes what is queued, for a bounded time.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    queue_lines: usize,
}

impl Log {
    /// Starts the writing thread. What goes wrong is told through `events`; `identify` reads a certificate.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start(sink: Sink, events: Handle, identify: fn(&[u8]) -> Option<Identity>) -> std::io::Result<Self> {
        Self::start_with(sink, events, identify, QUEUE_LINES)
    }

    fn start_with(
        sink: Sink,
        events: Handle,
        identify: fn(&[u8]) -> Option<Identity>,
        queue_lines: usize,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { enabled: AtomicBool::new(!sink.is_off()), ..Shared::default() });
        let (commands, receiver) = unbounded();
        let writing = thread::Writing::new(Arc::clone(&shared), receiver, sink, events, identify);
        let thread = std::thread::Builder::new().name("hostward-access".into()).spawn(move || writing.run())?;
        Ok(Self { shared, commands, thread, queue_lines })
    }

    /// A worker's end, with a queue of its own.
    pub fn writer(&self) -> Writer {
        let queue = Arc::new(Queue { lines: ArrayQueue::new(self.queue_lines), dropped: AtomicU64::new(0) });
        self.shared.queues().push(Arc::clone(&queue));
        Writer { shared: Arc::clone(&self.shared), queue, thread: self.thread.thread().clone() }
    }

    /// Writes to another place from now on; what was handed over before still goes to the old one.
    pub fn set(&self, sink: Sink) {
        self.shared.enabled.store(!sink.is_off(), Ordering::Relaxed);
        self.command(Command::Set(sink));
    }

    /// Opens the file again, on the writing thread: after it was renamed, the lines that follow go to a new one. If that
    /// fails the old one is written on. Either is told through the events.
    pub fn reopen(&self) {
        self.command(Command::Reopen);
    }

    /// What has been counted.
    pub fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dropped: u64 = self.shared.queues().iter().map(|queue| count(&queue.dropped)).sum();
        Counts {
            dropped: dropped + count(&self.shared.unwritten),
            write_errors: count(&self.shared.write_errors),
            reopened: count(&self.shared.reopened),
            reopen_failed: count(&self.shared.reopen_failed),
        }
    }

    fn command(&self, command: Command) {
        // The thread ends only when this is dropped.
        let _ = self.commands.send(command);
        self.thread.thread().unpark();
    }
}

/// How long an exit waits for lines that nobody takes.
const FINISH: Duration = Duration::from_secs(1);

impl Drop for Log {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.thread.thread().unpark();
        let deadline = std::time::Instant::now() + FINISH;
        while !self.thread.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Shared {
    fn queues(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Queue>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
